//! Creo's market rules as pure functions of values.
