//! A stand-in for the NVIDIA driver's library on machines without NVIDIA hardware.

pub mod state;
