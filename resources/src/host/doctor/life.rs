//! Is the device alive, and will it come back: reset, power, interrupts, link, ROM.

use super::{
    super::{
        capabilities::{self, Kind},
        check::assignable,
        pci::{self, HostFunction},
        reset::{self, Way},
        rom::{self, Image},
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
        None | Some("unknown") => Outcome::skip("the kernel does not tell its power state", ""),
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
    let mut now = format!("{} x{}", link.speed, link.width);
    if link.at != function.bdf {
        now = format!("{now} at {}", link.at);
    }
    let most = format!("{} x{}", link.max_speed, link.max_width);
    let slot = link.port.as_ref();
    Ok(vec![if !link.is_reduced() {
        Outcome::pass(now)
    } else if link.width < link.max_lanes() && slot.is_some() {
        // A slot that shares its lanes with another says how many it could have.
        Outcome::info(format!(
            "{now} of {most}, and the slot can x{}: lanes are shared, or the card, its riser or the slot are not clean",
            slot.map_or(0, |slot| slot.max_width)
        ))
    } else if link.width < link.max_width {
        Outcome::info(format!("{now} of {most}: the slot has fewer lanes"))
    } else if link.max_rate() > 0 && pci::rate(&link.speed) == Some(link.max_rate()) {
        Outcome::info(format!("{now} of {most}: the slot is slower than the card"))
    } else {
        Outcome::info(format!("{now} of {}: an idle downshift is normal", link.max_speed))
    }])
}

/// 33: there is a ROM, sound, for this device, and of use to UEFI. It is read only where that disturbs nobody.
pub(super) fn rom(host: &Host<'_>, function: &HostFunction) -> Answer {
    if !function.class.is_display() {
        return Ok(Vec::new());
    }
    let Some(bar) = function.bars.iter().find(|bar| bar.index == BarIndex::ROM) else {
        return Ok(vec![Outcome::info(
            "it shows no expansion ROM: a UEFI guest has no early picture without rom=FILE",
        )]);
    };
    let read = match rom::peek(host.sysroot, function) {
        Ok(read) => read,
        Err(failure) if failure.code == &codes::E1003 => {
            return Ok(vec![Outcome::skip(failure.cause, "run strait doctor as root")]);
        }
        Err(failure) => {
            let mut outcome = Outcome::info(failure.cause).code(failure.code);
            outcome.fix = failure.fix;
            return Ok(vec![failure.details.into_iter().fold(outcome, Outcome::detail)]);
        }
    };
    let Some(dump) = read else { return Ok(vec![unread(function, bar.size)]) };
    let outcome = match dump.images {
        Ok(images) => judged(function, &images, dump.bytes.len()),
        Err(error) => Outcome::warn(
            format!("its ROM is not sound: {error}"),
            "give the guest a good one: rom=FILE, or rom=off",
        )
        .code(&codes::E1116),
    };
    Ok(vec![dump.notes.into_iter().fold(outcome, Outcome::detail)])
}

/// Its driver, or its sleep, must not be disturbed.
fn unread(function: &HostFunction, size: u64) -> Outcome {
    let mut outcome = match (&function.driver, function.boot_vga) {
        (_, Some(true)) => {
            Outcome::info("the firmware has run its ROM: what is read now may be a changed copy")
        }
        (Some(driver), _) => Outcome::info(format!(
            "it has an expansion ROM of {}, not read here because {driver} has the device",
            Size(size)
        )),
        (None, _) => Outcome::info(format!(
            "it has an expansion ROM of {}, not read here because the device sleeps or the host draws on it",
            Size(size)
        )),
    };
    outcome.fix = "strait rom dump, and strait rom check of that file, tell".to_owned();
    outcome
}

fn judged(function: &HostFunction, images: &[Image], bytes: usize) -> Outcome {
    let (vendor, device) = (function.vendor, function.device);
    if !images.iter().any(|image| image.serves(vendor, device) || image.serves_any(vendor)) {
        let named: Vec<String> = images
            .iter()
            .flat_map(|image| {
                image.devices.iter().map(|id| format!("{:04x}:{id:04x}", image.vendor))
            })
            .collect();
        return Outcome::warn(
            format!("its ROM is for {}, not for {vendor:04x}:{device:04x}", named.join(", ")),
            "a ROM of another card may leave the guest without a picture: rom=FILE, or rom=off",
        )
        .code(&codes::E2107);
    }
    let size = Size(bytes as u64);
    let damaged = images.iter().filter(|image| image.checksum_ok == Some(false)).count();
    if damaged > 0 {
        return Outcome::warn(
            format!(
                "{damaged} of the {} images in its ROM ({size}) have a wrong checksum",
                images.len()
            ),
            "firmware passes over such an image: rom=FILE with a good copy",
        )
        .code(&codes::E1116);
    }
    match rom::has_efi(images) {
        true => {
            Outcome::pass(format!("its ROM of {size} has an image for UEFI and names this device"))
        }
        false => Outcome::info(format!(
            "its ROM of {size} names this device and has no image for UEFI: such a guest has no early picture without rom=FILE"
        )),
    }
}
