//! The API server's audit log: what Creo's processes asked for, and the answers.

use std::{fs, path::Path};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    error::{Context as _, Error, Result},
    installation::NAMESPACE,
};

/// The log, below the cluster's folder.
pub(super) const LOG: &str = "logs/audit.log";
/// What its name begins with, and the name of what was cut off it.
const NAME: &str = "audit";

/// Who asked for what and got which answer, of Creo's own processes and nobody
/// else: what was asked for can be compared with what is granted.
pub(super) fn policy() -> Value {
    json!({
        "apiVersion": "audit.k8s.io/v1",
        "kind": "Policy",
        // A watch that goes on has its say when it starts.
        "omitStages": ["RequestReceived"],
        "rules": [
            { "level": "Metadata", "userGroups": [format!("system:serviceaccounts:{NAMESPACE}")] },
            { "level": "None" },
        ],
    })
}

/// A request of one of Creo's processes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditEvent {
    /// What was done: `get`, `list`, `watch`, `create`, `patch`, ...
    pub verb: String,
    /// Who asked.
    pub user: AuditUser,
    /// What was asked for; none where it is no resource.
    pub object_ref: Option<AuditObject>,
    /// The answer; none where there was no time for one.
    pub response_status: Option<AuditAnswer>,
    /// When it came in.
    pub request_received_timestamp: MicroTime,
}

/// Who asked.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AuditUser {
    /// The user's name.
    pub username: String,
}

/// What was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AuditObject {
    /// The group; empty for the core group.
    #[serde(default)]
    pub api_group: String,
    /// The plural, such as `pods`.
    pub resource: String,
    /// `status`, `scale`, ...; empty for the object itself.
    #[serde(default)]
    pub subresource: String,
    /// The object's name; empty for a list, and for a create.
    #[serde(default)]
    pub name: String,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct AuditAnswer {
    /// The HTTP status.
    pub code: u16,
}

impl AuditEvent {
    /// The HTTP status of the answer; 0 where there was none.
    #[must_use]
    pub fn code(&self) -> u16 {
        self.response_status
            .as_ref()
            .map_or(0, |answer| answer.code)
    }
}

/// What came in since a moment, in the logs of a cluster's folder.
pub(super) fn read(cluster_dir: &Path, since: &MicroTime) -> Result<Vec<AuditEvent>> {
    let log = cluster_dir.join(LOG);
    let folder = log.parent().unwrap_or(cluster_dir);
    let reading = || format!("reading {}", folder.display());
    let mut events = Vec::new();
    for entry in fs::read_dir(folder).doing(reading)? {
        let entry = entry.doing(reading)?;
        if entry.file_name().to_string_lossy().starts_with(NAME) {
            let path = entry.path();
            let text = fs::read_to_string(&path).doing(|| format!("reading {}", path.display()))?;
            parse(&text, &path, since, &mut events)?;
        }
    }
    events.sort_by(|a, b| {
        a.request_received_timestamp
            .cmp(&b.request_received_timestamp)
    });
    Ok(events)
}

fn parse(text: &str, path: &Path, since: &MicroTime, events: &mut Vec<AuditEvent>) -> Result<()> {
    // The last line may be on its way.
    let whole = text.rfind('\n').map_or("", |end| &text[..end]);
    for line in whole.lines() {
        let event: AuditEvent = serde_json::from_str(line)
            .map_err(|error| Error::malformed(path.display().to_string(), error))?;
        if event.request_received_timestamp >= *since {
            events.push(event);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOG: &str = r#"{"kind":"Event","apiVersion":"audit.k8s.io/v1","level":"Metadata","stage":"ResponseComplete","requestURI":"/apis/coordination.k8s.io/v1/namespaces/creo-system/leases/creo-operator","verb":"get","user":{"username":"system:serviceaccount:creo-system:creo-operator","groups":["system:serviceaccounts"]},"objectRef":{"resource":"leases","namespace":"creo-system","name":"creo-operator","apiGroup":"coordination.k8s.io","apiVersion":"v1"},"responseStatus":{"metadata":{},"code":404},"requestReceivedTimestamp":"2026-11-22T15:00:00.100000Z","stageTimestamp":"2026-11-22T15:00:00.200000Z"}
{"verb":"patch","user":{"username":"x"},"objectRef":{"resource":"creonodes","name":"gpu-1","apiGroup":"creo.cloud","subresource":"status"},"responseStatus":{"code":200},"requestReceivedTimestamp":"2026-11-22T15:00:01.000000Z"}
{"verb":"get","user":{"username":"x"},"requestReceivedTimestamp":"2026-11-22T15:00:02.000000Z"}
{"verb":"get","user":{"usern"#;

    fn since(time: &str) -> Vec<AuditEvent> {
        let dir = tempfile::tempdir().expect("there is a folder");
        let logs = dir.path().join("logs");
        fs::create_dir(&logs).expect("it is made");
        let (older, newer) = LOG.split_at(LOG.find('\n').expect("there are lines") + 1);
        fs::write(logs.join("audit-2026-11-22T15-00-00.500.log"), older).expect("it is written");
        fs::write(logs.join("audit.log"), newer).expect("it is written");
        fs::write(logs.join("etcd.log"), "something else").expect("it is written");
        let time = MicroTime(time.parse().expect("it is a time"));
        read(dir.path(), &time).expect("it is read")
    }

    #[test]
    fn a_request_is_read_with_who_asked_for_what_and_the_answer() {
        let events = since("2026-11-22T15:00:00Z");
        assert_eq!(events.len(), 3, "{events:#?}");
        let first = &events[0];
        assert_eq!((first.verb.as_str(), first.code()), ("get", 404));
        assert_eq!(
            first.user.username,
            "system:serviceaccount:creo-system:creo-operator"
        );
        let object = first.object_ref.as_ref().expect("it is a resource");
        assert_eq!(
            (
                object.api_group.as_str(),
                object.resource.as_str(),
                object.subresource.as_str()
            ),
            ("coordination.k8s.io", "leases", "")
        );
        let second = events[1]
            .object_ref
            .as_ref()
            .map(|object| object.subresource.as_str());
        assert_eq!(second, Some("status"));
        assert_eq!((events[2].code(), &events[2].object_ref), (0, &None));
    }

    #[test]
    fn what_came_before_is_left_out() {
        let verbs = |time| {
            since(time)
                .into_iter()
                .map(|event| event.verb)
                .collect::<Vec<_>>()
        };
        assert_eq!(verbs("2026-11-22T15:00:01Z"), ["patch", "get"]);
        assert!(verbs("2026-11-22T15:00:03Z").is_empty());
    }

    #[test]
    fn a_line_that_is_no_event_is_an_error_with_its_file() {
        let mut events = Vec::new();
        let epoch = MicroTime(k8s_openapi::jiff::Timestamp::UNIX_EPOCH);
        let path = Path::new("/logs/audit.log");
        let error = parse("{}\n", path, &epoch, &mut events).expect_err("it is refused");
        assert!(error.to_string().starts_with("/logs/audit.log"), "{error}");
    }
}
