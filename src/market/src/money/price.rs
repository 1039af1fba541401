//! What usage costs: one cumulative index a Placement and price line.
//!
//! The charge for all usage so far is the exact product rounded down once; a
//! charge that is posted is that total less what was charged already. So it
//! does not matter how the usage was cut, and nothing is ever lost to rounding
//! but less than one micro-credit a line.

use serde::{Deserialize, Serialize};

use super::{
    Invalid,
    amount::{self, WHOLE_BP},
    terms::Terms,
};

/// Milliseconds of an hour.
pub const HOUR_MS: i64 = 3_600_000;
/// Hours of a month of storage.
pub const MONTH_HOURS: i64 = 730;
/// The longest usage that one Placement may have: 100 years, which every
/// product of the highest prices stands.
pub const DURATION_MS_MAX: i64 = 100 * 365 * 24 * HOUR_MS;
/// The most tokens of a kind that one Placement may have.
pub const TOKENS_MAX: i64 = 1_000_000_000_000_000_000;

/// What is charged for by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Line {
    /// GPUs over time.
    Gpu,
    /// Storage over time.
    Storage,
    /// Tokens read.
    TokensIn,
    /// Tokens written.
    TokensOut,
    /// Tokens read from a cache.
    TokensCached,
}

impl Line {
    /// Every line, in the order of documents.
    pub const ALL: [Self; 5] = [
        Self::Gpu,
        Self::Storage,
        Self::TokensIn,
        Self::TokensOut,
        Self::TokensCached,
    ];

    /// The field of [`Usage`] that it counts.
    fn field(self) -> &'static str {
        match self {
            Self::Gpu | Self::Storage => "duration_ms",
            Self::TokensIn => "tokens_in",
            Self::TokensOut => "tokens_out",
            Self::TokensCached => "tokens_cached",
        }
    }

    fn most(self) -> i64 {
        match self {
            Self::Gpu | Self::Storage => DURATION_MS_MAX,
            _ => TOKENS_MAX,
        }
    }

    fn units(self, usage: &Usage) -> i64 {
        match self {
            Self::Gpu | Self::Storage => usage.duration_ms,
            Self::TokensIn => usage.tokens_in,
            Self::TokensOut => usage.tokens_out,
            Self::TokensCached => usage.tokens_cached,
        }
    }
}

/// How much of what was used. As a total it is never below 0; as a difference
/// it may be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Usage {
    /// Billable time, in milliseconds: GPUs and storage count the same time.
    pub duration_ms: i64,
    /// Tokens read.
    pub tokens_in: i64,
    /// Tokens written.
    pub tokens_out: i64,
    /// Tokens read from a cache; they are not among those of `tokens_in`.
    pub tokens_cached: i64,
}

impl Usage {
    /// Both together.
    ///
    /// # Errors
    ///
    /// The sum does not fit.
    pub fn plus(&self, other: &Self) -> Result<Self, Invalid> {
        let sum = |field: &str, a: i64, b: i64| {
            a.checked_add(b)
                .ok_or_else(|| Invalid::new(field, "is too large to be added"))
        };
        Ok(Self {
            duration_ms: sum("duration_ms", self.duration_ms, other.duration_ms)?,
            tokens_in: sum("tokens_in", self.tokens_in, other.tokens_in)?,
            tokens_out: sum("tokens_out", self.tokens_out, other.tokens_out)?,
            tokens_cached: sum("tokens_cached", self.tokens_cached, other.tokens_cached)?,
        })
    }

    /// Refuses a total that is below 0 or beyond its bound.
    ///
    /// # Errors
    ///
    /// The error names the field.
    pub fn validate(&self) -> Result<(), Invalid> {
        for line in Line::ALL {
            Invalid::unless_within(line.field(), line.units(self), 0, line.most())?;
        }
        Ok(())
    }
}

/// What a customer owes for usage.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Charge {
    /// What is divided among node, validators and platform, in micro-credits.
    pub charge_micro: i64,
    /// What the customer pays beside it, in micro-credits.
    pub fee_micro: i64,
}

impl Charge {
    /// What the customer is debited: charge and fee.
    #[must_use]
    pub fn debit_micro(&self) -> i64 {
        self.charge_micro + self.fee_micro
    }

    /// The difference that is posted when `self` is owed and `earlier` was
    /// charged already. It is below 0 where usage was taken back.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            charge_micro: self.charge_micro - earlier.charge_micro,
            fee_micro: self.fee_micro - earlier.fee_micro,
        }
    }

    /// Both together.
    #[must_use]
    pub fn plus(&self, other: &Self) -> Self {
        Self {
            charge_micro: self.charge_micro + other.charge_micro,
            fee_micro: self.fee_micro + other.fee_micro,
        }
    }
}

/// An exact price: micro-credits as a fraction in lowest terms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exact {
    /// Above the line.
    pub numerator: i128,
    /// Below the line, above 0.
    pub denominator: i128,
}

impl Exact {
    fn reduced(numerator: i128, denominator: i128) -> Self {
        let (mut a, mut b) = (numerator.unsigned_abs(), denominator.unsigned_abs());
        while b != 0 {
            (a, b) = (b, a % b);
        }
        // The divisor of a denominator above 0 is above 0 and fits.
        let divisor = i128::try_from(a).unwrap_or(1).max(1);
        Self {
            numerator: numerator / divisor,
            denominator: denominator / divisor,
        }
    }
}

impl std::fmt::Display for Exact {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.numerator, self.denominator)
    }
}

/// The exact price of `units` of a line: tier included, fee not.
fn exact(terms: &Terms, line: Line, units: i64) -> Result<(i128, i128), Invalid> {
    let whole = i128::from(WHOLE_BP);
    let hour = i128::from(HOUR_MS);
    let prices = &terms.prices;
    let (price, amount, per) = match line {
        Line::Gpu => (prices.price_micro_per_gpu_hour, terms.gpu_count, hour),
        Line::Storage => (
            prices.price_micro_per_gib_month,
            terms.storage_gib,
            hour * i128::from(MONTH_HOURS),
        ),
        Line::TokensIn => (prices.price_micro_per_million_tokens_in, 1, 1_000_000),
        Line::TokensOut => (prices.price_micro_per_million_tokens_out, 1, 1_000_000),
        Line::TokensCached => (prices.price_micro_per_million_tokens_cached, 1, 1_000_000),
    };
    let mut numerator = i128::from(price);
    for factor in [amount, terms.tier_bp, units] {
        numerator = amount::product(line.field(), numerator, i128::from(factor))?;
    }
    Ok((numerator, per * whole))
}

/// How a line's exact price becomes whole micro-credits.
#[derive(Clone, Copy)]
enum Rounding {
    Down,
    Up,
}

fn rounded(terms: &Terms, usage: &Usage, rounding: Rounding) -> Result<Charge, Invalid> {
    usage.validate()?;
    let round = match rounding {
        Rounding::Down => amount::floor,
        Rounding::Up => amount::ceiling,
    };
    let (mut charge, mut fee) = (0_i128, 0_i128);
    for line in Line::ALL {
        let (numerator, denominator) = exact(terms, line, line.units(usage))?;
        charge += round(numerator, denominator);
        let numerator = amount::product(
            line.field(),
            numerator,
            i128::from(terms.shares.customer_fee_bp),
        )?;
        fee += round(numerator, denominator * i128::from(WHOLE_BP));
    }
    Ok(Charge {
        charge_micro: amount::fitting("charge_micro", charge)?,
        fee_micro: amount::fitting("fee_micro", fee)?,
    })
}

/// What all usage of a Placement so far costs: of each line, the exact price
/// rounded down once, and the fee on the exact price rounded down once.
///
/// # Errors
///
/// A usage is below 0 or beyond its bound, or the charge beyond
/// [`amount::MICRO_MAX`].
pub fn charged(terms: &Terms, total: &Usage) -> Result<Charge, Invalid> {
    rounded(terms, total, Rounding::Down)
}

/// What `usage` costs at most, whatever was used before it and however it is
/// cut: of each line, price and fee rounded up.
///
/// # Errors
///
/// As of [`charged`].
pub fn quote(terms: &Terms, usage: &Usage) -> Result<Charge, Invalid> {
    rounded(terms, usage, Rounding::Up)
}

/// What a customer is told before it agrees. All are rounded up and never
/// exceeded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotes {
    /// For an hour.
    pub hour: Charge,
    /// For a day of 24 hours.
    pub day: Charge,
    /// For everything that was asked for.
    pub at_most: Charge,
}

/// Quotes for an hour, a day, and for `at_most`.
///
/// # Errors
///
/// As of [`charged`], and where the terms are not valid.
pub fn quotes(terms: &Terms, at_most: &Usage) -> Result<Quotes, Invalid> {
    terms.validate()?;
    let lasting = |duration_ms| {
        quote(
            terms,
            &Usage {
                duration_ms,
                ..Usage::default()
            },
        )
    };
    Ok(Quotes {
        hour: lasting(HOUR_MS)?,
        day: lasting(24 * HOUR_MS)?,
        at_most: quote(terms, at_most)?,
    })
}

/// One line of a receipt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReceiptLine {
    /// What was charged for.
    pub line: Line,
    /// How much of it: milliseconds or tokens.
    pub units: i64,
    /// What that costs exactly, in micro-credits, before any rounding and
    /// without the fee.
    pub exact: Exact,
    /// What was posted for it, in micro-credits: the difference of two rounded
    /// totals, and so less than one micro-credit away from the exact price.
    pub posted_micro: i64,
}

/// What was posted for one request or stretch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Receipt {
    /// The lines that cost something.
    pub lines: Vec<ReceiptLine>,
    /// What was posted in all, with the fee.
    pub posted: Charge,
}

/// The receipt of `usage` after `before` had been used on the same terms.
///
/// # Errors
///
/// As of [`charged`].
pub fn receipt(terms: &Terms, before: &Usage, usage: &Usage) -> Result<Receipt, Invalid> {
    let after = before.plus(usage)?;
    let posted = charged(terms, &after)?.since(&charged(terms, before)?);
    let mut lines = Vec::new();
    for line in Line::ALL {
        let units = line.units(usage);
        let (numerator, denominator) = exact(terms, line, units)?;
        if numerator == 0 {
            continue;
        }
        let total = |units| exact(terms, line, units).map(|(n, d)| amount::floor(n, d));
        let posted_micro = total(line.units(&after))? - total(line.units(before))?;
        lines.push(ReceiptLine {
            line,
            units,
            exact: Exact::reduced(numerator, denominator),
            posted_micro: amount::fitting("posted_micro", posted_micro)?,
        });
    }
    Ok(Receipt { lines, posted })
}

#[cfg(test)]
mod tests {
    use super::super::terms::{
        GPU_COUNT_MAX, PRICE_MICRO_MAX, STORAGE_GIB_MAX, TIER_BP_MAX, tests::terms,
    };
    use super::*;

    fn lasting(duration_ms: i64) -> Usage {
        Usage {
            duration_ms,
            ..Usage::default()
        }
    }

    #[test]
    fn the_highest_prices_for_the_longest_time_are_refused_and_do_not_overflow() {
        let mut terms = terms();
        terms.gpu_count = GPU_COUNT_MAX;
        terms.prices.price_micro_per_gpu_hour = 1_000_000_000_000;
        terms.storage_gib = STORAGE_GIB_MAX;
        terms.prices.price_micro_per_gib_month = PRICE_MICRO_MAX;
        terms.prices.price_micro_per_million_tokens_in = PRICE_MICRO_MAX;
        terms.tier_bp = TIER_BP_MAX;
        terms.shares.customer_fee_bp = 10_000;
        terms.validate().unwrap();
        let most = Usage {
            duration_ms: DURATION_MS_MAX,
            tokens_in: TOKENS_MAX,
            ..Usage::default()
        };
        assert_eq!(charged(&terms, &most).unwrap_err().field, "charge_micro");
        // An hour of all of it still is charged exactly.
        let hour = charged(&terms, &lasting(HOUR_MS)).unwrap();
        let gpus = 10 * 1_024 * 1_000_000_000_000_i64;
        let storage = i64::try_from(10_i128 * (1 << 24) * 1_000_000_000 / 730).unwrap();
        assert_eq!(
            (hour.charge_micro, hour.fee_micro),
            (gpus + storage, gpus + storage)
        );
    }

    #[test]
    fn a_total_below_zero_or_beyond_its_bound_is_refused() {
        for (field, usage) in [
            ("duration_ms", lasting(-1)),
            ("duration_ms", lasting(DURATION_MS_MAX + 1)),
            (
                "tokens_in",
                Usage {
                    tokens_in: -1,
                    ..Usage::default()
                },
            ),
            (
                "tokens_out",
                Usage {
                    tokens_out: TOKENS_MAX + 1,
                    ..Usage::default()
                },
            ),
            (
                "tokens_cached",
                Usage {
                    tokens_cached: -1,
                    ..Usage::default()
                },
            ),
        ] {
            assert_eq!(charged(&terms(), &usage).unwrap_err().field, field);
        }
        assert!(lasting(i64::MAX).plus(&lasting(1)).is_err());
    }

    #[test]
    fn a_receipt_lists_what_was_used_with_its_exact_price() {
        let mut terms = terms();
        terms.prices.price_micro_per_million_tokens_out = 3;
        let before = Usage {
            duration_ms: 1,
            ..Usage::default()
        };
        let used = Usage {
            duration_ms: 1,
            tokens_out: 500_000,
            ..Usage::default()
        };
        let receipt = receipt(&terms, &before, &used).unwrap();
        let lines: Vec<_> = receipt
            .lines
            .iter()
            .map(|line| (line.line, line.exact.to_string(), line.posted_micro))
            .collect();
        // 2 GPUs x 1,200,000 / 3,600,000 ms = 2/3 of a micro-credit a millisecond.
        assert_eq!(
            lines,
            [
                (Line::Gpu, "2/3".to_owned(), 1),
                (Line::TokensOut, "3/2".to_owned(), 1)
            ]
        );
        assert_eq!(receipt.posted.charge_micro, 2);
    }
}
