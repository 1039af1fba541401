//! Conditions as every kind's status carries them: a bounded map by type.

use crate::rules::MAX_INTEGER;
use schemars::{Schema, SchemaGenerator, json_schema};

/// The longest message that a status holds, in characters. [`clip`] keeps to it.
pub const MAX_MESSAGE_CHARS: usize = 4096;

/// The most conditions that one status holds.
pub const MAX_CONDITIONS: usize = 16;

/// `message` cut to what a status can hold, on a character's boundary and with
/// an ellipsis where something was cut. A message that came from elsewhere (a
/// scheduler, a driver) must pass here, or one long text makes every later
/// status write fail.
#[must_use]
pub fn clip(message: &str) -> String {
    if message.chars().nth(MAX_MESSAGE_CHARS).is_none() {
        return message.to_owned();
    }
    let mut clipped: String = message.chars().take(MAX_MESSAGE_CHARS - 1).collect();
    clipped.push('…');
    clipped
}

/// The schema of a moment.
pub(crate) fn time(_: &mut SchemaGenerator) -> Schema {
    json_schema!({ "type": "string", "format": "date-time" })
}

/// The schema of a list of conditions.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "array",
        "maxItems": MAX_CONDITIONS,
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": ["type"],
        "items": {
            "description": "One thing that does or does not hold.",
            "type": "object",
            "required": ["type", "status", "reason", "message", "lastTransitionTime"],
            "properties": {
                "type": {
                    "description": "Which condition this is, in CamelCase.",
                    "type": "string", "minLength": 1, "maxLength": 63,
                },
                "status": {
                    "description": "Whether it holds: True, False, or Unknown where it could not be told.",
                    "type": "string", "enum": ["True", "False", "Unknown"],
                },
                "reason": {
                    "description": "Why, as one word in CamelCase for programs.",
                    "type": "string", "minLength": 1, "maxLength": 128,
                    "pattern": "^[A-Za-z]([A-Za-z0-9_]*[A-Za-z0-9])?$",
                },
                "message": {
                    "description": "Why, as a sentence for people, with what to do about it.",
                    "type": "string", "maxLength": MAX_MESSAGE_CHARS,
                },
                "observedGeneration": {
                    "description": "The metadata.generation that this was concluded from.",
                    "type": "integer", "format": "int64", "minimum": 0, "maximum": MAX_INTEGER,
                },
                "lastTransitionTime": {
                    "description": "When status last changed.",
                    "type": "string", "format": "date-time",
                },
            },
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_that_fits_is_kept_and_a_longer_one_is_cut_by_characters() {
        let fits = "ü".repeat(MAX_MESSAGE_CHARS);
        assert_eq!(clip(&fits), fits);
        let cut = clip(&format!("{fits}x"));
        assert_eq!(cut.chars().count(), MAX_MESSAGE_CHARS);
        assert!(cut.ends_with("ü…"));
    }
}
