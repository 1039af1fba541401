//! Names under which accounts stand in public exports.

use hmac::{Hmac, KeyInit as _, Mac as _};
use serde::{Deserialize, Serialize};
use sha2::Sha256;

use super::{Invalid, terms::hexadecimal};

/// The secret that pseudonyms follow from: 32 bytes, kept by the ledger and
/// given to an auditor alone.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Secret([u8; 32]);

impl Secret {
    /// A secret of these bytes.
    #[must_use]
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The account's name in one epoch: HMAC-SHA256 under the secret over the
    /// account's kind, name and the epoch, as `KIND:NAME/EPOCH`, in lower-case
    /// hexadecimal. Names of two epochs cannot be linked without the secret.
    #[must_use]
    pub fn pseudonym(&self, kind: &str, account: &str, epoch: i64) -> String {
        // An HMAC takes a key of any length; without a key there is no name.
        let Ok(mut hmac) = Hmac::<Sha256>::new_from_slice(&self.0) else {
            return String::new();
        };
        hmac.update(format!("{kind}:{account}/{epoch}").as_bytes());
        hexadecimal(&hmac.finalize().into_bytes())
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret(..)")
    }
}

impl From<Secret> for String {
    fn from(secret: Secret) -> Self {
        hexadecimal(&secret.0)
    }
}

impl TryFrom<String> for Secret {
    type Error = Invalid;

    fn try_from(text: String) -> Result<Self, Invalid> {
        let wrong = || Invalid::new("secret", "must be 64 hexadecimal digits");
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(wrong());
        }
        for (index, byte) in bytes.iter_mut().enumerate() {
            let digits = text.get(2 * index..2 * index + 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(digits, 16).map_err(|_| wrong())?;
        }
        Ok(Self(bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_another_name_in_every_epoch_and_under_every_secret() {
        let secret = Secret::new([7; 32]);
        let name = secret.pseudonym("customer", "acme", 1);
        assert_eq!(name.len(), 64);
        assert_eq!(name, secret.pseudonym("customer", "acme", 1));
        for other in [
            secret.pseudonym("customer", "acme", 2),
            secret.pseudonym("owner", "acme", 1),
            secret.pseudonym("customer", "acm", 1),
            Secret::new([8; 32]).pseudonym("customer", "acme", 1),
        ] {
            assert_ne!(name, other);
        }
    }

    #[test]
    fn a_secret_is_read_back_and_never_printed() {
        let secret = Secret::new([0xab; 32]);
        let text = String::from(secret.clone());
        assert_eq!(Secret::try_from(text), Ok(secret.clone()));
        assert_eq!(format!("{secret:?}"), "Secret(..)");
        for bad in ["", "ab", &"g".repeat(64), &"ä".repeat(32)] {
            assert!(Secret::try_from((*bad).to_owned()).is_err(), "{bad}");
        }
    }
}
