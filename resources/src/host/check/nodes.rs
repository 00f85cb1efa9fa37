//! Device nodes: may we open them, and if not, why.

use std::io;

use super::super::{
    holders::{Holders, holders},
    memory,
    needs::group_node,
    sysroot::{SysError, Sysroot},
};
use crate::{codes, failure::Failure};

/// What the system said to an open, sorted.
#[derive(Debug)]
pub(super) enum Refused {
    /// EACCES, EPERM.
    Permission(io::Error),
    /// EBUSY.
    Busy(io::Error),
    /// Anything else: the node is there and nothing behind it.
    Broken(io::Error),
}

/// Opens the node for reading and writing, and closes it.
pub(super) fn open(sysroot: &Sysroot, path: &str) -> Result<(), Refused> {
    sysroot.try_open(path).map_err(|error| match error.kind() {
        io::ErrorKind::PermissionDenied => Refused::Permission(error),
        io::ErrorKind::ResourceBusy => Refused::Busy(error),
        _ => Refused::Broken(error),
    })
}

/// The refusal for a node that we may not open; `fix` is for the case that its mode is the reason.
pub(super) fn no_permission(
    sysroot: &Sysroot,
    path: &str,
    fix: &str,
    error: io::Error,
) -> Result<Failure, SysError> {
    let node = sysroot.node(path)?;
    let uid = memory::effective_uid(sysroot)?;
    let who = uid.map_or_else(|| "an unknown user".to_owned(), |uid| format!("uid {uid}"));
    let Some(node) = node else {
        let cause = format!("{path} may not be opened by {who}");
        return Ok(Failure::new(&codes::E1003, cause, fix).source(error));
    };
    let cause = format!(
        "no permission on {path}: it belongs to uid {}, gid {} with mode {:04o}, and strait runs as {who}",
        node.uid, node.gid, node.mode
    );
    // Root, or a mode that lets everybody: then it is not the mode that refuses.
    if uid == Some(0) || node.mode & 0o006 == 0o006 {
        let fix = format!(
            "allow it in the device filter: systemd DeviceAllow={path} rw, docker --device {path}"
        );
        let failure = Failure::new(&codes::E1003, cause, fix).detail(
            "the mode would let strait in; a container's or service's device filter does not",
        );
        return Ok(failure.source(error));
    }
    Ok(Failure::new(&codes::E1003, cause, fix).source(error))
}

/// Who has this group's node open. VFIO lets one have it at a time: whoever can open it is alone, and need not ask every
/// process, of which a busy host has thousands. In a directory that stands for a host nothing is busy.
pub(super) fn who_has(sysroot: &Sysroot, group: u32) -> Result<Holders, SysError> {
    let node = group_node(sysroot, &group.to_string())?;
    if sysroot.is_host() && sysroot.try_open(&node.path).is_ok() {
        return Ok(Holders::default());
    }
    holders(sysroot, &[node])
}

// Provenance: the two-card server of the fixture module, nodes by hand; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Tree, status};

    fn denied() -> io::Error {
        io::Error::from(io::ErrorKind::PermissionDenied)
    }

    #[test]
    fn no_permission_says_owner_mode_and_user() {
        use std::{fs, os::unix::fs::PermissionsExt};
        let tree = Tree::two_cards();
        tree.file("/proc/self/status", status(1000, 0));
        let path = tree.sysroot().path("/dev/vfio/31");
        fs::set_permissions(path, fs::Permissions::from_mode(0o600)).unwrap();
        let failure =
            no_permission(&tree.sysroot(), "/dev/vfio/31", "udev rule", denied()).unwrap();
        assert_eq!(failure.code.id, "E1003");
        for fact in ["/dev/vfio/31", "mode 0600", "uid 1000"] {
            assert!(failure.cause.contains(fact), "{}", failure.cause);
        }
        assert_eq!(failure.fix, "udev rule");
    }

    #[test]
    fn no_permission_for_root_blames_the_device_filter() {
        let tree = Tree::two_cards();
        let failure =
            no_permission(&tree.sysroot(), "/dev/vfio/31", "udev rule", denied()).unwrap();
        assert!(failure.fix.contains("DeviceAllow=/dev/vfio/31"), "{}", failure.fix);
    }

    #[test]
    fn open_of_what_is_no_node_is_broken() {
        let tree = Tree::two_cards();
        assert!(open(&tree.sysroot(), "/dev/vfio/31").is_ok());
        assert!(matches!(open(&tree.sysroot(), "/dev/vfio"), Err(Refused::Broken(_))));
    }
}
