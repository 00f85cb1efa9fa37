//! Device nodes: everything in sysfs that has one, and whose it is.

use std::path::{Path, PathBuf};

use super::{
    super::{
        holders::{DeviceNode, OpenFiles},
        sysroot::{SysError, Sysroot},
    },
    Loss,
    blocks::Blocks,
    functions::Owners,
    graph::{Graph, Thing},
    loss::Held,
    nets::Nets,
};

/// Puts nodes that programs have open on what they lead to, and the programs on them. A node that nobody has open is of
/// no interest.
pub(super) fn stand(
    sysroot: &Sysroot,
    (owners, blocks, nets): (&Owners, &Blocks, &Nets),
    files: &OpenFiles,
    graph: &mut Graph,
) -> Result<(), SysError> {
    let mut nodes: Vec<(DeviceNode, Vec<Thing>)> = Vec::new();
    for name in blocks.names() {
        let number = blocks.number(name).map(|number| format!("b{number}"));
        let node = DeviceNode { path: format!("/dev/{}", name.replace('!', "/")), number };
        nodes.push((node, vec![Thing::Block(name.to_owned())]));
    }
    for (node, place) in in_sysfs(sysroot, owners)? {
        let mut below = owners.of(&place);
        let inside = nets.places().filter(|(_, of)| place.starts_with(of));
        below.extend(inside.map(|(name, _)| Thing::Net(name.to_owned())));
        if !below.is_empty() {
            nodes.push((node, below));
        }
    }
    for (place, bdf) in owners.places() {
        let at = place.to_string_lossy();
        let below = || vec![Thing::Function(bdf)];
        match sysroot.link_name(&format!("{at}/driver"))?.as_deref() {
            Some("nvidia") => {
                nodes.extend(nvidia(sysroot, bdf)?.map(|node| (node, below())));
            }
            // One node for all GPUs that compute.
            Some("amdgpu") => nodes.push((kfd(sysroot)?, below())),
            _ => {}
        }
    }
    for node in groups(sysroot)? {
        let thing = Thing::Node(node.path.clone());
        nodes.push((node, vec![thing]));
    }
    for (node, below) in nodes {
        for open in files.of(&node) {
            let held = Held { pid: open.pid, name: open.name.clone(), node: open.path.clone() };
            let thing = Thing::Node(open.path.clone());
            for lower in &below {
                match lower {
                    // Disks and groups have names in the chain already.
                    Thing::Block(_) | Thing::Node(_) => {
                        graph.lose(lower.clone(), Loss::Held(held.clone()));
                    }
                    _ => {
                        // The node's own name may mean another device in another namespace.
                        let own = Thing::Node(node.path.clone());
                        let seen = if open.number == node.number { own } else { thing.clone() };
                        graph.stand(seen.clone(), lower.clone());
                        graph.lose(seen, Loss::Held(held.clone()));
                    }
                }
            }
        }
    }
    Ok(())
}

/// Every character device's node with its place in sysfs. The kernel lists them all by number; a directory that stands
/// for a host may not have that list, and is walked below each function instead.
fn in_sysfs(sysroot: &Sysroot, owners: &Owners) -> Result<Vec<(DeviceNode, PathBuf)>, SysError> {
    const BY_NUMBER: &str = "/sys/dev/char";
    let mut found = Vec::new();
    for number in sysroot.list_if_present(BY_NUMBER)? {
        let Some(place) = sysroot.canonical(&format!("{BY_NUMBER}/{number}"))? else { continue };
        found.push((node_at(sysroot, &place, format!("c{number}"))?, place));
    }
    if found.is_empty() {
        for (place, _) in owners.places() {
            below(sysroot, place, &mut found)?;
        }
    }
    Ok(found)
}

/// Walks the directories of a device for those with a node that is not a disk's.
fn below(
    sysroot: &Sysroot,
    device: &Path,
    found: &mut Vec<(DeviceNode, PathBuf)>,
) -> Result<(), SysError> {
    /// A USB controller with every port in use has some hundreds.
    const MAX_DIRECTORIES: usize = 8192;
    let mut open = vec![device.to_path_buf()];
    for _ in 0..MAX_DIRECTORIES {
        let Some(place) = open.pop() else { break };
        let at = place.to_string_lossy().into_owned();
        let is_disk = place.components().any(|part| part.as_os_str() == "block");
        if let Some(number) = sysroot.read_if_present(&format!("{at}/dev"))?.filter(|_| !is_disk) {
            found.push((node_at(sysroot, &place, format!("c{number}"))?, place.clone()));
        }
        match sysroot.directories(&at) {
            Ok(names) => open.extend(names.iter().map(|name| place.join(name))),
            // It left while we walked.
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The node that `uevent` names. On this host numbers tell, and the file is not read: some kernels take the device's
/// lock for that, and a driver that hangs keeps it.
fn node_at(sysroot: &Sysroot, place: &Path, number: String) -> Result<DeviceNode, SysError> {
    let at = place.to_string_lossy();
    let uevent = match sysroot.is_host() {
        true => String::new(),
        false => sysroot.read_if_present(&format!("{at}/uevent"))?.unwrap_or_default(),
    };
    let named = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    let name = named.map_or_else(|| usual_name(place), str::to_owned);
    Ok(DeviceNode { path: format!("/dev/{name}"), number: Some(number) })
}

/// Where udev puts a node, as far as its place in sysfs tells.
fn usual_name(place: &Path) -> String {
    const DIRECTORIES: [(&str, &str); 5] = [
        ("drm", "dri"),
        ("sound", "snd"),
        ("input", "input"),
        ("infiniband_verbs", "infiniband"),
        ("vfio-dev", "vfio/devices"),
    ];
    let name = place.file_name().unwrap_or_default().to_string_lossy();
    let within = |class: &str| place.components().any(|part| part.as_os_str() == class);
    match DIRECTORIES.iter().find(|(class, _)| within(class)) {
        Some((_, directory)) => format!("{directory}/{name}"),
        None => name.into_owned(),
    }
}

/// NVIDIA's driver counts its cards by itself, in a line `Device Minor: 0`, and sysfs does not know its nodes.
fn nvidia(sysroot: &Sysroot, bdf: crate::bdf::Bdf) -> Result<Option<DeviceNode>, SysError> {
    const MAJOR: u32 = 195;
    let path = format!("/proc/driver/nvidia/gpus/{bdf}/information");
    let text = sysroot.read_if_present(&path)?.unwrap_or_default();
    let minor = text.lines().find_map(|line| line.strip_prefix("Device Minor:"));
    let minor = minor.and_then(|minor| minor.trim().parse::<u32>().ok());
    Ok(minor.map(|minor| DeviceNode {
        path: format!("/dev/nvidia{minor}"),
        number: Some(format!("c{MAJOR}:{minor}")),
    }))
}

fn kfd(sysroot: &Sysroot) -> Result<DeviceNode, SysError> {
    let number = sysroot.read_if_present("/sys/class/kfd/kfd/dev")?;
    Ok(DeviceNode {
        path: "/dev/kfd".to_owned(),
        number: number.map(|number| format!("c{number}")),
    })
}

/// VFIO's nodes of groups.
fn groups(sysroot: &Sysroot) -> Result<Vec<DeviceNode>, SysError> {
    let groups = sysroot.list_if_present("/sys/kernel/iommu_groups")?;
    groups.into_iter().map(|group| group_node(sysroot, &group)).collect()
}

/// VFIO's node of a group, with its number while there is one.
pub(in crate::host) fn group_node(sysroot: &Sysroot, group: &str) -> Result<DeviceNode, SysError> {
    let number = sysroot.read_if_present(&format!("/sys/class/vfio/{group}/dev"))?;
    let number = number.map(|number| format!("c{number}"));
    Ok(DeviceNode { path: format!("/dev/vfio/{group}"), number })
}
