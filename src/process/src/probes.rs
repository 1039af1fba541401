//! One HTTP server a process: `/metrics`, `/healthz` and `/readyz`.
//!
//! `/healthz` says that the process answers. `/readyz` is 200 when every named check holds, and
//! else 503 with one line for each check: what is missing and what to do about it.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use prometheus::{Encoder, Registry, TextEncoder};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// The readiness of a process: named checks, each of which holds or says what is missing.
///
/// Cloning shares the checks.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<BTreeMap<&'static str, Option<String>>>>,
}

impl Readiness {
    /// No checks: ready.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a check that does not hold yet, with what is missing and what to do.
    #[must_use]
    pub fn check(&self, name: &'static str, missing: impl Into<String>) -> Check {
        let check = Check {
            name,
            readiness: self.clone(),
        };
        check.fails(missing);
        check
    }

    /// Whether every check holds.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.lock().values().all(Option::is_none)
    }

    /// One line for each check: `ok: NAME`, or `missing: NAME: what to do`.
    #[must_use]
    pub fn report(&self) -> String {
        let mut report = String::new();
        for (name, missing) in self.lock().iter() {
            // Writing to a String cannot fail.
            let _ = match missing {
                None => writeln!(report, "ok: {name}"),
                Some(what) => writeln!(report, "missing: {name}: {what}"),
            };
        }
        report
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, BTreeMap<&'static str, Option<String>>> {
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The writing end of one named check.
#[derive(Debug, Clone)]
pub struct Check {
    name: &'static str,
    readiness: Readiness,
}

impl Check {
    /// The check holds.
    pub fn holds(&self) {
        self.readiness.lock().insert(self.name, None);
    }

    /// The check does not hold; `missing` says what is missing and what to do.
    pub fn fails(&self, missing: impl Into<String>) {
        self.readiness
            .lock()
            .insert(self.name, Some(missing.into()));
    }
}

/// Why the probe server could not start.
#[derive(Debug, Error)]
pub enum ProbesError {
    /// The address cannot be bound.
    #[error(
        "--metrics-address {address} cannot be listened on: {source}; choose a free port, or 0 for any"
    )]
    Bind {
        /// The address as it was given.
        address: SocketAddr,
        /// What the system says.
        source: std::io::Error,
    },
}

/// The server of metrics and probes, bound and not yet serving.
#[derive(Debug)]
pub struct Probes {
    listener: TcpListener,
    router: Router,
}

#[derive(Debug, Clone)]
struct Served {
    registry: Registry,
    readiness: Readiness,
}

impl Probes {
    /// Binds `address`, so that a port in use is an error at the start and not later.
    pub async fn bind(
        address: SocketAddr,
        registry: Registry,
        readiness: Readiness,
    ) -> Result<Self, ProbesError> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|source| ProbesError::Bind { address, source })?;
        let router = router(Served {
            registry,
            readiness,
        });
        Ok(Self { listener, router })
    }

    /// The address that is listened on; says the port when 0 was asked for.
    pub fn address(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves until the token is cancelled and the requests under way are answered.
    pub async fn serve(self, shutdown: CancellationToken) -> std::io::Result<()> {
        axum::serve(self.listener, self.router)
            .with_graceful_shutdown(shutdown.cancelled_owned())
            .await
    }
}

fn router(served: Served) -> Router {
    Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .with_state(served)
}

async fn metrics(State(served): State<Served>) -> Response {
    let encoder = TextEncoder::new();
    let mut body = Vec::new();
    match encoder.encode(&served.registry.gather(), &mut body) {
        Ok(()) => (
            [(header::CONTENT_TYPE, encoder.format_type().to_owned())],
            body,
        )
            .into_response(),
        Err(error) => (
            StatusCode::INTERNAL_SERVER_ERROR,
            format!("metrics cannot be encoded: {error}\n"),
        )
            .into_response(),
    }
}

async fn readyz(State(served): State<Served>) -> (StatusCode, String) {
    let status = if served.readiness.is_ready() {
        StatusCode::OK
    } else {
        StatusCode::SERVICE_UNAVAILABLE
    };
    (status, served.readiness.report())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::Body;
    use axum::http::Request;
    use http_body_util::BodyExt as _;
    use prometheus::IntCounter;
    use tower::ServiceExt as _;

    async fn ask(router: Router, path: &str) -> (StatusCode, String) {
        let request = Request::builder().uri(path).body(Body::empty()).unwrap();
        let response = router.oneshot(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    fn served() -> Served {
        Served {
            registry: Registry::new(),
            readiness: Readiness::new(),
        }
    }

    #[tokio::test]
    async fn readyz_names_what_is_missing_until_every_check_holds() {
        let served = served();
        let kinds = served.readiness.check("kinds", "install the chart's CRDs");
        let engines = served
            .readiness
            .check("engines", "no file in --engines-dir");
        engines.holds();

        let (status, body) = ask(router(served.clone()), "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(
            body,
            "ok: engines\nmissing: kinds: install the chart's CRDs\n"
        );

        kinds.holds();
        let (status, body) = ask(router(served.clone()), "/readyz").await;
        assert_eq!(status, StatusCode::OK);
        assert_eq!(body, "ok: engines\nok: kinds\n");

        kinds.fails("gone again");
        let (status, _) = ask(router(served), "/readyz").await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn healthz_answers_even_when_nothing_is_ready() {
        let served = served();
        let _check = served.readiness.check("kinds", "missing");
        let (status, _) = ask(router(served), "/healthz").await;
        assert_eq!(status, StatusCode::OK);
    }

    #[tokio::test]
    async fn metrics_shows_what_is_registered() {
        let served = served();
        let counter = IntCounter::new("creo_answers_total", "Answers.").unwrap();
        served.registry.register(Box::new(counter.clone())).unwrap();
        counter.inc_by(42);
        let (status, body) = ask(router(served), "/metrics").await;
        assert_eq!(status, StatusCode::OK);
        assert!(body.contains("creo_answers_total 42"), "{body}");
    }

    #[tokio::test]
    async fn a_port_in_use_is_an_error_at_the_start_that_names_the_flag() {
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let first = Probes::bind(any, Registry::new(), Readiness::new())
            .await
            .unwrap();
        let taken = first.address().unwrap();
        let error = Probes::bind(taken, Registry::new(), Readiness::new())
            .await
            .unwrap_err();
        assert!(error.to_string().contains("--metrics-address"), "{error}");
    }
}
