//! The IOMMU as a whole.

use std::collections::BTreeMap;

use super::{
    super::{
        capabilities::{self, Kind},
        check::machine,
        cpu,
        iommu::{self, GROUPS, State, WhyOff},
        pci::HostFunction,
    },
    Answer, Host, Outcome, boot, log,
};

/// 4: there are groups.
pub(super) fn active(host: &Host<'_>) -> Answer {
    let groups = iommu::groups(host.sysroot)?.len();
    let units = host.sysroot.list_if_present("/sys/class/iommu")?;
    let good = format!("on, with {groups} groups ({})", units.join(", "));
    let mut outcome = Outcome::of(machine::iommu(host.sysroot), good);
    if let State::Off(WhyOff::ArgumentMissing) = iommu::state(host.sysroot)? {
        // Whoever has done that already needs another sentence.
        if let Some(place) = boot::requested(host.sysroot, "intel_iommu=on")? {
            outcome.fact = format!(
                "no IOMMU: intel_iommu=on is asked for in {place}, but absent from /proc/cmdline"
            );
            outcome.fix = boot::not_applied(host.sysroot, &place)?;
        }
    }
    Ok(vec![outcome])
}

/// 5: what was asked of it.
pub(super) fn request(host: &Host<'_>) -> Answer {
    let tables = ["DMAR", "IVRS"];
    let table = tables
        .into_iter()
        .find(|name| host.sysroot.exists(&format!("/sys/firmware/acpi/tables/{name}")));
    let cmdline = host.cmdline()?;
    let words: Vec<&str> = cmdline
        .split_whitespace()
        .filter(|word| {
            ["intel_iommu=", "amd_iommu=", "iommu=", "intremap="]
                .iter()
                .any(|key| word.starts_with(key))
        })
        .collect();
    let words = if words.is_empty() { "none".to_owned() } else { words.join(" ") };
    let table = table.map_or_else(
        || "no ACPI table DMAR or IVRS".to_owned(),
        |table| format!("ACPI table {table}"),
    );
    Ok(vec![Outcome::info(format!("{table}; kernel arguments for it: {words}"))])
}

/// 6: do the host's own devices go through the IOMMU's translation? A matter of the host's speed, and of what
/// devices may do that guests have had.
pub(super) fn mode(host: &Host<'_>) -> Answer {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for group in iommu::groups(host.sysroot)? {
        if let Some(kind) = host.text(&format!("{GROUPS}/{group}/type"))? {
            *kinds.entry(kind).or_default() += 1;
        }
    }
    if kinds.is_empty() {
        return Ok(vec![Outcome::skip("no group tells its type", "")]);
    }
    let list: Vec<String> = kinds.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    let list = list.join(", ");
    if kinds.keys().any(|kind| kind.starts_with("DMA")) && !host.cmdline()?.contains("iommu=pt") {
        return Ok(vec![Outcome::info(format!("the host's own DMA is translated ({list})"))]);
    }
    Ok(vec![Outcome::info(match kinds.keys().all(|kind| kind == "identity") {
        true => "the host's own DMA passes untranslated (identity), a guest's never: a device that comes back \
                 from a guest reaches all memory, unless strait can change its group's type (Linux 5.11)"
            .to_owned(),
        false => format!("groups by type: {list}"),
    })])
}

/// 7: a device's interrupts are kept to its guest.
pub(super) fn remapping(host: &Host<'_>) -> Answer {
    if iommu::state(host.sysroot)? != State::On {
        return Ok(vec![Outcome::skip("no IOMMU to look at", "")]);
    }
    let good = match iommu::has_interrupt_remapping(host.sysroot)? {
        Some(true) => Outcome::pass("every IOMMU remaps interrupts"),
        // AMD's shows it in the log only.
        None => match amd_remapping(host) {
            true => Outcome::pass("the kernel says that the IOMMU remaps interrupts"),
            false => Outcome::skip("sysfs does not tell on this platform; VFIO will", ""),
        },
        Some(false) => match machine::interrupt_remapping(host.sysroot) {
            Err(failure) => Outcome::refusal(failure),
            Ok(()) => Outcome::warn(
                "no interrupt remapping, and allow_unsafe_interrupts accepts that risk",
                "a guest can send any interrupt to the host: only trusted guests",
            ),
        },
    };
    Ok(vec![good])
}

/// The log may have lost its beginning, or not be ours to read: then nothing is known.
fn amd_remapping(host: &Host<'_>) -> bool {
    let text = host.sysroot.read_available("/dev/kmsg").unwrap_or_default();
    log::messages(&text).any(|line| line.contains("AMD-Vi: Interrupt remapping enabled"))
}

/// 49: may it say itself that an address is translated? The IOMMU lets such requests through unchecked (PCI Express Base
/// 5.0, 10.2), and Linux switches that on for every device that is not marked as external.
pub(super) fn translates(host: &Host<'_>, function: &HostFunction) -> Answer {
    /// ATS Control register, and its Enable bit (PCI Express Base 5.0, 10.5.1.3).
    const CONTROL: usize = 6;
    const ENABLE: u16 = 1 << 15;
    const FIX: &str = "where guests are not trusted: pci=noats among the kernel arguments, of which the host's own \
                       devices get slower that keep translations, and those lose it that share page tables (SVA)";
    let cmdline = host.cmdline()?;
    let mut options = cmdline.split_whitespace().filter_map(|word| word.strip_prefix("pci="));
    if options.any(|list| list.split(',').any(|option| option == "noats")) {
        return Ok(vec![Outcome::pass(
            "the kernel lets no device translate addresses (pci=noats)",
        )]);
    }
    let config = &function.config;
    if !capabilities::is_visible(config) {
        let fact = "only root sees whether it translates addresses itself";
        return Ok(vec![Outcome::skip(fact, "run strait doctor as root")]);
    }
    let Some(found) = capabilities::find(config, Kind::Extended, capabilities::ATS) else {
        return Ok(vec![Outcome::pass("it does not translate addresses itself")]);
    };
    let control = capabilities::word(config, found.offset + CONTROL).unwrap_or_default();
    let fact = match control & ENABLE != 0 {
        true => {
            "it translates addresses itself (ATS is on): what it says is translated passes the IOMMU unchecked"
        }
        false => {
            "it can translate addresses itself (ATS, off now): the kernel may switch that on for a guest"
        }
    };
    Ok(vec![Outcome { fix: FIX.to_owned(), ..Outcome::info(fact) }])
}

/// 8: what devices can address.
pub(super) fn width(host: &Host<'_>) -> Answer {
    let groups = iommu::groups(host.sysroot)?;
    let chosen: Vec<u32> = host.chosen.iter().filter_map(|function| function.group).collect();
    let groups = if chosen.is_empty() { groups } else { chosen };
    let constraints = iommu::dma_constraints(host.sysroot, &groups)?;
    let Some(last) = constraints.iova.last().map(|range| range.last()) else {
        return Ok(vec![Outcome::skip("no IOMMU to look at", "")]);
    };
    let bits = 64 - last.leading_zeros();
    let cpu = u32::from(cpu::physical_bits(host.sysroot));
    let fact = format!("devices can address {bits} bits, the CPU {cpu}");
    Ok(vec![if bits >= cpu {
        Outcome::pass(fact)
    } else {
        Outcome::info(fact + ": large BARs are placed below the IOMMU's end")
    }])
}
