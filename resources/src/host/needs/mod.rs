//! Who of the host depends on a PCI function, and through what: one graph of disks, volumes, pools, mounts, network
//! interfaces, routes, sessions, device nodes and the programs that have them open, from functions upwards.
//!
//! It is read once and asked for any number of functions, by every command that shows or takes one, so that no two can
//! disagree. What a layer is made of is looked up on both sides and in every place that the kernel tells it; where the
//! host does not show who needs a thing, all that may do count.

mod blocks;
mod exports;
mod functions;
mod graph;
mod loss;
mod mounts;
mod nets;
mod nodes;
mod pools;
mod routes;
mod rtnetlink;
mod sessions;
#[cfg(test)]
mod tests;

use std::{cell::OnceCell, env, fmt, io, net::IpAddr};

pub use loss::{Held, Loss};
pub(super) use nodes::group_node;
pub(super) use sessions::ancestors;

use self::{
    blocks::Blocks,
    functions::Owners,
    graph::{Graph, Thing},
    nets::Nets,
    routes::Routes,
};
use super::{
    holders::{Holder, Holders, OpenFiles},
    pci::HostFunction,
    sysroot::{SysError, Sysroot},
};

/// Something that the host would miss without a function.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Need {
    /// What.
    pub loss: Loss,
    /// The names on the way to it, the function's first: `0000:02:00.0`, `nvme1n1`, `nvme1n1p3`, `zpool rpool`,
    /// `mounted on /`.
    pub chain: Vec<String>,
}

impl fmt::Display for Need {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.chain.join(" -> "))
    }
}

impl Need {
    /// The program that has a node open, when it is that.
    pub fn held(&self) -> Option<&Held> {
        match &self.loss {
            Loss::Held(held) => Some(held),
            _ => None,
        }
    }

    /// What a program has open, as the host calls it: a node, or a disk by its kernel name.
    pub fn held_thing(&self) -> &str {
        let before = self.chain.len().checked_sub(2).and_then(|at| self.chain.get(at));
        before.map_or("", String::as_str)
    }

    /// What lets the host do without the function, as far as this is concerned.
    pub fn fix(&self) -> &'static str {
        const SYSTEM: [&str; 5] = ["/", "/boot", "/usr", "/var", "/nix"];
        let mounted = self.chain.last().and_then(|name| name.strip_prefix("mounted on "));
        if self.loss == Loss::Mount && mounted.is_some_and(|point| SYSTEM.contains(&point)) {
            return "keep it: the host runs from it; or move the host to another disk first";
        }
        // A mount of a pool is the least that uses it.
        if self.chain.iter().any(|name| name.starts_with("zpool ")) {
            return Loss::Pool.fix();
        }
        self.loss.fix()
    }

    /// Has a virtual machine this function, or a part of it?
    fn is_guest(&self) -> bool {
        self.held().is_some() && self.held_thing().starts_with("/dev/vfio/")
    }

    /// Has a virtual machine a part of the function: a virtual function, a mediated device?
    pub fn is_guest_of_part(&self) -> bool {
        self.is_guest() && self.chain.len() > SHORT
    }
}

/// Function, node, program: a holder of the function itself.
const SHORT: usize = 3;

/// The graph of a host, read when it is first asked.
#[derive(Debug)]
pub struct Needs<'a> {
    sysroot: &'a Sysroot,
    peers: Vec<IpAddr>,
    read: OnceCell<Read>,
}

#[derive(Debug)]
struct Read {
    graph: Graph,
    files: OpenFiles,
}

impl<'a> Needs<'a> {
    /// Of this host, with the user's own SSH connection where it is known.
    pub fn new(sysroot: &'a Sysroot) -> Self {
        // A directory that stands for a host has other users.
        let connection = env::var("SSH_CONNECTION").ok().filter(|_| sysroot.is_host());
        let peer = connection.and_then(|text| text.split(' ').next()?.parse().ok());
        Self::with_peers(sysroot, peer.into_iter().collect())
    }

    /// The same; `peers` are addresses of people who must not be cut off, besides those that are logged in now.
    fn with_peers(sysroot: &'a Sysroot, peers: Vec<IpAddr>) -> Self {
        Self { sysroot, peers, read: OnceCell::new() }
    }

    /// The host that it is of.
    pub fn sysroot(&self) -> &'a Sysroot {
        self.sysroot
    }

    fn read(&self) -> Result<&Read, SysError> {
        if let Some(read) = self.read.get() {
            return Ok(read);
        }
        let read = read(self.sysroot, &self.peers)?;
        Ok(self.read.get_or_init(|| read))
    }

    /// What any process has open.
    pub fn files(&self) -> Result<&OpenFiles, SysError> {
        Ok(&self.read()?.files)
    }

    /// Everything that the host would miss without this function, programs that have its nodes open among it; what says
    /// most comes first. VFIO's nodes of the function itself are left out: whoever has them has the function.
    pub fn of(&self, function: &HostFunction) -> Result<Vec<Need>, SysError> {
        let mut found = self.all(function)?;
        found.retain(|need| !need.is_guest() || need.is_guest_of_part());
        Ok(found)
    }

    /// The programs that have a node of this function open, VFIO's nodes included.
    pub fn holders(&self, function: &HostFunction) -> Result<Holders, SysError> {
        let mut found: Vec<Holder> = Vec::new();
        for need in self.all(function)?.iter().filter(|need| !need.is_guest_of_part()) {
            let Some(Held { pid, name, node }) = need.held() else { continue };
            let holder = Holder { pid: *pid, name: name.clone(), node: node.clone() };
            if !found.contains(&holder) {
                found.push(holder);
            }
        }
        Ok(Holders { found, hidden: self.files()?.hidden() })
    }

    fn all(&self, function: &HostFunction) -> Result<Vec<Need>, SysError> {
        let start = Thing::Function(function.bdf);
        let reached = self.read()?.graph.reach(&start);
        let mut found = Vec::new();
        for (thing, chain) in &reached {
            let (Thing::End(loss), mut chain) = (thing, chain.clone()) else { continue };
            // The name of the mount says it already.
            if *loss == Loss::Mount {
                chain.pop();
            }
            found.push(Need { loss: loss.clone(), chain });
        }
        if function.boot_vga == Some(true) && !function.is_on_vfio() {
            let chain = vec![function.bdf.to_string(), Loss::BootDisplay.to_string()];
            found.push(Need { loss: Loss::BootDisplay, chain });
        }
        if found.iter().all(|need| need.held().is_some()) {
            found.extend(self.claimed(&reached));
        }
        found.sort();
        found.dedup();
        Ok(found)
    }

    /// The highest disk, partition or volume that the kernel has claimed, when nothing says for what.
    fn claimed(&self, reached: &[(&Thing, Vec<String>)]) -> Option<Need> {
        let is_claimed = |name: &str| {
            let tried = self.sysroot.try_claim(&format!("/dev/{}", name.replace('!', "/")));
            tried.is_err_and(|error| error.kind() == io::ErrorKind::ResourceBusy)
        };
        reached.iter().rev().find_map(|(thing, chain)| {
            let Thing::Block(name) = thing else { return None };
            let mut chain = chain.clone();
            chain.push(Loss::Claimed.to_string());
            is_claimed(name).then_some(Need { loss: Loss::Claimed, chain })
        })
    }
}

fn read(sysroot: &Sysroot, peers: &[IpAddr]) -> Result<Read, SysError> {
    let mut graph = Graph::default();
    let owners = Owners::read(sysroot)?;
    functions::parts(sysroot, &owners, &mut graph)?;
    functions::kernel(sysroot, &owners, &mut graph)?;
    let blocks = Blocks::read(sysroot, &owners, &mut graph)?;
    let mounts = mounts::read(sysroot)?;
    mounts::stand(sysroot, &blocks, &mounts, &mut graph)?;
    pools::stand(sysroot, &blocks, &mounts, &mut graph)?;
    exports::stand(sysroot, &blocks, &mut graph)?;
    let nets = Nets::read(sysroot, &owners, &mut graph)?;
    let routes = Routes::read(sysroot, &nets)?;
    routes.stand(sysroot, &nets, &mut graph)?;
    let files = OpenFiles::read(sysroot)?;
    sessions::stand(sysroot, (&nets, &routes), &files, &mounts, peers, &mut graph)?;
    nodes::stand(sysroot, (&owners, &blocks, &nets), &files, &mut graph)?;
    Ok(Read { graph, files })
}
