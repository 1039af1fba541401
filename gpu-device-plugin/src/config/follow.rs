//! The file, followed while the plugin runs.
//!
//! It is read again and again, rather than watched for notices of the file system: a ConfigMap
//! is swapped by a link two directories up, an editor replaces the file, and a file that is
//! small is cheap to read.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use prometheus::{IntCounterVec, Opts, Registry};
use tokio::sync::watch;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::Config;
use super::read::{ConfigError, Overrides, load};

/// Time between two looks at the file.
const LOOK: Duration = Duration::from_secs(1);

/// Counts how often a file was put in effect or refused.
#[derive(Debug, Clone)]
pub struct ConfigMetrics(IntCounterVec);

impl ConfigMetrics {
    /// Makes the metrics and registers them.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let reads = Opts::new(
            "creo_gpu_plugin_config_reads_total",
            "Configurations that were read and differ from the one before, by outcome.",
        );
        let reads = IntCounterVec::new(reads, &["outcome"])?;
        for outcome in ["ok", "error"] {
            reads.with_label_values(&[outcome]);
        }
        registry.register(Box::new(reads.clone()))?;
        Ok(Self(reads))
    }

    fn read(&self, outcome: &str) {
        self.0.with_label_values(&[outcome]).inc();
    }
}

/// Where the configuration comes from.
#[derive(Debug, Clone)]
pub struct ConfigSource {
    /// The file; nothing where what is usual holds.
    pub file: Option<PathBuf>,
    /// This node's name.
    pub node_name: Option<String>,
    /// What the command line says.
    pub overrides: Overrides,
}

impl ConfigSource {
    /// Reads what is in effect.
    pub fn read(&self) -> Result<Config, ConfigError> {
        load(
            self.file.as_deref(),
            self.node_name.as_deref(),
            &self.overrides,
        )
    }

    /// Reads without keeping up whoever waits: the disk may be slow.
    async fn read_aside(&self) -> Result<Config, String> {
        let source = self.clone();
        match tokio::task::spawn_blocking(move || source.read()).await {
            Ok(read) => read.map_err(|error| error.to_string()),
            Err(ended) => Err(ended.to_string()),
        }
    }

    /// The first configuration that can be used. What is wrong meanwhile is told to `tell`,
    /// once each.
    pub async fn first(&self, metrics: &ConfigMetrics, tell: impl Fn(&str)) -> Config {
        let mut told = String::new();
        loop {
            match self.read_aside().await {
                Ok(config) => {
                    metrics.read("ok");
                    return config;
                }
                Err(why) if why == told => {}
                Err(why) => {
                    metrics.read("error");
                    tell(&why);
                    told = why;
                }
            }
            sleep(LOOK).await;
        }
    }
}

/// Follows the file.
#[derive(Debug)]
pub struct Following {
    /// Where the configuration comes from.
    pub source: ConfigSource,
    /// Told what is in effect.
    pub config: watch::Sender<Arc<Config>>,
    /// Told why the file is not in effect, where it is not.
    pub refused: watch::Sender<Option<String>>,
    /// Counts what was read.
    pub metrics: ConfigMetrics,
}

impl Following {
    /// Follows until the token is cancelled.
    pub async fn run(self, stop: CancellationToken) {
        while stop.run_until_cancelled(sleep(LOOK)).await.is_some() {
            let read = self.source.read_aside().await;
            let usable = read.and_then(|config| {
                not_while_running(&self.config.borrow(), &config).map_or(Ok(config), Err)
            });
            match usable {
                Ok(config) => self.put_in_effect(config),
                Err(why) => self.refuse(&why),
            }
        }
    }

    fn put_in_effect(&self, config: Config) {
        self.refused
            .send_if_modified(|refused| refused.take().is_some());
        let changed = self.config.send_if_modified(|current| {
            let changed = **current != config;
            if changed {
                *current = Arc::new(config);
            }
            changed
        });
        if changed {
            self.metrics.read("ok");
            tracing::info!(
                "a new configuration is in effect:\n{}",
                **self.config.borrow()
            );
        }
    }

    fn refuse(&self, why: &str) {
        let message = format!("the new configuration is not used, the old one stays: {why}");
        let new = self.refused.send_if_modified(|refused| {
            let new = refused.as_ref() != Some(&message);
            if new {
                *refused = Some(message.clone());
            }
            new
        });
        if new {
            self.metrics.read("error");
            tracing::error!("{message}");
        }
    }
}

/// Why this cannot take the place of that while the plugin runs.
fn not_while_running(now: &Config, new: &Config) -> Option<String> {
    (now.resource != new.resource).then(|| {
        format!(
            "resource: {} becomes {}; it is read when the plugin starts: restart it",
            now.resource, new.resource
        )
    })
}
