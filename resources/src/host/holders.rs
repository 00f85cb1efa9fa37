//! Who has a device node open: the walk over /proc/*/fd that `fuser` makes.

use super::sysroot::{SysError, Sysroot};

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

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
}
