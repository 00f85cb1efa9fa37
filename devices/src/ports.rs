//! What devices ask of a monitor. `vmm` implements these over KVM, tests with fakes.

use std::io;

use strait_resources::range::AddressRange;
use vmm_sys_util::eventfd::EventFd;

/// What a message-signalled interrupt writes, and where (PCI Local Bus 3.0, 6.8.1).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct MsiMessage {
    /// Guest-physical address of the write.
    pub address: u64,
    /// What is written.
    pub data: u32,
}

/// Gives out message-signalled vectors, each with a GSI of its own.
pub trait MsiRouter: Send + Sync {
    /// A vector with a fresh eventfd, connected to nothing. Fails when GSIs run out.
    fn vector(&self) -> io::Result<Box<dyn MsiVector>>;
}

/// One vector. Dropping it disconnects it and gives its GSI back.
pub trait MsiVector: Send {
    /// What the device signals.
    fn eventfd(&self) -> &EventFd;
    /// [`MsiVector::connect`] with this message is next. Of vectors that are all announced before the first of them is
    /// connected, the interrupt controller learns at once, which costs it as much as one.
    fn announce(&mut self, message: MsiMessage);
    /// From now on a signal injects `message`: the route first, the irqfd second, because an irqfd on an
    /// unrouted GSI loses the edge. Called again with another message it only changes the route.
    fn connect(&mut self, message: MsiMessage) -> io::Result<()>;
    /// Signals stay in the eventfd: the irqfd goes before its route.
    fn disconnect(&mut self);
}

/// One level-triggered interrupt line into the guest's interrupt controller.
pub trait IrqLine: Send + Sync {
    /// The ISA interrupt that the line raises after power-on: what firmware writes to the Interrupt Line register (PCI
    /// Local Bus 3.0, 6.2.4), and all that an operating system without ACPI and I/O APIC knows of a device's interrupt.
    fn irq(&self) -> u8;
    /// `trigger` raises the line; the end-of-interrupt lowers it and signals `resample`.
    fn connect(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()>;
    /// Undoes `connect`.
    fn disconnect(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()>;
}

/// PCI interrupt lines of a PC: PIRQA to PIRQH.
pub const PCI_LINES: usize = 8;

/// Routes PCI interrupt lines to the 8259s, beside the I/O APIC, whose pins they always have.
pub trait LineRouter: Send + Sync {
    /// For each line the ISA interrupt (3 to 15) that it raises too, or `None`.
    fn route(&self, irqs: [Option<u8>; PCI_LINES]);
}

/// What a device can ask of the whole machine.
pub trait MachineControl: Send + Sync {
    /// The guest powered off.
    fn power_off(&self);
    /// The guest wants to start again.
    fn reset(&self);
}

/// Whether devices may reach guest RAM by DMA. They may not before all of it is mapped in the IOMMU; the guest may run.
pub trait BusMasterGate: Send + Sync {
    /// Waits until they may. `false`: they will not, because the machine ends or starts again meanwhile, and the write
    /// that asked for it must vanish. Called with no lock held, so that other CPUs go on.
    fn pass(&self) -> bool;
    /// May they now? Never waits.
    fn is_open(&self) -> bool;
}

/// Page-aligned memory of this process that the guest may reach directly.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HostMemory {
    /// Host-virtual address.
    pub address: usize,
    /// Bytes, a multiple of the page size.
    pub len: u64,
}

/// What the guest may do to memory without an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read and write it.
    ReadWrite,
    /// Read it; a write is an access to the bus.
    ReadOnly,
}

/// Puts host memory into the guest's physical address space (a KVM memslot, and the IOMMU for P2P).
pub trait GuestMapper: Send + Sync {
    /// Maps `memory` at `range` (same length). Dropping the result unmaps it for the guest; other devices may reach it
    /// there until it is mapped elsewhere or withdrawn.
    fn map(
        &self,
        range: AddressRange,
        memory: HostMemory,
        access: Access,
    ) -> io::Result<Box<dyn GuestMapping>>;
    /// Other devices do not reach `memory` any more when this returns: the device that it belongs to is about to stop
    /// answering.
    fn withdraw(&self, memory: HostMemory);
    /// Waits until other devices reach what was mapped, where somebody asked for that. Called with no lock held.
    fn settle(&self);
}

/// A mapping that ends with this value.
pub trait GuestMapping: Send {}
