//! Why a reconcile failed, and what follows from it.

use creo_process::client::{CallTimedOut, WriteRefused};
use thiserror::Error;

/// What follows from an error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// The object itself is at fault: wait until it changes.
    Invalid,
    /// Somebody wrote in between: look again at once.
    Conflict,
    /// It may work later: back off.
    Transient,
    /// This process does not lead any more: stop without a word to the cluster.
    Deposed,
}

/// Why a reconcile failed.
#[derive(Debug, Error)]
pub enum ReconcileError {
    /// The object cannot be acted on until somebody changes it.
    #[error("{0}")]
    Invalid(String),
    /// An object of our name belongs to somebody else.
    #[error(
        "{kind} {name} exists and is not ours: {found}; delete or rename it, it is never taken over"
    )]
    NotOurs {
        /// The kind of the object.
        kind: &'static str,
        /// Its name.
        name: String,
        /// Whose it is.
        found: String,
    },
    /// What was planned for an object that is gone, or has another in its place, is not done.
    #[error("{name} is gone, or another one has its name: what was planned for it is not done")]
    Outdated {
        /// The object.
        name: String,
    },
    /// The API server changed the object between our look and our write.
    #[error("{doing}: changed by somebody else meanwhile")]
    Conflict {
        /// What was being done.
        doing: &'static str,
    },
    /// The API server refused what we asked for.
    #[error("{doing}: refused by the API server: {message}")]
    Refused {
        /// What was being done.
        doing: &'static str,
        /// The server's words.
        message: String,
    },
    /// This process does not hold the lease any more.
    #[error("{doing}: {refused}")]
    Deposed {
        /// What was being done.
        doing: &'static str,
        /// The gate's words.
        refused: WriteRefused,
    },
    /// The API server did not answer in time.
    #[error("{doing}: {timed_out}")]
    TimedOut {
        /// What was being done.
        doing: &'static str,
        /// Which call.
        timed_out: CallTimedOut,
    },
    /// The API server could not be asked, or answered with an error.
    #[error("{doing}: {source}")]
    Kube {
        /// What was being done.
        doing: &'static str,
        /// The error of the call.
        source: Box<kube::Error>,
    },
}

impl ReconcileError {
    /// Sorts the error of a call; `doing` says what the call was for.
    #[must_use]
    pub fn of(doing: &'static str, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) if status.code == 409 => Self::Conflict { doing },
            kube::Error::Api(status) if matches!(status.code, 400 | 403 | 422) => Self::Refused {
                doing,
                message: status.message,
            },
            kube::Error::Service(source) => match source.downcast::<WriteRefused>() {
                Ok(refused) => Self::Deposed {
                    doing,
                    refused: *refused,
                },
                Err(source) => match source.downcast::<CallTimedOut>() {
                    Ok(timed_out) => Self::TimedOut {
                        doing,
                        timed_out: *timed_out,
                    },
                    Err(source) => Self::Kube {
                        doing,
                        source: Box::new(kube::Error::Service(source)),
                    },
                },
            },
            error => Self::Kube {
                doing,
                source: Box::new(error),
            },
        }
    }

    /// What follows from the error. A refusal backs off as well: a quota or an admission policy
    /// of somebody else can change without our object changing.
    #[must_use]
    pub fn class(&self) -> Class {
        match self {
            Self::Invalid(_) => Class::Invalid,
            Self::Conflict { .. } => Class::Conflict,
            Self::Deposed { .. } => Class::Deposed,
            Self::NotOurs { .. }
            | Self::Outdated { .. }
            | Self::Refused { .. }
            | Self::TimedOut { .. }
            | Self::Kube { .. } => Class::Transient,
        }
    }

    /// The error as a metric label: one of a fixed few.
    #[must_use]
    pub fn label(&self) -> &'static str {
        match self {
            Self::Invalid(_) => "invalid",
            Self::NotOurs { .. } => "not_ours",
            Self::Outdated { .. } => "outdated",
            Self::Conflict { .. } => "conflict",
            Self::Refused { .. } => "refused",
            Self::Deposed { .. } => "deposed",
            Self::TimedOut { .. } => "timed_out",
            Self::Kube { .. } => "kube",
        }
    }
}

/// Whether an error of a call says that the object is positively not there.
#[must_use]
pub fn is_not_found(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_not_found())
}

/// Whether an error of a create says that the name is taken.
#[must_use]
pub fn is_already_exists(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.is_already_exists())
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::Status;

    fn api(code: u16, reason: &str) -> kube::Error {
        kube::Error::Api(Box::new(Status::failure("why", reason).with_code(code)))
    }

    #[test]
    fn the_class_of_an_error_follows_from_what_the_server_said() {
        let cases = [
            (api(409, "Conflict"), Class::Conflict, "conflict"),
            (api(422, "Invalid"), Class::Transient, "refused"),
            (api(403, "Forbidden"), Class::Transient, "refused"),
            (api(500, "InternalError"), Class::Transient, "kube"),
            (api(429, "TooManyRequests"), Class::Transient, "kube"),
            (
                kube::Error::Service(Box::new(WriteRefused { reason: "lost" })),
                Class::Deposed,
                "deposed",
            ),
        ];
        for (error, class, label) in cases {
            let error = ReconcileError::of("testing", error);
            assert_eq!((error.class(), error.label()), (class, label), "{error}");
        }
    }

    #[test]
    fn a_name_that_is_taken_is_not_a_missing_object() {
        assert!(is_already_exists(&api(409, "AlreadyExists")));
        assert!(!is_already_exists(&api(409, "Conflict")));
        assert!(is_not_found(&api(404, "NotFound")));
        assert!(!is_not_found(&api(410, "Expired")));
    }
}
