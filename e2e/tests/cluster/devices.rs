//! Who can open which GPU's device node.

use std::collections::BTreeMap;

use creo_e2e::{cluster::DRIVER_ROOT, command};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{LogParams, PostParams};
use serde_json::{Value, json};

use crate::shared::{Space, beside_others, eventually};

/// Opens every GPU's device node that it can reach, and prints for each device
/// number what came of it. The nodes below /host-dev are those of the whole
/// machine, reached by a mount; those below /tmp/made it made itself; those in
/// /dev are the container's own.
const OPEN_ALL: &str = r#"
import errno, glob, json, os, stat
found = {}
def made():
    os.makedirs("/tmp/made", exist_ok=True)
    for path in glob.glob("/host-dev/nvidia[0-9]*"):
        try:
            os.mknod(path.replace("/host-dev", "/tmp/made"), stat.S_IFCHR | 0o666, os.stat(path).st_rdev)
        except FileExistsError:
            pass
        except OSError as error:
            found[path.replace("/host-dev", "/tmp/made")] = ["", "mknod " + errno.errorcode[error.errno]]
made()
for folder in ("/dev", "/host-dev", "/tmp/made"):
    for path in sorted(glob.glob(folder + "/nvidia[0-9]*")):
        number = os.stat(path).st_rdev
        try:
            os.close(os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK))
            result = "opens"
        except OSError as error:
            result = errno.errorcode[error.errno]
        found[path] = [f"{os.major(number)}:{os.minor(number)}", result]
print(json.dumps(found))
"#;

/// Each path with its device number and what came of opening it.
type Found = BTreeMap<String, (String, String)>;

fn results(found: &Found, folder: &str) -> Vec<String> {
    found
        .iter()
        .filter(|(path, _)| path.starts_with(folder))
        .map(|(_, (_, result))| result.clone())
        .collect()
}

async fn run(space: &Space, name: &str, image: &str, gpus: u32, security: Value) -> Found {
    let mut container = json!({
        "name": "open",
        "image": image,
        "imagePullPolicy": "Never",
        "command": ["python3", "-c", OPEN_ALL],
        "securityContext": security,
        "volumeMounts": [{ "name": "host-dev", "mountPath": "/host-dev" }],
    });
    if gpus > 0 {
        container["resources"] = json!({ "limits": { "creo.cloud/gpu": gpus.to_string() } });
    }
    let pod: Pod = serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "restartPolicy": "Never",
            "nodeSelector": { "kubernetes.io/hostname": "gpu-1" },
            "containers": [container],
            "volumes": [{ "name": "host-dev", "hostPath": { "path": format!("{DRIVER_ROOT}/dev") } }],
        },
    }))
    .expect("it is a pod");
    eventually(
        "the pod is created",
        async || {
            space
                .pods()
                .create(&PostParams::default(), &pod)
                .await
                .map_err(|error| error.to_string())
        },
        |_| true,
    )
    .await;
    eventually(
        "the pod has ended",
        async || {
            space
                .pods()
                .get(name)
                .await
                .map_err(|error| error.to_string())
        },
        |pod| {
            pod.status
                .as_ref()
                .and_then(|status| status.phase.as_deref())
                == Some("Succeeded")
        },
    )
    .await;
    let log = space
        .pods()
        .logs(name, &LogParams::default())
        .await
        .expect("there is a log");
    serde_json::from_str(&log).expect("the log is what the script prints")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_opens_its_own_gpu_and_the_device_cgroup_refuses_every_other() {
    let hold = beside_others().await;
    let space = Space::privileged(&hold.client).await;
    let image = hold
        .images
        .reference("creo-engine-llama-cpp")
        .expect("the engine's image is built");
    let plain = json!({ "runAsUser": 0, "capabilities": { "drop": ["ALL"], "add": ["MKNOD"] } });

    let one = run(&space, "one-gpu", image, 1, plain.clone()).await;
    assert_eq!(
        results(&one, "/dev/"),
        ["opens"],
        "its own, by its usual name: {one:?}"
    );
    let own = &one
        .iter()
        .find(|(path, _)| path.starts_with("/dev/"))
        .expect("it has one")
        .1
        .0;
    for (path, (number, result)) in one.iter().filter(|(path, _)| !path.starts_with("/dev/")) {
        let expected = if number == own { "opens" } else { "EPERM" };
        assert_eq!(result, expected, "{path} {number}, its own is {own}");
    }
    for folder in ["/host-dev/", "/tmp/made/"] {
        assert_eq!(results(&one, folder).len(), 8, "{folder}");
    }

    let none = run(&space, "no-gpu", image, 0, plain).await;
    assert!(
        results(&none, "/dev/").is_empty(),
        "who asks for no GPU sees none: {none:?}"
    );
    assert_eq!(results(&none, "/host-dev/"), vec!["EPERM"; 8]);
    assert_eq!(results(&none, "/tmp/made/"), vec!["EPERM"; 8]);

    // Without the protection it looks like this; so the refusals above are its work.
    let control = run(
        &space,
        "control",
        image,
        0,
        json!({ "privileged": true, "runAsUser": 0 }),
    )
    .await;
    assert_eq!(results(&control, "/host-dev/"), vec!["opens"; 8]);
    assert_eq!(results(&control, "/tmp/made/"), vec!["opens"; 8]);
    space.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_replica_has_one_gpu_of_its_own() {
    let hold = beside_others().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 4).await;
    space.wait_ready("chat").await;
    let mut taken = BTreeMap::<(String, String), String>::new();
    for pod in space.pods_of("chat").await {
        let name = pod.metadata.name.expect("a pod has a name");
        let mut kubectl = hold.cluster.command("kubectl").expect("there is kubectl");
        kubectl.args([
            "--namespace",
            &space.name,
            "exec",
            &name,
            "--",
            "python3",
            "-c",
            OPEN_ALL,
        ]);
        let output = command::output(&mut kubectl).expect("the script runs in the replica");
        let found: Found =
            serde_json::from_str(&output).expect("the output is what the script prints");
        assert_eq!(results(&found, "/dev/"), ["opens"], "{found:?}");
        let (number, _) = found.into_values().next().expect("it has one");
        let node = pod
            .spec
            .and_then(|spec| spec.node_name)
            .expect("it is on a node");
        let before = taken.insert((node, number), name.clone());
        assert_eq!(before, None, "{name} has a GPU that another replica has");
    }
    assert_eq!(taken.len(), 4);
    space.remove().await;
}
