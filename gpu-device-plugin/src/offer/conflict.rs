//! Cards that another plugin offers as well. The kubelet counts both, so that two pods would
//! have one card: such a card is not offered here until the other plugin and its pods are gone.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::pod_resources::{Client, PodResourcesError};
use crate::resource::Resource;

/// The devices of other plugins that have the UUID of a GPU or a partition in their ids.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Conflicts {
    /// The resource, by the id of the device.
    by_id: BTreeMap<String, String>,
}

impl Conflicts {
    /// The resource under which another plugin offers this card or partition, or a part of it:
    /// there are ids such as `UUID`, `UUID::3` and `UUID-3`.
    #[must_use]
    pub fn of(&self, uuid: &str) -> Option<&str> {
        let (id, resource) = self.by_id.range(uuid.to_owned()..).next()?;
        let rest = id.strip_prefix(uuid)?;
        let is_other = rest.starts_with(|letter: char| letter.is_ascii_alphanumeric());
        (!is_other).then_some(resource)
    }
}

impl FromIterator<(String, String)> for Conflicts {
    /// From pairs of a device's id and its resource.
    fn from_iter<T: IntoIterator<Item = (String, String)>>(pairs: T) -> Self {
        Self {
            by_id: pairs
                .into_iter()
                .filter(|(id, _)| names_a_gpu(id))
                .collect(),
        }
    }
}

/// How often the kubelet is asked, and how long its answers hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pace {
    /// Time between two questions.
    pub every: Duration,
    /// How long the first answer is waited for before anything is offered.
    pub first: Duration,
    /// How long a device of another plugin must be gone. A kubelet that starts anew knows
    /// nobody's devices for a moment.
    pub gone: Duration,
}

impl Default for Pace {
    fn default() -> Self {
        Self {
            every: Duration::from_secs(5),
            first: Duration::from_secs(2),
            gone: Duration::from_mins(1),
        }
    }
}

/// Looks for other plugins.
#[derive(Debug)]
pub struct Lookout {
    own: Resource,
    kubelet: Client,
    pace: Pace,
    /// When each device of another plugin was last there.
    seen: BTreeMap<(String, String), Instant>,
}

impl Lookout {
    /// Asks this kubelet for devices of resources that are not of this one's family.
    #[must_use]
    pub fn new(own: Resource, kubelet: Client, pace: Pace) -> Self {
        Self {
            own,
            kubelet,
            pace,
            seen: BTreeMap::new(),
        }
    }

    /// What is there at first, as far as the kubelet says it soon.
    pub async fn first(&mut self) -> Conflicts {
        let _ = timeout(self.pace.first, self.look()).await;
        self.conflicts()
    }

    /// Looks until the token is cancelled.
    pub async fn run(mut self, conflicts: watch::Sender<Conflicts>, stop: CancellationToken) {
        while stop
            .run_until_cancelled(sleep(self.pace.every))
            .await
            .is_some()
        {
            // A kubelet that says nothing changes nothing.
            if let Some(Ok(())) = stop.run_until_cancelled(self.look()).await {
                let now = self.conflicts();
                conflicts.send_if_modified(|known| {
                    let changed = *known != now;
                    if changed {
                        *known = now;
                    }
                    changed
                });
            }
        }
    }

    async fn look(&mut self) -> Result<(), PodResourcesError> {
        let offered = self.kubelet.allocatable().await?;
        // Those that are unfit, or whose plugin is gone, are with their pods still.
        let held = self.kubelet.list().await?;
        let offered = offered
            .into_iter()
            .flat_map(|(resource, ids)| ids.into_iter().map(move |id| (id, resource.clone())));
        let held = held
            .iter()
            .map(|(id, holder)| (id.to_owned(), holder.resource.clone()));
        let now = Instant::now();
        for (id, resource) in offered.chain(held) {
            if names_a_gpu(&id) && !self.own.is_family_of(&resource) {
                self.seen.insert((id, resource), now);
            }
        }
        let gone = self.pace.gone;
        self.seen.retain(|_, seen| now.duration_since(*seen) < gone);
        Ok(())
    }

    fn conflicts(&self) -> Conflicts {
        self.seen.keys().cloned().collect()
    }
}

fn names_a_gpu(id: &str) -> bool {
    id.starts_with("GPU-") || id.starts_with("MIG-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_card_is_found_in_the_ids_of_others_and_no_other_card_is() {
        let pair = |id: &str, resource: &str| (id.to_owned(), resource.to_owned());
        let conflicts: Conflicts = [
            pair("GPU-1", "nvidia.com/gpu"),
            pair("GPU-3::7", "nvidia.com/gpu.shared"),
            pair("GPU-5-0", "example.com/vgpu"),
            pair("MIG-2", "nvidia.com/mig-1g.10gb"),
            pair("GPU-44", "nvidia.com/gpu"),
            pair("0000:01:00.0", "intel.com/nic"),
        ]
        .into_iter()
        .collect();
        for (uuid, found) in [
            ("GPU-1", Some("nvidia.com/gpu")),
            ("GPU-3", Some("nvidia.com/gpu.shared")),
            ("GPU-5", Some("example.com/vgpu")),
            ("MIG-2", Some("nvidia.com/mig-1g.10gb")),
            ("GPU-4", None),
            ("GPU-2", None),
            ("GPU-9", None),
            ("0000:01:00.0", None),
        ] {
            assert_eq!(conflicts.of(uuid), found, "{uuid}");
        }
    }
}
