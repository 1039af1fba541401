//! A driver as distributions install it, under a temporary root: libraries that are libraries,
//! made by the compiler, with the links that packages and `ldconfig` make.

use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::Command;

use creo_gpu_device_plugin::cdi::{DriverFiles, Place};
use creo_gpu_device_plugin::inventory::Gpu;
use tempfile::TempDir;

/// Debian's name of this architecture.
pub const MULTIARCH: &str = if cfg!(target_arch = "aarch64") {
    "aarch64-linux-gnu"
} else {
    "x86_64-linux-gnu"
};

pub struct DriverRoot {
    directory: TempDir,
}

impl DriverRoot {
    pub fn empty() -> Self {
        let root = Self {
            directory: tempfile::tempdir().unwrap(),
        };
        fs::create_dir_all(root.path().join("etc")).unwrap();
        root
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub fn place(&self) -> Place {
        Place {
            root: PathBuf::from("/run/nvidia/driver"),
            mount: self.path().to_owned(),
            procfs: self.path().join("proc"),
        }
    }

    pub fn find(&self, gpus: &[&Gpu]) -> DriverFiles {
        DriverFiles::find(&self.place(), gpus)
    }

    /// Puts a library here, with this SONAME.
    pub fn library(&self, path: &str, soname: &str) -> &Self {
        let path = self.make_parent(path);
        let made = Command::new("cc")
            .args(["-shared", "-nostdlib", "-x", "c", "/dev/null"])
            .arg(format!("-Wl,-soname,{soname}"))
            .arg("-o")
            .arg(path)
            .status()
            .unwrap();
        assert!(made.success());
        self
    }

    pub fn file(&self, path: &str, text: &str) -> &Self {
        fs::write(self.make_parent(path), text).unwrap();
        self
    }

    pub fn link(&self, path: &str, target: &str) -> &Self {
        symlink(target, self.make_parent(path)).unwrap();
        self
    }

    /// A socket that nobody serves.
    pub fn socket(&self, path: &str) -> &Self {
        drop(UnixListener::bind(self.make_parent(path)).unwrap());
        self
    }

    /// Writes the linker's list, as the host's own `ldconfig` does for these directories.
    pub fn ldconfig(&self, directories: &[&str]) -> &Self {
        self.file("etc/ld.so.conf", &directories.join("\n"));
        let written = Command::new("/sbin/ldconfig")
            .arg("-r")
            .arg(self.path())
            .status()
            .unwrap();
        assert!(written.success());
        self
    }

    fn make_parent(&self, path: &str) -> PathBuf {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// The driver as NVIDIA's installer puts it on a Debian with merged `/usr`.
    pub fn debian(version: &str) -> Self {
        let root = Self::empty();
        let lib = format!("usr/lib/{MULTIARCH}");
        root.link("lib", "usr/lib");
        root.library_with_links(&lib, version, "libcuda", "libcuda.so.1")
            .library_with_links(&lib, version, "libnvidia-ml", "libnvidia-ml.so.1")
            .library_with_links(
                &lib,
                version,
                "libnvidia-ptxjitcompiler",
                "libnvidia-ptxjitcompiler.so.1",
            )
            .library_with_links(
                &lib,
                version,
                "libnvidia-opticalflow",
                "libnvidia-opticalflow.so.1",
            )
            .library(
                &format!("{lib}/libnvidia-gpucomp.so.{version}"),
                &format!("libnvidia-gpucomp.so.{version}"),
            )
            .library(&format!("{lib}/libc.so.6"), "libc.so.6");
        for program in ["nvidia-smi", "nvidia-cuda-mps-control", "nvidia-settings"] {
            root.file(&format!("usr/bin/{program}"), "#!/bin/sh\n");
        }
        for node in ["nvidia0", "nvidiactl", "nvidia-uvm", "null"] {
            root.file(&format!("dev/{node}"), "");
        }
        root
    }

    fn library_with_links(
        &self,
        directory: &str,
        version: &str,
        stem: &str,
        soname: &str,
    ) -> &Self {
        let file = format!("{stem}.so.{version}");
        self.library(&format!("{directory}/{file}"), soname)
            .link(&format!("{directory}/{soname}"), &file)
    }
}
