//! The API server as others than the administrator see it.

use creo_e2e::{cluster::Cluster, installation};
use k8s_openapi::api::{
    authentication::v1::TokenRequest,
    core::v1::{Pod, ServiceAccount},
    rbac::v1::{ClusterRole, ClusterRoleBinding, RoleBinding},
};
use kube::{
    Api, Client, Config, ResourceExt as _,
    api::{DeleteParams, ListParams, PostParams},
    config::{AuthInfo, KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};

/// The operator's account.
pub const OPERATOR: &str = "creo-operator";
/// The device plugin's account.
pub const PLUGIN: &str = "creo-gpu-device-plugin";

/// The user that an account of Creo's is.
pub fn account(name: &str) -> String {
    format!("system:serviceaccount:{}:{name}", installation::NAMESPACE)
}

/// A client of the user of this name, by impersonation.
pub async fn user(cluster: &Cluster, name: &str) -> Client {
    caller(cluster, |administrator| AuthInfo {
        impersonate: Some(name.to_owned()),
        ..administrator
    })
    .await
}

/// A client with this token and nothing else.
pub async fn bearer(cluster: &Cluster, token: &str) -> Client {
    caller(cluster, |_| {
        serde_json::from_value(json!({ "token": token })).expect("it is a user of a kubeconfig")
    })
    .await
}

async fn caller(cluster: &Cluster, change: impl FnOnce(AuthInfo) -> AuthInfo) -> Client {
    let mut file = Kubeconfig::read_from(cluster.kubeconfig()).expect("there is a kubeconfig");
    let user = file.auth_infos.first_mut().expect("it has a user");
    user.auth_info = user.auth_info.take().map(change);
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .expect("the kubeconfig is good");
    Client::try_from(config).expect("there is a client")
}

/// A token of the device plugin: of its pod on this node, or bound to no pod.
pub async fn plugin_token(client: &Client, node: Option<&str>) -> String {
    let mut spec = json!({ "audiences": [], "expirationSeconds": 600 });
    if let Some(node) = node {
        let pod = plugin_pod(client, node).await;
        spec["boundObjectRef"] = json!({
            "apiVersion": "v1", "kind": "Pod", "name": pod.name_any(), "uid": pod.uid(),
        });
    }
    let request: TokenRequest =
        serde_json::from_value(json!({ "metadata": {}, "spec": spec })).expect("it is a request");
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let issued = accounts
        .create_token_request(PLUGIN, &PostParams::default(), &request)
        .await
        .expect("the account gets a token");
    let issued = issued.status.and_then(|status| status.token);
    issued.expect("there is a token")
}

pub async fn plugin_pod(client: &Client, node: &str) -> Pod {
    let pods: Api<Pod> = Api::namespaced(client.clone(), installation::NAMESPACE);
    let plugins = ListParams::default()
        .labels("app.kubernetes.io/component=gpu-device-plugin")
        .fields(&format!("spec.nodeName={node}"));
    let found = pods.list(&plugins).await.expect("pods are listed");
    found
        .into_iter()
        .next()
        .expect("the device plugin runs there")
}

/// Rights that a test gives to a user or an account of Creo's, on top of others.
pub struct Grant {
    client: Client,
    name: String,
}

impl Grant {
    /// Lets `subject` use `verbs` on CreoNodes; `name` is the test's own.
    pub async fn of_creo_nodes(
        client: &Client,
        name: &str,
        subject: Value,
        verbs: &[&str],
    ) -> Self {
        let metadata = json!({ "name": name });
        let role: ClusterRole = parse(json!({
            "metadata": metadata,
            "rules": [{ "apiGroups": ["creo.cloud"], "resources": ["creonodes"], "verbs": verbs }],
        }));
        let binding: ClusterRoleBinding = parse(json!({
            "metadata": metadata,
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name },
            "subjects": [subject],
        }));
        let new = PostParams::default();
        Api::all(client.clone())
            .create(&new, &role)
            .await
            .expect("the role is created");
        Api::all(client.clone())
            .create(&new, &binding)
            .await
            .expect("the binding is created");
        Self {
            client: client.clone(),
            name: name.to_owned(),
        }
    }

    pub async fn revoke(self) {
        let now = DeleteParams::default();
        let bindings: Api<ClusterRoleBinding> = Api::all(self.client.clone());
        bindings
            .delete(&self.name, &now)
            .await
            .expect("the binding is deleted");
        let roles: Api<ClusterRole> = Api::all(self.client);
        roles
            .delete(&self.name, &now)
            .await
            .expect("the role is deleted");
    }
}

/// Gives a user one of Kubernetes' own roles in a namespace.
pub async fn give_role(client: &Client, namespace: &str, role: &str, user: &str) {
    let binding: RoleBinding = parse(json!({
        "metadata": { "name": format!("{role}-{user}") },
        "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role },
        "subjects": [person(user)],
    }));
    Api::namespaced(client.clone(), namespace)
        .create(&PostParams::default(), &binding)
        .await
        .expect("the binding is created");
}

/// A user as the subject of a binding.
pub fn person(name: &str) -> Value {
    json!({ "apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": name })
}

/// An account of Creo's as the subject of a binding.
pub fn process(name: &str) -> Value {
    json!({ "kind": "ServiceAccount", "name": name, "namespace": installation::NAMESPACE })
}

fn parse<K: serde::de::DeserializeOwned>(value: Value) -> K {
    serde_json::from_value(value).expect("it is an object of the kind")
}

/// The HTTP status and the message of an answer that must be a refusal.
pub fn refusal<T: std::fmt::Debug>(answer: kube::Result<T>) -> (u16, String) {
    match answer.expect_err("it is refused") {
        kube::Error::Api(status) => (status.code, status.message.clone()),
        error => panic!("no answer: {error}"),
    }
}
