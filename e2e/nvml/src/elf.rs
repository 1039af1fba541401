//! As much of the ELF format as installing needs: libraries without code, and libraries
//! that lack a function.

/// Why a library's functions could not be hidden.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HideError {
    /// The file is no shared library of a 64-bit little-endian machine.
    #[error("the library is no ELF file that can be understood")]
    NotUnderstood,
    /// The library has no such function.
    #[error("the library has no function `{0}`")]
    NoSuchFunction(String),
}

const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const SYMBOL: usize = 24;
const DYNAMIC_ENTRY: usize = 16;
const SECTION_HEADER: usize = 64;
/// Type of the section that lists what the loader finds.
const DYNAMIC_SYMBOLS: u64 = 11;

/// Takes functions out of a library, so that the loader does not find them, as in a driver
/// that is too old for them: the first letter of their name in the table of dynamic symbols
/// becomes one that no function has. Their code stays, and so does everything else.
pub(crate) fn hide(library: &mut [u8], functions: &[&str]) -> Result<(), HideError> {
    for function in functions {
        let place = name_of(library, function)
            .ok_or(HideError::NotUnderstood)?
            .ok_or_else(|| HideError::NoSuchFunction((*function).to_owned()))?;
        library[place] = b'-';
    }
    Ok(())
}

/// Where this dynamic symbol's name lies; nothing inside where there is none.
#[expect(clippy::option_option, reason = "not understood, not found, found")]
fn name_of(library: &[u8], function: &str) -> Option<Option<usize>> {
    if library.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let sections = number(library, 40, 8)?;
    let section = |index: usize, field: usize, size: usize| {
        number(library, sections + index * SECTION_HEADER + field, size)
    };
    let count = number(library, 60, 2)?;
    let symbols = (0..count).find(|index| {
        section(*index, 4, 4).and_then(|kind| u64::try_from(kind).ok()) == Some(DYNAMIC_SYMBOLS)
    })?;
    let (offset, size) = (section(symbols, 24, 8)?, section(symbols, 32, 8)?);
    let names = section(section(symbols, 40, 4)?, 24, 8)?;
    let wanted = format!("{function}\0");
    for symbol in (offset..offset.checked_add(size)?).step_by(SYMBOL) {
        let place = names.checked_add(number(library, symbol, 4)?)?;
        if library.get(place..place.checked_add(wanted.len())?) == Some(wanted.as_bytes()) {
            return Some(Some(place));
        }
    }
    Some(None)
}

fn number(bytes: &[u8], place: usize, size: usize) -> Option<usize> {
    let mut number = [0; 8];
    number
        .get_mut(..size)?
        .copy_from_slice(bytes.get(place..place.checked_add(size)?)?);
    usize::try_from(u64::from_le_bytes(number)).ok()
}

/// A shared library with a name of its own and nothing in it: what stands for the driver's
/// libraries that nothing here calls. The loader and `ldconfig` take it for a library.
pub(crate) fn empty_library(name: &str) -> Vec<u8> {
    const PROGRAM_HEADERS: usize = 2;
    const ENTRIES: usize = 6;
    let names = HEADER + PROGRAM_HEADERS * PROGRAM_HEADER;
    // One byte of nothing, then the name and its end.
    let names_size = name.len() + 2;
    let symbols = (names + names_size).next_multiple_of(8);
    let dynamic = symbols + SYMBOL;
    let size = dynamic + ENTRIES * DYNAMIC_ENTRY;
    let mut file = Vec::with_capacity(size);
    let mut put = |bytes: &[u8]| file.extend_from_slice(bytes);
    let wide = |number: usize| u64::try_from(number).unwrap_or(u64::MAX).to_le_bytes();
    // 64 bits, little-endian, version 1; a shared library of this machine.
    put(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    put(&3_u16.to_le_bytes());
    put(&MACHINE.to_le_bytes());
    put(&1_u32.to_le_bytes());
    put(&[wide(0), wide(HEADER), wide(0)].concat());
    put(&0_u32.to_le_bytes());
    for number in [64_u16, 56, 2, 64, 0, 0] {
        put(&number.to_le_bytes());
    }
    // All of the file is loaded to be read and written; the dynamic section is in it.
    for (kind, start, length, alignment) in
        [(1_u32, 0, size, 0x1000), (2, dynamic, size - dynamic, 8)]
    {
        put(&kind.to_le_bytes());
        put(&6_u32.to_le_bytes());
        put(&[
            wide(start),
            wide(start),
            wide(start),
            wide(length),
            wide(length),
            wide(alignment),
        ]
        .concat());
    }
    put(b"\0");
    put(name.as_bytes());
    put(&vec![0; symbols - names - names_size + 1]);
    put(&[0; SYMBOL]);
    // Own name, table of names and its size, table of symbols and the size of one, end.
    for (tag, value) in [
        (14, 1),
        (5, names),
        (10, names_size),
        (6, symbols),
        (11, SYMBOL),
        (0, 0),
    ] {
        put(&[wide(tag), wide(value)].concat());
    }
    file
}

#[cfg(target_arch = "x86_64")]
const MACHINE: u16 = 62;
#[cfg(target_arch = "aarch64")]
const MACHINE: u16 = 183;

#[cfg(test)]
mod tests {
    use std::ffi::CString;

    use nix::libc;

    use super::*;

    #[test]
    fn the_loader_takes_an_empty_library_for_one() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("libempty.so.1");
        std::fs::write(&path, empty_library("libempty.so.1")).unwrap();
        let path = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the library has no code that could run, and the text has its end.
        let (handle, symbol) = unsafe {
            let handle = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!handle.is_null());
            (handle, libc::dlsym(handle, c"anything".as_ptr()))
        };
        assert!(symbol.is_null());
        // SAFETY: the handle is the loader's and is not used again.
        assert_eq!(unsafe { libc::dlclose(handle) }, 0);
    }

    #[test]
    fn what_is_no_library_is_not_changed() {
        let mut text = b"not a library at all".to_vec();
        assert_eq!(
            hide(&mut text, &["nvmlInit"]),
            Err(HideError::NotUnderstood)
        );
        let mut cut_off = empty_library("libempty.so.1");
        cut_off.truncate(70);
        assert_eq!(
            hide(&mut cut_off, &["nvmlInit"]),
            Err(HideError::NotUnderstood)
        );
        assert!(hide(&mut [], &["nvmlInit"]).is_err());
    }
}
