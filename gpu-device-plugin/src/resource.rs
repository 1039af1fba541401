//! The name under which the kubelet counts the GPUs.

use std::fmt;
use std::str::FromStr;

use crate::offer::names::{CLASS_MAX, digest};

/// What the classes of partitions begin with.
pub const MIG_PREFIX: &str = "mig-";
/// Longest class that a person may choose, in characters: names for models and shares are
/// made from it.
const GIVEN_CLASS_MAX: usize = 40;
/// Longest name of files, without an ending: a socket's whole path has 107 characters.
const STEM_MAX: usize = 56;

/// An extended resource, `VENDOR/CLASS`, such as `creo.cloud/gpu`. It is the kind of the CDI
/// devices as well, so both parts are what both specifications allow.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Resource {
    vendor: String,
    class: String,
}

/// The name is no resource.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{given:?} is no resource: {why}; use a name such as creo.cloud/gpu")]
pub struct ResourceError {
    given: String,
    why: &'static str,
}

impl Resource {
    /// Name of the files that belong to the resource, without an ending.
    #[must_use]
    pub fn file_stem(&self) -> String {
        let stem = format!("{}-{}", self.vendor, self.class);
        if stem.len() <= STEM_MAX {
            return stem;
        }
        let digest = digest(&stem);
        // Names are ASCII.
        format!("{}-{digest}", &stem[..STEM_MAX - 1 - digest.len()])
    }

    /// The resource of NVIDIA's plugin, which is the kind in the specifications of NVIDIA's
    /// container toolkit as well.
    #[must_use]
    pub fn nvidia() -> Self {
        Self {
            vendor: "nvidia.com".to_owned(),
            class: "gpu".to_owned(),
        }
    }

    /// The part after the slash.
    #[must_use]
    pub fn class(&self) -> &str {
        &self.class
    }

    /// The resource of the same vendor with this class, which is one of at most 63 letters,
    /// digits, dashes and dots, with a letter or a digit at either end.
    #[must_use]
    pub fn sibling(&self, class: String) -> Self {
        debug_assert!(class.len() <= CLASS_MAX && is_class(&class), "{class:?}");
        Self {
            vendor: self.vendor.clone(),
            class,
        }
    }

    /// Whether a plugin that offers this resource may offer that one, by whatever
    /// configuration.
    #[must_use]
    pub fn is_family_of(&self, other: &str) -> bool {
        let Some((vendor, class)) = other.split_once('/') else {
            return false;
        };
        let own = class.strip_prefix(&self.class);
        vendor == self.vendor
            && (own.is_some_and(|rest| rest.is_empty() || rest.starts_with(['-', '.']))
                || class.starts_with(MIG_PREFIX))
    }

    /// Name of the plugin's socket in the kubelet's directory.
    #[must_use]
    pub fn socket_name(&self) -> String {
        format!("{}.sock", self.file_stem())
    }

    /// Full name of the CDI device of this GPU.
    #[must_use]
    pub fn cdi_device(&self, uuid: &str) -> String {
        format!("{self}={uuid}")
    }
}

impl Default for Resource {
    fn default() -> Self {
        Self {
            vendor: "creo.cloud".to_owned(),
            class: "gpu".to_owned(),
        }
    }
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vendor, self.class)
    }
}

impl FromStr for Resource {
    type Err = ResourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = |why| {
            Err(ResourceError {
                given: text.to_owned(),
                why,
            })
        };
        let Some((vendor, class)) = text.split_once('/') else {
            return refused("it needs a domain, a slash and a word");
        };
        let labels_are_fine = vendor.split('.').all(|label| {
            is_word(label, |byte| {
                byte.is_ascii_lowercase() || byte.is_ascii_digit()
            }) && label.len() <= 63
        });
        if !labels_are_fine || !vendor.contains('.') || vendor.len() > 200 {
            return refused("the part before the slash is no domain");
        }
        if vendor == "kubernetes.io" || vendor.ends_with(".kubernetes.io") {
            return refused("that domain is Kubernetes' own");
        }
        if class.len() > GIVEN_CLASS_MAX || !is_word(class, |byte| byte.is_ascii_alphanumeric()) {
            return refused(
                "the part after the slash is no word of at most 40 letters, digits and dashes",
            );
        }
        if class.starts_with(MIG_PREFIX) {
            return refused("names that begin with mig- are those of partitions");
        }
        Ok(Self {
            vendor: vendor.to_owned(),
            class: class.to_owned(),
        })
    }
}

fn is_class(text: &str) -> bool {
    text.split('.')
        .all(|word| is_word(word, |byte| byte.is_ascii_alphanumeric()))
}

/// Whether this is made of such bytes and dashes, with no dash at either end.
fn is_word(text: &str, allowed: impl Fn(u8) -> bool) -> bool {
    !text.is_empty()
        && !text.starts_with('-')
        && !text.ends_with('-')
        && text.bytes().all(|byte| byte == b'-' || allowed(byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_names_its_socket_its_files_and_its_cdi_devices() {
        let resource: Resource = "creo.cloud/gpu".parse().unwrap();
        assert_eq!(resource.to_string(), "creo.cloud/gpu");
        assert_eq!(resource.socket_name(), "creo.cloud-gpu.sock");
        assert_eq!(resource.cdi_device("GPU-1"), "creo.cloud/gpu=GPU-1");
        assert!("nvidia.com/gpu".parse::<Resource>().is_ok());
    }

    #[test]
    fn a_name_too_long_for_a_socket_is_cut_and_stays_its_own() {
        let base: Resource = format!("{}.cloud/gpu", "a".repeat(50)).parse().unwrap();
        let other = base.sibling("gpu-t4".to_owned());
        assert_ne!(base.socket_name(), other.socket_name());
        assert!(other.socket_name().len() <= STEM_MAX + ".sock".len());
    }

    #[test]
    fn the_names_that_follow_from_one_are_its_family_and_no_others() {
        let base = Resource::default();
        for own in [
            "gpu",
            "gpu-t4",
            "gpu.shared",
            "gpu-t4.shared",
            "mig-1g.10gb",
        ] {
            assert!(base.is_family_of(&format!("creo.cloud/{own}")), "{own}");
        }
        for other in [
            "nvidia.com/gpu",
            "creo.cloud/gpus",
            "creo.cloud/fpga",
            "gpu",
            "",
        ] {
            assert!(!base.is_family_of(other), "{other}");
        }
    }

    #[test]
    fn what_kubelet_or_cdi_would_refuse_is_refused_with_a_reason() {
        for wrong in [
            "",
            "gpu",
            "/gpu",
            "creo.cloud/",
            "creo/gpu",
            "creo.cloud/g/u",
            "creo.cloud/../x",
            "Creo.cloud/gpu",
            "creo..cloud/gpu",
            "-creo.cloud/gpu",
            "creo.cloud/gpu-",
            "creo.cloud/g pu",
            "creo.cloud/gpu.shared",
            "creo.cloud/mig-1g",
            "kubernetes.io/gpu",
            "x.kubernetes.io/gpu",
        ] {
            let refused = wrong.parse::<Resource>().unwrap_err().to_string();
            assert!(
                refused.contains("use a name such as creo.cloud/gpu"),
                "{refused}"
            );
        }
        assert!(
            format!("creo.cloud/{}", "x".repeat(41))
                .parse::<Resource>()
                .is_err()
        );
    }
}
