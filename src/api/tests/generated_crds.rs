//! `crds/` is what the types say. `CREO_REGENERATE=1` rewrites it.

use std::{collections::BTreeSet, fs, path::PathBuf};

fn folder() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../crds")
}

#[test]
fn the_files_in_crds_are_generated_from_the_types() {
    let manifests = creo_api::manifest::manifests().expect("the definitions can be written");
    if std::env::var("CREO_REGENERATE").is_ok_and(|value| value == "1") {
        for manifest in &manifests {
            fs::write(folder().join(&manifest.file_name), &manifest.yaml)
                .expect("crds/ can be written");
        }
    }
    for manifest in &manifests {
        let written = fs::read_to_string(folder().join(&manifest.file_name)).unwrap_or_default();
        assert!(
            written == manifest.yaml,
            "crds/{} is not what the types say: run `make crds` and commit what it writes",
            manifest.file_name
        );
    }
    let names: BTreeSet<String> = manifests
        .into_iter()
        .map(|manifest| manifest.file_name)
        .collect();
    let files = fs::read_dir(folder())
        .expect("crds/ exists")
        .map(|file| file.expect("a file").file_name());
    let stray: Vec<String> = files
        .map(|name| name.to_string_lossy().into_owned())
        .filter(|name| !names.contains(name))
        .collect();
    assert!(stray.is_empty(), "crds/ holds files of no kind: {stray:?}");
}
