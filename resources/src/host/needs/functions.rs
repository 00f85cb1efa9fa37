//! PCI functions: what in sysfs is behind which, and what one has that is neither a disk nor a network.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use super::{
    super::{
        pci,
        sysroot::{SysError, Sysroot},
    },
    Loss,
    graph::{Graph, Thing},
};
use crate::bdf::Bdf;

/// Where in sysfs every function is, with all links resolved.
#[derive(Debug, Default)]
pub(super) struct Owners {
    places: BTreeMap<PathBuf, Bdf>,
}

impl Owners {
    pub(super) fn read(sysroot: &Sysroot) -> Result<Self, SysError> {
        let mut places = BTreeMap::new();
        for bdf in pci::addresses(sysroot)? {
            if let Some(path) = sysroot.canonical(&format!("{}/{bdf}", pci::DEVICES))? {
                places.insert(path, bdf);
            }
        }
        Ok(Self { places })
    }

    /// The functions that a resolved path of sysfs is behind, bridges among them.
    pub(super) fn of(&self, path: &Path) -> Vec<Thing> {
        let found = path.ancestors().filter_map(|above| self.places.get(above));
        found.map(|bdf| Thing::Function(*bdf)).collect()
    }

    pub(super) fn places(&self) -> impl Iterator<Item = (&Path, Bdf)> {
        self.places.iter().map(|(path, bdf)| (path.as_path(), *bdf))
    }
}

/// Virtual functions, which go when the physical one goes, mediated devices, and VFIO's nodes of both.
pub(super) fn parts(sysroot: &Sysroot, owners: &Owners, graph: &mut Graph) -> Result<(), SysError> {
    for (place, bdf) in owners.places() {
        let at = place.to_string_lossy();
        if let Some(group) = sysroot.link_name(&format!("{at}/iommu_group"))? {
            graph.stand(Thing::Node(format!("/dev/vfio/{group}")), Thing::Function(bdf));
        }
        for name in sysroot.list_if_present(&at)? {
            if !name.starts_with("virtfn") {
                continue;
            }
            let virtual_function = sysroot.link_name(&format!("{at}/{name}"))?;
            if let Some(part) = virtual_function.and_then(|name| name.parse::<Bdf>().ok()) {
                graph.stand(Thing::Function(part), Thing::Function(bdf));
                graph.label(Thing::Function(part), format!("virtual function {part}"));
            }
        }
    }
    for uuid in sysroot.list_if_present("/sys/bus/mdev/devices")? {
        let at = format!("/sys/bus/mdev/devices/{uuid}");
        let Some(path) = sysroot.canonical(&at)? else { continue };
        let device = Thing::Mediated(uuid);
        for owner in owners.of(&path) {
            graph.stand(device.clone(), owner);
        }
        if let Some(group) = sysroot.link_name(&format!("{at}/iommu_group"))? {
            graph.stand(Thing::Node(format!("/dev/vfio/{group}")), device);
        }
    }
    Ok(())
}

/// What the kernel itself does with a function: its console, its image after hibernation, memory, cryptography.
pub(super) fn kernel(
    sysroot: &Sysroot,
    owners: &Owners,
    graph: &mut Graph,
) -> Result<(), SysError> {
    consoles(sysroot, owners, graph)?;
    watchdogs(sysroot, owners, graph)?;
    memory(sysroot, owners, graph)?;
    crypto(sysroot, owners, graph)
}

/// A serial port that /proc/consoles lists: `ttyS4 -W- (EC p a) 4:68`.
fn consoles(sysroot: &Sysroot, owners: &Owners, graph: &mut Graph) -> Result<(), SysError> {
    let text = sysroot.read_if_present("/proc/consoles")?.unwrap_or_default();
    for name in text.lines().filter_map(|line| line.split_whitespace().next()) {
        if let Some(path) = sysroot.canonical(&format!("/sys/class/tty/{name}"))? {
            for owner in owners.of(&path) {
                graph.lose(owner, Loss::Console(name.to_owned()));
            }
        }
    }
    Ok(())
}

fn watchdogs(sysroot: &Sysroot, owners: &Owners, graph: &mut Graph) -> Result<(), SysError> {
    const CLASS: &str = "/sys/class/watchdog";
    for name in sysroot.list_if_present(CLASS)? {
        let state = sysroot.read_if_present(&format!("{CLASS}/{name}/state"))?;
        let path = sysroot.canonical(&format!("{CLASS}/{name}"))?;
        if let (Some("active"), Some(path)) = (state.as_deref(), path) {
            for owner in owners.of(&path) {
                graph.lose(owner, Loss::Watchdog(name.clone()));
            }
        }
    }
    Ok(())
}

/// Memory of CXL cards that the host has made a region of. A region's targets are decoders of endpoints, and an
/// endpoint's `uport` is the card's memory device.
fn memory(sysroot: &Sysroot, owners: &Owners, graph: &mut Graph) -> Result<(), SysError> {
    const CXL: &str = "/sys/bus/cxl/devices";
    for region in sysroot.list_if_present(CXL)? {
        let at = format!("{CXL}/{region}");
        if sysroot.read_if_present(&format!("{at}/commit"))?.as_deref() != Some("1") {
            continue;
        }
        let names = sysroot.list_if_present(&at)?;
        for target in names.iter().filter(|name| name.starts_with("target")) {
            let decoder = sysroot.read_if_present(&format!("{at}/{target}"))?.unwrap_or_default();
            let Some(decoder) = sysroot.canonical(&format!("{CXL}/{decoder}"))? else { continue };
            let Some(endpoint) = decoder.parent() else { continue };
            let port = format!("{}/uport", endpoint.to_string_lossy());
            if let Some(card) = sysroot.canonical(&port)? {
                for owner in owners.of(&card) {
                    graph.lose(owner, Loss::Memory(region.clone()));
                }
            }
        }
    }
    Ok(())
}

/// Drivers of accelerators, and the start of the names of the algorithms that they offer in /proc/crypto.
const ACCELERATORS: [(&str, &str); 3] = [("qat_", "qat"), ("4xxx", "qat"), ("hifn_795x", "hifn")];

/// The kernel counts the users of an algorithm: 1 is the list itself. Which of several cards serves them it does not
/// say, so all of them count.
fn crypto(sysroot: &Sysroot, owners: &Owners, graph: &mut Graph) -> Result<(), SysError> {
    let mut cards = Vec::new();
    for (place, bdf) in owners.places() {
        let driver = sysroot.link_name(&format!("{}/driver", place.to_string_lossy()))?;
        let known = |driver: &str| ACCELERATORS.iter().find(|(start, _)| driver.starts_with(start));
        if let Some((_, algorithms)) = driver.as_deref().and_then(known) {
            cards.push((bdf, *algorithms));
        }
    }
    if cards.is_empty() {
        return Ok(());
    }
    let text = sysroot.read_if_present("/proc/crypto")?.unwrap_or_default();
    for entry in text.split("\n\n") {
        let field = |name: &str| {
            let of = |line: &&str| line.split(':').next().is_some_and(|key| key.trim() == name);
            entry.lines().find(of)?.split_once(':').map(|(_, value)| value.trim())
        };
        let users = field("refcnt").and_then(|count| count.parse::<u32>().ok()).unwrap_or(0);
        let (Some(driver), true) = (field("driver"), users > 1) else { continue };
        for (bdf, algorithms) in &cards {
            if driver.starts_with(algorithms) {
                graph.lose(Thing::Function(*bdf), Loss::Crypto(driver.to_owned()));
            }
        }
    }
    Ok(())
}
