//! An API server of a few lines for the proxy's tests: it stores objects under
//! their path, counts resourceVersions, streams watches, and asks for a token.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::PrivatePkcs8KeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::broadcast;
use tokio_rustls::TlsAcceptor;

const TOKEN: &str = "the-original-credentials";

#[derive(Default)]
struct Store {
    objects: BTreeMap<String, Value>,
    resource_version: u64,
    log: Vec<String>,
}

/// The server; it ends with the test's runtime.
pub(super) struct Upstream {
    store: Arc<Mutex<Store>>,
    events: broadcast::Sender<String>,
    pub(super) kubeconfig: PathBuf,
}

impl Upstream {
    pub(super) async fn start(directory: &Path) -> Self {
        let issued = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()])
            .expect("a certificate");
        let key = PrivatePkcs8KeyDer::from(issued.signing_key.serialize_der());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("TLS versions")
            .with_no_client_auth()
            .with_single_cert(vec![issued.cert.der().clone()], key.into())
            .expect("a TLS configuration");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("a port");
        let address = listener.local_addr().expect("an address");
        let upstream = Self {
            store: Arc::default(),
            events: broadcast::channel(64).0,
            kubeconfig: write_kubeconfig(directory, address, &issued.cert.pem()),
        };
        tokio::spawn(serve(
            listener,
            TlsAcceptor::from(Arc::new(tls)),
            Arc::clone(&upstream.store),
            upstream.events.clone(),
        ));
        upstream
    }

    /// The writes and lists that arrived, `PATCH /api/...`.
    pub(super) fn log(&self) -> Vec<String> {
        self.store.lock().expect("the store").log.clone()
    }

    /// Sends an event to every open watch.
    pub(super) fn emit(&self, uid: &str, state: &str) {
        let event =
            json!({"type": "MODIFIED", "object": {"metadata": {"uid": uid}, "state": state}});
        self.events
            .send(format!("{event}\n"))
            .expect("an open watch");
    }

    /// Waits until `count` watches are open.
    pub(super) async fn watched(&self, count: usize) {
        while self.events.receiver_count() != count {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    }
}

fn write_kubeconfig(directory: &Path, address: SocketAddr, authority: &str) -> PathBuf {
    std::fs::write(directory.join("upstream.crt"), authority).expect("a file");
    let kubeconfig = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "up",
        "clusters": [{"name": "up", "cluster": {
            "server": format!("https://{address}"),
            "certificate-authority": directory.join("upstream.crt"),
        }}],
        "users": [{"name": "up", "user": {"token": TOKEN}}],
        "contexts": [{"name": "up", "context": {"cluster": "up", "user": "up", "namespace": "shop"}}],
    });
    let path = directory.join("upstream.kubeconfig");
    std::fs::write(&path, kubeconfig.to_string()).expect("a file");
    path
}

async fn serve(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    store: Arc<Mutex<Store>>,
    events: broadcast::Sender<String>,
) {
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, store, events) = (acceptor.clone(), Arc::clone(&store), events.clone());
        tokio::spawn(async move {
            let Ok(stream) = acceptor.accept(stream).await else {
                return;
            };
            let service = service_fn(move |request| {
                let (store, events) = (Arc::clone(&store), events.clone());
                async move { Ok::<_, Infallible>(answer(request, &store, &events).await) }
            });
            let _ = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

type Reply = Response<UnsyncBoxBody<Bytes, Infallible>>;

async fn answer(
    request: Request<Incoming>,
    store: &Mutex<Store>,
    events: &broadcast::Sender<String>,
) -> Reply {
    let authorized = request
        .headers()
        .get("authorization")
        .is_some_and(|value| value.as_bytes() == format!("Bearer {TOKEN}").as_bytes());
    if !authorized {
        return json_reply(401, &json!({"kind": "Status", "code": 401}));
    }
    let (parts, body) = request.into_parts();
    let (path, method) = (parts.uri.path().to_owned(), parts.method);
    if parts
        .uri
        .query()
        .is_some_and(|query| query.contains("watch=true"))
    {
        let receiver = events.subscribe();
        let lines = stream::unfold(receiver, |mut receiver| async {
            let event = receiver.recv().await.ok()?;
            Some((Ok(Frame::data(Bytes::from(event))), receiver))
        });
        return Response::new(StreamBody::new(lines).boxed_unsync());
    }
    let body = body.collect().await.expect("a body").to_bytes();
    let mut store = store.lock().expect("the store");
    let is_list = method == Method::GET && path.ends_with('s');
    if method != Method::GET || is_list {
        store.log.push(format!("{method} {path}"));
    }
    match method {
        Method::GET if is_list => {
            let items: Vec<&Value> = store.objects.values().collect();
            json_reply(200, &json!({"metadata": {}, "items": items}))
        }
        Method::GET => match store.objects.get(&path) {
            Some(object) => json_reply(200, object),
            None => json_reply(404, &json!({"kind": "Status", "code": 404})),
        },
        Method::DELETE => match store.objects.remove(&path) {
            Some(object) => json_reply(200, &object),
            None => json_reply(404, &json!({"kind": "Status", "code": 404})),
        },
        _ => store_object(&mut store, &path, &body),
    }
}

fn store_object(store: &mut Store, path: &str, body: &[u8]) -> Reply {
    let wanted: Value = serde_json::from_slice(body).expect("JSON");
    let spec = wanted["spec"].clone();
    if let Some(object) = store.objects.get(path)
        && object["spec"] == spec
    {
        return json_reply(200, object);
    }
    store.resource_version += 1;
    let version = store.resource_version.to_string();
    let name = path.rsplit('/').next();
    let object = json!({
        "metadata": {"name": name, "uid": path, "resourceVersion": version}, "spec": spec,
    });
    store.objects.insert(path.to_owned(), object.clone());
    json_reply(200, &object)
}

fn json_reply(status: u16, body: &Value) -> Reply {
    let mut reply = Response::new(Full::new(Bytes::from(body.to_string())).boxed_unsync());
    *reply.status_mut() = StatusCode::from_u16(status).expect("a status");
    reply
}
