//! The name under which the kubelet counts the GPUs.

use std::fmt;
use std::str::FromStr;

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
        format!("{}-{}", self.vendor, self.class)
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
        if class.len() > 55 || !is_word(class, |byte| byte.is_ascii_alphanumeric()) {
            return refused(
                "the part after the slash is no word of at most 55 letters, digits and dashes",
            );
        }
        Ok(Self {
            vendor: vendor.to_owned(),
            class: class.to_owned(),
        })
    }
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
            format!("creo.cloud/{}", "x".repeat(56))
                .parse::<Resource>()
                .is_err()
        );
    }
}
