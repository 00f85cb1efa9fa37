//! What the host's kernel wrote about a function.

use std::time::Duration;

use super::sysroot::{SysError, Sysroot};
use crate::bdf::Bdf;

/// Its records, one by one and from the start of what is kept (Documentation/ABI/testing/dev-kmsg).
const LOG: &str = "/dev/kmsg";

/// The messages of a kernel log.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelLog {
    messages: Vec<String>,
    /// When each was written, since boot.
    times: Vec<Duration>,
}

impl KernelLog {
    /// `None` when there is no log, or it is for root only.
    pub fn read(sysroot: &Sysroot) -> Option<Self> {
        let read: Result<String, SysError> = sysroot.read_available(LOG);
        Some(Self::parse(&read.ok().filter(|_| sysroot.exists(LOG))?))
    }

    /// "6,1234,5678,-;message", the third number being microseconds; lines that go on begin with a space.
    pub fn parse(text: &str) -> Self {
        let mut log = Self::default();
        for line in text.lines().filter(|line| !line.starts_with(' ')) {
            let Some((head, message)) = line.split_once(';') else { continue };
            let time = head.split(',').nth(2).and_then(|time| time.parse().ok()).unwrap_or(0);
            log.times.push(Duration::from_micros(time));
            log.messages.push(message.to_owned());
        }
        log
    }

    /// Without what is older than `age`. All of it when the host does not say how long it has been up.
    #[must_use]
    pub fn since(mut self, sysroot: &Sysroot, age: Duration) -> Self {
        let uptime = sysroot.read("/proc/uptime").ok();
        let uptime = uptime.and_then(|text| text.split(' ').next()?.parse().ok());
        let uptime = uptime.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let Some(start) = uptime.and_then(|uptime| uptime.checked_sub(age)) else { return self };
        let first = self.times.iter().position(|time| *time >= start).unwrap_or(self.times.len());
        self.times.drain(..first);
        self.messages.drain(..first);
        self
    }

    /// The messages that name a function, oldest first.
    pub fn about(&self, bdf: Bdf) -> impl Iterator<Item = &str> {
        // VT-d's faults have it without segment: "Request device [3b:00.0] fault addr".
        let long = bdf.to_string();
        let short = long.split_once(':').map(|(_, short)| format!("[{short}]")).unwrap_or_default();
        let names = move |message: &&str| {
            message.contains(&long) || bdf.segment() == 0 && message.contains(&short)
        };
        self.messages.iter().map(String::as_str).filter(names)
    }

    /// The refusals of the IOMMU among them.
    pub fn iommu_faults(&self, bdf: Bdf) -> impl Iterator<Item = &str> {
        const FAULTS: &[&str] = &["DMAR: [", "IO_PAGE_FAULT", "INVALID_DEVICE_REQUEST"];
        self.about(bdf).filter(|message| FAULTS.iter().any(|fault| message.contains(fault)))
    }

    /// Errors of PCI Express among them, as the kernel's own reporting (AER) and firmware's (APEI) have them.
    pub fn express_errors(&self, bdf: Bdf) -> impl Iterator<Item = &str> {
        const ERRORS: &[&str] = &["AER: ", "PCIe Bus Error", "[Hardware Error]"];
        self.about(bdf).filter(|message| ERRORS.iter().any(|error| message.contains(error)))
    }

    /// Every message.
    pub fn messages(&self) -> &[String] {
        &self.messages
    }
}

// Provenance: lines by the format strings of drivers/iommu and drivers/pci/pcie/aer.c, in the form
// of Documentation/ABI/testing/dev-kmsg; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
6,1,1,-;pci 0000:3b:00.0: [10de:1e07] type 00 class 0x030000\n SUBSYSTEM=pci\n DEVICE=+pci:0000:3b:00.0\n\
4,2,2,-;DMAR: [DMA Write NO_PASID] Request device [3b:00.0] fault addr 0xdead0000 [fault reason 0x05]\n\
4,3,3,-;vfio-pci 0000:3b:00.0: AMD-Vi: Event logged [IO_PAGE_FAULT domain=0x0010 address=0xdead]\n\
4,4,4,-;DMAR: [DMA Read NO_PASID] Request device [d8:00.0] fault addr 0x0\n";

    #[test]
    fn what_is_older_than_the_guest_is_left_out() {
        let tree = crate::host::fixture::Tree::new();
        let log = KernelLog::parse("6,1,10000000,-;old\n6,2,95000000,-;new\n");
        let lately = |log: KernelLog| log.since(&tree.sysroot(), Duration::from_secs(10));
        assert_eq!(lately(log.clone()).messages(), ["old", "new"]);
        tree.file("/proc/uptime", "100.25 180.00\n");
        assert_eq!(lately(log).messages(), ["new"]);
    }

    #[test]
    fn r87_errors_of_pci_express_are_found_for_the_function_alone() {
        let log = KernelLog::parse(
            "4,1,1,-;pcieport 0000:00:1c.0: AER: Correctable error message received from 0000:3b:00.0\n\
             3,2,2,-;vfio-pci 0000:3b:00.0: PCIe Bus Error: severity=Correctable, type=Physical Layer, (Receiver ID)\n\
             3,3,3,-;vfio-pci 0000:3b:00.0:   device [10de:1e07] error status/mask=00000001/0000a000\n\
             3,4,4,-;{1}[Hardware Error]:   device_id: 0000:d8:00.0\n\
             6,5,5,-;pcieport 0000:00:1c.0: AER: enabled with IRQ 122\n",
        );
        assert_eq!(log.express_errors("3b:00.0".parse().unwrap()).count(), 2);
        assert_eq!(log.express_errors("d8:00.0".parse().unwrap()).count(), 1);
        assert_eq!(log.express_errors("00:1c.0".parse().unwrap()).count(), 2);
    }

    #[test]
    fn faults_of_both_makers_are_found_for_the_function_alone() {
        let log = KernelLog::parse(TEXT);
        assert_eq!(log.about("3b:00.0".parse().unwrap()).count(), 3);
        assert_eq!(log.iommu_faults("3b:00.0".parse().unwrap()).count(), 2);
        assert_eq!(log.iommu_faults("d8:00.0".parse().unwrap()).count(), 1);
        assert_eq!(log.iommu_faults("0001:d8:00.0".parse().unwrap()).count(), 0);
    }
}
