//! Can these functions be given to a guest now?

use std::collections::BTreeSet;

use super::{
    super::{
        driver,
        holders::Holder,
        iommu::{self, ReservedKind, Stranger},
        memory,
        needs::Needs,
        pci::{self, Header, HostFunction},
        sysroot::Sysroot,
    },
    Allowed, Warning, advice, bindable_of, expendable, framebuffer, machine,
    nodes::{self, Refused},
};
use crate::{
    bar::{BarKind, BarSpec},
    bdf::{Bdf, BdfSelector},
    codes,
    failure::Failure,
    names::Names,
    size::Size,
};

/// Checks all functions of a run together: two of one group may need each other. The first refusal wins, in the
/// order in which a user can mend things.
pub fn assignable(sysroot: &Sysroot, functions: &[HostFunction]) -> Result<Vec<Warning>, Failure> {
    for function in functions {
        kind(sysroot, function)?;
    }
    let groups: BTreeSet<u32> = functions.iter().filter_map(|function| function.group).collect();
    for group in &groups {
        reserved(sysroot, *group, functions)?;
    }
    for function in functions {
        addressed(function)?;
    }
    let needs = Needs::new(sysroot);
    on_vfio(&needs, functions)?;
    for function in functions {
        framebuffer::none(sysroot, function)?;
    }
    for group in &groups {
        viable(&needs, *group, functions)?;
    }
    for group in &groups {
        let path = format!("/dev/vfio/{group}");
        if let Some(first) = functions.iter().find(|function| function.group == Some(*group)) {
            free(sysroot, first.bdf, *group, &nodes::who_has(sysroot, *group)?.found)?;
        }
        node(sysroot, *group, &path)?;
    }
    siblings(sysroot, functions)
}

/// A live endpoint in a group.
pub(in super::super) fn kind(sysroot: &Sysroot, function: &HostFunction) -> Result<(), Failure> {
    let bdf = function.bdf;
    if function.is_dead() {
        let cause = format!("{bdf} does not answer: its config space reads as all ones");
        let fix = "power cycle the host; a card that is gone after a reset needs its power cut";
        return Err(Failure::new(&codes::E1401, cause, fix));
    }
    if function.is_bridge() {
        let cause = format!("{bdf} is a bridge: {}", Names::load(sysroot).function(function));
        let fix = "name the devices behind it; a bridge stays on the host";
        return Err(Failure::new(&codes::E1108, cause, fix));
    }
    if let Some(vmd) = function.behind {
        let cause = format!(
            "{bdf} is behind {vmd}, which keeps it in a PCI segment of its own: all its DMA bears the address of {vmd}"
        );
        let short = vmd.to_string();
        let short = short.strip_prefix("0000:").unwrap_or(&short);
        let fix = format!(
            "pass {vmd} with all that is behind it (--vfio {short}), or switch VMD off in the firmware setup"
        );
        return Err(Failure::new(&codes::E1124, cause, fix));
    }
    if function.group.is_none() {
        // Where nothing has a group, it is not for this device to mend.
        machine::iommu(sysroot)?;
    }
    if function.group.is_none() && sysroot.link(&pci::path(bdf, "iommu_group"))?.is_some() {
        let cause = format!(
            "{bdf} has no IOMMU: its group is one of VFIO's no-IOMMU mode, which keeps a device out of nobody's memory"
        );
        let fix = "take it from vfio-pci (strait unbind), and never set enable_unsafe_noiommu_mode; try another slot, or a firmware update";
        return Err(Failure::new(&codes::E1109, cause, fix));
    }
    if function.group.is_none() {
        let cause = format!("{bdf} has no IOMMU group: no IOMMU translates for it");
        let fix = "try another slot, or a firmware update: the firmware leaves this device out";
        return Err(Failure::new(&codes::E1109, cause, fix));
    }
    Ok(())
}

/// The kernel gives no group away that firmware wants mapped one to one, or that has a device of another bus at work.
pub(in super::super) fn reserved(
    sysroot: &Sysroot,
    group: u32,
    functions: &[HostFunction],
) -> Result<(), Failure> {
    no_stranger(sysroot, group, functions)?;
    let regions = iommu::reserved_regions(sysroot, group)?;
    let direct: Vec<_> =
        regions.iter().filter(|region| region.kind == ReservedKind::Direct).collect();
    if direct.is_empty() {
        return Ok(());
    }
    let who = in_group(functions, group).map(|f| f.bdf.to_string()).collect::<Vec<_>>().join(", ");
    let cause = format!(
        "the firmware reserves memory (RMRR) for group {group} with {who}, so the kernel keeps the device"
    );
    let fix = "switch off what uses the device in the firmware setup (remote console, RAID), or use another slot";
    Err(direct.iter().fold(Failure::new(&codes::E1309, cause, fix), |failure, region| {
        failure.detail(format!("reserved: {}", region.range))
    }))
}

/// A driver of the host's has a member of the group that is no PCI function, and that strait therefore never takes.
fn no_stranger(sysroot: &Sysroot, group: u32, functions: &[HostFunction]) -> Result<(), Failure> {
    let strangers = iommu::strangers(sysroot, group)?;
    let at_work = |stranger: &&Stranger| {
        stranger.driver.as_deref().is_some_and(|driver| !driver.starts_with("vfio"))
    };
    let Some(Stranger { name, driver }) = strangers.iter().find(at_work) else { return Ok(()) };
    let who = in_group(functions, group).map(|f| f.bdf.to_string()).collect::<Vec<_>>().join(", ");
    let driver = driver.as_deref().unwrap_or_default();
    let cause = format!(
        "IOMMU group {group} of {who} also holds {name}, which is no PCI device and which the host's driver {driver} has"
    );
    let device = format!("{}/{group}/devices/{name}", iommu::GROUPS);
    let fix = format!(
        "if the host can do without it: echo {name} > {device}/driver/unbind; or use another slot"
    );
    Err(Failure::new(&codes::E1103, cause, fix))
}

/// The kernel enables no device that has a memory BAR without an address, for itself or for VFIO.
pub(in super::super) fn addressed(function: &HostFunction) -> Result<(), Failure> {
    let homeless = |bar: &&BarSpec| {
        let is_window = matches!(bar.kind, BarKind::Memory32 { .. } | BarKind::Memory64 { .. });
        is_window && function.unassigned.contains(&bar.index)
    };
    let Some(bar) = function.bars.iter().find(homeless) else { return Ok(()) };
    let cause = format!(
        "{} of {}, {}, has no address on the host",
        bar.index,
        function.bdf,
        Size(bar.size)
    );
    let fix = match bar.kind {
        BarKind::Memory64 { .. } => {
            "switch on Above 4G Decoding (and Resizable BAR) in the firmware setup"
        }
        _ => "update the firmware, or take another card out: the room below 4 GiB is full",
    };
    Err(Failure::new(&codes::E1204, cause, fix))
}

fn in_group(functions: &[HostFunction], group: u32) -> impl Iterator<Item = &HostFunction> {
    functions.iter().filter(move |function| function.group == Some(group))
}

/// Every function is on vfio-pci or a variant of it. All that are not come in one refusal, with the commands; without
/// them when they would hang or hurt the host.
pub(in super::super) fn on_vfio(
    needs: &Needs<'_>,
    functions: &[HostFunction],
) -> Result<(), Failure> {
    let others: Vec<HostFunction> =
        functions.iter().filter(|function| !function.is_on_vfio()).cloned().collect();
    let Some(first) = others.first() else { return Ok(()) };
    let sysroot = needs.sysroot();
    let names = Names::load(sysroot);
    let more = match others.len() - 1 {
        0 => String::new(),
        n => format!(", and {n} more are not on vfio-pci"),
    };
    let cause = match &first.driver {
        Some(driver) => format!("{} is held by the host driver {driver}{more}", first.bdf),
        None => format!("{} has no driver, and VFIO needs vfio-pci on it{more}", first.bdf),
    };
    let mut failure = Failure::new(&codes::E1102, cause, String::new());
    for function in &others {
        let driver = function.driver.as_deref().unwrap_or("no driver");
        failure =
            failure.detail(format!("{} {}: {driver}", function.bdf, names.function(function)));
    }
    if let Err(refusal) = bindable_of(needs, &others, &Allowed::default()) {
        return Err(instead(failure, refusal));
    }
    failure.details.extend(commands(&others.iter().collect::<Vec<_>>()));
    failure.fix = if memory::effective_uid(sysroot)? == Some(0) {
        "run the commands above, then start again; or let strait do it: managed=auto"
    } else {
        "run strait as root, which takes it and gives it back; or run the commands above as root"
    }
    .to_owned();
    Err(failure)
}

/// What stands against taking a device takes the place of the commands that would take it.
fn instead(mut failure: Failure, refusal: Failure) -> Failure {
    failure.details.push(refusal.cause);
    failure.details.extend(refusal.details.into_iter().filter(|line| line.starts_with("also: ")));
    failure.fix = refusal.fix;
    failure
}

/// The lines that give these functions to vfio-pci, each once. A bridge only loses its driver: VFIO takes none.
fn commands(functions: &[&HostFunction]) -> Vec<String> {
    let lines = functions.iter().flat_map(|function| match function.is_bridge() {
        true => vec![unbind(function)],
        false => driver::bind_commands(function.bdf, function.driver.as_deref()),
    });
    let mut seen = BTreeSet::new();
    lines.filter(|line| seen.insert(line.clone())).collect()
}

fn unbind(function: &HostFunction) -> String {
    format!("echo {} > {}", function.bdf, pci::path(function.bdf, "driver/unbind"))
}

/// VFIO opens a group only when the host uses nothing in it, as [`is_foreign`] tells.
pub(in super::super) fn viable(
    needs: &Needs<'_>,
    group: u32,
    functions: &[HostFunction],
) -> Result<(), Failure> {
    let sysroot = needs.sysroot();
    let members = iommu::members(sysroot, group)?;
    // Those that were asked for are `on_vfio`'s.
    let asked = |member: &HostFunction| functions.iter().any(|f| f.bdf == member.bdf);
    let foreign: Vec<&HostFunction> =
        members.iter().filter(|member| is_foreign(member) && !asked(member)).collect();
    if foreign.is_empty() {
        return Ok(());
    }
    let names = Names::load(sysroot);
    let who = in_group(functions, group).map(|f| f.bdf.to_string()).collect::<Vec<_>>().join(", ");
    let count = match foreign.len() {
        1 => "a device".to_owned(),
        n => format!("{n} devices"),
    };
    let cause = format!(
        "IOMMU group {group} of {who} also holds {count} that the host uses: the group is not viable"
    );
    let mut failure = Failure::new(&codes::E1103, cause, String::new());
    for member in &foreign {
        let driver = member.driver.as_deref().unwrap_or_default();
        failure = failure.detail(format!("{} {}: {driver}", member.bdf, names.function(member)));
    }
    for member in &foreign {
        if let Err(refusal) = expendable(needs, member, true, &Allowed::default()) {
            return Err(instead(failure, refusal));
        }
    }
    failure.details.extend(commands(&foreign));
    failure.fix = match foreign.iter().any(|member| member.is_bridge()) {
        true => "run the commands above as root, or use a slot with a group of its own",
        false => {
            "bind them to vfio-pci too (the commands above, as root), or use a slot with a group of its own"
        }
    }
    .to_owned();
    Err(failure)
}

/// Drivers that do no DMA of their own, or leave it to who manages the group: pcieport and pci-stub say so to the kernel
/// (`driver_managed_dma`), as VFIO's do.
const MANAGED_DMA: [&str; 2] = ["pcieport", "pci-stub"];

/// Does it keep VFIO from opening its group? The kernel lets members stay that are on VFIO, on pci-stub, without driver,
/// and bridges with buses behind them (header type 1). What has the class of a bridge and no bus, as the ISA bridge of
/// a chipset, is a device as any other. What is behind a VMD goes away with the VMD's driver.
pub(in super::super) fn is_foreign(member: &HostFunction) -> bool {
    let harmless = |driver: &str| pci::is_vfio_driver(driver) || MANAGED_DMA.contains(&driver);
    member.header != Header::Bridge
        && member.behind.is_none()
        && member.driver.as_deref().is_some_and(|driver| !harmless(driver))
}

/// A member of the group of `functions` that has to be taken along can be taken. A bridge without bus cannot, and is in
/// the way (E1103) until it has no driver.
pub(super) fn takeable_member(
    needs: &Needs<'_>,
    member: &HostFunction,
    functions: &[HostFunction],
) -> Result<(), Failure> {
    if !member.is_bridge() || member.is_dead() {
        return kind(needs.sysroot(), member);
    }
    expendable(needs, member, true, &Allowed::default())?;
    let bdf = member.bdf;
    let group = member.group.unwrap_or_default();
    let who: Vec<String> = in_group(functions, group).map(|f| f.bdf.to_string()).collect();
    let driver = member.driver.as_deref().unwrap_or_default();
    let cause = format!(
        "IOMMU group {group} of {} holds {bdf}, a bridge that is on the driver {driver}: VFIO refuses such a group",
        who.join(", ")
    );
    let fix = format!("as root: {}; the driver is back at the next boot", unbind(member));
    let name = Names::load(needs.sysroot()).function(member);
    Err(Failure::new(&codes::E1103, cause, fix).detail(format!("{bdf} {name}")))
}

/// Nobody has the function's group open; `holders` are those who have.
pub(in super::super) fn free(
    sysroot: &Sysroot,
    bdf: Bdf,
    group: u32,
    holders: &[Holder],
) -> Result<(), Failure> {
    let [first, others @ ..] = holders else { return Ok(()) };
    let cause = format!(
        "{bdf} is in use: {} (pid {}) has its IOMMU group {group} open",
        first.name, first.pid
    );
    let programs: Vec<advice::Program<'_>> =
        holders.iter().map(|holder| (holder.pid, holder.name.as_str())).collect();
    let fix = format!("end that virtual machine first, or: {}", advice::end(sysroot, &programs)?);
    Err(others.iter().fold(Failure::new(&codes::E1107, cause, fix), |failure, holder| {
        failure.detail(format!("also by {} (pid {})", holder.name, holder.pid))
    }))
}

/// The group's node is there and we may open it.
pub(in super::super) fn node(sysroot: &Sysroot, group: u32, path: &str) -> Result<(), Failure> {
    if !sysroot.exists(path) {
        let cause = format!("there is no {path}, although the group is on VFIO");
        let fix = format!(
            "in a container, pass the node in: --device {path}; elsewhere: udevadm trigger"
        );
        return Err(Failure::new(&codes::E1004, cause, fix));
    }
    match nodes::open(sysroot, path) {
        Ok(()) => Ok(()),
        Err(Refused::Permission(error)) => {
            let fix = "echo 'SUBSYSTEM==\"vfio\", GROUP=\"kvm\", MODE=\"0660\"' > /etc/udev/rules.d/10-vfio.rules && udevadm control --reload && udevadm trigger";
            Err(nodes::no_permission(sysroot, path, fix, error)?)
        }
        Err(Refused::Busy(error)) => {
            let cause = format!("IOMMU group {group} is in use by a process that we may not see");
            let fix = format!("find it as root: fuser -v {path}");
            Err(Failure::new(&codes::E1107, cause, fix).source(error))
        }
        Err(Refused::Broken(error)) => {
            let cause = format!("{path} is there, but cannot be opened");
            let fix = "look into: dmesg | grep -i vfio";
            Err(Failure::new(&codes::E1110, cause, fix).source(error))
        }
    }
}

/// Other functions of the same slots that VFIO holds, or that no driver has, and that stay here: many cards
/// need all of theirs, and a reset of the slot hits them too.
pub(in super::super) fn siblings(
    sysroot: &Sysroot,
    functions: &[HostFunction],
) -> Result<Vec<Warning>, Failure> {
    let mut warnings = Vec::new();
    let mut seen = BTreeSet::new();
    for function in functions {
        let slot = function.bdf.with_function(0).unwrap_or(function.bdf);
        if !seen.insert(slot) || function.physical_function.is_some() {
            continue;
        }
        let mut left = Vec::new();
        for bdf in pci::slot_functions(sysroot, slot)? {
            if functions.iter().all(|chosen| chosen.bdf != bdf) {
                left.extend(pci::find(sysroot, bdf)?);
            }
        }
        let bridges = left.iter().filter(|f| f.is_bridge()).count();
        left.retain(|f| {
            let is_part = f.physical_function.is_none() && !f.is_bridge();
            is_part && (f.is_on_vfio() || f.group == function.group)
        });
        if left.is_empty() {
            continue;
        }
        let names = Names::load(sysroot);
        let whole = BdfSelector::Slot(slot);
        let cause = format!("{whole} has functions that the guest does not get");
        // A bridge among them cannot be passed, and with it the slot as a whole.
        let fix = match bridges {
            0 => format!("--vfio {whole} passes all of them"),
            _ => {
                let words = left.iter().map(|f| format!("--vfio {}", f.bdf));
                format!("{} passes them too", words.collect::<Vec<_>>().join(" "))
            }
        };
        warnings.push(left.iter().fold(Failure::new(&codes::E1111, cause, fix), |failure, f| {
            failure.detail(format!("{} {}", f.bdf, names.function(f)))
        }));
    }
    Ok(warnings)
}

#[cfg(test)]
mod tests;
