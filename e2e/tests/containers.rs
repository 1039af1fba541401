//! What our CDI specification does to a container: NVIDIA's runtime, which applies it with the
//! CDI project's own library, and runc; and what NVIDIA's generator writes of the same driver.

#![allow(
    clippy::expect_used,
    clippy::panic,
    clippy::unwrap_used,
    reason = "a test ends by a panic"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Read as _;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use creo_e2e::components::{self, Component, NVIDIA_CTK, NVIDIA_RUNTIME};
use creo_e2e::progress::Progress;
use creo_gpu_device_plugin::cdi::{Injection, Place, Source};
use creo_gpu_device_plugin::inventory::Gpu;
use nix::sys::stat::{Mode, SFlag, makedev, mknod};
use nvidia_ml::install::{built_library, install_root};
use nvidia_ml::state::State;
use serde_json::{Value, json};
use tempfile::TempDir;

/// Debian's name of this architecture.
const MULTIARCH: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-linux-gnu"
} else {
    "x86_64-linux-gnu"
};
/// Where the stand-in for the driver has its libraries.
const DRIVER_LIBRARIES: &str = "usr/lib/x86_64-linux-gnu";

/// Loads libraries by the names that programs use, and asks the driver for its cards.
const PROBE: &str = r#"
#include <dlfcn.h>
#include <stdio.h>
int main(void) {
    const char *names[] = {"libcuda.so.1", "libcuda.so", "libnvidia-ml.so.1"};
    void *library = 0;
    for (int i = 0; i < 3; i++) {
        library = dlopen(names[i], RTLD_NOW);
        if (!library) { printf("%s\n", dlerror()); return 1; }
    }
    int (*init)(void) = (int (*)(void))dlsym(library, "nvmlInit_v2");
    int (*count)(unsigned *) = (int (*)(unsigned *))dlsym(library, "nvmlDeviceGetCount_v2");
    unsigned cards = 0;
    int initialised = init(), counted = count(&cards);
    printf("init %d, count %d, %u cards\n", initialised, counted, cards);
    return 0;
}
"#;

/// A host with a driver and our specification of it.
struct Host {
    root: TempDir,
    gpu: Gpu,
}

impl Host {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let state = State::from_profile("t4", 1, "host-1").unwrap();
        let driver = root.path().join("driver");
        install_root(&built_library().unwrap(), &driver, &state).unwrap();
        fs::create_dir(driver.join("dev")).unwrap();
        for (number, name) in (41..).zip(["nvidia0", "nvidiactl", "nvidia-uvm"]) {
            // A terminal of the machine that nobody uses: it can be opened.
            let path = driver.join("dev").join(name);
            mknod(
                &path,
                SFlag::S_IFCHR,
                Mode::from_bits_truncate(0o666),
                makedev(4, number),
            )
            .expect("root makes device nodes; `make test` runs as root");
        }
        let gpu = Gpu {
            uuid: state.gpus[0].uuid.clone(),
            ..Gpu::default()
        };
        let host = Self { root, gpu };
        let injection = Injection {
            place: Place {
                root: host.driver(),
                mount: host.driver(),
                procfs: host.path("proc"),
            },
            kind: "creo.cloud/gpu".parse().unwrap(),
            source: Source::Own(host.path("cdi")),
        };
        assert!(injection.prepare(&[&host.gpu]).unwrap().is_new);
        host
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn driver(&self) -> PathBuf {
        self.path("driver")
    }

    fn specification(&self) -> Value {
        let text = fs::read(self.path("cdi/creo.cloud-gpu.json")).unwrap();
        serde_json::from_slice(&text).unwrap()
    }

    /// Runs the command in a container of this image with the GPU, or without any.
    fn run(&self, image: &Path, command: &[&str], with_gpu: bool) -> String {
        let config = self.path("config.toml");
        let text = format!(
            "[nvidia-container-runtime]\nmode = \"cdi\"\nruntimes = [\"runc\"]\nlog-level = \"error\"\n\
             [nvidia-container-runtime.modes.cdi]\nspec-dirs = [{:?}]\n",
            self.path("cdi").to_str().unwrap()
        );
        fs::write(&config, text).unwrap();
        let bundle = tempfile::tempdir_in(self.root.path()).unwrap();
        let visible = if with_gpu {
            format!("creo.cloud/gpu={}", self.gpu.uuid)
        } else {
            "void".to_owned()
        };
        let state = State::path_in(&self.driver().join(DRIVER_LIBRARIES));
        let spec = container(image, command, &visible, &state);
        fs::write(bundle.path().join("config.json"), spec.to_string()).unwrap();
        let name = bundle.path().file_name().unwrap().to_str().unwrap();
        let name = format!("creo{}", name.trim_start_matches('.'));
        // The container writes where its maker writes, until its end.
        let (mut output, writer) = std::io::pipe().unwrap();
        let mut create = program(NVIDIA_RUNTIME, "nvidia-container-runtime");
        create
            .env("NVIDIA_CTK_CONFIG_FILE_PATH", &config)
            .arg("--root")
            .arg(self.path("runc"))
            .args(["create", "--bundle"])
            .arg(bundle.path())
            .arg(&name)
            .stdin(Stdio::null())
            .stdout(writer.try_clone().unwrap())
            .stderr(writer);
        let created = create.status().unwrap();
        // It holds the writing end of the pipe.
        drop(create);
        if created.success() {
            self.runc(&["start", &name]);
        }
        let mut said = String::new();
        output.read_to_string(&mut said).unwrap();
        if created.success() {
            self.runc(&["delete", "--force", &name]);
        }
        said
    }

    fn runc(&self, arguments: &[&str]) {
        let mut runc = Command::new("runc");
        runc.arg("--root").arg(self.path("runc")).args(arguments);
        assert!(runc.status().unwrap().success());
    }
}

fn program(component: Component, name: &str) -> Command {
    let programs = components::ensure(&[component], &Progress::silent()).unwrap();
    Command::new(programs.path(name).unwrap())
}

/// An OCI container of this image, read-only and with no more rights than any pod's.
fn container(image: &Path, command: &[&str], visible: &str, state: &Path) -> Value {
    let beside = |directory: &str| {
        // The stand-in reads what it has from beside itself, as no real driver does.
        json!({
            "destination": format!("{directory}/{}", state.file_name().unwrap().to_str().unwrap()),
            "source": state, "type": "bind", "options": ["bind", "ro"],
        })
    };
    json!({
        "ociVersion": "1.0.2",
        "root": {"path": image, "readonly": true},
        "process": {
            "user": {"uid": 1000, "gid": 1000},
            "args": command,
            "env": ["PATH=/usr/bin", format!("NVIDIA_VISIBLE_DEVICES={visible}")],
            "cwd": "/",
            "noNewPrivileges": true,
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
            beside(&format!("/usr/lib/{MULTIARCH}")),
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [
                {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}, {"type": "uts"}, {"type": "network"},
            ],
        },
    })
}

/// The files of an image of Debian's kind: a merged `/usr`, glibc, the probe, and no list of
/// libraries. It has an old driver of its own, as some images do.
fn image(host: &Host) -> PathBuf {
    let image = host.path("image");
    let libraries = format!("usr/lib/{MULTIARCH}");
    for directory in [&*libraries, "usr/bin", "usr/lib64", "proc", "dev"] {
        fs::create_dir_all(image.join(directory)).unwrap();
    }
    for name in ["bin", "lib", "lib64"] {
        symlink(format!("usr/{name}"), image.join(name)).unwrap();
    }
    let source = host.path("probe.c");
    fs::write(&source, PROBE).unwrap();
    let built = Command::new("cc")
        .arg(&source)
        .arg("-o")
        .arg(image.join("usr/bin/probe"))
        .arg("-ldl")
        .status()
        .unwrap();
    assert!(built.success());
    fs::copy("/bin/sh", image.join("usr/bin/sh")).unwrap();
    fs::copy("/bin/ls", image.join("usr/bin/ls")).unwrap();
    let stand_in = built_library().unwrap();
    let programs = [
        image.join("usr/bin/probe"),
        stand_in,
        "/bin/ls".into(),
        "/bin/sh".into(),
    ];
    for path in programs.iter().flat_map(|program| needed(program)) {
        let name = path.file_name().unwrap();
        let is_linker = name.to_str().unwrap().starts_with("ld-linux");
        let directory = match (is_linker, cfg!(target_arch = "aarch64")) {
            (true, false) => "usr/lib64",
            (true, true) => "usr/lib",
            (false, _) => &libraries,
        };
        fs::copy(&path, image.join(directory).join(name)).unwrap();
    }
    fs::write(image.join(&libraries).join("libcuda.so.535.1"), "old").unwrap();
    symlink(
        "libcuda.so.535.1",
        image.join(&libraries).join("libcuda.so.1"),
    )
    .unwrap();
    image
}

/// The libraries that this program or library is linked with, as the linker finds them here.
fn needed(program: &Path) -> Vec<PathBuf> {
    let listed = Command::new("ldd").arg(program).output().unwrap();
    String::from_utf8(listed.stdout)
        .unwrap()
        .split_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(PathBuf::from)
        .collect()
}

fn said(output: &Output) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    text(&output.stdout) + &text(&output.stderr)
}

#[test]
fn an_image_without_anything_of_the_driver_finds_it_where_glibc_looks_by_itself() {
    let host = Host::new();
    let image = image(&host);
    assert!(!image.join("etc/ld.so.cache").exists());
    let found = host.run(&image, &["/usr/bin/probe"], true);
    assert_eq!(found.trim(), "init 0, count 0, 1 cards");
    // The same image without a GPU, as a control: what it has itself is no library.
    let without = host.run(&image, &["/usr/bin/probe"], false);
    assert!(without.contains("libcuda.so.1"), "{without}");
}

#[test]
fn a_container_has_the_nodes_the_programs_and_the_libraries_of_both_families() {
    let host = Host::new();
    let image = image(&host);
    let list = |directory: &str| -> BTreeSet<String> {
        let listed = host.run(&image, &["/usr/bin/ls", directory], true);
        listed.split_whitespace().map(str::to_owned).collect()
    };
    let devices = list("/dev");
    for node in ["nvidia0", "nvidiactl", "nvidia-uvm"] {
        assert!(devices.contains(node), "{devices:?}");
    }
    for directory in [format!("/usr/lib/{MULTIARCH}"), "/usr/lib64".to_owned()] {
        let names = list(&directory);
        for name in ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1"] {
            assert!(names.contains(name), "{directory}: {names:?}");
        }
    }
    // Read-only, and the card opens.
    let script = "nvidia-smi && exec 3<>/dev/nvidia0 && echo opened; echo $NVIDIA_VISIBLE_DEVICES";
    let seen = host.run(&image, &["/usr/bin/sh", "-c", script], true);
    assert!(seen.contains("nvidia-smi of the stand-in"), "{seen}");
    assert!(seen.contains("opened\nvoid"), "{seen}");
}

/// What `nvidia-ctk` writes of this host.
fn generated(host: &Host) -> Value {
    let output = program(NVIDIA_CTK, "nvidia-ctk")
        .env("LD_LIBRARY_PATH", host.driver().join(DRIVER_LIBRARIES))
        .args(["--quiet", "cdi", "generate", "--format=json", "--mode=nvml"])
        .args([
            "--device-name-strategy=uuid",
            "--nvidia-cdi-hook-path=/usr/bin/nvidia-cdi-hook",
        ])
        .arg(format!("--driver-root={}", host.driver().display()))
        .arg(format!("--dev-root={}", host.driver().display()))
        .output()
        .unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{}", said(&output)))
}

/// Path on the host of each mount or node, by the path in the container.
fn by_container_path(edits: &Value, list: &str, key: &str) -> BTreeMap<String, String> {
    let entries = edits[list].as_array().cloned().unwrap_or_default();
    entries
        .iter()
        .map(|entry| {
            let inside = entry[key].as_str().unwrap();
            let outside = entry["hostPath"].as_str().unwrap_or(inside);
            (inside.to_owned(), outside.to_owned())
        })
        .collect()
}

#[test]
fn all_that_nvidia_s_generator_mounts_is_mounted_and_nothing_is_run() {
    let host = Host::new();
    let (theirs, ours) = (generated(&host), host.specification());
    let edits = |spec: &Value| spec["containerEdits"].clone();
    // The same files of the host, whatever their names in the container.
    let files = |spec: &Value| -> BTreeSet<String> {
        by_container_path(&edits(spec), "mounts", "containerPath")
            .into_values()
            .collect()
    };
    let (their_files, our_files) = (files(&theirs), files(&ours));
    assert!(their_files.len() > 10, "{their_files:?}");
    let missing: Vec<_> = their_files.difference(&our_files).collect();
    assert_eq!(missing, Vec::<&String>::new());
    // The names that their hooks link are mounted.
    let names = |spec: &Value| by_container_path(&edits(spec), "mounts", "containerPath");
    for name in ["libcuda.so", "libcuda.so.1", "libnvidia-ml.so.1"] {
        let path = format!("/usr/lib/{MULTIARCH}/{name}");
        assert!(names(&ours).contains_key(&path) && !names(&theirs).contains_key(&path));
    }
    assert!(
        theirs["containerEdits"]["hooks"]
            .as_array()
            .is_some_and(|hooks| hooks.len() > 1)
    );
    assert_eq!(ours["containerEdits"].get("hooks"), None);
    // The nodes: of the card and common ones.
    let nodes = |edits: &Value| by_container_path(edits, "deviceNodes", "path");
    assert_eq!(nodes(&edits(&theirs)), nodes(&edits(&ours)));
    let device = |spec: &Value| {
        let devices = spec["devices"].as_array().unwrap();
        let own = devices
            .iter()
            .find(|device| device["name"] == *host.gpu.uuid);
        nodes(&own.unwrap()["containerEdits"])
    };
    assert_eq!(device(&theirs), device(&ours));
}

#[test]
fn the_cdi_project_s_own_library_takes_the_specification() {
    let host = Host::new();
    let listed = program(NVIDIA_CTK, "nvidia-ctk")
        .args(["cdi", "list"])
        .arg(format!("--spec-dir={}", host.path("cdi").display()))
        .output()
        .unwrap();
    let text = said(&listed);
    assert!(
        text.contains(&format!("creo.cloud/gpu={}", host.gpu.uuid)),
        "{text}"
    );
    assert!(!text.contains("rror"), "{text}");
}
