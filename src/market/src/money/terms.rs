//! What a Placement was agreed on, as far as it decides about money.
//!
//! Terms never change; their digest is what metering, charges and proofs refer
//! to. The canonical bytes are lines of text, so that any language can write
//! them: `creo.terms.v1`, then one `name=value` a line in the order of the
//! fields, numbers in decimal, yes and no as `1` and `0`, each line ended by a
//! line feed.

use std::fmt::Write as _;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::{Invalid, amount::WHOLE_BP};

/// The most micro-credits that a GPU may cost for an hour: a million credits.
pub const PRICE_MICRO_PER_GPU_HOUR_MAX: i64 = 1_000_000_000_000;
/// The most micro-credits that a GiB may cost for a month, or a million tokens.
/// It is lower than that of a GPU because their amounts are larger: so every
/// product stays within `i128` for a hundred years.
pub const PRICE_MICRO_MAX: i64 = 1_000_000_000;
/// The most storage that is agreed on: 16 PiB.
pub const STORAGE_GIB_MAX: i64 = 1 << 24;
/// The most GPUs of one Placement.
pub const GPU_COUNT_MAX: i64 = 1_024;
/// The highest tier: ten times the price.
pub const TIER_BP_MAX: i64 = 100_000;
/// The longest notice of an interruption: a week.
pub const NOTICE_SECONDS_MAX: i64 = 604_800;
/// The most requests at a time that may be agreed on.
pub const PARALLELISM_MAX: i64 = 1_000_000;
/// The latest time that is understood, in milliseconds since 1970: the year 5138.
pub const TIME_MS_MAX: i64 = 100_000_000_000_000;

/// How much a customer minds waiting: what the objectives follow from. The
/// price of it is `tier_bp` of the terms, agreed like every other price.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Tier {
    /// Cheap, with the loosest objectives.
    Economy,
    /// What is meant where nothing is said.
    #[default]
    Standard,
    /// The tightest objectives.
    Priority,
}

impl Tier {
    /// The tier's name, as in JSON and in the canonical bytes.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Economy => "economy",
            Self::Standard => "standard",
            Self::Priority => "priority",
        }
    }
}

/// What is charged for, and at what price. A price of 0 is free.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Prices {
    /// Micro-credits for one GPU and hour; 0 to [`PRICE_MICRO_PER_GPU_HOUR_MAX`].
    pub price_micro_per_gpu_hour: i64,
    /// Micro-credits for a GiB of storage and month of 730 hours; 0 to
    /// [`PRICE_MICRO_MAX`].
    pub price_micro_per_gib_month: i64,
    /// Micro-credits for a million tokens read; 0 to [`PRICE_MICRO_MAX`].
    pub price_micro_per_million_tokens_in: i64,
    /// Micro-credits for a million tokens written; 0 to [`PRICE_MICRO_MAX`].
    pub price_micro_per_million_tokens_out: i64,
    /// Micro-credits for a million tokens read from a cache; 0 to
    /// [`PRICE_MICRO_MAX`].
    pub price_micro_per_million_tokens_cached: i64,
}

/// Who gets what of a charge, and what the customer pays beside it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Shares {
    /// What the customer pays beside the charge, in basis points of it; 0 to
    /// 10,000. Default: 100, which pays for the rails.
    pub customer_fee_bp: i64,
    /// The node's part of the charge, in basis points. Default: 8,500.
    pub node_bp: i64,
    /// The validators' part of the charge, in basis points. Default: 500.
    pub validator_bp: i64,
    /// The platform's part of the charge, in basis points. The three parts sum
    /// to 10,000. Default: 1,000.
    pub platform_bp: i64,
}

impl Default for Shares {
    fn default() -> Self {
        Self {
            customer_fee_bp: 100,
            node_bp: 8_500,
            validator_bp: 500,
            platform_bp: 1_000,
        }
    }
}

impl Shares {
    /// Refuses shares that do not sum to the whole.
    ///
    /// # Errors
    ///
    /// The error names the share that is out of its bounds, or their sum.
    pub fn validate(&self) -> Result<(), Invalid> {
        for (field, value) in [
            ("customer_fee_bp", self.customer_fee_bp),
            ("node_bp", self.node_bp),
            ("validator_bp", self.validator_bp),
            ("platform_bp", self.platform_bp),
        ] {
            Invalid::unless_within(field, value, 0, WHOLE_BP)?;
        }
        let sum = self.node_bp + self.validator_bp + self.platform_bp;
        if sum != WHOLE_BP {
            return Err(Invalid::new(
                "node_bp + validator_bp + platform_bp",
                format!("must sum to {WHOLE_BP}, and sum to {sum}"),
            ));
        }
        Ok(())
    }
}

/// What was agreed between a customer and the owner of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Terms {
    /// The Placement: 1 to 63 characters as in an account's name.
    pub placement: String,
    /// The account that pays.
    pub customer: String,
    /// The node, 1 to 253 bytes.
    pub node: String,
    /// The account that is paid for the node.
    pub owner: String,
    /// The GPUs' model, 1 to 128 bytes.
    pub gpu_model: String,
    /// GPUs; 0 (no GPU) to [`GPU_COUNT_MAX`].
    pub gpu_count: i64,
    /// Storage, in GiB; 0 to [`STORAGE_GIB_MAX`].
    #[serde(default)]
    pub storage_gib: i64,
    /// What is charged for.
    pub prices: Prices,
    /// What the objectives follow from.
    #[serde(default)]
    pub tier: Tier,
    /// What the tier makes of every price, in basis points; 1 to
    /// [`TIER_BP_MAX`]. Default: 10,000, the price as it is.
    #[serde(default = "whole")]
    pub tier_bp: i64,
    /// Requests at a time that the objectives hold for; 1 to
    /// [`PARALLELISM_MAX`]. Default: 1.
    #[serde(default = "one")]
    pub parallelism: i64,
    /// Whether the owner may take the GPUs back before the customer is done.
    #[serde(default)]
    pub interruptible: bool,
    /// How long before such an interruption the customer is told, in seconds; 0
    /// to [`NOTICE_SECONDS_MAX`].
    #[serde(default)]
    pub notice_seconds: i64,
    /// Who gets what.
    #[serde(default)]
    pub shares: Shares,
    /// Since when these terms hold, in milliseconds since 1970; nothing before
    /// it is billed.
    pub since_ms: i64,
}

fn whole() -> i64 {
    WHOLE_BP
}

fn one() -> i64 {
    1
}

impl Terms {
    /// Refuses terms that no charge could be computed from.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        Invalid::unless_label("placement", &self.placement)?;
        Invalid::unless_label("customer", &self.customer)?;
        Invalid::unless_name("node", &self.node, 253)?;
        Invalid::unless_label("owner", &self.owner)?;
        Invalid::unless_name("gpu_model", &self.gpu_model, 128)?;
        let prices = &self.prices;
        for (field, value, least, most) in [
            ("gpu_count", self.gpu_count, 0, GPU_COUNT_MAX),
            ("storage_gib", self.storage_gib, 0, STORAGE_GIB_MAX),
            (
                "price_micro_per_gpu_hour",
                prices.price_micro_per_gpu_hour,
                0,
                PRICE_MICRO_PER_GPU_HOUR_MAX,
            ),
            (
                "price_micro_per_gib_month",
                prices.price_micro_per_gib_month,
                0,
                PRICE_MICRO_MAX,
            ),
            (
                "price_micro_per_million_tokens_in",
                prices.price_micro_per_million_tokens_in,
                0,
                PRICE_MICRO_MAX,
            ),
            (
                "price_micro_per_million_tokens_out",
                prices.price_micro_per_million_tokens_out,
                0,
                PRICE_MICRO_MAX,
            ),
            (
                "price_micro_per_million_tokens_cached",
                prices.price_micro_per_million_tokens_cached,
                0,
                PRICE_MICRO_MAX,
            ),
            ("tier_bp", self.tier_bp, 1, TIER_BP_MAX),
            ("parallelism", self.parallelism, 1, PARALLELISM_MAX),
            ("notice_seconds", self.notice_seconds, 0, NOTICE_SECONDS_MAX),
            ("since_ms", self.since_ms, 0, TIME_MS_MAX),
        ] {
            Invalid::unless_within(field, value, least, most)?;
        }
        self.shares.validate()
    }

    /// The bytes that stand for these terms and for no others.
    ///
    /// # Errors
    ///
    /// The terms are not valid: only valid ones cannot be mistaken for others.
    pub fn canonical(&self) -> Result<Vec<u8>, Invalid> {
        self.validate()?;
        let texts = [
            ("placement", self.placement.as_str()),
            ("customer", &self.customer),
            ("node", &self.node),
            ("owner", &self.owner),
            ("gpu_model", &self.gpu_model),
            ("tier", self.tier.name()),
        ];
        let numbers = [
            ("gpu_count", self.gpu_count),
            ("storage_gib", self.storage_gib),
            (
                "price_micro_per_gpu_hour",
                self.prices.price_micro_per_gpu_hour,
            ),
            (
                "price_micro_per_gib_month",
                self.prices.price_micro_per_gib_month,
            ),
            (
                "price_micro_per_million_tokens_in",
                self.prices.price_micro_per_million_tokens_in,
            ),
            (
                "price_micro_per_million_tokens_out",
                self.prices.price_micro_per_million_tokens_out,
            ),
            (
                "price_micro_per_million_tokens_cached",
                self.prices.price_micro_per_million_tokens_cached,
            ),
            ("tier_bp", self.tier_bp),
            ("parallelism", self.parallelism),
            ("interruptible", i64::from(self.interruptible)),
            ("notice_seconds", self.notice_seconds),
            ("customer_fee_bp", self.shares.customer_fee_bp),
            ("node_bp", self.shares.node_bp),
            ("validator_bp", self.shares.validator_bp),
            ("platform_bp", self.shares.platform_bp),
            ("since_ms", self.since_ms),
        ];
        let mut text = String::from("creo.terms.v1\n");
        for (name, value) in texts {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{name}={value}");
        }
        for (name, value) in numbers {
            let _ = writeln!(text, "{name}={value}");
        }
        Ok(text.into_bytes())
    }

    /// The SHA-256 of the canonical bytes, in lower-case hexadecimal.
    ///
    /// # Errors
    ///
    /// The terms are not valid.
    pub fn digest(&self) -> Result<String, Invalid> {
        Ok(hexadecimal(&Sha256::digest(self.canonical()?)))
    }
}

/// Bytes in lower-case hexadecimal.
#[must_use]
pub fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Two GPUs of 1.2 credits an hour, everything else by default.
    pub(in crate::money) fn terms() -> Terms {
        Terms {
            placement: "p-1".to_owned(),
            customer: "acme".to_owned(),
            node: "node-1".to_owned(),
            owner: "olga".to_owned(),
            gpu_model: "NVIDIA L4".to_owned(),
            gpu_count: 2,
            storage_gib: 0,
            prices: Prices {
                price_micro_per_gpu_hour: 1_200_000,
                ..Prices::default()
            },
            tier: Tier::Standard,
            tier_bp: 10_000,
            parallelism: 1,
            interruptible: false,
            notice_seconds: 0,
            shares: Shares::default(),
            since_ms: 0,
        }
    }

    type Edit = fn(&mut Terms);

    #[test]
    fn every_field_changes_the_digest() {
        let edits: [Edit; 22] = [
            |terms| terms.placement.push('0'),
            |terms| terms.customer.push('0'),
            |terms| terms.node.push('0'),
            |terms| terms.owner.push('0'),
            |terms| terms.gpu_model.push('0'),
            |terms| terms.gpu_count += 1,
            |terms| terms.storage_gib += 1,
            |terms| terms.prices.price_micro_per_gpu_hour += 1,
            |terms| terms.prices.price_micro_per_gib_month += 1,
            |terms| terms.prices.price_micro_per_million_tokens_in += 1,
            |terms| terms.prices.price_micro_per_million_tokens_out += 1,
            |terms| terms.prices.price_micro_per_million_tokens_cached += 1,
            |terms| terms.tier = Tier::Economy,
            |terms| terms.tier = Tier::Priority,
            |terms| terms.tier_bp += 1,
            |terms| terms.parallelism += 1,
            |terms| terms.interruptible = true,
            |terms| terms.notice_seconds += 1,
            |terms| terms.shares.customer_fee_bp += 1,
            |terms| (terms.shares.node_bp, terms.shares.validator_bp) = (8_501, 499),
            |terms| (terms.shares.validator_bp, terms.shares.platform_bp) = (501, 999),
            |terms| terms.since_ms += 1,
        ];
        let mut digests = vec![terms().digest().unwrap()];
        for edit in edits {
            let mut changed = terms();
            edit(&mut changed);
            digests.push(changed.digest().unwrap());
        }
        let count = digests.len();
        digests.sort();
        digests.dedup();
        assert_eq!(digests.len(), count);
    }

    #[test]
    fn bad_terms_are_refused_with_the_fields_name() {
        let cases: [(&str, Edit); 16] = [
            ("placement", |terms| terms.placement = "P".to_owned()),
            ("customer", |terms| terms.customer.clear()),
            ("node", |terms| terms.node = "a\nowner=b".to_owned()),
            ("owner", |terms| terms.owner = "a/b".to_owned()),
            ("gpu_model", |terms| terms.gpu_model = "a".repeat(129)),
            ("gpu_count", |terms| terms.gpu_count = -1),
            ("storage_gib", |terms| {
                terms.storage_gib = STORAGE_GIB_MAX + 1;
            }),
            ("price_micro_per_gpu_hour", |terms| {
                terms.prices.price_micro_per_gpu_hour = -1;
            }),
            ("price_micro_per_gib_month", |terms| {
                terms.prices.price_micro_per_gib_month = PRICE_MICRO_MAX + 1;
            }),
            ("price_micro_per_million_tokens_in", |terms| {
                terms.prices.price_micro_per_million_tokens_in = -1;
            }),
            ("tier_bp", |terms| terms.tier_bp = 0),
            ("parallelism", |terms| terms.parallelism = 0),
            ("notice_seconds", |terms| terms.notice_seconds = -1),
            ("since_ms", |terms| terms.since_ms = -1),
            ("node_bp", |terms| terms.shares.node_bp = 10_001),
            ("node_bp + validator_bp + platform_bp", |terms| {
                terms.shares.node_bp += 1;
            }),
        ];
        for (field, change) in cases {
            let mut changed = terms();
            change(&mut changed);
            assert_eq!(changed.digest().unwrap_err().field, field);
        }
    }
}
