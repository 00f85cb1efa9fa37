//! PCI functions of the host, from sysfs (Documentation/ABI/testing/sysfs-bus-pci, PCI/sysfs-pci.rst).

mod link;

use std::{collections::BTreeMap, fmt, ops::Range, str::FromStr, time::Duration};

use super::{
    iommu,
    sysroot::{SysError, Sysroot},
};
use crate::{
    bar::{BarIndex, BarKind, BarSpec},
    bdf::Bdf,
};

pub use link::{Link, Port, rate};

/// Where sysfs lists the functions.
pub const DEVICES: &str = "/sys/bus/pci/devices";

/// What is known of one function.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostFunction {
    /// Its address.
    pub bdf: Bdf,
    /// Vendor ID.
    pub vendor: u16,
    /// Device ID.
    pub device: u16,
    /// Subsystem vendor ID; 0 on bridges.
    pub subsystem_vendor: u16,
    /// Subsystem ID; 0 on bridges.
    pub subsystem_device: u16,
    /// Revision ID.
    pub revision: u8,
    /// Class code.
    pub class: Class,
    /// The driver that has it now.
    pub driver: Option<String>,
    /// Number of its group, when that has an IOMMU.
    pub group: Option<u32>,
    /// NUMA node, when the machine has several.
    pub numa_node: Option<u32>,
    /// BARs 0 to 5 and ROM, ascending; sizes as the host kernel found them.
    pub bars: Vec<BarSpec>,
    /// BARs that the host's firmware and kernel found no address for.
    pub unassigned: Vec<BarIndex>,
    /// Config space: 64 bytes for a user, 256 or 4096 for root.
    pub config: Vec<u8>,
    /// What kind of header.
    pub header: Header,
    /// The link, for a PCI Express function: that between slot and card.
    pub link: Option<Link>,
    /// What the kernel would try to reset it, best first; empty: none.
    pub reset_methods: Vec<String>,
    /// `D0` to `D3cold`, or `unknown`.
    pub power_state: Option<String>,
    /// For a display: is it the one the firmware showed its picture on?
    pub boot_vga: Option<bool>,
    /// The physical function of an SR-IOV virtual function.
    pub physical_function: Option<Bdf>,
    /// The firmware's name for the slot or port.
    pub label: Option<String>,
    /// The endpoint that this function is behind: Intel's VMD makes a PCI segment of its own for the disks below it, and
    /// all their DMA and interrupts bear the VMD's address.
    pub behind: Option<Bdf>,
}

/// Layout of the first 64 bytes of config space (PCI Local Bus 3.0, 6.1: bits 6:0 of the header type).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Header {
    /// An endpoint.
    Normal,
    /// PCI-to-PCI bridge, root ports and switch ports too.
    Bridge,
    /// Anything else; 0x7f when the function does not answer.
    Other(u8),
}

/// A class code: base class, subclass, programming interface in 24 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Class(pub u32);

impl Class {
    /// 0x03: a display.
    pub const fn base(self) -> u8 {
        (self.0 >> 16) as u8
    }

    /// The 8 bits after the base class.
    pub const fn sub(self) -> u8 {
        (self.0 >> 8) as u8
    }

    /// The last 8 bits.
    pub const fn interface(self) -> u8 {
        self.0 as u8
    }

    /// A VGA or 3D controller or another display.
    pub const fn is_display(self) -> bool {
        self.base() == 0x03
    }
}

impl HostFunction {
    /// Is this a bridge, a root port, a switch port? "Other" bridges without buses are devices with drivers of their
    /// own, as NVIDIA's NVSwitch.
    pub fn is_bridge(&self) -> bool {
        let class = self.class;
        self.header != Header::Normal || class.base() == 0x06 && class.sub() != 0x80
    }

    /// Did config space read as all ones? Then nothing answers at this address. Revision, class and header type are
    /// asked, which no function has as all ones. Vendor and device ID do not tell: those registers of a virtual function
    /// read ffffh by rule (PCI Express Base 6.0, 9.3.4.1.1), and the kernel has its IDs from the physical function.
    pub fn is_dead(&self) -> bool {
        let ones = |at: Range<usize>| {
            self.config.get(at).is_some_and(|bytes| bytes.iter().all(|byte| *byte == 0xff))
        };
        ones(0x08..0x0c) && ones(0x0e..0x0f)
    }

    /// Does a VFIO driver have it: vfio-pci, or one of a vendor's own such as `mlx5_vfio_pci`?
    pub fn is_on_vfio(&self) -> bool {
        self.driver.as_deref().is_some_and(is_vfio_driver)
    }

    /// `10de:1e07`.
    pub fn id(&self) -> String {
        format!("{:04x}:{:04x}", self.vendor, self.device)
    }
}

/// vfio-pci and the kernel's variants of it: `mlx5_vfio_pci`, `nvgrace-gpu-vfio-pci`.
pub fn is_vfio_driver(name: &str) -> bool {
    name.replace('_', "-").ends_with("vfio-pci")
}

/// Every function, by ascending address.
pub fn scan(sysroot: &Sysroot) -> Result<Vec<HostFunction>, SysError> {
    let mut functions = Vec::new();
    for bdf in addresses(sysroot)? {
        // One that left between listing and reading is no error.
        functions.extend(find(sysroot, bdf)?);
    }
    Ok(functions)
}

/// The addresses of every function, ascending.
pub fn addresses(sysroot: &Sysroot) -> Result<Vec<Bdf>, SysError> {
    let names = sysroot.list_if_present(DEVICES)?;
    // The kernel has nothing but addresses there. One that cannot be read would be a device that no check knows of.
    let address = |name: &String| name.parse().map_err(|_| SysError::nonsense(DEVICES, name));
    let mut found = names.iter().map(address).collect::<Result<Vec<Bdf>, _>>()?;
    found.sort();
    Ok(found)
}

/// The addresses of the functions in the slot of `bdf`, itself included when it exists.
pub fn slot_functions(sysroot: &Sysroot, bdf: Bdf) -> Result<Vec<Bdf>, SysError> {
    Ok(addresses(sysroot)?.into_iter().filter(|other| other.same_slot(bdf)).collect())
}

/// One function; `None` when there is none.
pub fn find(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<HostFunction>, SysError> {
    if !sysroot.exists(&path(bdf, "vendor")) {
        return Ok(None);
    }
    match read(&Attributes { sysroot, bdf }) {
        Ok(function) => Ok(Some(function)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The firmware's names of the slots, by their function 0: `/sys/bus/pci/slots/NAME/address` is "0000:3b:00", for slots that the firmware or a hotplug driver names.
pub fn physical_slots(sysroot: &Sysroot) -> Result<BTreeMap<Bdf, String>, SysError> {
    const SLOTS: &str = "/sys/bus/pci/slots";
    let mut slots = BTreeMap::new();
    for name in sysroot.list_if_present(SLOTS)? {
        let address = sysroot.read_if_present(&format!("{SLOTS}/{name}/address"))?;
        let function: Option<Bdf> = address.and_then(|text| format!("{text}.0").parse().ok());
        slots.extend(function.map(|bdf| (bdf, name)));
    }
    Ok(slots)
}

/// The bridges above a function, from the host bridge down.
pub fn upstream(sysroot: &Sysroot, bdf: Bdf) -> Result<Vec<Bdf>, SysError> {
    let path = sysroot.canonical(&format!("{}/{bdf}", DEVICES))?;
    let parts = path.iter().flat_map(|path| path.iter()).filter_map(|part| part.to_str());
    Ok(parts.filter_map(|part| part.parse().ok()).filter(|above| *above != bdf).collect())
}

/// The functions on the buses below a bridge, bridges left out.
fn addresses_below(sysroot: &Sysroot, bridge: Bdf) -> Result<Vec<Bdf>, SysError> {
    /// No tree of buses is deeper.
    const DEPTH: usize = 8;
    let mut found = Vec::new();
    let mut level = vec![bridge];
    for _ in 0..DEPTH {
        let mut next = Vec::new();
        for above in level {
            let names = sysroot.list_if_present(&format!("{DEVICES}/{above}"))?;
            let below: Vec<Bdf> = names.iter().filter_map(|name| name.parse().ok()).collect();
            if below.is_empty() && above != bridge {
                found.push(above);
            }
            next.extend(below);
        }
        level = next;
    }
    Ok(found)
}

/// The name that `driver_override` holds. Reading it waits for the device's lock, which a driver that hangs in its
/// unbind never returns: so it is no part of [`find`], and has a time limit.
pub fn driver_override(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<String>, SysError> {
    let text = sysroot.read_within(&path(bdf, "driver_override"), Duration::from_secs(5))?;
    Ok(text.filter(|text| !text.is_empty() && text != "(null)"))
}

/// The path of an attribute of a function.
pub fn path(bdf: Bdf, attribute: &str) -> String {
    format!("{DEVICES}/{bdf}/{attribute}")
}

fn read(at: &Attributes<'_>) -> Result<HostFunction, SysError> {
    let (bars, unassigned) = at.resources()?;
    let config = at.sysroot.read_bytes(&path(at.bdf, "config"))?;
    let physical_function = at.link("physfn")?;
    Ok(HostFunction {
        bdf: at.bdf,
        vendor: at.id("vendor")?,
        device: at.id("device")?,
        subsystem_vendor: at.id("subsystem_vendor")?,
        subsystem_device: at.id("subsystem_device")?,
        revision: at.hex("revision")?.and_then(|value| u8::try_from(value).ok()).unwrap_or(0),
        class: Class(at.hex("class")?.unwrap_or(0) & 0xff_ffff),
        driver: at.sysroot.link_name(&path(at.bdf, "driver"))?,
        group: at.group()?,
        numa_node: at.numa_node()?,
        bars,
        unassigned,
        header: header(&config),
        config,
        // Registers of a virtual function say nothing of the link that it shares.
        link: link::of_card(at.sysroot, physical_function.unwrap_or(at.bdf))?,
        reset_methods: at
            .text("reset_method")?
            .map(|text| text.split_whitespace().map(str::to_owned).collect())
            .unwrap_or_default(),
        power_state: at.text("power_state")?,
        boot_vga: at.text("boot_vga")?.map(|text| text == "1"),
        physical_function,
        label: at.text("label")?,
        behind: upstream(at.sysroot, at.bdf)?
            .into_iter()
            .rfind(|above| above.segment() != at.bdf.segment()),
    })
}

/// Header type register at 0x0e; bit 7 says "multifunction".
fn header(config: &[u8]) -> Header {
    match config.get(0x0e).map(|byte| byte & 0x7f) {
        Some(0) => Header::Normal,
        Some(1) => Header::Bridge,
        Some(other) => Header::Other(other),
        None => Header::Other(0x7f),
    }
}

/// The attribute files of one function.
struct Attributes<'a> {
    sysroot: &'a Sysroot,
    bdf: Bdf,
}

impl Attributes<'_> {
    fn text(&self, name: &str) -> Result<Option<String>, SysError> {
        Ok(self.sysroot.read_if_present(&path(self.bdf, name))?.filter(|text| !text.is_empty()))
    }

    fn hex(&self, name: &str) -> Result<Option<u32>, SysError> {
        let Some(text) = self.text(name)? else { return Ok(None) };
        match u32::from_str_radix(text.trim_start_matches("0x"), 16) {
            Ok(value) => Ok(Some(value)),
            Err(_) => Err(SysError::nonsense(&path(self.bdf, name), &text)),
        }
    }

    fn id(&self, name: &str) -> Result<u16, SysError> {
        let value = self.hex(name)?.unwrap_or(0);
        u16::try_from(value)
            .map_err(|_| SysError::nonsense(&path(self.bdf, name), &format!("{value:#x}")))
    }

    fn link<T: FromStr>(&self, name: &str) -> Result<Option<T>, SysError> {
        let path = path(self.bdf, name);
        let Some(target) = self.sysroot.link_name(&path)? else { return Ok(None) };
        target.parse().map(Some).map_err(|_| SysError::nonsense(&path, &target))
    }

    fn group(&self) -> Result<Option<u32>, SysError> {
        let Some(group) = self.link("iommu_group")? else { return Ok(None) };
        Ok((!iommu::is_without_iommu(self.sysroot, group)?).then_some(group))
    }

    /// -1 where the firmware does not tell, as on a machine with one node.
    fn numa_node(&self) -> Result<Option<u32>, SysError> {
        let Some(text) = self.text("numa_node")? else { return Ok(None) };
        match text.parse::<i64>() {
            Ok(node) => Ok(u32::try_from(node).ok()),
            Err(_) => Err(SysError::nonsense(&path(self.bdf, "numa_node"), &text)),
        }
    }

    /// The first seven lines of `resource`: BAR 0 to 5, ROM; "start end flags" each. An integrated endpoint's
    /// virtual-function and bridge-window lines follow and do not matter.
    fn resources(&self) -> Result<(Vec<BarSpec>, Vec<BarIndex>), SysError> {
        let name = path(self.bdf, "resource");
        let table = self.sysroot.read(&name)?;
        let (mut bars, mut unassigned) = (Vec::new(), Vec::new());
        for (index, line) in table.lines().take(7).enumerate() {
            let nonsense = || SysError::nonsense(&name, line);
            let resource: Resource = line.parse().map_err(|()| nonsense())?;
            let index = u8::try_from(index).ok().and_then(BarIndex::new).ok_or_else(nonsense)?;
            let Some(spec) = resource.bar(index) else { continue };
            if resource.flags & UNSET != 0 || resource.start == 0 {
                unassigned.push(index);
            }
            bars.push(spec);
        }
        Ok((bars, unassigned))
    }
}

/// Flags of the kernel's `struct resource` (linux/ioport.h), an ABI by way of this file.
const IO: u64 = 0x100;
const MEMORY: u64 = 0x200;
const PREFETCH: u64 = 0x2000;
const MEMORY_64: u64 = 0x10_0000;
/// No address was assigned yet.
const UNSET: u64 = 0x2000_0000;

struct Resource {
    start: u64,
    end: u64,
    flags: u64,
}

impl FromStr for Resource {
    type Err = ();

    fn from_str(line: &str) -> Result<Self, ()> {
        let mut numbers = line.split_whitespace().map(|word| {
            u64::from_str_radix(word.strip_prefix("0x").ok_or(())?, 16).map_err(|_| ())
        });
        let mut next = || numbers.next().ok_or(())?;
        Ok(Self { start: next()?, end: next()?, flags: next()? })
    }
}

impl Resource {
    /// `None` when the BAR is not implemented, or its length is none that a BAR can have.
    fn bar(&self, index: BarIndex) -> Option<BarSpec> {
        let size = self.end.checked_sub(self.start)?.checked_add(1)?;
        let prefetchable = self.flags & PREFETCH != 0;
        let kind = if self.flags & IO != 0 {
            BarKind::Io
        } else if self.flags & MEMORY == 0 {
            return None;
        } else if index == BarIndex::ROM {
            BarKind::Rom
        } else if self.flags & MEMORY_64 != 0 {
            BarKind::Memory64 { prefetchable }
        } else {
            BarKind::Memory32 { prefetchable }
        };
        size.is_power_of_two().then_some(BarSpec { index, kind, size })
    }
}

impl fmt::Display for Class {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:06x}", self.0)
    }
}

#[cfg(test)]
mod tests;
