//! Does the host need a function, has a program one of its nodes, has a guest a part of it?

use std::collections::BTreeSet;

use super::{
    super::{
        framebuffer,
        needs::{Held, Loss, Need, Needs},
        pci::{self, HostFunction},
        sysroot::{SysError, Sysroot},
    },
    Allowed, Warning, advice,
};
use crate::{codes, failure::Failure, names::Names};

/// More of them would be a flood.
const MAX_LINES: usize = 16;

/// The host can do without this function (E1104; E1103 when it comes `along` with others of its group), no guest has a
/// part of it (E1119), and no program keeps its driver from letting go (E1106). Answers with what else is lost.
pub(in super::super) fn expendable(
    needs: &Needs<'_>,
    function: &HostFunction,
    along: bool,
    allowed: &Allowed,
) -> Result<Vec<Warning>, Failure> {
    let sysroot = needs.sysroot();
    let all = needs.of(function)?;
    let is_given_up = |need: &Need| allowed.boot_vga && need.loss == Loss::BootDisplay;
    let is_host = |need: &&Need| need.held().is_none() && !is_given_up(need);
    if let Some(first) = all.iter().find(is_host) {
        return Err(needed(sysroot, function, along, first, &all)?);
    }
    if let Some(first) = all.iter().find(|need| need.is_guest_of_part()) {
        return Err(guest_of_part(function, first, &all));
    }
    let mut warnings = Vec::new();
    warnings.extend(held(sysroot, function, &all)?);
    warnings.extend(parts(sysroot, function)?);
    Ok(warnings)
}

fn needed(
    sysroot: &Sysroot,
    function: &HostFunction,
    along: bool,
    first: &Need,
    all: &[Need],
) -> Result<Failure, Failure> {
    let bdf = function.bdf;
    let name = Names::load(sysroot).function(function);
    let (code, cause, fix) = match along {
        true => {
            let group = function.group.map_or_else(|| "none".to_owned(), |group| group.to_string());
            (
                &codes::E1103,
                format!("{bdf} shares IOMMU group {group} and the host needs it: {first}"),
                "use another slot: cards behind one bridge without ACS share a group",
            )
        }
        false => {
            let fix = match first.loss {
                Loss::BootDisplay if framebuffer::on(sysroot, bdf)?.is_some() => {
                    "work by SSH or a serial console, and say --allow-boot-vga --release-fb: the host's picture stops"
                }
                _ => first.fix(),
            };
            (&codes::E1104, format!("{bdf} is not taken away from the host: {first}"), fix)
        }
    };
    let failure = Failure::new(code, cause, fix).detail(format!("{bdf} {name}"));
    let others = all.iter().filter(|need| *need != first).map(|need| format!("also: {need}"));
    Ok(listed(failure, others))
}

fn guest_of_part(function: &HostFunction, first: &Need, all: &[Need]) -> Failure {
    let cause = format!("a guest has a part of {}: {first}", function.bdf);
    let fix = "end that virtual machine first, or pass a part that nobody has";
    let others = all.iter().filter(|need| *need != first && need.is_guest_of_part());
    listed(Failure::new(&codes::E1119, cause, fix), others.map(|need| format!("also: {need}")))
}

fn listed(failure: Failure, lines: impl Iterator<Item = String>) -> Failure {
    let lines: Vec<String> = lines.collect();
    let more = lines.len().saturating_sub(MAX_LINES);
    let failure = lines.into_iter().take(MAX_LINES).fold(failure, Failure::detail);
    if more == 0 { failure } else { failure.detail(format!("and {more} more")) }
}

/// Drivers of sound and input devices let go while a program has them open; others wait for it, some for ever.
fn lets_go(need: &Need, held: &Held) -> bool {
    // The last is one for all cards of a driver, and mostly another's.
    let soft = ["/dev/snd/", "/dev/input/", "/dev/hidraw", "/dev/bus/usb/", "/dev/kfd"];
    soft.iter().any(|s| need.held_thing().starts_with(s) || held.node.starts_with(s))
}

fn held(
    sysroot: &Sysroot,
    function: &HostFunction,
    all: &[Need],
) -> Result<Option<Warning>, Failure> {
    let all: Vec<(&Need, &Held)> =
        all.iter().filter_map(|need| Some((need, need.held()?))).collect();
    if all.is_empty() {
        return Ok(None);
    }
    let bdf = function.bdf;
    let stubborn: Vec<&(&Need, &Held)> =
        all.iter().filter(|(need, held)| !lets_go(need, held)).collect();
    if stubborn.is_empty() {
        let cause = format!("programs lose {bdf}: they have it open");
        let warning = Failure::new(&codes::E1113, cause, "nothing, if they can do without it");
        return Ok(Some(listed(warning, all.iter().map(|(need, held)| line(need, held)))));
    }
    let driver = function.driver.as_deref().unwrap_or("no driver");
    let cause = format!("programs have {bdf} open, so its driver {driver} would not let go");
    let programs: Vec<advice::Program<'_>> =
        stubborn.iter().map(|(_, held)| (held.pid, held.name.as_str())).collect();
    let fix = format!("end them first: {}", advice::end(sysroot, &programs)?);
    let failure = Failure::new(&codes::E1106, cause, fix);
    Err(listed(failure, stubborn.iter().map(|(need, held)| line(need, held))))
}

fn line(need: &Need, held: &Held) -> String {
    let Held { pid, name, node } = held;
    // Function, node, program: what is between them is worth telling.
    match need.chain.as_slice() {
        [way @ .., _] if way.len() > 2 => {
            format!("{name} (pid {pid}): {node}, through {}", way.join(" -> "))
        }
        // A container's node may have any name.
        _ if !node.ends_with(need.held_thing()) => {
            format!("{name} (pid {pid}): {node}, which is {}", need.held_thing())
        }
        _ => format!("{name} (pid {pid}): {node}"),
    }
}

/// Virtual functions and mediated devices go when their function does, and so does a keyboard.
fn parts(sysroot: &Sysroot, function: &HostFunction) -> Result<Vec<Warning>, SysError> {
    let mut warnings = Vec::new();
    let at = format!("{}/{}", pci::DEVICES, function.bdf);
    let names = sysroot.list_if_present(&at)?;
    let count = names.iter().filter(|name| name.starts_with("virtfn")).count();
    if count > 0 {
        let cause =
            format!("{} has {count} virtual functions, which go when it goes", function.bdf);
        let fix = format!("pass one of them, or remove them first: echo 0 > {at}/sriov_numvfs");
        let mut lines = Vec::new();
        for name in names.iter().filter(|name| name.starts_with("virtfn")) {
            lines.extend(sysroot.link_name(&format!("{at}/{name}"))?);
        }
        warnings.push(listed(Failure::new(&codes::E1120, cause, fix), lines.into_iter()));
    }
    warnings.extend(keyboard(sysroot, &at)?);
    Ok(warnings)
}

/// Every keyboard of the host is behind this function (E1121).
fn keyboard(sysroot: &Sysroot, at: &str) -> Result<Option<Warning>, SysError> {
    let Some(device) = sysroot.canonical(at)? else { return Ok(None) };
    let text = sysroot.read_if_present("/proc/bus/input/devices")?.unwrap_or_default();
    let (mut here, mut elsewhere) = (BTreeSet::new(), false);
    for entry in text.split("\n\n") {
        let field = |start: &str| entry.lines().find_map(|line| line.strip_prefix(start));
        // EV_REP, bit 20: keys repeat. Power buttons have the handler kbd too, and do not.
        let events = field("B: EV=").and_then(|bits| u64::from_str_radix(bits.trim(), 16).ok());
        let handlers = field("H: Handlers=").unwrap_or_default();
        let is_keyboard = events.is_some_and(|events| events & (1 << 20) != 0)
            && handlers.split_whitespace().any(|handler| handler == "kbd");
        let Some(place) = field("S: Sysfs=").filter(|_| is_keyboard) else { continue };
        // Without a device above it, it is a program's.
        if place.starts_with("/devices/virtual/") {
            continue;
        }
        let place = format!("/sys{place}");
        if std::path::Path::new(&place).starts_with(&device) {
            here.insert(field("N: Name=").unwrap_or_default().trim_matches('"').to_owned());
        } else {
            elsewhere = true;
        }
    }
    if here.is_empty() || elsewhere {
        return Ok(None);
    }
    let cause = format!("the host's only keyboard is behind {at}");
    let fix = "work by SSH or a serial console, or plug one into another port";
    let cause = cause.replace(&format!("{}/", pci::DEVICES), "");
    Ok(Some(listed(Failure::new(&codes::E1121, cause, fix), here.into_iter())))
}

#[cfg(test)]
mod tests;
