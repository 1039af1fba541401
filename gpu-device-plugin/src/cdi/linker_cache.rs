//! The dynamic linker's list of libraries, `/etc/ld.so.cache`, as glibc writes it.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;

/// Begins the list that glibc before 2.2 reads; the newer one may follow it.
const OLD_MAGIC: &[u8] = b"ld.so-1.7.0\0";
/// Length of one entry of the old list, in bytes.
const OLD_ENTRY: usize = 12;
/// Begins the list, with its version.
const MAGIC: &[u8] = b"glibc-ld.so.cache1.1";
/// Length of what comes before the entries, in bytes.
const HEADER: usize = 48;
/// Length of one entry, in bytes.
const ENTRY: usize = 24;
/// Flags of a library of this architecture: an ELF library for glibc 2 and its word size.
const FLAGS: u32 = if cfg!(target_arch = "aarch64") {
    0x0a03
} else {
    0x0303
};

/// The libraries of this architecture: the name that programs ask for, and the path.
///
/// Nothing where this is no such list; an entry that is damaged is passed over. The system's
/// own linker trusts the file, but here it is one of another root.
#[must_use]
pub fn libraries(cache: &[u8]) -> Vec<(&OsStr, PathBuf)> {
    entries(cache).unwrap_or_default()
}

fn entries(cache: &[u8]) -> Option<Vec<(&OsStr, PathBuf)>> {
    let start = match cache.strip_prefix(OLD_MAGIC) {
        Some(old) => {
            let old_entries = number(old, 0)?.checked_mul(OLD_ENTRY)?;
            // The newer list begins where a word of eight bytes may.
            (OLD_MAGIC.len() + 4)
                .checked_add(old_entries)?
                .checked_next_multiple_of(8)?
        }
        None => 0,
    };
    // Offsets of texts count from here.
    let list = cache.get(start..)?;
    if !list.starts_with(MAGIC) {
        return None;
    }
    let count = number(list, MAGIC.len())?;
    let entries = list.get(HEADER..)?.chunks_exact(ENTRY).take(count);
    Some(
        entries
            .filter_map(|entry| {
                if number(entry, 0)? != usize::try_from(FLAGS).ok()? {
                    return None;
                }
                let name = text(list, number(entry, 4)?)?;
                let path = text(list, number(entry, 8)?)?;
                Some((name, PathBuf::from(path)))
            })
            .collect(),
    )
}

fn number(bytes: &[u8], offset: usize) -> Option<usize> {
    let word = bytes.get(offset..)?.first_chunk::<4>()?;
    usize::try_from(u32::from_le_bytes(*word)).ok()
}

/// The text that begins here and ends with a zero.
fn text(bytes: &[u8], offset: usize) -> Option<&OsStr> {
    let rest = bytes.get(offset..)?;
    let end = rest.iter().position(|byte| *byte == 0)?;
    (end > 0).then(|| OsStr::from_bytes(&rest[..end]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::path::Path;
    use std::process::Command;

    /// A list as `ldconfig` writes it: flags, name and path of each.
    fn cache(entries: &[(u32, &str, &str)]) -> Vec<u8> {
        let strings = HEADER + entries.len() * ENTRY;
        let (mut list, mut texts) = (MAGIC.to_vec(), Vec::new());
        list.extend(u32::try_from(entries.len()).unwrap().to_le_bytes());
        list.resize(HEADER, 0);
        for (flags, name, path) in entries {
            list.extend(flags.to_le_bytes());
            for value in [name, path] {
                let offset = u32::try_from(strings + texts.len()).unwrap();
                list.extend(offset.to_le_bytes());
                texts.extend(value.as_bytes());
                texts.push(0);
            }
            list.extend([0; 12]);
        }
        list.extend(texts);
        list
    }

    fn example() -> Vec<u8> {
        cache(&[
            (FLAGS, "libcuda.so.1", "/lib/a/libcuda.so.1"),
            (0x0003, "libcuda.so.1", "/lib32/libcuda.so.1"),
            (FLAGS, "libnvidia-ml.so.1", "/lib/a/libnvidia-ml.so.1"),
        ])
    }

    #[test]
    fn libraries_of_this_architecture_are_read_from_either_format() {
        let new = example();
        let mut both = OLD_MAGIC.to_vec();
        both.extend(3_u32.to_le_bytes());
        both.extend([0; 3 * OLD_ENTRY]);
        both.resize(both.len().next_multiple_of(8), 0);
        both.extend(&new);
        for cache in [new, both] {
            let found = libraries(&cache);
            assert_eq!(
                found,
                [
                    (
                        OsStr::new("libcuda.so.1"),
                        PathBuf::from("/lib/a/libcuda.so.1")
                    ),
                    (
                        OsStr::new("libnvidia-ml.so.1"),
                        PathBuf::from("/lib/a/libnvidia-ml.so.1")
                    ),
                ]
            );
        }
    }

    #[test]
    fn the_list_that_ldconfig_writes_is_read() {
        let root = tempfile::tempdir().unwrap();
        let directory = root.path().join("opt/nvidia");
        fs::create_dir_all(&directory).unwrap();
        fs::create_dir_all(root.path().join("etc")).unwrap();
        fs::write(root.path().join("etc/ld.so.conf"), "/opt/nvidia\n").unwrap();
        // Any library of this machine that ldconfig takes for one.
        let own = fs::read("/proc/self/maps").unwrap();
        let own = String::from_utf8_lossy(&own);
        let libc = own
            .lines()
            .filter_map(|line| line.split_whitespace().nth(5))
            .find(|path| path.ends_with("libc.so.6"))
            .unwrap();
        fs::copy(libc, directory.join("libc.so.6")).unwrap();
        let status = Command::new("/sbin/ldconfig")
            .arg("-r")
            .arg(root.path())
            .status()
            .unwrap();
        assert!(status.success());
        let written = fs::read(root.path().join("etc/ld.so.cache")).unwrap();
        let found = libraries(&written);
        assert_eq!(
            found,
            [(
                OsStr::new("libc.so.6"),
                Path::new("/opt/nvidia/libc.so.6").to_owned()
            )]
        );
    }

    #[test]
    fn what_is_no_list_has_no_libraries() {
        for cache in [&b""[..], b"rubbish", OLD_MAGIC, MAGIC] {
            assert_eq!(libraries(cache), []);
        }
    }

    proptest! {
        #[test]
        fn no_damage_is_a_crash(
            damage in prop::collection::vec((0_usize..200, any::<u8>()), 0..20),
            length in 0_usize..300,
        ) {
            let mut cache = example();
            for (place, byte) in damage {
                if let Some(there) = cache.get_mut(place) {
                    *there = byte;
                }
            }
            cache.truncate(length);
            prop_assert!(libraries(&cache).len() <= 3);
        }
    }
}
