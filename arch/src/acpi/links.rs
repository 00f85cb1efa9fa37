//! PCI interrupts for guests that use the 8259s: which of the two the operating system has (`\_PIC`), the links through
//! which it routes PCI lines to ISA interrupts (PNP0C0F), and the routing table in both forms (`_PRT`).
//!
//! With the I/O APIC a line has its pin and nothing can be set: the links are absent then, or Linux would switch each of
//! them off at boot, which takes exits and a new routing table in KVM.

use std::collections::BTreeSet;

use acpi_tables::aml::{
    And, Arg, CreateDWordField, Device, EISAName, Equal, Field, FieldAccessType, FieldEntry,
    FieldLockRule, FieldUpdateRule, If, Interrupt, Method, Name, OpRegion, OpRegionSpace, Or,
    Package, PackageBuilder, Path, ResourceTemplate, Return, Store, ZERO,
};

use super::{
    bytes,
    dsdt::{Raw, in_system_bus},
};
use crate::{layout, plan::Plan};

/// The argument of the last `\_PIC` (ACPI 6.5, 5.8.1): 0 are the 8259s, which an operating system that never says has.
const MODEL: &str = "\\PICF";
const LETTERS: [char; layout::PCI_IRQS.len()] = ['A', 'B', 'C', 'D', 'E', 'F', 'G', 'H'];
/// PIRQ[n]_ROUT of the LPC bridge (Intel ICH9 datasheet, 13.1.14 and 13.1.17): A to D, four bytes of others, E to H.
const REGISTERS: u8 = 0x60;
const REGISTERS_LEN: u8 = 0x0c;
/// The line raises no ISA interrupt.
const OFF: u8 = 0x80;
const IRQ: u8 = 0x0f;
/// `_STA` (6.3.7): there and working, and the same with a resource assigned.
const PRESENT: u8 = 0x09;
const ENABLED: u8 = 0x0b;
/// Where an extended interrupt descriptor has the first interrupt's number (6.4.3.6).
const NUMBER_AT: u8 = 5;

/// `\_PIC` and what it remembers.
pub(super) fn model() -> Vec<u8> {
    let model = Path::new(MODEL);
    let keep = Store::new(&model, &Arg(0));
    let method = Method::new(Path::new("\\_PIC"), 1, false, vec![&keep]);
    [bytes(&Name::new(Path::new(MODEL), &ZERO)), bytes(&method)].concat()
}

/// The registers behind the links, inside of the LPC bridge.
pub(super) fn registers() -> Vec<u8> {
    let named = |letters: &[char]| -> Vec<FieldEntry> {
        let name = |letter: &char| [b'P', b'R', b'Q', u8::try_from(*letter).unwrap_or(b'_')];
        letters.iter().map(|letter| FieldEntry::Named(name(letter), 8)).collect()
    };
    let (first, second) = LETTERS.split_at(4);
    let fields = [named(first), vec![FieldEntry::Reserved(32)], named(second)].concat();
    let region =
        OpRegion::new(Path::new("PIRQ"), OpRegionSpace::PCIConfig, &REGISTERS, &REGISTERS_LEN);
    let field = Field::new(
        Path::new("PIRQ"),
        FieldAccessType::Byte,
        FieldLockRule::NoLock,
        FieldUpdateRule::Preserve,
        fields,
    );
    [bytes(&region), bytes(&field)].concat()
}

/// LNKA to LNKH.
pub(super) fn links() -> Vec<u8> {
    let links = LETTERS.into_iter().zip(layout::PCI_IRQS).zip(0_u8..);
    links.flat_map(|((letter, irq), uid)| link(letter, irq, uid)).collect()
}

/// One link. It has one interrupt to choose from: lines that shared one would not both be told of its end.
fn link(letter: char, irq: u8, uid: u8) -> Vec<u8> {
    let (model, register) = (Path::new(MODEL), Path::new(&format!("\\_SB_.PCI0.ISA_.PRQ{letter}")));
    let interrupt = |number: u8| Interrupt::new(true, false, true, true, number.into());
    let (possible, none) = (interrupt(irq), interrupt(0));

    let is_off = And::new(&ZERO, &register, &OFF);
    let absent = Return::new(&ZERO);
    let present = Return::new(&PRESENT);
    let status = Raw(bytes(&Method::new(
        Path::new("_STA"),
        0,
        false,
        vec![
            &If::new(&model, vec![&absent]),
            &If::new(&is_off, vec![&present]),
            &Return::new(&ENABLED),
        ],
    )));

    let (buffer, number) = (Path::new("CURR"), Path::new("CIRQ"));
    let current = And::new(&number, &register, &IRQ);
    let is_on = Equal::new(&is_off, &ZERO);
    let current = Raw(bytes(&Method::new(
        Path::new("_CRS"),
        0,
        true,
        vec![
            &CreateDWordField::new(&number, &buffer, &NUMBER_AT),
            &Store::new(&number, &ZERO),
            &If::new(&is_on, vec![&current]),
            &Return::new(&buffer),
        ],
    )));

    let wanted = Path::new("SIRQ");
    let set = Raw(bytes(&Method::new(
        Path::new("_SRS"),
        1,
        true,
        vec![&CreateDWordField::new(&wanted, &Arg(0), &NUMBER_AT), &Store::new(&register, &wanted)],
    )));
    let switch_off = Or::new(&register, &register, &OFF);
    in_system_bus(&Device::new(
        Path::new(&format!("LNK{letter}")),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C0F")),
            &Name::new(Path::new("_UID"), &uid),
            &Name::new(Path::new("_PRS"), &ResourceTemplate::new(vec![&possible])),
            &Name::new(Path::new("CURR"), &ResourceTemplate::new(vec![&none])),
            &status,
            &current,
            &set,
            &Method::new(Path::new("_DIS"), 0, false, vec![&switch_off]),
        ],
    ))
}

/// `_PRT` of bus 0, which gives out one of two tables. A function behind a root port has device number 0, so its pins
/// reach bus 0 as they are and the root port's entries serve them (PCI-to-PCI Bridge 1.2, 9.1).
pub(super) fn routing(plan: &Plan) -> Vec<u8> {
    let (pins, links) = (Path::new("PRTA"), Path::new("PRTP"));
    let by_pins = Return::new(&pins);
    let model = Path::new(MODEL);
    let method = bytes(&Method::new(
        Path::new("_PRT"),
        0,
        false,
        vec![&If::new(&model, vec![&by_pins]), &Return::new(&links)],
    ));
    let by_pin = table(plan, |element, address, pin, line| {
        let gsi = layout::PCI_GSI_BASE + line as u32;
        element.add_element(&Package::new(vec![&address, &pin, &ZERO, &gsi]));
    });
    let by_link = table(plan, |element, address, pin, line| {
        let link = Path::new(&format!("LNK{}", LETTERS.get(line).unwrap_or(&'A')));
        element.add_element(&Package::new(vec![&address, &pin, &link, &ZERO]));
    });
    let tables = [("PRTA", by_pin), ("PRTP", by_link)];
    let tables = tables.iter().flat_map(|(name, table)| bytes(&Name::new(Path::new(name), table)));
    tables.chain(method).collect()
}

/// An entry for each pin of each device of bus 0 that has functions behind it; `add` is told the device's address, the
/// pin and the PCI line, from 0.
fn table(plan: &Plan, add: impl Fn(&mut PackageBuilder, u32, u8, usize)) -> PackageBuilder {
    let devices: BTreeSet<u8> = plan.ports.iter().map(|port| port.at.device()).collect();
    let mut table = PackageBuilder::new();
    for device in devices {
        for pin in 0..4_u8 {
            let line = layout::pci_gsi(device, pin).saturating_sub(layout::PCI_GSI_BASE);
            add(&mut table, u32::from(device) << 16 | 0xffff, pin, line as usize);
        }
    }
    table
}
