//! What a controller asked for and what came of it.

use std::collections::BTreeMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::request::{ApiRequest, Verb};

/// A journal with more writes than this is a controller that never rests; the
/// rest is counted and not kept.
const WRITES_MAX: usize = 50_000;

/// The state of an object as its metadata tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Version {
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`; an unchanged one means an unchanged object.
    pub resource_version: String,
    /// Whether its deletion has begun.
    pub deleting: bool,
}

/// What is known of an object at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Seen {
    /// It does not exist, or the answer carried no object.
    Absent,
    /// It exists.
    Present(Version),
    /// It could not be read.
    Unknown,
}

/// What became of a mutating request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Still on its way, or its connection broke before it was sent on.
    Unfinished,
    /// A fault kept it from the API server.
    Withheld,
    /// The API server refused it.
    Refused {
        /// HTTP status code.
        status: u16,
    },
    /// The API server could not be reached or broke off its answer.
    Lost,
    /// The API server accepted it.
    Accepted {
        /// The object just before.
        before: Seen,
        /// The object in the API server's answer.
        after: Seen,
    },
}

/// What an accepted request changed in the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Effect {
    /// A new object.
    Created,
    /// Another resourceVersion.
    Changed,
    /// The deletion began, or the object is gone.
    Deleted,
    /// Accepted and stored nothing: a no-op apply, a dry run, a review.
    Unchanged,
    /// Accepted, and what it changed could not be seen.
    Unknown,
    /// Not accepted, as far as is known.
    Failed,
}

/// One mutating request of the controller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Write {
    /// Position among all mutating requests, from 1, by arrival.
    pub number: u64,
    /// Milliseconds since the proxy started.
    pub at_ms: u64,
    /// What was asked; a create carries the name that its object was given.
    pub request: ApiRequest,
    /// What came of it.
    pub outcome: Outcome,
    /// The fault that met it, by the index of its rule.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fault: Option<usize>,
}

impl Write {
    /// What this request changed in the store.
    #[must_use]
    pub fn effect(&self) -> Effect {
        let Outcome::Accepted { before, after } = &self.outcome else {
            return Effect::Failed;
        };
        if self.request.dry_run {
            return Effect::Unchanged;
        }
        match (self.request.verb, before, after) {
            // An eviction is a delete that asks disruption budgets first.
            _ if self.request.subresource.as_deref() == Some("eviction") => Effect::Deleted,
            (Verb::Delete, Seen::Present(version), _) if version.deleting => Effect::Unchanged,
            (Verb::Delete, Seen::Present(_), _) => Effect::Deleted,
            // Reviews answer without storing, so their answer has no version.
            (Verb::Delete, Seen::Absent, _) | (Verb::Create, _, Seen::Absent) => Effect::Unchanged,
            (Verb::Delete | Verb::DeleteCollection, ..) => Effect::Unknown,
            (Verb::Create, ..) | (_, Seen::Absent, Seen::Present(_)) => Effect::Created,
            (_, Seen::Present(old), Seen::Present(new)) if old == new => Effect::Unchanged,
            (_, Seen::Present(_), Seen::Present(_)) => Effect::Changed,
            _ => Effect::Unknown,
        }
    }
}

/// A right that a controller made use of, as RBAC would grant it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct UsedRight {
    /// API group; empty for the core group.
    pub group: String,
    /// Resource, with its subresource after a slash, as RBAC writes it.
    pub resource: String,
    /// The verb that RBAC asks for.
    pub verb: &'static str,
}

/// All that went through a proxy.
#[derive(Debug)]
pub(super) struct Journal {
    start: Instant,
    writes: Vec<Write>,
    writes_total: u64,
    rights: BTreeMap<UsedRight, u64>,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            start: Instant::now(),
            writes: Vec::new(),
            writes_total: 0,
            rights: BTreeMap::new(),
        }
    }

    /// Notes a request on arrival; a mutating one gets its number.
    pub(super) fn arrive(&mut self, request: &ApiRequest, fault: Option<usize>) -> Option<u64> {
        let resource = match &request.subresource {
            Some(subresource) => format!("{}/{subresource}", request.resource),
            None => request.resource.clone(),
        };
        let right = UsedRight {
            group: request.group.clone(),
            resource,
            verb: request.verb.as_rbac(),
        };
        *self.rights.entry(right).or_default() += 1;
        if !request.verb.is_mutating() {
            return None;
        }
        self.writes_total += 1;
        if self.writes.len() < WRITES_MAX {
            self.writes.push(Write {
                number: self.writes_total,
                at_ms: u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX),
                request: request.clone(),
                outcome: Outcome::Unfinished,
                fault,
            });
        }
        Some(self.writes_total)
    }

    /// Notes what came of a write, and the name that a create was given.
    pub(super) fn finish(&mut self, number: u64, outcome: Outcome, name: Option<String>) {
        let index = usize::try_from(number.saturating_sub(1)).unwrap_or(usize::MAX);
        if let Some(write) = self.writes.get_mut(index) {
            write.outcome = outcome;
            if write.request.name.is_none() {
                write.request.name = name;
            }
        }
    }

    pub(super) fn writes(&self) -> Vec<Write> {
        self.writes.clone()
    }

    pub(super) fn writes_not_kept(&self) -> u64 {
        self.writes_total.saturating_sub(self.writes.len() as u64)
    }

    pub(super) fn rights(&self) -> BTreeMap<UsedRight, u64> {
        self.rights.clone()
    }
}

/// The part of an object that tells its version. Objects of other shapes
/// (`Status`, reviews) have an empty one.
#[derive(Debug, Default, Deserialize)]
struct Envelope {
    #[serde(default)]
    metadata: Metadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Metadata {
    name: Option<String>,
    uid: Option<String>,
    resource_version: Option<String>,
    deletion_timestamp: Option<String>,
}

/// Reads name and version out of an object's JSON.
pub(super) fn read_object(json: &[u8]) -> (Option<String>, Seen) {
    let Ok(Envelope { metadata }) = serde_json::from_slice::<Envelope>(json) else {
        return (None, Seen::Unknown);
    };
    let seen = match (metadata.uid, metadata.resource_version) {
        (Some(uid), Some(resource_version)) => Seen::Present(Version {
            uid,
            resource_version,
            deleting: metadata.deletion_timestamp.is_some(),
        }),
        _ => Seen::Absent,
    };
    (metadata.name, seen)
}

#[cfg(test)]
mod tests {
    use hyper::Method;

    use super::*;

    fn write(method: &Method, path: &str, before: Seen, after: Seen) -> Write {
        let content_type = Some("application/apply-patch+yaml");
        Write {
            number: 1,
            at_ms: 0,
            request: ApiRequest::parse(method, path, None, content_type).expect("a resource path"),
            outcome: Outcome::Accepted { before, after },
            fault: None,
        }
    }

    fn at(resource_version: &str) -> Seen {
        Seen::Present(Version {
            uid: "u".into(),
            resource_version: resource_version.into(),
            deleting: false,
        })
    }

    fn deleting() -> Seen {
        Seen::Present(Version {
            uid: "u".into(),
            resource_version: "2".into(),
            deleting: true,
        })
    }

    #[test]
    fn the_effect_of_a_write_is_read_from_the_versions_around_it() {
        let pods = "/api/v1/namespaces/a/pods";
        let pod = "/api/v1/namespaces/a/pods/p";
        for (method, path, before, after, expected) in [
            (Method::POST, pods, Seen::Absent, at("1"), Effect::Created),
            (
                Method::POST,
                pods,
                Seen::Absent,
                Seen::Absent,
                Effect::Unchanged,
            ),
            (Method::PATCH, pod, Seen::Absent, at("1"), Effect::Created),
            (Method::PATCH, pod, at("1"), at("2"), Effect::Changed),
            (Method::PATCH, pod, at("1"), at("1"), Effect::Unchanged),
            (Method::PATCH, pod, Seen::Unknown, at("1"), Effect::Unknown),
            (Method::DELETE, pod, at("1"), deleting(), Effect::Deleted),
            (Method::DELETE, pod, at("1"), Seen::Absent, Effect::Deleted),
            (
                Method::DELETE,
                pod,
                deleting(),
                deleting(),
                Effect::Unchanged,
            ),
            (
                Method::DELETE,
                pods,
                Seen::Unknown,
                Seen::Absent,
                Effect::Unknown,
            ),
        ] {
            let write = write(&method, path, before, after);
            assert_eq!(write.effect(), expected, "{write:?}");
        }
    }

    #[test]
    fn a_write_that_was_not_accepted_has_no_effect() {
        for outcome in [
            Outcome::Unfinished,
            Outcome::Withheld,
            Outcome::Lost,
            Outcome::Refused { status: 409 },
        ] {
            let pod = "/api/v1/namespaces/a/pods/p";
            let mut write = write(&Method::PATCH, pod, at("1"), at("2"));
            write.outcome = outcome;
            assert_eq!(write.effect(), Effect::Failed);
        }
    }

    #[test]
    fn an_object_without_a_version_is_absent_and_rubbish_is_unknown() {
        let object =
            br#"{"metadata":{"name":"p","uid":"u","resourceVersion":"2","deletionTimestamp":"x"}}"#;
        assert_eq!(read_object(object), (Some("p".into()), deleting()));
        assert_eq!(
            read_object(br#"{"kind":"Status","status":"Success"}"#),
            (None, Seen::Absent)
        );
        assert_eq!(read_object(b"\x6b8s\x00"), (None, Seen::Unknown));
    }

    #[test]
    fn the_journal_is_bounded_and_says_what_it_did_not_keep() {
        let mut journal = Journal::new();
        let request = ApiRequest::parse(&Method::DELETE, "/api/v1/nodes/n", None, None)
            .expect("a resource path");
        for _ in 0..WRITES_MAX + 3 {
            journal.arrive(&request, None);
        }
        journal.finish(u64::MAX, Outcome::Lost, None);
        assert_eq!(journal.writes().len(), WRITES_MAX);
        assert_eq!(journal.writes_not_kept(), 3);
    }
}
