//! One registration for each resource that is offered, for as long as it is.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::life::Life;
use super::offer::{Offer, Offers};
use super::standing::Standing;
use crate::metrics::Metrics;
use crate::resource::Resource;

/// How long the end of a registration may take.
const END: Duration = Duration::from_secs(3);

/// Registers every resource that is offered.
#[derive(Debug)]
pub struct Registrar {
    /// The kubelet's directory for device plugins.
    pub directory: PathBuf,
    /// What is offered.
    pub offers: watch::Receiver<Offers>,
    /// Counts registrations.
    pub metrics: Metrics,
    /// Holds while everything is registered.
    pub standing: Standing,
}

/// A resource that is registered, or about to be.
struct Registered {
    offer: watch::Sender<Offer>,
    stop: CancellationToken,
    life: JoinHandle<()>,
}

impl Registrar {
    /// Registers until the token is cancelled.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut registered = BTreeMap::new();
        loop {
            let offers = self.offers.borrow_and_update().clone();
            self.withdraw(&mut registered, |resource| !offers.contains_key(resource))
                .await;
            for (resource, offer) in offers {
                if let Some(known) = registered.get(&resource) {
                    publish(&known.offer, offer);
                } else {
                    let life = self.begin(&resource, offer, &stop);
                    registered.insert(resource, life);
                }
            }
            tokio::select! {
                changed = self.offers.changed() => if changed.is_err() { break },
                () = stop.cancelled() => break,
            }
        }
        self.withdraw(&mut registered, |_| true).await;
    }

    fn begin(&self, resource: &Resource, offer: Offer, stop: &CancellationToken) -> Registered {
        let (sender, offers) = watch::channel(offer);
        let life = Life {
            directory: self.directory.clone(),
            resource: resource.clone(),
            offers,
            metrics: self.metrics.clone(),
            standing: self.standing.clone(),
        };
        let stop = stop.child_token();
        Registered {
            offer: sender,
            life: tokio::spawn(life.run(stop.clone())),
            stop,
        }
    }

    /// Ends the registrations of these resources. The kubelet gives nothing of them to new
    /// containers then; what runs goes on.
    async fn withdraw(
        &self,
        registered: &mut BTreeMap<Resource, Registered>,
        which: impl Fn(&Resource) -> bool,
    ) {
        let ending: BTreeMap<Resource, Registered> = registered
            .extract_if(.., |resource, _| which(resource))
            .collect();
        for ended in ending.values() {
            ended.stop.cancel();
        }
        for (resource, mut ended) in ending {
            if timeout(END, &mut ended.life).await.is_err() {
                ended.life.abort();
            }
            self.standing.withdrawn(&resource);
        }
    }
}

fn publish(sender: &watch::Sender<Offer>, offer: Offer) {
    sender.send_if_modified(|current| {
        let changed = *current != offer;
        if changed {
            *current = offer;
        }
        changed
    });
}
