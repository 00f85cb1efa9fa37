//! Every fixed address of the machine, with why it is there.

/// Real-mode memory up to the legacy video hole is RAM.
pub const LOW_MEMORY_END: u64 = 0x9_fc00;
/// Legacy video and option-ROM hole; ACPI and SMBIOS tables live in its upper half.
pub const HIGH_MEMORY_START: u64 = 0x10_0000;

/// Boot GDT (PVH and 64-bit entry).
pub const BOOT_GDT: u64 = 0x500;
/// `hvm_start_info` of the PVH entry.
pub const PVH_START_INFO: u64 = 0x6000;
/// Memory map of the PVH entry; up to `ZERO_PAGE`.
pub const PVH_MEMMAP: u64 = 0x6100;
/// `boot_params` of the 64-bit Linux entry.
pub const ZERO_PAGE: u64 = 0x7000;
/// Stack of the 64-bit entry, growing down.
pub const BOOT_STACK: u64 = 0x8ff0;
/// Identity page tables of the 64-bit entry: PML4, PDPT, four PDs.
pub const BOOT_PAGE_TABLES: u64 = 0x9000;
/// Kernel command line.
pub const CMDLINE: u64 = 0x2_0000;
/// Room for the command line, terminating NUL included.
pub const CMDLINE_SIZE: u64 = 0x1_0000;

/// ACPI tables, RSDP first: 0xE0000 is where a legacy scan looks for it (ACPI 6.5, 5.2.5.1).
pub const ACPI_START: u64 = 0xe_0000;
/// End of the room for ACPI tables.
pub const ACPI_END: u64 = 0xe_ffff;
/// SMBIOS entry point and tables (SMBIOS 3.6, 5.2: scanned from 0xF0000).
pub const SMBIOS_START: u64 = 0xf_0000;
/// End of the room for SMBIOS.
pub const SMBIOS_END: u64 = 0xf_cfff;
/// MP floating pointer structure and configuration table (MultiProcessor Specification 1.4, 4.1: looked for up to the
/// end of the BIOS's room).
pub const MP_TABLE_START: u64 = 0xf_d000;
/// End of the room for the MP table.
pub const MP_TABLE_END: u64 = 0xf_ffff;

/// RAM below 4 GiB ends here at most, as distribution OVMF expects on a q35.
pub const LOW_RAM_MAX: u64 = 0x8000_0000;
/// ECAM: 256 buses of 1 MiB, where today's OVMF programs PCIEXBAR.
pub const ECAM_BASE: u64 = 0xe000_0000;
/// End of the largest ECAM.
pub const ECAM_MAX_END: u64 = 0xefff_ffff;
/// From here to 4 GiB: chipset, interrupt controllers, firmware. Never RAM, never a BAR.
pub const CHIPSET_START: u64 = 0xfc00_0000;
/// I/O APIC.
pub const IOAPIC: u64 = 0xfec0_0000;
/// Root complex registers (RCBA) of the LPC bridge.
pub const RCBA: u64 = 0xfed1_c000;
/// Local APIC, and where MSI messages go.
pub const LOCAL_APIC: u64 = 0xfee0_0000;
/// KVM's identity map page, needed by Intel hosts without unrestricted guest.
pub const KVM_IDENTITY_MAP: u64 = 0xfeff_c000;
/// KVM's three TSS pages.
pub const KVM_TSS: u64 = 0xfeff_d000;

/// COM1.
pub const SERIAL_PORT: u16 = 0x3f8;
/// COM1's interrupt.
pub const SERIAL_IRQ: u32 = 4;
/// ACPI power management block (PMBASE): PM1 event, PM1 control, timer.
pub const PM_BASE: u16 = 0x600;
/// PM1 event block: status and enable, 2 bytes each.
pub const PM1_EVENT: u16 = PM_BASE;
/// PM1 control block, 2 bytes.
pub const PM1_CONTROL: u16 = PM_BASE + 4;
/// ACPI PM timer, 4 bytes, 3.579545 MHz.
pub const PM_TIMER: u16 = PM_BASE + 8;
/// General-purpose event block 0, 16 bytes.
pub const GPE0: u16 = PM_BASE + 0x20;
/// ACPI system control interrupt.
pub const SCI_IRQ: u32 = 9;
/// Reset control register of the chipset.
pub const RESET_PORT: u16 = 0xcf9;
/// First I/O port for BARs: below are the legacy devices and PMBASE.
pub const IO_WINDOW_START: u64 = 0x1000;
/// Last I/O port.
pub const IO_WINDOW_END: u64 = 0xffff;

/// First GSI of the eight PCI interrupt lines: the I/O APIC pins above the ISA ones.
pub const PCI_GSI_BASE: u32 = 16;
/// How many GSIs PCI lines are spread over.
pub const PCI_GSI_COUNT: u32 = 8;

/// The GSI of an INTx pin (0 is INTA) on a device of bus 0; functions behind a root port reach bus 0 on the
/// port's device number (PCI-to-PCI Bridge 1.2, 9.1: their own device number is 0, so the pin stays).
pub const fn pci_gsi(device: u8, pin: u8) -> u32 {
    PCI_GSI_BASE + (device as u32 + pin as u32) % PCI_GSI_COUNT
}

/// The ISA interrupt that each of the lines PIRQA to PIRQH raises besides its I/O APIC pin, as firmware would route
/// them: for guests that use the 8259s. Each has its own, because KVM tells the end of an interrupt to one line only;
/// none is the interrupt of a device that the machine has.
pub const PCI_IRQS: [u8; PCI_GSI_COUNT as usize] = [10, 11, 5, 12, 14, 15, 6, 3];

/// The ISA interrupt of an INTx pin on a device of bus 0, as [`pci_gsi`] counts.
pub const fn pci_irq(device: u8, pin: u8) -> u8 {
    PCI_IRQS[((device as u32 + pin as u32) % PCI_GSI_COUNT) as usize]
}

/// Vendor and device of the host bridge: Intel 82G33 (q35's).
pub const HOST_BRIDGE_ID: (u16, u16) = (0x8086, 0x29c0);
/// Vendor and device of the LPC bridge at 00:1f.0: Intel ICH9.
pub const LPC_ID: (u16, u16) = (0x8086, 0x2918);
/// AMD's HyperTransport window, which its IOMMUs do not translate.
pub const AMD_HYPERTRANSPORT: (u64, u64) = (0xfd_0000_0000, 0xff_ffff_ffff);
