//! What follows from the signs of life: one sentence, and every cause of "it does not work" that can be told from
//! outside of the guest, each seen, not seen or unknown. The table's order is the rank: what explains most comes
//! first. Where a display fails, its driver in Windows says Code 43 whatever the cause is.

use strait_resources::{
    bar::BarKind,
    host::{
        aer::{self, Errors},
        pci::{HostFunction, Link},
    },
    size::Size,
};

use super::{
    facts::DeviceFacts,
    guest::{Device, Guest, Interrupts, Rom},
};

const NVIDIA: u16 = 0x10de;
const INTEL: u16 = 0x8086;
/// What a card's memory window is when nobody resized it.
const USUAL_WINDOW: u64 = 256 << 20;

/// Is a cause there?
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Seen {
    /// Yes.
    Yes,
    /// It cannot be told from here.
    Unknown,
    /// No.
    No,
}

/// One thing that may be the matter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Cause {
    pub(crate) seen: Seen,
    /// In words, with what was seen.
    pub(crate) what: String,
    /// What to do about it; empty where it was not seen.
    pub(crate) fix: String,
}

/// One device judged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Verdict {
    /// Nothing speaks against it.
    pub(crate) healthy: bool,
    /// One sentence.
    pub(crate) text: String,
    /// Ranked: seen, unknown, not seen, each in the table's order.
    pub(crate) causes: Vec<Cause>,
}

/// Judges.
pub(crate) fn verdict(guest: &Guest, facts: &DeviceFacts) -> Verdict {
    let case = Case { guest, facts, device: &facts.device, host: facts.host.as_ref() };
    let plain: Vec<Cause> = PLAIN.iter().map(|cause| cause(&case)).collect();
    let gravest = plain.iter().find(|cause| cause.seen == Seen::Yes);
    let healthy = gravest.is_none();
    let text = match gravest {
        Some(cause) => cause.what.clone(),
        None => case.healthy(),
    };
    let mut causes = plain;
    if case.is_display() {
        causes.extend(CODE_43.iter().map(|cause| cause(&case)));
    }
    // Stable: the table's order stays inside of each.
    causes.sort_by_key(|cause| cause.seen);
    Verdict { healthy, text, causes }
}

struct Case<'a> {
    guest: &'a Guest,
    facts: &'a DeviceFacts,
    device: &'a Device,
    host: Option<&'a HostFunction>,
}

type Judge = fn(&Case<'_>) -> Cause;

/// What stops any device.
const PLAIN: &[Judge] =
    &[gone, reset, faults, errors, no_address, no_driver, no_mode, no_interrupts, asleep, link];
/// What else stops graphics drivers.
const CODE_43: &[Judge] =
    &[functions, battery, hypervisor, rom, other_ids, window, irqchip, inside];

fn yes(what: impl Into<String>, fix: impl Into<String>) -> Cause {
    Cause { seen: Seen::Yes, what: what.into(), fix: fix.into() }
}

fn no(what: &str) -> Cause {
    Cause { seen: Seen::No, what: what.to_owned(), fix: String::new() }
}

fn unknown(what: impl Into<String>, fix: impl Into<String>) -> Cause {
    Cause { seen: Seen::Unknown, what: what.into(), fix: fix.into() }
}

fn gone(case: &Case<'_>) -> Cause {
    let fix = "power cycle the host; look at dmesg for AER, power and riser";
    match case.host {
        None => yes("the device has left the host", fix),
        Some(host) if host.is_dead() => {
            yes("the device does not answer: its config space reads as all ones", fix)
        }
        Some(_) if case.device.dead_reads > 0 => yes(
            format!(
                "the device went silent: {} of the guest's configuration reads found nobody there",
                case.device.dead_reads
            ),
            fix,
        ),
        Some(_) if case.device.lost => yes("the device did not come back from its last reset", fix),
        Some(_) => no("config space reads as all ones"),
    }
}

fn reset(case: &Case<'_>) -> Cause {
    let Device { resets, failed_resets, .. } = case.device;
    match failed_resets {
        0 => no("a reset failed"),
        failed => yes(
            format!("{failed} of {} resets failed", resets + failed),
            "strait doctor tells what is known of resets of this device (checks 27 and 28)",
        ),
    }
}

fn faults(case: &Case<'_>) -> Cause {
    match &case.facts.faults {
        None => unknown("IOMMU faults: the kernel log is for root only", "run it with sudo"),
        Some(faults) => match faults.last() {
            None => no("IOMMU faults in the kernel log"),
            Some(last) => yes(
                match faults.len() {
                    1 => format!("the IOMMU refused an access: {last}"),
                    count => format!("the IOMMU refused {count} accesses, the last: {last}"),
                },
                "its driver or the device uses memory that it was not given: a newer driver",
            ),
        },
    }
}

fn errors(case: &Case<'_>) -> Cause {
    let fix = "reseat the card, check risers and power; see the host's kernel log";
    let absent = "errors of PCI Express (AER)";
    let Some(counted) = &case.facts.errors else {
        return match case.facts.error_log.as_deref().and_then(<[String]>::last) {
            Some(last) => yes(format!("PCI Express reported errors, the last: {last}"), fix),
            None => no(absent),
        };
    };
    let [fatal, nonfatal] = [&counted.fatal, &counted.nonfatal].map(aer::total);
    match (fatal, nonfatal, aer::total(&counted.correctable)) {
        (0, 0, 0) => no(absent),
        (0, 0, 1..) => unknown(
            format!("correctable errors of PCI Express: {}", named(&counted.correctable)),
            "some are normal; many, or more and more, slow it down: reseat the card, check risers",
        ),
        (0, 1.., _) => {
            yes(format!("PCI Express lost transactions: {}", named(&counted.nonfatal)), fix)
        }
        (1.., ..) => yes(format!("PCI Express broke down: {}", named(&counted.fatal)), fix),
    }
}

/// `12 BadTLP, 1 Timeout`.
pub(crate) fn named(errors: &Errors) -> String {
    let each: Vec<String> = errors.iter().map(|(name, count)| format!("{count} {name}")).collect();
    each.join(", ")
}

fn no_address(case: &Case<'_>) -> Cause {
    let memory = |kind: &str| kind.starts_with("memory");
    let bad = case.device.bars.iter().find(|bar| memory(&bar.kind) && bar.address == 0);
    match bad.and_then(|bar| bar.index) {
        None => no("a BAR without an address (Code 12)"),
        Some(index) => yes(
            format!("BAR {index} has no address: the guest found no place for it (Code 12)"),
            "strait run --dry-run shows the windows; the guest must keep them as they are",
        ),
    }
}

fn no_driver(case: &Case<'_>) -> Cause {
    let fix = "load the device's driver in the guest, and look at its messages there";
    match case.device.bus_master {
        true => no("bus mastering never enabled"),
        false => yes("bus mastering never enabled: no driver loaded", fix),
    }
}

fn no_mode(case: &Case<'_>) -> Cause {
    let Device { interrupts, vectors_connected, bus_master, .. } = case.device;
    match (interrupts, vectors_connected) {
        _ if !bus_master => no("no interrupt enabled"),
        (Interrupts::None, 0) => yes(
            "the driver never enabled an interrupt: it stopped on its way, or it polls",
            "look at the driver's messages in the guest",
        ),
        (Interrupts::None, 1..) => yes(
            "the driver had interrupts and turned them off: it gave up or was unloaded",
            "look at the driver's messages in the guest",
        ),
        _ => no("no interrupt enabled"),
    }
}

fn no_interrupts(case: &Case<'_>) -> Cause {
    let mode = mode(case.device.interrupts);
    let fix = "if it should be busy: strait doctor, checks 7 and 31; lspci -vv in the guest";
    match (case.device.interrupts, case.facts.delivered) {
        // The pin is connected from the start, driver or not.
        (_, _) if !case.device.bus_master => no("interrupts enabled, none came"),
        (Interrupts::None, _) => no("interrupts enabled, none came"),
        (_, Some(0)) if case.facts.posted => unknown(
            format!("{mode} is on and the host counted no interrupt; posted ones are not counted"),
            "/proc/interrupts in the guest counts all",
        ),
        (_, Some(0)) if case.device.vectors > 0 => {
            yes(format!("{mode} is on, and not one interrupt came: idle, or lost on its way"), fix)
        }
        (_, None) if case.device.vectors > 0 => {
            unknown(format!("{mode} is on, and the host does not show its counts"), fix)
        }
        _ => no("interrupts enabled, none came"),
    }
}

fn asleep(case: &Case<'_>) -> Cause {
    match case.host.and_then(|host| host.power_state.as_deref()) {
        Some(state @ ("D3hot" | "D3cold")) => yes(
            format!("the device sleeps in {state}: its driver sent it there, or is not there"),
            "use it; if it stays, look for power management in the driver's settings",
        ),
        _ => no("the device sleeps"),
    }
}

fn link(case: &Case<'_>) -> Cause {
    match case.host.and_then(|host| host.link.as_ref()) {
        Some(Link { width: 0, .. }) => yes(
            "its PCI Express link is down",
            "power cycle the host; reseat the card, check riser and power",
        ),
        _ => no("its link is down"),
    }
}

fn functions(case: &Case<'_>) -> Cause {
    match case.facts.left_behind.as_slice() {
        [] => no("functions of the card left on the host"),
        left => {
            let names: Vec<String> = left.iter().map(ToString::to_string).collect();
            let host = case.device.host.to_string();
            let slot = host.split('.').next().unwrap_or_default();
            yes(
                format!("the guest lacks functions of the card: {}", names.join(", ")),
                format!("pass the whole card: --vfio {slot}"),
            )
        }
    }
}

fn battery(case: &Case<'_>) -> Cause {
    match (case.guest.fake_battery, case.facts.notebook) {
        (true, _) | (false, Some(false)) => no("a notebook's GPU in a guest without a battery"),
        (false, Some(true)) => yes(
            "the host is a notebook and the guest has no battery: some drivers want one",
            "--fake-battery; the firmware's tables for the GPU by --acpi-table",
        ),
        (false, None) => {
            unknown("is it a notebook's GPU, which may want a battery?", "--fake-battery")
        }
    }
}

fn hypervisor(case: &Case<'_>) -> Cause {
    let vendor = case.host.map(|host| host.vendor);
    let virtual_function = case.host.is_some_and(|host| host.physical_function.is_some());
    let Guest { kvm_visible, hypervisor_visible, .. } = case.guest;
    match vendor {
        Some(NVIDIA) if *kvm_visible => yes(
            "the guest sees KVM, which NVIDIA's drivers before 465 refuse",
            "a driver from 465 on; with an old one --cpu hide=kvm",
        ),
        Some(INTEL) if virtual_function && !hypervisor_visible => yes(
            "the hypervisor is hidden, and Intel's driver for virtual functions wants to see it",
            "leave --cpu hide= out",
        ),
        _ => no("a hypervisor where the driver minds"),
    }
}

fn rom(case: &Case<'_>) -> Cause {
    let boot_display = case.host.is_some_and(|host| host.boot_vga == Some(true));
    match case.device.rom {
        Rom::None => yes(
            "the guest sees no expansion ROM: UEFI firmware and some drivers want it",
            "rom=FILE with what strait rom dump has read from this very card",
        ),
        Rom::Device if boot_display => yes(
            "the ROM was run by the host's firmware, so the guest may see a changed copy",
            "boot the host with another display, or rom=FILE",
        ),
        Rom::Device | Rom::File => no("no expansion ROM, or a changed one"),
    }
}

fn other_ids(case: &Case<'_>) -> Cause {
    match &case.device.shown_as {
        None => no("IDs other than the device's own"),
        Some(ids) => yes(
            format!("the guest sees it as {ids}, with other IDs than its own"),
            "a driver may know the card by all four IDs: leave them as they are",
        ),
    }
}

fn window(case: &Case<'_>) -> Cause {
    // A VGA controller's. Compute cards have windows as large as their memory from the start.
    let display = case.host.filter(|host| (host.class.base(), host.class.sub()) == (0x03, 0x00));
    let large = display.and_then(|host| {
        let large = |bar: &&strait_resources::bar::BarSpec| {
            matches!(bar.kind, BarKind::Memory64 { .. }) && bar.size > USUAL_WINDOW
        };
        host.bars.iter().find(large)
    });
    match large {
        None => no("a resized memory window (Resizable BAR)"),
        Some(bar) => yes(
            format!(
                "{} has {}; old drivers and firmware take 256 MiB only",
                bar.index,
                Size(bar.size)
            ),
            "if it never worked, turn Resizable BAR off in the host's firmware",
        ),
    }
}

fn irqchip(_: &Case<'_>) -> Cause {
    no("a split interrupt controller: strait's is in the kernel")
}

fn inside(_: &Case<'_>) -> Cause {
    unknown(
        "what only the guest knows: the driver's version, Hyper-V or VBS inside of it",
        "the device's Events in Windows; dmesg in Linux",
    )
}

impl Case<'_> {
    /// Displays, and compute cards, whose drivers are the same.
    fn is_display(&self) -> bool {
        self.host.is_some_and(|host| host.class.is_display() || host.class.base() == 0x12)
    }

    fn healthy(&self) -> String {
        let mode = mode(self.device.interrupts);
        let vectors = match self.device.vectors {
            1 => "1 vector".to_owned(),
            vectors => format!("{vectors} vectors"),
        };
        match self.facts.delivered {
            Some(1) => format!("healthy: {mode} with {vectors}, 1 interrupt so far"),
            Some(count) => format!("healthy: {mode} with {vectors}, {count} interrupts so far"),
            None => format!("healthy: {mode} with {vectors}"),
        }
    }
}

/// As specifications write it.
pub(crate) fn mode(interrupts: Interrupts) -> &'static str {
    match interrupts {
        Interrupts::None => "no interrupts",
        Interrupts::Intx => "INTx",
        Interrupts::Msi => "MSI",
        Interrupts::Msix => "MSI-X",
    }
}

#[cfg(test)]
mod tests;
