//! What crosses the C ABI: arguments that are checked before they are used, and the frame
//! around every function.

use std::ffi::{CStr, c_char, c_int, c_uint};
use std::panic::{AssertUnwindSafe, catch_unwind};

use nvml_wrapper_sys::bindings as sys;

use crate::library::{
    Answer, Device, Handle, INSUFFICIENT_SIZE, INVALID_ARGUMENT, LIBRARY, UNINITIALIZED, UNKNOWN,
    VERSION_MISMATCH,
};

/// Longest text that is read from a caller.
const MAX_INPUT_BYTES: usize = 256;

// The pointers of a call. Their fields are private and nothing here makes one: they come
// from C callers alone, who vouch by NVML's documentation for what a pointer that is not null
// points to. That is what makes the methods below sound.

/// Where an answer goes.
#[repr(transparent)]
pub struct Out<T>(*mut T);

/// Where a question comes from and its answer goes.
#[repr(transparent)]
pub struct InOut<T>(*mut T);

/// Where many answers go; null where the caller only wants to know how many there are.
#[repr(transparent)]
pub struct Array<T>(*mut T);

/// A buffer for a text.
#[repr(transparent)]
pub struct Buffer(*mut c_char);

/// A text of the caller's.
#[repr(transparent)]
pub struct Text(*const c_char);

impl<T> Out<T> {
    pub(super) fn put(&self, value: T) -> Answer<()> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller vouches for the rest.
        unsafe { self.0.write(value) };
        Ok(())
    }
}

impl<T: Copy> InOut<T> {
    pub(super) fn get(&self) -> Answer<T> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller vouches for the rest.
        Ok(unsafe { self.0.read() })
    }

    pub(super) fn put(&self, value: T) -> Answer<()> {
        Out(self.0).put(value)
    }

    /// Checks the number that a versioned structure begins with: its size and version.
    pub(super) fn check_version(&self, version: u32) -> Answer<u32> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        let size = u32::try_from(size_of::<T>()).map_err(|_| UNKNOWN)?;
        let wanted = size | version << 24;
        // SAFETY: not null; every versioned structure begins with this number, and a caller
        // of another version has at least the number.
        let given = unsafe { self.0.cast::<c_uint>().read_unaligned() };
        if given == wanted {
            Ok(given)
        } else {
            Err(VERSION_MISMATCH)
        }
    }

    /// The same place, read as the beginning of another structure.
    pub(super) fn cast<U>(&self) -> InOut<U> {
        InOut(self.0.cast())
    }
}

impl<T: Copy> Array<T> {
    /// NVML's way to give many answers: `count` says how many there is room for and gets
    /// how many there are; too little room is an error.
    pub(super) fn fill(&self, count: &InOut<c_uint>, values: &[T]) -> Answer<()> {
        let room = usize::try_from(count.get()?).map_err(|_| UNKNOWN)?;
        count.put(c_uint::try_from(values.len()).map_err(|_| UNKNOWN)?)?;
        if values.len() > room {
            return Err(INSUFFICIENT_SIZE);
        }
        self.write(values)
    }

    /// The way in which a count of nothing asks for the number alone, and as many are given as
    /// there is room for.
    pub(super) fn fill_or_count(&self, count: &InOut<c_uint>, values: &[T]) -> Answer<()> {
        let room = usize::try_from(count.get()?).map_err(|_| UNKNOWN)?;
        if room > 0 {
            self.write(values.get(..room).unwrap_or(values))?;
        }
        let given = if room == 0 {
            values.len()
        } else {
            values.len().min(room)
        };
        count.put(c_uint::try_from(given).map_err(|_| UNKNOWN)?)
    }

    /// The way without a count of the caller's: there is room for as many as there can be,
    /// or only their number is wanted.
    pub(super) fn fill_all(&self, count: &Out<c_uint>, values: &[T]) -> Answer<()> {
        if !self.0.is_null() {
            self.write(values)?;
        }
        count.put(c_uint::try_from(values.len()).map_err(|_| UNKNOWN)?)
    }

    /// Fills exactly so many places.
    pub(super) fn fill_exactly(&self, room: c_uint, value: impl Fn(usize) -> T) -> Answer<()> {
        let room = usize::try_from(room).map_err(|_| UNKNOWN)?;
        if self.0.is_null() || room == 0 {
            return Err(INVALID_ARGUMENT);
        }
        for number in 0..room {
            // SAFETY: not null, and the caller vouches for the room.
            unsafe { self.0.add(number).write(value(number)) };
        }
        Ok(())
    }

    /// Reads and writes each of so many places.
    pub(super) fn change_each(&self, room: c_uint, mut change: impl FnMut(T) -> T) -> Answer<()> {
        let room = usize::try_from(room).map_err(|_| UNKNOWN)?;
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        for number in 0..room {
            // SAFETY: not null, and the caller vouches for the room.
            unsafe {
                let place = self.0.add(number);
                place.write(change(place.read()));
            }
        }
        Ok(())
    }

    fn write(&self, values: &[T]) -> Answer<()> {
        if values.is_empty() {
            return Ok(());
        }
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        for (number, value) in values.iter().enumerate() {
            // SAFETY: not null, and the caller vouches for the room.
            unsafe { self.0.add(number).write(*value) };
        }
        Ok(())
    }
}

impl Buffer {
    /// Writes a text and its end.
    pub(super) fn put(&self, length: c_uint, text: &str) -> Answer<()> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // A count of bytes that is not addressable is larger than any text.
        let length = usize::try_from(length).unwrap_or(usize::MAX);
        if text.len() >= length {
            return Err(INSUFFICIENT_SIZE);
        }
        // SAFETY: not null, and the caller vouches that the buffer has `length` bytes, which
        // is room for the text and the byte after it.
        unsafe {
            self.0
                .cast::<u8>()
                .copy_from_nonoverlapping(text.as_ptr(), text.len());
            self.0.add(text.len()).write(0);
        }
        Ok(())
    }
}

impl Text {
    pub(super) fn get(&self) -> Answer<&str> {
        if self.0.is_null() {
            return Err(INVALID_ARGUMENT);
        }
        // SAFETY: not null, and the caller vouches for its end.
        let text = unsafe { CStr::from_ptr(self.0) };
        text.to_str()
            .ok()
            .filter(|text| !text.is_empty() && text.len() <= MAX_INPUT_BYTES)
            .ok_or(INVALID_ARGUMENT)
    }
}

/// A text in a field of fixed length.
pub(super) fn array<const N: usize>(text: &str) -> [c_char; N] {
    let mut array = [0; N];
    // The last byte stays the end of the text.
    for (place, byte) in array.iter_mut().take(N - 1).zip(text.bytes()) {
        *place = byte.cast_signed();
    }
    array
}

/// What can be an argument.
pub trait Argument {
    /// Whether it is a null pointer where there must be none.
    fn is_missing(&self) -> bool {
        false
    }
}

impl<T> Argument for Out<T> {
    fn is_missing(&self) -> bool {
        self.0.is_null()
    }
}

impl<T> Argument for InOut<T> {
    fn is_missing(&self) -> bool {
        self.0.is_null()
    }
}

impl<T> Argument for Array<T> {}

impl Argument for Buffer {
    fn is_missing(&self) -> bool {
        self.0.is_null()
    }
}

impl Argument for Text {
    fn is_missing(&self) -> bool {
        self.0.is_null()
    }
}

/// A handle: a null one is found out when it is looked for.
impl<T> Argument for *mut T {}

impl Argument for c_uint {}

impl Argument for c_int {}

impl Argument for u64 {}

/// One call of one function.
pub(super) struct Call {
    /// Its name.
    pub(super) function: &'static str,
}

impl Call {
    /// The card of a handle. One of a partition is not valid here.
    pub(super) fn card<T>(&self, handle: *mut T) -> Answer<Device> {
        let device = LIBRARY.device(self.function, handle)?;
        match device.handle {
            Handle::Card => Ok(device),
            _ => Err(INVALID_ARGUMENT),
        }
    }

    /// The card of a handle that may be a partition's.
    pub(super) fn device<T>(&self, handle: *mut T) -> Answer<Device> {
        let device = LIBRARY.device(self.function, handle)?;
        match device.handle {
            Handle::Card | Handle::Partition(_) => Ok(device),
            _ => Err(INVALID_ARGUMENT),
        }
    }

    /// The card of any handle.
    pub(super) fn any<T>(&self, handle: *mut T) -> Answer<Device> {
        LIBRARY.device(self.function, handle)
    }
}

/// When a function can be called.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// Between initialisation and shutdown.
    InSession,
    /// Always.
    Always,
}

/// The frame around a function, in NVML's order: initialised, arguments, then the answer.
/// No panic crosses into the caller.
pub(super) fn answer(
    function: &'static str,
    when: When,
    arguments: &[&dyn Argument],
    body: impl FnOnce(&Call) -> Answer<()>,
) -> sys::nvmlReturn_t {
    let framed = || {
        if when == When::InSession && !LIBRARY.is_initialised() {
            return Err(UNINITIALIZED);
        }
        if arguments.iter().any(|argument| argument.is_missing()) {
            return Err(INVALID_ARGUMENT);
        }
        if when == When::InSession {
            LIBRARY.meet(function)?;
        }
        body(&Call { function })
    };
    // What a panic leaves behind is guarded by the library's own lock.
    match catch_unwind(AssertUnwindSafe(framed)) {
        Ok(Ok(())) => sys::nvmlReturn_enum_NVML_SUCCESS,
        Ok(Err(code)) => code,
        Err(_) => UNKNOWN,
    }
}
