//! MP table: processors and interrupts for operating systems that do not take them from ACPI, because they were told not
//! to or know none (MultiProcessor Specification 1.4; sections are its).

use std::collections::BTreeSet;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::{
    layout::{self, MP_TABLE_END, MP_TABLE_START},
    plan::Plan,
};

/// What the table describes.
#[derive(Clone, Copy, Debug)]
pub struct MpMachine<'a> {
    /// Local APIC ids of the vCPUs, the boot CPU's first.
    pub apic_ids: &'a [u32],
    /// EAX and EDX of CPUID leaf 1.
    pub cpu_id: (u32, u32),
    /// Root ports, whose devices have interrupts.
    pub plan: &'a Plan,
}

/// 4.1: the floating pointer structure, 16 bytes.
const POINTER: &[u8; 4] = b"_MP_";
const POINTER_LEN: usize = 16;
/// 4.2: the configuration table's header.
const TABLE: &[u8; 4] = b"PCMP";
const HEADER_LEN: usize = 44;
const REVISION: u8 = 4;
/// The version that KVM's local APICs show, and its I/O APIC's.
const LOCAL_APIC_VERSION: u8 = 0x14;
const IOAPIC_VERSION: u8 = 0x11;
/// 4.3: kinds of entries.
const PROCESSOR: u8 = 0;
const BUS: u8 = 1;
const IOAPIC: u8 = 2;
const IO_INTERRUPT: u8 = 3;
const LOCAL_INTERRUPT: u8 = 4;
/// 4.3.4: kinds of interrupts.
const INT: u8 = 0;
const NMI: u8 = 1;
const EXTINT: u8 = 3;
/// Polarity and trigger mode as the bus has them; level, active high; level, active low.
const CONFORMING: u16 = 0;
const LEVEL_HIGH: u16 = 0b1101;
const LEVEL_LOW: u16 = 0b1111;
const ALL_APICS: u8 = 0xff;

impl MpMachine<'_> {
    /// Pointer and table, as they lie from [`MP_TABLE_START`] on.
    pub fn build(&self) -> Vec<u8> {
        let table = self.table();
        let mut all = pointer();
        all.extend_from_slice(&table);
        all
    }

    /// Puts them at their place in low memory.
    ///
    /// # Errors
    /// When that is no RAM.
    pub fn write<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), GuestMemoryError> {
        memory.write_slice(&self.build(), GuestAddress(MP_TABLE_START))
    }

    fn table(&self) -> Vec<u8> {
        let buses: BTreeSet<u8> = self.plan.ports.iter().map(|port| port.bus).chain([0]).collect();
        // A PCI bus has its own number here; some other is left for the ISA bus. There are 256 at most.
        let isa = (0..=u8::MAX).rev().find(|id| !buses.contains(id)).unwrap_or(u8::MAX);
        // APIC ids are 8 bits here; a larger one is in ACPI's table only.
        let small = |id: &u32| u8::try_from(*id).ok().filter(|id| *id != ALL_APICS);
        let ids: Vec<u8> = self.apic_ids.iter().filter_map(small).collect();
        let ioapic_id = (0..=0xf).rev().find(|id| !ids.contains(id)).unwrap_or(0);

        let mut entries = Entries::default();
        for (position, id) in ids.iter().enumerate() {
            let (signature, features) = self.cpu_id;
            let flags = 1 | u8::from(position == 0) << 1;
            entries.add(&[&[PROCESSOR, *id, LOCAL_APIC_VERSION, flags]]);
            entries.more(&[&signature.to_le_bytes(), &features.to_le_bytes(), &[0; 8]]);
        }
        for bus in &buses {
            entries.add(&[&[BUS, *bus], b"PCI   "]);
        }
        entries.add(&[&[BUS, isa], b"ISA   "]);
        let address = layout::IOAPIC as u32;
        entries.add(&[&[IOAPIC, ioapic_id, IOAPIC_VERSION, 1], &address.to_le_bytes()]);

        // The timer is on pin 2, where the second 8259 would be.
        for irq in (0..16_u8).filter(|irq| *irq != 2) {
            let pin = if irq == 0 { 2 } else { irq };
            let flags = if u32::from(irq) == layout::SCI_IRQ { LEVEL_HIGH } else { CONFORMING };
            entries.interrupt(IO_INTERRUPT, INT, flags, [isa, irq], [ioapic_id, pin]);
        }
        // 4.3.4, D.3: device in bits 6 to 2, pin in 1 to 0. What is behind a root port comes to bus 0 on the port's number.
        let devices: BTreeSet<u8> = self.plan.ports.iter().map(|port| port.at.device()).collect();
        for device in devices {
            for pin in 0..4_u8 {
                let to = layout::pci_gsi(device, pin) as u8;
                let from = [0, (device & 0x1f) << 2 | pin];
                entries.interrupt(IO_INTERRUPT, INT, LEVEL_LOW, from, [ioapic_id, to]);
            }
        }
        // The 8259s on LINT0, as ACPI's guests find them; NMIs on LINT1.
        entries.interrupt(LOCAL_INTERRUPT, EXTINT, CONFORMING, [isa, 0], [ALL_APICS, 0]);
        entries.interrupt(LOCAL_INTERRUPT, NMI, CONFORMING, [isa, 0], [ALL_APICS, 1]);
        entries.finished()
    }
}

fn pointer() -> Vec<u8> {
    let table = MP_TABLE_START as u32 + POINTER_LEN as u32;
    let mut pointer = POINTER.to_vec();
    pointer.extend_from_slice(&table.to_le_bytes());
    // One paragraph; a table is there (feature byte 1 is 0); no IMCR, that is, virtual wire mode.
    pointer.extend_from_slice(&[1, REVISION, 0, 0, 0, 0, 0, 0]);
    seal(&mut pointer, 10);
    pointer
}

/// All bytes add up to zero.
fn seal(bytes: &mut [u8], at: usize) {
    let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
    if let Some(checksum) = bytes.get_mut(at) {
        *checksum = checksum.wrapping_sub(sum);
    }
}

#[derive(Default)]
struct Entries {
    bytes: Vec<u8>,
    count: u16,
}

impl Entries {
    fn add(&mut self, parts: &[&[u8]]) {
        self.count = self.count.saturating_add(1);
        self.more(parts);
    }

    fn more(&mut self, parts: &[&[u8]]) {
        parts.iter().for_each(|part| self.bytes.extend_from_slice(part));
    }

    /// 4.3.4, 4.3.5: from a bus and its interrupt to an APIC and its pin.
    fn interrupt(&mut self, entry: u8, kind: u8, flags: u16, from: [u8; 2], to: [u8; 2]) {
        self.add(&[&[entry, kind], &flags.to_le_bytes(), &from, &to]);
    }

    fn finished(self) -> Vec<u8> {
        let length = u16::try_from(HEADER_LEN.saturating_add(self.bytes.len())).unwrap_or(u16::MAX);
        let mut table = TABLE.to_vec();
        table.extend_from_slice(&length.to_le_bytes());
        table.extend_from_slice(&[REVISION, 0]);
        table.extend_from_slice(b"STRAIT  Q35         ");
        // No table of the maker's.
        table.extend_from_slice(&[0; 6]);
        table.extend_from_slice(&self.count.to_le_bytes());
        table.extend_from_slice(&(layout::LOCAL_APIC as u32).to_le_bytes());
        // No extended entries.
        table.extend_from_slice(&[0; 4]);
        table.extend_from_slice(&self.bytes);
        seal(&mut table, 7);
        table
    }
}

/// The largest machine: 255 CPUs, a port and a bus on each of 32 devices.
const LARGEST: usize = POINTER_LEN + HEADER_LEN + 255 * 20 + 257 * 8 + 8 + 15 * 8 + 128 * 8 + 16;
const _: () =
    assert!(LARGEST as u64 <= MP_TABLE_END + 1 - MP_TABLE_START, "room for every machine");

#[cfg(test)]
mod tests {
    use strait_resources::bdf::Bdf;

    use super::*;
    use crate::plan::{FunctionRequest, PlanRequest, PortRequest};

    fn plan() -> Plan {
        let port = |n: u8| PortRequest {
            id: format!("vfio{n}"),
            bus: Some(if n == 0 { 255 } else { n }),
            functions: vec![FunctionRequest {
                number: 0,
                host: Bdf::new(0, 3, n, 0).unwrap(),
                bars: Vec::new(),
            }],
        };
        let request = PlanRequest {
            ram: 1 << 30,
            physical_bits: 40,
            iova: Vec::new(),
            reserved: Vec::new(),
            ports: (0..3).map(port).collect(),
            mmio32: None,
            mmio64: None,
        };
        request.solve().unwrap()
    }

    fn entries(all: &[u8]) -> Vec<Vec<u8>> {
        let mut rest = &all[POINTER_LEN + HEADER_LEN..];
        let mut found = Vec::new();
        while let Some(kind) = rest.first() {
            let (entry, more) = rest.split_at(if *kind == PROCESSOR { 20 } else { 8 });
            found.push(entry.to_vec());
            rest = more;
        }
        found
    }

    #[test]
    fn pointer_and_table_sum_to_zero_and_say_their_lengths() {
        let plan = plan();
        let all =
            MpMachine { apic_ids: &[0, 1, 4], cpu_id: (0x00a2_0f12, 0x178b_fbff), plan: &plan }
                .build();
        let (pointer, table) = all.split_at(POINTER_LEN);
        for (bytes, name) in [(pointer, b"_MP_"), (table, b"PCMP")] {
            assert_eq!(&bytes[..4], name);
            assert_eq!(bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        }
        let address = u32::from_le_bytes(pointer[4..8].try_into().unwrap());
        assert_eq!(u64::from(address), MP_TABLE_START + POINTER_LEN as u64);
        assert_eq!(usize::from(u16::from_le_bytes([table[4], table[5]])), table.len());
        let count = u16::from_le_bytes([table[34], table[35]]);
        assert_eq!(usize::from(count), entries(&all).len());
        assert_eq!(table[36..40], 0xfee0_0000_u32.to_le_bytes());
    }

    #[test]
    fn interrupts_reach_the_pins_that_acpis_tables_name() {
        let plan = plan();
        let machine = MpMachine { apic_ids: &[0, 1, 15], cpu_id: (0, 0), plan: &plan };
        let all = entries(&machine.build());
        let flags: Vec<(u8, u8)> =
            all.iter().filter(|entry| entry[0] == PROCESSOR).map(|cpu| (cpu[1], cpu[3])).collect();
        assert_eq!(flags, [(0, 3), (1, 1), (15, 1)]);
        let buses: Vec<&[u8]> = all.iter().filter(|e| e[0] == BUS).map(|e| &e[1..]).collect();
        assert_eq!(buses[0], b"\0PCI   ");
        assert_eq!(*buses.last().unwrap(), b"\xfeISA   ", "255 is a PCI bus here");
        let ioapic = all.iter().find(|entry| entry[0] == IOAPIC).unwrap();
        assert_eq!(ioapic[1], 14, "an id that no CPU has");
        let pin_of = |bus: u8, source: u8| {
            let of = |entry: &&Vec<u8>| entry[0] == IO_INTERRUPT && entry[4..6] == [bus, source];
            let entry = all.iter().find(of).unwrap();
            (entry[7], u16::from_le_bytes([entry[2], entry[3]]))
        };
        assert_eq!(pin_of(0xfe, 0), (2, 0), "the timer");
        assert_eq!(pin_of(0xfe, 4), (4, 0), "the serial port");
        assert_eq!(pin_of(0xfe, 9), (9, 0xd), "the SCI");
        for port in &plan.ports {
            for pin in 0..4 {
                let device = port.at.device();
                let gsi = u8::try_from(layout::pci_gsi(device, pin)).unwrap();
                assert_eq!(pin_of(0, device << 2 | pin), (gsi, 0xf));
            }
        }
    }

    #[test]
    fn cpus_beyond_8_bits_of_apic_id_are_left_to_acpi() {
        let plan = plan();
        let ids: Vec<u32> = (0..300).collect();
        let all = MpMachine { apic_ids: &ids, cpu_id: (0, 0), plan: &plan }.build();
        assert!(all.len() <= LARGEST);
        let cpus = entries(&all).iter().filter(|entry| entry[0] == PROCESSOR).count();
        assert_eq!(cpus, 255);
    }
}
