use creo_market::money::terms::hexadecimal;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Account, operation::as_text};

/// One transfer, or the note that something happened without one. Entries are
/// never changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its place: from 1, without gaps.
    pub sequence: i64,
    /// The key of the operation that it follows from.
    pub key: String,
    /// The SHA-256 of that operation's JSON, in hexadecimal.
    pub digest: String,
    /// Why, see [`crate::Cause::word`].
    pub cause: String,
    /// From which account; absent in a note.
    pub debit: Option<Account>,
    /// To which account; absent in a note.
    pub credit: Option<Account>,
    /// How much, in micro-credits; 0 in a note.
    #[serde(with = "as_text")]
    pub amount_micro: i64,
    /// When, in milliseconds since 1970.
    pub at_ms: i64,
    /// The link: the SHA-256 of the entry before and of this one, in
    /// hexadecimal. See [`Entry::link`].
    pub hash: String,
}

/// The last entry: whoever keeps it elsewhere can tell whether the ledger was
/// changed since.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// The last entry's place; 0 where there is none.
    pub sequence: i64,
    /// The last entry's link.
    pub hash: String,
}

impl Default for Head {
    fn default() -> Self {
        Self {
            sequence: 0,
            hash: "0".repeat(64),
        }
    }
}

impl Entry {
    /// The link of this entry after the one of hash `before`: the SHA-256, in
    /// hexadecimal, of these lines, each ended by a line feed: `creo.entry.v1`,
    /// the hash before, and `name=value` of all fields but the link itself, in
    /// their order; absent accounts are empty.
    #[must_use]
    pub fn link(&self, before: &str) -> String {
        let account = |account: &Option<Account>| {
            account
                .as_ref()
                .map(ToString::to_string)
                .unwrap_or_default()
        };
        let text = format!(
            "creo.entry.v1\n{before}\nsequence={}\nkey={}\ndigest={}\ncause={}\ndebit={}\ncredit={}\namount_micro={}\nat_ms={}\n",
            self.sequence,
            self.key,
            self.digest,
            self.cause,
            account(&self.debit),
            account(&self.credit),
            self.amount_micro,
            self.at_ms,
        );
        hexadecimal(&Sha256::digest(text))
    }

    /// The head that the ledger has after it.
    #[must_use]
    pub fn head(&self) -> Head {
        Head {
            sequence: self.sequence,
            hash: self.hash.clone(),
        }
    }
}
