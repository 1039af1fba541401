//! Integers as people read them.

const UNITS: [(&str, i64); 4] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
];

/// Bytes in the largest unit that leaves at least one of it, with one decimal
/// where it is not whole: `24 GiB`, `1.5 GiB`, `0 bytes`.
#[must_use]
pub fn bytes(bytes: i64) -> String {
    bytes_to(bytes, 1)
}

/// What there is beside what is needed, with as many decimals as it takes to
/// tell them apart: a card of 81,559 MiB is `79.6 GiB` where `80 GiB` are
/// needed.
#[must_use]
pub fn bytes_beside(have_bytes: i64, need_bytes: i64) -> (String, String) {
    for decimals in 1..=3 {
        let (have, need) = (
            bytes_to(have_bytes, decimals),
            bytes_to(need_bytes, decimals),
        );
        if have != need || have_bytes == need_bytes {
            return (have, need);
        }
    }
    (format!("{have_bytes} bytes"), format!("{need_bytes} bytes"))
}

/// Rounded to the nearest, as this is for reading only.
fn bytes_to(bytes: i64, decimals: u32) -> String {
    let Some((unit, size)) = UNITS.into_iter().find(|(_, size)| bytes >= *size) else {
        return counted(bytes, "byte", "bytes");
    };
    let step = 10_i128.pow(decimals);
    let rounded = (i128::from(bytes) * step + i128::from(size) / 2) / i128::from(size);
    format!("{} {unit}", decimal(rounded, decimals))
}

/// Thousandths of a CPU as CPUs: `0.5`, `2`.
#[must_use]
pub fn cpus(milli: i64) -> String {
    decimal(i128::from(milli), 3)
}

/// Milliseconds as whole seconds, rounded up: `24 s`.
#[must_use]
pub fn seconds(ms: i64) -> String {
    let whole = ms.max(0);
    format!("{} s", whole / 1_000 + i64::from(whole % 1_000 != 0))
}

/// A number with its noun in the right form: `1 GPU`, `2 GPUs`.
#[must_use]
pub fn counted(number: i64, one: &str, many: &str) -> String {
    format!("{number} {}", if number == 1 { one } else { many })
}

/// Alternatives: `a`, `a or b`, `a, b or c`, and with more than three `a, b, c
/// or 4 more`.
#[must_use]
pub fn either<'a>(items: impl IntoIterator<Item = &'a str>) -> String {
    const SHOWN: usize = 3;
    let items: Vec<&str> = items.into_iter().collect();
    let more = items.len().saturating_sub(SHOWN);
    match items.as_slice() {
        [] => String::new(),
        [only] => (*only).to_owned(),
        [first @ .., last] if more == 0 => format!("{} or {last}", first.join(", ")),
        [..] => format!("{} or {more} more", items[..SHOWN].join(", ")),
    }
}

/// `scaled` divided by ten to the power of `decimals`, without zeros at the
/// end.
fn decimal(scaled: i128, decimals: u32) -> String {
    let step = 10_i128.pow(decimals);
    let (whole, rest) = (scaled / step, (scaled % step).abs());
    if rest == 0 {
        return whole.to_string();
    }
    let fraction = format!("{rest:0width$}", width = decimals as usize);
    let sign = if scaled < 0 && whole == 0 { "-" } else { "" };
    format!("{sign}{whole}.{}", fraction.trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_read_in_the_largest_unit_with_one_decimal() {
        for (value, expected) in [
            (0, "0 bytes"),
            (1, "1 byte"),
            (1023, "1023 bytes"),
            (1536, "1.5 KiB"),
            (24 << 30, "24 GiB"),
            (24_564 << 20, "24 GiB"),
            (3 << 29, "1.5 GiB"),
            (2 << 40, "2 TiB"),
            (i64::MAX, "8388608 TiB"),
        ] {
            assert_eq!(bytes(value), expected);
        }
    }

    #[test]
    fn what_there_is_and_what_is_needed_never_read_the_same() {
        let beside = |have, need| {
            let (have, need) = bytes_beside(have, need);
            format!("{have} | {need}")
        };
        assert_eq!(beside(24 << 30, 80 << 30), "24 GiB | 80 GiB");
        assert_eq!(beside(81_559 << 20, 80 << 30), "79.6 GiB | 80 GiB");
        assert_eq!(
            beside((80 << 30) - (1 << 24), 80 << 30),
            "79.98 GiB | 80 GiB"
        );
        assert_eq!(
            beside((80 << 30) - 1, 80 << 30),
            "85899345919 bytes | 85899345920 bytes"
        );
    }

    #[test]
    fn cpus_and_seconds_are_read_without_superfluous_digits() {
        assert_eq!(
            [cpus(500), cpus(2_000), cpus(1_001), cpus(-500), cpus(0)],
            ["0.5", "2", "1.001", "-0.5", "0"]
        );
        assert_eq!(
            [seconds(1), seconds(24_000), seconds(-3)],
            ["1 s", "24 s", "0 s"]
        );
    }

    #[test]
    fn alternatives_are_listed_up_to_three() {
        assert_eq!(either(["a"]), "a");
        assert_eq!(either(["a", "b"]), "a or b");
        assert_eq!(either(["a", "b", "c"]), "a, b or c");
        assert_eq!(either(["a", "b", "c", "d", "e"]), "a, b, c or 2 more");
        assert_eq!(either([]), "");
    }
}
