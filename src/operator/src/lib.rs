//! The controllers of Creo, one folder per kind.
