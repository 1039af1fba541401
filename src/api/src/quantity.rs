//! Quantities as Kubernetes users write them (`80Gi`, `500m`), read into the
//! integers that everything inside works with.

use std::borrow::Cow;

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use schemars::{Schema, SchemaGenerator, json_schema};

/// The longest quantity that the schema admits, in characters.
pub const MAX_CHARS: usize = 32;

/// A quantity's schema: a bounded string or an integer. What it must be is said
/// by the CEL rule of the field, as the server checks nothing by itself.
pub(crate) fn schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "maxLength": MAX_CHARS,
        "x-kubernetes-int-or-string": true,
        // Said outright, because kube makes optional ones nullable where it is not.
        "nullable": false,
    })
}

/// A field of a specification that cannot be used as it is.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct InvalidField {
    /// Where the field is, such as `spec.gpu.memory`.
    pub field: Cow<'static, str>,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

impl InvalidField {
    /// An error about `field`.
    pub fn new(field: impl Into<Cow<'static, str>>, problem: impl Into<String>) -> Self {
        Self {
            field: field.into(),
            problem: problem.into(),
        }
    }
}

/// The number of bytes of a quantity, rounded up to a whole byte. The error
/// names `field`.
pub fn bytes(field: &'static str, quantity: &Quantity) -> Result<i64, InvalidField> {
    scaled(&quantity.0, 0).map_err(|problem| problem.of(field, &quantity.0, "80Gi"))
}

/// The thousandths of a CPU of a quantity, rounded up to a whole one. The error
/// names `field`.
pub fn millicores(field: &'static str, quantity: &Quantity) -> Result<i64, InvalidField> {
    scaled(&quantity.0, 3).map_err(|problem| problem.of(field, &quantity.0, "500m"))
}

/// Why a text is not a quantity that can be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Problem {
    NotAQuantity,
    Negative,
    TooLarge,
}

impl Problem {
    fn of(self, field: &'static str, text: &str, example: &str) -> InvalidField {
        // The text is the user's: it is shown, but never without a bound.
        let shown: String = text.chars().take(MAX_CHARS).collect();
        let problem = match self {
            Self::NotAQuantity => format!("{shown:?} is not a quantity: write it like {example}"),
            Self::Negative => {
                format!("{shown:?} is negative: write a quantity above zero, like {example}")
            }
            Self::TooLarge => format!("{shown:?} is too large: no machine has this much"),
        };
        InvalidField::new(field, problem)
    }
}

/// `text` times ten to the power of `decimals`, rounded up.
fn scaled(text: &str, decimals: i32) -> Result<i64, Problem> {
    if text.len() > MAX_CHARS {
        return Err(Problem::NotAQuantity);
    }
    let (negative, unsigned) = match text.as_bytes().first() {
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        _ => (false, text),
    };
    let number_end = unsigned
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(unsigned.len());
    let (number, suffix) = unsigned.split_at(number_end);
    let (mantissa, fraction_digits) = mantissa(number)?;
    let scale = suffix_scale(suffix)?;
    if mantissa == 0 {
        return Ok(0);
    }
    if negative {
        return Err(Problem::Negative);
    }
    let ten_to = scale.ten_to + decimals - fraction_digits;
    let binary = mantissa
        .checked_mul(1_i128 << scale.two_to)
        .ok_or(Problem::TooLarge)?;
    let exact = if ten_to >= 0 {
        power_of_ten(ten_to)
            .and_then(|power| binary.checked_mul(power))
            .ok_or(Problem::TooLarge)?
    } else {
        // A divisor beyond the range divides any mantissa of 32 digits to less
        // than one, and that rounds up to one.
        power_of_ten(-ten_to)
            .map_or_else(|| i128::from(binary > 0), |power| divided_up(binary, power))
    };
    i64::try_from(exact).map_err(|_| Problem::TooLarge)
}

/// The digits of a decimal number as an integer, and how many of them stand
/// behind the point.
fn mantissa(number: &str) -> Result<(i128, i32), Problem> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.len() + fraction.len() == 0 || fraction.contains('.') {
        return Err(Problem::NotAQuantity);
    }
    let digits = format!("{whole}{fraction}");
    let mantissa = digits.parse().map_err(|_| Problem::NotAQuantity)?;
    let fraction_digits = i32::try_from(fraction.len()).map_err(|_| Problem::NotAQuantity)?;
    Ok((mantissa, fraction_digits))
}

struct Scale {
    two_to: u32,
    ten_to: i32,
}

fn suffix_scale(suffix: &str) -> Result<Scale, Problem> {
    let two = |two_to| Scale { two_to, ten_to: 0 };
    let ten = |ten_to| Scale { two_to: 0, ten_to };
    Ok(match suffix {
        "Ki" => two(10),
        "Mi" => two(20),
        "Gi" => two(30),
        "Ti" => two(40),
        "Pi" => two(50),
        "Ei" => two(60),
        "n" => ten(-9),
        "u" => ten(-6),
        "m" => ten(-3),
        "" => ten(0),
        "k" => ten(3),
        "M" => ten(6),
        "G" => ten(9),
        "T" => ten(12),
        "P" => ten(15),
        "E" => ten(18),
        exponent => ten(decimal_exponent(exponent)?),
    })
}

fn decimal_exponent(text: &str) -> Result<i32, Problem> {
    let digits = text.strip_prefix(['e', 'E']).ok_or(Problem::NotAQuantity)?;
    let exponent: i32 = digits.parse().map_err(|_| Problem::NotAQuantity)?;
    // Far outside of what fits an i64 either way, and far inside of what the
    // arithmetic on exponents can hold.
    if (-1_000..=1_000).contains(&exponent) {
        Ok(exponent)
    } else {
        Err(Problem::NotAQuantity)
    }
}

fn power_of_ten(exponent: i32) -> Option<i128> {
    10_i128.checked_pow(u32::try_from(exponent).ok()?)
}

/// `dividend / divisor`, rounded up, for a dividend that is not negative.
fn divided_up(dividend: i128, divisor: i128) -> i128 {
    dividend / divisor + i128::from(dividend % divisor != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity(text.to_owned())
    }

    #[test]
    fn quantities_become_bytes_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0", 0),
            ("1", 1),
            ("80Gi", 80 << 30),
            ("80G", 80_000_000_000),
            ("1.5Gi", 3 << 29),
            (".5Ki", 512),
            ("2.", 2),
            ("+7", 7),
            ("1e3", 1_000),
            ("1E3", 1_000),
            ("1E", 1_000_000_000_000_000_000),
            ("12e-1", 2),
            ("100m", 1),
            ("0.1", 1),
            ("1n", 1),
            ("0e999", 0),
            ("1e-999", 1),
            ("-0", 0),
            ("7Ei", 7 << 60),
            ("9223372036854775807", i64::MAX),
        ] {
            assert_eq!(
                bytes("spec.gpu.memory", &quantity(text)),
                Ok(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn quantities_become_millicores_rounded_up() {
        for (text, expected) in [
            ("500m", 500),
            ("2", 2_000),
            ("0.0005", 1),
            ("1u", 1),
            ("1.0001", 1_001),
            ("2k", 2_000_000),
        ] {
            assert_eq!(
                millicores("spec.resources.cpu", &quantity(text)),
                Ok(expected),
                "{text}"
            );
        }
    }

    #[test]
    fn what_is_not_a_quantity_is_an_error_that_names_the_field_and_an_example() {
        for text in [
            "",
            ".",
            "x",
            "1.2.3",
            "1 Gi",
            "1gi",
            "Gi",
            "--1",
            "1e",
            "1e1.5",
            "1e99999999999",
            "0x10",
            "1_000",
            "٣",
            "000000000000000000000000000000001",
        ] {
            let error = bytes("spec.gpu.memory", &quantity(text)).expect_err(text);
            assert_eq!(error.field, "spec.gpu.memory");
            assert!(
                error
                    .to_string()
                    .contains("is not a quantity: write it like 80Gi"),
                "{error}"
            );
        }
    }

    #[test]
    fn negative_and_too_large_quantities_are_told_apart() {
        let negative = millicores("spec.resources.cpu", &quantity("-1")).expect_err("negative");
        assert_eq!(
            negative.to_string(),
            "spec.resources.cpu: \"-1\" is negative: write a quantity above zero, like 500m"
        );
        for text in [
            "8Ei",
            "9223372036854775808",
            "99999999999999999999999999999Ei",
            "1e38",
            "9e999",
        ] {
            let error = bytes("spec.gpu.memory", &quantity(text)).expect_err(text);
            assert!(error.problem.contains("too large"), "{error}");
        }
    }
}
