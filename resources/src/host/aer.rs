//! Errors of PCI Express that a function reported: Advanced Error Reporting, as the host's kernel counts them
//! (Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats) and as its registers have them.
//!
//! PCI Express Base 5.0, 7.8.4.

use serde::{Deserialize, Serialize};

use super::{
    capabilities::{self, Kind},
    pci,
    sysroot::{SysError, Sysroot},
};
use crate::bdf::Bdf;

/// The extended capability.
const AER: u16 = 0x0001;
/// Its registers, from its start: uncorrectable status and severity, correctable status.
const UNCORRECTABLE: usize = 0x04;
const SEVERITY: usize = 0x0c;
const CORRECTABLE: usize = 0x10;

/// Bits of the uncorrectable registers, named as the kernel names its counters.
const UNCORRECTABLE_BITS: &[(u32, &str)] = &[
    (4, "DLP"),
    (5, "SDES"),
    (12, "TLP"),
    (13, "FCP"),
    (14, "CmpltTO"),
    (15, "CmpltAbrt"),
    (16, "UnxCmplt"),
    (17, "RxOF"),
    (18, "MalfTLP"),
    (19, "ECRC"),
    (20, "UnsupReq"),
    (21, "ACSViol"),
    (22, "UncorrIntErr"),
    (23, "BlockedTLP"),
    (24, "AtomicOpBlocked"),
    (25, "TLPBlockedErr"),
    (26, "PoisonTLPBlocked"),
];
/// Bits of the correctable register.
const CORRECTABLE_BITS: &[(u32, &str)] = &[
    (0, "RxErr"),
    (6, "BadTLP"),
    (7, "BadDLLP"),
    (8, "Rollover"),
    (12, "Timeout"),
    (13, "NonFatalErr"),
    (14, "CorrIntErr"),
    (15, "HeaderOF"),
];

/// Errors by their kernel names, with how many there were; those that never happened are left out.
pub type Errors = Vec<(String, u64)>;

/// What the kernel has counted since it found the function.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Mended by the link itself.
    pub correctable: Errors,
    /// A transaction was lost, the link works.
    pub nonfatal: Errors,
    /// The link does not work.
    pub fatal: Errors,
}

impl Counters {
    /// `None` when the kernel does not count: no such capability, or the firmware keeps it to itself.
    pub fn read(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<Self>, SysError> {
        let kind = |name: &str| -> Result<Option<Errors>, SysError> {
            let text = sysroot.read_if_present(&pci::path(bdf, &format!("aer_dev_{name}")))?;
            Ok(text.map(|text| errors(&text)))
        };
        let (correctable, nonfatal, fatal) =
            (kind("correctable")?, kind("nonfatal")?, kind("fatal")?);
        let counted = correctable.is_some() || nonfatal.is_some() || fatal.is_some();
        Ok(counted.then(|| Self {
            correctable: correctable.unwrap_or_default(),
            nonfatal: nonfatal.unwrap_or_default(),
            fatal: fatal.unwrap_or_default(),
        }))
    }

    /// What came after `earlier`. A function that the kernel found anew counts from zero.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let less = |now: &Errors, before: &Errors| -> Errors {
            let count = |name: &str| before.iter().find(|(known, _)| known == name);
            now.iter()
                .map(|(name, n)| {
                    let before = count(name).map_or(0, |(_, count)| *count);
                    (name.clone(), n.checked_sub(before).unwrap_or(*n))
                })
                .filter(|(_, count)| *count > 0)
                .collect()
        };
        Self {
            correctable: less(&self.correctable, &earlier.correctable),
            nonfatal: less(&self.nonfatal, &earlier.nonfatal),
            fatal: less(&self.fatal, &earlier.fatal),
        }
    }
}

/// How many in all.
pub fn total(errors: &Errors) -> u64 {
    errors.iter().fold(0, |sum, (_, count)| sum.saturating_add(*count))
}

/// "BadTLP 12" a line; the last is the total, which the sum says as well.
fn errors(text: &str) -> Errors {
    text.lines()
        .filter_map(|line| line.rsplit_once(' '))
        .filter(|(name, _)| !name.starts_with("TOTAL_"))
        .filter_map(|(name, count)| Some((name.to_owned(), count.parse().ok()?)))
        .filter(|(_, count)| *count > 0)
        .collect()
}

/// The registers: errors that nobody has cleared yet. The kernel clears those it handles, so what stays is masked, or
/// from the time before it looked, or the firmware's to handle.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Status {
    /// Named as in [`Counters`].
    pub correctable: Vec<&'static str>,
    /// Those that are not fatal.
    pub nonfatal: Vec<&'static str>,
    /// By the function's own table of severities.
    pub fatal: Vec<&'static str>,
}

impl Status {
    /// From config space; `None` without the capability, and when it is not to be seen (it takes root).
    pub fn parse(config: &[u8]) -> Option<Self> {
        let at = capabilities::find(config, Kind::Extended, AER)?.offset;
        let register = |offset: usize| capabilities::dword(config, at.checked_add(offset)?);
        let uncorrectable = register(UNCORRECTABLE)?;
        let severity = register(SEVERITY)?;
        Some(Self {
            correctable: names(register(CORRECTABLE)?, CORRECTABLE_BITS),
            nonfatal: names(uncorrectable & !severity, UNCORRECTABLE_BITS),
            fatal: names(uncorrectable & severity, UNCORRECTABLE_BITS),
        })
    }
}

fn names(register: u32, bits: &[(u32, &'static str)]) -> Vec<&'static str> {
    bits.iter().filter(|(bit, _)| register >> bit & 1 != 0).map(|(_, name)| *name).collect()
}

// Provenance: counters in the form of Documentation/ABI/testing/sysfs-bus-pci-devices-aer_stats,
// numbers made up; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Function, Tree};

    const DEVICE: &str = "/sys/bus/pci/devices/0000:00:02.0";

    fn counters(tree: &Tree) -> Option<Counters> {
        Counters::read(&tree.sysroot(), "00:02.0".parse().unwrap()).unwrap()
    }

    #[test]
    fn r87_counters_are_read_where_the_kernel_has_them() {
        let tree = Tree::new();
        tree.function(&Function::default());
        assert_eq!(counters(&tree), None);
        tree.file(
            &format!("{DEVICE}/aer_dev_correctable"),
            "RxErr 0\nBadTLP 12\nTOTAL_ERR_COR 12\n",
        );
        tree.file(
            &format!("{DEVICE}/aer_dev_nonfatal"),
            "Undefined 0\nUnsupReq 3\nPoison TLP 1\nTOTAL_ERR_NONFATAL 4\n",
        );
        let found = counters(&tree).unwrap();
        assert_eq!(found.correctable, [("BadTLP".to_owned(), 12)]);
        assert_eq!(total(&found.nonfatal), 4);
        assert_eq!(found.fatal, []);
    }

    #[test]
    fn r87_counters_since_the_start_leave_older_errors_out() {
        let counts = |names: &[(&str, u64)]| Counters {
            correctable: names.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            ..Counters::default()
        };
        let before = counts(&[("BadTLP", 3), ("RxErr", 2)]);
        let now = counts(&[("BadTLP", 5), ("RxErr", 2), ("Timeout", 1)]);
        assert_eq!(now.since(&before), counts(&[("BadTLP", 2), ("Timeout", 1)]));
        // Removed and found again.
        assert_eq!(counts(&[("RxErr", 1)]).since(&before), counts(&[("RxErr", 1)]));
    }

    #[test]
    fn r87_status_goes_by_the_severity_of_the_function() {
        let mut config = vec![0; 4096];
        config[0x100..0x104].copy_from_slice(&0x0001_0001_u32.to_le_bytes());
        config[0x104..0x108].copy_from_slice(&(1_u32 << 20 | 1 << 18).to_le_bytes());
        config[0x10c..0x110].copy_from_slice(&(1_u32 << 18).to_le_bytes());
        config[0x110..0x114].copy_from_slice(&(1_u32 << 6).to_le_bytes());
        let found = Status::parse(&config).unwrap();
        assert_eq!(found.correctable, ["BadTLP"]);
        assert_eq!((found.nonfatal, found.fatal), (vec!["UnsupReq"], vec!["MalfTLP"]));
        assert_eq!(Status::parse(&config[..64]), None);
        assert_eq!(Status::parse(&config[..0x108]), None);
    }
}
