//! The DSDT: what the fixed tables cannot say, in AML.

use acpi_tables::{
    Aml,
    aml::{
        AddressSpace, AddressSpaceCacheable, And, Arg, CreateDWordField, Device, EISAName, Else,
        Equal, IO, If, Interrupt, Local, Memory32Fixed, Method, Name, NotEqual, Or, Package, Path,
        ResourceTemplate, Return, Scope, Store, Uuid, ZERO,
    },
    sdt::Sdt,
};
use strait_resources::range::AddressRange;

use super::{AcpiMachine, OEM, OEM_REVISION, OEM_TABLE, bytes, links};
use crate::{layout, plan::Plan};

/// `_OSC` control bits granted to an operating system that asks (PCI Firmware 3.3, 4.5.1): the PCIe capability
/// structure. Our root ports have no slot to plug into, signal no PME and record no errors; a guest that owned those
/// would want an interrupt from each port for them, and Linux gives up a port that has none.
const OSC_GRANTED: u32 = 1 << 4;
/// PCI host bridge `_OSC`.
const OSC_PCI: &str = "33DB4D5B-1FF7-401C-9657-7441C03DD766";
const ISA_BRIDGE: u32 = 0x1f_0000;
/// All of the chipset's power management block: Linux drops a claim to part of what the LPC bridge's PMBASE decodes.
const PM_BLOCK_LEN: u8 = 0x80;

pub(super) fn dsdt(machine: &AcpiMachine<'_>) -> Vec<u8> {
    let mut dsdt = Sdt::new(*b"DSDT", 36, 2, OEM, OEM_TABLE, OEM_REVISION);
    for part in [
        sleep(),
        links::model(),
        board(machine.plan),
        processors(machine.apic_ids),
        links::links(),
        host_bridge(machine.plan),
    ] {
        dsdt.append_slice(&part);
    }
    dsdt.as_slice().to_vec()
}

/// The last bus that ECAM reaches.
pub(super) fn last_bus(plan: &Plan) -> u8 {
    u8::try_from((plan.ecam.len() >> 20).saturating_sub(1)).unwrap_or(u8::MAX)
}

/// Soft off is sleep type 0, as on a q35.
fn sleep() -> Vec<u8> {
    let zeroes: Vec<&dyn Aml> = vec![&ZERO; 4];
    bytes(&Name::new(Path::new("_S5_"), &Package::new(zeroes)))
}

/// Addresses that belong to the board: not for BARs.
fn board(plan: &Plan) -> Vec<u8> {
    let ecam = Memory32Fixed::new(true, plan.ecam.first() as u32, plan.ecam.len() as u32);
    let root_complex = Memory32Fixed::new(true, layout::RCBA as u32, 0x4000);
    let power = IO::new(layout::PM_BASE, layout::PM_BASE, 1, PM_BLOCK_LEN);
    // Reserved by the host for itself; what lies in the chipset's range nobody uses anyway.
    let holes: Vec<TakenMemory> = plan
        .holes
        .iter()
        .map(|hole| hole.range)
        .filter(|hole| hole.first() >= layout::HIGH_MEMORY_START && !in_chipset(*hole))
        .map(TakenMemory)
        .collect();
    let mut resources: Vec<&dyn Aml> = vec![&ecam, &root_complex, &power];
    resources.extend(holes.iter().map(|hole| hole as &dyn Aml));
    in_system_bus(&Device::new(
        Path::new("MBRD"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C02")),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
        ],
    ))
}

fn in_chipset(range: AddressRange) -> bool {
    range.last() >= layout::CHIPSET_START && range.first() < 1 << 32
}

fn processors(apic_ids: &[u32]) -> Vec<u8> {
    (0..apic_ids.len() as u32)
        .flat_map(|uid| {
            in_system_bus(&Device::new(
                Path::new(&format!("C{uid:03X}")),
                vec![
                    &Name::new(Path::new("_HID"), &"ACPI0007"),
                    &Name::new(Path::new("_UID"), &uid),
                ],
            ))
        })
        .collect()
}

fn host_bridge(plan: &Plan) -> Vec<u8> {
    let buses = AddressSpace::<u16>::new_bus_number(0, u16::from(last_bus(plan)));
    let configuration = IO::new(0xcf8, 0xcf8, 1, 8);
    let ports_below = AddressSpace::<u16>::new_io(0, 0xcf7, None);
    let ports_above = AddressSpace::<u16>::new_io(0xd00, 0xffff, None);
    let holes: Vec<AddressRange> = plan.holes.iter().map(|hole| hole.range).collect();
    let window = |range: AddressRange, cacheable: fn() -> AddressSpaceCacheable| {
        let pieces = range.subtract_all(holes.iter().copied());
        pieces.into_iter().map(move |piece| Memory::new(piece, cacheable())).collect::<Vec<_>>()
    };
    let low = window(plan.mmio32, || AddressSpaceCacheable::NotCacheable);
    let high = plan
        .mmio64
        .map(|range| window(range, || AddressSpaceCacheable::PreFetchable))
        .unwrap_or_default();
    let mut resources: Vec<&dyn Aml> = vec![&buses, &configuration, &ports_below, &ports_above];
    resources.extend(low.iter().chain(&high).map(|memory| memory as &dyn Aml));
    in_system_bus(&Device::new(
        Path::new("PCI0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0A08")),
            &Name::new(Path::new("_CID"), &EISAName::new("PNP0A03")),
            &Name::new(Path::new("_SEG"), &ZERO),
            &Name::new(Path::new("_BBN"), &ZERO),
            &Name::new(Path::new("_UID"), &ZERO),
            &Name::new(Path::new("_CRS"), &ResourceTemplate::new(resources)),
            &Raw(links::routing(plan)),
            &Raw(osc()),
            &Raw(isa_bridge()),
        ],
    ))
}

/// Grants what [`OSC_GRANTED`] holds and says when something was asked beyond it.
fn osc() -> Vec<u8> {
    let (status, asked) = (Path::new("CDW1"), Path::new("CDW3"));
    let create_asked = CreateDWordField::new(&asked, &Arg(3), &8_u8);
    let keep = Store::new(&Local(0), &asked);
    let mask = And::new(&asked, &asked, &OSC_GRANTED);
    let masked = Or::new(&status, &status, &0x10_u8);
    let when_masked = NotEqual::new(&Local(0), &asked);
    let say_masked = If::new(&when_masked, vec![&masked]);
    let unknown_revision = Or::new(&status, &status, &0x8_u8);
    let not_one = NotEqual::new(&Arg(1), &1_u8);
    let say_revision = If::new(&not_one, vec![&unknown_revision]);
    let unknown_uuid = Or::new(&status, &status, &0x4_u8);
    let uuid = Uuid::new(OSC_PCI);
    let ours = Equal::new(&Arg(0), &uuid);
    bytes(&Method::new(
        Path::new("_OSC"),
        4,
        true,
        vec![
            &CreateDWordField::new(&status, &Arg(3), &ZERO),
            &If::new(&ours, vec![&create_asked, &keep, &mask, &say_masked, &say_revision]),
            &Else::new(vec![&unknown_uuid]),
            &Return::new(&Arg(3)),
        ],
    ))
}

/// The serial port and the clock, behind the LPC bridge.
fn isa_bridge() -> Vec<u8> {
    let (serial, length) = (layout::SERIAL_PORT, 8);
    bytes(&Device::new(
        Path::new("ISA_"),
        vec![
            &Name::new(Path::new("_ADR"), &ISA_BRIDGE),
            &Raw(links::registers()),
            &Device::new(
                Path::new("COM1"),
                vec![
                    &Name::new(Path::new("_HID"), &EISAName::new("PNP0501")),
                    &Name::new(Path::new("_UID"), &ZERO),
                    &Name::new(
                        Path::new("_CRS"),
                        &ResourceTemplate::new(vec![
                            &IO::new(serial, serial, 1, length),
                            &Interrupt::new(true, true, false, false, layout::SERIAL_IRQ),
                        ]),
                    ),
                ],
            ),
            &Device::new(
                Path::new("RTC_"),
                vec![
                    &Name::new(Path::new("_HID"), &EISAName::new("PNP0B00")),
                    &Name::new(
                        Path::new("_CRS"),
                        &ResourceTemplate::new(vec![&IO::new(0x70, 0x70, 1, 2)]),
                    ),
                ],
            ),
        ],
    ))
}

pub(super) fn in_system_bus(device: &Device<'_>) -> Vec<u8> {
    bytes(&Scope::new(Path::new("_SB_"), vec![device]))
}

/// A memory window in the descriptor that its addresses need.
enum Memory {
    Low(AddressSpace<u32>),
    High(AddressSpace<u64>),
}

impl Memory {
    fn new(range: AddressRange, cacheable: AddressSpaceCacheable) -> Self {
        match (u32::try_from(range.first()), u32::try_from(range.last())) {
            (Ok(first), Ok(last)) => {
                Self::Low(AddressSpace::<u32>::new_memory(cacheable, true, first, last, None))
            }
            _ => Self::High(AddressSpace::<u64>::new_memory(
                cacheable,
                true,
                range.first(),
                range.last(),
                None,
            )),
        }
    }
}

impl Aml for Memory {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        match self {
            Self::Low(low) => low.to_aml_bytes(sink),
            Self::High(high) => high.to_aml_bytes(sink),
        }
    }
}

/// `QWordMemory (ResourceConsumer, ...)` (ACPI 6.5, 6.4.3.5.1): taken by the device itself. acpi_tables knows only
/// windows, which a device passes on to others.
struct TakenMemory(AddressRange);

impl Aml for TakenMemory {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        const QWORD_ADDRESS_SPACE: u8 = 0x8a;
        const MEMORY: u8 = 0;
        // Consumer, both ends fixed; read and write, not cacheable.
        const GENERAL: u8 = 0b1101;
        const TYPE_SPECIFIC: u8 = 1;
        sink.byte(QWORD_ADDRESS_SPACE);
        sink.word(3 + 5 * 8);
        sink.vec(&[MEMORY, GENERAL, TYPE_SPECIFIC]);
        let (granularity, translation) = (0, 0);
        for value in [granularity, self.0.first(), self.0.last(), translation, self.0.len()] {
            sink.qword(value);
        }
    }
}

/// AML made earlier: the crate's builders borrow, which a function's result cannot.
pub(super) struct Raw(pub(super) Vec<u8>);

impl Aml for Raw {
    fn to_aml_bytes(&self, sink: &mut dyn acpi_tables::AmlSink) {
        self.0.iter().for_each(|byte| sink.byte(*byte));
    }
}
