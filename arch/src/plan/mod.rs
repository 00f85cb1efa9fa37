//! The address plan: one pure function from what a machine needs to where everything goes.
//!
//! ```text
//! RAM            0 up to 2 GiB at most, the rest from 4 GiB up, around whatever the host's IOMMU cannot map
//! 32-bit window  from the end of low RAM to ECAM; low RAM gives way in steps of 128 MiB when BARs need more
//! ECAM           1 MiB a bus
//! chipset        the last 64 MiB below 4 GiB
//! 64-bit window  above all RAM, the lowest place that holds every prefetchable window in one piece
//! ```
//!
//! Nothing here asks the host or the guest anything, so `--dry-run`, `doctor` and `run` cannot disagree.

mod e820;
mod error;
mod pack;
mod picture;
mod ram;
mod solve;
#[cfg(test)]
mod tests;

use strait_resources::{bar::BarSpec, bdf::Bdf, range::AddressRange};

pub use e820::E820Kind;
pub use error::{Need, PlanError, Shortage};
pub use picture::xorg_bus_id;

/// What the machine needs.
#[derive(Clone, Debug)]
pub struct PlanRequest {
    /// Guest RAM in bytes, a multiple of 2 MiB.
    pub ram: u64,
    /// Physical-address bits of the guest's CPU, which are the host's: 36..=57.
    pub physical_bits: u8,
    /// What the host's IOMMU can address for every passed device; empty when nothing is passed.
    pub iova: Vec<AddressRange>,
    /// What the host keeps for itself in the device's address space (RMRR, MSI, HyperTransport).
    pub reserved: Vec<AddressRange>,
    /// One entry a root port, in command-line order.
    pub ports: Vec<PortRequest>,
    /// Exact size of the 32-bit MMIO window in bytes, when the user insists.
    pub mmio32: Option<u64>,
    /// Exact size of the 64-bit MMIO window in bytes, when the user insists.
    pub mmio64: Option<u64>,
}

/// What sits behind one root port: the functions of one host slot.
#[derive(Clone, Debug)]
pub struct PortRequest {
    /// The user's or a made-up name: `vfio0`.
    pub id: String,
    /// Secondary bus number the user asked for (`guest-address=05:00`), 1..=255.
    pub bus: Option<u8>,
    /// The functions, by ascending guest function number; function 0 is among them.
    pub functions: Vec<FunctionRequest>,
}

/// One function behind a root port.
#[derive(Clone, Debug)]
pub struct FunctionRequest {
    /// Guest function number, 0..=7.
    pub number: u8,
    /// Who this is on the host, for messages.
    pub host: Bdf,
    /// Its BARs and ROM, by ascending index.
    pub bars: Vec<BarSpec>,
}

/// Where everything is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// Physical-address bits of the guest's CPU, as requested.
    pub physical_bits: u8,
    /// Guest RAM as memslots, ascending, every end a multiple of 2 MiB. The first range starts at 0 and runs through the
    /// legacy hole at 0xA0000..0x100000: one slot, because the ACPI and SMBIOS tables live in there. What the
    /// guest may use as RAM is [`Plan::e820`].
    pub ram: Vec<AddressRange>,
    /// ECAM, 1 MiB for each bus from 0.
    pub ecam: AddressRange,
    /// I/O ports for BARs.
    pub io: AddressRange,
    /// 32-bit MMIO for BARs. May contain holes; no port's window does.
    pub mmio32: AddressRange,
    /// 64-bit MMIO for BARs, without holes; `None` when nothing needs it.
    pub mmio64: Option<AddressRange>,
    /// In the order of the request.
    pub ports: Vec<PortPlan>,
    /// What must be neither RAM nor BAR, with its reason; goes into E820 and ACPI. Ascending and disjoint; the
    /// chipset's addresses below 4 GiB are one of them, ECAM is not.
    pub holes: Vec<Hole>,
    /// I/O BARs that get no address, by host function: the 60 KiB of I/O ports make only 15 bridge windows. Every
    /// other BAR is in `ports`. Drivers of today's devices do not need theirs.
    pub unassigned: Vec<(Bdf, BarSpec)>,
}

impl Plan {
    /// The port whose secondary bus this is.
    pub fn port_of_bus(&self, bus: u8) -> Option<&PortPlan> {
        self.ports.iter().find(|port| port.bus == bus)
    }
}

/// Addresses that nothing may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hole {
    /// Where.
    pub range: AddressRange,
    /// Why, in a few words: "local APIC", "AMD HyperTransport", "reserved by the host's IOMMU".
    pub why: &'static str,
}

/// One root port and what is behind it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortPlan {
    /// As in the request.
    pub id: String,
    /// The port itself, on bus 0.
    pub at: Bdf,
    /// Its secondary bus (and subordinate: nothing nests).
    pub bus: u8,
    /// I/O window, 4 KiB granular.
    pub io: Option<AddressRange>,
    /// 32-bit non-prefetchable window, 1 MiB granular.
    pub memory: Option<AddressRange>,
    /// 64-bit prefetchable window, 1 MiB granular.
    pub prefetchable: Option<AddressRange>,
    /// In the order of the request.
    pub functions: Vec<FunctionPlan>,
}

/// One function and its BARs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FunctionPlan {
    /// Guest address.
    pub at: Bdf,
    /// Host address.
    pub host: Bdf,
    /// By ascending index.
    pub bars: Vec<BarPlan>,
}

/// One BAR's home.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarPlan {
    /// The BAR as the guest shall see it: a 64-bit BAR that is not prefetchable on the host and does not
    /// fit below 4 GiB is shown as prefetchable, because a bridge forwards 64-bit addresses only through
    /// its prefetchable window (PCI-to-PCI Bridge 1.2, 3.2.5.9).
    pub spec: BarSpec,
    /// Where; naturally aligned, `spec.size` long.
    pub at: AddressRange,
    /// Can another device reach it by DMA, that is: is all of it in the IOMMU's ranges? Never true for I/O.
    pub dma_reachable: bool,
}
