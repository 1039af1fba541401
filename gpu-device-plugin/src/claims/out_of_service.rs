//! What a person takes out of service at the node's object.

use std::collections::BTreeSet;

use creo_api::creo_node;
use kube::api::ObjectMeta;

/// The annotation of a CreoNode whose value names GPUs and partitions, by UUID or a GPU's number,
/// with commas between them. They are given to nobody new until they are not named any more.
pub const ANNOTATION: &str = creo_node::OUT_OF_SERVICE;

/// Most names that are looked at: each GPU with all its partitions.
const MAX_NAMES: usize = creo_node::MAX_GPUS * (1 + creo_node::MAX_PARTITIONS);

/// What an object's annotation names.
pub fn read(metadata: &ObjectMeta) -> BTreeSet<String> {
    let annotations = metadata.annotations.as_ref();
    let value = annotations.and_then(|annotations| annotations.get(ANNOTATION));
    value
        .map(String::as_str)
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|name| !name.is_empty() && name.len() <= creo_node::MAX_UUID_CHARS)
        .take(MAX_NAMES)
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(value: &str) -> Vec<String> {
        let metadata = ObjectMeta {
            annotations: Some([(ANNOTATION.to_owned(), value.to_owned())].into()),
            ..ObjectMeta::default()
        };
        read(&metadata).into_iter().collect()
    }

    #[test]
    fn gpus_are_named_with_commas_between_them() {
        assert_eq!(named("GPU-1, 3 ,,MIG-7"), ["3", "GPU-1", "MIG-7"]);
        assert!(named("").is_empty() && named(" , ").is_empty());
        assert!(read(&ObjectMeta::default()).is_empty());
    }

    #[test]
    fn a_value_of_any_size_is_bounded() {
        assert_eq!(named(&format!("{},0", "x".repeat(97))), ["0"]);
        let many: Vec<String> = (0..100_000).map(|number| number.to_string()).collect();
        assert_eq!(named(&many.join(",")).len(), MAX_NAMES);
    }
}
