//! What a device does for the host right now, that is, what would be lost by taking it away.

use std::{
    fmt,
    net::IpAddr,
    path::{Path, PathBuf},
};

use super::{
    pci::{self, HostFunction},
    sysroot::{SysError, Sysroot},
};
use crate::bdf::Bdf;

/// Something the host would miss.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Use {
    /// A mounted file system is on it.
    Mount {
        /// Disk: `nvme0n1`.
        disk: String,
        /// Where it is mounted.
        at: String,
    },
    /// The host swaps to it.
    Swap {
        /// Disk.
        disk: String,
    },
    /// The default route goes through it.
    DefaultRoute {
        /// Interface: `eno1`.
        interface: String,
    },
    /// The firmware and the host's console draw on it.
    BootDisplay,
    /// Somebody is logged in through it, perhaps the user.
    Session {
        /// Interface.
        interface: String,
        /// Where they are.
        peer: IpAddr,
    },
    /// strait's program or its current directory is on it.
    Own {
        /// Disk.
        disk: String,
    },
    /// The kernel keeps it for itself: a mount that cannot be seen from here, RAID, a volume group.
    Claimed {
        /// Disk.
        disk: String,
    },
}

impl fmt::Display for Use {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount { disk, at } => write!(f, "disk {disk} is mounted on {at}"),
            Self::Swap { disk } => write!(f, "disk {disk} is in use as swap"),
            Self::DefaultRoute { interface } => {
                write!(f, "the host's default route goes through {interface}")
            }
            Self::BootDisplay => f.write_str("the host's console is on this display"),
            Self::Session { interface, peer } => {
                write!(f, "an SSH session with {peer} goes through {interface}")
            }
            Self::Own { disk } => {
                write!(f, "strait's own program or current directory is on disk {disk}")
            }
            Self::Claimed { disk } => {
                write!(f, "disk {disk} is claimed: a mount elsewhere, RAID or a volume group")
            }
        }
    }
}

/// What the host would miss without this function.
pub fn uses(sysroot: &Sysroot, function: &HostFunction) -> Result<Vec<Use>, SysError> {
    let Some(device) = sysroot.canonical(&format!("{}/{}", pci::DEVICES, function.bdf))? else {
        return Ok(Vec::new());
    };
    let mut uses = disk_uses(sysroot, &device)?;
    uses.extend(network_uses(sysroot, &device)?);
    if function.boot_vga == Some(true) && !function.is_on_vfio() {
        uses.push(Use::BootDisplay);
    }
    uses.sort();
    uses.dedup();
    Ok(uses)
}

/// The lines that give a function to vfio-pci: no other function with the same IDs is touched, and nothing
/// has to be undone in a configuration file.
pub fn bind_commands(bdf: Bdf, driver: Option<&str>) -> Vec<String> {
    let mut lines = vec![
        "modprobe vfio-pci".to_owned(),
        format!("echo vfio-pci > {}", pci::path(bdf, "driver_override")),
    ];
    if driver.is_some() {
        lines.push(format!("echo {bdf} > {}", pci::path(bdf, "driver/unbind")));
    }
    lines.push(format!("echo {bdf} > /sys/bus/pci/drivers_probe"));
    lines
}

/// File systems and swap on disks behind the device, also through partitions, LVM, RAID and encryption.
fn disk_uses(sysroot: &Sysroot, device: &Path) -> Result<Vec<Use>, SysError> {
    let mut uses = Vec::new();
    let disks = disks_behind(sysroot, device)?;
    if disks.is_empty() {
        return Ok(uses);
    }
    let mounts = sysroot.read_if_present("/proc/self/mountinfo")?.unwrap_or_default();
    let swaps = sysroot.read_if_present("/proc/swaps")?.unwrap_or_default();
    for disk in disks {
        for block in stacked(sysroot, &disk)? {
            let node = format!("/dev/{}", block.name);
            // A device-mapper volume is mounted by another name, btrfs under a number of its own.
            let is_block = |mount: &Mount<'_>| mount.number == block.number || mount.source == node;
            uses.extend(
                mounts
                    .lines()
                    .filter_map(mount)
                    .filter(is_block)
                    .map(|mount| Use::Mount { disk: disk.clone(), at: mount.point.to_owned() }),
            );
            let swap = |line: &str| line.split_whitespace().next() == Some(node.as_str());
            uses.extend(swaps.lines().any(swap).then(|| Use::Swap { disk: disk.clone() }));
        }
    }
    Ok(uses)
}

/// The disks behind a function.
pub(super) fn disks(sysroot: &Sysroot, function: &HostFunction) -> Result<Vec<String>, SysError> {
    let Some(device) = sysroot.canonical(&format!("{}/{}", pci::DEVICES, function.bdf))? else {
        return Ok(Vec::new());
    };
    let mut disks = Vec::new();
    for disk in sysroot.list_if_present("/sys/block")? {
        if disk_is_behind(sysroot, &disk, &device)? {
            disks.push(disk);
        }
    }
    Ok(disks)
}

/// The disks behind a device.
pub(super) fn disks_behind(sysroot: &Sysroot, device: &Path) -> Result<Vec<String>, SysError> {
    let mut found = Vec::new();
    for disk in sysroot.list_if_present("/sys/block")? {
        if disk_is_behind(sysroot, &disk, device)? {
            found.push(disk);
        }
    }
    Ok(found)
}

fn disk_is_behind(sysroot: &Sysroot, disk: &str, device: &Path) -> Result<bool, SysError> {
    let Some(path) = sysroot.canonical(&format!("/sys/block/{disk}"))? else { return Ok(false) };
    if path.starts_with(device) {
        return Ok(true);
    }
    // NVMe with multipath hangs its disks on a subsystem, which links to its controllers.
    let Some(subsystem) = path.parent().filter(|path| {
        path.parent().and_then(Path::file_name).is_some_and(|name| name == "nvme-subsystem")
    }) else {
        return Ok(false);
    };
    let subsystem = subsystem.to_string_lossy();
    for name in sysroot.list(&subsystem)? {
        let controller = sysroot.canonical(&format!("{subsystem}/{name}"))?;
        if controller.is_some_and(|path| path.starts_with(device)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A block device: kernel name and `major:minor`.
pub(super) struct Block {
    pub(super) name: String,
    pub(super) number: String,
}

/// A disk, its partitions, and what is stacked on them.
pub(super) fn stacked(sysroot: &Sysroot, disk: &str) -> Result<Vec<Block>, SysError> {
    /// Disk, partition, RAID, encryption, LVM, and some to spare.
    const MAX_DEPTH: usize = 8;
    let mut blocks = Vec::new();
    let mut level = vec![(disk.to_owned(), PathBuf::from("/sys/block").join(disk))];
    for _ in 0..MAX_DEPTH {
        let mut above = Vec::new();
        for (name, path) in level {
            let path = path.to_string_lossy();
            let Some(number) = sysroot.read_if_present(&format!("{path}/dev"))? else { continue };
            for child in sysroot.list(&path)? {
                if sysroot.exists(&format!("{path}/{child}/partition")) {
                    let at = PathBuf::from(format!("{path}/{child}"));
                    above.push((child, at));
                }
            }
            for holder in sysroot.list_if_present(&format!("{path}/holders"))? {
                let at = PathBuf::from("/sys/block").join(&holder);
                above.push((holder, at));
            }
            blocks.push(Block { name, number });
        }
        level = above;
    }
    Ok(blocks)
}

struct Mount<'a> {
    number: &'a str,
    point: &'a str,
    source: &'a str,
}

/// proc_pid_mountinfo(5): "36 35 98:0 /root /mount/point options tags - type source options".
fn mount(line: &str) -> Option<Mount<'_>> {
    let mut words = line.split(' ');
    let (number, point) = (words.nth(2)?, words.nth(1)?);
    let source = words.skip_while(|word| *word != "-").nth(2)?;
    Some(Mount { number, point, source })
}

fn network_uses(sysroot: &Sysroot, device: &Path) -> Result<Vec<Use>, SysError> {
    let defaults = default_interfaces(sysroot)?;
    let carries = interfaces(sysroot, device)?;
    let carries = carries.into_iter().filter(|interface| defaults.contains(interface));
    Ok(carries.map(|interface| Use::DefaultRoute { interface }).collect())
}

/// The device's network interfaces, and what is made of them: a bridge, bond or VLAN over one carries its routes
/// under a name of its own.
pub(super) fn interfaces(sysroot: &Sysroot, device: &Path) -> Result<Vec<String>, SysError> {
    const NET: &str = "/sys/class/net";
    let mut found = Vec::new();
    for interface in sysroot.list_if_present(NET)? {
        let path = sysroot.canonical(&format!("{NET}/{interface}"))?;
        if path.is_some_and(|path| path.starts_with(device)) {
            found.push(interface);
        }
    }
    let mut next = 0;
    while let Some(interface) = found.get(next).cloned() {
        next += 1;
        for name in sysroot.list_if_present(&format!("{NET}/{interface}"))? {
            if let Some(upper) = name.strip_prefix("upper_")
                && found.iter().all(|known| known != upper)
            {
                found.push(upper.to_owned());
            }
        }
    }
    Ok(found)
}

/// Interfaces of the IPv4 and IPv6 default routes.
fn default_interfaces(sysroot: &Sysroot) -> Result<Vec<String>, SysError> {
    let mut found = Vec::new();
    let v4 = sysroot.read_if_present("/proc/net/route")?.unwrap_or_default();
    for line in v4.lines().skip(1) {
        // Iface Destination Gateway Flags RefCnt Use Metric Mask ...
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [interface, "00000000", _, _, _, _, _, "00000000", ..] = words.as_slice() {
            found.push((*interface).to_owned());
        }
    }
    let v6 = sysroot.read_if_present("/proc/net/ipv6_route")?.unwrap_or_default();
    for line in v6.lines() {
        // destination prefix-length source prefix-length next-hop metric ... interface; lo has a reject route.
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [destination, "00", .., interface] = words.as_slice()
            && destination.bytes().all(|digit| digit == b'0')
            && *interface != "lo"
        {
            found.push((*interface).to_owned());
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Function, Tree};

    const DEVICE: &str = "/sys/bus/pci/devices/0000:00:02.0";

    fn uses_of(tree: &Tree) -> Vec<Use> {
        let bdf = "0000:00:02.0".parse().unwrap();
        let function = pci::find(&tree.sysroot(), bdf).unwrap().unwrap();
        uses(&tree.sysroot(), &function).unwrap()
    }

    fn with_function() -> Tree {
        let tree = Tree::new();
        tree.function(&Function { driver: Some("nvme"), ..Function::default() });
        tree
    }

    fn mount_of(disk: &str, at: &str) -> Use {
        Use::Mount { disk: disk.to_owned(), at: at.to_owned() }
    }

    #[test]
    fn uses_mounted_partition_is_found_by_number() {
        let tree = with_function();
        tree.file(&format!("{DEVICE}/block/sda/dev"), "8:0\n");
        tree.file(&format!("{DEVICE}/block/sda/sda1/dev"), "8:1\n");
        tree.file(&format!("{DEVICE}/block/sda/sda1/partition"), "1\n");
        tree.link("/sys/block/sda", "../bus/pci/devices/0000:00:02.0/block/sda");
        tree.file(
            "/proc/self/mountinfo",
            "25 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n",
        );
        assert_eq!(uses_of(&tree), [mount_of("sda", "/")]);
    }

    #[test]
    fn uses_disk_of_another_device_is_not_blamed() {
        let tree = with_function();
        tree.function(&Function { bdf: "0000:00:03.0", ..Function::default() });
        tree.file("/sys/bus/pci/devices/0000:00:03.0/block/sda/dev", "8:0\n");
        tree.link("/sys/block/sda", "../bus/pci/devices/0000:00:03.0/block/sda");
        tree.file("/proc/self/mountinfo", "25 1 8:0 / / rw - ext4 /dev/sda rw\n");
        assert_eq!(uses_of(&tree), []);
    }

    #[test]
    fn uses_volume_on_an_nvme_with_multipath_is_found() {
        let tree = with_function();
        let subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0";
        tree.file(&format!("{DEVICE}/nvme/nvme0/address"), "0000:00:02.0\n");
        tree.link(
            &format!("{subsystem}/nvme0"),
            "../../../../bus/pci/devices/0000:00:02.0/nvme/nvme0",
        );
        tree.file(&format!("{subsystem}/nvme0n1/dev"), "259:0\n");
        tree.link("/sys/block/nvme0n1", "../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1");
        tree.directory(&format!("{subsystem}/nvme0n1/holders/dm-0"));
        tree.file("/sys/block/dm-0/dev", "254:0\n");
        tree.file("/proc/self/mountinfo", "25 1 254:0 / /home rw - ext4 /dev/mapper/vg-home rw\n");
        assert_eq!(uses_of(&tree), [mount_of("nvme0n1", "/home")]);
    }

    #[test]
    fn uses_btrfs_is_found_by_its_source_and_swap_by_its_node() {
        let tree = with_function();
        tree.file(&format!("{DEVICE}/block/vda/dev"), "252:0\n");
        tree.link("/sys/block/vda", "../bus/pci/devices/0000:00:02.0/block/vda");
        tree.file("/proc/self/mountinfo", "25 1 0:22 /sub /data rw - btrfs /dev/vda rw\n");
        tree.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/vda partition 1 0 -2\n");
        assert_eq!(
            uses_of(&tree),
            [mount_of("vda", "/data"), Use::Swap { disk: "vda".to_owned() }]
        );
    }

    #[test]
    fn uses_default_route_through_a_bridge_over_the_nic_is_found() {
        let tree = with_function();
        tree.directory(&format!("{DEVICE}/net/eno1/upper_br0"));
        tree.link("/sys/class/net/eno1", "../../bus/pci/devices/0000:00:02.0/net/eno1");
        tree.file(
            "/proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             br0\t00000000\t0100A8C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             eno1\t0000A8C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n",
        );
        assert_eq!(uses_of(&tree), [Use::DefaultRoute { interface: "br0".to_owned() }]);
    }

    #[test]
    fn uses_ipv6_default_route_counts_and_the_reject_route_does_not() {
        let tree = with_function();
        tree.directory(&format!("{DEVICE}/net/eno1"));
        tree.link("/sys/class/net/eno1", "../../bus/pci/devices/0000:00:02.0/net/eno1");
        let zeros = "0".repeat(32);
        let route = |interface| {
            format!(
                "{zeros} 00 {zeros} 00 {zeros} 00000400 00000001 00000000 00000003 {interface}\n"
            )
        };
        tree.file("/proc/net/ipv6_route", route("lo"));
        assert_eq!(uses_of(&tree), []);
        tree.file("/proc/net/ipv6_route", route("eno1"));
        assert_eq!(uses_of(&tree), [Use::DefaultRoute { interface: "eno1".to_owned() }]);
    }

    #[test]
    fn uses_boot_display_is_no_loss_once_it_is_on_vfio() {
        let tree = with_function();
        tree.file(&format!("{DEVICE}/boot_vga"), "1\n");
        assert_eq!(uses_of(&tree), [Use::BootDisplay]);
        let taken = Tree::new();
        taken.function(&Function { driver: Some("vfio-pci"), ..Function::default() });
        taken.file(&format!("{DEVICE}/boot_vga"), "1\n");
        assert_eq!(uses_of(&taken), []);
    }

    #[test]
    fn bind_commands_unbind_only_what_is_bound() {
        let bdf = "0000:3b:00.0".parse().unwrap();
        assert_eq!(bind_commands(bdf, Some("nouveau")).len(), 4);
        let free = bind_commands(bdf, None);
        assert!(free.iter().all(|line| !line.contains("unbind")), "{free:?}");
    }
}
