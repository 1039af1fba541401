//! What a long plan is.

use std::error::Error as StdError;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use creo_market::simulation::Random;
use futures::future::BoxFuture;

use super::environment::Environment;
use super::seed::Seed;

/// Why a case did not pass, as a text for the one who reads the report. Any
/// error becomes one, with its causes.
#[derive(Clone, PartialEq, Eq)]
pub struct Failure(String);

impl Failure {
    /// A finding in words.
    #[must_use]
    pub fn new(message: impl Into<String>) -> Self {
        Self(message.into())
    }

    /// The same, with what was being done before it.
    #[must_use]
    pub fn during(self, what: impl fmt::Display) -> Self {
        Self(format!("{what}: {}", self.0))
    }

    /// The text.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Failure {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

impl<E: StdError> From<E> for Failure {
    fn from(error: E) -> Self {
        let mut message = error.to_string();
        let mut cause = error.source();
        while let Some(error) = cause {
            let text = error.to_string();
            // kube's errors print their causes themselves.
            if !message.contains(&text) {
                message.push_str(": ");
                message.push_str(&text);
            }
            cause = error.source();
        }
        Self(message)
    }
}

/// One case to be run.
#[derive(Clone, Debug)]
pub struct Case {
    /// Its name, by which the plan knows what to do.
    pub name: String,
    /// What its own random choices follow from.
    pub seed: u64,
    /// An empty folder for logs and whatever explains a failure. It is removed
    /// when the case passes.
    pub evidence: PathBuf,
}

impl Case {
    /// The case's own stream of random numbers.
    #[must_use]
    pub fn random(&self) -> Random {
        Random::new(self.seed)
    }
}

/// A family of cases that try one thing at length.
pub trait Plan: Send + Sync {
    /// The name on the command line.
    fn name(&self) -> &'static str;

    /// What it tries, in a sentence.
    fn description(&self) -> &'static str;

    /// A case that takes longer than this has failed.
    fn case_limit(&self) -> Duration;

    /// Gets ready, by a reference run where one is needed, and lists the cases.
    fn prepare(
        &self,
        environment: Arc<Environment>,
        seed: Seed,
    ) -> BoxFuture<'_, Result<Arc<dyn Cases>, Failure>>;
}

/// The cases of a plan that is ready.
pub trait Cases: Send + Sync {
    /// The name of each case, in a fixed order, each once.
    fn names(&self) -> Vec<String>;

    /// Runs one of them.
    fn run(self: Arc<Self>, case: Case) -> BoxFuture<'static, Result<(), Failure>>;
}
