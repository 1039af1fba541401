/* Writes down, in their order, what a process writes to the files of one folder
 * and when it has them synced. Loaded before libc; the files themselves are
 * written as ever. Every record: kind, path, offset, length, bytes. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <unistd.h>

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int trace = -1;

static ssize_t real_write(int fd, const void *data, size_t length)
{
	static ssize_t (*next)(int, const void *, size_t);
	if (!next)
		next = dlsym(RTLD_NEXT, "write");
	return next(fd, data, length);
}

/* The name of a descriptor's file inside the folder, or NULL. */
static const char *inside(int fd, char *path, size_t size)
{
	const char *folder = getenv("CREO_TRACE_FOLDER");
	char link[64];
	snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
	ssize_t length = readlink(link, path, size - 1);
	if (!folder || length <= 0)
		return NULL;
	path[length] = 0;
	size_t prefix = strlen(folder);
	if (strncmp(path, folder, prefix) || path[prefix] != '/')
		return NULL;
	const char *name = path + prefix + 1;
	return strcmp(name, "trace") ? name : NULL;
}

static void all(const void *data, size_t length)
{
	while (length > 0) {
		ssize_t written = real_write(trace, data, length);
		if (written <= 0)
			abort();
		data = (const char *)data + written;
		length -= written;
	}
}

static void record(char kind, const char *name, uint64_t offset, uint64_t length, const void *data)
{
	if (trace < 0)
		trace = open(getenv("CREO_TRACE"), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	uint64_t name_length = strlen(name);
	all(&kind, 1);
	all(&name_length, 8);
	all(name, name_length);
	all(&offset, 8);
	all(&length, 8);
	if (data)
		all(data, length);
}

/* Records before what is written can have been acknowledged to anyone. */
static void wrote(int fd, const void *data, ssize_t length, off_t offset)
{
	char path[4096];
	const char *name = length > 0 ? inside(fd, path, sizeof path) : NULL;
	if (name)
		record('w', name, offset, length, data);
}

ssize_t write(int fd, const void *data, size_t length)
{
	if (fd <= 2)
		return real_write(fd, data, length);
	pthread_mutex_lock(&lock);
	ssize_t written = real_write(fd, data, length);
	if (written > 0)
		wrote(fd, data, written, lseek(fd, 0, SEEK_CUR) - written);
	pthread_mutex_unlock(&lock);
	return written;
}

#define PWRITE(symbol)                                                            \
	ssize_t symbol(int fd, const void *data, size_t length, off_t offset)     \
	{                                                                         \
		static ssize_t (*next)(int, const void *, size_t, off_t);         \
		pthread_mutex_lock(&lock);                                        \
		if (!next)                                                        \
			next = dlsym(RTLD_NEXT, #symbol);                         \
		ssize_t written = next(fd, data, length, offset);                 \
		wrote(fd, data, written, offset);                                 \
		pthread_mutex_unlock(&lock);                                      \
		return written;                                                   \
	}
PWRITE(pwrite)
PWRITE(pwrite64)

/* A file that is gone: journals of SQLite end so. */
int unlink(const char *path)
{
	static int (*next)(const char *);
	const char *folder = getenv("CREO_TRACE_FOLDER");
	pthread_mutex_lock(&lock);
	if (!next)
		next = dlsym(RTLD_NEXT, "unlink");
	int result = next(path);
	size_t prefix = folder ? strlen(folder) : 0;
	if (result == 0 && prefix && !strncmp(path, folder, prefix) && path[prefix] == '/')
		record('u', path + prefix + 1, 0, 0, NULL);
	pthread_mutex_unlock(&lock);
	return result;
}

#define ON_FILE(symbol, kind, type, offset)                                       \
	int symbol type                                                           \
	{                                                                         \
		char path[4096];                                                  \
		static int(*next) type;                                           \
		pthread_mutex_lock(&lock);                                        \
		if (!next)                                                        \
			next = dlsym(RTLD_NEXT, #symbol);                         \
		int result = next ARGUMENTS;                                      \
		const char *name = result == 0 ? inside(fd, path, sizeof path) : NULL; \
		if (name)                                                         \
			record(kind, name, offset, 0, NULL);                      \
		pthread_mutex_unlock(&lock);                                      \
		return result;                                                    \
	}
#define ARGUMENTS (fd)
ON_FILE(fsync, 's', (int fd), 0)
ON_FILE(fdatasync, 's', (int fd), 0)
#undef ARGUMENTS
#define ARGUMENTS (fd, size)
ON_FILE(ftruncate, 't', (int fd, off_t size), size)
ON_FILE(ftruncate64, 't', (int fd, off_t size), size)
