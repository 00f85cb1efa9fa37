//! What the monitor says and what the host's kernel knows, side by side.

use std::time::Duration;

use strait_resources::{
    bdf::Bdf,
    host::{
        aer::{self, Counters},
        interrupts::Interrupts,
        kernel_log::KernelLog,
        pci::{self, HostFunction},
        sysroot::{SysError, Sysroot},
    },
};

use super::guest::{Device, Guest};

/// How long interrupts are watched to tell how many come.
const MOMENT: Duration = Duration::from_millis(250);

/// One running guest.
#[derive(Clone, Debug)]
pub(crate) struct Facts {
    pub(crate) guest: Guest,
    pub(crate) devices: Vec<DeviceFacts>,
}

/// One passed function.
#[derive(Clone, Debug)]
pub(crate) struct DeviceFacts {
    /// From the monitor.
    pub(crate) device: Device,
    /// `None` when it left the host.
    pub(crate) host: Option<HostFunction>,
    /// Interrupts that the host's kernel passed on; `None` while none is connected.
    pub(crate) delivered: Option<u64>,
    /// Interrupts may reach the guest uncounted.
    pub(crate) posted: bool,
    /// The IOMMU's refusals in the kernel log; `None` when that cannot be read.
    pub(crate) faults: Option<Vec<String>>,
    /// Interrupts in a second at present; `None` when that cannot be told.
    pub(crate) per_second: Option<u64>,
    /// Errors of PCI Express that the kernel counted since the start; `None` when it counts none.
    pub(crate) errors: Option<Counters>,
    /// Those in the function's registers; `None` without them.
    pub(crate) error_status: Option<aer::Status>,
    /// Those in the kernel log since the start; `None` when that cannot be read.
    pub(crate) error_log: Option<Vec<String>>,
    /// Functions of the same card that the guest does not have.
    pub(crate) left_behind: Vec<Bdf>,
    /// Is the host a notebook? `None`: its firmware does not say.
    pub(crate) notebook: Option<bool>,
}

impl Facts {
    /// Looks everything up. Only files of the host's are read.
    pub(crate) fn collect(sysroot: &Sysroot, guest: Guest) -> Result<Self, SysError> {
        // Older faults are another guest's. A second more, because the monitor counts from when it was built.
        let age = Duration::from_secs(guest.seconds + 1);
        let log = KernelLog::read(sysroot).map(|log| log.since(sysroot, age));
        let interrupts = Interrupts::watch(sysroot, MOMENT)?;
        let notebook = notebook(sysroot)?;
        let passed: Vec<Bdf> = guest.devices.iter().map(|device| device.host).collect();
        let mut devices = Vec::new();
        for device in &guest.devices {
            let bdf = device.host;
            let faults = log.as_ref().map(|log| log.iommu_faults(bdf).map(str::to_owned).collect());
            let card = pci::slot_functions(sysroot, bdf)?;
            let lines =
                log.as_ref().map(|log| log.express_errors(bdf).map(str::to_owned).collect());
            let host = pci::find(sysroot, bdf)?;
            let counted = Counters::read(sysroot, bdf)?;
            let before = device.errors_before.clone().unwrap_or_default();
            devices.push(DeviceFacts {
                device: device.clone(),
                error_status: host.as_ref().and_then(|host| aer::Status::parse(&host.config)),
                errors: counted.map(|now| now.since(&before)),
                error_log: lines,
                host,
                per_second: interrupts.per_second(bdf),
                delivered: interrupts.of(bdf),
                posted: interrupts.posted,
                faults,
                left_behind: card.into_iter().filter(|other| !passed.contains(other)).collect(),
                notebook,
            });
        }
        Ok(Self { guest, devices })
    }
}

/// SMBIOS 3.6, 7.4.1: portable, laptop, notebook, sub notebook, convertible, detachable.
fn notebook(sysroot: &Sysroot) -> Result<Option<bool>, SysError> {
    let kind = sysroot.read_if_present("/sys/class/dmi/id/chassis_type")?;
    let kind = kind.and_then(|kind| kind.parse::<u8>().ok());
    Ok(kind.map(|kind| matches!(kind, 8 | 9 | 10 | 14 | 31 | 32)))
}
