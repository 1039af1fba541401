//! A stand-in for the NVIDIA driver's library, `libnvidia-ml.so.1`, on machines
//! without NVIDIA hardware.
//!
//! It speaks NVML's C ABI and follows NVML's documentation, return codes included.
//! What it answers is in a file beside the library (see [`state`]), which may be
//! changed while the library is loaded: the next call sees the change, and a waiting
//! `nvmlEventSetWait_v2` wakes up for it.

pub mod install;
pub mod state;

mod elf;
mod exports;
mod library;

/// Names of the C functions that the library has.
pub fn functions() -> impl Iterator<Item = &'static str> {
    exports::functions()
}
