//! Who has which device node open: the walk over /proc/*/fd that `fuser` makes.
//!
//! A node is told by its device number, not by its name: a container may have the host's renderD129 as its renderD128.

use std::collections::BTreeMap;

use super::sysroot::{SysError, Sysroot};

/// A device node, as sysfs knows it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct DeviceNode {
    /// Its usual name: `/dev/dri/card0`.
    pub path: String,
    /// `b` for a block device or `c`, then `major:minor`; `None` when it is not known.
    pub number: Option<String>,
}

/// A process with a node open.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Holder {
    /// Process ID.
    pub pid: u32,
    /// Its name, 15 characters at most.
    pub name: String,
    /// Which node, as the process calls it.
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

/// One node that one process has open.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct OpenNode {
    /// Process ID.
    pub pid: u32,
    /// The process's name.
    pub name: String,
    /// The node as the process calls it.
    pub path: String,
    /// As in [`DeviceNode`].
    pub number: Option<String>,
}

/// Everything of interest that any process has open, read once.
#[derive(Debug, Default)]
pub struct OpenFiles {
    nodes: Vec<OpenNode>,
    /// Processes by the inode of a socket that they have.
    sockets: BTreeMap<u64, Vec<u32>>,
    names: BTreeMap<u32, String>,
    hidden: usize,
}

impl OpenFiles {
    /// Walks over all processes.
    pub fn read(sysroot: &Sysroot) -> Result<Self, SysError> {
        let mut files = Self::default();
        let elsewhere = remote(sysroot)?;
        for name in sysroot.list_if_present("/proc")? {
            let Ok(pid) = name.parse::<u32>() else { continue };
            if let Ok(Some(name)) = sysroot.read_if_present(&format!("/proc/{pid}/comm")) {
                files.names.insert(pid, name);
            }
            let open = match sysroot.list(&format!("/proc/{pid}/fd")) {
                Ok(open) => open,
                // It ended since.
                Err(error) if error.is_absent() => continue,
                Err(_) => {
                    files.hidden += 1;
                    continue;
                }
            };
            for descriptor in open {
                files.one(sysroot, pid, &descriptor, &elsewhere);
            }
        }
        files.nodes.sort();
        files.nodes.dedup();
        Ok(files)
    }

    /// A descriptor closed since is as good as none.
    fn one(&mut self, sysroot: &Sysroot, pid: u32, descriptor: &str, elsewhere: &[String]) {
        let link = sysroot.link(&format!("/proc/{pid}/fd/{descriptor}")).ok().flatten();
        let Some(path) = link.as_ref().and_then(|path| path.to_str()) else { return };
        let inode = path.strip_prefix("socket:[").and_then(|rest| rest.strip_suffix(']'));
        if let Some(inode) = inode.and_then(|inode| inode.parse().ok()) {
            self.sockets.entry(inode).or_default().push(pid);
        }
        // A server that does not answer would keep us waiting for a file of its; and devices are never there.
        if !path.starts_with('/') || elsewhere.iter().any(|point| path.starts_with(point)) {
            return;
        }
        let number = sysroot.number_of_open(pid, descriptor, path);
        // On this host whatever is a device has a number.
        if number.is_none() && (sysroot.is_host() || !path.starts_with("/dev/")) {
            return;
        }
        let name = self.names.get(&pid).cloned().unwrap_or_else(|| "?".to_owned());
        self.nodes.push(OpenNode { pid, name, path: path.to_owned(), number });
    }

    /// Who has this node open: by number, or by name where one of the numbers is not known.
    pub fn of(&self, node: &DeviceNode) -> impl Iterator<Item = &OpenNode> {
        self.nodes.iter().filter(move |open| match (&open.number, &node.number) {
            (Some(open), Some(wanted)) => open == wanted,
            _ => open.path == node.path,
        })
    }

    /// Who has one of these nodes open.
    pub fn holders(&self, nodes: &[DeviceNode]) -> Holders {
        let mut found: Vec<Holder> = Vec::new();
        for node in nodes {
            for OpenNode { pid, name, path, .. } in self.of(node) {
                let holder = Holder { pid: *pid, name: name.clone(), node: path.clone() };
                if !found.contains(&holder) {
                    found.push(holder);
                }
            }
        }
        found.sort_by_key(|holder| holder.pid);
        Holders { found, hidden: self.hidden }
    }

    /// The processes that have this socket.
    pub fn owners(&self, inode: u64) -> &[u32] {
        self.sockets.get(&inode).map_or(&[], Vec::as_slice)
    }

    /// A process's name.
    pub fn name(&self, pid: u32) -> Option<&str> {
        self.names.get(&pid).map(String::as_str)
    }

    /// The processes of this name.
    pub fn named(&self, name: &str) -> impl Iterator<Item = u32> {
        self.names.iter().filter(move |(_, known)| *known == name).map(|(pid, _)| *pid)
    }

    /// Processes of other users that we were not allowed to look into.
    pub fn hidden(&self) -> usize {
        self.hidden
    }
}

/// Mount points of file systems that are another machine's or a program's.
fn remote(sysroot: &Sysroot) -> Result<Vec<String>, SysError> {
    const KINDS: [&str; 9] = ["nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "afs", "lustre", "fuse"];
    let text = sysroot.read_if_present("/proc/self/mountinfo")?.unwrap_or_default();
    let point = |line: &str| {
        let point = line.split(' ').nth(4)?;
        let kind = line.split(" - ").nth(1)?.split(' ').next()?;
        let is_remote = KINDS.contains(&kind.split('.').next()?);
        // Everything is below a root by network.
        (is_remote && point != "/").then(|| format!("{point}/"))
    };
    Ok(text.lines().filter_map(point).collect())
}

/// The processes that have one of these nodes open.
pub fn holders(sysroot: &Sysroot, nodes: &[DeviceNode]) -> Result<Holders, SysError> {
    Ok(OpenFiles::read(sysroot)?.holders(nodes))
}

// Provenance: links and names in the form of proc_pid_fd(5) and proc_pid_comm(5), made up; no dump
// of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    fn node(path: &str, number: Option<&str>) -> DeviceNode {
        DeviceNode { path: path.to_owned(), number: number.map(str::to_owned) }
    }

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
        let found = holders(&tree.sysroot(), &[node("/dev/vfio/31", None)]).unwrap();
        let (name, node) = ("qemu-system-x86".to_owned(), "/dev/vfio/31".to_owned());
        assert_eq!(found, Holders { found: vec![Holder { pid: 4242, name, node }], hidden: 0 });
    }

    #[test]
    fn holders_process_without_descriptors_left_is_skipped() {
        let tree = Tree::new();
        tree.directory("/proc/5");
        let any = [node("/dev/null", None)];
        assert_eq!(holders(&tree.sysroot(), &any).unwrap(), Holders::default());
    }

    /// A container has the second render node under the name of the first, and another program has a name of its own
    /// for a disk.
    #[test]
    fn holders_are_told_by_number_and_not_by_name() {
        let tree = Tree::new();
        tree.node("/proc/812/root/dev/dri/renderD128", "c226:129");
        tree.link("/proc/812/fd/7", "/dev/dri/renderD128");
        tree.node("/run/lab/container/disk", "b259:1");
        tree.link("/proc/900/fd/3", "/run/lab/container/disk");
        let files = OpenFiles::read(&tree.sysroot()).unwrap();
        let pids = |path: &str, number: &str| {
            let found = files.holders(&[node(path, Some(number))]).found;
            found.iter().map(|holder| holder.pid).collect::<Vec<_>>()
        };
        assert!(pids("/dev/dri/renderD128", "c226:128").is_empty());
        assert_eq!(pids("/dev/dri/renderD129", "c226:129"), [812]);
        assert_eq!(pids("/dev/nvme1n1", "b259:1"), [900]);
        assert!(pids("/dev/ttyS1", "c259:1").is_empty());
    }

    #[test]
    fn open_files_know_who_has_a_socket() {
        let tree = Tree::new();
        tree.file("/proc/700/comm", "sshd-session\n");
        tree.link("/proc/700/fd/4", "socket:[31337]");
        let files = OpenFiles::read(&tree.sysroot()).unwrap();
        assert_eq!((files.owners(31337), files.name(700)), (&[700][..], Some("sshd-session")));
        assert!(files.owners(1).is_empty() && files.named("sshd-session").eq([700]));
    }

    #[test]
    fn open_files_of_another_machine_are_not_looked_at() {
        let tree = Tree::new();
        tree.file(
            "/proc/self/mountinfo",
            "40 1 0:50 / /srv rw - nfs4 10.0.0.1:/srv rw,addr=10.0.0.1\n",
        );
        assert_eq!(remote(&tree.sysroot()).unwrap(), ["/srv/"]);
    }
}
