//! The programs of the local Kubernetes: upstream's own, built from pinned
//! modules and kept outside the checkout, so that a second checkout on the same
//! machine builds nothing.

use std::{
    fs::{self, File},
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    process::Command,
};

use sha2::{Digest as _, Sha256};

use crate::{
    command,
    error::{Context as _, Error, Result},
    paths,
    progress::Progress,
};

/// The version of Kubernetes, as `components/kubernetes/go.mod` pins it.
pub const KUBERNETES_VERSION: &str = "v1.36.3";

/// One set of programs that is built together.
#[derive(Debug, Clone, Copy)]
pub struct Component {
    /// What progress and cache folder call it.
    pub name: &'static str,
    source: Source,
    link_flags: &'static str,
    tags: &'static str,
    /// Whether it needs a C compiler, which every machine that builds Creo has.
    cgo: bool,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    /// The `tool` directives of the `go.mod` in this folder of `components/`.
    Module(&'static str),
    /// A program of a module that is built with the versions of its own `go.mod`.
    Program(&'static str),
}

/// kube-apiserver, kube-controller-manager, kube-scheduler, kubelet,
/// kube-proxy, kubectl and etcd. Without the version in the link flags the
/// server says v0.0.0 and clients refuse it.
pub const KUBERNETES: Component = Component {
    name: "kubernetes",
    source: Source::Module("kubernetes"),
    link_flags: "-s -w -X k8s.io/component-base/version.gitVersion=v1.36.3 -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=36",
    tags: "",
    cgo: false,
};

/// containerd, its shim (which must not be linked together with the daemon)
/// and ctr.
pub const CONTAINERD: Component = Component {
    name: "containerd",
    source: Source::Module("containerd"),
    link_flags: "-s -w -X github.com/containerd/containerd/v2/version.Version=2.4.2",
    tags: "no_btrfs no_devmapper no_zfs",
    cgo: false,
};

/// Cluster DNS.
pub const COREDNS: Component = tool("coredns", "github.com/coredns/coredns@v1.15.0");

/// What installs the chart.
pub const HELM: Component = tool("helm", "helm.sh/helm/v4/cmd/helm@v4.3.1");

/// Checks manifests against schemas; only the chart's tests need it.
pub const KUBECONFORM: Component = tool(
    "kubeconform",
    "github.com/yannh/kubeconform/cmd/kubeconform@v0.8.0",
);

/// NVIDIA's container runtime, which calls NVML through C; only the test of what
/// it hands out unasked needs it.
pub const NVIDIA_RUNTIME: Component = Component {
    cgo: true,
    ..tool(
        "nvidia-container-runtime",
        "github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-container-runtime@v1.20.1",
    )
};

/// NVIDIA's generator of CDI specifications, which calls NVML through C; only the
/// test that compares its specifications with ours needs it.
pub const NVIDIA_CTK: Component = Component {
    cgo: true,
    ..tool(
        "nvidia-ctk",
        "github.com/NVIDIA/nvidia-container-toolkit/cmd/nvidia-ctk@v1.20.1",
    )
};

/// Prometheus' own linter of metrics, as `promtool check metrics` uses it; only the metrics'
/// tests need it.
pub const PROMLINT: Component = Component {
    name: "promlint",
    source: Source::Module("promlint"),
    link_flags: "-s -w",
    tags: "",
    cgo: false,
};

/// What every cluster needs.
pub const CLUSTER: [Component; 4] = [KUBERNETES, CONTAINERD, COREDNS, HELM];

const fn tool(name: &'static str, program: &'static str) -> Component {
    Component {
        name,
        source: Source::Program(program),
        link_flags: "-s -w",
        tags: "",
        cgo: false,
    }
}

/// A folder with the programs of several components.
#[derive(Debug, Clone)]
pub struct Programs {
    dirs: Vec<PathBuf>,
}

impl Programs {
    /// The path of a program.
    ///
    /// # Errors
    ///
    /// No built component has it.
    pub fn path(&self, program: &str) -> Result<PathBuf> {
        self.dirs
            .iter()
            .map(|dir| dir.join(program))
            .find(|path| path.exists())
            .ok_or_else(|| {
                Error::malformed(format!("the program {program}"), "no component has it")
            })
    }

    /// The folders as an entry of a `PATH`.
    #[must_use]
    pub fn search_path(&self) -> String {
        self.dirs
            .iter()
            .map(|dir| dir.to_string_lossy())
            .collect::<Vec<_>>()
            .join(":")
    }
}

/// Builds what is not built yet.
///
/// # Errors
///
/// A build fails; the error has its last lines.
pub fn ensure(components: &[Component], progress: &Progress) -> Result<Programs> {
    let mut dirs = Vec::new();
    for component in components {
        let dir = component.dir()?;
        if !dir.exists() {
            // Whoever else is building it, in this process or another, is waited for.
            let _lock = component.lock()?;
            if !dir.exists() {
                let step = progress.step(format!("build {} (once a machine)", component.name));
                component.build(&dir)?;
                step.done("");
            }
        }
        dirs.push(dir);
    }
    Ok(Programs { dirs })
}

impl Component {
    /// Where it lies once built: named by all that it is built from.
    fn dir(&self) -> Result<PathBuf> {
        let mut hash = Sha256::new();
        hash.update(self.link_flags);
        hash.update(self.tags);
        match self.source {
            Source::Program(program) => hash.update(program),
            Source::Module(folder) => {
                for name in ["go.mod", "go.sum", "main.go"] {
                    let path = module_dir(folder).join(name);
                    // Most have no program of their own, but build upstream's.
                    if name != "main.go" || path.exists() {
                        let read = fs::read(&path);
                        hash.update(read.doing(|| format!("reading {}", path.display()))?);
                    }
                }
            }
        }
        let digest = hash.finalize();
        let short = digest
            .iter()
            .take(6)
            .fold(String::new(), |all, byte| format!("{all}{byte:02x}"));
        Ok(paths::components_root().join(format!("{}-{short}", self.name)))
    }

    /// The right to build it, until the file is dropped.
    fn lock(&self) -> Result<File> {
        paths::make_dir(&paths::components_root())?;
        let path = paths::components_root().join(format!("{}.lock", self.name));
        let doing = || format!("locking {}", path.display());
        let file = File::create(&path).doing(doing)?;
        file.lock().doing(doing)?;
        Ok(file)
    }

    fn build(&self, dir: &Path) -> Result<()> {
        // Built aside and renamed, so that a build that was cut off is not taken for one.
        let aside = tempfile::tempdir_in(paths::components_root())
            .doing(|| "making a folder for the build".to_owned())?;
        let mut go = Command::new("go");
        go.env("CGO_ENABLED", if self.cgo { "1" } else { "0" });
        match self.source {
            Source::Module(folder) => {
                go.current_dir(module_dir(folder))
                    .arg("build")
                    .arg("-o")
                    .arg(aside.path());
            }
            Source::Program(_) => {
                go.current_dir(aside.path())
                    .env("GOBIN", aside.path())
                    .arg("install");
            }
        }
        go.args(["-trimpath", "-ldflags", self.link_flags, "-tags", self.tags]);
        match self.source {
            Source::Module(_) => go.arg("tool"),
            Source::Program(program) => go.arg(program),
        };
        command::output(&mut go)?;
        name_etcd(aside.path())?;
        fs::rename(aside.keep(), dir).doing(|| format!("moving the build to {}", dir.display()))
    }
}

/// etcd's main package is called `server`, and so is the program that Go makes of it.
fn name_etcd(dir: &Path) -> Result<()> {
    if dir.join("server").exists() {
        symlink("server", dir.join("etcd")).doing(|| "naming etcd".to_owned())?;
    }
    Ok(())
}

fn module_dir(folder: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("components")
        .join(folder)
}
