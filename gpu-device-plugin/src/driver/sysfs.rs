//! What the kernel says of a card, under `/sys`.

use std::fs;
use std::path::Path;

/// The NUMA node of the device at this PCI address; nothing within where the kernel knows of
/// none, and an error where it does not know the device.
pub(super) fn numa_node(sysfs: &Path, pci_address: &str) -> Result<Option<u32>, Unknown> {
    let name = device_name(pci_address).ok_or(Unknown)?;
    let path = sysfs.join("bus/pci/devices").join(name).join("numa_node");
    let text = fs::read_to_string(path).map_err(|_| Unknown)?;
    let node: i64 = text.trim().parse().map_err(|_| Unknown)?;
    // -1 is how the kernel says that there is none.
    Ok(u32::try_from(node).ok())
}

/// The kernel does not say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Unknown;

/// The kernel's name of a PCI device: NVML's address with a domain of four digits, or more
/// where it has more.
fn device_name(pci_address: &str) -> Option<String> {
    let (domain, rest) = pci_address.split_once(':')?;
    let domain = u32::from_str_radix(domain, 16).ok()?;
    let plain = |byte: u8| byte.is_ascii_hexdigit() || matches!(byte, b':' | b'.');
    // What comes from the driver becomes a path.
    rest.bytes()
        .all(plain)
        .then(|| format!("{domain:04x}:{}", rest.to_ascii_lowercase()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_named_as_the_kernel_names_them() {
        assert_eq!(
            device_name("00000000:3B:00.0").as_deref(),
            Some("0000:3b:00.0")
        );
        assert_eq!(
            device_name("00010000:01:00.0").as_deref(),
            Some("10000:01:00.0")
        );
        for wrong in ["", "1", "x:01:00.0", "0000:../../etc", "0000:01/00.0"] {
            assert_eq!(device_name(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_node_is_read_and_minus_one_is_none() {
        let sysfs = tempfile::tempdir().unwrap();
        let device = sysfs.path().join("bus/pci/devices/0000:01:00.0");
        fs::create_dir_all(&device).unwrap();
        let node = || numa_node(sysfs.path(), "00000000:01:00.0");
        assert_eq!(node(), Err(Unknown));
        for (text, expected) in [
            ("1\n", Ok(Some(1))),
            ("-1\n", Ok(None)),
            ("many\n", Err(Unknown)),
        ] {
            fs::write(device.join("numa_node"), text).unwrap();
            assert_eq!(node(), expected, "{text:?}");
        }
    }
}
