//! Block devices: whose they are, and which volume is made of which.
//!
//! The kernel shows partitions as directories, volumes (LVM, LUKS, multipath, md, bcache, drbd) as `holders` of what
//! they are made of and that as `slaves` of them. Loop and zram devices have neither, only the name of their file.

use std::{collections::BTreeMap, path::Path};

use super::{
    super::sysroot::{SysError, Sysroot},
    Loss,
    functions::Owners,
    graph::{Graph, Thing},
};

/// Every block device of the host by its kernel name.
#[derive(Debug, Default)]
pub(super) struct Blocks {
    /// `major:minor` by name.
    numbers: BTreeMap<String, String>,
    names: BTreeMap<String, String>,
    /// Volumes of the device mapper by the name that they have in /dev/mapper.
    mapped: BTreeMap<String, String>,
    /// UUIDs of the device mapper, `LVM-...` or `CRYPT-...`, by kernel name.
    uuids: BTreeMap<String, String>,
    /// Those with partitions.
    parted: Vec<String>,
}

impl Blocks {
    /// Reads them all and puts them into the graph, on the functions that they are behind.
    pub(super) fn read(
        sysroot: &Sysroot,
        owners: &Owners,
        graph: &mut Graph,
    ) -> Result<Self, SysError> {
        let mut blocks = Self::default();
        for disk in sysroot.list_if_present("/sys/block")? {
            let Some(path) = sysroot.canonical(&format!("/sys/block/{disk}"))? else { continue };
            for owner in disk_owners(sysroot, owners, &path)? {
                graph.stand(Thing::Block(disk.clone()), owner);
            }
            blocks.add(sysroot, graph, &disk, &path)?;
        }
        Ok(blocks)
    }

    fn add(
        &mut self,
        sysroot: &Sysroot,
        graph: &mut Graph,
        disk: &str,
        path: &Path,
    ) -> Result<(), SysError> {
        let at = path.to_string_lossy();
        self.one(sysroot, graph, disk, &at)?;
        for child in sysroot.list_if_present(&at)? {
            let part = format!("{at}/{child}");
            if sysroot.exists(&format!("{part}/partition")) {
                graph.stand(Thing::Block(child.clone()), Thing::Block(disk.to_owned()));
                self.one(sysroot, graph, &child, &part)?;
                self.parted.push(disk.to_owned());
            }
        }
        Ok(())
    }

    fn one(
        &mut self,
        sysroot: &Sysroot,
        graph: &mut Graph,
        name: &str,
        at: &str,
    ) -> Result<(), SysError> {
        if let Some(number) = sysroot.read_if_present(&format!("{at}/dev"))? {
            self.names.insert(number.clone(), name.to_owned());
            self.numbers.insert(name.to_owned(), number);
        }
        if let Some(mapped) = sysroot.read_if_present(&format!("{at}/dm/name"))? {
            graph.label(Thing::Block(name.to_owned()), format!("{name} ({mapped})"));
            self.mapped.insert(mapped, name.to_owned());
        }
        if let Some(uuid) = sysroot.read_if_present(&format!("{at}/dm/uuid"))? {
            self.uuids.insert(name.to_owned(), uuid);
        }
        for upper in sysroot.list_if_present(&format!("{at}/holders"))? {
            volume(graph, &upper, name);
        }
        for lower in sysroot.list_if_present(&format!("{at}/slaves"))? {
            volume(graph, name, &lower);
        }
        Ok(())
    }

    /// `major:minor` of a block device.
    pub(super) fn number(&self, name: &str) -> Option<&str> {
        self.numbers.get(name).map(String::as_str)
    }

    /// The block device with this number.
    pub(super) fn by_number(&self, number: &str) -> Option<&str> {
        self.names.get(number).map(String::as_str)
    }

    /// All names.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.numbers.keys().map(String::as_str)
    }

    /// Has it partitions?
    pub(super) fn is_parted(&self, name: &str) -> bool {
        self.parted.iter().any(|parted| parted == name)
    }

    /// Active volumes of LVM: kernel name and `VG-LV` as the device mapper writes it.
    pub(super) fn volumes(&self) -> impl Iterator<Item = (&str, &str)> {
        let is_lvm = |name: &str| self.uuids.get(name).is_some_and(|uuid| uuid.starts_with("LVM-"));
        let volumes = self.mapped.iter().filter(move |(_, name)| is_lvm(name));
        volumes.map(|(mapped, name)| (name.as_str(), mapped.as_str()))
    }

    /// The block device behind a path of /dev, through links and the names that the device mapper gives.
    pub(super) fn resolve(&self, sysroot: &Sysroot, path: &str) -> Option<&str> {
        let name = path.strip_prefix("/dev/")?;
        // The kernel writes a slash in a name as '!': cciss!c0d0.
        let known = |name: &str| {
            let (name, _) = self.numbers.get_key_value(&name.replace('/', "!"))?;
            Some(name.as_str())
        };
        let mapped = |name: &str| self.mapped.get(name).map(String::as_str);
        known(name)
            .or_else(|| mapped(name.strip_prefix("mapper/")?))
            .or_else(|| {
                // LVM's /dev/VG/LV, where the device mapper doubles the hyphens of both.
                let (group, volume) = name.split_once('/')?;
                mapped(&format!("{}-{}", doubled(group), doubled(volume)))
            })
            .or_else(|| {
                let real = sysroot.canonical(path).ok()??;
                known(real.to_str()?.strip_prefix("/dev/")?)
            })
            .or_else(|| self.by_number(sysroot.number_at(path)?.strip_prefix('b')?))
    }
}

/// A name as LVM writes it before it joins two with a hyphen.
pub(super) fn doubled(name: &str) -> String {
    name.replace('-', "--")
}

/// `upper` is a volume made of `lower`, and there only while somebody wants it.
fn volume(graph: &mut Graph, upper: &str, lower: &str) {
    let upper = Thing::Block(upper.to_owned());
    graph.stand(upper.clone(), Thing::Block(lower.to_owned()));
    graph.lose(upper, Loss::Active);
}

/// The functions that a disk is behind. NVMe with multipath hangs its disks on a subsystem, which links to its
/// controllers; any of them may be the way to it.
fn disk_owners(sysroot: &Sysroot, owners: &Owners, path: &Path) -> Result<Vec<Thing>, SysError> {
    let mut found = owners.of(path);
    let subsystem = path.parent().filter(|parent| {
        parent.parent().and_then(Path::file_name).is_some_and(|name| name == "nvme-subsystem")
    });
    if let Some(subsystem) = subsystem {
        let subsystem = subsystem.to_string_lossy();
        for name in sysroot.list_if_present(&subsystem)? {
            if let Some(controller) = sysroot.canonical(&format!("{subsystem}/{name}"))? {
                found.extend(owners.of(&controller));
            }
        }
    }
    Ok(found)
}
