//! Both ends of the proxy: the client that reaches the API server with the
//! original credentials, and the certificates by which the controller and the
//! proxy know each other.

use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use kube::config::{
    AuthInfo, Cluster, Context, KubeConfigOptions, Kubeconfig, NamedAuthInfo, NamedCluster,
    NamedContext,
};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::server::WebPkiClientVerifier;

use super::Error;

/// The one name in the controller's kubeconfig.
const CONTEXT: &str = "fault-proxy";

/// What the proxy needs to serve and the controller to connect.
pub(super) struct Identity {
    authority: CertifiedIssuer<'static, KeyPair>,
    client_certificate: String,
    client_key: String,
    server: rustls::ServerConfig,
}

impl Identity {
    /// Makes a certificate authority that nobody else trusts, and two
    /// certificates. The controller has to show its own: the proxy lends out
    /// the rights of the original credentials, so it serves no other process.
    pub(super) fn generate() -> Result<Self, Error> {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, CONTEXT);
        let authority = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;

        let server_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST))];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let server_certificate = params.signed_by(&server_key, &authority)?;

        let client_key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        let client_certificate = params.signed_by(&client_key, &authority)?;

        let server = server_config(
            authority.der().clone(),
            server_certificate.der().clone(),
            PrivatePkcs8KeyDer::from(server_key.serialize_der()).into(),
        )?;
        Ok(Self {
            client_certificate: client_certificate.pem(),
            client_key: client_key.serialize_pem(),
            authority,
            server,
        })
    }

    /// The TLS side of the listener.
    pub(super) fn server(&self) -> Arc<rustls::ServerConfig> {
        Arc::new(self.server.clone())
    }

    /// Writes the controller's kubeconfig and the files that it names into
    /// `directory`, for this user alone, and returns its path.
    pub(super) fn write_kubeconfig(
        &self,
        directory: &Path,
        address: SocketAddr,
        namespace: &str,
    ) -> Result<PathBuf, Error> {
        let write = |name: &str, content: &str| {
            let path = directory.join(name);
            write_private(&path, content)
                .map(|()| path.display().to_string())
                .map_err(|source| Error::File { path, source })
        };
        let cluster = Cluster {
            server: Some(format!("https://{address}")),
            certificate_authority: Some(write("ca.crt", &self.authority.pem())?),
            ..Cluster::default()
        };
        let user = AuthInfo {
            client_certificate: Some(write("client.crt", &self.client_certificate)?),
            client_key: Some(write("client.key", &self.client_key)?),
            ..AuthInfo::default()
        };
        let context = Context {
            cluster: CONTEXT.to_owned(),
            user: Some(CONTEXT.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..Context::default()
        };
        let kubeconfig = Kubeconfig {
            clusters: vec![NamedCluster {
                name: CONTEXT.to_owned(),
                cluster: Some(cluster),
                ..NamedCluster::default()
            }],
            auth_infos: vec![NamedAuthInfo {
                name: CONTEXT.to_owned(),
                auth_info: Some(user),
                ..NamedAuthInfo::default()
            }],
            contexts: vec![NamedContext {
                name: CONTEXT.to_owned(),
                context: Some(context),
                ..NamedContext::default()
            }],
            current_context: Some(CONTEXT.to_owned()),
            kind: Some("Config".to_owned()),
            api_version: Some("v1".to_owned()),
            ..Kubeconfig::default()
        };
        // JSON is YAML, and every reader of kubeconfigs reads it.
        let json = serde_json::to_string_pretty(&kubeconfig).map_err(Error::Encode)?;
        write("kubeconfig", &json).map(PathBuf::from)
    }
}

/// A client for the API server that `kubeconfig` names, and that file's
/// default namespace. It never retries and never gives up early: what happens
/// to a request is the rules' business.
pub(super) async fn upstream(kubeconfig: &Path) -> Result<(kube::Client, String), Error> {
    let unusable = |reason: String| Error::Kubeconfig {
        path: kubeconfig.to_owned(),
        reason,
    };
    let file = Kubeconfig::read_from(kubeconfig).map_err(|error| unusable(error.to_string()))?;
    let mut config = kube::Config::from_custom_kubeconfig(file, &KubeConfigOptions::default())
        .await
        .map_err(|error| unusable(error.to_string()))?;
    config.default_retry = false;
    config.read_timeout = None;
    let namespace = config.default_namespace.clone();
    let client = kube::Client::try_from(config).map_err(|error| unusable(error.to_string()))?;
    Ok((client, namespace))
}

fn server_config(
    authority: CertificateDer<'static>,
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
) -> Result<rustls::ServerConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots.add(authority)?;
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| Error::Tls(rustls::Error::General(error.to_string())))?;
    let mut config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_single_cert(vec![certificate], key)?;
    // One request a connection at a time, so that dropping a reply drops no other.
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

fn write_private(path: &Path, content: &str) -> std::io::Result<()> {
    // `mode` acts on new files alone: one with wider rights must not stay.
    if path.exists() {
        fs::remove_file(path)?;
    }
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)?;
    file.write_all(content.as_bytes())
}
