//! Is the device alive, and will it come back: reset, power, interrupts, link, ROM.

use super::{
    super::{
        capabilities::{self, Kind},
        check::assignable,
        pci::{self, HostFunction},
    },
    Answer, Host, Outcome,
};
use crate::{bar::BarIndex, codes, size::Size};

/// 30: config space answers.
pub(super) fn alive(host: &Host<'_>, function: &HostFunction) -> Answer {
    if function.is_dead() {
        return Ok(vec![match assignable::kind(host.sysroot, function) {
            Err(failure) => Outcome::refusal(failure),
            Ok(()) => Outcome::warn("its config space reads as all ones", "power cycle the host"),
        }]);
    }
    Ok(vec![Outcome::pass("its config space answers")])
}

/// 27: how it is brought back to a known state.
pub(super) fn reset(host: &Host<'_>, function: &HostFunction) -> Answer {
    if !function.reset_methods.is_empty() {
        let methods = function.reset_methods.join(", then ");
        return Ok(vec![Outcome::pass(format!("the kernel resets it by {methods}"))]);
    }
    if host.sysroot.exists(&pci::path(function.bdf, "reset")) {
        return Ok(vec![Outcome::pass("the kernel can reset it; this kernel does not tell how")]);
    }
    let bdf = function.bdf;
    let has_port = !pci::upstream(host.sysroot, bdf)?.is_empty();
    let on_bus = |other: &&HostFunction| {
        (other.bdf.segment(), other.bdf.bus()) == (bdf.segment(), bdf.bus())
    };
    let left: Vec<String> = host
        .all
        .iter()
        .filter(on_bus)
        .filter(|other| other.bdf != bdf && !host.is_chosen(other.bdf))
        .map(|other| other.bdf.to_string())
        .collect();
    let no_reset = "the kernel knows no reset for it alone";
    Ok(vec![if has_port && left.is_empty() {
        Outcome::pass(format!("{no_reset}; VFIO resets its whole bus, which is the guest's"))
    } else if has_port {
        let fact =
            format!("{no_reset}, and its bus, which could be reset, has {}", left.join(", "));
        Outcome::warn(fact, "pass these too, or it may not work in the guest after this one")
    } else {
        Outcome::warn(
            format!("{no_reset}: after one guest it may not work in the next"),
            "reboot the host if it does not; a port above it would allow a reset",
        )
    }])
}

/// Trouble that others had with this very hardware.
struct Trouble {
    vendor: u16,
    /// First and last device ID.
    devices: (u16, u16),
    what: &'static str,
    fix: &'static str,
}

/// From public reports; device IDs as pci.ids has them.
const TROUBLES: &[Trouble] = &[
    Trouble {
        vendor: 0x1002,
        devices: (0x6860, 0x687f),
        what: "AMD Vega 10 often does not come back from a reset: it works for one guest a boot",
        fix: "load the vendor-reset module and write device_specific to its reset_method",
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x66a0, 0x66af),
        what: "AMD Vega 20 often does not come back from a reset: it works for one guest a boot",
        fix: "load the vendor-reset module and write device_specific to its reset_method",
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x7310, 0x735f),
        what: "AMD Navi 1x often does not come back from a reset: it works for one guest a boot",
        fix: "load the vendor-reset module and write device_specific to its reset_method",
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x67c0, 0x67df),
        what: "AMD Polaris may not come back from a reset",
        fix: "load the vendor-reset module and write device_specific to its reset_method",
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x74a1, 0x74a1),
        what: "an AMD MI300X as a whole can be dead after a reset until the host reboots",
        fix: "pass one of its virtual functions instead",
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x75a3, 0x75a3),
        what: "an AMD MI355X as a whole can be dead after a reset until the host reboots",
        fix: "pass one of its virtual functions instead",
    },
    Trouble {
        vendor: 0x10de,
        devices: (0x2b80, 0x2f7f),
        what: "NVIDIA Blackwell cards have hung after a guest's end, up to the whole host",
        fix: "take the newest driver in the guest and the newest VBIOS, and look at check 43 afterwards",
    },
];

/// 28: the table of reports.
pub(super) fn known_trouble(_: &Host<'_>, function: &HostFunction) -> Answer {
    let (from, virtual_function) = (function.device, function.physical_function.is_some());
    let known = TROUBLES.iter().find(|trouble| {
        let (first, last) = trouble.devices;
        trouble.vendor == function.vendor && (first..=last).contains(&from)
    });
    // Sound and USB functions have IDs of their own, so the ranges hold displays and accelerators only.
    let is_card = function.class.is_display() || function.class.base() == 0x12;
    Ok(vec![match known {
        Some(trouble) if is_card && !virtual_function => Outcome::warn(trouble.what, trouble.fix),
        _ => Outcome::pass("no trouble with this device is on record"),
    }])
}

/// 29: it is awake, and stays so.
pub(super) fn power(host: &Host<'_>, function: &HostFunction) -> Answer {
    let attribute = |name: &str| host.text(&pci::path(function.bdf, name));
    Ok(vec![match function.power_state.as_deref() {
        Some("D3cold") => Outcome::warn(
            "it is in D3cold, its power cut: some devices do not wake up from that",
            format!("echo 0 > {}", pci::path(function.bdf, "d3cold_allowed")),
        )
        .code(&codes::E1401),
        Some(state) => {
            let cold = attribute("d3cold_allowed")?.as_deref() == Some("1");
            let sleepy = attribute("power/control")?.as_deref() == Some("auto");
            let note = match (cold, sleepy) {
                (true, true) => ", and when idle its power may be cut (D3cold)",
                (false, true) => ", and when idle it may sleep (D3hot)",
                _ => "",
            };
            Outcome::pass(format!("it is in {state}{note}"))
        }
        None => Outcome::skip("the kernel does not tell its power state", ""),
    }])
}

/// 31: how it can interrupt.
pub(super) fn interrupts(_: &Host<'_>, function: &HostFunction) -> Answer {
    const MSI: u16 = 0x05;
    const MSIX: u16 = 0x11;
    /// Interrupt Pin: 0 is none.
    const PIN: usize = 0x3d;
    if !capabilities::is_visible(&function.config) {
        return Ok(vec![Outcome::skip(
            "only root sees its kinds of interrupt",
            "run strait doctor as root",
        )]);
    }
    let mut kinds: Vec<String> = Vec::new();
    for capability in capabilities::walk(&function.config) {
        if capability.kind == Kind::Standard && [MSI, MSIX].contains(&capability.id) {
            let name = capability.name().unwrap_or_default();
            kinds.push(format!("{name} ({})", capability.detail(&function.config)));
        }
    }
    let pin = function.config.get(PIN).copied().unwrap_or(0);
    Ok(vec![if !kinds.is_empty() {
        Outcome::pass(kinds.join(", "))
    } else if pin != 0 {
        Outcome::info("INTx only: every interrupt costs the guest an exit")
    } else {
        Outcome::info("it has no interrupts")
    }])
}

/// 32: the link is as wide as it can be.
pub(super) fn link(_: &Host<'_>, function: &HostFunction) -> Answer {
    let Some(link) = &function.link else { return Ok(Vec::new()) };
    let now = format!("{} x{}", link.speed, link.width);
    Ok(vec![if !link.is_reduced() {
        Outcome::pass(now)
    } else if link.width == link.max_width {
        Outcome::info(format!("{now} of {}: an idle downshift is normal", link.max_speed))
    } else {
        Outcome::info(format!(
            "{now} of {} x{}: the slot has fewer lanes",
            link.max_speed, link.max_width
        ))
    }])
}

/// 33: there is a ROM, and it is no leftover. It is not read: that would switch its decoder on.
pub(super) fn rom(_: &Host<'_>, function: &HostFunction) -> Answer {
    if !function.class.is_display() {
        return Ok(Vec::new());
    }
    let rom = function.bars.iter().find(|bar| bar.index == BarIndex::ROM);
    Ok(vec![match rom {
        Some(_) if function.boot_vga == Some(true) => {
            let mut outcome = Outcome::info(
                "the firmware has run its ROM: what is read now may be a changed copy",
            );
            outcome.fix = "strait rom dump, and strait rom check of that file, tell".to_owned();
            outcome
        }
        Some(bar) => Outcome::pass(format!(
            "it has an expansion ROM of {}; strait rom dump reads it",
            Size(bar.size)
        )),
        None => Outcome::info(
            "it shows no expansion ROM: a UEFI guest has no early picture without rom=FILE",
        ),
    }])
}
