//! The controllers of Creo, one folder per kind.

pub mod base;
