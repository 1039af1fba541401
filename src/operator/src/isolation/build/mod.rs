//! What the controller of canaries makes: one file for each kind.

pub mod pod;
