use std::fmt;

/// A value that a rule refuses: which one, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// The field's name, as in the documents.
    pub field: String,
    /// What is wrong with its value and what would be right, as part of a
    /// sentence: `must be 0 to 10000, and is 10001`.
    pub why: String,
}

impl Invalid {
    /// A refusal of `field`.
    pub fn new(field: impl Into<String>, why: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            why: why.into(),
        }
    }

    /// Refuses a `value` outside `least..=most`.
    pub fn unless_within(field: &str, value: i64, least: i64, most: i64) -> Result<(), Self> {
        if (least..=most).contains(&value) {
            Ok(())
        } else {
            Err(Self::new(
                field,
                format!("must be {least} to {most}, and is {value}"),
            ))
        }
    }

    /// Refuses a name that is empty, longer than `most_bytes`, or has a control
    /// character in it: names stand in lines of canonical text.
    pub fn unless_name(field: &str, value: &str, most_bytes: usize) -> Result<(), Self> {
        if value.is_empty() || value.len() > most_bytes {
            return Err(Self::new(
                field,
                format!(
                    "must be 1 to {most_bytes} bytes long, and is {}",
                    value.len()
                ),
            ));
        }
        if value.chars().any(char::is_control) {
            return Err(Self::new(field, "must not hold control characters"));
        }
        Ok(())
    }

    /// Refuses a name of an account: 1 to 63 lower-case letters, digits and `-`,
    /// beginning and ending with a letter or digit.
    pub fn unless_label(field: &str, value: &str) -> Result<(), Self> {
        let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
        let bytes = value.as_bytes();
        let ends = bytes.first().zip(bytes.last());
        if bytes.len() <= 63
            && ends.is_some_and(|(first, last)| inner(*first) && inner(*last))
            && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        {
            return Ok(());
        }
        Err(Self::new(
            field,
            "must be 1 to 63 lower-case letters, digits and '-', beginning and ending with a letter or digit",
        ))
    }
}

impl fmt::Display for Invalid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.field, self.why)
    }
}

impl std::error::Error for Invalid {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_outside_its_bounds_is_told_with_the_fields_name() {
        assert_eq!(Invalid::unless_within("tier_bp", 0, 0, 5), Ok(()));
        assert_eq!(Invalid::unless_within("tier_bp", 5, 0, 5), Ok(()));
        let refused = Invalid::unless_within("tier_bp", 6, 0, 5).unwrap_err();
        assert_eq!(refused.to_string(), "tier_bp must be 0 to 5, and is 6");
    }

    #[test]
    fn labels_are_those_of_kubernetes() {
        for good in ["a", "0", "acme", "acme-2", &"a".repeat(63)] {
            assert_eq!(Invalid::unless_label("owner", good), Ok(()), "{good}");
        }
        for bad in ["", "-a", "a-", "A", "a/b", "a b", "ä", &"a".repeat(64)] {
            assert!(Invalid::unless_label("owner", bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn names_have_a_length_and_no_control_characters() {
        assert_eq!(Invalid::unless_name("model", "NVIDIA L4", 9), Ok(()));
        for bad in ["", "NVIDIA L40", "a\nb", "a\u{7f}"] {
            assert!(Invalid::unless_name("model", bad, 9).is_err(), "{bad}");
        }
    }
}
