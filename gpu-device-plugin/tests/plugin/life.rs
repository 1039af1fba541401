//! The life of registrations, with kubelets of every manner.

use std::fs;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use creo_gpu_device_plugin::health::{Finding, Health};
use creo_gpu_device_plugin::kubelet::api::{
    AllocateRequest, ContainerAllocateRequest, ContainerPreferredAllocationRequest, Empty,
    PreferredAllocationRequest,
};
use creo_gpu_device_plugin::kubelet::offer::{Giving, Offer, Offers};
use creo_gpu_device_plugin::kubelet::registrar::Registrar;
use creo_gpu_device_plugin::kubelet::standing::Standing;
use creo_gpu_device_plugin::metrics::Metrics;
use creo_gpu_device_plugin::resource::Resource;
use creo_gpu_device_plugin::unit::{Part, Unit};
use creo_process::probes::Readiness;
use creo_process::prometheus::Registry;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::kubelet::{Kubelet, Manner, wipe};
use crate::machine::PATIENCE;

/// How soon a plugin has to be registered after the kubelet's socket is there again.
const SOON: Duration = Duration::from_secs(2);

fn unit(number: usize, health: Health) -> Unit {
    Unit {
        id: format!("GPU-{number}"),
        gpu: format!("GPU-{number}"),
        part: Part::Whole,
        numa_node: u32::try_from(number % 2).ok(),
        memory_bytes: 7,
        health,
    }
}

/// An offer of so many units, the first of which is of this health.
fn offer(count: usize, first: &Health) -> Offer {
    let units = (0..count).map(|number| {
        let health = if number == 0 {
            first.clone()
        } else {
            Health::healthy()
        };
        unit(number, health)
    });
    let names = (0..count).map(|number| format!("GPU-{number}"));
    let giving = Giving {
        cdi_names: Some(
            names
                .map(|uuid| (uuid.clone(), format!("creo.cloud/gpu={uuid}")))
                .collect(),
        ),
        ..Giving::default()
    };
    Offer::new(units.collect(), &[].into(), Arc::new(giving))
}

/// Registrations without a driver behind them.
struct Plugin {
    directory: TempDir,
    offers: watch::Sender<Offers>,
    readiness: Readiness,
    stop: CancellationToken,
    registrar: JoinHandle<()>,
}

impl Plugin {
    /// Offers so many units of the usual resource.
    fn offering(count: usize) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let offers = Offers::from([(Resource::default(), offer(count, &Health::healthy()))]);
        let (offers, followed) = watch::channel(offers);
        let readiness = Readiness::new();
        let registrar = Registrar {
            directory: directory.path().to_owned(),
            offers: followed,
            metrics: Metrics::register(&Registry::new()).unwrap(),
            standing: Standing::new(readiness.check("kubelet", "not yet")),
        };
        let stop = CancellationToken::new();
        Self {
            registrar: tokio::spawn(registrar.run(stop.clone())),
            directory,
            offers,
            readiness,
            stop,
        }
    }

    fn directory(&self) -> &Path {
        self.directory.path()
    }

    async fn until_said(&self, text: &str) {
        let waiting = async {
            while !self.readiness.report().contains(text) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let in_time = timeout(PATIENCE, waiting).await.is_ok();
        assert!(in_time, "never {text:?}: {}", self.readiness.report());
    }

    /// Starts a kubelet, and sees that the plugin registers with it soon.
    async fn registers_soon(&self) -> Kubelet {
        let began = Instant::now();
        let mut kubelet = Kubelet::start(self.directory());
        kubelet.until(|seen| !seen.registrations.is_empty()).await;
        assert!(began.elapsed() < SOON, "{:?}", began.elapsed());
        kubelet
    }

    async fn stop(self) {
        self.stop.cancel();
        timeout(PATIENCE, self.registrar).await.unwrap().unwrap();
        let sockets = fs::read_dir(self.directory.path()).unwrap();
        let own = sockets
            .map(|entry| entry.unwrap())
            .filter(|entry| entry.file_type().unwrap().is_socket())
            .filter(|entry| entry.file_name() != "kubelet.sock");
        assert_eq!(own.count(), 0);
    }
}

#[tokio::test]
async fn a_kubelet_that_refuses_is_asked_again_and_its_successor_at_once() {
    let plugin = Plugin::offering(1);
    let refusing = Kubelet::start_as(plugin.directory(), Manner::Refuses);
    plugin
        .until_said("the kubelet refused the plugin: requested API version is not known")
        .await;
    // Long enough for the pauses to have grown beyond what a new kubelet may wait.
    sleep(Duration::from_secs(6)).await;
    drop(refusing);
    drop(plugin.registers_soon().await);
    plugin.stop().await;
}

#[tokio::test]
async fn a_kubelet_that_hangs_does_not_keep_the_plugin_from_its_successor() {
    let plugin = Plugin::offering(1);
    let hanging = Kubelet::start_as(plugin.directory(), Manner::Hangs);
    sleep(Duration::from_millis(500)).await;
    let _registered = plugin.registers_soon().await;
    drop(hanging);
    plugin.stop().await;
}

#[tokio::test]
async fn a_kubelet_that_hangs_is_given_up_and_asked_again() {
    let plugin = Plugin::offering(1);
    let _hanging = Kubelet::start_as(plugin.directory(), Manner::Hangs);
    plugin.until_said("missing: kubelet: the kubelet ").await;
    plugin.stop().await;
}

#[tokio::test]
async fn a_kubelet_that_dials_late_is_waited_for() {
    let plugin = Plugin::offering(2);
    let manner = Manner::DialsAfter(Duration::from_secs(3));
    let mut kubelet = Kubelet::start_as(plugin.directory(), manner);
    kubelet.until_healthy(2).await;
    assert_eq!(kubelet.seen.borrow().registrations.len(), 1);
    plugin.stop().await;
}

#[tokio::test]
async fn a_kubelet_that_never_dials_is_registered_with_again() {
    let plugin = Plugin::offering(1);
    let manner = Manner::DialsAfter(PATIENCE * 10);
    let _kubelet = Kubelet::start_as(plugin.directory(), manner);
    // Somebody else's socket, which may be why.
    let _other = UnixListener::bind(plugin.directory().join("nvidia-gpu.sock")).unwrap();
    plugin
        .until_said("does not listen to the plugin; if one of nvidia-gpu.sock registers")
        .await;
    fs::remove_file(plugin.directory().join("nvidia-gpu.sock")).unwrap();
    plugin.stop().await;
}

#[tokio::test]
async fn a_wiped_a_replaced_and_a_missing_directory_are_survived() {
    let plugin = Plugin::offering(1);
    let mut kubelet = plugin.registers_soon().await;
    kubelet.until_healthy(1).await;
    // Somebody takes the place of the plugin's socket.
    let socket = plugin.directory().join("creo.cloud-gpu.sock");
    fs::remove_file(&socket).unwrap();
    let _other = UnixListener::bind(&socket).unwrap();
    kubelet.until(|seen| seen.registrations.len() == 2).await;
    kubelet.until_healthy(1).await;
    // Everything is wiped, and then the directory itself is gone.
    drop(kubelet);
    wipe(plugin.directory());
    drop(plugin.registers_soon().await);
    fs::remove_dir_all(plugin.directory()).unwrap();
    plugin.until_said("kubelet.sock is not in").await;
    fs::create_dir(plugin.directory()).unwrap();
    let mut kubelet = plugin.registers_soon().await;
    kubelet.until_healthy(1).await;
    plugin.stop().await;
}

#[tokio::test]
async fn whoever_listens_hears_the_newest_list_however_slowly() {
    let plugin = Plugin::offering(8);
    let mut kubelet = plugin.registers_soon().await;
    kubelet.until_healthy(8).await;
    let mut slow = kubelet.plugin().await;
    let mut slow = slow.list_and_watch(Empty {}).await.unwrap().into_inner();
    let ill = Health::of([Finding::Lost]);
    for flip in 0..10_001 {
        let first = if flip % 2 == 0 {
            ill.clone()
        } else {
            Health::healthy()
        };
        let offers = Offers::from([(Resource::default(), offer(8, &first))]);
        plugin.offers.send_replace(offers);
        if flip % 100 == 0 {
            tokio::task::yield_now().await;
        }
    }
    // The kubelet heard it on its own stream meanwhile.
    kubelet.until_healthy(7).await;
    let mut read = 0;
    loop {
        let list = timeout(PATIENCE, slow.message()).await.unwrap().unwrap();
        read += 1;
        let devices = list.unwrap().devices;
        assert_eq!(devices.len(), 8);
        let nodes = &devices[3].topology.as_ref().unwrap().nodes;
        assert_eq!(nodes.iter().map(|node| node.id).collect::<Vec<_>>(), [1]);
        if devices[0].health == "Unhealthy" && read > 1 {
            break;
        }
    }
    // What was not read was not kept: flow control lets a few lists through, not thousands.
    assert!(read < 9_000, "{read} lists");
    plugin.stop().await;
}

#[tokio::test]
async fn resources_come_and_go_each_with_its_own_registration() {
    let plugin = Plugin::offering(1);
    let mut kubelet = plugin.registers_soon().await;
    let gpu = Resource::default();
    let shared = gpu.sibling("gpu.shared".to_owned());
    let healthy = Health::healthy();
    plugin.offers.send_replace(Offers::from([
        (gpu.clone(), offer(1, &healthy)),
        (shared.clone(), offer(3, &healthy)),
    ]));
    kubelet
        .until_resources(&[("creo.cloud/gpu", 1), ("creo.cloud/gpu.shared", 3)])
        .await;
    plugin
        .offers
        .send_replace(Offers::from([(shared, offer(3, &healthy))]));
    kubelet
        .until_resources(&[("creo.cloud/gpu.shared", 3)])
        .await;
    assert!(!plugin.directory().join("creo.cloud-gpu.sock").exists());
    assert!(plugin.readiness.is_ready());
    plugin.offers.send_replace(Offers::new());
    kubelet.until_resources(&[]).await;
    plugin
        .until_said("missing: kubelet: no GPU is offered")
        .await;
    // Back again, and no kubelet has to start for it.
    plugin
        .offers
        .send_replace(Offers::from([(gpu, offer(2, &healthy))]));
    kubelet.until_resources(&[("creo.cloud/gpu", 2)]).await;
    plugin.stop().await;
}

#[tokio::test]
async fn with_128_devices_every_answer_is_fast() {
    let plugin = Plugin::offering(128);
    let mut kubelet = plugin.registers_soon().await;
    let list = kubelet.until_healthy(128).await;
    let all: Vec<String> = list.into_keys().collect();
    let mut client = kubelet.plugin().await;
    for size in [1, 2, 8, 64, 127] {
        let wish = ContainerPreferredAllocationRequest {
            available_device_ids: all.clone(),
            must_include_device_ids: vec!["GPU-77".to_owned()],
            allocation_size: size,
        };
        let began = Instant::now();
        let answer = client
            .get_preferred_allocation(PreferredAllocationRequest {
                container_requests: vec![wish],
            })
            .await
            .unwrap()
            .into_inner();
        // A debug build on a busy machine; a release build takes milliseconds.
        assert!(began.elapsed() < Duration::from_secs(2), "{size}");
        let chosen = &answer.container_responses[0].device_ids;
        assert_eq!(i32::try_from(chosen.len()), Ok(size));
        assert!(chosen.contains(&"GPU-77".to_owned()));
        let request = AllocateRequest {
            container_requests: vec![ContainerAllocateRequest {
                device_ids: chosen.clone(),
            }],
        };
        let given = client.allocate(request).await.unwrap().into_inner();
        let given = &given.container_responses[0];
        assert_eq!(given.cdi_devices.len(), chosen.len());
        assert_eq!(
            given.envs["CREO_GPU_MEMORY_BYTES"],
            vec!["7"; chosen.len()].join(",")
        );
    }
    plugin.stop().await;
}
