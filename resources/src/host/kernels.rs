//! The kernel that this host runs, as files: what a first guest can be started with.

use super::sysroot::{SysError, Sysroot};

/// Where the running kernel and its initramfs lie; distributions differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Installed {
    /// A bzImage.
    pub kernel: Option<String>,
    /// What this host boots with it.
    pub initramfs: Option<String>,
}

/// Looks for the files of the running kernel.
pub fn installed(sysroot: &Sysroot) -> Result<Installed, SysError> {
    let Some(release) = sysroot.read_if_present("/proc/sys/kernel/osrelease")? else {
        return Ok(Installed::default());
    };
    let first =
        |names: &[String]| names.iter().find(|name| sysroot.exists(name)).map(ToOwned::to_owned);
    // Debian, SUSE, Fedora (both places) and Arch, whose file has the name of its package.
    let kernel = first(&[
        format!("/boot/vmlinuz-{release}"),
        format!("/lib/modules/{release}/vmlinuz"),
        format!("/usr/lib/modules/{release}/vmlinuz"),
        "/boot/vmlinuz-linux".to_owned(),
    ]);
    let initramfs = first(&[
        format!("/boot/initrd.img-{release}"),
        format!("/boot/initramfs-{release}.img"),
        format!("/boot/initrd-{release}"),
        "/boot/initramfs-linux.img".to_owned(),
    ]);
    Ok(Installed { kernel, initramfs })
}

// Provenance: names of files as installers of distributions make them, by their documentation; no
// dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    #[test]
    fn installed_files_are_those_of_the_running_kernel() {
        for (kernel, initramfs) in [
            ("/boot/vmlinuz-6.1.0-31-amd64", "/boot/initrd.img-6.1.0-31-amd64"),
            ("/lib/modules/6.1.0-31-amd64/vmlinuz", "/boot/initramfs-6.1.0-31-amd64.img"),
            ("/boot/vmlinuz-linux", "/boot/initramfs-linux.img"),
        ] {
            let tree = Tree::new();
            tree.file("/proc/sys/kernel/osrelease", "6.1.0-31-amd64\n");
            tree.file("/boot/vmlinuz-6.1.0-30-amd64", "");
            tree.file("/boot/initrd.img-6.1.0-30-amd64", "");
            assert_eq!(installed(&tree.sysroot()).unwrap(), Installed::default());
            tree.file(kernel, "");
            tree.file(initramfs, "");
            let found = installed(&tree.sysroot()).unwrap();
            assert_eq!(found.kernel.as_deref(), Some(kernel));
            assert_eq!(found.initramfs.as_deref(), Some(initramfs));
        }
    }
}
