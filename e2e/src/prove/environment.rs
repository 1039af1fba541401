//! What plans run in: a folder for what they leave, and a cluster for those
//! that need one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use futures::future::BoxFuture;
use tokio::sync::OnceCell;

use super::plan::Failure;
use super::world::World;
use crate::error::Result;

/// Starts the cluster that plans run in. It is asked once a run at most, and
/// by plans that need a cluster alone.
pub type StartWorld =
    Box<dyn Fn() -> BoxFuture<'static, Result<Arc<World>, Failure>> + Send + Sync>;

/// What the plans of a run share.
pub struct Environment {
    checkout: PathBuf,
    start_world: StartWorld,
    world: OnceCell<Arc<World>>,
}

impl Environment {
    /// An environment for the sources in `checkout`, whose cluster is started by
    /// `start_world`.
    #[must_use]
    pub fn new(checkout: &Path, start_world: StartWorld) -> Self {
        Self {
            // Paths in the report are for people: without `..` in them.
            checkout: checkout
                .canonicalize()
                .unwrap_or_else(|_| checkout.to_owned()),
            start_world,
            world: OnceCell::new(),
        }
    }

    /// The sources.
    #[must_use]
    pub fn checkout(&self) -> &Path {
        &self.checkout
    }

    /// The folder of reports, states and evidence.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.checkout.join("target").join("prove")
    }

    /// The cluster, which is started when it is first asked for.
    ///
    /// # Errors
    /// When it cannot be started.
    pub async fn world(&self) -> Result<Arc<World>, Failure> {
        self.world
            .get_or_try_init(|| (self.start_world)())
            .await
            .cloned()
    }

    /// Ends the cluster, if one was started.
    ///
    /// # Errors
    /// When something of it does not go away.
    pub(super) async fn close(&self) -> Result<()> {
        match self.world.get() {
            Some(world) => world.end().await,
            None => Ok(()),
        }
    }
}
