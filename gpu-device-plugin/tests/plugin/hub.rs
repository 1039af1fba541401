//! An API server that holds CreoNodes, as far as this plugin can tell.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::extract::{Path, Request, State};
use axum::http::{StatusCode, Uri, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, patch};
use creo_process::client::{CALL_TIMEOUT, ClientMetrics, ClientOptions, connect};
use creo_process::prometheus::Registry;
use futures::StreamExt as _;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;

/// The one object, its history, and what was asked.
#[derive(Clone)]
pub struct Hub {
    node: watch::Sender<Option<Value>>,
    version: Arc<Mutex<u64>>,
    pub asked: Arc<Mutex<Vec<String>>>,
    pub refuse_writes: Arc<Mutex<bool>>,
}

impl Hub {
    pub async fn start() -> (Self, Client) {
        let hub = Self {
            node: watch::channel(None).0,
            version: Arc::default(),
            asked: Arc::default(),
            refuse_writes: Arc::default(),
        };
        let router = Router::new()
            .route("/apis/creo.cloud/v1alpha1/creonodes", get(list_or_watch))
            .route(
                "/apis/creo.cloud/v1alpha1/creonodes/{name}/status",
                patch(apply),
            )
            .with_state(hub.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let options = ClientOptions {
            user_agent: "creo-test/0".to_owned(),
            call_timeout: CALL_TIMEOUT,
            metrics: ClientMetrics::register(&Registry::new()).unwrap(),
            gate: None,
        };
        let client = connect(Config::new(uri.parse().unwrap()), options).unwrap();
        (hub, client)
    }

    fn next_version(&self) -> String {
        let mut version = self.version.lock().unwrap();
        *version += 1;
        version.to_string()
    }

    /// Makes or replaces the node's object.
    pub fn put(&self, name: &str, status: &Value) {
        let version = self.next_version();
        self.node.send_replace(Some(json!({
            "apiVersion": "creo.cloud/v1alpha1",
            "kind": "CreoNode",
            "metadata": {"name": name, "uid": "u", "resourceVersion": version},
            // A field of a later version, which must not disturb.
            "spec": {"source": {"moon": 1}, "owner": 7},
            "status": status,
        })));
    }

    /// Gives the node's object these annotations.
    pub fn annotate(&self, annotations: &Value) {
        let version = self.next_version();
        self.node.send_modify(|node| {
            let metadata = &mut node.as_mut().unwrap()["metadata"];
            metadata["annotations"] = annotations.clone();
            metadata["resourceVersion"] = version.into();
        });
    }

    pub fn delete(&self) {
        self.next_version();
        self.node.send_replace(None);
    }

    pub fn claims(&self) -> Option<Value> {
        let node = self.node.borrow();
        node.as_ref()?.get("status")?.get("claims").cloned()
    }

    /// Waits until the claims are so.
    pub async fn until(&self, holds: impl Fn(&Value) -> bool) -> Value {
        let mut node = self.node.subscribe();
        let waiting = node.wait_for(|node| {
            node.as_ref()
                .is_some_and(|node| holds(&node["status"]["claims"]))
        });
        let waited = tokio::time::timeout(crate::machine::PATIENCE, waiting).await;
        if let Ok(found) = waited {
            return found.unwrap().clone().unwrap()["status"]["claims"].clone();
        }
        drop(waited);
        panic!("it never held; at last: {:#?}", self.claims())
    }

    /// How many writes there were.
    pub fn writes(&self) -> usize {
        let asked = self.asked.lock().unwrap();
        asked
            .iter()
            .filter(|what| what.starts_with("PATCH"))
            .count()
    }
}

/// The parameters of a request, whose escapes are of no matter but one.
fn query(uri: &Uri) -> BTreeMap<String, String> {
    uri.query()
        .unwrap_or_default()
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.replace("%3D", "=")))
        .collect()
}

fn as_json(code: StatusCode, value: &Value) -> Response {
    let kind = [(header::CONTENT_TYPE, "application/json")];
    (code, kind, value.to_string()).into_response()
}

async fn list_or_watch(State(hub): State<Hub>, uri: Uri) -> Response {
    let query = query(&uri);
    let selector = query.get("fieldSelector").cloned().unwrap_or_default();
    let verb = if query.contains_key("watch") {
        "WATCH"
    } else {
        "LIST"
    };
    hub.asked.lock().unwrap().push(format!("{verb} {selector}"));
    if verb == "LIST" {
        let items: Vec<Value> = hub.node.borrow().clone().into_iter().collect();
        let version = hub.version.lock().unwrap().to_string();
        let list = json!({
            "apiVersion": "creo.cloud/v1alpha1",
            "kind": "CreoNodeList",
            "metadata": {"resourceVersion": version},
            "items": items,
        });
        return as_json(StatusCode::OK, &list);
    }
    let mut last = None;
    let events = WatchStream::new(hub.node.subscribe()).filter_map(move |node| {
        let event = match (&node, last.take()) {
            (Some(node), _) => Some(json!({"type": "MODIFIED", "object": node})),
            (None, Some(old)) => Some(json!({"type": "DELETED", "object": Value::clone(&old)})),
            (None, None) => None,
        };
        last = node;
        async { event.map(|event| Ok::<_, std::convert::Infallible>(format!("{event}\n"))) }
    });
    (
        [(header::CONTENT_TYPE, "application/json")],
        Body::from_stream(events),
    )
        .into_response()
}

async fn apply(State(hub): State<Hub>, Path(name): Path<String>, request: Request) -> Response {
    let manager = query(request.uri())["fieldManager"].clone();
    let body = to_bytes(request.into_body(), 1 << 20).await.unwrap();
    let body: Value = serde_json::from_slice(&body).unwrap();
    hub.asked
        .lock()
        .unwrap()
        .push(format!("PATCH {name} as {manager}"));
    let failure = |code: StatusCode, reason: &str| {
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": reason, "message": reason});
        as_json(code, &status)
    };
    if *hub.refuse_writes.lock().unwrap() {
        return failure(StatusCode::SERVICE_UNAVAILABLE, "ServiceUnavailable");
    }
    let Some(mut node) = hub.node.borrow().clone() else {
        return failure(StatusCode::NOT_FOUND, "NotFound");
    };
    assert_eq!(body["status"].as_object().unwrap().len(), 1, "{body}");
    node["status"]["claims"] = body["status"]["claims"].clone();
    node["metadata"]["resourceVersion"] = hub.next_version().into();
    hub.node.send_replace(Some(node.clone()));
    as_json(StatusCode::OK, &node)
}
