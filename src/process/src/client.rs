//! The one factory of Kubernetes clients.
//!
//! What every client of Creo has, and why:
//!
//! - No hidden retries. kube's default retries a POST on 429, 503 and 504, which can create twice
//!   what was asked for once; the caller knows what may be repeated.
//! - A limit on every call that is not a watch, answer and body included, so that an API server
//!   that swallows packets frees the worker. A watch has the limit on its first answer; after
//!   that the watcher's own idle limit applies (see [`WATCH_SECONDS`]).
//! - Requests counted by verb, resource and status, so that writes can be asserted in tests.
//! - Optionally a [`WriteGate`] that is asked before each mutating call, so that no controller
//!   can forget to ask whether it still leads.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use axum::body::Bytes;
use axum::http::{HeaderValue, Method, Request, Response, StatusCode, Uri, header};
use futures::future::BoxFuture;
use http_body_util::{BodyExt as _, Full};
use kube::client::{Body, ClientBuilder, DynBody};
use kube::config::InferConfigError;
use kube::{Client, Config};
use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};
use thiserror::Error;
use tower::{BoxError, Layer, Service};

/// The limit of a call that is not a watch, from the request to the last byte of the answer.
pub const CALL_TIMEOUT: Duration = Duration::from_secs(20);

/// How long the server keeps a watch open, in seconds; give it to every watcher's configuration.
/// kube gives a watch up five seconds after this time without an event, so this also bounds how
/// long a connection that died in silence goes unnoticed.
pub const WATCH_SECONDS: u32 = 40;

/// The limit of opening a connection, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Asked before each mutating call.
pub trait WriteGate: Send + Sync + 'static {
    /// Whether this process may write now; the error says why not.
    fn permit(&self) -> Result<(), WriteRefused>;
}

/// A mutating call that was not sent, because the process may not write now.
#[derive(Debug, Clone, Error)]
#[error("not written: {reason}")]
pub struct WriteRefused {
    /// Why the process may not write.
    pub reason: &'static str,
}

/// A call that had no complete answer in time.
#[derive(Debug, Clone, Error)]
#[error("{method} {path} had no answer from the API server for {} s", limit.as_secs())]
pub struct CallTimedOut {
    /// The method of the call.
    pub method: Method,
    /// The path of the call, without its query.
    pub path: String,
    /// The limit that it ran into.
    pub limit: Duration,
}

/// Why no client could be made.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// Neither a kubeconfig nor the environment of a pod was found.
    #[error(
        "no Kubernetes cluster to talk to: {0}; set KUBECONFIG, or run in a pod with a service account token"
    )]
    NoCluster(#[from] InferConfigError),
    /// The configuration that was found cannot be used.
    #[error("the Kubernetes client configuration cannot be used: {0}")]
    Client(#[from] kube::Error),
    /// The name of the process is not a valid user agent.
    #[error("{0:?} cannot be a user agent")]
    UserAgent(String),
}

/// The metrics of all clients of a process.
#[derive(Debug, Clone)]
pub struct ClientMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
}

impl ClientMetrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = IntCounterVec::new(
            Opts::new(
                "creo_kube_requests_total",
                "Calls to the Kubernetes API by verb, resource and status code.",
            ),
            &["verb", "resource", "code"],
        )?;
        let duration = HistogramVec::new(
            HistogramOpts::new(
                "creo_kube_request_duration_seconds",
                "Time to the complete answer; for a watch, to its first byte.",
            )
            .buckets(vec![0.005, 0.02, 0.1, 0.5, 2.0, 10.0, 20.0]),
            &["verb"],
        )?;
        registry.register(Box::new(requests.clone()))?;
        registry.register(Box::new(duration.clone()))?;
        Ok(Self { requests, duration })
    }

    fn record(&self, call: &Call, code: &str, took: Duration) {
        self.requests
            .with_label_values(&[call.verb, call.resource.as_str(), code])
            .inc();
        self.duration
            .with_label_values(&[call.verb])
            .observe(took.as_secs_f64());
    }
}

/// What a client is made of.
#[derive(Clone)]
pub struct ClientOptions {
    /// The name and version that the API server sees, such as `creo-operator/0.1.0`.
    pub user_agent: String,
    /// The limit of a call that is not a watch; [`CALL_TIMEOUT`] unless there is a reason.
    pub call_timeout: Duration,
    /// Where calls are counted.
    pub metrics: ClientMetrics,
    /// Asked before each mutating call.
    pub gate: Option<Arc<dyn WriteGate>>,
}

impl fmt::Debug for ClientOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ClientOptions")
            .field("user_agent", &self.user_agent)
            .field("call_timeout", &self.call_timeout)
            .field("gated", &self.gate.is_some())
            .finish_non_exhaustive()
    }
}

/// Finds the cluster: `KUBECONFIG` or `~/.kube/config`, else the pod's service account.
pub async fn infer() -> Result<Config, ConnectError> {
    Ok(Config::infer().await?)
}

/// Makes a client for the cluster of `config`; nothing is sent yet.
pub fn connect(mut config: Config, options: ClientOptions) -> Result<Client, ConnectError> {
    let user_agent = HeaderValue::from_str(&options.user_agent)
        .map_err(|_| ConnectError::UserAgent(options.user_agent.clone()))?;
    config.headers.push((header::USER_AGENT, user_agent));
    config.default_retry = false;
    config.connect_timeout = Some(CONNECT_TIMEOUT.min(options.call_timeout));
    // The layer below bounds the whole call, and a watch must be able to stay silent.
    config.read_timeout = None;
    let layer = CallLayer {
        options: Arc::new(options),
    };
    Ok(ClientBuilder::try_from(config)?.with_layer(&layer).build())
}

/// What a call is for, as metrics name it.
#[derive(Debug, PartialEq, Eq)]
struct Call {
    verb: &'static str,
    resource: String,
    watch: bool,
    mutating: bool,
}

impl Call {
    fn of(method: &Method, uri: &Uri) -> Self {
        let query = uri.query().unwrap_or_default();
        let flag = |name: &str| {
            query.split('&').any(|pair| {
                pair.split_once('=')
                    .is_some_and(|(key, value)| key == name && (value == "true" || value == "1"))
            })
        };
        let watch = *method == Method::GET && (flag("watch") || flag("follow"));
        let (resource, named) = resource_of(uri.path());
        let verb = match (method.as_str(), watch) {
            (_, true) => "watch",
            ("GET", _) if named => "get",
            ("GET", _) => "list",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", _) => "delete",
            _ => "other",
        };
        Self {
            verb,
            resource,
            watch,
            mutating: !matches!(method.as_str(), "GET" | "HEAD" | "OPTIONS"),
        }
    }
}

/// The resource of an API path, with its subresource, and whether one object is named.
/// The names of objects are left out: they would make the metrics unbounded.
fn resource_of(path: &str) -> (String, bool) {
    let mut parts = path.split('/').filter(|part| !part.is_empty());
    let skipped = match parts.next() {
        Some("api") => 1,
        Some("apis") => 2,
        _ => return ("discovery".to_owned(), true),
    };
    let rest: Vec<&str> = parts.skip(skipped).collect();
    let rest = match rest.as_slice() {
        ["namespaces", _, resource @ ..] if !resource.is_empty() => resource,
        other => other,
    };
    match rest {
        [] => ("discovery".to_owned(), true),
        [resource] => ((*resource).to_owned(), false),
        [resource, _] => ((*resource).to_owned(), true),
        [resource, _, subresource, ..] => (format!("{resource}/{subresource}"), true),
    }
}

#[derive(Clone)]
struct CallLayer {
    options: Arc<ClientOptions>,
}

impl<S> Layer<S> for CallLayer {
    type Service = CallService<S>;

    fn layer(&self, inner: S) -> Self::Service {
        CallService {
            inner,
            options: Arc::clone(&self.options),
        }
    }
}

struct CallService<S> {
    inner: S,
    options: Arc<ClientOptions>,
}

impl<S> Service<Request<Body>> for CallService<S>
where
    S: Service<Request<Body>, Response = Response<Box<DynBody>>, Error = BoxError>,
    S::Future: Send + 'static,
{
    type Response = Response<Box<DynBody>>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Self::Response, BoxError>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let call = Call::of(request.method(), request.uri());
        let options = Arc::clone(&self.options);
        if call.mutating
            && let Some(Err(refused)) = options.gate.as_ref().map(|gate| gate.permit())
        {
            return Box::pin(std::future::ready(Err(refused.into())));
        }
        let timed_out = CallTimedOut {
            method: request.method().clone(),
            path: request.uri().path().to_owned(),
            limit: options.call_timeout,
        };
        let answer = answer(self.inner.call(request), call.watch);
        Box::pin(async move {
            let began = Instant::now();
            let result = match tokio::time::timeout(options.call_timeout, answer).await {
                Ok(result) => result,
                Err(_elapsed) => Err(timed_out.into()),
            };
            let code = match &result {
                Ok(response) => status_label(response.status()),
                Err(error) if error.is::<CallTimedOut>() => "timeout",
                Err(_) => "error",
            };
            options.metrics.record(&call, code, began.elapsed());
            result
        })
    }
}

/// The answer with its whole body, or for a watch with the body still open.
async fn answer<F>(response: F, watch: bool) -> Result<Response<Box<DynBody>>, BoxError>
where
    F: Future<Output = Result<Response<Box<DynBody>>, BoxError>>,
{
    let response = response.await?;
    if watch && response.status().is_success() {
        return Ok(response);
    }
    let (parts, body) = response.into_parts();
    let bytes: Bytes = body.collect().await?.to_bytes();
    let body: Box<DynBody> = Box::new(Full::new(bytes).map_err(|never| match never {}));
    Ok(Response::from_parts(parts, body))
}

/// The statuses worth telling apart, as a label of bounded values.
fn status_label(status: StatusCode) -> &'static str {
    match status.as_u16() {
        200 => "200",
        201 => "201",
        400 => "400",
        401 => "401",
        403 => "403",
        404 => "404",
        409 => "409",
        410 => "410",
        422 => "422",
        429 => "429",
        503 => "503",
        504 => "504",
        code => match code / 100 {
            1..=3 => "2xx",
            4 => "4xx",
            _ => "5xx",
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use k8s_openapi::api::core::v1::ConfigMap;
    use kube::Api;
    use kube::api::PostParams;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    /// A server that counts the requests it gets and gives each the same answer, or none.
    async fn server(answer: Option<&'static str>) -> (Uri, Arc<AtomicUsize>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        let count = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&count);
        tokio::spawn(async move {
            loop {
                let (mut socket, _) = listener.accept().await.unwrap();
                let counted = Arc::clone(&counted);
                tokio::spawn(async move {
                    let mut buffer = [0; 4096];
                    while socket.read(&mut buffer).await.unwrap_or(0) > 0 {
                        counted.fetch_add(1, Ordering::SeqCst);
                        match answer {
                            Some(answer) => socket.write_all(answer.as_bytes()).await.unwrap(),
                            None => std::future::pending().await,
                        }
                    }
                });
            }
        });
        (uri.parse().unwrap(), count)
    }

    fn options(gate: Option<Arc<dyn WriteGate>>) -> (ClientOptions, Registry) {
        let registry = Registry::new();
        let options = ClientOptions {
            user_agent: "creo-test/0".to_owned(),
            call_timeout: Duration::from_millis(300),
            metrics: ClientMetrics::register(&registry).unwrap(),
            gate,
        };
        (options, registry)
    }

    async fn create(client: Client) -> kube::Error {
        Api::<ConfigMap>::namespaced(client, "default")
            .create(&PostParams::default(), &ConfigMap::default())
            .await
            .unwrap_err()
    }

    fn source<E: std::error::Error + Clone + 'static>(error: &kube::Error) -> Option<E> {
        match error {
            kube::Error::Service(source) => source.downcast_ref::<E>().cloned(),
            _ => None,
        }
    }

    #[tokio::test]
    async fn a_server_that_never_answers_frees_the_caller_in_time() {
        let (uri, _) = server(None).await;
        let (options, _) = options(None);
        let began = Instant::now();
        let error = create(connect(Config::new(uri), options).unwrap()).await;
        assert!(began.elapsed() < Duration::from_secs(5));
        let timed_out: CallTimedOut = source(&error).unwrap();
        assert_eq!(timed_out.path, "/api/v1/namespaces/default/configmaps");
    }

    #[tokio::test]
    async fn a_body_that_never_ends_frees_the_caller_in_time() {
        let (uri, _) = server(Some("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{")).await;
        let (options, _) = options(None);
        let error = create(connect(Config::new(uri), options).unwrap()).await;
        assert!(source::<CallTimedOut>(&error).is_some(), "{error}");
    }

    #[tokio::test]
    async fn a_create_that_was_answered_with_503_is_sent_once() {
        let (uri, count) = server(Some(
            "HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n",
        ))
        .await;
        let (options, registry) = options(None);
        create(connect(Config::new(uri), options).unwrap()).await;
        assert_eq!(count.load(Ordering::SeqCst), 1);
        let families = registry.gather();
        let counted = families[1].get_metric()[0].get_counter().get_value();
        assert!((counted - 1.0).abs() < f64::EPSILON);
    }

    struct Shut;

    impl WriteGate for Shut {
        fn permit(&self) -> Result<(), WriteRefused> {
            Err(WriteRefused {
                reason: "the lease was lost",
            })
        }
    }

    #[tokio::test]
    async fn a_shut_gate_lets_reads_pass_and_stops_writes_before_they_are_sent() {
        let (uri, count) = server(Some("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}")).await;
        let (options, _) = options(Some(Arc::new(Shut)));
        let client = connect(Config::new(uri), options).unwrap();
        let error = create(client.clone()).await;
        assert!(source::<WriteRefused>(&error).is_some(), "{error}");
        assert_eq!(count.load(Ordering::SeqCst), 0);
        Api::<ConfigMap>::namespaced(client, "default")
            .get("any")
            .await
            .unwrap();
        assert_eq!(count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn calls_are_named_by_verb_and_resource_without_the_names_of_objects() {
        let cases = [
            ("GET", "/api/v1/nodes", "list", "nodes"),
            (
                "GET",
                "/api/v1/nodes?&watch=true&timeoutSeconds=40",
                "watch",
                "nodes",
            ),
            ("GET", "/api/v1/namespaces/default", "get", "namespaces"),
            ("DELETE", "/api/v1/namespaces/a/pods/b", "delete", "pods"),
            (
                "PATCH",
                "/apis/creo.cloud/v1alpha1/creonodes/n/status?fieldManager=x",
                "patch",
                "creonodes/status",
            ),
            (
                "POST",
                "/apis/creo.cloud/v1alpha1/namespaces/a/placements",
                "create",
                "placements",
            ),
            ("GET", "/apis/creo.cloud/v1alpha1", "get", "discovery"),
            (
                "PUT",
                "/apis/coordination.k8s.io/v1/namespaces/a/leases/b",
                "update",
                "leases",
            ),
        ];
        for (method, uri, verb, resource) in cases {
            let call = Call::of(&method.parse().unwrap(), &uri.parse().unwrap());
            assert_eq!(
                (call.verb, call.resource.as_str()),
                (verb, resource),
                "{method} {uri}"
            );
        }
    }
}
