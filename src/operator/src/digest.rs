//! Short digests of values, to tell one from another.

use std::fmt::Write as _;

use serde::Serialize;
use sha2::{Digest as _, Sha256};

/// The first 16 hexadecimal digits of the SHA-256 of the value's JSON. Struct fields are written
/// in their order and maps here are sorted, so equal values have equal digests.
#[must_use]
pub fn of(value: &impl Serialize) -> String {
    // The types that are digested serialize without fail; an empty text would still only mean
    // that the same value gets the same digest.
    let json = serde_json::to_vec(value).unwrap_or_default();
    Sha256::digest(&json)
        .iter()
        .take(8)
        .fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
