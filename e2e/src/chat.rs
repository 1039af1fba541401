//! A chat request to an engine, over a connection that is open already.

use std::{
    net::TcpStream,
    time::{Duration, Instant},
};

use http_body_util::{BodyExt as _, Full};
use hyper::{Request, body::Bytes};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::error::{Error, Result};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_mins(1);

/// An engine's answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The HTTP status.
    pub status: u16,
    /// The text of the answer: of the one message, or of all deltas together.
    pub text: String,
    /// How many events a streamed answer had; 0 where it was not streamed.
    pub events: usize,
    /// The tokens that the engine says it wrote.
    pub completion_tokens: Option<u64>,
    /// The time to the first byte of the body.
    pub first_byte: Duration,
    /// The time to the end.
    pub total: Duration,
    /// The body as it came.
    pub body: String,
}

/// The body of a chat request with one message of the user.
#[must_use]
pub fn request_body(model: &str, message: &str, stream: bool) -> Value {
    let mut body = json!({
        "model": model,
        "messages": [{ "role": "user", "content": message }],
        "max_tokens": 24,
        "seed": 7,
        "stream": stream,
    });
    if stream {
        body["stream_options"] = json!({ "include_usage": true });
    }
    body
}

/// Sends a chat request and reads the whole answer.
///
/// # Errors
///
/// The connection breaks, or the answer takes too long.
pub async fn send(connection: TcpStream, host: &str, body: &Value) -> Result<Answer> {
    tokio::time::timeout(PATIENCE, exchange(connection, host, body))
        .await
        .map_err(|_| Error::Timeout {
            what: format!("an answer from {host}"),
            within: PATIENCE,
            last: "no end of the answer".to_owned(),
        })?
}

async fn exchange(connection: TcpStream, host: &str, body: &Value) -> Result<Answer> {
    let failed =
        |error: &dyn std::fmt::Display| Error::malformed(format!("the answer from {host}"), error);
    connection
        .set_nonblocking(true)
        .map_err(|error| failed(&error))?;
    let stream = tokio::net::TcpStream::from_std(connection).map_err(|error| failed(&error))?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(&error))?;
    let driving = tokio::spawn(connection);
    let request = Request::post("/v1/chat/completions")
        .header("host", host)
        .header("content-type", "application/json")
        .body(Full::new(Bytes::from(body.to_string())))
        .map_err(|error| failed(&error))?;
    let begun = Instant::now();
    let response = sender
        .send_request(request)
        .await
        .map_err(|error| failed(&error))?;
    let status = response.status().as_u16();
    let mut incoming = response.into_body();
    let mut bytes = Vec::new();
    let mut first_byte = None;
    while let Some(frame) = incoming.frame().await {
        let frame = frame.map_err(|error| failed(&error))?;
        if let Some(data) = frame.data_ref() {
            first_byte.get_or_insert_with(|| begun.elapsed());
            bytes.extend_from_slice(data);
        }
    }
    let total = begun.elapsed();
    driving.abort();
    let body = String::from_utf8_lossy(&bytes).into_owned();
    Ok(parse(status, body, first_byte.unwrap_or(total), total))
}

fn parse(status: u16, body: String, first_byte: Duration, total: Duration) -> Answer {
    let events: Vec<Value> = body
        .lines()
        .filter_map(|line| line.strip_prefix("data: "))
        .filter_map(|data| serde_json::from_str(data).ok())
        .collect();
    let whole: Value = serde_json::from_str(&body).unwrap_or_default();
    let text = if events.is_empty() {
        whole["choices"][0]["message"]["content"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    } else {
        events
            .iter()
            .filter_map(|event| event["choices"][0]["delta"]["content"].as_str())
            .collect()
    };
    let completion_tokens = events
        .iter()
        .rev()
        .chain(std::iter::once(&whole))
        .find_map(|value| value["usage"]["completion_tokens"].as_u64());
    Answer {
        status,
        text,
        events: events.len(),
        completion_tokens,
        first_byte,
        total,
        body,
    }
}
