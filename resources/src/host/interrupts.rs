//! How often passed functions interrupted, as the host's kernel counts it anyway.

use std::time::{Duration, Instant};

use super::sysroot::{SysError, Sysroot};
use crate::bdf::Bdf;

/// The kernel's counts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interrupts {
    text: String,
    /// The counts some time ago, and how long ago that is.
    earlier: Option<(String, Duration)>,
    /// An interrupt may reach a running guest past the host's kernel, which then does not count it.
    pub posted: bool,
}

impl Interrupts {
    /// As they are now.
    pub fn read(sysroot: &Sysroot) -> Result<Self, SysError> {
        let text = sysroot.read_if_present("/proc/interrupts")?.unwrap_or_default();
        let mut posted = false;
        for switch in ["kvm_intel/parameters/enable_apicv", "kvm_amd/parameters/avic"] {
            let value = sysroot.read_if_present(&format!("/sys/module/{switch}"))?;
            posted |= value.is_some_and(|value| value == "Y" || value == "1");
        }
        Ok(Self { text, earlier: None, posted })
    }

    /// As they are now and were a moment ago, which this waits for where VFIO has any.
    pub fn watch(sysroot: &Sysroot, moment: Duration) -> Result<Self, SysError> {
        let before = Self::read(sysroot)?;
        if !before.text.contains("vfio-") {
            return Ok(before);
        }
        let start = Instant::now();
        std::thread::sleep(moment);
        let now = Self::read(sysroot)?;
        Ok(Self { earlier: Some((before.text, start.elapsed())), ..now })
    }

    /// Of a function in a second, at present; `None` when that cannot be told.
    pub fn per_second(&self, bdf: Bdf) -> Option<u64> {
        let (text, age) = self.earlier.as_ref()?;
        // A vector that was connected meanwhile counts from zero.
        let more = self.of(bdf)?.saturating_sub(count(text, bdf)?);
        Some((more as f64 / age.as_secs_f64().max(f64::EPSILON)).round() as u64)
    }

    /// Of all of a function's lines together; `None` when VFIO has none for it. Lines look like
    /// ` 31:  12  0  IR-PCI-MSI 65536-edge  vfio-msix[0](0000:00:04.0)`.
    pub fn of(&self, bdf: Bdf) -> Option<u64> {
        count(&self.text, bdf)
    }
}

fn count(text: &str, bdf: Bdf) -> Option<u64> {
    let name = format!("({bdf})");
    let ours = |line: &&str| line.contains(&name) && line.contains("vfio-");
    let mut lines = text.lines().filter(ours).peekable();
    lines.peek()?;
    let counts = lines.flat_map(|line| {
        line.split_whitespace().skip(1).map_while(|word| word.parse::<u64>().ok())
    });
    Some(counts.sum())
}

// Provenance: a table in the form of proc_interrupts(5), with the names that drivers/vfio/pci
// gives; counts made up, no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    const TABLE: &str = "           CPU0       CPU1
  9:          0          0  IO-APIC   9-fasteoi   acpi
 31:         12          3  IR-PCI-MSI 65536-edge      vfio-msix[0](0000:00:04.0)
 32:          0        100  IR-PCI-MSI 65537-edge      vfio-msix[1](0000:00:04.0)
 17:          7          0  IO-APIC  17-fasteoi   ehci_hcd, vfio-intx(0000:00:05.0)
 33:          5          0  IR-PCI-MSI 65538-edge      nvme0q0
";

    #[test]
    fn counts_of_every_vector_and_cpu_add_up() {
        let tree = Tree::new();
        tree.file("/proc/interrupts", TABLE);
        let interrupts = Interrupts::read(&tree.sysroot()).unwrap();
        assert_eq!(interrupts.of("00:04.0".parse().unwrap()), Some(115));
        assert_eq!(interrupts.of("00:05.0".parse().unwrap()), Some(7));
        assert_eq!(interrupts.of("00:06.0".parse().unwrap()), None);
        assert!(!interrupts.posted);
        assert_eq!(interrupts.per_second("00:04.0".parse().unwrap()), None);
    }

    #[test]
    fn r87_rate_is_what_came_meanwhile() {
        let earlier = TABLE.replace("12          3", " 2          3").replace("vfio-intx", "-");
        let interrupts = Interrupts {
            text: TABLE.to_owned(),
            earlier: Some((earlier, Duration::from_millis(250))),
            posted: false,
        };
        assert_eq!(interrupts.per_second("00:04.0".parse().unwrap()), Some(40));
        assert_eq!(interrupts.per_second("00:05.0".parse().unwrap()), None);
        let tree = Tree::new();
        tree.file("/proc/interrupts", TABLE);
        let watched = Interrupts::watch(&tree.sysroot(), Duration::from_millis(1)).unwrap();
        assert_eq!(watched.per_second("00:04.0".parse().unwrap()), Some(0));
    }
}
