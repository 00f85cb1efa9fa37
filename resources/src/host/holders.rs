//! Who has a device node open: the walk over /proc/*/fd that `fuser` makes.

use super::{
    driver,
    pci::{self, HostFunction},
    sysroot::{SysError, Sysroot},
};

/// A process with the node open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process ID.
    pub pid: u32,
    /// Its name, 15 characters at most.
    pub name: String,
    /// Which node.
    pub node: String,
}

/// What the walk found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Holders {
    /// One entry a process and node.
    pub found: Vec<Holder>,
    /// Processes of other users that we were not allowed to look into.
    pub hidden: usize,
}

/// The processes that have a node open for which `wanted` says yes.
pub fn holders(sysroot: &Sysroot, wanted: impl Fn(&str) -> bool) -> Result<Holders, SysError> {
    let mut holders = Holders::default();
    for name in sysroot.list("/proc")? {
        let Ok(pid) = name.parse::<u32>() else { continue };
        let open = match sysroot.list(&format!("/proc/{pid}/fd")) {
            Ok(open) => open,
            // It ended since.
            Err(error) if error.is_absent() => continue,
            Err(_) => {
                holders.hidden += 1;
                continue;
            }
        };
        let mut nodes: Vec<String> = open
            .iter()
            // A descriptor closed since is as good as none.
            .filter_map(|fd| sysroot.link(&format!("/proc/{pid}/fd/{fd}")).ok().flatten())
            .filter_map(|target| target.to_str().map(str::to_owned))
            .filter(|target| wanted(target))
            .collect();
        nodes.sort();
        nodes.dedup();
        let name = sysroot.read(&format!("/proc/{pid}/comm")).unwrap_or_else(|_| "?".to_owned());
        holders.found.extend(nodes.into_iter().map(|node| Holder {
            pid,
            name: name.clone(),
            node,
        }));
    }
    holders.found.sort_by_key(|holder| holder.pid);
    Ok(holders)
}

/// The processes that have a node of this function open: the VFIO group's, and those of its host driver.
pub fn device_holders(sysroot: &Sysroot, function: &HostFunction) -> Result<Holders, SysError> {
    let nodes = device_nodes(sysroot, function)?;
    holders(sysroot, |node| nodes.iter().any(|known| known == node))
}

/// The nodes in /dev behind a function, as far as sysfs tells: VFIO, displays, sound, disks, NVIDIA.
pub fn device_nodes(sysroot: &Sysroot, function: &HostFunction) -> Result<Vec<String>, SysError> {
    let at = |name: &str| pci::path(function.bdf, name);
    let mut nodes = Vec::new();
    nodes.extend(function.group.map(|group| format!("/dev/vfio/{group}")));
    for name in sysroot.list_if_present(&at("vfio-dev"))? {
        nodes.push(format!("/dev/vfio/devices/{name}"));
    }
    for name in sysroot.list_if_present(&at("drm"))? {
        nodes.push(format!("/dev/dri/{name}"));
    }
    for name in sysroot.list_if_present(&at("sound"))? {
        // card1 has the nodes controlC1, pcmC1D0p and so on: list what is there.
        let Some(number) = name.strip_prefix("card") else { continue };
        let all = sysroot.list_if_present("/dev/snd")?;
        let is_of = |node: &&String| {
            let rest = node.split_once('C').map_or("", |(_, rest)| rest);
            rest.split(|c: char| !c.is_ascii_digit()).next() == Some(number)
        };
        nodes.extend(all.iter().filter(is_of).map(|node| format!("/dev/snd/{node}")));
    }
    for controller in sysroot.list_if_present(&at("nvme"))? {
        nodes.push(format!("/dev/{controller}"));
    }
    for disk in driver::disks(sysroot, function)? {
        nodes.push(format!("/dev/{disk}"));
    }
    match function.driver.as_deref() {
        Some("nvidia") => {
            let minor = nvidia_minor(sysroot, function)?;
            nodes.extend(minor.map(|minor| format!("/dev/nvidia{minor}")));
        }
        // One node for all GPUs that compute.
        Some("amdgpu") => nodes.push("/dev/kfd".to_owned()),
        _ => {}
    }
    Ok(nodes)
}

/// NVIDIA's driver counts its cards by itself, in a line `Device Minor: 0`.
fn nvidia_minor(sysroot: &Sysroot, function: &HostFunction) -> Result<Option<u32>, SysError> {
    let path = format!("/proc/driver/nvidia/gpus/{}/information", function.bdf);
    let text = sysroot.read_if_present(&path)?.unwrap_or_default();
    let value = text.lines().find_map(|line| line.strip_prefix("Device Minor:"));
    Ok(value.and_then(|value| value.trim().parse().ok()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Function, Tree};

    #[test]
    fn holders_finds_process_and_node_once() {
        let tree = Tree::new();
        for fd in [5, 9] {
            tree.link(&format!("/proc/4242/fd/{fd}"), "/dev/vfio/31");
        }
        tree.link("/proc/4242/fd/0", "/dev/null");
        tree.file("/proc/4242/comm", "qemu-system-x86\n");
        tree.link("/proc/77/fd/0", "/dev/vfio/310");
        tree.file("/proc/cmdline", "quiet");
        let found = holders(&tree.sysroot(), |node| node == "/dev/vfio/31").unwrap();
        let (name, node) = ("qemu-system-x86".to_owned(), "/dev/vfio/31".to_owned());
        assert_eq!(found, Holders { found: vec![Holder { pid: 4242, name, node }], hidden: 0 });
    }

    #[test]
    fn holders_process_without_descriptors_left_is_skipped() {
        let tree = Tree::new();
        tree.directory("/proc/5");
        assert_eq!(holders(&tree.sysroot(), |_| true).unwrap(), Holders::default());
    }

    #[test]
    fn device_holders_of_a_graphics_card_are_those_of_its_own_nodes() {
        let tree = Tree::new();
        tree.function(&Function { driver: Some("nvidia"), group: Some(4), ..Function::default() });
        let device = "/sys/bus/pci/devices/0000:00:02.0";
        tree.directory(&format!("{device}/drm/card1"));
        tree.directory(&format!("{device}/sound/card1"));
        for node in ["controlC1", "pcmC1D0p", "pcmC10D0p", "timer"] {
            tree.file(&format!("/dev/snd/{node}"), "");
        }
        tree.file(
            "/proc/driver/nvidia/gpus/0000:00:02.0/information",
            "Model: \t GPU\nDevice Minor: \t 3\n",
        );
        for (pid, node) in [
            (10, "/dev/nvidia3"),
            (11, "/dev/nvidia0"),
            (12, "/dev/dri/card1"),
            (13, "/dev/snd/pcmC1D0p"),
            (14, "/dev/snd/pcmC10D0p"),
        ] {
            tree.link(&format!("/proc/{pid}/fd/3"), node);
        }
        let function = pci::find(&tree.sysroot(), "00:02.0".parse().unwrap()).unwrap().unwrap();
        let found = device_holders(&tree.sysroot(), &function).unwrap().found;
        assert_eq!(found.iter().map(|holder| holder.pid).collect::<Vec<_>>(), [10, 12, 13]);
    }
}
