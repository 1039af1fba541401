//! The certificates of a local cluster: one authority, EC P-256 throughout.

use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose,
};

use crate::{
    error::{Error, Result},
    paths,
};

/// The authority that signs every certificate of a cluster.
pub struct Authority {
    dir: PathBuf,
    certificate_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

/// A certificate and its key, as PEM text.
#[derive(Debug, Clone)]
pub struct Identity {
    /// The certificate.
    pub certificate_pem: String,
    /// The private key.
    pub key_pem: String,
}

impl Authority {
    /// Makes a new authority and writes `ca.crt` and `ca.key` into `dir`.
    ///
    /// # Errors
    ///
    /// The key cannot be made or the files cannot be written.
    pub fn create(dir: &Path) -> Result<Self> {
        let failed = |source| Error::Certificate {
            name: "the authority".to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(Vec::<String>::new()).map_err(failed)?;
        params.distinguished_name = distinguished_name("creo-e2e", None);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let certificate_pem = params.self_signed(&key).map_err(failed)?.pem();
        paths::make_dir(dir)?;
        paths::write_file(&dir.join("ca.crt"), &certificate_pem)?;
        paths::write_file(&dir.join("ca.key"), key.serialize_pem())?;
        Ok(Self {
            dir: dir.to_owned(),
            certificate_pem,
            issuer: Issuer::new(params, key),
        })
    }

    /// Reads back the authority that [`Authority::create`] wrote.
    ///
    /// # Errors
    ///
    /// The files cannot be read or are no certificate and key.
    pub fn open(dir: &Path) -> Result<Self> {
        let failed = |source| Error::Certificate {
            name: "the authority".to_owned(),
            source,
        };
        let certificate_pem = read(&dir.join("ca.crt"))?;
        let key = KeyPair::from_pem(&read(&dir.join("ca.key"))?).map_err(failed)?;
        let issuer = Issuer::from_ca_cert_pem(&certificate_pem, key).map_err(failed)?;
        Ok(Self {
            dir: dir.to_owned(),
            certificate_pem,
            issuer,
        })
    }

    /// The authority's own certificate.
    #[must_use]
    pub fn certificate_pem(&self) -> &str {
        &self.certificate_pem
    }

    /// A client's certificate: Kubernetes takes the common name as the user and
    /// the organisation as the group.
    ///
    /// # Errors
    ///
    /// The key cannot be made.
    pub fn client(&self, user: &str, group: Option<&str>) -> Result<Identity> {
        self.sign(user, group, &[], ExtendedKeyUsagePurpose::ClientAuth)
    }

    /// A server's certificate for the given names and addresses.
    ///
    /// # Errors
    ///
    /// The key cannot be made, or a name is no DNS name.
    pub fn server(&self, name: &str, names: &[String]) -> Result<Identity> {
        self.sign(name, None, names, ExtendedKeyUsagePurpose::ServerAuth)
    }

    /// Writes `identity` as `NAME.crt` and `NAME.key` beside the authority.
    ///
    /// # Errors
    ///
    /// The files cannot be written.
    pub fn write(&self, name: &str, identity: &Identity) -> Result<()> {
        paths::write_file(
            &self.dir.join(format!("{name}.crt")),
            &identity.certificate_pem,
        )?;
        paths::write_file(&self.dir.join(format!("{name}.key")), &identity.key_pem)
    }

    fn sign(
        &self,
        name: &str,
        group: Option<&str>,
        names: &[String],
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Identity> {
        let failed = |source| Error::Certificate {
            name: name.to_owned(),
            source,
        };
        let key = KeyPair::generate().map_err(failed)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(failed)?;
        params.distinguished_name = distinguished_name(name, group);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![usage];
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(Identity {
            certificate_pem: certificate.pem(),
            key_pem: key.serialize_pem(),
        })
    }
}

/// Writes a pair of keys for service account tokens into `dir`:
/// `service-accounts.key` signs, `service-accounts.pub` verifies.
///
/// # Errors
///
/// The keys cannot be made or written.
pub fn write_signing_keys(dir: &Path) -> Result<()> {
    let key = KeyPair::generate().map_err(|source| Error::Certificate {
        name: "service accounts".to_owned(),
        source,
    })?;
    paths::write_file(&dir.join("service-accounts.key"), key.serialize_pem())?;
    paths::write_file(&dir.join("service-accounts.pub"), key.public_key_pem())
}

fn distinguished_name(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name.push(DnType::CommonName, common_name);
    name
}

fn read(path: &Path) -> Result<String> {
    use crate::error::Context as _;
    std::fs::read_to_string(path).doing(|| format!("reading {}", path.display()))
}
