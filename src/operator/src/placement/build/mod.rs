//! What a Placement is made into: one pure function for each child.

pub mod pod;
