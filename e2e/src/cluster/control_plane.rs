//! The control plane's components: what each is started with.

use std::{collections::BTreeMap, path::Path};

use super::{
    audit,
    network::{CONTROL_PLANE, KUBERNETES_SERVICE, PODS, SERVICES},
    spec::Tuning,
};
use crate::{
    certificates::{Authority, Identity, write_signing_keys},
    components::Programs,
    error::Result,
    kubeconfig, paths,
    supervisor::StartRequest,
};

/// The components that the others wait for.
pub(super) const FIRST: [&str; 2] = ["etcd", "kube-apiserver"];
/// The components that end at once where the API server does not know its
/// built-in roles yet.
pub(super) const SECOND: [&str; 3] = ["kube-controller-manager", "kube-scheduler", "coredns"];

/// Writes certificates, kubeconfigs and configurations of the control plane.
/// Gives the administrator's identity.
pub(super) fn configure(dir: &Path, name: &str, authority: &Authority) -> Result<Identity> {
    let server_names = [
        "kubernetes",
        "kubernetes.default",
        "kubernetes.default.svc",
        "kubernetes.default.svc.cluster.local",
        "localhost",
        "127.0.0.1",
        &CONTROL_PLANE.to_string(),
        &KUBERNETES_SERVICE.to_string(),
    ]
    .map(str::to_owned);
    authority.write(
        "apiserver",
        &authority.server("kube-apiserver", &server_names)?,
    )?;
    let kubelet_client = authority.client("kube-apiserver", Some("system:masters"))?;
    authority.write("kubelet-client", &kubelet_client)?;
    // Its own name, and only it, is allowed to say who a caller is: the
    // authority is shared with every other client.
    authority.write("front-proxy", &authority.client("front-proxy", None)?)?;
    write_signing_keys(&dir.join("pki"))?;

    let server = format!("https://{CONTROL_PLANE}:6443");
    let write = |component: &str, identity: &Identity| {
        let text = kubeconfig::text(name, &server, authority.certificate_pem(), identity);
        paths::write_file(&dir.join(format!("{component}.kubeconfig")), text)
    };
    write(
        "kube-controller-manager",
        &authority.client("system:kube-controller-manager", None)?,
    )?;
    write(
        "kube-scheduler",
        &authority.client("system:kube-scheduler", None)?,
    )?;
    write("kube-proxy", &authority.client("system:kube-proxy", None)?)?;
    let admin = authority.client("creo-e2e-admin", Some("system:masters"))?;
    write("coredns", &admin)?;
    paths::write_file(&dir.join("Corefile"), corefile(dir))?;
    paths::write_file(
        &dir.join("audit-policy.json"),
        format!("{:#}\n", audit::policy()),
    )?;
    Ok(admin)
}

/// What a component is started with.
pub(super) fn request(
    component: &str,
    dir: &Path,
    programs: &Programs,
    tuning: &Tuning,
) -> Result<StartRequest> {
    let at = |path: &str| dir.join(path).to_string_lossy().into_owned();
    let mut argv = vec![programs.path(component)?.to_string_lossy().into_owned()];
    argv.extend(match component {
        "etcd" => etcd(&at),
        "kube-apiserver" => api_server(&at),
        "kube-controller-manager" => controller_manager(&at, tuning),
        "kube-scheduler" => scheduler(&at, tuning),
        _ => vec![format!("-conf={}", at("Corefile"))],
    });
    Ok(StartRequest {
        name: component.to_owned(),
        argv,
        env: BTreeMap::new(),
        log: dir.join(format!("logs/{component}.log")),
    })
}

fn etcd(at: &impl Fn(&str) -> String) -> Vec<String> {
    vec![
        format!("--data-dir={}", at("etcd")),
        "--listen-client-urls=http://127.0.0.1:2379".to_owned(),
        "--advertise-client-urls=http://127.0.0.1:2379".to_owned(),
        "--listen-peer-urls=http://127.0.0.1:2380".to_owned(),
        // The data lives no longer than the machine's page cache would lose it.
        "--unsafe-no-fsync".to_owned(),
        "--log-level=warn".to_owned(),
    ]
}

fn api_server(at: &impl Fn(&str) -> String) -> Vec<String> {
    vec![
        format!("--advertise-address={CONTROL_PLANE}"),
        "--bind-address=0.0.0.0".to_owned(),
        "--secure-port=6443".to_owned(),
        "--etcd-servers=http://127.0.0.1:2379".to_owned(),
        format!("--service-cluster-ip-range={SERVICES}"),
        format!("--tls-cert-file={}", at("pki/apiserver.crt")),
        format!("--tls-private-key-file={}", at("pki/apiserver.key")),
        format!("--client-ca-file={}", at("pki/ca.crt")),
        "--authorization-mode=Node,RBAC".to_owned(),
        "--enable-admission-plugins=NodeRestriction".to_owned(),
        "--allow-privileged=true".to_owned(),
        format!(
            "--service-account-key-file={}",
            at("pki/service-accounts.pub")
        ),
        format!(
            "--service-account-signing-key-file={}",
            at("pki/service-accounts.key")
        ),
        "--service-account-issuer=https://kubernetes.default.svc.cluster.local".to_owned(),
        format!(
            "--kubelet-client-certificate={}",
            at("pki/kubelet-client.crt")
        ),
        format!("--kubelet-client-key={}", at("pki/kubelet-client.key")),
        // Else logs and exec look the node's name up in DNS.
        "--kubelet-preferred-address-types=InternalIP".to_owned(),
        format!("--requestheader-client-ca-file={}", at("pki/ca.crt")),
        "--requestheader-allowed-names=front-proxy".to_owned(),
        "--requestheader-username-headers=X-Remote-User".to_owned(),
        "--requestheader-group-headers=X-Remote-Group".to_owned(),
        "--requestheader-extra-headers-prefix=X-Remote-Extra-".to_owned(),
        format!("--proxy-client-cert-file={}", at("pki/front-proxy.crt")),
        format!("--proxy-client-key-file={}", at("pki/front-proxy.key")),
        format!("--audit-policy-file={}", at("audit-policy.json")),
        format!("--audit-log-path={}", at(audit::LOG)),
        // A log of this size and the one before it, of a cluster that runs for long.
        "--audit-log-maxsize=32".to_owned(),
        "--audit-log-maxbackup=1".to_owned(),
        // A restart for a test does not wait out every watch.
        "--shutdown-delay-duration=0s".to_owned(),
    ]
}

fn controller_manager(at: &impl Fn(&str) -> String, tuning: &Tuning) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", at("kube-controller-manager.kubeconfig")),
        format!(
            "--authentication-kubeconfig={}",
            at("kube-controller-manager.kubeconfig")
        ),
        format!(
            "--authorization-kubeconfig={}",
            at("kube-controller-manager.kubeconfig")
        ),
        format!(
            "--service-account-private-key-file={}",
            at("pki/service-accounts.key")
        ),
        format!("--root-ca-file={}", at("pki/ca.crt")),
        format!("--cluster-signing-cert-file={}", at("pki/ca.crt")),
        format!("--cluster-signing-key-file={}", at("pki/ca.key")),
        "--use-service-account-credentials=true".to_owned(),
        "--leader-elect=false".to_owned(),
        format!("--cluster-cidr={PODS}"),
        "--node-monitor-period=2s".to_owned(),
        format!("--node-monitor-grace-period={}s", tuning.node_grace_s),
        format!("--kube-api-qps={}", tuning.api_qps),
        format!("--kube-api-burst={}", tuning.api_qps),
    ]
}

fn scheduler(at: &impl Fn(&str) -> String, tuning: &Tuning) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", at("kube-scheduler.kubeconfig")),
        format!(
            "--authentication-kubeconfig={}",
            at("kube-scheduler.kubeconfig")
        ),
        format!(
            "--authorization-kubeconfig={}",
            at("kube-scheduler.kubeconfig")
        ),
        "--leader-elect=false".to_owned(),
        format!("--kube-api-qps={}", tuning.api_qps),
        format!("--kube-api-burst={}", tuning.api_qps),
    ]
}

fn corefile(dir: &Path) -> String {
    format!(
        ".:53 {{
    bind {CONTROL_PLANE}
    errors
    health 127.0.0.1:8081
    kubernetes cluster.local in-addr.arpa {{
        kubeconfig {} {}
        ttl 5
    }}
    cache 5
}}
",
        dir.join("coredns.kubeconfig").display(),
        dir.file_name()
            .map(|name| name.to_string_lossy().into_owned())
            .unwrap_or_default(),
    )
}
