//! Writes as every controller does them: creates that answer with the slim type, deletes that
//! carry uid and resource version, and status by server-side apply.

use std::fmt::Debug;

use k8s_openapi::NamespaceResourceScope;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions, Request};
use kube::core::ObjectMeta;
use kube::{Client, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::ReconcileError;
use super::error::{is_already_exists, is_not_found};

/// What became of a create.
#[derive(Debug)]
pub enum Created<K> {
    /// The object was created.
    New(K),
    /// There was one of this name; this is how it is.
    Existing(K),
}

/// Creates `object`, which must have a name and a namespace, and reads the answer as `Out`, the
/// same kind in fewer fields. When the name is taken, the object that has it is read instead, so
/// that the caller can see whose it is: an earlier create whose answer was lost is ours.
pub async fn create<K, Out>(
    client: &Client,
    object: &K,
    doing: &'static str,
) -> Result<Created<Out>, ReconcileError>
where
    K: Resource<DynamicType = ()> + Serialize,
    Out: DeserializeOwned,
{
    let path = K::url_path(&(), object.namespace().as_deref());
    let request = Request::new(path);
    let body = serde_json::to_vec(object)
        .map_err(|error| ReconcileError::Invalid(format!("{doing}: {error}")))?;
    let build = |error| ReconcileError::of(doing, kube::Error::BuildRequest(error));
    let post = request
        .create(&PostParams::default(), body)
        .map_err(build)?;
    match client.request(post).await {
        Ok(created) => Ok(Created::New(created)),
        Err(error) if is_already_exists(&error) => {
            let get = request
                .get(&object.name_any(), &kube::api::GetParams::default())
                .map_err(build)?;
            match client.request(get).await {
                Ok(existing) => Ok(Created::Existing(existing)),
                // Gone again in between: the next look decides anew.
                Err(error) if is_not_found(&error) => Err(ReconcileError::Conflict { doing }),
                Err(error) => Err(ReconcileError::of(doing, error)),
            }
        }
        Err(error) => Err(ReconcileError::of(doing, error)),
    }
}

/// Deletes exactly the object that was looked at: another one of that name, or a change that
/// was not seen yet, is a conflict. True when the request was sent, false when it was gone.
pub async fn delete<K>(
    client: &Client,
    seen: &K,
    doing: &'static str,
) -> Result<bool, ReconcileError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug,
{
    let api = Api::<K>::namespaced(client.clone(), &seen.namespace().unwrap_or_default());
    let params = DeleteParams {
        preconditions: Some(Preconditions {
            uid: seen.uid(),
            resource_version: seen.resource_version(),
        }),
        ..DeleteParams::background()
    };
    match api.delete(&seen.name_any(), &params).await {
        Ok(_) => Ok(true),
        Err(error) if is_not_found(&error) => Ok(false),
        Err(error) => Err(ReconcileError::of(doing, error)),
    }
}

/// A status, as server-side apply takes it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct StatusOf<'a, S> {
    api_version: String,
    kind: String,
    metadata: ObjectMeta,
    status: &'a S,
}

/// Applies a status to exactly the object that was looked at, as `manager`: the uid and the
/// resource version go with it, so a status that was concluded from an older look is a conflict.
pub async fn apply_status<K, S>(
    api: &Api<K>,
    seen: &K,
    status: &S,
    manager: &'static str,
    doing: &'static str,
) -> Result<K, ReconcileError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
    S: Serialize + Debug,
{
    let body = StatusOf {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        metadata: ObjectMeta {
            name: seen.meta().name.clone(),
            namespace: seen.namespace(),
            uid: seen.uid(),
            resource_version: seen.resource_version(),
            ..ObjectMeta::default()
        },
        status,
    };
    let params = PatchParams::apply(manager).force();
    api.patch_status(&seen.name_any(), &params, &Patch::Apply(&body))
        .await
        .map_err(|error| ReconcileError::of(doing, error))
}
