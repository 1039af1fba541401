//! Arithmetic of amounts: micro-credits in `i64`, products in `i128`.

use super::Invalid;

/// Basis points in a whole.
pub const WHOLE_BP: i64 = 10_000;

/// The most micro-credits that one amount may have: a trillion credits. Sums of
/// nine such amounts still fit `i64`, and what is larger is a mistake.
pub const MICRO_MAX: i64 = 1_000_000_000_000_000_000;

/// `amount_micro` x `bp` / 10,000, rounded towards zero. The result is never
/// larger than the amount where `bp` is at most 10,000.
#[must_use]
pub fn part(amount_micro: i64, bp: i64) -> i64 {
    let exact = i128::from(amount_micro) * i128::from(bp) / i128::from(WHOLE_BP);
    // Only a part of more than the whole of a huge amount leaves the range.
    i64::try_from(exact).unwrap_or(if exact < 0 { i64::MIN } else { i64::MAX })
}

/// An amount that fits, or the name of what does not.
///
/// # Errors
///
/// The amount is beyond [`MICRO_MAX`] on either side of zero.
pub fn fitting(field: &str, micro: i128) -> Result<i64, Invalid> {
    i64::try_from(micro)
        .ok()
        .filter(|micro| (-MICRO_MAX..=MICRO_MAX).contains(micro))
        .ok_or_else(|| {
            Invalid::new(
                field,
                format!("must be at most {MICRO_MAX} micro-credits, and is {micro}"),
            )
        })
}

/// `numerator` / `denominator`, rounded down; the denominator is above 0.
pub(super) fn floor(numerator: i128, denominator: i128) -> i128 {
    numerator.div_euclid(denominator)
}

/// `numerator` / `denominator`, rounded up; the denominator is above 0.
pub(super) fn ceiling(numerator: i128, denominator: i128) -> i128 {
    -(-numerator).div_euclid(denominator)
}

/// `a` x `b`, or an error that names the field where it would not fit `i128`.
pub(super) fn product(field: &str, a: i128, b: i128) -> Result<i128, Invalid> {
    a.checked_mul(b)
        .ok_or_else(|| Invalid::new(field, "is too large to be multiplied exactly"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_round_towards_zero_and_survive_the_largest_amounts() {
        for (amount, bp, expected) in [
            (10_000, 1, 1),
            (9_999, 1, 0),
            (-9_999, 1, 0),
            (-19_999, 1, -1),
            (MICRO_MAX, 10_000, MICRO_MAX),
            (7, 5_000, 3),
            (i64::MAX, 20_000, i64::MAX),
            (i64::MIN, 20_000, i64::MIN),
        ] {
            assert_eq!(part(amount, bp), expected, "{amount} at {bp} bp");
        }
    }

    #[test]
    fn floors_and_ceilings_hold_below_zero() {
        for (numerator, down, up) in [(7, 2, 3), (6, 2, 2), (-7, -3, -2), (-6, -2, -2), (0, 0, 0)] {
            assert_eq!(
                (floor(numerator, 3), ceiling(numerator, 3)),
                (down, up),
                "{numerator}/3"
            );
        }
    }

    #[test]
    fn what_is_beyond_the_largest_amount_does_not_fit() {
        let most = i128::from(MICRO_MAX);
        assert_eq!(fitting("charge", most), Ok(MICRO_MAX));
        assert_eq!(fitting("charge", -most), Ok(-MICRO_MAX));
        for beyond in [most + 1, -most - 1, i128::MAX] {
            assert_eq!(fitting("charge", beyond).unwrap_err().field, "charge");
        }
        assert_eq!(product("charge", i128::MAX, 2).unwrap_err().field, "charge");
    }
}
