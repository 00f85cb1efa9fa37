//! Routes and addresses: which interface leads where, and what the host would lose with it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use super::{
    super::sysroot::{SysError, Sysroot},
    Loss,
    graph::{Graph, Thing},
    nets::Nets,
    rtnetlink::{self, Kind, Way},
};

/// Routes of one table by one interface, and addresses of one interface, that are kept: any of them says that the host uses
/// it, and a router has a million.
const MOST: usize = 8;

/// One route. The kernel shows those of IPv6 in one list, whichever table they are of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Route {
    to: IpAddr,
    length: u32,
    /// Through another machine, not to the network that the interface is in.
    has_gateway: bool,
    interface: String,
}

/// All that the host shows.
#[derive(Debug, Default)]
pub(super) struct Routes {
    routes: Vec<Route>,
    /// Routes for IPv4 of other tables than the main one, by number: policy routes, and those of VRFs.
    others: Vec<(u32, Route)>,
    /// The host's own IPv4 addresses, and where. `None`: only /proc/net/fib_trie tells of other tables.
    own: Option<Vec<(IpAddr, String)>>,
    /// Interfaces with a global IPv6 address.
    addresses: Vec<(IpAddr, String)>,
    /// Neighbours that answered, and where.
    neighbours: Vec<(IpAddr, String)>,
}

impl Routes {
    pub(super) fn read(sysroot: &Sysroot, nets: &Nets) -> Result<Self, SysError> {
        let text = |path: &str| Ok(sysroot.read_if_present(path)?.unwrap_or_default());
        let mut routes = Self::default();
        routes.routes.extend(text("/proc/net/route")?.lines().skip(1).filter_map(route_v4));
        routes.routes.extend(text("/proc/net/ipv6_route")?.lines().filter_map(route_v6));
        routes.addresses.extend(text("/proc/net/if_inet6")?.lines().filter_map(address_v6));
        routes.neighbours.extend(text("/proc/net/arp")?.lines().skip(1).filter_map(neighbour));
        routes.read_tables(sysroot, nets)?;
        Ok(routes)
    }

    /// What the kernel tells of IPv4's tables beside the main one.
    fn read_tables(&mut self, sysroot: &Sysroot, nets: &Nets) -> Result<(), SysError> {
        let mut kept: BTreeMap<(u32, u32), usize> = BTreeMap::new();
        let mut wanted = |way: &Way| {
            let is_news = way.table != rtnetlink::MAIN || way.kind == Kind::Own;
            let count = kept.entry((way.table, way.index)).or_default();
            let keep = is_news && !is_local(way.to) && *count < MOST;
            *count += usize::from(keep);
            keep
        };
        let Some(ways) = rtnetlink::ways(sysroot, &mut wanted)? else { return Ok(()) };
        let (names, mut own) = (nets.by_index(sysroot)?, Vec::new());
        for Way { table, kind, to, length, has_gateway, index } in ways {
            let Some(interface) = names.get(&index).map(|name| (*name).to_owned()) else {
                continue;
            };
            match kind {
                Kind::Own => own.push((to, interface)),
                Kind::Out => {
                    self.others.push((table, Route { to, length, has_gateway, interface }))
                }
            }
        }
        self.own = Some(own);
        Ok(())
    }

    /// What the host loses with each interface, but for sessions. Two halves of all addresses, as VPNs route them, are
    /// a default route as well.
    pub(super) fn stand(
        &self,
        sysroot: &Sysroot,
        nets: &Nets,
        graph: &mut Graph,
    ) -> Result<(), SysError> {
        for route in &self.routes {
            let thing = Thing::Net(route.interface.clone());
            match route.to {
                _ if route.length <= 1 => graph.lose(thing, Loss::DefaultRoute),
                _ if is_local(route.to) => {}
                _ if route.has_gateway => graph.lose(thing, Loss::Route(route.words())),
                IpAddr::V4(_) => graph.lose(thing, Loss::Address(format!("in {}", route.words()))),
                // The network of an address is that address's.
                IpAddr::V6(_) => {}
            }
        }
        for (address, interface) in &self.addresses {
            graph.lose(Thing::Net(interface.clone()), Loss::Address(address.to_string()));
        }
        for (table, route) in &self.others {
            let words = format!("{} in table {table}", route.words());
            graph.lose(Thing::Net(route.interface.clone()), Loss::Route(words));
        }
        for (address, interface) in self.own.iter().flatten() {
            let says = |route: &Route| route.interface == *interface && route.covers(*address);
            // The network of an address has been told of.
            if !self.routes.iter().any(|route| route.length > 1 && says(route)) {
                graph.lose(Thing::Net(interface.clone()), Loss::Address(address.to_string()));
            }
        }
        for (neighbour, interface) in &self.neighbours {
            let words = format!("beside {neighbour}");
            if !self.routes.iter().any(|route| route.interface == *interface) {
                graph.lose(Thing::Net(interface.clone()), Loss::Address(words));
            }
        }
        self.tunnels(sysroot, nets, graph)?;
        match self.own {
            Some(_) => Ok(()),
            None => self.other_tables(sysroot, nets, graph),
        }
    }

    /// A tunnel's other end is not shown: its packets leave by an interface with a way to other networks.
    fn tunnels(&self, sysroot: &Sysroot, nets: &Nets, graph: &mut Graph) -> Result<(), SysError> {
        let tunnels = nets.tunnels(sysroot)?;
        let is_outer = |name: &&str| !tunnels.iter().any(|tunnel| tunnel == name);
        let ways = |wanted: &dyn Fn(&Route) -> bool| -> BTreeSet<&str> {
            let routes = self.routes.iter().filter(|route| wanted(route));
            routes.map(|route| route.interface.as_str()).filter(is_outer).collect()
        };
        let mut outer = ways(&|route| route.has_gateway || route.length <= 1);
        if outer.is_empty() {
            outer = ways(&|route| !is_local(route.to));
        }
        let up = nets.up(sysroot)?;
        if outer.is_empty() {
            outer = up.iter().map(String::as_str).collect();
        }
        for tunnel in &tunnels {
            for lower in &outer {
                graph.stand(Thing::Net(tunnel.clone()), Thing::Net((*lower).to_owned()));
            }
        }
        Ok(())
    }

    /// Where the kernel does not answer, tables beside the main one are shown without their interfaces. When one has a default route, an address of the
    /// host's that the main table does not explain is on an interface of a VRF, or on one that is up and has none.
    fn other_tables(
        &self,
        sysroot: &Sysroot,
        nets: &Nets,
        graph: &mut Graph,
    ) -> Result<(), SysError> {
        let text = sysroot.read_if_present("/proc/net/fib_trie")?.unwrap_or_default();
        let Some(tables) = Tables::parse(&text) else { return Ok(()) };
        let is_explained = |address: &IpAddr| {
            is_local(*address) || self.routes.iter().any(|r| r.length > 1 && r.covers(*address))
        };
        for address in tables.addresses.into_iter().filter(|address| !is_explained(address)) {
            for name in nets.up(sysroot)? {
                let is_known = self.routes.iter().any(|route| route.interface == name);
                if !is_known {
                    graph.lose(Thing::Net(name), Loss::Address(address.to_string()));
                }
            }
        }
        Ok(())
    }

    /// The interface that the longest matching route to an address goes through.
    pub(super) fn to(&self, address: IpAddr) -> Option<&str> {
        let matching = self.routes.iter().filter(|route| route.covers(address));
        // The first of equals wins: the kernel lists by metric.
        let best =
            matching.reduce(|best, next| if next.length > best.length { next } else { best });
        best.map(|route| route.interface.as_str())
    }

    /// The interfaces that carry packets between two machines: towards the peer, and with our address.
    pub(super) fn between(&self, local: Option<IpAddr>, peer: IpAddr) -> BTreeSet<&str> {
        let mut found: BTreeSet<&str> = self.to(peer).into_iter().collect();
        if let Some(local) = local {
            let all = self.addresses.iter().chain(self.own.iter().flatten());
            let own = all.filter(|(address, _)| *address == local);
            found.extend(own.map(|(_, interface)| interface.as_str()));
            let near = self.routes.iter().filter(|route| !route.has_gateway && route.length > 1);
            let near = near.filter(|route| route.covers(local)).max_by_key(|route| route.length);
            found.extend(near.map(|route| route.interface.as_str()));
        }
        let beside = self.neighbours.iter().filter(|(neighbour, _)| *neighbour == peer);
        found.extend(beside.map(|(_, interface)| interface.as_str()));
        found.remove("lo");
        found
    }

    /// Every interface that has a route or an address.
    pub(super) fn interfaces(&self) -> BTreeSet<&str> {
        let routes = self.routes.iter().map(|route| route.interface.as_str());
        let routes = routes.chain(self.others.iter().map(|(_, route)| route.interface.as_str()));
        let others = self.addresses.iter().chain(self.own.iter().flatten()).chain(&self.neighbours);
        routes.chain(others.map(|(_, interface)| interface.as_str())).collect()
    }
}

impl Route {
    fn covers(&self, address: IpAddr) -> bool {
        match (self.to, address) {
            (IpAddr::V4(to), IpAddr::V4(address)) => {
                let mask = u32::MAX.checked_shl(32 - self.length).unwrap_or(0);
                u32::from(address) & mask == u32::from(to) & mask
            }
            (IpAddr::V6(to), IpAddr::V6(address)) => {
                let mask = u128::MAX.checked_shl(128 - self.length).unwrap_or(0);
                u128::from(address) & mask == u128::from(to) & mask
            }
            _ => false,
        }
    }

    fn words(&self) -> String {
        format!("{}/{}", self.to, self.length)
    }
}

/// Loopback, link-local and multicast addresses: the kernel makes routes to them by itself.
fn is_local(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => {
            address.is_loopback() || address.is_link_local() || address.is_multicast()
        }
        IpAddr::V6(address) => {
            address.is_loopback() || address.is_unicast_link_local() || address.is_multicast()
        }
    }
}

/// `Iface Destination Gateway Flags RefCnt Use Metric Mask ...`, addresses in the CPU's order.
fn route_v4(line: &str) -> Option<Route> {
    const GATEWAY: u32 = 0x2;
    const REJECT: u32 = 0x200;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [interface, to, _, flags, _, _, _, mask, ..] = words.as_slice() else { return None };
    let number = |text: &str| u32::from_str_radix(text, 16).ok();
    let (to, mask, flags) = (number(to)?, number(mask)?, number(flags)?);
    Some(Route {
        to: Ipv4Addr::from(to.to_ne_bytes()).into(),
        length: mask.count_ones(),
        has_gateway: flags & GATEWAY != 0,
        interface: (*interface).to_owned(),
    })
    .filter(|_| flags & REJECT == 0)
}

/// `destination length source length next-hop metric references use flags interface`. Routes of lo refuse or are the
/// host's own addresses.
fn route_v6(line: &str) -> Option<Route> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [to, length, _, _, hop, .., interface] = words.as_slice() else { return None };
    let to = u128::from_str_radix(to, 16).ok()?;
    Some(Route {
        to: Ipv6Addr::from(to).into(),
        length: u32::from_str_radix(length, 16).ok().filter(|length| *length <= 128)?,
        has_gateway: hop.bytes().any(|digit| digit != b'0'),
        interface: (*interface).to_owned(),
    })
    .filter(|_| *interface != "lo")
}

/// `address index length scope flags interface`; scope 00 is global.
fn address_v6(line: &str) -> Option<(IpAddr, String)> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [address, _, _, "00", _, interface] = words.as_slice() else { return None };
    let address = u128::from_str_radix(address, 16).ok()?;
    Some((Ipv6Addr::from(address).into(), (*interface).to_owned())).filter(|_| *interface != "lo")
}

/// `IP type flags MAC mask device`; bit 1 of the flags: it answered.
fn neighbour(line: &str) -> Option<(IpAddr, String)> {
    const COMPLETE: u32 = 0x2;
    let words: Vec<&str> = line.split_whitespace().collect();
    let [address, _, flags, _, _, interface] = words.as_slice() else { return None };
    let flags = u32::from_str_radix(flags.trim_start_matches("0x"), 16).ok()?;
    let found = (address.parse().ok()?, (*interface).to_owned());
    Some(found).filter(|_| flags & COMPLETE != 0)
}

/// What /proc/net/fib_trie says when there is a table beside main and local with a default route.
struct Tables {
    /// The host's own.
    addresses: BTreeSet<IpAddr>,
}

impl Tables {
    fn parse(text: &str) -> Option<Self> {
        let (mut addresses, mut has_default) = (BTreeSet::new(), false);
        let (mut table, mut leaf) = ("", None);
        for line in text.lines() {
            if !line.starts_with(' ') {
                table = line.trim_end_matches(':');
            } else if let Some(address) = line.trim_start().strip_prefix("|-- ") {
                leaf = address.trim().parse::<Ipv4Addr>().ok();
            } else if line.contains("/32 host LOCAL") {
                addresses.extend(leaf.map(IpAddr::from));
            } else if line.trim_start().starts_with("/0 ") && line.contains("UNICAST") {
                has_default |= table.starts_with("Id ");
            }
        }
        has_default.then_some(Self { addresses })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    fn routes(file: &str, text: &str) -> Routes {
        let tree = Tree::new();
        tree.file(file, text);
        Routes::read(&tree.sysroot(), &Nets::default()).unwrap()
    }

    #[test]
    fn route_to_ipv6_takes_the_longest_prefix() {
        let line = |prefix: &str, length: &str, interface: &str| {
            let zeros = "0".repeat(32);
            format!("{prefix:0<32} {length} {zeros} 00 {zeros} 00000400 1 0 3 {interface}\n")
        };
        let found = routes(
            "/proc/net/ipv6_route",
            &(line("", "00", "eth0") + &line("20010db8", "20", "eth1") + &line("", "00", "lo")),
        );
        for (peer, interface) in [("2001:db8::5", "eth1"), ("2001:db9::5", "eth0")] {
            assert_eq!(found.to(peer.parse().unwrap()), Some(interface), "{peer}");
        }
    }

    #[test]
    fn route_to_ipv4_takes_the_longest_prefix_and_the_first_of_equals() {
        let found = routes(
            "/proc/net/route",
            "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\n\
             eth0\t00000000\t0100A8C0\t0003\t0\t0\t100\t00000000\n\
             eth1\t00000000\t0101A8C0\t0003\t0\t0\t200\t00000000\n\
             eth2\t0000A8C0\t00000000\t0001\t0\t0\t0\t0000FFFF\n\
             eth3\t0000A8C0\t00000000\t0201\t0\t0\t0\t00FFFFFF\n",
        );
        for (peer, interface) in [("10.0.0.1", "eth0"), ("192.168.0.7", "eth2")] {
            assert_eq!(found.to(peer.parse().unwrap()), Some(interface), "{peer}");
        }
    }

    #[test]
    fn tables_beside_main_count_only_with_a_default_route() {
        let main = "Main:\n  +-- 0.0.0.0/0 3 0 5\n     |-- 0.0.0.0\n        /0 universe UNICAST\n";
        let local = "Local:\n     |-- 10.3.0.5\n        /32 host LOCAL\n";
        assert!(Tables::parse(&format!("{main}{local}")).is_none());
        let other =
            "Id 200:\n  +-- 0.0.0.0/0 2 0 2\n     |-- 0.0.0.0\n        /0 universe UNICAST\n";
        let found = Tables::parse(&format!("{main}{local}{other}")).unwrap();
        assert_eq!(found.addresses, BTreeSet::from(["10.3.0.5".parse().unwrap()]));
    }
}
