//! The canary: started in a pod that asked for no GPU, it tries to open every one.
//!
//! A container runtime that honours `NVIDIA_VISIBLE_DEVICES` by default hands all GPUs to any pod
//! that sets it, and no device plugin can keep it from that. So a pod sets it and looks.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::path::Path;

use creo_api::canary::{Found, MAX_NODES, Node, REFUSED};

/// `O_NOCTTY | O_NONBLOCK`: opening must neither wait for a device nor make it a terminal.
const WITHOUT_WAITING: i32 = 0o400 | 0o4000;

/// Tries to open every device node of NVIDIA's below `dev`, for reading and writing.
#[must_use]
pub fn look(dev: &Path) -> Found {
    let mut nodes: Vec<Node> = [dev.to_owned(), dev.join("nvidia-caps")]
        .iter()
        .flat_map(|folder| devices(folder))
        .map(|path| Node {
            result: open(Path::new(&path)),
            path,
        })
        .collect();
    nodes.sort_by(|a, b| (a.result == REFUSED, &a.path).cmp(&(b.result == REFUSED, &b.path)));
    let more = nodes.len().saturating_sub(MAX_NODES);
    nodes.truncate(MAX_NODES);
    Found { nodes, more }
}

/// The paths of NVIDIA's device nodes in a folder. What cannot be listed is not reached either.
fn devices(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_name().to_string_lossy().starts_with("nvidia"))
        .filter(|entry| entry.file_type().is_ok_and(|kind| !kind.is_dir()))
        .map(|entry| entry.path().to_string_lossy().into_owned())
        .collect()
}

fn open(path: &Path) -> String {
    let mut options = OpenOptions::new();
    options.read(true).write(true).custom_flags(WITHOUT_WAITING);
    match options.open(path) {
        Ok(file) => match file.metadata() {
            Ok(metadata) if !metadata.file_type().is_char_device() => "no device".to_owned(),
            _ => "opens".to_owned(),
        },
        Err(error) => name_of(&error),
    }
}

fn name_of(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(1) => REFUSED.to_owned(),
        Some(2) => "ENOENT".to_owned(),
        Some(5) => "EIO".to_owned(),
        Some(6) => "ENXIO".to_owned(),
        Some(13) => "EACCES".to_owned(),
        Some(16) => "EBUSY".to_owned(),
        Some(19) => "ENODEV".to_owned(),
        Some(other) => format!("errno {other}"),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_opens_is_found_and_told_before_what_does_not() {
        let dev = tempfile::tempdir().unwrap();
        let at = |name: &str| dev.path().join(name);
        symlink("/dev/null", at("nvidia1")).unwrap();
        symlink("/nowhere", at("nvidia0")).unwrap();
        symlink("/dev/null", at("tty0")).unwrap();
        fs::create_dir(at("nvidia-caps")).unwrap();
        symlink("/dev/null", at("nvidia-caps/nvidia-cap3")).unwrap();
        let found = look(dev.path());
        let told: Vec<_> = found
            .nodes
            .iter()
            .map(|node| {
                let path = node.path.rsplit('/').next().unwrap();
                (path, node.result.as_str())
            })
            .collect();
        assert_eq!(
            told,
            [
                ("nvidia-cap3", "opens"),
                ("nvidia0", "ENOENT"),
                ("nvidia1", "opens"),
            ]
        );
        assert_eq!(found.reached().count(), 3);
        assert_eq!(look(&at("nothing")), Found::default());
    }

    #[test]
    fn what_is_told_fits_a_termination_message() {
        let dev = tempfile::tempdir().unwrap();
        for number in 0..500 {
            symlink("/dev/null", dev.path().join(format!("nvidia{number}"))).unwrap();
        }
        let mut found = look(dev.path());
        assert_eq!((found.nodes.len(), found.more), (MAX_NODES, 468));
        for node in &mut found.nodes {
            "/dev/nvidia-caps/nvidia-cap4095".clone_into(&mut node.path);
        }
        assert!(serde_json::to_vec(&found).unwrap().len() < 4096);
    }
}
