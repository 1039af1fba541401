//! Which pod has which device, from a kubelet that comes, goes and misbehaves.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use creo_gpu_device_plugin::pod_resources::api::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use creo_gpu_device_plugin::pod_resources::api::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices,
    ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use creo_gpu_device_plugin::pod_resources::{
    CALL, Client, Holder, Pace, PodResourcesError, PodsByDevice, Watcher, register_up,
};
use creo_process::prometheus::{IntGauge, Registry};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::{Notify, watch};
use tokio::time::timeout;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::Server;
use tonic::transport::server::Router;
use tonic::{Request, Response, Status};

use crate::machine::PATIENCE;

/// What the kubelet answers; `None` is an error of its own.
#[derive(Debug, Clone, Default)]
struct Answers(Arc<Mutex<Option<Vec<PodResources>>>>);

impl Answers {
    fn set(&self, pods: Option<Vec<PodResources>>) {
        *self.0.lock().unwrap() = pods;
    }
}

struct Kubelet {
    answers: Answers,
    allocatable: Vec<ContainerDevices>,
    hangs: bool,
}

#[tonic::async_trait]
impl PodResourcesLister for Kubelet {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        if self.hangs {
            std::future::pending::<()>().await;
        }
        let pods = self.answers.0.lock().unwrap().clone();
        let pod_resources = pods.ok_or_else(|| Status::internal("the kubelet is confused"))?;
        Ok(Response::new(ListPodResourcesResponse { pod_resources }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Ok(Response::new(AllocatableResourcesResponse {
            devices: self.allocatable.clone(),
        }))
    }
}

impl Kubelet {
    fn new(pods: Vec<PodResources>) -> Self {
        let answers = Answers::default();
        answers.set(Some(pods));
        Self {
            answers,
            allocatable: Vec::new(),
            hangs: false,
        }
    }

    fn start(self, socket: &Path) -> Running {
        let answers = self.answers.clone();
        let server = Server::builder().add_service(PodResourcesListerServer::new(self));
        Running {
            answers,
            process: Process::start(socket, server),
        }
    }
}

struct Running {
    answers: Answers,
    process: Process,
}

/// A server with a runtime of its own: its connections break when it ends, as those of a
/// process that is killed.
struct Process {
    socket: PathBuf,
    runtime: Option<Runtime>,
}

impl Process {
    fn start(socket: &Path, server: Router) -> Self {
        let _ = fs::remove_file(socket);
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let inside = runtime.enter();
        let listener = UnixListener::bind(socket).unwrap();
        drop(inside);
        runtime.spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
        Self {
            socket: socket.to_owned(),
            runtime: Some(runtime),
        }
    }

    /// Ends the process; its socket stays, and nobody serves it.
    fn kill(mut self) -> PathBuf {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
        self.socket.clone()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn given(resource: &str, ids: &[&str]) -> ContainerDevices {
    ContainerDevices {
        resource_name: resource.to_owned(),
        device_ids: ids.iter().map(|id| (*id).to_owned()).collect(),
    }
}

fn pod(namespace: &str, name: &str, devices: Vec<ContainerDevices>) -> PodResources {
    PodResources {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        containers: vec![ContainerResources {
            name: "engine".to_owned(),
            devices,
        }],
    }
}

fn holder(namespace: &str, pod: &str, resource: &str) -> Holder {
    Holder {
        namespace: namespace.to_owned(),
        pod: pod.to_owned(),
        container: "engine".to_owned(),
        resource: resource.to_owned(),
    }
}

struct Following {
    pods: watch::Receiver<Option<PodsByDevice>>,
    allocated: Arc<Notify>,
    up: IntGauge,
    _stop: DropGuard,
}

/// So short that no test waits for it, and so long that it matters where one must not.
const PACE: Pace = Pace {
    every: Duration::from_millis(20),
    missing: Duration::from_millis(20),
    settle: Duration::from_millis(1),
    keep: Duration::ZERO,
};

fn follow(socket: &Path, pace: Pace) -> Following {
    let (sender, pods) = watch::channel(None);
    let allocated = Arc::new(Notify::new());
    let up = register_up(&Registry::new()).unwrap();
    let stop = CancellationToken::new();
    let watcher = Watcher {
        client: Client::new(socket, CALL),
        pace,
        allocated: Arc::clone(&allocated),
        pods: sender,
        up: up.clone(),
    };
    tokio::spawn(watcher.run(stop.clone()));
    Following {
        pods,
        allocated,
        up,
        _stop: stop.drop_guard(),
    }
}

impl Following {
    async fn until(&mut self, holds: impl Fn(Option<&PodsByDevice>) -> bool) {
        let found = timeout(PATIENCE, self.pods.wait_for(|pods| holds(pods.as_ref()))).await;
        found.expect("it never held").unwrap();
    }
}

fn socket() -> (TempDir, PathBuf) {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("kubelet.sock");
    (directory, path)
}

#[tokio::test]
async fn every_device_is_listed_with_the_containers_that_have_it() {
    let (_directory, socket) = socket();
    let _kubelet = Kubelet::new(vec![
        pod(
            "a",
            "one",
            vec![given("creo.cloud/gpu", &["GPU-1", "GPU-2"])],
        ),
        pod("b", "two", vec![given("nvidia.com/gpu", &["GPU-2"])]),
        pod("b", "none", Vec::new()),
    ])
    .start(&socket);
    let pods = Client::new(&socket, CALL).list().await.unwrap();
    let listed: Vec<_> = pods
        .iter()
        .map(|(id, holder)| (id, holder.clone()))
        .collect();
    assert_eq!(
        listed,
        [
            ("GPU-1", holder("a", "one", "creo.cloud/gpu")),
            ("GPU-2", holder("a", "one", "creo.cloud/gpu")),
            ("GPU-2", holder("b", "two", "nvidia.com/gpu")),
        ]
    );
    assert_eq!(pods.holders("GPU-3").count(), 0);
}

#[tokio::test]
async fn the_devices_of_every_plugin_are_told_over_all_numa_nodes() {
    let (_directory, socket) = socket();
    let mut kubelet = Kubelet::new(Vec::new());
    kubelet.allocatable = vec![
        given("nvidia.com/gpu", &["GPU-1"]),
        given("nvidia.com/gpu", &["GPU-2"]),
        given("creo.cloud/gpu", &["GPU-1"]),
    ];
    let _kubelet = kubelet.start(&socket);
    let devices = Client::new(&socket, CALL).allocatable().await.unwrap();
    let nvidia: Vec<_> = devices["nvidia.com/gpu"].iter().collect();
    assert_eq!(nvidia, ["GPU-1", "GPU-2"]);
    assert_eq!(devices.len(), 2);
}

#[tokio::test]
async fn what_is_wrong_with_the_kubelet_is_said_with_what_to_do() {
    let (_directory, socket) = socket();
    let client = Client::new(&socket, CALL);
    let absent = client.list().await.unwrap_err();
    assert_eq!(absent, PodResourcesError::Absent(socket.clone()));
    assert!(absent.to_string().contains("--pod-resources-socket"));
    // A server that knows nothing of this API.
    let plain = Server::builder().add_routes(tonic::service::Routes::default());
    let other = Process::start(&socket, plain);
    let unknown = client.allocatable().await.unwrap_err().to_string();
    assert!(unknown.contains("GetAllocatableResources"), "{unknown}");
    other.kill();
    let silent = |error: &PodResourcesError, said: &str| matches!(error, PodResourcesError::Silent { why, .. } if why.contains(said));
    // The first call after its end may find the connection broken.
    let mut refused = client.list().await.unwrap_err();
    if !silent(&refused, "refused") {
        refused = client.list().await.unwrap_err();
    }
    assert!(silent(&refused, "refused"), "{refused:?}");
    let kubelet = Kubelet::new(Vec::new()).start(&socket);
    kubelet.answers.set(None);
    let confused = client.list().await.unwrap_err().to_string();
    assert!(confused.contains("the kubelet is confused"), "{confused}");
}

#[tokio::test]
async fn a_kubelet_that_hangs_is_given_up_after_a_while() {
    let (_directory, socket) = socket();
    let mut kubelet = Kubelet::new(Vec::new());
    kubelet.hangs = true;
    let _kubelet = kubelet.start(&socket);
    let given_up = Client::new(&socket, Duration::from_millis(50))
        .list()
        .await
        .unwrap_err();
    assert!(
        matches!(given_up, PodResourcesError::Silent { .. }),
        "{given_up:?}"
    );
}

#[tokio::test]
async fn an_answer_without_bounds_is_not_taken() {
    let (_directory, socket) = socket();
    let long = "x".repeat(17 << 20);
    let _kubelet = Kubelet::new(vec![pod("a", &long, vec![given("r", &["d"])])]).start(&socket);
    let refused = Client::new(&socket, CALL)
        .list()
        .await
        .unwrap_err()
        .to_string();
    assert!(refused.contains("too large"), "{refused}");
}

#[tokio::test]
async fn a_kubelet_that_comes_late_goes_and_comes_again_is_followed() {
    let (_directory, socket) = socket();
    let mut following = follow(&socket, PACE);
    let with = |name| vec![pod("a", name, vec![given("creo.cloud/gpu", &["GPU-1"])])];
    let has = |name: &'static str| {
        move |pods: Option<&PodsByDevice>| {
            pods.is_some_and(|pods| pods.holders("GPU-1").any(|holder| holder.pod == name))
        }
    };
    let kubelet = Kubelet::new(with("one")).start(&socket);
    following.until(has("one")).await;
    assert_eq!(following.up.get(), 1);
    kubelet.answers.set(Some(with("two")));
    following.until(has("two")).await;
    fs::remove_file(kubelet.process.kill()).unwrap();
    following.until(|pods| pods.is_none()).await;
    assert_eq!(following.up.get(), 0);
    let _kubelet = Kubelet::new(with("three")).start(&socket);
    following.until(has("three")).await;
    assert_eq!(following.up.get(), 1);
}

#[tokio::test]
async fn what_the_kubelet_said_last_is_good_for_a_while_when_it_goes() {
    let (_directory, socket) = socket();
    let keep = Duration::from_hours(1);
    let mut following = follow(&socket, Pace { keep, ..PACE });
    let kubelet = Kubelet::new(vec![pod("a", "one", vec![given("r", &["GPU-1"])])]).start(&socket);
    following.until(|pods| pods.is_some()).await;
    fs::remove_file(kubelet.process.kill()).unwrap();
    let went = timeout(PATIENCE, async {
        while following.up.get() == 1 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    went.await.unwrap();
    assert!(following.pods.borrow().is_some());
}

#[tokio::test]
async fn an_allocation_is_asked_about_at_once() {
    let (_directory, socket) = socket();
    let kubelet = Kubelet::new(Vec::new()).start(&socket);
    let never = Duration::from_hours(1);
    let mut following = follow(
        &socket,
        Pace {
            every: never,
            ..PACE
        },
    );
    following.until(|pods| pods.is_some()).await;
    kubelet
        .answers
        .set(Some(vec![pod("a", "one", vec![given("r", &["GPU-1"])])]));
    following.allocated.notify_one();
    following
        .until(|pods| pods.is_some_and(|pods| pods.holders("GPU-1").count() == 1))
        .await;
}
