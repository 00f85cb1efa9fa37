//! The host's IOMMU: is it on, why not, who shares a group, what it can address.
//!
//! Intel VT-d 4.1, 11.4.2 (capability register) and 11.4.3 (extended capability register); AMD IOMMU 3.08,
//! 3.4.1 (extended feature register); Documentation/ABI/testing/sysfs-kernel-iommu_groups.

use super::{
    cpu::{self, Vendor},
    pci::{self, HostFunction},
    sysroot::{SysError, Sysroot},
};
use crate::{bdf::Bdf, range::AddressRange};

/// Where the kernel shows the groups.
pub const GROUPS: &str = "/sys/kernel/iommu_groups";

const UNITS: &str = "/sys/class/iommu";
const TABLES: &str = "/sys/firmware/acpi/tables";

/// Is the IOMMU on?
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// There are groups with an IOMMU.
    On,
    /// There are none.
    Off(WhyOff),
}

/// Why there are no such groups.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WhyOff {
    /// The firmware describes no IOMMU: switched off in its setup, or the machine has none.
    Firmware,
    /// The same, but this host is itself a guest.
    Guest,
    /// The firmware describes one and the kernel was not asked to use it.
    ArgumentMissing,
    /// A kernel argument, this one, turns it off.
    ArgumentOff(String),
    /// Firmware and arguments are right; the kernel log says what went wrong.
    Refused,
}

/// The groups that an IOMMU is behind, by ascending number.
pub fn groups(sysroot: &Sysroot) -> Result<Vec<u32>, SysError> {
    let number = |name: String| name.parse().map_err(|_| SysError::nonsense(GROUPS, &name));
    let names = sysroot.list_if_present(GROUPS)?;
    let mut groups = names.into_iter().map(number).collect::<Result<Vec<u32>, _>>()?;
    groups.sort_unstable();
    let mut real = Vec::new();
    for group in groups {
        if !is_without_iommu(sysroot, group)? {
            real.push(group);
        }
    }
    Ok(real)
}

/// Did VFIO make this group up for a device that no IOMMU translates for (enable_unsafe_noiommu_mode)? Nothing keeps such
/// a device out of the host's memory, and its node has another name.
pub fn is_without_iommu(sysroot: &Sysroot, group: u32) -> Result<bool, SysError> {
    let name = sysroot.read_if_present(&format!("{GROUPS}/{group}/name"))?;
    let made_up = name.as_deref() == Some("vfio-noiommu");
    Ok(made_up || sysroot.exists(&format!("/dev/vfio/noiommu-{group}")))
}

/// Are there groups, and none with an IOMMU?
pub fn has_only_unsafe_groups(sysroot: &Sysroot) -> Result<bool, SysError> {
    Ok(!sysroot.list_if_present(GROUPS)?.is_empty() && groups(sysroot)?.is_empty())
}

/// Looks for groups and, without any, for the reason.
pub fn state(sysroot: &Sysroot) -> Result<State, SysError> {
    if !groups(sysroot)?.is_empty() {
        return Ok(State::On);
    }
    let cmdline = sysroot.read_if_present("/proc/cmdline")?.unwrap_or_default();
    let (intel, amd) = (has_table(sysroot, "DMAR"), has_table(sysroot, "IVRS"));
    Ok(State::Off(if let Some(argument) = switched_off(&cmdline) {
        WhyOff::ArgumentOff(argument.to_owned())
    } else if !intel && !amd {
        match cpu::first_cpu(sysroot)? {
            Some(cpu) if cpu.is_guest() => WhyOff::Guest,
            _ => WhyOff::Firmware,
        }
    } else if intel && !argument_words(&cmdline, "intel_iommu").any(|word| word == "on") {
        WhyOff::ArgumentMissing
    } else {
        WhyOff::Refused
    }))
}

/// The maker of the platform's IOMMU: by its ACPI table, else by the CPU.
pub fn vendor(sysroot: &Sysroot) -> Result<Vendor, SysError> {
    if has_table(sysroot, "DMAR") {
        return Ok(Vendor::Intel);
    }
    if has_table(sysroot, "IVRS") {
        return Ok(Vendor::Amd);
    }
    Ok(cpu::first_cpu(sysroot)?.map_or(Vendor::Other, |cpu| cpu.vendor))
}

fn has_table(sysroot: &Sysroot, name: &str) -> bool {
    sysroot.exists(&format!("{TABLES}/{name}"))
}

/// `intel_iommu=on,sm_on` gives "on" and "sm_on".
fn argument_words<'a>(cmdline: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    cmdline
        .split_whitespace()
        .filter_map(|argument| argument.split_once('='))
        .filter(move |(key, _)| *key == name)
        .flat_map(|(_, value)| value.split(','))
}

fn switched_off(cmdline: &str) -> Option<&'static str> {
    ["intel_iommu", "amd_iommu", "iommu"]
        .into_iter()
        .zip(["intel_iommu=off", "amd_iommu=off", "iommu=off"])
        .find(|(name, _)| argument_words(cmdline, name).any(|word| word == "off"))
        .map(|(_, argument)| argument)
}

/// Does the platform keep a device's interrupts apart from other guests'? `None` when sysfs does not tell (AMD).
pub fn has_interrupt_remapping(sysroot: &Sysroot) -> Result<Option<bool>, SysError> {
    /// Extended capability, bit 3: interrupt remapping.
    const IR: u64 = 1 << 3;
    let cmdline = sysroot.read_if_present("/proc/cmdline")?.unwrap_or_default();
    if argument_words(&cmdline, "intremap").any(|word| word == "off") {
        return Ok(Some(false));
    }
    let mut known = None;
    for unit in sysroot.list_if_present(UNITS)? {
        // The kernel uses it only when every unit has it.
        if let Some(ecap) = intel_register(sysroot, &unit, "ecap")? {
            known = Some(known.unwrap_or(true) && ecap & IR != 0);
        }
    }
    Ok(known)
}

/// Was VFIO told to do without interrupt remapping?
pub fn allows_unsafe_interrupts(sysroot: &Sysroot) -> Result<bool, SysError> {
    let path = "/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts";
    Ok(sysroot.read_if_present(path)?.is_some_and(|value| value == "Y" || value == "1"))
}

/// The functions of a group, by ascending address. Members that are no PCI functions are [`strangers`].
pub fn members(sysroot: &Sysroot, group: u32) -> Result<Vec<HostFunction>, SysError> {
    let mut functions = Vec::new();
    for bdf in member_addresses(sysroot, group)? {
        functions.extend(pci::find(sysroot, bdf)?);
    }
    Ok(functions)
}

fn member_addresses(sysroot: &Sysroot, group: u32) -> Result<Vec<Bdf>, SysError> {
    let names = sysroot.list_if_present(&format!("{GROUPS}/{group}/devices"))?;
    let mut addresses: Vec<Bdf> = names.iter().filter_map(|name| name.parse().ok()).collect();
    addresses.sort();
    Ok(addresses)
}

/// A member of a group that is no PCI function: a device that ACPI describes and an IOMMU translates for, as an eMMC or
/// serial controller of an AMD board.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stranger {
    /// `AMDI0040:00`.
    pub name: String,
    /// The driver that has it. VFIO opens no group that a driver of the host's is at work in.
    pub driver: Option<String>,
}

/// The members of a group that are no PCI functions.
pub fn strangers(sysroot: &Sysroot, group: u32) -> Result<Vec<Stranger>, SysError> {
    let devices = format!("{GROUPS}/{group}/devices");
    let names = sysroot.list_if_present(&devices)?;
    let strangers = names.into_iter().filter(|name| name.parse::<Bdf>().is_err());
    strangers
        .map(|name| {
            let driver = sysroot.link_name(&format!("{devices}/{name}/driver"))?;
            Ok(Stranger { name, driver })
        })
        .collect()
}

/// Why a piece of a group's address space is not the guest's.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Firmware wants it mapped one to one (RMRR): the group cannot be given away.
    Direct,
    /// The same, but only until a driver takes the device: can be given away, and used.
    DirectRelaxable,
    /// Never translated, or hardware of the host behind it.
    Reserved,
    /// Interrupt messages.
    Msi,
}

/// One line of `reserved_regions`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// Where.
    pub range: AddressRange,
    /// Why.
    pub kind: ReservedKind,
}

/// What a group's devices must not use, by ascending address.
pub fn reserved_regions(sysroot: &Sysroot, group: u32) -> Result<Vec<ReservedRegion>, SysError> {
    let path = format!("{GROUPS}/{group}/reserved_regions");
    let text = sysroot.read_if_present(&path)?.unwrap_or_default();
    text.lines()
        .map(|line| reserved_region(line).ok_or_else(|| SysError::nonsense(&path, line)))
        .collect()
}

/// "0x00000000fee00000 0x00000000feefffff msi".
fn reserved_region(line: &str) -> Option<ReservedRegion> {
    let mut words = line.split_whitespace();
    let mut address = || u64::from_str_radix(words.next()?.strip_prefix("0x")?, 16).ok();
    let range = AddressRange::inclusive(address()?, address()?)?;
    let kind = match words.next()? {
        "direct" => ReservedKind::Direct,
        "direct-relaxable" => ReservedKind::DirectRelaxable,
        "msi" => ReservedKind::Msi,
        // A kind that a later kernel invents is kept away from, too.
        _ => ReservedKind::Reserved,
    };
    Some(ReservedRegion { range, kind })
}

/// What the address plan must respect, known from sysfs before VFIO can be asked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DmaConstraints {
    /// What every group's IOMMU can address; empty without groups.
    pub iova: Vec<AddressRange>,
    /// What must hold neither RAM nor a BAR, by ascending address.
    pub reserved: Vec<AddressRange>,
}

/// The x86 interrupt message window; no IOMMU translates it (Intel SDM 3A, 11.11.1).
const MSI_WINDOW: (u64, u64) = (0xfee0_0000, 0xfeef_ffff);

/// The constraints of all these groups together.
pub fn dma_constraints(sysroot: &Sysroot, groups: &[u32]) -> Result<DmaConstraints, SysError> {
    let mut bits = None;
    let mut reserved: Vec<AddressRange> =
        AddressRange::inclusive(MSI_WINDOW.0, MSI_WINDOW.1).into_iter().collect();
    for group in groups {
        let width = group_width(sysroot, *group)?;
        bits = Some(bits.map_or(width, |bits: u32| bits.min(width)));
        for region in reserved_regions(sysroot, *group)? {
            // VFIO lifts relaxable ones when it takes the device.
            if region.kind != ReservedKind::DirectRelaxable {
                reserved.push(region.range);
            }
        }
    }
    let Some(bits) = bits else { return Ok(DmaConstraints::default()) };
    let last = u64::MAX >> (64 - bits.clamp(1, 64));
    let everything = AddressRange::inclusive(0, last);
    let reserved = merge(reserved);
    let iova = everything.map(|all| all.subtract_all(reserved.iter().copied())).unwrap_or_default();
    Ok(DmaConstraints { iova, reserved })
}

/// Sorted, overlapping ones joined.
fn merge(mut ranges: Vec<AddressRange>) -> Vec<AddressRange> {
    ranges.sort();
    let mut merged: Vec<AddressRange> = Vec::new();
    for range in ranges {
        match merged.last_mut() {
            Some(last) if last.overlaps(range) => {
                let end = last.last().max(range.last());
                *last = AddressRange::inclusive(last.first(), end).unwrap_or(*last);
            }
            _ => merged.push(range),
        }
    }
    merged
}

/// What an IOMMU of unknown make is taken for: four levels of page tables, as all of today's have at least
/// unless they say otherwise.
const USUAL_WIDTH: u32 = 48;

/// Address bits that the IOMMU of this group translates.
fn group_width(sysroot: &Sysroot, group: u32) -> Result<u32, SysError> {
    let mut width: Option<u32> = None;
    for bdf in member_addresses(sysroot, group)? {
        let Some(unit) = sysroot.link_name(&pci::path(bdf, "iommu"))? else { continue };
        let bits = unit_width(sysroot, &unit)?;
        width = Some(width.map_or(bits, |width| width.min(bits)));
    }
    if let Some(width) = width {
        return Ok(width);
    }
    // Older kernels do not link a device to its unit: the narrowest it is.
    for unit in sysroot.list_if_present(UNITS)? {
        let bits = unit_width(sysroot, &unit)?;
        width = Some(width.map_or(bits, |width| width.min(bits)));
    }
    Ok(width.unwrap_or(USUAL_WIDTH))
}

fn unit_width(sysroot: &Sysroot, unit: &str) -> Result<u32, SysError> {
    if let Some(cap) = intel_register(sysroot, unit, "cap")? {
        let ecap = intel_register(sysroot, unit, "ecap")?.unwrap_or(0);
        return Ok(intel_width(cap, ecap));
    }
    let features = format!("{UNITS}/{unit}/amd-iommu/features");
    Ok(hex_register(sysroot, &features)?.map_or(USUAL_WIDTH, amd_width))
}

fn intel_register(sysroot: &Sysroot, unit: &str, name: &str) -> Result<Option<u64>, SysError> {
    hex_register(sysroot, &format!("{UNITS}/{unit}/intel-iommu/{name}"))
}

/// Hexadecimal without prefix; AMD has "EFR2:EFR" (older kernels: "EFR" alone), and the last is meant.
fn hex_register(sysroot: &Sysroot, path: &str) -> Result<Option<u64>, SysError> {
    let Some(text) = sysroot.read_if_present(path)? else { return Ok(None) };
    let last = text.rsplit(':').next().unwrap_or_default();
    u64::from_str_radix(last, 16).map(Some).map_err(|_| SysError::nonsense(path, &text))
}

/// The smaller of what the unit takes (MGAW, bits 21:16, less one) and what its deepest page table covers
/// (SAGAW, bits 12:8: bit 1 is 39, bit 2 is 48, bit 3 is 57 bits).
fn intel_width(cap: u64, ecap: u64) -> u32 {
    /// Extended capability: scalable mode, and first-level translation in it.
    const SCALABLE_FIRST_LEVEL: u64 = 1 << 43 | 1 << 47;
    let guest = ((cap >> 16) & 0x3f) as u32 + 1;
    let tables = match (cap >> 8) & 0x1f {
        sagaw if sagaw & 1 << 3 != 0 => 57,
        sagaw if sagaw & 1 << 2 != 0 => 48,
        sagaw if sagaw & 1 << 1 != 0 => 39,
        _ => USUAL_WIDTH,
    };
    // First-level addresses are canonical like a CPU's, and Linux keeps to their lower half. Whether it uses
    // the first level is not readable, so the smaller half is promised.
    let sign = u32::from(ecap & SCALABLE_FIRST_LEVEL == SCALABLE_FIRST_LEVEL);
    guest.min(tables) - sign
}

/// HATS, bits 11:10: how many levels the host page tables may have.
fn amd_width(features: u64) -> u32 {
    match (features >> 10) & 3 {
        1 => 57,
        2 => 64,
        _ => 48,
    }
}

// Provenance: registers by the VT-d and AMD IOMMU specifications; those of QEMU's IOMMUs as Linux
// 6.1 shows them where that is said, else no dump of a host.
#[cfg(test)]
mod tests;
