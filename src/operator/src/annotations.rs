//! The annotations that this operator reads back from what it made.

/// Which attempt of its Placement a pod is.
pub const ATTEMPT: &str = "creo.cloud/attempt";
/// The revision of the workload that a pod was made from.
pub const REVISION: &str = "creo.cloud/revision";
/// The digest of the workload that a pod was made from.
pub const WORKLOAD: &str = "creo.cloud/workload-digest";
/// The Kubernetes node that a pod is a canary of.
pub const CANARY_OF: &str = "creo.cloud/canary-of";
/// The digest of what a canary is to say something of.
pub const CANARY_SOUGHT: &str = "creo.cloud/canary-sought";
/// Why the node of a Placement was chosen.
pub const CHOSEN: &str = "creo.cloud/chosen-because";
