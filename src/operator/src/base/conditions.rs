//! Conditions that keep their transition time.

use creo_api::condition::clip;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// What a condition is to say.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Says {
    /// Which condition.
    pub r#type: &'static str,
    /// True, False, or none for Unknown.
    pub holds: Option<bool>,
    /// Why, in one CamelCase word.
    pub reason: String,
    /// Why, for a person, with what to do about it.
    pub message: String,
}

impl Says {
    /// A condition that holds or does not.
    pub fn new(
        r#type: &'static str,
        holds: bool,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            r#type,
            holds: Some(holds),
            reason: reason.into(),
            message: message.into(),
        }
    }

    /// A condition of which it cannot be told whether it holds.
    pub fn unknown(
        r#type: &'static str,
        reason: impl Into<String>,
        message: impl Into<String>,
    ) -> Self {
        Self {
            r#type,
            holds: None,
            reason: reason.into(),
            message: message.into(),
        }
    }
}

/// The conditions as they are to be written. A condition whose status stays keeps the time of
/// its last transition; seconds are the API's resolution, so finer parts are cut off.
#[must_use]
pub fn written(
    before: &[Condition],
    says: Vec<Says>,
    generation: Option<i64>,
    now: Timestamp,
) -> Vec<Condition> {
    says.into_iter()
        .map(|says| {
            let status = match says.holds {
                Some(true) => "True",
                Some(false) => "False",
                None => "Unknown",
            };
            let since = before
                .iter()
                .find(|old| old.type_ == says.r#type && old.status == status)
                .map_or_else(
                    || whole_seconds(now),
                    |old| old.last_transition_time.clone(),
                );
            Condition {
                type_: says.r#type.to_owned(),
                status: status.to_owned(),
                reason: says.reason,
                message: clip(&says.message),
                observed_generation: generation,
                last_transition_time: since,
            }
        })
        .collect()
}

/// The time as the API stores it, so that what was written equals what is read back.
#[must_use]
pub fn whole_seconds(time: Timestamp) -> Time {
    Time(Timestamp::from_second(time.as_second()).unwrap_or(time))
}

/// `word` if the API takes it as a reason, else `fallback`. Reasons that come from a kubelet or
/// a scheduler must pass here, or one odd word makes every later status write fail.
#[must_use]
pub fn reason(word: Option<&str>, fallback: &str) -> String {
    let fits = |word: &&str| {
        word.len() <= 128
            && word.starts_with(|first: char| first.is_ascii_alphabetic())
            && word.ends_with(|last: char| last.is_ascii_alphanumeric())
            && word.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
    };
    word.filter(fits).unwrap_or(fallback).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::new(second, 123_456_789).unwrap()
    }

    #[test]
    fn the_transition_time_changes_with_the_status_and_not_with_the_message() {
        let first = written(
            &[],
            vec![Says::new("Ready", false, "No", "one")],
            Some(1),
            at(10),
        );
        assert_eq!(
            first[0].last_transition_time,
            Time(Timestamp::from_second(10).unwrap())
        );
        let second = written(
            &first,
            vec![Says::new("Ready", false, "No", "two")],
            Some(2),
            at(20),
        );
        assert_eq!(
            second[0].last_transition_time,
            first[0].last_transition_time
        );
        assert_eq!(
            (second[0].message.as_str(), second[0].observed_generation),
            ("two", Some(2))
        );
        let third = written(
            &second,
            vec![Says::new("Ready", true, "Yes", "")],
            Some(2),
            at(30),
        );
        assert_eq!(
            third[0].last_transition_time,
            Time(Timestamp::from_second(30).unwrap())
        );
    }

    #[test]
    fn the_same_again_is_equal_so_that_nothing_is_written() {
        let says = || vec![Says::unknown("Ready", "Unseen", "x")];
        let first = written(&[], says(), Some(1), at(10));
        assert_eq!(written(&first, says(), Some(1), at(99)), first);
    }

    #[test]
    fn a_reason_that_the_api_would_refuse_is_replaced() {
        for (word, expected) in [
            (Some("ImagePullBackOff"), "ImagePullBackOff"),
            (Some("OutOfcreo.cloud/gpu"), "Fallback"),
            (Some(""), "Fallback"),
            (Some("two words"), "Fallback"),
            (Some("ends_"), "Fallback"),
            (None, "Fallback"),
        ] {
            assert_eq!(reason(word, "Fallback"), expected, "{word:?}");
        }
    }
}
