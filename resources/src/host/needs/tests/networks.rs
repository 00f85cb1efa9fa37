//! Networks: every layer between a route, an address or a session and the device.
//!
//! Provenance: proc_net(5), Documentation/ABI/testing/sysfs-class-net and the documents of Open
//! vSwitch and pppd; `two-uplinks.save` is a real dump, and says how it was made.

use super::*;

/// A name, and what adds it above the device's interface.
type Layer = (&'static str, fn(&Tree));

const MAIN: &str = "0000:00:02.0";
const GATEWAY: &str = "0102A8C0";
const NONE: &str = "00000000";

fn with_nic() -> Tree {
    let tree = tree("e1000e");
    nic(&tree, MAIN, "eno1");
    nic(&tree, OTHER, "eno2");
    tree
}

/// Lines of /proc/net/tcp: local address and port, peer, state, inode.
fn sockets(tree: &Tree, lines: &[(&str, &str, &str, u32)]) {
    let mut text =
        "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt\n".to_owned();
    for (number, (local, peer, state, inode)) in lines.iter().enumerate() {
        text += &format!("{number}: {local} {peer} {state} 0:0 00:0 0 0 0 {inode} 1 0 20\n");
    }
    tree.file("/proc/net/tcp", text);
}

#[test]
fn interface_without_address_and_route_is_free() {
    let tree = with_nic();
    routes(&tree, &[("eno2", NONE, GATEWAY, NONE)]);
    assert_eq!(chains(&tree), [""; 0]);
    assert_eq!(chains_of(&tree, OTHER), [format!("eno2 -> {DEFAULT}")]);
}

#[test]
fn default_route_is_followed_down_through_every_layer() {
    let layers: [Layer; 7] = [
        ("a bridge by upper", |tree| tree.directory(&format!("{DEVICE}/net/eno1/upper_top0"))),
        ("a bridge by lower", |tree| tree.link("/sys/devices/virtual/net/top0/lower_eno1", "/x")),
        ("a master", |tree| tree.link(&format!("{DEVICE}/net/eno1/master"), "../top0")),
        ("a port", |tree| tree.link(&format!("{DEVICE}/net/eno1/brport/bridge"), "../top0")),
        ("a bond", |tree| tree.file("/sys/devices/virtual/net/top0/bonding/slaves", "eth9 eno1\n")),
        ("a VLAN", |tree| {
            let text =
                "VLAN Dev name\t | VLAN ID\nName-Type: VLAN_NAME_TYPE_RAW\ntop0  | 10  | eno1\n";
            tree.file("/proc/net/vlan/config", text);
        }),
        ("a macvlan by its number", |tree| {
            tree.file("/sys/devices/virtual/net/top0/uevent", "DEVTYPE=macvlan\n");
            tree.file("/sys/devices/virtual/net/top0/iflink", "2\n");
            tree.file(&format!("{DEVICE}/net/eno1/ifindex"), "2\n");
        }),
    ];
    for (name, layer) in layers {
        let tree = with_nic();
        software(&tree, "top0");
        layer(&tree);
        routes(&tree, &[("top0", NONE, GATEWAY, NONE)]);
        assert_eq!(chains(&tree), [format!("eno1 -> top0 -> {DEFAULT}")], "{name}");
        assert_eq!(chains_of(&tree, OTHER), [""; 0], "{name}");
    }
}

/// A node of Open vSwitch: the uplink is enslaved to the datapath, the address is on an internal interface that has no
/// link to it.
#[test]
fn default_route_by_an_open_vswitch_bridge_is_on_its_ports() {
    let tree = with_nic();
    for name in ["ovs-system", "vmbr0", "br-int"] {
        software(&tree, name);
    }
    tree.directory(&format!("{DEVICE}/net/eno1/upper_ovs-system"));
    routes(&tree, &[("vmbr0", NONE, GATEWAY, NONE)]);
    assert_eq!(chains(&tree), [format!("eno1 -> ovs-system -> vmbr0 -> {DEFAULT}")]);
    assert_eq!(chains_of(&tree, OTHER), [""; 0]);
}

#[test]
fn default_route_by_pppoe_is_on_the_device_of_the_session() {
    for (file, text) in [
        (
            "/proc/net/pppoe",
            "Id       Address              Device\n00000001 00:11:22:33:44:55    eno1\n",
        ),
        (
            "/proc/net/packet",
            "sk RefCnt Type Proto Iface R Rmem User Inode\nffff 3 10 8864 2 1 0 0 9\n",
        ),
    ] {
        let tree = with_nic();
        software(&tree, "ppp0");
        tree.file(&format!("{DEVICE}/net/eno1/ifindex"), "2\n");
        tree.file(file, text);
        routes(&tree, &[("ppp0", NONE, NONE, NONE)]);
        assert_eq!(chains(&tree), [format!("eno1 -> ppp0 -> {DEFAULT}")], "{file}");
        assert_eq!(chains_of(&tree, OTHER), [""; 0], "{file}");
    }
}

/// A VPN that takes all traffic keeps one route to its other end outside of itself.
#[test]
fn default_route_by_a_tunnel_is_on_the_interface_with_the_way_out() {
    let tree = with_nic();
    software(&tree, "wg0");
    tree.file("/sys/devices/virtual/net/wg0/uevent", "DEVTYPE=wireguard\n");
    routes(&tree, &[("wg0", NONE, NONE, NONE), ("eno1", "07060504", GATEWAY, "FFFFFFFF")]);
    let right =
        [format!("eno1 -> wg0 -> {DEFAULT}"), "eno1 -> the host's route to 4.5.6.7/32".to_owned()];
    assert_eq!(chains(&tree), right);
    assert_eq!(chains_of(&tree, OTHER), [""; 0]);
}

#[test]
fn two_halves_of_all_addresses_are_a_default_route() {
    let tree = with_nic();
    routes(
        &tree,
        &[("eno1", NONE, GATEWAY, "00000080"), ("eno1", "00000080", GATEWAY, "00000080")],
    );
    assert_eq!(chains(&tree), [format!("eno1 -> {DEFAULT}")]);
}

#[test]
fn ipv6_default_route_and_address_count_and_those_of_the_link_do_not() {
    let zeros = "0".repeat(32);
    let route = |to: &str, length: &str, interface: &str| {
        format!("{to:0<32} {length} {zeros} 00 {zeros} 00000400 1 0 3 {interface}\n")
    };
    let tree = with_nic();
    tree.file(
        "/proc/net/ipv6_route",
        route("", "00", "lo") + &route("fe80", "40", "eno1") + &route("ff", "08", "eno1"),
    );
    tree.file("/proc/net/if_inet6", "fe800000000000000000000000000001 02 40 20 80 eno1\n");
    assert_eq!(chains(&tree), [""; 0]);
    tree.file("/proc/net/ipv6_route", route("", "00", "eno1"));
    tree.file("/proc/net/if_inet6", "20010db8000000000000000000000005 02 40 00 80 eno1\n");
    let right = [format!("eno1 -> {DEFAULT}"), "eno1 -> the host's address 2001:db8::5".to_owned()];
    assert_eq!(chains(&tree), right);
}

#[test]
fn address_counts_without_any_route_beyond_its_network() {
    let tree = with_nic();
    routes(
        &tree,
        &[("eno1", "0000A8C0", NONE, "0000FFFF"), ("eno2", "0000FEA9", NONE, "0000FFFF")],
    );
    assert_eq!(chains(&tree), ["eno1 -> the host's address in 192.168.0.0/16"]);
    // 169.254/16 is nobody's address.
    assert_eq!(chains_of(&tree, OTHER), [""; 0]);
}

/// In a VRF, or by rules, nothing of it is in the main table.
#[test]
fn address_in_another_table_is_found_by_neighbours_and_by_the_tables() {
    let by_neighbour = with_nic();
    by_neighbour.file(
        "/proc/net/arp",
        "IP address HW type Flags HW address Mask Device\n\
         10.3.0.1 0x1 0x2 00:11:22:33:44:55 * eno1\n10.4.0.1 0x1 0x0 00:00:00:00:00:00 * eno2\n",
    );
    assert_eq!(chains(&by_neighbour), ["eno1 -> the host's address beside 10.3.0.1"]);
    assert_eq!(chains_of(&by_neighbour, OTHER), [""; 0]);
    let by_table = with_nic();
    by_table.file(&format!("/sys/bus/pci/devices/{OTHER}/net/eno2/operstate"), "down\n");
    by_table.file(
        "/proc/net/fib_trie",
        "Id 200:\n  +-- 0.0.0.0/0 2 0 2\n     |-- 0.0.0.0\n        /0 universe UNICAST\n\
         Local:\n     |-- 10.3.0.5\n        /32 host LOCAL\n     |-- 127.0.0.1\n        /32 host LOCAL\n",
    );
    assert_eq!(chains(&by_table), ["eno1 -> the host's address 10.3.0.5"]);
    assert_eq!(chains_of(&by_table, OTHER), [""; 0]);
}

/// The main table of [`TWO_UPLINKS`], from the same host's /proc/net/route.
const ITS_MAIN_TABLE: &str = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
     eno1\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
     eno1\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";

/// What `ip route save table all` of iproute2 6.1 wrote under Linux 6.18, in a network namespace with three interfaces that
/// had the numbers 3, 5 and 7 there, after:
///
/// ```text
/// ip addr add 192.0.2.10/24 dev eno1
/// ip route add default via 192.0.2.1
/// ip addr add 198.51.100.10/24 dev eno2 noprefixroute
/// ip route add 198.51.100.0/24 dev eno2 table 100
/// ip route add default via 198.51.100.1 dev eno2 table 100
/// ip rule add from 198.51.100.10 table 100
/// ip route add 203.0.113.0/24 table 100 nexthop dev eno3 nexthop via 198.51.100.1 dev eno2
/// ip route add blackhole 10.0.0.0/8 table 100
/// ```
const TWO_UPLINKS: &[u8] = include_bytes!("two-uplinks.save");

/// The second way out is in a table that only packets from its address are looked up in.
#[test]
fn policy_routes_count_for_the_interfaces_that_they_lead_out_of() {
    const THIRD: &str = "0000:00:04.0";
    let tree = with_nic();
    tree.function(&Function { bdf: THIRD, driver: Some("e1000e"), ..Function::default() });
    nic(&tree, THIRD, "eno3");
    for (bdf, name, index) in [(MAIN, "eno1", 3), (OTHER, "eno2", 5), (THIRD, "eno3", 7)] {
        tree.file(&format!("/sys/bus/pci/devices/{bdf}/net/{name}/ifindex"), format!("{index}\n"));
    }
    tree.file("/proc/net/route", ITS_MAIN_TABLE);
    // The main table alone tells of one of them.
    assert_eq!((chains(&tree).len(), chains_of(&tree, OTHER).len()), (2, 0));
    tree.file("/ip-route.save", TWO_UPLINKS);
    let first =
        [format!("eno1 -> {DEFAULT}"), "eno1 -> the host's address in 192.0.2.0/24".to_owned()];
    assert_eq!(chains(&tree), first);
    let mut second = chains_of(&tree, OTHER);
    second.sort();
    assert_eq!(
        second,
        [
            "eno2 -> the host's address 198.51.100.10",
            "eno2 -> the host's route to 0.0.0.0/0 in table 100",
            "eno2 -> the host's route to 198.51.100.0/24 in table 100",
            "eno2 -> the host's route to 203.0.113.0/24 in table 100",
        ]
    );
    let third = ["eno3 -> the host's route to 203.0.113.0/24 in table 100"];
    assert_eq!(chains_of(&tree, THIRD), third);
    // A session from the second uplink's address goes over it, whatever the main table says.
    sockets(&tree, &[("0A6433C6:0016", "0507A8C0:9C40", "01", 0)]);
    let session = |chain: &String| chain == "eno2 -> a login session with 192.168.7.5";
    assert!(chains_of(&tree, OTHER).iter().any(session), "{:?}", chains_of(&tree, OTHER));
}

#[test]
fn session_is_found_by_port_by_program_and_by_descent() {
    let session = |tree: &Tree| {
        routes(tree, &[("eno1", "0000A8C0", NONE, "0000FFFF")]);
        let found = chains(tree);
        found.iter().filter(|chain| chain.contains("session")).cloned().collect::<Vec<_>>()
    };
    let right = ["eno1 -> a login session with 192.168.7.5"];
    // 192.168.0.9 <- 192.168.7.5:40000.
    let (ssh, other) = ("0900A8C0:0016", "0900A8C0:08AE");
    let peer = "0507A8C0:9C40";
    let by_port = with_nic();
    sockets(&by_port, &[(ssh, peer, "01", 0), (ssh, "0607A8C0:9C40", "06", 0)]);
    assert_eq!(session(&by_port), right);
    let by_program = with_nic();
    sockets(&by_program, &[(other, peer, "01", 77)]);
    assert_eq!(session(&by_program), [""; 0]);
    by_program.file("/proc/500/comm", "sshd-session\n");
    by_program.link("/proc/500/fd/4", "socket:[77]");
    assert_eq!(session(&by_program), right);
    let by_listener = with_nic();
    sockets(&by_listener, &[("00000000:08AE", "00000000:0000", "0A", 70), (other, peer, "01", 0)]);
    by_listener.file("/proc/400/comm", "sshd\n");
    by_listener.link("/proc/400/fd/3", "socket:[70]");
    assert_eq!(session(&by_listener), right);
    let by_configuration = with_nic();
    sockets(&by_configuration, &[(other, peer, "01", 0)]);
    by_configuration.file("/etc/ssh/sshd_config.d/port.conf", "# Port 1\nPort 2222\n");
    assert_eq!(session(&by_configuration), right);
    let by_descent = with_nic();
    sockets(&by_descent, &[(other, peer, "01", 77)]);
    by_descent.link("/proc/600/fd/4", "socket:[77]");
    by_descent.file("/proc/self/status", "Name:\tstrait\nPPid:\t601\n");
    by_descent.file("/proc/601/status", "Name:\tbash\nPPid:\t600\n");
    by_descent.file("/proc/600/status", "Name:\tremote-shell\nPPid:\t1\n");
    assert_eq!(session(&by_descent), right);
    let by_mosh = with_nic();
    by_mosh.file("/proc/700/comm", "mosh-server\n");
    by_mosh.file("/proc/700/environ", "A=b\0SSH_CONNECTION=192.168.7.5 40000 192.168.0.9 22\0");
    assert_eq!(session(&by_mosh), right);
}

#[test]
fn session_of_a_peer_that_the_caller_names_counts_where_its_route_is() {
    let tree = with_nic();
    routes(&tree, &[("eno2", NONE, GATEWAY, NONE), ("eno1", "0000A8C0", NONE, "0000FFFF")]);
    let sessions = |peer: &str| {
        let found = found(&tree, MAIN, &[peer]);
        found.iter().filter(|need| matches!(need.loss, Loss::Session(_))).count()
    };
    assert_eq!((sessions("192.168.1.1"), sessions("10.1.1.1")), (1, 0));
}

#[test]
fn file_systems_and_disks_of_other_machines_count_where_they_are_reached() {
    let cases: [(&str, &str, &str); 4] = [
        (
            "/proc/self/mountinfo",
            "25 1 0:50 / /srv rw - nfs4 server:/srv rw,vers=4.2,addr=192.168.7.5\n",
            "/srv over nfs4 of 192.168.7.5",
        ),
        (
            "/proc/self/mountinfo",
            "25 1 0:50 / /ceph rw - ceph 192.168.7.5:6789,192.168.7.5:3300:/ rw\n",
            "/ceph over ceph of 192.168.7.5",
        ),
        (
            "/sys/class/iscsi_connection/connection1:0/address",
            "192.168.7.5\n",
            "iSCSI disk of 192.168.7.5",
        ),
        (
            "/sys/class/nvme/nvme7/address",
            "traddr=192.168.7.5,trsvcid=4420\n",
            "NVMe disk nvme7 of 192.168.7.5",
        ),
    ];
    for (file, text, right) in cases {
        let tree = with_nic();
        routes(&tree, &[("eno1", "0000A8C0", NONE, "0000FFFF")]);
        tree.file(file, text);
        let found = chains(&tree);
        assert_eq!(found[0], format!("eno1 -> {right}"), "{found:?}");
        assert_eq!(chains_of(&tree, OTHER), [""; 0]);
    }
}

#[test]
fn bridge_that_joins_guests_counts_without_an_address_of_the_host() {
    let tree = with_nic();
    software(&tree, "br0");
    software(&tree, "tap100i0");
    tree.directory("/sys/devices/virtual/net/br0/bridge");
    tree.directory(&format!("{DEVICE}/net/eno1/upper_br0"));
    assert_eq!(chains(&tree), [""; 0]);
    tree.directory("/sys/devices/virtual/net/tap100i0/upper_br0");
    assert_eq!(chains(&tree), ["eno1 -> joined with tap100i0 in br0"]);
}

#[test]
fn console_by_network_counts() {
    let tree = with_nic();
    let at = "/sys/kernel/config/netconsole/target1";
    tree.file(&format!("{at}/dev_name"), "eno1\n");
    tree.file(&format!("{at}/enabled"), "1\n");
    assert_eq!(chains(&tree), ["eno1 -> the kernel's console netconsole target1"]);
}
