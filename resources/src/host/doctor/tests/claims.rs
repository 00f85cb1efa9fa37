//! Check 41: who gives a device to vfio-pci at boot. Spellings by modprobe.d(5), modprobe(8), udev(7), driverctl(8) and
//! the kernel's vfio_pci.c; file names as distributions use them.
//!
//! Provenance: the files are written after those documents, for no real host.

use super::*;

const GPU: &str = "/sys/bus/pci/devices/0000:3b:00.0";

/// A host of two cards, 10de:1e07 at 0000:3b:00.0 among them, on vfio-pci or with its usual driver.
fn host(driver: &str) -> Tree {
    let tree = Tree::two_cards();
    tree.file("/proc/sys/kernel/osrelease", "6.8.0-52-generic\n");
    tree.file("/etc/os-release", "ID=ubuntu\nID_LIKE=debian\nPRETTY_NAME=\"Ubuntu 24.04.1 LTS\"\n");
    tree.file("/etc/initramfs-tools/initramfs.conf", "MODULES=most\n");
    tree.file("/boot/initrd.img-6.8.0-52-generic", "");
    tree.remove(&format!("{GPU}/driver"));
    tree.link(&format!("{GPU}/driver"), &format!("../../../bus/pci/drivers/{driver}"));
    tree
}

fn claim(tree: &Tree) -> Finding {
    worst(tree, &["3b:00.0"], 41)
}

#[test]
fn every_spelling_of_a_claim_that_works_passes_without_an_alarm() {
    for (file, text) in [
        ("/proc/cmdline", "quiet vfio-pci.ids=10de:1e07,10de:10f7\n"),
        ("/proc/cmdline", "quiet vfio_pci.ids=10de:1e07,10de:10f7\n"),
        ("/proc/cmdline", "quiet vfio-pci.ids=10DE:1E07,10DE:10F7\n"),
        ("/proc/cmdline", "quiet vfio-pci.ids=\"10de:10f7,10de:1e07\"\n"),
        ("/proc/cmdline", "vfio-pci.ids=8086:1 vfio_pci.ids=10de:1e07\n"),
        ("/etc/modprobe.d/vfio.conf", "options vfio_pci ids=10DE:1E07 disable_vga=1\n"),
        ("/etc/modprobe.d/vfio.conf", "options vfio-pci disable_vga=1 ids=\"10de:1e07\"\n"),
        ("/etc/modprobe.d/vfio.conf", "options vfio-pci \\\n  ids=10de:10f7,10de:1e07\n"),
        ("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:1e07:1458:37a9\n"),
        ("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=1:2\noptions vfio_pci ids=10de:1e07\n"),
        ("/lib/modprobe.d/vfio.conf", "options vfio-pci ids=10de:1e07\n"),
        ("/etc/initramfs-tools/modules", "vfio\nvfio_pci ids=10de:1e07,10de:10f7\n"),
        ("/etc/modprobe.d/vfio.conf", "install vfio-pci /usr/local/bin/vfio-pci-override.sh\n"),
        ("/etc/driverctl.d/pci-0000:3b:00.0", "vfio-pci\n"),
        ("/boot/config/vfio-pci.cfg", "BIND=0000:3b:00.0|10de:1e07 0000:3b:00.1|10de:10f7\n"),
        (
            "/etc/udev/rules.d/10-vfio.rules",
            "ACTION==\"add\", KERNEL==\"0000:3b:00.*\", ATTR{driver_override}=\"vfio-pci\"\n",
        ),
    ] {
        let tree = host("vfio-pci");
        tree.file(file, text);
        // As on every running system: /proc is made at each look, and the image lies there for weeks.
        let image = tree.sysroot().path("/boot/initrd.img-6.8.0-52-generic");
        let hour = std::time::Duration::from_secs(3600);
        for (path, age) in [(image, 1), (tree.sysroot().path(file), 2)] {
            if file != "/proc/cmdline" || age == 1 {
                let file = std::fs::File::options().write(true).open(path).unwrap();
                file.set_modified(std::time::SystemTime::now() - hour * age).unwrap();
            }
        }
        let found = claim(&tree);
        assert_eq!(found.level, Level::Pass, "{file}: {text}: {found:?}");
        assert!(found.fact.contains(file), "{found:?}");
    }
}

#[test]
fn what_claims_another_device_claims_nothing() {
    for (file, text) in [
        ("/proc/cmdline", "quiet vfio-pci.ids=10de:10f7\n"),
        ("/proc/cmdline", "quiet -- vfio-pci.ids=10de:1e07\n"),
        ("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:1e07:1043\n"),
        ("/etc/modprobe.d/vfio.conf.bak", "options vfio-pci ids=10de:1e07\n"),
        ("/etc/modprobe.d/vfio.conf", "softdep nouveau pre: vfio-pci\nalias x vfio-pci\n"),
        ("/etc/driverctl.d/pci-0000:3b:00.0", "nvidia\n"),
    ] {
        let tree = host("nouveau");
        tree.file(file, text);
        let found = claim(&tree);
        assert_eq!(found.level, Level::Info, "{file}: {text}: {found:?}");
        assert!(found.fact.contains("no rule gives it"), "{found:?}");
    }
}

#[test]
fn file_of_the_administrator_hides_the_one_of_the_same_name() {
    let tree = host("nouveau");
    tree.file("/usr/lib/modprobe.d/vfio.conf", "options vfio-pci ids=10de:1e07\n");
    assert_eq!(claim(&tree).level, Level::Warn);
    tree.file("/etc/modprobe.d/vfio.conf", "");
    assert!(claim(&tree).fact.contains("no rule gives it"));
}

#[test]
fn options_of_a_built_in_vfio_pci_count_on_the_kernel_command_line_only() {
    let tree = host("nouveau");
    tree.file(
        "/lib/modules/6.8.0-52-generic/modules.builtin",
        "kernel/drivers/vfio/vfio.ko\nkernel/drivers/vfio/pci/vfio-pci.ko\n",
    );
    tree.file("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:1e07\n");
    let found = claim(&tree);
    assert_eq!(found.level, Level::Warn);
    assert!(
        found.fact.contains("built-in module count on the kernel command line only"),
        "{found:?}"
    );
    assert!(found.fix.contains("vfio-pci.ids=10de:1e07"), "{found:?}");
    assert!(!found.fix.contains("initramfs"), "{found:?}");
    tree.file("/proc/cmdline", "quiet vfio-pci.ids=10de:1e07\n");
    assert!(claim(&tree).fact.contains("/proc/cmdline gives it"), "{:?}", claim(&tree));
}

#[test]
fn list_that_a_later_one_replaces_is_told() {
    let tree = host("nouveau");
    tree.file("/etc/modprobe.d/a.conf", "options vfio-pci ids=10de:1e07\n");
    tree.file("/etc/modprobe.d/b.conf", "options vfio-pci ids=10de:10f7\n");
    let found = claim(&tree);
    assert_eq!(found.level, Level::Warn);
    assert!(found.fact.contains("a.conf") && found.fact.contains("b.conf replaces"), "{found:?}");
}

#[test]
fn driver_that_came_first_is_told_with_what_would_stop_it() {
    let tree = host("nouveau");
    tree.file("/etc/modprobe.d/vfio.conf", "options vfio-pci ids=10de:1e07\n");
    let softdep = "softdep nouveau pre: vfio-pci";
    let tells = |found: &Finding| found.details.iter().any(|line| line.contains(softdep));
    assert!(tells(&claim(&tree)), "{:?}", claim(&tree));
    for more in ["softdep nouveau pre: vfio vfio_pci\n", "install nouveau /bin/true\n"] {
        tree.file("/etc/modprobe.d/order.conf", more);
        assert!(!tells(&claim(&tree)), "{more}");
    }
    tree.remove("/etc/modprobe.d/order.conf");
    tree.file("/etc/initramfs-tools/modules", "vfio_pci\n");
    assert!(!tells(&claim(&tree)));
    tree.remove(&format!("{GPU}/driver"));
    assert!(claim(&tree).fact.contains("nobody has it"));
}
