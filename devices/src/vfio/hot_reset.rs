//! Resets for functions that have none of their own: the whole slot or bus at once (`VFIO_DEVICE_PCI_HOT_RESET`).
//!
//! The kernel does it only for a process that holds the group of every function it hits, and so do we before we ask:
//! a companion function that stays on the host would lose its state.

use std::{collections::BTreeSet, fs, io, os::fd::RawFd, path::Path, sync::Arc};

use strait_resources::bdf::Bdf;

use super::{backend::VfioBackend, ioctl::Affected, kernel::KernelDevice};

/// How the devices of a machine are brought back to their power-on state where they have no function reset.
#[derive(Default)]
pub struct ResetPlan {
    /// Resets that together reach every function that needs one and can have one.
    pub hot: Vec<HotReset>,
    /// Functions that keep their state, with the reason.
    pub without: Vec<(Bdf, NoReset)>,
}

/// One reset of a slot or bus.
pub struct HotReset {
    device: Arc<KernelDevice>,
    set: ResetSet,
}

/// What one reset hits.
#[derive(Clone, Debug, PartialEq, Eq)]
struct ResetSet {
    functions: BTreeSet<Bdf>,
    groups: BTreeSet<u32>,
}

/// Why a function without a reset of its own cannot be reset at all.
#[derive(Debug, thiserror::Error)]
pub enum NoReset {
    /// The kernel knows no way for its slot or bus.
    #[error("it has no function reset, and neither slot nor bus can be reset")]
    NoWay(#[source] io::Error),
    /// Somebody else would be reset too.
    #[error("it has no function reset, and a reset of its bus would also hit {}", list(.0))]
    Others(Vec<Bdf>),
}

impl ResetPlan {
    /// Looks at every device that is passed. Asks the kernel only about those without a function reset.
    pub fn new(devices: &[Arc<KernelDevice>]) -> Self {
        let groups: BTreeSet<u32> = devices.iter().map(|device| device.group()).collect();
        let mut plan = Self::default();
        for device in devices.iter().filter(|device| !device.can_reset()) {
            if plan.hot.iter().any(|reset| reset.set.functions.contains(&device.bdf())) {
                continue;
            }
            match ResetSet::new(device.hot_reset_info(), &groups) {
                Ok(set) => plan.hot.push(HotReset { device: Arc::clone(device), set }),
                Err(reason) => plan.without.push((device.bdf(), reason)),
            }
        }
        plan
    }
}

impl HotReset {
    /// Every function that it resets, those with a reset of their own included.
    pub fn functions(&self) -> impl Iterator<Item = Bdf> {
        self.set.functions.iter().copied()
    }

    /// Resets. No function may have interrupts connected: the kernel restores configuration space afterwards, but
    /// knows nothing of what a device signals meanwhile. A guest must not run.
    pub fn perform(&self) -> io::Result<()> {
        let open = open_groups(Path::new("/proc/self/fd"))?;
        let find = |group: &u32| {
            let found = open.iter().find(|(number, _)| number == group).map(|(_, fd)| *fd);
            found.ok_or_else(|| io::Error::other(format!("/dev/vfio/{group} is not open here")))
        };
        let groups: Vec<RawFd> = self.set.groups.iter().map(find).collect::<Result<_, _>>()?;
        self.device.hot_reset(&groups)
    }
}

impl ResetSet {
    /// What the kernel says is hit, when all of it is in `ours`: groups that we hold.
    fn new(affected: io::Result<Vec<Affected>>, ours: &BTreeSet<u32>) -> Result<Self, NoReset> {
        let affected = affected.map_err(NoReset::NoWay)?;
        let others: Vec<Bdf> = affected
            .iter()
            .filter(|function| !ours.contains(&function.group))
            .map(|function| function.bdf)
            .collect();
        if !others.is_empty() {
            return Err(NoReset::Others(others));
        }
        Ok(Self {
            functions: affected.iter().map(|function| function.bdf).collect(),
            groups: affected.iter().map(|function| function.group).collect(),
        })
    }
}

/// The groups that this process has open, with their descriptors: vfio-ioctls keeps them to itself, and a group cannot
/// be opened twice. They stay open as long as a device of theirs does.
fn open_groups(descriptors: &Path) -> io::Result<Vec<(u32, RawFd)>> {
    let mut open = Vec::new();
    for entry in fs::read_dir(descriptors)? {
        let entry = entry?;
        // A descriptor that another thread has closed since is no group of ours.
        let target = fs::read_link(entry.path()).unwrap_or_default();
        let fd = entry.file_name().to_str().and_then(|name| name.parse().ok());
        open.extend(group_number(&target).zip(fd));
    }
    Ok(open)
}

/// 12 for `/dev/vfio/12`.
fn group_number(node: &Path) -> Option<u32> {
    node.strip_prefix("/dev/vfio").ok()?.to_str()?.parse().ok()
}

fn list(functions: &[Bdf]) -> String {
    functions.iter().map(Bdf::to_string).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn affected(functions: &[(&str, u32)]) -> io::Result<Vec<Affected>> {
        let function =
            |(bdf, group): &(&str, u32)| Affected { bdf: bdf.parse().unwrap(), group: *group };
        Ok(functions.iter().map(function).collect())
    }

    #[test]
    fn reset_set_with_every_group_ours_takes_each_group_once() {
        let hit = affected(&[("3b:00.0", 17), ("3b:00.1", 17), ("3b:00.2", 18)]);
        let set = ResetSet::new(hit, &BTreeSet::from([16, 17, 18])).unwrap();
        assert_eq!(set.groups, BTreeSet::from([17, 18]));
        assert_eq!(set.functions.len(), 3);
    }

    #[test]
    fn reset_set_with_a_foreign_function_names_it() {
        let hit = affected(&[("3b:00.0", 17), ("3c:00.0", 20)]);
        let reason = ResetSet::new(hit, &BTreeSet::from([17])).unwrap_err();
        assert!(reason.to_string().ends_with("also hit 0000:3c:00.0"), "{reason}");
    }

    #[test]
    fn reset_set_without_a_bus_reset_keeps_the_errno() {
        use std::error::Error as _;
        let none = Err(io::Error::from_raw_os_error(libc::ENODEV));
        let reason = ResetSet::new(none, &BTreeSet::from([17])).unwrap_err();
        assert!(reason.source().is_some_and(|source| source.to_string().contains("os error 19")));
    }

    #[test]
    fn open_groups_are_those_with_a_numbered_node() {
        let descriptors = tempfile::tempdir().unwrap();
        for (fd, target) in [
            ("3", "/dev/vfio/vfio"),
            ("4", "/dev/vfio/17"),
            ("5", "/dev/vfio/devices/vfio0"),
            ("6", "anon_inode:[vfio-device]"),
            ("7", "/dev/vfio/4"),
        ] {
            symlink(target, descriptors.path().join(fd)).unwrap();
        }
        let mut open = open_groups(descriptors.path()).unwrap();
        open.sort_unstable();
        assert_eq!(open, [(4, 7), (17, 4)]);
    }
}
