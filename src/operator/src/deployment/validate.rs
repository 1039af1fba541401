//! An AgentDeployment, parsed: what is wanted as values that the rules and the builders take.
//! Nothing behind this looks at the specification again.

use std::path::Path;

use creo_api::AgentDeployment;
use creo_api::image::Image;
use creo_api::placement::{EnvVar, Health, MODEL_MOUNT_PATH, WorkloadResources};
use creo_api::quantity::InvalidField;
use creo_market::placement::Wish;
use creo_market::replicas::Wanted;
use kube::ResourceExt as _;
use serde::Serialize;

use crate::digest;
use crate::engine::Engines;
use crate::settings::Settings;

/// What is wanted.
#[derive(Debug, Clone, PartialEq)]
pub struct Valid {
    /// How many replicas, of which revision.
    pub wanted: Wanted,
    /// What each needs of its node.
    pub wish: Wish,
    /// What each runs, whichever node it is on.
    pub template: Template,
}

/// What a replica runs, apart from its node. Its digest is the revision.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Template {
    /// The engine's image.
    pub image: Image,
    /// The program.
    pub command: Vec<String>,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its environment.
    pub env: Vec<EnvVar>,
    /// The port of its HTTP server.
    pub port: i32,
    /// How it is asked whether it answers.
    pub health: Health,
    /// What it asks for beside GPUs.
    pub resources: WorkloadResources,
    /// The image that holds the model.
    pub model: Image,
}

/// What makes a deployment impossible to act on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Invalid {
    /// Why, in a word.
    pub reason: &'static str,
    /// Why, with the field and what to write instead.
    pub message: String,
}

impl From<InvalidField> for Invalid {
    fn from(field: InvalidField) -> Self {
        Self {
            reason: "InvalidSpec",
            message: field.to_string(),
        }
    }
}

/// Parses the specification.
pub fn validate(
    deployment: &AgentDeployment,
    engines: &Engines,
    settings: &Settings,
) -> Result<Valid, Invalid> {
    let wish = deployment.spec.wish()?;
    let template = template(deployment, engines, settings, &wish)?;
    Ok(Valid {
        wanted: Wanted {
            replicas: deployment.spec.replicas_wanted(),
            revision: digest::of(&template),
        },
        wish,
        template,
    })
}

fn template(
    deployment: &AgentDeployment,
    engines: &Engines,
    settings: &Settings,
    wish: &Wish,
) -> Result<Template, Invalid> {
    let spec = &deployment.spec;
    let engine = engines.get(&spec.engine.profile).ok_or_else(|| {
        let known: Vec<String> = engines
            .values()
            .map(|engine| format!("{} ({})", engine.name, engine.description))
            .collect();
        Invalid {
            reason: "UnknownEngine",
            message: format!(
                "spec.engine.profile: there is no engine profile {:?}; choose one of: {}",
                spec.engine.profile,
                known.join("; ")
            ),
        }
    })?;
    let resolved = |image: &Image| Image {
        reference: settings.images.resolve(&image.reference),
        pull_policy: image.pull_policy,
    };
    let path = Path::new(MODEL_MOUNT_PATH).join(if spec.model.path == "." {
        ""
    } else {
        &spec.model.path
    });
    let variable = |name: &str, value: String| EnvVar {
        name: name.to_owned(),
        value,
    };
    // Creo's own come first, so that the profile's and the customer's can refer to them.
    let mut env = vec![
        variable("CREO_MODEL_NAME", spec.model.name.clone()),
        variable(
            "CREO_MODEL_PATH",
            path.to_string_lossy().trim_end_matches('/').to_owned(),
        ),
        variable("CREO_PORT", engine.port.to_string()),
        variable("CREO_GPU_COUNT", spec.gpu.count.to_string()),
    ];
    let overridden = |one: &EnvVar| spec.engine.env.iter().any(|theirs| theirs.name == one.name);
    env.extend(engine.env().into_iter().filter(|one| !overridden(one)));
    env.extend(spec.engine.env.iter().cloned());
    Ok(Template {
        image: resolved(&engine.image()),
        command: engine.command.clone(),
        args: engine
            .args
            .iter()
            .chain(&spec.engine.args)
            .cloned()
            .collect(),
        env,
        port: i32::from(engine.port),
        health: engine.health(),
        resources: WorkloadResources {
            cpu_milli: wish.cpu_milli,
            memory_bytes: wish.memory_bytes,
            ephemeral_storage_bytes: wish.ephemeral_storage_bytes,
        },
        model: resolved(&spec.model.image),
    })
}

/// Where a deployment answers inside of the cluster.
#[must_use]
pub fn endpoint(deployment: &AgentDeployment) -> String {
    format!(
        "http://{}.{}.svc:{}/v1",
        deployment.name_any(),
        deployment.namespace().unwrap_or_default(),
        super::build::service::PORT
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deployment::fixture;

    fn valid(change: serde_json::Value) -> Result<Valid, Invalid> {
        validate(
            &fixture::deployment(change),
            &fixture::engines(),
            &fixture::settings(),
        )
    }

    #[test]
    fn a_specification_becomes_values_with_everything_resolved() {
        let valid = valid(serde_json::json!({
            "engine": {"profile": "tiny", "args": ["--more"], "env": [{"name": "MODE", "value": "theirs"}]},
        }))
        .unwrap();
        insta::assert_yaml_snapshot!(valid.template);
        assert_eq!(valid.wanted.replicas, 2);
        assert_eq!(valid.wish.gpu_memory_bytes, 16_000_000_000);
    }

    #[test]
    fn an_unknown_engine_is_refused_with_those_that_are_known() {
        let invalid = valid(serde_json::json!({"engine": {"profile": "tinny"}})).unwrap_err();
        assert_eq!(invalid.reason, "UnknownEngine");
        assert!(
            invalid.message.contains("tinny") && invalid.message.contains("tiny (for tests)"),
            "{}",
            invalid.message
        );
    }

    #[test]
    fn a_quantity_that_is_none_names_its_field() {
        let invalid = valid(serde_json::json!({"gpu": {"memory": "lots"}})).unwrap_err();
        assert!(
            invalid.message.starts_with("spec.gpu.memory"),
            "{}",
            invalid.message
        );
    }

    #[test]
    fn the_revision_changes_with_what_runs_and_not_with_where_or_how_many() {
        let revision = |change| valid(change).unwrap().wanted.revision;
        let same = revision(serde_json::json!({}));
        assert_eq!(revision(serde_json::json!({"replicas": 7})), same);
        assert_eq!(
            revision(serde_json::json!({"placement": {"regions": ["eu"]}})),
            same
        );
        assert_ne!(
            revision(serde_json::json!({"resources": {"memory": "2Gi"}})),
            same
        );
        assert_ne!(
            revision(serde_json::json!({"engine": {"profile": "tiny", "args": ["--more"]}})),
            same
        );
    }

    #[test]
    fn a_suspended_deployment_wants_no_replica() {
        assert_eq!(
            valid(serde_json::json!({"suspend": true}))
                .unwrap()
                .wanted
                .replicas,
            0
        );
    }

    #[test]
    fn the_whole_image_as_the_model_is_the_mount_itself() {
        let change =
            serde_json::json!({"model": {"name": "m", "image": {"reference": "m"}, "path": "."}});
        let valid = valid(change).unwrap();
        let path = valid
            .template
            .env
            .iter()
            .find(|one| one.name == "CREO_MODEL_PATH")
            .unwrap();
        assert_eq!(path.value, "/models");
    }
}
