//! CEL rules that more than one field needs. Each message says what to write.

use kube::core::Rule;

/// The largest integer that JSON readers with floating point numbers keep
/// exact, and therefore the largest that a schema admits.
pub(crate) const MAX_INTEGER: i64 = (1 << 53) - 1;

/// A lower-case name of a thing that is ours to name (a region, an account, an
/// engine profile): letters, digits and `-`, not at the ends.
pub(crate) fn label() -> Rule {
    Rule::new("self.matches('^[a-z0-9]([a-z0-9-]*[a-z0-9])?$')").message(
        "must be lower-case letters, digits and '-', and begin and end with a letter or digit",
    )
}

/// The name of a Kubernetes object: dots are allowed.
pub(crate) fn object_name() -> Rule {
    Rule::new("self.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$')")
        .message("must be the name of a Kubernetes object: lower-case letters, digits, '-' and '.'")
}

/// Every item of a list is such a name.
pub(crate) fn object_names() -> Rule {
    Rule::new("self.all(name, name.matches('^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$'))").message(
        "every item must be the name of a Kubernetes object: lower-case letters, digits, '-' and '.'",
    )
}

/// What never changes once it is set.
pub(crate) fn immutable(message: &str) -> Rule {
    Rule::new("self == oldSelf").message(message)
}

/// A quantity from `least` to `most`, both included; `example` is what a
/// person would write.
pub(crate) fn quantity(least: &str, most: &str, example: &str) -> Rule {
    Rule::new(format!(
        "isQuantity(string(self)) && quantity(string(self)).compareTo(quantity('{least}')) >= 0 \
         && quantity(string(self)).compareTo(quantity('{most}')) <= 0"
    ))
    .message(format!("must be a quantity from {least} to {most}, for example {example}").as_str())
}

/// An image reference as a container runtime reads it.
pub(crate) fn image_reference() -> Rule {
    Rule::new(
        "self.matches('^[A-Za-z0-9]([A-Za-z0-9._/:-]*[A-Za-z0-9])?(@sha256:[0-9a-f]{64})?$') \
         && !self.contains('//')",
    )
    .message(
        "must be an image like registry.example.com/team/model:1.0 or name@sha256:DIGEST, \
         without a scheme such as https://",
    )
}
