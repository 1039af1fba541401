//! Another plugin with the same cards.

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use creo_gpu_device_plugin::offer::conflict::{Conflicts, Lookout, Pace};
use creo_gpu_device_plugin::pod_resources::Client;
use creo_gpu_device_plugin::pod_resources::api::pod_resources_lister_server::{
    PodResourcesLister, PodResourcesListerServer,
};
use creo_gpu_device_plugin::pod_resources::api::{
    AllocatableResourcesRequest, AllocatableResourcesResponse, ContainerDevices,
    ContainerResources, ListPodResourcesRequest, ListPodResourcesResponse, PodResources,
};
use creo_gpu_device_plugin::resource::Resource;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::time::{Instant, timeout};
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use crate::kubelet::Kubelet;
use crate::machine::{Machine, PATIENCE};

/// The devices that plugins offer and those that pods have, as pairs of resource and id.
#[derive(Debug, Clone, Default)]
struct Counted {
    offered: Arc<Mutex<Vec<(String, String)>>>,
    held: Arc<Mutex<Vec<(String, String)>>>,
}

impl Counted {
    fn start(&self, socket: &Path) {
        std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let server = Server::builder().add_service(PodResourcesListerServer::new(self.clone()));
        tokio::spawn(server.serve_with_incoming(UnixListenerStream::new(listener)));
    }

    fn offers(&self, resource: &str, ids: &[String]) {
        *self.offered.lock().unwrap() = pairs(resource, ids);
    }

    fn holds(&self, resource: &str, ids: &[String]) {
        *self.held.lock().unwrap() = pairs(resource, ids);
    }
}

fn pairs(resource: &str, ids: &[String]) -> Vec<(String, String)> {
    ids.iter()
        .map(|id| (resource.to_owned(), id.clone()))
        .collect()
}

fn devices(counted: &Mutex<Vec<(String, String)>>) -> Vec<ContainerDevices> {
    let counted = counted.lock().unwrap();
    counted
        .iter()
        .map(|(resource, id)| ContainerDevices {
            resource_name: resource.clone(),
            device_ids: vec![id.clone()],
        })
        .collect()
}

#[tonic::async_trait]
impl PodResourcesLister for Counted {
    async fn list(
        &self,
        _: Request<ListPodResourcesRequest>,
    ) -> Result<Response<ListPodResourcesResponse>, Status> {
        let container = ContainerResources {
            devices: devices(&self.held),
            ..ContainerResources::default()
        };
        let pod = PodResources {
            containers: vec![container],
            ..PodResources::default()
        };
        Ok(Response::new(ListPodResourcesResponse {
            pod_resources: vec![pod],
        }))
    }

    async fn get_allocatable_resources(
        &self,
        _: Request<AllocatableResourcesRequest>,
    ) -> Result<Response<AllocatableResourcesResponse>, Status> {
        Ok(Response::new(AllocatableResourcesResponse {
            devices: devices(&self.offered),
        }))
    }
}

#[tokio::test]
async fn no_card_that_another_plugin_offers_is_offered_not_even_for_a_moment() {
    let machine = Machine::new("t4", 3);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let counted = Counted::default();
    counted.start(&machine.pod_resources_socket());
    counted.offers(
        "nvidia.com/gpu",
        &[machine.uuid(0), format!("{}::3", machine.uuid(1))],
    );
    let plugin = machine.serve(&[]);
    kubelet.until_resources(&[("creo.cloud/gpu", 1)]).await;
    let seen = kubelet.seen.borrow().clone();
    assert!(seen.lists.iter().all(|list| list.len() == 1), "{seen:?}");
    assert!(seen.lists[0].contains_key(&machine.uuid(2)));
    // One that comes later is found as well; what is ours is no conflict, whatever it is
    // called in between.
    counted.holds("creo.cloud/gpu-tesla-t4", &[machine.uuid(2)]);
    counted.offers(
        "nvidia.com/gpu",
        &[0, 1, 2].map(|index| machine.uuid(index)),
    );
    kubelet.until_resources(&[]).await;
    plugin.stop().await;
}

#[tokio::test]
async fn a_plugin_that_offers_our_own_resource_is_taken_for_us() {
    let machine = Machine::new("t4", 1);
    let mut kubelet = Kubelet::start(&machine.kubelet_directory());
    let counted = Counted::default();
    counted.start(&machine.pod_resources_socket());
    counted.offers("nvidia.com/gpu", &[machine.uuid(0)]);
    counted.holds("nvidia.com/gpu", &[machine.uuid(0)]);
    // Pods that NVIDIA's plugin gave their cards keep them when ours takes its place.
    let plugin = machine.serve(&["--resource", "nvidia.com/gpu"]);
    kubelet.until_resources(&[("nvidia.com/gpu", 1)]).await;
    plugin.stop().await;
}

struct Looking {
    conflicts: watch::Receiver<Conflicts>,
    _stop: tokio_util::sync::DropGuard,
}

impl Looking {
    async fn until(&mut self, uuid: &str, resource: Option<&str>) {
        let waited = self
            .conflicts
            .wait_for(|conflicts| conflicts.of(uuid) == resource);
        let found = timeout(PATIENCE, waited).await;
        assert!(found.is_ok(), "never {resource:?}");
    }
}

async fn look_out(socket: &Path, gone: Duration) -> Looking {
    let pace = Pace {
        every: Duration::from_millis(20),
        first: Duration::from_millis(500),
        gone,
    };
    let client = Client::new(socket, Duration::from_secs(5));
    let mut lookout = Lookout::new(Resource::default(), client, pace);
    let (sender, conflicts) = watch::channel(lookout.first().await);
    let stop = CancellationToken::new();
    tokio::spawn(lookout.run(sender, stop.clone()));
    Looking {
        conflicts,
        _stop: stop.drop_guard(),
    }
}

#[tokio::test]
async fn a_conflict_ends_when_plugin_and_pods_were_gone_for_a_while() {
    let directory = tempfile::tempdir().unwrap();
    let socket = directory.path().join("kubelet.sock");
    let counted = Counted::default();
    counted.start(&socket);
    let id = ["GPU-1".to_owned()];
    counted.offers("nvidia.com/gpu", &id);
    let gone = Duration::from_millis(300);
    let mut looking = look_out(&socket, gone).await;
    // Known before anything would be offered.
    assert_eq!(
        looking.conflicts.borrow().of("GPU-1"),
        Some("nvidia.com/gpu")
    );
    // The plugin is gone, and a pod of it is not.
    counted.holds("nvidia.com/gpu", &id);
    counted.offers("", &[]);
    tokio::time::sleep(gone * 2).await;
    assert_eq!(
        looking.conflicts.borrow().of("GPU-1"),
        Some("nvidia.com/gpu")
    );
    let ended = Instant::now();
    counted.holds("", &[]);
    looking.until("GPU-1", None).await;
    assert!(ended.elapsed() * 2 > gone);
    counted.offers("example.com/gpu", &id);
    looking.until("GPU-1", Some("example.com/gpu")).await;
}

#[tokio::test]
async fn a_kubelet_that_does_not_say_holds_nothing_up() {
    let directory = tempfile::tempdir().unwrap();
    let began = Instant::now();
    let looking = look_out(&directory.path().join("none.sock"), PATIENCE).await;
    assert_eq!(*looking.conflicts.borrow(), Conflicts::default());
    // Somebody listens and never answers.
    let socket = directory.path().join("silent.sock");
    let _listener = UnixListener::bind(&socket).unwrap();
    let looking = look_out(&socket, PATIENCE).await;
    assert_eq!(*looking.conflicts.borrow(), Conflicts::default());
    assert!(began.elapsed() < Duration::from_secs(5));
}
