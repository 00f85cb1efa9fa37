//! ACPI tables from a plain description of the machine (ACPI 6.5).
//!
//! Full ACPI, not hardware-reduced: the machine has a q35's PM block anyway, and what guests expect of a PC is there.
//! Nothing in here costs an exit that a guest does not ask for: no GPE block, no SMI command port.

mod battery;
mod dsdt;
mod links;
mod tables;
mod user;

use acpi_tables::{Aml, rsdp::Rsdp, xsdt::XSDT};
use strait_resources::range::align_up;
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

pub use self::{
    battery::fake_battery,
    user::{TableError, TableName, check_table},
};
use crate::{layout, plan::Plan};

const OEM: [u8; 6] = *b"STRAIT";
const OEM_TABLE: [u8; 8] = *b"STRAITVM";
const OEM_REVISION: u32 = 1;
/// FACS wants 64; it suits the others too.
const ALIGN: u64 = 64;

/// What the tables describe.
#[derive(Clone, Copy, Debug)]
pub struct AcpiMachine<'a> {
    /// Local APIC ids of the vCPUs, the boot CPU's first.
    pub apic_ids: &'a [u32],
    /// Windows, ports and holes.
    pub plan: &'a Plan,
    /// Is the PM timer announced? Each read of it is an exit to the monitor, and Linux takes it as the judge of its TSC:
    /// a guest that has a better clock should not find it (ACPI 6.5, 5.2.9: it is optional).
    pub pm_timer: bool,
    /// Whole tables to add as they are (`--acpi-table`), each with its header and checksum.
    pub extra: &'a [Vec<u8>],
}

/// The tables, placed.
#[derive(Clone, Debug)]
pub struct AcpiTables {
    /// Guest-physical address of the root pointer, which is the first blob.
    pub rsdp: u64,
    /// Address and bytes of each.
    pub blobs: Vec<(u64, Vec<u8>)>,
}

/// More tables than there is room for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the ACPI tables need {need} bytes, there is room for {room}")]
pub struct AcpiTooLarge {
    /// Bytes that the tables take up together.
    pub need: u64,
    /// Bytes that the machine sets aside for them.
    pub room: u64,
}

/// Builds every table.
///
/// # Errors
/// When they do not fit between [`layout::ACPI_START`] and [`layout::ACPI_END`]: hundreds of vCPUs or large tables of
/// the user's.
pub fn build(machine: &AcpiMachine<'_>) -> Result<AcpiTables, AcpiTooLarge> {
    let mut room = Room { next: layout::ACPI_START, blobs: Vec::new() };
    // The root pointer comes first but points at what is placed last.
    let rsdp = room.place(vec![0; Rsdp::len()]);
    let facs = room.place(tables::facs());
    let dsdt = room.place(dsdt::dsdt(machine));
    let mut listed = vec![
        room.place(tables::fadt(dsdt, facs, machine.pm_timer)),
        room.place(tables::madt(machine.apic_ids)),
        room.place(tables::mcfg(machine.plan)),
        room.place(tables::waet()),
    ];
    listed.extend(machine.extra.iter().map(|table| room.place(table.clone())));
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    listed.into_iter().for_each(|table| xsdt.add_entry(table));
    let xsdt = room.place(bytes(&xsdt));
    room.blobs[0].1 = bytes(&Rsdp::new(OEM, xsdt));
    let size = layout::ACPI_END + 1 - layout::ACPI_START;
    let need = room.next - layout::ACPI_START;
    if need > size {
        Err(AcpiTooLarge { need, room: size })
    } else {
        Ok(AcpiTables { rsdp, blobs: room.blobs })
    }
}

impl AcpiTables {
    /// Writes every table into guest memory.
    ///
    /// # Errors
    /// When the low megabyte is not RAM.
    pub fn write(&self, memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
        self.blobs.iter().try_for_each(|(at, bytes)| memory.write_slice(bytes, GuestAddress(*at)))
    }
}

struct Room {
    next: u64,
    blobs: Vec<(u64, Vec<u8>)>,
}

impl Room {
    fn place(&mut self, bytes: Vec<u8>) -> u64 {
        let at = self.next;
        self.next = align_up(at.saturating_add(bytes.len() as u64), ALIGN).unwrap_or(u64::MAX);
        self.blobs.push((at, bytes));
        at
    }
}

fn bytes(aml: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    aml.to_aml_bytes(&mut bytes);
    bytes
}

#[cfg(test)]
mod tests;
