//! Is the device alive, and will it come back: reset, power, interrupts, link, ROM.

use super::{
    super::{
        capabilities::{self, Kind},
        check::assignable,
        pci::{self, HostFunction},
        reset::{self, Way},
        trouble,
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
    let way = reset::way(host.sysroot, function, host.chosen)?;
    if let Some(warning) = reset::warning(function.bdf, &way) {
        return Ok(vec![Outcome::refusal(warning)]);
    }
    Ok(vec![Outcome::pass(match way {
        Way::Alone(methods) if methods.is_empty() => {
            "the kernel can reset it; this kernel does not tell how".to_owned()
        }
        way => format!("the kernel resets it by {way}"),
    })])
}

/// 28: the table of reports.
pub(super) fn known_trouble(_: &Host<'_>, function: &HostFunction) -> Answer {
    Ok(vec![match trouble::on_record(function) {
        Some(trouble) => Outcome::warn(trouble.what, trouble.fix)
            .code(&codes::E1403)
            .detail(format!("on record: {}", trouble.source)),
        None => Outcome::pass("no trouble with this device is on record"),
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
