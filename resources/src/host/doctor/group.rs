//! Groups: who comes along, who can reach whom.

use super::{
    super::{
        capabilities::{self, Kind},
        check::assignable,
        iommu,
        pci::{self, HostFunction},
    },
    Answer, Host, Outcome,
    device::unless_taken,
};

/// 18: nothing that the host uses is in it.
pub(super) fn viable(host: &Host<'_>, function: &HostFunction) -> Answer {
    let Some(group) = function.group else {
        return Ok(vec![Outcome::skip("it has no group", "")]);
    };
    if let Some(vmd) = function.behind {
        return Ok(vec![Outcome::info(format!(
            "it is in group {group} of {vmd}, with which it goes"
        ))]);
    }
    let members = iommu::members(host.sysroot, group)?;
    let others = members.iter().filter(|member| member.bdf != function.bdf);
    let others: Vec<String> = others.map(|member| member.bdf.to_string()).collect();
    let good = match others.as_slice() {
        [] => format!("alone in group {group}"),
        others => format!("group {group}, with {}", others.join(", ")),
    };
    // What a run would refuse: the members beside those that are to go.
    let one = std::slice::from_ref(function);
    let foreign_chosen = members
        .iter()
        .filter(|member| assignable::is_foreign(member))
        .all(|member| host.is_chosen(member.bdf));
    if foreign_chosen {
        // Check 14 has said that these are to be bound.
        return Ok(vec![Outcome::pass(good)]);
    }
    let found = Outcome::of(assignable::viable(&host.needs, group, one), good);
    Ok(vec![unless_taken(host, function, found)])
}

/// 19: the firmware keeps none of its memory.
pub(super) fn reserved(host: &Host<'_>, function: &HostFunction) -> Answer {
    let Some(group) = function.group else { return Ok(Vec::new()) };
    let one = std::slice::from_ref(function);
    let good = "the firmware reserves no memory for it";
    Ok(vec![Outcome::of(assignable::reserved(host.sysroot, group, one), good)])
}

/// Source validation, request and completion redirect, upstream forwarding: what Linux wants for a group of its own
/// (PCI Express Base 5.0, 7.7.11.3).
const ISOLATES: u16 = 0b1_1101;

/// 20: every port above keeps the devices below it apart.
pub(super) fn acs(host: &Host<'_>, function: &HostFunction) -> Answer {
    let path = pci::upstream(host.sysroot, function.bdf)?;
    let mut open = Vec::new();
    for above in path.iter().rev() {
        let Some(port) = host.all.iter().find(|other| other.bdf == *above) else { continue };
        if !capabilities::is_visible(&port.config) {
            return Ok(vec![Outcome::skip(
                "only root sees what the ports above it can do",
                "run strait doctor as root",
            )]);
        }
        if is_downstream(&port.config) && !isolates(&port.config) {
            open.push(port);
        }
    }
    if path.is_empty() {
        return Ok(vec![Outcome::pass("no port is above it")]);
    }
    let Some(first) = open.first() else {
        return Ok(vec![Outcome::pass("every port above it separates its devices (ACS)")]);
    };
    let fact = format!("port {} above it does not separate its devices (no ACS)", first.bdf);
    let shares = match function.group {
        Some(group) => iommu::members(host.sysroot, group)?
            .iter()
            .any(|member| !member.is_bridge() && !member.bdf.same_slot(function.bdf)),
        None => false,
    };
    Ok(vec![if shares {
        Outcome::warn(
            fact + ", so they share a group and can reach each other by DMA",
            "use another slot, best one of the CPU's own; a firmware update may switch ACS on",
        )
    } else {
        Outcome::info(fact + "; the kernel knows it to be safe, or nothing else is behind it")
    }])
}

/// A root port or a switch's downstream port: where traffic between devices would turn round.
fn is_downstream(config: &[u8]) -> bool {
    let express = capabilities::find(config, Kind::Standard, capabilities::EXPRESS);
    let flags = express.and_then(|found| capabilities::word(config, found.offset + 2));
    matches!(flags.map(|flags| (flags >> 4) & 0xf), Some(4 | 6))
}

fn isolates(config: &[u8]) -> bool {
    capabilities::find(config, Kind::Extended, capabilities::ACS)
        .and_then(|found| capabilities::word(config, found.offset + 6))
        .is_some_and(|control| control & ISOLATES == ISOLATES)
}

/// 46: how passed displays and accelerators reach each other.
pub(super) fn peers(host: &Host<'_>) -> Answer {
    let is_peer = |f: &&HostFunction| f.class.is_display() || f.class.base() == 0x12;
    let peers: Vec<&HostFunction> = host.chosen.iter().filter(is_peer).collect();
    let mut found = Vec::new();
    for pair in peers.windows(2) {
        let [a, b] = pair else { continue };
        let (up, down) = (pci::upstream(host.sysroot, a.bdf)?, pci::upstream(host.sysroot, b.bdf)?);
        let common = up.iter().zip(&down).take_while(|(a, b)| a == b).last();
        found.push(Outcome::info(match common {
            Some((switch, _)) => format!("{} and {} meet below {switch}", a.bdf, b.bdf),
            None => format!(
                "{} and {} are under different root ports: DMA between them crosses the CPU",
                a.bdf, b.bdf
            ),
        }));
    }
    Ok(found)
}
