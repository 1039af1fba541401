//! What a shared library is called by the programs that were linked with it (its SONAME).

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// ELF, 64 bits, little endian, version 1.
const MAGIC: [u8; 7] = [0x7f, b'E', b'L', b'F', 2, 1, 1];
/// Number of this architecture.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") {
    183
} else {
    62
};
/// A shared object.
const SHARED: u16 = 3;
/// Lengths of the file's header, of one segment's and of one dynamic entry, in bytes.
const HEADER: usize = 64;
const SEGMENT: usize = 56;
const ENTRY: usize = 16;
/// Kinds of segments: mapped into memory, and the one with the dynamic entries.
const LOAD: u32 = 1;
const DYNAMIC: u32 = 2;
/// Kinds of dynamic entries.
const STRINGS: u64 = 5;
const SONAME: u64 = 14;
/// More than any library has; what is more is passed over.
const SEGMENTS_MAX: usize = 256;
const ENTRIES_MAX: usize = 1_024;
const NAME_BYTES_MAX: usize = 256;

/// A shared library of this architecture.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Library {
    /// Its SONAME, where it has one.
    pub soname: Option<String>,
}

/// Reads what this file is; nothing where it is no shared library of this architecture.
#[must_use]
pub fn library(path: &Path) -> Option<Library> {
    let file = File::open(path).ok()?;
    let mut header = [0; HEADER];
    file.read_exact_at(&mut header, 0).ok()?;
    let fits = header.starts_with(&MAGIC)
        && half(&header, 16)? == SHARED
        && half(&header, 18)? == MACHINE
        && usize::from(half(&header, 54)?) == SEGMENT;
    fits.then(|| Library {
        soname: soname(&file, &header),
    })
}

fn soname(file: &File, header: &[u8]) -> Option<String> {
    let count = usize::from(half(header, 56)?).min(SEGMENTS_MAX);
    let segments = read(file, long(header, 32)?, count * SEGMENT)?;
    let segments: Vec<&[u8]> = segments.chunks_exact(SEGMENT).collect();
    let dynamic = segments
        .iter()
        .find(|segment| word(segment, 0) == Some(DYNAMIC))?;
    let length = usize::try_from(long(dynamic, 32)?).ok()?;
    let entries = read(
        file,
        long(dynamic, 8)?,
        length.min(ENTRIES_MAX * ENTRY) / ENTRY * ENTRY,
    )?;
    let entry = |kind| {
        entries
            .chunks_exact(ENTRY)
            .find(|entry| long(entry, 0) == Some(kind))
            .and_then(|entry| long(entry, 8))
    };
    let address = entry(STRINGS)?.checked_add(entry(SONAME)?)?;
    // The entries know addresses in memory; the segment that is mapped there knows the file.
    let offset = segments.iter().find_map(|segment| {
        if word(segment, 0) != Some(LOAD) {
            return None;
        }
        let into = address.checked_sub(long(segment, 16)?)?;
        (into < long(segment, 32)?).then_some(long(segment, 8)?.checked_add(into)?)
    })?;
    let mut name = [0; NAME_BYTES_MAX];
    let length = file.read_at(&mut name, offset).ok()?;
    let end = name[..length].iter().position(|byte| *byte == 0)?;
    let name = std::str::from_utf8(&name[..end]).ok()?;
    // It becomes part of a path.
    let is_name = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
    is_name.then(|| name.to_owned())
}

fn read(file: &File, offset: u64, length: usize) -> Option<Vec<u8>> {
    let mut bytes = vec![0; length];
    file.read_exact_at(&mut bytes, offset).ok()?;
    Some(bytes)
}

fn half(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn word(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

fn long(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(offset..)?.first_chunk()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::fs;
    use std::process::Command;
    use std::sync::LazyLock;

    /// A library that the compiler makes, with this SONAME or none.
    fn compiled(soname: Option<&str>) -> (tempfile::TempDir, std::path::PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("compiled");
        let mut compiler = Command::new("cc");
        compiler.args(["-shared", "-nostdlib", "-x", "c", "/dev/null", "-o"]);
        compiler.arg(&path);
        compiler.args(soname.map(|name| format!("-Wl,-soname,{name}")));
        assert!(compiler.status().unwrap().success());
        (directory, path)
    }

    #[test]
    fn a_library_tells_its_soname() {
        for soname in [Some("libcuda.so.1"), None] {
            let (_directory, path) = compiled(soname);
            assert_eq!(library(&path).unwrap().soname.as_deref(), soname);
        }
    }

    #[test]
    fn a_soname_that_would_lead_elsewhere_is_none() {
        for soname in ["../libcuda.so.1", "a/b", ".."] {
            let (_directory, path) = compiled(Some(soname));
            assert_eq!(library(&path).unwrap().soname, None);
        }
    }

    #[test]
    fn what_is_no_library_of_this_architecture_is_none() {
        let (directory, path) = compiled(Some("libcuda.so.1"));
        let mut other = fs::read(&path).unwrap();
        other[18] = 40;
        let thirty_two_bits = directory.path().join("other");
        fs::write(&thirty_two_bits, other).unwrap();
        assert_eq!(library(&thirty_two_bits), None);
        assert_eq!(library(&directory.path().join("missing")), None);
        assert_eq!(library(directory.path()), None);
        assert_eq!(library(Path::new("/dev/null")), None);
    }

    proptest! {
        #[test]
        fn no_damage_is_a_crash(
            damage in prop::collection::vec((0_usize..2_048, any::<u8>()), 1..200),
        ) {
            static LIBRARY: LazyLock<Vec<u8>> =
                LazyLock::new(|| {
                    let (_directory, path) = compiled(Some("libcuda.so.1"));
                    fs::read(path).unwrap()
                });
            let mut bytes = LIBRARY.clone();
            let directory = tempfile::tempdir().unwrap();
            for (place, byte) in damage {
                // Its first bytes stay, so that it is read at all.
                if let Some(there) = bytes.get_mut(place).filter(|_| place >= 24) {
                    *there = byte;
                }
            }
            let damaged = directory.path().join("damaged");
            fs::write(&damaged, bytes).unwrap();
            let _ = library(&damaged);
        }
    }
}
