//! gRPC over a socket of this machine, as the kubelet and its plugins speak it.

use std::io;
use std::path::Path;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error, Uri};
use tower::{Service, service_fn};

/// Connects to the socket; connecting may take so long, and so may the answer to each call.
///
/// # Errors
///
/// Nobody answers there.
pub async fn connect(socket: &Path, limit: Duration) -> Result<Channel, Error> {
    endpoint(limit).connect_with_connector(dialer(socket)).await
}

/// As [`connect`], but when the first call is made, and anew whenever the connection was lost.
/// It needs a tokio runtime around it.
#[must_use]
pub fn connect_lazily(socket: &Path, limit: Duration) -> Channel {
    endpoint(limit).connect_with_connector_lazy(dialer(socket))
}

fn endpoint(limit: Duration) -> Endpoint {
    // The address is never used: the dialer knows the socket.
    Endpoint::from_static("http://localhost")
        .connect_timeout(limit)
        .timeout(limit)
}

fn dialer(
    socket: &Path,
) -> impl Service<
    Uri,
    Response = TokioIo<UnixStream>,
    Error = io::Error,
    Future = impl Future<Output = io::Result<TokioIo<UnixStream>>> + Send + use<>,
> + Send
+ use<> {
    let socket = socket.to_owned();
    service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    })
}
