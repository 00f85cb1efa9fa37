//! The device as the host has it: which, whose, for what.

use super::{
    super::{
        check::{Allowed, assignable, bindable_of, display_left, how_to_end},
        iommu::{self, State},
        pci::{self, HostFunction},
    },
    Answer, Host, Level, Outcome,
};
use crate::failure::Failure;

/// 12: a live endpoint in a group.
pub(super) fn identity(host: &Host<'_>, function: &HostFunction) -> Answer {
    let mut name = host.name(function);
    if let Some(label) = &function.label {
        name = format!("{name}, \"{label}\"");
    }
    if function.group.is_none() && iommu::state(host.sysroot)? != State::On && !function.is_bridge()
    {
        return Ok(vec![Outcome::pass(name)]);
    }
    let is_geforce = function.class.is_display() && name.contains("GeForce");
    let mut found = vec![Outcome::of(assignable::kind(host.sysroot, function), name)];
    if is_geforce {
        found.push(Outcome::info(
            "NVIDIA's driver for GeForce works in guests from 465 on; an older one ends with Code 43",
        ));
    }
    Ok(found)
}

/// 13: functions of the same card that stay behind.
pub(super) fn siblings(host: &Host<'_>) -> Answer {
    if host.chosen.is_empty() {
        return Ok(Vec::new());
    }
    Ok(match assignable::siblings(host.sysroot, host.chosen) {
        Ok(warnings) if warnings.is_empty() => {
            vec![Outcome::pass(
                "no function of these cards stays behind on VFIO or in their groups",
            )]
        }
        Ok(warnings) => warnings.into_iter().map(Outcome::refusal).collect(),
        Err(failure) => vec![Outcome::refusal(failure)],
    })
}

/// 14: vfio-pci has it.
pub(super) fn driver(host: &Host<'_>, function: &HostFunction) -> Answer {
    // Of one that can never be taken no command speaks.
    if function.is_bridge() || function.behind.is_some() {
        return Ok(Vec::new());
    }
    let driver = function.driver.as_deref().unwrap_or("nobody");
    let good = format!("{driver} has it");
    let one = std::slice::from_ref(function);
    let found = Outcome::of(assignable::on_vfio(&host.needs, one), good);
    let found = unless_taken(host, function, found);
    let mut found = vec![match untakeable(host, function) {
        // What a run says of this very function, where it would take it.
        Some(refusal) if found.level == Level::Fail => Outcome::refusal(refusal),
        _ => found,
    }];
    if host.text("/sys/bus/pci/drivers_autoprobe")?.as_deref() == Some("0") {
        found.push(Outcome::info("the kernel binds no driver by itself: drivers_autoprobe is 0"));
    }
    Ok(found)
}

/// Why a run would not take this very function from the host.
fn untakeable(host: &Host<'_>, function: &HostFunction) -> Option<Failure> {
    let one = std::slice::from_ref(function);
    let refusal = bindable_of(&host.needs, one, &Allowed::default()).err()?;
    ["E1104", "E1106", "E1119"].contains(&refusal.code.id).then_some(refusal)
}

/// What a run mends by itself is no failure.
pub(super) fn unless_taken(host: &Host<'_>, function: &HostFunction, found: Outcome) -> Outcome {
    let one = std::slice::from_ref(function);
    let takes = || bindable_of(&host.needs, one, &Allowed::default());
    if found.level != Level::Fail {
        return found;
    }
    // Without an IOMMU, which another check fails for, nothing can be taken, and commands that do it lead nowhere.
    if function.group.is_none() && iommu::state(host.sysroot).is_ok_and(|state| state != State::On)
    {
        let fix =
            "none needed once there is an IOMMU: strait run, as root, takes it and gives it back";
        return Outcome { details: Vec::new(), ..taken(fix, found) };
    }
    if takes().is_err() {
        return found;
    }
    taken("none needed: strait run, as root, takes it and gives it back", found)
}

fn taken(fix: &str, found: Outcome) -> Outcome {
    Outcome { level: Level::Info, fix: fix.to_owned(), code: None, ..found }
}

/// 15: an unbind waits for every process that has a node of the driver open.
pub(super) fn open_nodes(host: &Host<'_>, function: &HostFunction) -> Answer {
    let vfio = |node: &str| node.starts_with("/dev/vfio/");
    let mut holders = host.needs.holders(function)?;
    holders.found.retain(|holder| !vfio(&holder.node));
    if holders.found.is_empty() {
        return Ok(vec![if holders.hidden > 0 && !function.is_on_vfio() {
            let fact = format!("{} processes could not be looked into", holders.hidden);
            Outcome::skip(fact, "run strait doctor as root")
        } else {
            Outcome::pass("no process has a node of its driver open")
        }]);
    }
    let pids: Vec<String> = holders.found.iter().map(|holder| holder.pid.to_string()).collect();
    let mut different = pids.clone();
    different.sort();
    different.dedup();
    let fact = match different.as_slice() {
        [_] => "a process uses it: unbinding would wait for that".to_owned(),
        several => format!("{} processes use it: unbinding would wait for them", several.len()),
    };
    let programs: Vec<(u32, &str)> =
        holders.found.iter().map(|holder| (holder.pid, holder.name.as_str())).collect();
    let fix = format!("end them first: {}", how_to_end(host.sysroot, &programs)?);
    Ok(vec![holders.found.iter().fold(Outcome::warn(fact, fix), |outcome, holder| {
        outcome.detail(format!("{} (pid {}) has {}", holder.name, holder.pid, holder.node))
    })])
}

/// 16: what the host would lose.
pub(super) fn host_uses(host: &Host<'_>, function: &HostFunction) -> Answer {
    let mut needs = host.needs.of(function)?;
    // Check 15 tells of programs, but for guests that have a part of it.
    needs.retain(|need| need.held().is_none() || need.is_guest_of_part());
    if needs.is_empty() {
        return Ok(vec![Outcome::pass("the host does not depend on it")]);
    }
    Ok(needs.iter().map(|need| Outcome::warn(need.to_string(), need.fix())).collect())
}

/// 17: where the host's picture stays.
pub(super) fn other_display(host: &Host<'_>) -> Answer {
    if !host.chosen.iter().any(|function| function.class.is_display()) {
        return Ok(Vec::new());
    }
    let stays = display_left(&host.all, |function| host.is_chosen(function.bdf));
    let mut found = vec![match stays {
        Some(other) if other.driver.is_some() => {
            Outcome::pass(format!("the host's display stays on {} {}", other.bdf, host.name(other)))
        }
        Some(other) => {
            Outcome::info(format!("{} could show the host's console, but has no driver", other.bdf))
        }
        None => Outcome::warn(
            "the host has no other display: its console goes dark",
            "log in by network or serial console before the guest starts",
        ),
    }];
    let boot = host.chosen.iter().find(|function| function.boot_vga == Some(true));
    if let Some(boot) = boot {
        let path = pci::path(boot.bdf, "rom");
        found.push(
            Outcome::warn(
                format!(
                    "{} is the display that the firmware started: its ROM may be a used copy",
                    boot.bdf
                ),
                "make another display the primary one in the firmware setup, or give rom=FILE",
            )
            .detail(format!("the kernel shows the copy as {path}")),
        );
    }
    Ok(found)
}
