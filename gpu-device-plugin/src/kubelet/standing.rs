//! Whether everything that is offered is registered with the kubelet.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use creo_process::probes::Check;

use crate::resource::Resource;

/// Holds while every resource is registered. Cloning shares it.
#[derive(Debug, Clone)]
pub struct Standing {
    check: Check,
    resources: Arc<Mutex<BTreeMap<Resource, Option<String>>>>,
}

impl Standing {
    /// Nothing is offered yet.
    #[must_use]
    pub fn new(check: Check) -> Self {
        Self {
            check,
            resources: Arc::default(),
        }
    }

    /// Nothing is offered, for this reason.
    pub fn nothing(&self, why: &str) {
        let resources = self
            .resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if resources.is_empty() {
            self.check.fails(why);
        }
    }

    /// The resource is registered.
    pub fn registered(&self, resource: &Resource) {
        self.change(|resources| {
            resources.insert(resource.clone(), None);
        });
    }

    /// The resource is not registered, for this reason.
    pub fn not_registered(&self, resource: &Resource, why: &str) {
        self.change(|resources| {
            resources.insert(resource.clone(), Some(why.to_owned()));
        });
    }

    /// The resource is not offered any more.
    pub fn withdrawn(&self, resource: &Resource) {
        self.change(|resources| {
            resources.remove(resource);
        });
    }

    fn change(&self, change: impl FnOnce(&mut BTreeMap<Resource, Option<String>>)) {
        let mut resources = self
            .resources
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        change(&mut resources);
        let several = resources.len() > 1;
        let missing = resources
            .iter()
            .find_map(|(resource, missing)| missing.as_ref().map(|why| (resource, why)));
        match missing {
            Some((resource, why)) if several => self.check.fails(format!("{resource}: {why}")),
            Some((_, why)) => self.check.fails(why),
            None if resources.is_empty() => self.check.fails("no GPU is offered"),
            None => self.check.holds(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use creo_process::probes::Readiness;

    #[test]
    fn every_resource_has_to_be_registered_and_there_has_to_be_one() {
        let readiness = Readiness::new();
        let standing = Standing::new(readiness.check("kubelet", "not yet"));
        let gpu = Resource::default();
        let shared = gpu.sibling("gpu.shared".to_owned());
        standing.nothing("all are withheld");
        assert_eq!(readiness.report(), "missing: kubelet: all are withheld\n");
        standing.registered(&gpu);
        assert!(readiness.is_ready());
        standing.not_registered(&shared, "refused");
        let report = "missing: kubelet: creo.cloud/gpu.shared: refused\n";
        assert_eq!(readiness.report(), report);
        // Something is offered.
        standing.nothing("all are withheld");
        assert_eq!(readiness.report(), report);
        standing.withdrawn(&shared);
        assert!(readiness.is_ready());
        standing.withdrawn(&gpu);
        assert!(!readiness.is_ready());
    }
}
