//! Interrupt pins and the ways in which an operating system may find them: ACPI with I/O APIC or 8259s, the MP table, and
//! nothing but what firmware wrote into the device. The words are what people put on command lines when interrupts fail.

use crate::{
    hosts::HostKind,
    outcome::Outcome,
    scenario::{Ending, Scenario, Vm},
};

/// A card that interrupts by its pin alone.
fn card(way: &str, words: &str) -> Vm {
    Vm::new("a", &format!("ping,{way};irqs;mark,done"))
        .device("rtl")
        .modules(&["8139cp"])
        .busybox()
        .cmdline(words)
        // Linux complains of the words themselves.
        .complaints_allowed()
}

/// A machine without ACPI cannot power itself off: the script ends it.
const UNTIL_DONE: &str =
    "bind {all}\nvm_a &\nwait_mark a done 150\n[ ! -e $J/a.pid ] || kill $(cat $J/a.pid)\nwait\n";

fn pings(outcome: &Outcome) -> Result<(), String> {
    let vm = outcome.vm("a")?;
    match vm.report("net.ping") {
        Ok("all") => Ok(()),
        _ => Err(vm.report("fail").map_or("no echo came".to_owned(), str::to_owned)),
    }
}

fn reads_back(outcome: &Outcome) -> Result<(), String> {
    let vm = outcome.vm("a")?;
    match vm.report("nvme.readback") {
        Ok("same") => Ok(()),
        _ => Err(vm.report("fail").map_or("no word of the disk".to_owned(), str::to_owned)),
    }
}

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario::new("pin-ioapic", HostKind::Amd, "a card without MSI pings by the I/O APIC")
            .limit(180)
            .vm(card("IO-APIC", ""))
            .check(pings),
    ];
    for (name, way, words, about) in [
        ("pin-noapic", "XT-PIC", "noapic", "by the 8259s, routed by ACPI's links"),
        ("pin-nolapic", "XT-PIC", "nolapic", "by the 8259s, without a local APIC"),
        ("pin-noacpi", "IO-APIC", "pci=noacpi", "by the I/O APIC, from the MP table"),
        ("pin-acpi-off", "IO-APIC", "acpi=off", "without ACPI, from the MP table"),
        (
            "pin-acpi-off-noapic",
            "XT-PIC",
            "acpi=off noapic",
            "by the 8259s, from the device's own register",
        ),
    ] {
        all.push(
            Scenario::new(name, HostKind::Amd, format!("a card without MSI pings {about}"))
                .limit(240)
                .vm(card(way, words).ends(Ending::Whatever))
                .script(UNTIL_DONE)
                .check(pings),
        );
        let disk = Vm::new("a", "nvme-verify,0,{nonce}/1;irqs;mark,done")
            .device("nvme0")
            .modules(&["nvme"])
            .cmdline(words)
            .complaints_allowed()
            .ends(Ending::Whatever);
        all.push(
            Scenario::new(
                format!("{name}-disk"),
                HostKind::Amd,
                format!("console and NVMe disk work with {words}"),
            )
            .limit(240)
            .vm(disk)
            .script(UNTIL_DONE)
            .check(reads_back),
        );
    }
    all
}
