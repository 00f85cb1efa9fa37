//! Network interfaces: whose they are, and which one is made of which.
//!
//! The kernel shows most layers (bridge, bond, team, VLAN, macvlan, a VRF) as `upper_NAME` of the lower interface and
//! `lower_NAME` of the upper one. What it does not show so: the interfaces of an Open vSwitch bridge, PPPoE, and tunnels,
//! whose packets leave by whatever route leads to the other end.

use std::{
    collections::{BTreeMap, BTreeSet},
    path::PathBuf,
};

use super::{
    super::sysroot::{SysError, Sysroot},
    Loss,
    functions::Owners,
    graph::{Graph, Thing},
};

const NET: &str = "/sys/class/net";

/// The datapath of Open vSwitch in the kernel, and the one in a program.
const SWITCHES: [&str; 2] = ["ovs-system", "ovs-netdev"];

/// Every interface.
#[derive(Debug, Default)]
pub(super) struct Nets {
    places: BTreeMap<String, PathBuf>,
    /// What each is made of, as far as the host shows.
    lower: BTreeMap<String, BTreeSet<String>>,
}

fn net(name: &str) -> Thing {
    Thing::Net(name.to_owned())
}

impl Nets {
    /// Reads them all and puts them into the graph, on the functions that they are behind.
    pub(super) fn read(
        sysroot: &Sysroot,
        owners: &Owners,
        graph: &mut Graph,
    ) -> Result<Self, SysError> {
        let mut nets = Self::default();
        for name in sysroot.list_if_present(NET)? {
            // bonding_masters is a file, and a dangling link an interface that just left.
            let Some(place) = sysroot.canonical(&format!("{NET}/{name}"))? else { continue };
            if !sysroot.path(&place.to_string_lossy()).is_dir() {
                continue;
            }
            for owner in owners.of(&place) {
                graph.stand(net(&name), owner);
            }
            nets.places.insert(name, place);
        }
        for name in nets.places.keys().cloned().collect::<Vec<_>>() {
            nets.layers(sysroot, &name)?;
        }
        nets.vlans(sysroot)?;
        nets.pppoe(sysroot)?;
        nets.switched(sysroot)?;
        for (upper, lowers) in &nets.lower {
            for lower in lowers {
                graph.stand(net(upper), net(lower));
            }
        }
        nets.ports(sysroot, owners, graph)?;
        Ok(nets)
    }

    /// The interfaces by name.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.places.keys().map(String::as_str)
    }

    /// Where in sysfs they are.
    pub(super) fn places(&self) -> impl Iterator<Item = (&str, &PathBuf)> {
        self.places.iter().map(|(name, place)| (name.as_str(), place))
    }

    /// The interfaces by the kernel's numbers for them.
    pub(super) fn by_index(&self, sysroot: &Sysroot) -> Result<BTreeMap<u32, &str>, SysError> {
        let mut found = BTreeMap::new();
        for name in self.names() {
            let index = sysroot.read_if_present(&format!("{NET}/{name}/ifindex"))?;
            found
                .extend(index.and_then(|text| text.trim().parse().ok()).map(|index| (index, name)));
        }
        Ok(found)
    }

    fn over(&mut self, upper: &str, lower: &str) {
        if upper != lower {
            self.lower.entry(upper.to_owned()).or_default().insert(lower.to_owned());
        }
    }

    fn is_virtual(&self, name: &str) -> bool {
        self.places.get(name).is_some_and(|place| place.starts_with("/sys/devices/virtual"))
    }

    fn layers(&mut self, sysroot: &Sysroot, name: &str) -> Result<(), SysError> {
        let at = format!("{NET}/{name}");
        for entry in sysroot.list_if_present(&at)? {
            if let Some(upper) = entry.strip_prefix("upper_") {
                self.over(upper, name);
            } else if let Some(lower) = entry.strip_prefix("lower_") {
                self.over(name, lower);
            }
        }
        for link in ["master", "brport/bridge"] {
            if let Some(upper) = sysroot.link_name(&format!("{at}/{link}"))? {
                self.over(&upper, name);
            }
        }
        for lower in sysroot.list_if_present(&format!("{at}/brif"))? {
            self.over(name, &lower);
        }
        for file in ["bonding/slaves", "batman_adv/mesh_iface"] {
            let text = sysroot.read_if_present(&format!("{at}/{file}"))?.unwrap_or_default();
            for other in text.split_whitespace() {
                match file {
                    "bonding/slaves" => self.over(name, other),
                    _ => self.over(other, name),
                }
            }
        }
        self.index(sysroot, name)
    }

    /// `iflink` is the number of the interface below. Of a veth it is the other end, in another namespace perhaps and
    /// with a number that means another interface here: only kinds of which it is known to be here count.
    fn index(&mut self, sysroot: &Sysroot, name: &str) -> Result<(), SysError> {
        const KINDS: [&str; 5] = ["vlan", "macvlan", "ipvlan", "macvtap", "vxlan"];
        let at = format!("{NET}/{name}");
        let uevent = sysroot.read_if_present(&format!("{at}/uevent"))?.unwrap_or_default();
        let kind = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE="));
        if !kind.is_some_and(|kind| KINDS.contains(&kind)) {
            return Ok(());
        }
        let below = sysroot.read_if_present(&format!("{at}/iflink"))?;
        for other in self.places.keys().cloned().collect::<Vec<_>>() {
            let index = sysroot.read_if_present(&format!("{NET}/{other}/ifindex"))?;
            if below.is_some() && index == below {
                self.over(name, &other);
            }
        }
        Ok(())
    }

    /// `eth0.10        | 10  | eth0`, below two lines of heading.
    fn vlans(&mut self, sysroot: &Sysroot) -> Result<(), SysError> {
        let text = sysroot.read_if_present("/proc/net/vlan/config")?.unwrap_or_default();
        for line in text.lines() {
            let words: Vec<&str> = line.split('|').map(str::trim).collect();
            if let [upper, id, lower] = words.as_slice()
                && id.parse::<u16>().is_ok()
            {
                self.over(upper, lower);
            }
        }
        Ok(())
    }

    /// A session of the kernel's PPPoE names its device, but not which of the PPP interfaces it carries; neither does the
    /// packet socket of a program that does the same.
    fn pppoe(&mut self, sysroot: &Sysroot) -> Result<(), SysError> {
        let mut below = Vec::new();
        // Id Address Device.
        let text = sysroot.read_if_present("/proc/net/pppoe")?.unwrap_or_default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, device] = words.as_slice()
                && self.places.contains_key(*device)
            {
                below.push((*device).to_owned());
            }
        }
        // sk RefCnt Type Proto Iface R Rmem User Inode; 8863 and 8864 are PPPoE's protocols.
        let text = sysroot.read_if_present("/proc/net/packet")?.unwrap_or_default();
        for line in text.lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            let [_, _, _, "8863" | "8864", index, ..] = words.as_slice() else { continue };
            for name in self.places.keys() {
                let own = sysroot.read_if_present(&format!("{NET}/{name}/ifindex"))?;
                if own.as_deref() == Some(*index) {
                    below.push(name.clone());
                }
            }
        }
        for upper in self.places.keys().cloned().collect::<Vec<_>>() {
            if is_ppp(sysroot, &upper)? {
                below.iter().for_each(|lower| self.over(&upper, lower));
            }
        }
        Ok(())
    }

    /// An interface of an Open vSwitch bridge has no link to the bridge's ports, and which port is in which bridge only
    /// its daemon knows: any may be the way out.
    fn switched(&mut self, sysroot: &Sysroot) -> Result<(), SysError> {
        for switch in SWITCHES {
            if !self.places.contains_key(switch) {
                continue;
            }
            if switch == "ovs-netdev" {
                // It takes packets from its ports by sockets, and has them listen to everything.
                for name in self.places.keys().cloned().collect::<Vec<_>>() {
                    if !self.is_virtual(&name) && is_promiscuous(sysroot, &name)? {
                        self.over(switch, &name);
                    }
                }
            }
            for name in self.places.keys().cloned().collect::<Vec<_>>() {
                let is_own = name == "lo" || SWITCHES.contains(&name.as_str());
                if !is_own && self.is_floating(&name) && may_be_switched(sysroot, &name, switch)? {
                    self.over(&name, switch);
                }
            }
        }
        Ok(())
    }

    /// Is it made by software, and of nothing that the host shows?
    fn is_floating(&self, name: &str) -> bool {
        let below = self.lower.get(name);
        self.is_virtual(name) && below.is_none_or(|below| below.iter().all(|l| self.is_switch(l)))
    }

    fn is_switch(&self, name: &str) -> bool {
        SWITCHES.contains(&name)
    }

    /// Interfaces whose packets go out inside of others' packets, by routes: VPNs, GRE, PPP over something unknown.
    pub(super) fn tunnels(&self, sysroot: &Sysroot) -> Result<Vec<String>, SysError> {
        let mut found = Vec::new();
        for name in self.names().filter(|name| *name != "lo" && self.is_floating(name)) {
            if is_tunnel(sysroot, name)? {
                found.push(name.to_owned());
            }
        }
        Ok(found)
    }

    /// Interfaces of functions that are up: what may carry traffic that nothing explains.
    pub(super) fn up(&self, sysroot: &Sysroot) -> Result<Vec<String>, SysError> {
        let mut found = Vec::new();
        for name in self.names().filter(|name| !self.is_virtual(name)) {
            let state = sysroot.read_if_present(&format!("{NET}/{name}/operstate"))?;
            if matches!(state.as_deref(), Some("up" | "unknown")) {
                found.push(name.to_owned());
            }
        }
        Ok(found)
    }

    /// A bridge that joins ports of different devices carries the traffic of the others: guests and containers.
    fn ports(&self, sysroot: &Sysroot, owners: &Owners, graph: &mut Graph) -> Result<(), SysError> {
        for (bridge, ports) in &self.lower {
            let is_bridge = sysroot.exists(&format!("{NET}/{bridge}/bridge"))
                || sysroot.exists(&format!("{NET}/{bridge}/brif"))
                || self.is_switch(bridge);
            if !is_bridge {
                continue;
            }
            let device = |port: &String| {
                self.places.get(port).map(|place| owners.of(place)).unwrap_or_default()
            };
            for port in ports {
                let own = device(port);
                let others: Vec<&str> = ports
                    .iter()
                    .filter(|other| *other != port && (own.is_empty() || device(other) != own))
                    .map(String::as_str)
                    .collect();
                if !own.is_empty() && !others.is_empty() {
                    let words = format!("{} in {bridge}", others.join(", "));
                    graph.lose(net(port), Loss::Ports(words));
                }
            }
        }
        Ok(())
    }
}

/// `type` of sysfs: ARPHRD numbers of the kernel's if_arp.h.
fn kind(sysroot: &Sysroot, name: &str) -> Result<u32, SysError> {
    let text = sysroot.read_if_present(&format!("{NET}/{name}/type"))?;
    Ok(text.and_then(|text| text.parse().ok()).unwrap_or(1))
}

fn is_ppp(sysroot: &Sysroot, name: &str) -> Result<bool, SysError> {
    const PPP: u32 = 512;
    Ok(kind(sysroot, name)? == PPP || name.starts_with("ppp"))
}

fn is_tunnel(sysroot: &Sysroot, name: &str) -> Result<bool, SysError> {
    /// IPv4 and IPv6 in IPv4, GRE of both, IPv4 and IPv6 in IPv6, and NONE, which WireGuard and tun have.
    const KINDS: [u32; 6] = [768, 769, 776, 778, 823, 65534];
    const NAMES: [&str; 8] = ["wireguard", "vxlan", "geneve", "gre", "ppp", "l2tp", "ipip", "sit"];
    let at = format!("{NET}/{name}");
    let uevent = sysroot.read_if_present(&format!("{at}/uevent"))?.unwrap_or_default();
    let named = uevent.lines().find_map(|line| line.strip_prefix("DEVTYPE="));
    let starts =
        ["wg", "tun", "tap", "ppp", "vpn", "tailscale"].iter().any(|s| name.starts_with(s));
    Ok(starts
        || named.is_some_and(|kind| NAMES.contains(&kind))
        || KINDS.contains(&kind(sysroot, name)?)
        || is_ppp(sysroot, name)?
        || sysroot.exists(&format!("{at}/tun_flags")))
}

/// Could it be an interface of a bridge of this switch? The one in the kernel has devices without any mark; the one in a
/// program has tap devices.
fn may_be_switched(sysroot: &Sysroot, name: &str, switch: &str) -> Result<bool, SysError> {
    let at = format!("{NET}/{name}");
    let is_tap = sysroot.exists(&format!("{at}/tun_flags"));
    if switch == "ovs-netdev" {
        return Ok(is_tap);
    }
    let uevent = sysroot.read_if_present(&format!("{at}/uevent"))?.unwrap_or_default();
    let (own, below) = (
        sysroot.read_if_present(&format!("{at}/ifindex"))?,
        sysroot.read_if_present(&format!("{at}/iflink"))?,
    );
    // The two differ for a veth, whose other end is elsewhere.
    let is_end = own.is_some() && below.is_some() && own != below;
    Ok(!is_tap
        && !is_end
        && !uevent.contains("DEVTYPE=")
        && !sysroot.exists(&format!("{at}/bridge"))
        && !sysroot.exists(&format!("{at}/bonding")))
}

fn is_promiscuous(sysroot: &Sysroot, name: &str) -> Result<bool, SysError> {
    /// IFF_PROMISC.
    const PROMISCUOUS: u32 = 0x100;
    let text = sysroot.read_if_present(&format!("{NET}/{name}/flags"))?.unwrap_or_default();
    let flags = u32::from_str_radix(text.trim_start_matches("0x"), 16).unwrap_or(0);
    Ok(flags & PROMISCUOUS != 0)
}
