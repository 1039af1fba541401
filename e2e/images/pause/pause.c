/* The first process of a pod's sandbox on the local cluster: it holds the
 * pod's namespaces, reaps what is left to it, and ends when asked to. */
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

static void end(int number) {
  (void)number;
  _exit(0);
}

static void reap(int number) {
  (void)number;
  while (waitpid(-1, NULL, WNOHANG) > 0) {
  }
}

int main(void) {
  struct sigaction ended = {.sa_handler = end};
  struct sigaction left = {.sa_handler = reap, .sa_flags = SA_NOCLDSTOP};
  if (sigaction(SIGTERM, &ended, NULL) || sigaction(SIGINT, &ended, NULL) ||
      sigaction(SIGCHLD, &left, NULL)) {
    return 1;
  }
  for (;;) {
    pause();
  }
}
