//! The address plan: one pure function from what a machine needs to where everything goes.

use strait_resources::{bar::BarSpec, bdf::Bdf, range::AddressRange};

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
    /// Guest RAM, ascending; the first range starts at 0.
    pub ram: Vec<AddressRange>,
    /// ECAM, 1 MiB for each bus from 0.
    pub ecam: AddressRange,
    /// I/O ports for BARs.
    pub io: AddressRange,
    /// 32-bit MMIO for BARs.
    pub mmio32: AddressRange,
    /// 64-bit MMIO for BARs; `None` when nothing needs it.
    pub mmio64: Option<AddressRange>,
    /// In the order of the request.
    pub ports: Vec<PortPlan>,
    /// What must be neither RAM nor BAR, with its reason; goes into E820 and ACPI.
    pub holes: Vec<Hole>,
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
    /// Can another device reach it by DMA, that is: is all of it in the IOMMU's ranges?
    pub dma_reachable: bool,
}
