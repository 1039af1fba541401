//! The library as programs see it: loaded by path, through `nvml-wrapper` and as bare C.
#![cfg(test)]

mod c_abi;
mod cards;
mod codes;
mod faults;
mod health;
mod installing;
mod machine;
mod mig;
mod processes;
mod topology;
