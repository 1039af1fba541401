//! What the kubelet asks of the plugin.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures::{Stream, StreamExt as _, stream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::api::device_plugin_server::DevicePlugin;
use super::api::{
    AllocateRequest, AllocateResponse, ContainerPreferredAllocationResponse, DevicePluginOptions,
    Empty, ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse,
};
use super::offer::Offer;
use crate::metrics::Metrics;
use crate::resource::Resource;

/// The plugin as the kubelet sees it.
#[derive(Debug, Clone)]
pub struct Plugin {
    resource: Resource,
    offers: watch::Receiver<Offer>,
    metrics: Metrics,
    listeners: Listeners,
    stop: CancellationToken,
}

/// Counts who listens to the list of devices.
#[derive(Debug, Clone, Default)]
pub struct Listeners(Arc<AtomicUsize>);

/// One who listens, for as long as it lives.
struct Listening(Arc<AtomicUsize>);

impl Listeners {
    /// How many there are now.
    #[must_use]
    pub fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    fn one_more(&self) -> Listening {
        self.0.fetch_add(1, Ordering::Relaxed);
        Listening(Arc::clone(&self.0))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Plugin {
    /// Offers these devices, until the token is cancelled.
    #[must_use]
    pub fn new(
        resource: Resource,
        offers: watch::Receiver<Offer>,
        metrics: Metrics,
        listeners: Listeners,
        stop: CancellationToken,
    ) -> Self {
        Self {
            resource,
            offers,
            metrics,
            listeners,
            stop,
        }
    }
}

/// The options of the plugin, the same at registration and when asked.
#[must_use]
pub fn options() -> DevicePluginOptions {
    DevicePluginOptions {
        pre_start_required: false,
        get_preferred_allocation_available: true,
    }
}

/// The list, and again the list whenever it is another one.
fn lists(
    offers: watch::Receiver<Offer>,
    listening: Listening,
) -> impl Stream<Item = Result<ListAndWatchResponse, Status>> {
    let start = (offers, listening, None::<ListAndWatchResponse>);
    stream::unfold(start, |(mut offers, listening, mut sent)| async move {
        loop {
            // A device whose reason changed is the same to the kubelet.
            let list = offers.borrow_and_update().list();
            if sent.as_ref() != Some(&list) {
                sent = Some(list.clone());
                return Some((Ok(list), (offers, listening, sent)));
            }
            offers.changed().await.ok()?;
        }
    })
}

#[tonic::async_trait]
impl DevicePlugin for Plugin {
    type ListAndWatchStream =
        Pin<Box<dyn Stream<Item = Result<ListAndWatchResponse, Status>> + Send>>;

    async fn get_device_plugin_options(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(options()))
    }

    async fn list_and_watch(
        &self,
        _request: Request<Empty>,
    ) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let lists = lists(self.offers.clone(), self.listeners.one_more());
        let until_stopped = lists.take_until(self.stop.clone().cancelled_owned());
        Ok(Response::new(Box::pin(until_stopped)))
    }

    async fn get_preferred_allocation(
        &self,
        request: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        // A copy: whoever publishes the next offer does not wait for the search.
        let offer = self.offers.borrow().clone();
        let container_responses = request
            .into_inner()
            .container_requests
            .into_iter()
            .map(|wish| ContainerPreferredAllocationResponse {
                device_ids: offer.choose(
                    &wish.available_device_ids,
                    &wish.must_include_device_ids,
                    // A negative size asks for nothing beyond what is required.
                    usize::try_from(wish.allocation_size).unwrap_or(0),
                ),
            })
            .collect();
        Ok(Response::new(PreferredAllocationResponse {
            container_responses,
        }))
    }

    async fn allocate(
        &self,
        request: Request<AllocateRequest>,
    ) -> Result<Response<AllocateResponse>, Status> {
        let offer = self.offers.borrow();
        let mut container_responses = Vec::new();
        for container in request.into_inner().container_requests {
            let response = offer.container(&container.device_ids);
            self.metrics.allocation(response.is_ok());
            container_responses.push(response.map_err(|unknown| {
                let message = format!("{}: {unknown}", self.resource);
                tracing::error!("a container cannot have its GPUs: {message}");
                Status::not_found(message)
            })?);
        }
        Ok(Response::new(AllocateResponse {
            container_responses,
        }))
    }

    /// Never asked for (see [`options`]); answered, because an error would fail the pod.
    async fn pre_start_container(
        &self,
        _request: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse {}))
    }
}
