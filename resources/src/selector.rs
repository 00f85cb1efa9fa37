//! What a user calls a device, in every command: by address, by the slot it sits in, by its IDs, by its path in sysfs.

use std::{fmt, path::Path, str::FromStr};

use crate::bdf::{Bdf, BdfSelector};

/// One device, or the functions of one slot, as the user names it; which they are, a host says
/// (`host::check::resolve`).
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Selector {
    /// `3b:00.0`, `3b:00`, or a path that ends in an address.
    Address(BdfSelector),
    /// `slot=3`: as the firmware or the board calls it. All functions that are there.
    Slot(String),
    /// `10de:1e07`: when one device alone has these IDs.
    Ids {
        /// Vendor.
        vendor: u16,
        /// Device.
        device: u16,
    },
}

impl Selector {
    /// Can it mean several functions?
    pub fn is_slot(&self) -> bool {
        matches!(self, Self::Slot(_) | Self::Address(BdfSelector::Slot(_)))
    }

    /// Do both mean a same function, as far as their words tell?
    pub fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Self::Address(BdfSelector::Function(one)),
                Self::Address(BdfSelector::Function(two)),
            ) => one == two,
            (
                Self::Address(BdfSelector::Function(one) | BdfSelector::Slot(one)),
                Self::Address(BdfSelector::Function(two) | BdfSelector::Slot(two)),
            ) => one.same_slot(*two),
            _ => self == other,
        }
    }
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Slot(name) => write!(f, "slot={name}"),
            Self::Ids { vendor, device } => write!(f, "{vendor:04x}:{device:04x}"),
        }
    }
}

/// Why a text names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SelectorError {
    /// No form fits.
    #[error("'{0}' is no PCI device's address, slot, IDs or path")]
    Word(String),
    /// A path, but not of a PCI device.
    #[error("{0} is no PCI device in sysfs")]
    Path(String),
}

/// How to name one: the fix of a refusal.
pub const FORMS: &str =
    "write 3b:00.0, 3b:00 for the whole slot, slot=NAME or 10de:1e07; strait devices lists them";

impl FromStr for Selector {
    type Err = SelectorError;

    fn from_str(text: &str) -> Result<Self, SelectorError> {
        if text.starts_with('/') {
            return in_sysfs(text).ok_or_else(|| SelectorError::Path(text.to_owned()));
        }
        if let Some(name) = text.strip_prefix("slot=").filter(|name| !name.is_empty()) {
            return Ok(Self::Slot(name.to_owned()));
        }
        if let Some((vendor, device)) = ids(text) {
            return Ok(Self::Ids { vendor, device });
        }
        let address = text.parse().map_err(|_| SelectorError::Word(text.to_owned()))?;
        Ok(Self::Address(address))
    }
}

/// The kernel names a device's directory by its address, at `/sys/bus/pci/devices` and below `/sys/devices` alike.
fn in_sysfs(path: &str) -> Option<Selector> {
    let directory = Path::new(path);
    let bdf: Bdf = directory.file_name()?.to_str()?.parse().ok()?;
    directory.starts_with("/sys").then_some(Selector::Address(BdfSelector::Function(bdf)))
}

/// "10de:1e07": four hexadecimal digits each.
pub fn ids(word: &str) -> Option<(u16, u16)> {
    let id = |text: &str| {
        let is_id = text.len() == 4 && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        is_id.then(|| u16::from_str_radix(text, 16).ok()).flatten()
    };
    let (vendor, device) = word.split_once(':')?;
    Some((id(vendor)?, id(device)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Selector {
        text.parse().unwrap_or_else(|error| panic!("{error}"))
    }

    #[test]
    fn selector_reads_every_form() {
        for (text, means) in [
            ("3b:00.0", "0000:3b:00.0"),
            ("0000:3b:00", "0000:3b:00"),
            ("/sys/bus/pci/devices/0000:3b:00.0", "0000:3b:00.0"),
            ("/sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0/", "0000:3b:00.0"),
            ("slot=PCIe 3", "slot=PCIe 3"),
            ("10DE:1e07", "10de:1e07"),
        ] {
            assert_eq!(parse(text).to_string(), means, "{text}");
        }
    }

    #[test]
    fn selector_refuses_what_is_none() {
        for text in ["", "gpu", "slot=", "10de:1e7", "/dev/vfio/0000:3b:00.0", "/sys/class/drm"] {
            assert!(text.parse::<Selector>().is_err(), "{text}");
        }
    }

    #[test]
    fn overlap_is_seen_as_far_as_words_tell() {
        let both = |one: &str, two: &str| parse(one).overlaps(&parse(two));
        assert!(both("3b:00", "3b:00.1") && both("slot=3", "slot=3"));
        assert!(both("3b:00.1", "/sys/bus/pci/devices/0000:3b:00.1"));
        assert!(!both("3b:00.0", "3b:00.1") && !both("slot=3", "3b:00"));
    }
}
