//! Connections that must not be cut: who is logged in, and which disks and file systems are another machine's.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
};

use super::{
    super::{
        holders::OpenFiles,
        sysroot::{SysError, Sysroot},
    },
    Loss,
    graph::{Graph, Thing},
    mounts::Mount,
    nets::Nets,
    routes::Routes,
};

/// Programs by which people work on a host from elsewhere, as /proc/PID/comm names them (15 characters at most).
const LOGIN_PROGRAMS: [&str; 10] = [
    "sshd",
    "sshd-session",
    "dropbear",
    "in.telnetd",
    "telnetd",
    "etserver",
    "etterminal",
    "xrdp",
    "Xvnc",
    "x11vnc",
];

/// A TCP socket of /proc/net/tcp or tcp6.
struct Socket {
    local: SocketAddr,
    peer: SocketAddr,
    listens: bool,
    inode: u64,
}

/// Puts every session and every disk from elsewhere on the interfaces that lead to its other end. `peers` are addresses
/// of people whom the caller knows of.
pub(super) fn stand(
    sysroot: &Sysroot,
    (nets, routes): (&Nets, &Routes),
    files: &OpenFiles,
    mounts: &[Mount],
    peers: &[IpAddr],
    graph: &mut Graph,
) -> Result<(), SysError> {
    let sockets = sockets(sysroot)?;
    let mut ends: BTreeSet<(Option<IpAddr>, IpAddr, Loss)> = BTreeSet::new();
    for (local, peer) in logins(sysroot, files, &sockets)? {
        ends.insert((Some(local), peer, Loss::Session(peer)));
    }
    for peer in peers.iter().map(IpAddr::to_canonical) {
        ends.insert((None, peer, Loss::Session(peer)));
    }
    for mount in mounts {
        for peer in mount_peers(mount) {
            let what = format!("{} over {}", mount.point, mount.kind);
            ends.insert((None, peer, Loss::Remote { what, peer }));
        }
    }
    for (what, peer) in disks(sysroot, files, &sockets)? {
        ends.insert((None, peer, Loss::Remote { what, peer }));
    }
    for (local, peer, loss) in ends {
        if peer.is_loopback() || peer.is_unspecified() {
            continue;
        }
        let mut ways: BTreeSet<String> =
            routes.between(local, peer).into_iter().map(str::to_owned).collect();
        if ways.is_empty() {
            // By a route that is not shown: then any may be the one.
            ways.extend(routes.interfaces().into_iter().map(str::to_owned));
            ways.extend(nets.up(sysroot)?);
            ways.remove("lo");
        }
        for interface in ways {
            graph.lose(Thing::Net(interface), loss.clone());
        }
    }
    by_name(sysroot, graph)
}

/// Local address and peer of everybody who is logged in: by a port that sshd listens on, by a login program's socket, or
/// by a socket of a process that strait descends from.
fn logins(
    sysroot: &Sysroot,
    files: &OpenFiles,
    sockets: &[Socket],
) -> Result<Vec<(IpAddr, IpAddr)>, SysError> {
    let is_login = |pid: &u32| {
        let name = files.name(*pid);
        LOGIN_PROGRAMS.iter().any(|known| name == Some(*known))
    };
    let ancestors = ancestors(sysroot)?;
    let owned =
        |socket: &Socket, by: &dyn Fn(&u32) -> bool| files.owners(socket.inode).iter().any(by);
    let mut ports = configured_ports(sysroot)?;
    let listening = sockets.iter().filter(|socket| socket.listens && owned(socket, &is_login));
    ports.extend(listening.map(|socket| socket.local.port()));
    let is_session = |socket: &&Socket| {
        let of_login = |pid: &u32| is_login(pid) || ancestors.contains(pid);
        !socket.listens && (ports.contains(&socket.local.port()) || owned(socket, &of_login))
    };
    let sessions = sockets.iter().filter(is_session);
    let mut found: Vec<(IpAddr, IpAddr)> =
        sessions.map(|socket| (socket.local.ip(), socket.peer.ip())).collect();
    // mosh talks by UDP to whoever calls; where the user came from is in its environment.
    for pid in files.named("mosh-server") {
        let Ok(environment) = sysroot.read_bytes(&format!("/proc/{pid}/environ")) else { continue };
        for variable in environment.split(|byte| *byte == 0) {
            let text = String::from_utf8_lossy(variable);
            let Some(connection) = text.strip_prefix("SSH_CONNECTION=") else { continue };
            // Peer, its port, our address, our port.
            let words: Vec<&str> = connection.split(' ').collect();
            if let [peer, _, local, _] = words.as_slice()
                && let (Ok(peer), Ok(local)) = (peer.parse::<IpAddr>(), local.parse::<IpAddr>())
            {
                found.push((local.to_canonical(), peer.to_canonical()));
            }
        }
    }
    Ok(found)
}

/// The ports in sshd's configuration, and its usual one.
fn configured_ports(sysroot: &Sysroot) -> Result<BTreeSet<u16>, SysError> {
    const SSH: u16 = 22;
    let mut files = vec!["/etc/ssh/sshd_config".to_owned()];
    let more = sysroot.list_if_present("/etc/ssh/sshd_config.d")?;
    files.extend(more.iter().map(|name| format!("/etc/ssh/sshd_config.d/{name}")));
    let mut ports = BTreeSet::from([SSH]);
    for file in files {
        // Some are for root alone; the sockets tell too.
        let text = sysroot.read(&file).unwrap_or_default();
        for line in text.lines() {
            let mut words = line.split_whitespace();
            if words.next().is_some_and(|key| key.eq_ignore_ascii_case("port")) {
                ports.extend(words.next().and_then(|port| port.parse::<u16>().ok()));
            }
        }
    }
    Ok(ports)
}

/// The processes that strait descends from, but for the first.
pub(in crate::host) fn ancestors(sysroot: &Sysroot) -> Result<BTreeSet<u32>, SysError> {
    /// Nobody nests so deep.
    const MAX_DEPTH: usize = 64;
    let mut found = BTreeSet::new();
    let mut of = "self".to_owned();
    for _ in 0..MAX_DEPTH {
        let Ok(Some(text)) = sysroot.read_if_present(&format!("/proc/{of}/status")) else { break };
        let parent = text.lines().find_map(|line| line.strip_prefix("PPid:"));
        let parent = parent.and_then(|pid| pid.trim().parse::<u32>().ok()).unwrap_or(0);
        if parent <= 1 || !found.insert(parent) {
            break;
        }
        of = parent.to_string();
    }
    Ok(found)
}

fn sockets(sysroot: &Sysroot) -> Result<Vec<Socket>, SysError> {
    const ESTABLISHED: &str = "01";
    const LISTEN: &str = "0A";
    let mut found = Vec::new();
    for table in ["/proc/net/tcp", "/proc/net/tcp6"] {
        let text = sysroot.read_if_present(table)?.unwrap_or_default();
        for line in text.lines().skip(1) {
            // sl local_address rem_address st tx_queue:rx_queue tr:when retrnsmt uid timeout inode
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, local, peer, state, ..] = words.as_slice() else { continue };
            if ![ESTABLISHED, LISTEN].contains(state) {
                continue;
            }
            let inode = words.get(9).and_then(|inode| inode.parse().ok()).unwrap_or(0);
            if let (Some(local), Some(peer)) = (socket_address(local), socket_address(peer)) {
                found.push(Socket { local, peer, listens: *state == LISTEN, inode });
            }
        }
    }
    Ok(found)
}

/// An address and port as /proc/net/tcp writes them: 32-bit words in the CPU's order, the port as a number.
fn socket_address(text: &str) -> Option<SocketAddr> {
    let (hex, port) = text.split_once(':')?;
    let words = hex.as_bytes().chunks(8).map(|word| {
        let text = std::str::from_utf8(word).ok().filter(|text| text.len() == 8)?;
        u32::from_str_radix(text, 16).ok().map(u32::to_ne_bytes)
    });
    let bytes = words.collect::<Option<Vec<[u8; 4]>>>()?.concat();
    let address = match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(bytes).ok()?),
    };
    Some(SocketAddr::new(address.to_canonical(), u16::from_str_radix(port, 16).ok()?))
}

/// The machines that a network file system is on, where the mount names them by number.
fn mount_peers(mount: &Mount) -> Vec<IpAddr> {
    let mut words: Vec<&str> = Vec::new();
    for option in ["addr", "mountaddr"] {
        words.extend(mount.option(option));
    }
    // ceph: monitors with a slash between them, each with its port.
    words.extend(mount.option("mon_addr").into_iter().flat_map(|all| all.split('/')));
    let remote = ["ceph", "glusterfs", "sshfs", "9p", "afs", "curlftpfs", "s3fs"];
    if remote
        .iter()
        .any(|kind| mount.kind == *kind || mount.kind.strip_prefix("fuse.") == Some(kind))
    {
        let host = mount.source.rsplit_once(":/").map_or(mount.source.as_str(), |(host, _)| host);
        words.extend(host.split(','));
    }
    words.iter().filter_map(|word| address(word)).collect()
}

/// `10.0.0.1`, `10.0.0.1:6789`, `user@10.0.0.1`, `[fd00::1]:6789`.
fn address(text: &str) -> Option<IpAddr> {
    let text = text.rsplit('@').next()?;
    let found = text.parse::<IpAddr>().ok();
    let found = found.or_else(|| text.parse::<SocketAddr>().ok().map(|address| address.ip()));
    let bare = || text.trim_start_matches('[').trim_end_matches(']').parse().ok();
    found.or_else(bare).map(|address| address.to_canonical())
}

/// Disks of other machines: what they are, and where.
fn disks(
    sysroot: &Sysroot,
    files: &OpenFiles,
    sockets: &[Socket],
) -> Result<Vec<(String, IpAddr)>, SysError> {
    let mut found = Vec::new();
    const ISCSI: &str = "/sys/class/iscsi_connection";
    for connection in sysroot.list_if_present(ISCSI)? {
        for file in ["address", "persistent_address"] {
            let text = sysroot.read_if_present(&format!("{ISCSI}/{connection}/{file}"))?;
            found.extend(text.and_then(|text| Some(("iSCSI disk".to_owned(), address(&text)?))));
        }
    }
    const NVME: &str = "/sys/class/nvme";
    for controller in sysroot.list_if_present(NVME)? {
        let text = sysroot.read_if_present(&format!("{NVME}/{controller}/address"))?;
        let target = text
            .as_deref()
            .unwrap_or_default()
            .split(',')
            .find_map(|word| address(word.trim().strip_prefix("traddr=")?));
        found.extend(target.map(|peer| (format!("NVMe disk {controller}"), peer)));
    }
    for disk in sysroot.list_if_present("/sys/block")? {
        let live: Vec<&Socket> = sockets.iter().filter(|socket| !socket.listens).collect();
        let by_port = |ports: &[u16]| {
            let is =
                |s: &&&Socket| ports.contains(&s.peer.port()) || ports.contains(&s.local.port());
            live.iter().filter(is).map(|s| s.peer.ip()).collect::<Vec<_>>()
        };
        let peers = if disk.starts_with("nbd") {
            // The kernel shows who gave it the socket while it is connected.
            let Some(pid) = sysroot.read_if_present(&format!("/sys/block/{disk}/pid"))? else {
                continue;
            };
            let is_its =
                |s: &&&Socket| files.owners(s.inode).iter().any(|owner| owner.to_string() == pid);
            let own = live.iter().filter(is_its).map(|s| s.peer.ip());
            own.chain(by_port(&[10809])).collect()
        } else if disk.starts_with("rbd") {
            by_port(&[3300, 6789])
        } else if disk.starts_with("drbd") {
            by_port(&(7788..=7799).collect::<Vec<_>>())
        } else {
            Vec::new()
        };
        found.extend(peers.into_iter().map(|peer| (format!("disk {disk}"), peer)));
    }
    Ok(found)
}

/// What names its interface and not an address: disks by ATA over Ethernet, and the kernel's console by network.
fn by_name(sysroot: &Sysroot, graph: &mut Graph) -> Result<(), SysError> {
    for disk in sysroot.list_if_present("/sys/block")? {
        let text = sysroot.read_if_present(&format!("/sys/block/{disk}/netif"))?;
        for interface in text.as_deref().unwrap_or_default().split([',', ' ']) {
            if !interface.is_empty() {
                graph.lose(Thing::Net(interface.to_owned()), Loss::Export(format!("disk {disk}")));
            }
        }
    }
    const NETCONSOLE: &str = "/sys/kernel/config/netconsole";
    for target in sysroot.list_if_present(NETCONSOLE)? {
        let read = |name: &str| sysroot.read_if_present(&format!("{NETCONSOLE}/{target}/{name}"));
        if let (Some("1"), Some(interface)) = (read("enabled")?.as_deref(), read("dev_name")?) {
            graph.lose(Thing::Net(interface), Loss::Console(format!("netconsole {target}")));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_address_of_a_mapped_ipv4_peer_is_ipv4() {
        let mapped = socket_address("0000000000000000FFFF00000507A8C0:0016").unwrap();
        assert_eq!(mapped, "192.168.7.5:22".parse().unwrap());
        assert_eq!(socket_address("05:0016"), None);
        assert_eq!(socket_address("zz07A8C0:0016"), None);
        assert_eq!(socket_address("0507A8C0"), None);
    }

    #[test]
    fn address_is_found_with_and_without_port_and_user() {
        for text in ["10.0.0.1", "10.0.0.1:6789", "me@10.0.0.1"] {
            assert_eq!(address(text), Some("10.0.0.1".parse().unwrap()), "{text}");
        }
        for text in ["fd00::1", "[fd00::1]", "[fd00::1]:3300"] {
            assert_eq!(address(text), Some("fd00::1".parse().unwrap()), "{text}");
        }
        assert_eq!(address("server.example"), None);
    }
}
