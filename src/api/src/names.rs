//! Names that follow from their cause, so that doing a step twice makes one
//! object.

/// The longest name of an AgentDeployment, in characters: what [`placement`]
/// adds must still fit a label's 63.
pub const MAX_DEPLOYMENT_CHARS: usize = 50;

/// The name of a replica of an AgentDeployment.
///
/// `uid` is the deployment's: a deployment that was deleted and made again
/// under its old name shares no names with what its predecessor may still have
/// left behind. `ordinal` is the replica's number, below 1,000,000.
#[must_use]
pub fn placement(deployment: &str, uid: &str, ordinal: u32) -> String {
    format!("{deployment}-{:04x}-{ordinal}", short_hash(uid))
}

/// The ordinal in a name that [`placement`] made for this deployment, or `None`
/// where the name is another one.
#[must_use]
pub fn ordinal(deployment: &str, uid: &str, placement: &str) -> Option<u32> {
    let digits = placement
        .strip_prefix(deployment)?
        .strip_prefix(&format!("-{:04x}-", short_hash(uid)))?;
    let ordinal: u32 = digits.parse().ok()?;
    // "007" and "+7" parse as well, and are not names that were given.
    (ordinal.to_string() == digits).then_some(ordinal)
}

/// FNV-1a, folded to 16 bits: names stay short, and a collision costs no more
/// than a name that is taken until what holds it is gone.
fn short_hash(text: &str) -> u16 {
    let hash = text.bytes().fold(0x811c_9dc5_u32, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    });
    let [a, b, c, d] = hash.to_be_bytes();
    u16::from_be_bytes([a ^ c, b ^ d])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_follows_from_deployment_uid_and_ordinal_and_fits_a_label() {
        let uid = "0f0c9b5e-6b7e-4b4f-9d53-1c2f6a1f5b11";
        assert_eq!(placement("chat", uid, 0), placement("chat", uid, 0));
        assert_ne!(
            placement("chat", uid, 0),
            placement("chat", "another uid", 0)
        );
        let longest = placement(&"a".repeat(MAX_DEPLOYMENT_CHARS), uid, 999_999);
        assert!(longest.len() <= 63, "{longest}");
    }

    #[test]
    fn the_ordinal_is_read_back_only_from_a_name_of_the_same_deployment() {
        let name = placement("chat", "uid", 12);
        assert_eq!(ordinal("chat", "uid", &name), Some(12));
        assert_eq!(ordinal("chat", "other", &name), None);
        assert_eq!(ordinal("cha", "uid", &name), None);
        assert_eq!(ordinal("chat", "uid", &name.replace("-12", "-012")), None);
        assert_eq!(ordinal("chat", "uid", &name.replace("-12", "-+12")), None);
    }
}
