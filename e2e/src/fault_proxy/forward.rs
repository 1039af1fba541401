//! The way of one request through the proxy.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use futures::stream;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, Limited, StreamBody};
use hyper::body::{Bytes, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::json;

use super::journal::{Outcome, Seen, read_object};
use super::request::{ApiRequest, Verb, query_value};
use super::rule::{Action, Moment, Refusal};
use super::{Shared, locked};

/// Any error, as bodies carry it.
pub(super) type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// The body of an answer to the controller.
pub(super) type ReplyBody = UnsyncBoxBody<Bytes, BoxError>;

/// The largest request body. The API server itself takes 3 MiB.
const REQUEST_BYTES_MAX: usize = 4 << 20;
/// The largest answer to a write or a list.
const REPLY_BYTES_MAX: usize = 16 << 20;
/// Lists that are kept as old answers, and the size of the largest one.
const OLD_LISTS_MAX: usize = 64;
const OLD_LIST_BYTES_MAX: usize = 1 << 20;
/// Headers that belong to one connection, or that the proxy sets itself.
const NOT_FORWARDED: [HeaderName; 7] = [
    header::HOST,
    header::AUTHORIZATION,
    header::CONNECTION,
    header::TRANSFER_ENCODING,
    header::CONTENT_LENGTH,
    header::ACCEPT_ENCODING,
    header::UPGRADE,
];

/// The connection is to be closed without an answer.
#[derive(Debug, thiserror::Error)]
#[error("a fault closes the connection without an answer")]
pub(super) struct Dropped;

/// The first answers to lists.
pub(super) type OldLists = HashMap<String, Bytes>;

/// A request whose body has been read.
struct Call {
    request: Option<ApiRequest>,
    method: Method,
    target: String,
    headers: HeaderMap,
    body: Bytes,
    write: Option<u64>,
}

/// A fault that is due for a request, with its side of the API server's work.
struct Due {
    rule: usize,
    action: Action,
}

/// Answers one request of the controller.
pub(super) async fn serve(
    shared: Arc<Shared>,
    incoming: Request<Incoming>,
) -> Result<Response<ReplyBody>, Dropped> {
    if incoming.headers().contains_key(header::UPGRADE) {
        return Ok(status_reply(
            501,
            "NotImplemented",
            "the fault proxy does not upgrade connections",
        ));
    }
    let mut call = match Call::read(incoming).await {
        Ok(call) => call,
        Err(reply) => return Ok(*reply),
    };
    let due = shared.meet(&mut call);
    if let Some(reply) = shared.old_list(&call) {
        return Ok(reply);
    }
    if let Some(due) = &due
        && let Some(early) = before(&shared, &call, due).await
    {
        return early;
    }
    // A task of its own: what the API server did is noted even when the
    // controller has given up waiting for it.
    let work = shared.tasks.spawn(after(Arc::clone(&shared), call, due));
    work.await.unwrap_or(Err(Dropped))
}

impl Call {
    async fn read(incoming: Request<Incoming>) -> Result<Self, Box<Response<ReplyBody>>> {
        let (parts, body) = incoming.into_parts();
        let body = Limited::new(body, REQUEST_BYTES_MAX)
            .collect()
            .await
            .map_err(|error| {
                Box::new(status_reply(
                    413,
                    "RequestEntityTooLarge",
                    &error.to_string(),
                ))
            })?;
        let content_type = parts
            .headers
            .get(header::CONTENT_TYPE)
            .and_then(|value| value.to_str().ok());
        let (path, query) = (parts.uri.path(), parts.uri.query());
        let mut request = ApiRequest::parse(&parts.method, path, query, content_type);
        let body = body.to_bytes();
        if let Some(request) = &mut request
            && request.verb == Verb::Create
            && request.name.is_none()
        {
            // Rules by name have to see the name before the object exists.
            request.name = read_object(&body).0;
        }
        Ok(Self {
            request,
            target: parts
                .uri
                .path_and_query()
                .map_or("/", |target| target.as_str())
                .to_owned(),
            method: parts.method,
            headers: parts.headers,
            body,
            write: None,
        })
    }

    fn verb(&self) -> Option<Verb> {
        self.request.as_ref().map(|request| request.verb)
    }

    /// The request as the API server gets it.
    fn to_upstream(&self) -> Result<Request<kube::client::Body>, BoxError> {
        let mut request = Request::new(kube::client::Body::from(self.body.clone()));
        *request.method_mut() = self.method.clone();
        *request.uri_mut() = self.target.parse()?;
        *request.headers_mut() = forwarded(&self.headers);
        Ok(request)
    }

    /// Reads the metadata of the object that this write is about.
    async fn read_target(&self, shared: &Shared) -> Seen {
        let Some(request) = &self.request else {
            return Seen::Unknown;
        };
        if request.name.is_none() {
            return Seen::Unknown;
        }
        if request.verb == Verb::Create && request.subresource.is_none() {
            // A create that is accepted found nothing there.
            return Seen::Absent;
        }
        let path = self.target.split('?').next().unwrap_or_default();
        let path = match &request.subresource {
            Some(subresource) => path.trim_end_matches(subresource).trim_end_matches('/'),
            None => path,
        };
        let accept = "application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1";
        let Ok(get) = Request::get(path)
            .header(header::ACCEPT, accept)
            .body(kube::client::Body::empty())
        else {
            return Seen::Unknown;
        };
        match shared.send(&shared.reader, get).await {
            Ok(reply) if reply.status() == StatusCode::NOT_FOUND => Seen::Absent,
            Ok(reply) if reply.status().is_success() => collect(reply.into_body())
                .await
                .map_or(Seen::Unknown, |body| read_object(&body).1),
            _ => Seen::Unknown,
        }
    }

    /// Whether a list puts up with an answer of any age. All others are read
    /// from etcd, or from a cache that has caught up with it.
    fn takes_any_age(&self) -> bool {
        let query = self.target.split_once('?').map_or("", |(_, query)| query);
        query_value(query, "resourceVersion") == Some("0")
            && query_value(query, "resourceVersionMatch") != Some("Exact")
    }

    /// The list without what differs between two requests for the same list.
    fn list_key(&self) -> Option<String> {
        if self.verb() != Some(Verb::List) {
            return None;
        }
        let (path, query) = self.target.split_once('?').unwrap_or((&self.target, ""));
        if query_value(query, "continue").is_some() {
            return None;
        }
        let stable = query
            .split('&')
            .filter(|pair| !pair.starts_with("resourceVersion"));
        Some(format!("{path}?{}", stable.collect::<Vec<_>>().join("&")))
    }
}

impl Shared {
    /// Counts the call, and finds the fault that is due for it.
    fn meet(&self, call: &mut Call) -> Option<Due> {
        let request = call.request.as_ref()?;
        let due = locked(&self.rules).meet(request);
        let due = due.map(|(rule, action)| Due { rule, action });
        call.write = locked(&self.journal).arrive(request, due.as_ref().map(|due| due.rule));
        due
    }

    fn finish(&self, call: &Call, outcome: Outcome, name: Option<String>) {
        if let Some(number) = call.write {
            locked(&self.journal).finish(number, outcome, name);
        }
    }

    /// Kills the controller. A rule that finds none to kill has not fired.
    fn kill(&self, due: &Due) {
        let switch = locked(&self.kill).clone();
        let killed = switch.is_some_and(|switch| switch().is_ok());
        if !killed {
            locked(&self.rules).miss(due.rule);
        }
    }

    async fn send(
        &self,
        client: &kube::Client,
        request: Request<kube::client::Body>,
    ) -> kube::Result<Response<kube::client::Body>> {
        tokio::select! {
            reply = client.send(request) => reply,
            () = self.stop.cancelled() => {
                Err(kube::Error::Service("the fault proxy stops".into()))
            }
        }
    }
}

/// What a fault does before the API server sees the request: an answer in its
/// place, or nothing, and then the request goes on.
async fn before(
    shared: &Arc<Shared>,
    call: &Call,
    due: &Due,
) -> Option<Result<Response<ReplyBody>, Dropped>> {
    let early = match due.action {
        Action::KillController(Moment::Before) => {
            shared.kill(due);
            Some(Err(Dropped))
        }
        Action::DropReply(Moment::Before) => Some(Err(Dropped)),
        Action::Answer(Moment::Before, refusal) => Some(Ok(refused(refusal))),
        Action::Hang(Moment::Before, span) => {
            shared.fired.notify_waiters();
            tokio::select! {
                () = tokio::time::sleep(span) => {}
                () = shared.stop.cancelled() => {}
            }
            None
        }
        _ => None,
    };
    if early.is_some() {
        shared.finish(call, Outcome::Withheld, None);
        shared.fired.notify_waiters();
    }
    early
}

/// Sends the request on, and does what a fault does once it is answered.
async fn after(
    shared: Arc<Shared>,
    call: Call,
    due: Option<Due>,
) -> Result<Response<ReplyBody>, Dropped> {
    let reply = forward(&shared, &call).await;
    let Some(due) = due else { return reply };
    let reply = match due.action {
        Action::KillController(Moment::After) => {
            shared.kill(&due);
            Err(Dropped)
        }
        Action::KillIntoThePast(span) => {
            // First, so that not even the quickest successor sees the present.
            *locked(&shared.past_until) = Some(Instant::now() + span);
            shared.watches.hold(span);
            shared.kill(&due);
            Err(Dropped)
        }
        Action::DropReply(Moment::After) => Err(Dropped),
        Action::Answer(Moment::After, refusal) => Ok(refused(refusal)),
        Action::Hang(Moment::After, span) => {
            shared.fired.notify_waiters();
            tokio::select! {
                () = tokio::time::sleep(span) => {}
                () = shared.stop.cancelled() => {}
            }
            reply
        }
        Action::CutWatches => {
            shared.watches.cut();
            reply
        }
        Action::ExpireWatches => {
            shared.watches.expire();
            reply
        }
        Action::HoldWatchEvents(span) => {
            shared.watches.hold(span);
            reply
        }
        Action::RepeatWatchEvents(span) => {
            shared.watches.repeat(span);
            reply
        }
        _ => reply,
    };
    shared.fired.notify_waiters();
    reply
}

async fn forward(shared: &Arc<Shared>, call: &Call) -> Result<Response<ReplyBody>, Dropped> {
    let seen_before = match call.write {
        Some(_) => call.read_target(shared).await,
        None => Seen::Unknown,
    };
    let request = call.to_upstream().map_err(|_| Dropped)?;
    let Ok(reply) = shared.send(&shared.upstream, request).await else {
        shared.finish(call, Outcome::Lost, None);
        return Err(Dropped);
    };
    let (mut parts, body) = reply.into_parts();
    parts.headers = forwarded(&parts.headers);
    let kept_as = call.list_key();
    if call.write.is_none() && kept_as.is_none() {
        let body = match call.verb() {
            Some(Verb::Watch) if parts.status.is_success() => shared.relay_watch(body),
            _ => body.map_err(BoxError::from).boxed_unsync(),
        };
        return Ok(Response::from_parts(parts, body));
    }
    let Ok(body) = collect(body).await else {
        shared.finish(call, Outcome::Lost, None);
        return Err(Dropped);
    };
    if let Some(key) = kept_as.filter(|_| parts.status.is_success()) {
        let mut lists = locked(&shared.old_lists);
        if lists.len() < OLD_LISTS_MAX && body.len() <= OLD_LIST_BYTES_MAX {
            lists.entry(key).or_insert_with(|| body.clone());
        }
    }
    if parts.status.is_success() {
        let (name, after) = read_object(&body);
        shared.finish(
            call,
            Outcome::Accepted {
                before: seen_before,
                after,
            },
            name,
        );
    } else {
        shared.finish(
            call,
            Outcome::Refused {
                status: parts.status.as_u16(),
            },
            None,
        );
    }
    Ok(Response::from_parts(parts, full(body)))
}

impl Shared {
    /// The first answer to the same list, while the API server is to lag and
    /// where it may.
    fn old_list(&self, call: &Call) -> Option<Response<ReplyBody>> {
        let key = call.list_key().filter(|_| call.takes_any_age())?;
        if locked(&self.past_until).is_none_or(|until| Instant::now() >= until) {
            return None;
        }
        let body = locked(&self.old_lists).get(&key)?.clone();
        let mut reply = Response::new(full(body));
        reply.headers_mut().insert(header::CONTENT_TYPE, JSON);
        Some(reply)
    }

    fn relay_watch(&self, upstream: kube::client::Body) -> ReplyBody {
        let (mut receiver, relay) = self.watches.relay(upstream, self.stop.clone());
        self.tasks.spawn(relay);
        StreamBody::new(stream::poll_fn(move |context| receiver.poll_recv(context))).boxed_unsync()
    }
}

fn forwarded(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    for name in NOT_FORWARDED {
        kept.remove(name);
    }
    kept
}

async fn collect(body: kube::client::Body) -> Result<Bytes, BoxError> {
    Ok(Limited::new(body, REPLY_BYTES_MAX)
        .collect()
        .await?
        .to_bytes())
}

const JSON: HeaderValue = HeaderValue::from_static("application/json");

fn full(body: Bytes) -> ReplyBody {
    Full::new(body)
        .map_err(|never| match never {})
        .boxed_unsync()
}

fn refused(refusal: Refusal) -> Response<ReplyBody> {
    let mut reply = status_reply(
        refusal.code(),
        refusal.reason(),
        "a fault of the fault proxy",
    );
    if refusal == Refusal::TooManyRequests {
        reply
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    reply
}

/// A failure in the form in which the API server tells it.
fn status_reply(code: u16, reason: &str, message: &str) -> Response<ReplyBody> {
    let body = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": message, "reason": reason, "code": code,
    });
    let mut reply = Response::new(full(Bytes::from(body.to_string())));
    *reply.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    reply.headers_mut().insert(header::CONTENT_TYPE, JSON);
    reply
}
