//! Who may write what, as the chart's ValidatingAdmissionPolicies enforce it.
//!
//! What is only tried is a dry run: admission says its word, and nothing is
//! written.

use creo_api::{AgentDeployment, CreoNode, Placement};
use k8s_openapi::api::admissionregistration::v1::{ValidatingAdmissionPolicy, Validation};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use serde_json::{Value, json};

use crate::{
    callers::{self, Grant, OPERATOR, PLUGIN, refusal},
    shared::{Space, beside_others, eventually, names},
};

fn dry_run() -> PatchParams {
    PatchParams {
        dry_run: true,
        ..PatchParams::default()
    }
}

fn creation() -> PostParams {
    PostParams {
        dry_run: true,
        ..PostParams::default()
    }
}

fn deletion() -> DeleteParams {
    DeleteParams {
        dry_run: true,
        ..DeleteParams::default()
    }
}

async fn try_status(client: &Client, node: &str, status: &Value) -> kube::Result<CreoNode> {
    let change = json!({ "status": status });
    Api::all(client.clone())
        .patch_status(node, &dry_run(), &Patch::Merge(change))
        .await
}

async fn try_spec(client: &Client, node: &str, spec: &Value) -> kube::Result<CreoNode> {
    let change = json!({ "spec": spec });
    Api::all(client.clone())
        .patch(node, &dry_run(), &Patch::Merge(change))
        .await
}

fn offer_of(name: &str, accepted: bool) -> CreoNode {
    serde_json::from_value(json!({
        "metadata": { "name": name },
        "spec": {
            "source": { "kubernetesNode": name },
            "owner": "acme",
            "accepted": accepted,
            "offer": { "priceMicroPerGpuHour": 1, "region": "local" },
        },
    }))
    .expect("it is a CreoNode")
}

/// The API server checks the types of a policy's expressions once, when the policy is new; those
/// of the chart are new together with the kinds, and so before it can. A copy is looked at with
/// the kinds there. It has one mistake, which shows that it was looked at.
#[tokio::test(flavor = "multi_thread")]
async fn the_expressions_of_every_policy_fit_the_types_of_the_kinds() {
    let hold = beside_others().await;
    let policies: Api<ValidatingAdmissionPolicy> = Api::all(hold.client.clone());
    let ours = ListParams::default().labels("app.kubernetes.io/part-of=creo");
    let installed = policies
        .list(&ours)
        .await
        .expect("policies are listed")
        .items;
    assert_eq!(
        names(&installed),
        ["creo-acceptance", "creo-claims", "creo-placements"]
    );
    for policy in installed {
        let mut copy = ValidatingAdmissionPolicy::default();
        let name = format!("test-{}", policy.name_any());
        copy.metadata.name = Some(name.clone());
        copy.spec = policy.spec;
        let validations = copy
            .spec
            .as_mut()
            .and_then(|spec| spec.validations.as_mut())
            .expect("it has validations");
        let mistaken = format!("spec.validations[{}].expression", validations.len());
        validations.push(Validation {
            expression: "object.spec.unheard == 1".to_owned(),
            ..Validation::default()
        });
        policies
            .create(&PostParams::default(), &copy)
            .await
            .expect("the copy is taken");
        let checked = eventually(
            "the API server has looked at the expressions",
            async || {
                policies
                    .get_status(&name)
                    .await
                    .map_err(|error| error.to_string())
            },
            |policy| {
                policy
                    .status
                    .as_ref()
                    .is_some_and(|status| status.type_checking.is_some())
            },
        )
        .await;
        let warnings = checked
            .status
            .and_then(|status| status.type_checking?.expression_warnings)
            .unwrap_or_default();
        let places: Vec<&str> = warnings
            .iter()
            .map(|warning| warning.field_ref.as_str())
            .collect();
        assert_eq!(places, [mistaken], "{name}: {warnings:#?}");
        policies
            .delete(&name, &DeleteParams::default())
            .await
            .expect("the copy is deleted");
    }
}

/// Changes of a status in which there is more than claims.
fn what_is_the_operators() -> [Value; 8] {
    let condition = json!({
        "type": "Ready", "status": "True", "reason": "Trust", "message": "all is well",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let isolation = json!({
        "verdict": "Isolated", "message": "trust me", "checkedAt": "2026-01-01T00:00:00Z",
        "bootId": "", "containerRuntime": "", "image": "",
    });
    [
        json!({ "isolation": isolation }),
        json!({ "isolation": null }),
        json!({ "conditions": [condition] }),
        json!({ "conditions": null }),
        json!({ "capacity": { "gpusFree": 99 } }),
        json!({ "capacity": null }),
        json!({ "serviceClass": "Degraded" }),
        json!({ "claims": { "driverVersion": "1" }, "observedGeneration": 99 }),
    ]
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_plugins_token_writes_the_claims_of_its_own_node_and_nothing_else() {
    let hold = beside_others().await;
    let client = async |node| {
        let token = callers::plugin_token(&hold.client, node).await;
        callers::bearer(&hold.cluster, &token).await
    };
    let (first, second, unbound) = (
        client(Some("gpu-1")).await,
        client(Some("gpu-2")).await,
        client(None).await,
    );
    let claims = json!({ "claims": { "driverVersion": "999.0" } });
    for (plugin, node) in [(&first, "gpu-1"), (&second, "gpu-2")] {
        let written = try_status(plugin, node, &claims)
            .await
            .expect("its own claims");
        let claims = written
            .status
            .and_then(|status| status.claims)
            .expect("there are claims");
        assert_eq!(claims.driver_version.as_deref(), Some("999.0"));
    }

    let of_another = |node| {
        format!(
            "belongs to the device plugin on node {node}, which may not write the claims of another node"
        )
    };
    let unbound_says =
        "this token is not bound to a pod; only the device plugin that runs on a node".to_owned();
    let claims_alone = "the device plugin may change status.claims alone";
    let mut refusals = vec![
        (&first, "gpu-2", claims.clone(), of_another("gpu-1")),
        (&second, "gpu-1", claims.clone(), of_another("gpu-2")),
        (&unbound, "gpu-1", claims, unbound_says),
    ];
    for status in what_is_the_operators() {
        refusals.push((&first, "gpu-1", status, claims_alone.to_owned()));
    }
    for (plugin, node, status, message) in refusals {
        let (code, said) = refusal(try_status(plugin, node, &status).await);
        assert_eq!(code, 403, "{status}: {said}");
        assert!(
            said.contains(&message),
            "{status}: the answer lacks {message:?}: {said}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_device_plugin_writes_no_offers_even_where_a_role_would_let_it() {
    let hold = beside_others().await;
    let token = callers::plugin_token(&hold.client, Some("gpu-1")).await;
    let plugin = callers::bearer(&hold.cluster, &token).await;
    let price = json!({ "offer": { "priceMicroPerGpuHour": 7 } });
    let (code, said) = refusal(try_spec(&plugin, "gpu-1", &price).await);
    assert!(
        code == 403 && said.contains(r#"cannot patch resource "creonodes""#),
        "{said}"
    );

    let subject = callers::process(PLUGIN);
    let verbs = ["create", "patch", "delete"];
    let grant = Grant::of_creo_nodes(&hold.client, "test-wide-plugin", subject, &verbs).await;
    let message = "the device plugin may write status.claims and nothing else";
    let offers: Api<CreoNode> = Api::all(plugin.clone());
    eventually(
        "the role acts, and the policy refuses the change",
        async || Ok(refusal(try_spec(&plugin, "gpu-1", &price).await)),
        |(code, said)| *code == 403 && said.contains(message),
    )
    .await;
    let (_, said) = refusal(
        offers
            .create(&creation(), &offer_of("test-by-plugin", false))
            .await,
    );
    assert!(said.contains(message), "{said}");
    let (_, said) = refusal(offers.delete("gpu-1", &deletion()).await);
    assert!(said.contains(message), "{said}");
    grant.revoke().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn accepting_a_node_and_changing_its_owner_need_the_verb_accept() {
    let hold = beside_others().await;
    let price = json!({ "offer": { "priceMicroPerGpuHour": 7 } });
    let may_write = async |name: &'static str, verbs: &[&str]| {
        let grant = Grant::of_creo_nodes(&hold.client, name, callers::person(name), verbs).await;
        let client = callers::user(&hold.cluster, name).await;
        eventually(
            "the role acts",
            async || {
                try_spec(&client, "gpu-1", &price)
                    .await
                    .map_err(|error| error.to_string())
            },
            |_| true,
        )
        .await;
        (client, grant)
    };
    let (provider, role) = may_write("test-provider", &["get", "create", "patch"]).await;
    let (administrator, wider) =
        may_write("test-administrator", &["get", "create", "patch", "accept"]).await;
    let create = async |client: &Client, accepted| {
        let offer = offer_of("test-offer", accepted);
        Api::<CreoNode>::all(client.clone())
            .create(&creation(), &offer)
            .await
    };

    create(&provider, false)
        .await
        .expect("anyone with the right may offer");
    try_spec(&provider, "gpu-1", &json!({ "offer": { "cordon": true } }))
        .await
        .expect("the offer is theirs");
    for (change, field) in [
        (json!({ "accepted": false }), "spec.accepted"),
        (json!({ "owner": "someone-else" }), "spec.owner"),
    ] {
        let (code, said) = refusal(try_spec(&provider, "gpu-1", &change).await);
        assert_eq!(code, 403, "{said}");
        assert!(
            said.contains(&format!(
                r#"{field} needs the verb "accept" on creonodes.creo.cloud"#
            )),
            "{said}"
        );
        try_spec(&administrator, "gpu-1", &change)
            .await
            .expect("with the verb it may be changed");
    }
    let (code, said) = refusal(create(&provider, true).await);
    assert!(
        code == 403 && said.contains(r#"spec.accepted needs the verb "accept""#),
        "{said}"
    );
    create(&administrator, true)
        .await
        .expect("with the verb it may be accepted from the start");
    role.revoke().await;
    wider.revoke().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn placements_are_written_by_the_operator_alone() {
    let hold = beside_others().await;
    let space = Space::restricted(&hold.client).await;
    space.deploy("chat", 1).await;
    space.wait_ready("chat").await;
    let there = space.list_placements().await.remove(0);
    let name = there.name_any();
    let customer = format!("{}-customer", space.name);
    callers::give_role(&hold.client, &space.name, "edit", &customer).await;
    let customer = callers::user(&hold.cluster, &customer).await;
    let placements = |client: &Client| Api::<Placement>::namespaced(client.clone(), &space.name);

    // A customer writes wishes, reads what became of them, and has no right to write that.
    eventually(
        "the role acts",
        async || {
            placements(&customer)
                .get(&name)
                .await
                .map_err(|error| error.to_string())
        },
        |_| true,
    )
    .await;
    let wishes: Api<AgentDeployment> = Api::namespaced(customer.clone(), &space.name);
    let more = Patch::Merge(json!({ "spec": { "replicas": 2 } }));
    wishes
        .patch("chat", &dry_run(), &more)
        .await
        .expect("their own wish");
    wishes
        .patch_scale("chat", &dry_run(), &more)
        .await
        .expect("and its scale");
    let relabelled = Patch::Merge(json!({ "metadata": { "labels": { "mine": "true" } } }));
    let (code, said) = refusal(
        placements(&customer)
            .patch(&name, &dry_run(), &relabelled)
            .await,
    );
    assert!(
        code == 403 && said.contains(r#"cannot patch resource "placements""#),
        "{said}"
    );

    // Whoever has every right is told who writes them.
    let all = placements(&hold.client);
    let mut another = there.clone();
    another.metadata = kube::core::ObjectMeta {
        name: Some("by-hand".to_owned()),
        ..Default::default()
    };
    let price = Patch::Merge(json!({ "status": { "message": "changed by hand" } }));
    for answer in [
        all.create(&creation(), &another).await.map(drop),
        all.patch(&name, &dry_run(), &relabelled).await.map(drop),
        all.patch_status(&name, &dry_run(), &price).await.map(drop),
        all.delete(&name, &deletion()).await.map(drop),
    ] {
        let (code, said) = refusal(answer);
        assert_eq!(code, 403, "{said}");
        let message = "Placements are written by Creo's operator alone; change, scale or delete the AgentDeployment";
        assert!(said.contains(message), "{said}");
    }
    let operator = callers::user(&hold.cluster, &callers::account(OPERATOR)).await;
    placements(&operator)
        .patch(&name, &dry_run(), &relabelled)
        .await
        .expect("the operator may");
    space.remove().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kubernetes_own_garbage_collection_passes_whether_in_the_background_or_the_foreground() {
    let hold = beside_others().await;
    let space = Space::restricted(&hold.client).await;
    for (name, params) in [
        ("back", DeleteParams::background()),
        ("fore", DeleteParams::foreground()),
    ] {
        space.deploy(name, 1).await;
        space.wait_ready(name).await;
        space
            .deployments()
            .delete(name, &params)
            .await
            .expect("it is deleted");
        eventually(
            "the deployment is gone with its placements and pods",
            async || {
                let mut left = names(&space.list_placements().await);
                left.extend(names(&space.pods_of(name).await));
                let wish = space
                    .deployments()
                    .get_opt(name)
                    .await
                    .map_err(|error| error.to_string())?;
                left.extend(wish.map(|wish| wish.name_any()));
                Ok(left)
            },
            Vec::is_empty,
        )
        .await;
    }
    space.remove().await;
}
