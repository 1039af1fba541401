//! The clusters that the tests share, and what they do with it again and again.

use std::{
    fmt::Debug,
    path::PathBuf,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use creo_api::{AgentDeployment, CreoNode, Placement, creo_node::conditions, labels};
use creo_e2e::{
    cluster::{Cluster, ClusterSpec, GpuLayout, Gpus, ImageSet, Tuning},
    installation,
    progress::Progress,
    samples,
};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use kube::{
    Api, Client, ResourceExt,
    api::{DeleteParams, ListParams, PostParams},
};
use tokio::sync::{OnceCell, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The longest that anything in a test may take.
pub const PATIENCE: Duration = Duration::from_mins(2);

/// Two clusters, because most of a test is waiting: for a lease to end, for a node to be
/// missed. The tests that need one for themselves take whichever is free.
static PLACES: [Place; 2] = [Place::new("a"), Place::new("b")];
static IMAGES: OnceCell<ImageSet> = OnceCell::const_new();
static NAMESPACES: AtomicU32 = AtomicU32::new(0);

/// Where a cluster runs from its first use until this process ends.
struct Place {
    name: &'static str,
    cluster: OnceCell<Cluster>,
    gate: RwLock<()>,
}

/// A test's hold on a cluster.
pub struct Hold<G> {
    /// The cluster as it is now: tests add nodes.
    pub cluster: Cluster,
    /// The images that were built for it.
    pub images: &'static ImageSet,
    /// A client of the test's own runtime, with every right.
    pub client: Client,
    _gate: G,
}

/// A cluster, beside other tests.
pub async fn beside_others() -> Hold<RwLockReadGuard<'static, ()>> {
    let [place, _] = &PLACES;
    place.hold(place.gate.read().await).await
}

/// A cluster for one test alone.
pub async fn alone() -> Hold<RwLockWriteGuard<'static, ()>> {
    let [shared, other] = &PLACES;
    let (place, gate) = tokio::select! {
        biased;
        gate = other.gate.write() => (other, gate),
        gate = shared.gate.write() => (shared, gate),
    };
    place.hold(gate).await
}

impl Place {
    const fn new(name: &'static str) -> Self {
        Self {
            name,
            cluster: OnceCell::const_new(),
            gate: RwLock::const_new(()),
        }
    }

    async fn hold<G>(&self, gate: G) -> Hold<G> {
        let images = IMAGES
            .get_or_init(async || {
                ImageSet::build(&Progress::stderr()).expect("the images are built")
            })
            .await;
        let cluster = self.cluster.get_or_init(|| start(self.name, images)).await;
        let cluster = Cluster::open(&cluster.record().name).expect("the cluster runs");
        let client = cluster.client().await.expect("there is a client");
        Hold {
            cluster,
            images,
            client,
            _gate: gate,
        }
    }
}

async fn start(name: &str, images: &ImageSet) -> Cluster {
    let progress = Progress::stderr();
    let spec = ClusterSpec {
        name: format!("test-{name}-{}", std::process::id()),
        nodes: 2,
        gpus_per_node: 8,
        gpu_profile: "rtx-4090".to_owned(),
        gpu_layout: GpuLayout::Flat,
        gpus: Gpus::StandIn,
        api_port: 0,
        program: PathBuf::from(env!("CARGO_BIN_EXE_creo-e2e")),
        detached: false,
        tuning: Tuning::default(),
    };
    let mut cluster = Cluster::start(&spec, &progress)
        .await
        .expect("the cluster starts");
    cluster
        .import_images(images)
        .expect("the images are imported");
    installation::install(&cluster, &installation::chart(), images, &impatient())
        .expect("the chart is installed");
    wait_for_offers(&cluster).await;
    cluster
}

/// Waits until every node is offered and can be used.
async fn wait_for_offers(cluster: &Cluster) {
    let client = cluster.client().await.expect("there is a client");
    let offers: Api<CreoNode> = Api::all(client);
    eventually(
        "every node is offered",
        async || {
            let all = ListParams::default();
            offers.list(&all).await.map_err(|error| error.to_string())
        },
        |offers| offers.iter().filter(|offer| is_usable(offer)).count() == cluster.nodes().len(),
    )
    .await;
}

fn is_usable(offer: &CreoNode) -> bool {
    offer
        .status
        .iter()
        .flat_map(|status| &status.conditions)
        .any(|condition| condition.type_ == conditions::READY && condition.status == "True")
}

/// Values with which what the operator waits for comes soon.
pub fn impatient() -> Vec<String> {
    [
        "operator.unschedulableTimeout=10s",
        "operator.leaseDuration=5s",
        // Any configuration, so that there is one to be changed.
        "devicePlugin.config.unlike=byModel",
    ]
    .map(str::to_owned)
    .to_vec()
}

/// A namespace of a test's own, under Pod Security "restricted".
pub struct Space {
    pub name: String,
    pub client: Client,
}

impl Space {
    pub async fn restricted(client: &Client) -> Self {
        Self::create(client, "restricted").await
    }

    pub async fn privileged(client: &Client) -> Self {
        Self::create(client, "privileged").await
    }

    async fn create(client: &Client, level: &str) -> Self {
        let name = format!("test-{}", NAMESPACES.fetch_add(1, Ordering::Relaxed));
        let namespace: Namespace = serde_json::from_value(serde_json::json!({
            "metadata": {
                "name": name,
                "labels": { "pod-security.kubernetes.io/enforce": level },
            },
        }))
        .expect("it is a namespace");
        Api::<Namespace>::all(client.clone())
            .create(&PostParams::default(), &namespace)
            .await
            .expect("the namespace is created");
        Self {
            name,
            client: client.clone(),
        }
    }

    pub fn deployments(&self) -> Api<AgentDeployment> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn placements(&self) -> Api<Placement> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn pods(&self) -> Api<Pod> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub fn services(&self) -> Api<Service> {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// Creates the sample's deployment with so many replicas.
    pub async fn deploy(&self, name: &str, replicas: i32) -> AgentDeployment {
        let mut wish = samples::tiny_chat(name).expect("the sample is good");
        wish.spec.replicas = replicas;
        self.apply_new(&wish).await
    }

    pub async fn apply_new(&self, wish: &AgentDeployment) -> AgentDeployment {
        self.deployments()
            .create(&PostParams::default(), wish)
            .await
            .expect("the deployment is admitted")
    }

    /// Waits until a deployment fulfils a condition; the panic shows the last status.
    pub async fn wait(
        &self,
        name: &str,
        what: &str,
        condition: impl Fn(&AgentDeployment) -> bool,
    ) -> AgentDeployment {
        let api = self.deployments();
        eventually(
            what,
            async || api.get(name).await.map_err(|error| error.to_string()),
            |deployment| condition(deployment),
        )
        .await
    }

    pub async fn wait_ready(&self, name: &str) -> AgentDeployment {
        self.wait(name, "the deployment is ready", |deployment| {
            samples::is_ready(Some(deployment))
        })
        .await
    }

    pub async fn list_placements(&self) -> Vec<Placement> {
        self.placements()
            .list(&ListParams::default())
            .await
            .expect("placements are listed")
            .items
    }

    /// The pods of a deployment that are not on their way out.
    pub async fn pods_of(&self, deployment: &str) -> Vec<Pod> {
        let selector = labels::selector_text(&labels::selector(deployment));
        let list = self
            .pods()
            .list(&ListParams::default().labels(&selector))
            .await;
        list.expect("pods are listed")
            .items
            .into_iter()
            .filter(|pod| pod.metadata.deletion_timestamp.is_none())
            .collect()
    }

    /// Removes the namespace, and waits until it is gone with its GPUs free.
    pub async fn remove(self) {
        let api: Api<Namespace> = Api::all(self.client.clone());
        api.delete(&self.name, &DeleteParams::default())
            .await
            .expect("the namespace is deleted");
        eventually(
            "the namespace is gone",
            async || {
                api.get_opt(&self.name)
                    .await
                    .map_err(|error| error.to_string())
            },
            Option::is_none,
        )
        .await;
    }
}

/// Looks until a condition holds; the panic shows what was seen last.
pub async fn eventually<T: Debug>(
    what: &str,
    mut look: impl AsyncFnMut() -> Result<T, String>,
    condition: impl Fn(&T) -> bool,
) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = look().await;
        if let Ok(value) = &seen
            && condition(value)
        {
            return seen.expect("it was looked at");
        }
        assert!(
            Instant::now() < deadline,
            "not within {PATIENCE:?}: {what}; last seen: {seen:#?}"
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

pub fn names<K: kube::Resource>(objects: &[K]) -> Vec<String> {
    objects.iter().map(ResourceExt::name_any).collect()
}

/// Removes a node with all that the API server knows of it.
pub async fn take_away(cluster: &Cluster, client: &Client, node: &str) {
    cluster.power_cut(node).expect("the node is switched off");
    let nodes: Api<Node> = Api::all(client.clone());
    nodes
        .delete(node, &DeleteParams::default())
        .await
        .expect("the node is removed");
    let creo_nodes: Api<creo_api::CreoNode> = Api::all(client.clone());
    creo_nodes
        .delete(node, &DeleteParams::default())
        .await
        .expect("the offer is removed");
    // Nobody is left who could say that its pods have ended.
    let pods: Api<Pod> = Api::all(client.clone());
    let on_it = ListParams::default().fields(&format!("spec.nodeName={node}"));
    let at_once = DeleteParams::default().grace_period(0);
    eventually(
        "its pods are gone",
        async || {
            let left = pods.list(&on_it).await.map_err(|error| error.to_string())?;
            for pod in &left {
                let namespace = pod.namespace().expect("a pod has a namespace");
                let api: Api<Pod> = Api::namespaced(client.clone(), &namespace);
                // The controller manager may have been faster.
                let _ = api.delete(&pod.name_any(), &at_once).await;
            }
            Ok(names(&left.items))
        },
        Vec::is_empty,
    )
    .await;
    eventually(
        "the offer is gone",
        async || {
            creo_nodes
                .get_opt(node)
                .await
                .map_err(|error| error.to_string())
        },
        Option::is_none,
    )
    .await;
}
