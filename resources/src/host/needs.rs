//! What stands against taking a function from its driver, beyond what [`super::driver::uses`] sees: who is logged in
//! through it, where strait itself runs from, and which device nodes it is behind.
//!
//! Asked only before something is taken: it opens disks.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::Path,
};

use super::{
    driver::{self, Use, disks_behind, interfaces, stacked},
    pci::{self, HostFunction},
    sysroot::{SysError, Sysroot},
};

/// Everything the host would miss. `peers` are addresses of people who must not be cut off, besides those that are
/// logged in by SSH now.
pub fn needs(
    sysroot: &Sysroot,
    function: &HostFunction,
    peers: &[IpAddr],
) -> Result<Vec<Use>, SysError> {
    let mut needs = driver::uses(sysroot, function)?;
    let Some(device) = sysroot.canonical(&format!("{}/{}", pci::DEVICES, function.bdf))? else {
        return Ok(needs);
    };
    needs.extend(sessions(sysroot, &device, peers)?);
    // A mount or swap that is known says more than "claimed".
    let plain = needs.iter().any(|need| matches!(need, Use::Mount { .. } | Use::Swap { .. }));
    needs.extend(own_disks(sysroot, &device)?);
    if !plain {
        needs.extend(claimed_disks(sysroot, &device)?);
    }
    needs.sort();
    needs.dedup();
    Ok(needs)
}

fn sessions(sysroot: &Sysroot, device: &Path, peers: &[IpAddr]) -> Result<Vec<Use>, SysError> {
    let interfaces = interfaces(sysroot, device)?;
    if interfaces.is_empty() {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for peer in ssh_peers(sysroot)?.into_iter().chain(peers.iter().map(IpAddr::to_canonical)) {
        if let Some(interface) = route_to(sysroot, peer)?
            && interfaces.contains(&interface)
        {
            found.push(Use::Session { interface, peer });
        }
    }
    Ok(found)
}

/// Who has a connection to this host's SSH port: /proc/net/tcp and tcp6, state 01.
fn ssh_peers(sysroot: &Sysroot) -> Result<Vec<IpAddr>, SysError> {
    const SSH: &str = "0016";
    const ESTABLISHED: &str = "01";
    let mut peers = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = sysroot.read_if_present(table)?.unwrap_or_default();
        for line in text.lines().skip(1) {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, remote, ESTABLISHED, ..] = words.as_slice() else { continue };
            if local.rsplit(':').next() == Some(SSH) {
                let address = remote.split(':').next().and_then(socket_address);
                peers.extend(address.filter(|address| !address.is_loopback()));
            }
        }
    }
    peers.sort();
    peers.dedup();
    Ok(peers)
}

/// An address as /proc/net/tcp writes it: 32-bit words in the CPU's order.
fn socket_address(hex: &str) -> Option<IpAddr> {
    let words = hex.as_bytes().chunks(8).map(|word| {
        let text = std::str::from_utf8(word).ok().filter(|text| text.len() == 8)?;
        u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes)
    });
    let bytes = words.collect::<Option<Vec<[u8; 4]>>>()?.concat();
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(address.to_canonical())
}

/// The interface that the longest matching route to an address goes through.
fn route_to(sysroot: &Sysroot, peer: IpAddr) -> Result<Option<String>, SysError> {
    match peer {
        IpAddr::V4(peer) => route_to_v4(sysroot, peer),
        IpAddr::V6(peer) => route_to_v6(sysroot, peer),
    }
}

fn route_to_v4(sysroot: &Sysroot, peer: Ipv4Addr) -> Result<Option<String>, SysError> {
    let text = sysroot.read_if_present("/proc/net/route")?.unwrap_or_default();
    let peer = u32::from_ne_bytes(peer.octets());
    let mut best: Option<(u32, &str)> = None;
    for line in text.lines().skip(1) {
        // Iface Destination Gateway Flags RefCnt Use Metric Mask ...; addresses in the CPU's order.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [interface, destination, _, _, _, _, _, mask, ..] = words.as_slice() else { continue };
        let number = |text: &str| u32::from_str_radix(text, 16).ok();
        let (Some(destination), Some(mask)) = (number(destination), number(mask)) else { continue };
        // The first of equals wins: the kernel lists by metric.
        if peer & mask == destination && best.is_none_or(|(length, _)| mask.count_ones() > length) {
            best = Some((mask.count_ones(), *interface));
        }
    }
    Ok(best.map(|(_, interface)| interface.to_owned()))
}

fn route_to_v6(sysroot: &Sysroot, peer: Ipv6Addr) -> Result<Option<String>, SysError> {
    let text = sysroot.read_if_present("/proc/net/ipv6_route")?.unwrap_or_default();
    let peer = u128::from(peer);
    let mut best: Option<(u32, &str)> = None;
    for line in text.lines() {
        // destination prefix-length ... interface.
        let words: Vec<&str> = line.split_whitespace().collect();
        let [destination, length, .., interface] = words.as_slice() else { continue };
        let destination = u128::from_str_radix(destination, 16).ok();
        let length = u32::from_str_radix(length, 16).ok().filter(|length| *length <= 128);
        let (Some(destination), Some(length)) = (destination, length) else { continue };
        let mask = u128::MAX.checked_shl(128 - length).unwrap_or(0);
        if *interface != "lo"
            && peer & mask == destination & mask
            && best.is_none_or(|(longest, _)| length > longest)
        {
            best = Some((length, *interface));
        }
    }
    Ok(best.map(|(_, interface)| interface.to_owned()))
}

fn own_disks(sysroot: &Sysroot, device: &Path) -> Result<Vec<Use>, SysError> {
    let mut own = Vec::new();
    for place in ["/proc/self/exe", "/proc/self/cwd"] {
        own.extend(sysroot.device_of(place)?);
    }
    let mut uses = Vec::new();
    for disk in disks_behind(sysroot, device)? {
        if stacked(sysroot, &disk)?.iter().any(|block| own.contains(&block.number)) {
            uses.push(Use::Own { disk });
        }
    }
    Ok(uses)
}

fn claimed_disks(sysroot: &Sysroot, device: &Path) -> Result<Vec<Use>, SysError> {
    let claimed = |disk: &String| {
        let tried = sysroot.try_claim(&format!("/dev/{disk}"));
        tried.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
    };
    let disks = disks_behind(sysroot, device)?.into_iter().filter(claimed);
    Ok(disks.map(|disk| Use::Claimed { disk }).collect())
}

/// The device nodes that lead to a function: everything in sysfs below it that names one, its disks, and NVIDIA's
/// node, which sysfs does not know.
pub fn nodes(sysroot: &Sysroot, function: &HostFunction) -> Result<Vec<String>, SysError> {
    let Some(device) = sysroot.canonical(&format!("{}/{}", pci::DEVICES, function.bdf))? else {
        return Ok(Vec::new());
    };
    let mut nodes = Vec::new();
    collect(sysroot, &device.to_string_lossy(), &mut nodes)?;
    for disk in disks_behind(sysroot, &device)? {
        nodes.extend(stacked(sysroot, &disk)?.into_iter().map(|b| format!("/dev/{}", b.name)));
    }
    if function.driver.as_deref() == Some("nvidia") {
        nodes.extend(nvidia_node(sysroot, function)?);
    }
    nodes.sort();
    nodes.dedup();
    Ok(nodes)
}

/// Walks the directories of a device and reads the `uevent` files of those with a node. Of the others it is not read:
/// some kernels take the device's lock for that, and a driver that hangs keeps it.
fn collect(sysroot: &Sysroot, device: &str, nodes: &mut Vec<String>) -> Result<(), SysError> {
    /// A USB controller with every port in use has some hundreds.
    const MAX_DIRECTORIES: usize = 8192;
    let mut open = vec![device.to_owned()];
    for _ in 0..MAX_DIRECTORIES {
        let Some(path) = open.pop() else { break };
        let uevent = match sysroot.exists(&format!("{path}/dev")) {
            true => sysroot.read_if_present(&format!("{path}/uevent"))?.unwrap_or_default(),
            false => String::new(),
        };
        let name = uevent.lines().find_map(|line| line.strip_prefix("DEVNAME="));
        nodes.extend(name.map(|name| format!("/dev/{name}")));
        match sysroot.directories(&path) {
            Ok(names) => open.extend(names.iter().map(|name| format!("{path}/{name}"))),
            // It left while we walked.
            Err(error) if error.is_absent() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

fn nvidia_node(sysroot: &Sysroot, function: &HostFunction) -> Result<Option<String>, SysError> {
    let path = format!("/proc/driver/nvidia/gpus/{}/information", function.bdf);
    let text = sysroot.read_if_present(&path)?.unwrap_or_default();
    let minor = text.lines().find_map(|line| line.strip_prefix("Device Minor:"));
    Ok(minor.map(|minor| format!("/dev/nvidia{}", minor.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Function, Tree};

    const DEVICE: &str = "/sys/bus/pci/devices/0000:00:02.0";

    fn tree(driver: &str) -> Tree {
        let tree = Tree::new();
        tree.function(&Function { driver: Some(driver), ..Function::default() });
        tree
    }

    fn function(tree: &Tree) -> HostFunction {
        pci::find(&tree.sysroot(), "0000:00:02.0".parse().unwrap()).unwrap().unwrap()
    }

    fn with_nic() -> Tree {
        let tree = tree("e1000e");
        tree.directory(&format!("{DEVICE}/net/eno1"));
        tree.link("/sys/class/net/eno1", "../../bus/pci/devices/0000:00:02.0/net/eno1");
        tree.file(
            "/proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
             eth9\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
             eno1\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n",
        );
        tree
    }

    #[test]
    fn needs_session_is_found_by_the_route_to_its_peer() {
        let tree = with_nic();
        // 192.168.0.9:22 <- 192.168.7.5:40000 and 10.9.9.9:40000, established.
        tree.file(
            "/proc/net/tcp",
            "  sl  local_address rem_address   st\n\
             0: 0900A8C0:0016 0507A8C0:9C40 01 0\n\
             1: 0900A8C0:0016 0909090A:9C40 01 0\n\
             2: 0900A8C0:1F90 0607A8C0:9C40 01 0\n\
             3: 0900A8C0:0016 0707A8C0:9C40 06 0\n",
        );
        let peer = "192.168.7.5".parse().unwrap();
        let found = needs(&tree.sysroot(), &function(&tree), &[]).unwrap();
        assert_eq!(found, [Use::Session { interface: "eno1".to_owned(), peer }]);
    }

    #[test]
    fn needs_peer_that_the_caller_names_is_not_cut_off() {
        let tree = with_nic();
        let near = "192.168.1.1".parse().unwrap();
        let found = needs(&tree.sysroot(), &function(&tree), &[near]).unwrap();
        assert_eq!(found, [Use::Session { interface: "eno1".to_owned(), peer: near }]);
        let far = "10.1.1.1".parse().unwrap();
        assert_eq!(needs(&tree.sysroot(), &function(&tree), &[far]).unwrap(), []);
    }

    #[test]
    fn route_to_ipv6_takes_the_longest_prefix() {
        let tree = Tree::new();
        let line = |prefix: &str, length: &str, interface: &str| {
            let zeros = "0".repeat(32);
            format!("{prefix:0<32} {length} {zeros} 00 {zeros} 00000400 1 0 3 {interface}\n")
        };
        let table = line("", "00", "eth0") + &line("20010db8", "20", "eth1");
        tree.file("/proc/net/ipv6_route", table);
        for (peer, interface) in [("2001:db8::5", "eth1"), ("2001:db9::5", "eth0")] {
            let found = route_to(&tree.sysroot(), peer.parse().unwrap()).unwrap();
            assert_eq!(found.as_deref(), Some(interface), "{peer}");
        }
    }

    #[test]
    fn socket_address_of_a_mapped_ipv4_peer_is_ipv4() {
        let mapped = socket_address("0000000000000000FFFF00000507A8C0").unwrap();
        assert_eq!(mapped, "192.168.7.5".parse::<IpAddr>().unwrap());
        assert_eq!(socket_address("05"), None);
        assert_eq!(socket_address("zz07A8C0"), None);
    }

    #[test]
    fn needs_disk_that_strait_runs_from_is_found_by_its_number() {
        let tree = tree("nvme");
        tree.file("/proc/self/exe", "");
        let number = tree.sysroot().device_of("/proc/self/exe").unwrap().unwrap();
        tree.file(&format!("{DEVICE}/block/sda/dev"), &number);
        tree.link("/sys/block/sda", "../bus/pci/devices/0000:00:02.0/block/sda");
        let found = needs(&tree.sysroot(), &function(&tree), &[]).unwrap();
        assert_eq!(found, [Use::Own { disk: "sda".to_owned() }]);
    }

    #[test]
    fn nodes_are_those_below_the_device_and_its_disks() {
        let tree = tree("nvidia");
        tree.file(&format!("{DEVICE}/drm/card1/dev"), "226:1\n");
        tree.file(&format!("{DEVICE}/sound/card2/pcmC2D3p/dev"), "116:3\n");
        tree.file(&format!("{DEVICE}/drm/card1/uevent"), "MAJOR=226\nDEVNAME=dri/card1\n");
        tree.file(&format!("{DEVICE}/sound/card2/pcmC2D3p/uevent"), "DEVNAME=snd/pcmC2D3p\n");
        tree.file(&format!("{DEVICE}/block/sda/dev"), "8:0\n");
        tree.link("/sys/block/sda", "../bus/pci/devices/0000:00:02.0/block/sda");
        tree.file("/sys/elsewhere/uevent", "DEVNAME=not/mine\n");
        tree.link(&format!("{DEVICE}/drm/card1/elsewhere"), "/sys/elsewhere");
        tree.file(
            "/proc/driver/nvidia/gpus/0000:00:02.0/information",
            "Model: \t\t NVIDIA\nDevice Minor: \t 3\n",
        );
        let found = nodes(&tree.sysroot(), &function(&tree)).unwrap();
        assert_eq!(found, ["/dev/dri/card1", "/dev/nvidia3", "/dev/sda", "/dev/snd/pcmC2D3p"]);
    }
}
