//! What the host needs is refused by every view.
//!
//! Provenance: one device by hand beside the two-card server of the fixture module, layers as in
//! the tests of `needs`; no dump of a host.

use super::{
    super::super::fixture::{Function, Tree},
    *,
};
use crate::host::{
    check::{bindable, select},
    doctor::{self, Level},
    inventory::{Verdict, inventory},
};

/// A device that is asked for in a group of its own, on a good host.
const DEVICE: &str = "0000:02:00.0";
const AT: &str = "/sys/bus/pci/devices/0000:02:00.0";

fn tree(driver: &str) -> Tree {
    let tree = Tree::two_cards();
    let (driver, group) = (Some(driver), Some(7));
    tree.function(&Function { bdf: DEVICE, driver, group, ..Function::default() });
    tree
}

fn chosen(tree: &Tree, bdf: &str) -> Vec<HostFunction> {
    select(&tree.sysroot(), &[bdf.to_owned()]).unwrap()
}

/// What each view says of a device: devices, doctor (check 14 and the plan), bind.
fn refusals(tree: &Tree, bdf: &str) -> (Failure, Failure) {
    let (sysroot, one) = (tree.sysroot(), chosen(tree, bdf));
    let bound = bindable(&sysroot, &one, &Allowed::default()).unwrap_err();
    let all = inventory(&sysroot).unwrap();
    let entry = all.into_iter().find(|entry| entry.function.bdf == one[0].bdf).unwrap();
    let Verdict::No(listed) = entry.verdict else { panic!("{:?}", entry.verdict) };
    let findings = doctor::examine(&sysroot, &one).unwrap();
    let failed = findings.iter().any(|finding| finding.level == Level::Fail);
    assert!(failed, "{findings:#?}");
    for finding in findings.iter().filter(|finding| finding.level == Level::Fail) {
        let lines: Vec<&String> = finding.details.iter().collect();
        assert!(!lines.iter().any(|line| line.contains("driver_override")), "{finding:#?}");
    }
    let plan = doctor::fix_plan(&sysroot, &one).unwrap();
    let first = plan.steps.first().expect("a plan that frees it");
    assert!(first.title.starts_with("Free "), "{first:?}");
    let lines: Vec<&String> = plan.steps.iter().flat_map(|step| &step.lines).collect();
    assert!(lines.iter().all(|line| line.starts_with("# ")), "{lines:#?}");
    (bound, listed)
}

/// A desktop on a card that is not the first: PID 1 and logind keep its node for the session.
#[test]
fn desktop_on_the_card_is_told_to_end_its_session_and_nobody_is_killed() {
    let tree = tree("nouveau");
    tree.file(&format!("{AT}/drm/card1/dev"), "226:1\n");
    tree.file(&format!("{AT}/drm/card1/uevent"), "DEVNAME=dri/card1\n");
    for (pid, name, fd) in
        [(1, "systemd", 88), (812, "systemd-logind", 31), (1400, "gnome-shell", 12)]
    {
        tree.file(&format!("/proc/{pid}/comm"), format!("{name}\n"));
        tree.link(&format!("/proc/{pid}/fd/{fd}"), "/dev/dri/card1");
    }
    let (bound, listed) = refusals(&tree, DEVICE);
    assert_eq!((bound.code.id, listed.code.id), ("E1106", "E1106"));
    assert!(bound.fix.contains("systemctl stop display-manager"), "{}", bound.fix);
    assert!(bound.fix.contains("log out"), "{}", bound.fix);
    let findings = doctor::examine(&tree.sysroot(), &chosen(&tree, DEVICE)).unwrap();
    for finding in findings {
        assert!(!finding.fix.contains("kill"), "{finding:?}");
    }
}

#[test]
fn guest_with_a_virtual_function_keeps_the_physical_one() {
    let tree = tree("i40e");
    let part = "0000:02:0a.0";
    let (driver, group) = (Some("vfio-pci"), Some(60));
    tree.function(&Function { bdf: part, driver, group, ..Function::default() });
    tree.link(&format!("{AT}/virtfn0"), &format!("../{part}"));
    let one = chosen(&tree, DEVICE);
    let warnings = bindable(&tree.sysroot(), &one, &Allowed::default()).unwrap().warnings;
    assert_eq!((warnings[0].code.id, warnings[0].details[0].as_str()), ("E1120", part));
    tree.link("/proc/4711/fd/27", "/dev/vfio/60");
    tree.file("/proc/4711/comm", "qemu-system-x86\n");
    let (bound, listed) = refusals(&tree, DEVICE);
    assert_eq!((bound.code.id, listed.code.id), ("E1119", "E1119"));
    assert!(bound.cause.contains("qemu-system-x86 (pid 4711)"), "{}", bound.cause);
}

#[test]
fn isa_bridge_with_a_driver_is_refused_before_anything_is_taken() {
    let tree = tree("ahci");
    let bridge = Function {
        bdf: "0000:02:00.1",
        class: 0x06_0100,
        driver: Some("lpc_ich"),
        group: Some(7),
        header_type: 0x80,
        ..Function::default()
    };
    tree.function(&bridge);
    let (bound, listed) = refusals(&tree, DEVICE);
    assert_eq!((bound.code.id, listed.code.id), ("E1103", "E1103"));
    assert!(bound.cause.contains("0000:02:00.1") && bound.cause.contains("lpc_ich"), "{bound:?}");
    let right = "echo 0000:02:00.1 > /sys/bus/pci/devices/0000:02:00.1/driver/unbind";
    assert!(bound.fix.contains(right), "{}", bound.fix);
    tree.remove("/sys/bus/pci/devices/0000:02:00.1/driver");
    assert!(bindable(&tree.sysroot(), &chosen(&tree, DEVICE), &Allowed::default()).is_ok());
}

#[test]
fn only_keyboard_is_worth_a_warning_and_one_of_two_is_not() {
    let tree = tree("xhci_hcd");
    let entry = |name: &str, place: &str, events: &str| {
        format!(
            "I: Bus=0003\nN: Name=\"{name}\"\nS: Sysfs={place}/input/input3\nH: Handlers=sysrq kbd event3\nB: EV={events}\n\n"
        )
    };
    let here = entry("USB Keyboard", "/bus/pci/devices/0000:02:00.0/usb1/1-1", "120013");
    let button = entry("Power Button", "/devices/LNXSYSTM:00/LNXPWRBN:00", "3");
    tree.file("/proc/bus/input/devices", format!("{here}{button}"));
    let warnings = || {
        let one = chosen(&tree, DEVICE);
        bindable(&tree.sysroot(), &one, &Allowed::default()).unwrap().warnings
    };
    let found = warnings();
    assert_eq!((found[0].code.id, found[0].details[0].as_str()), ("E1121", "USB Keyboard"));
    let other = entry("AT Keyboard", "/devices/platform/i8042/serio0", "120013");
    tree.file("/proc/bus/input/devices", format!("{here}{button}{other}"));
    assert!(warnings().is_empty());
}

/// Check 16 and every view name the way from the function to what would be lost.
#[test]
fn half_of_a_root_pool_is_refused_by_every_view() {
    let tree = tree("nvme");
    let real = "bus/pci/devices/0000:02:00.0/nvme/nvme1/nvme1n1";
    for (name, number) in [("", 4), ("/nvme1n1p1", 5), ("/nvme1n1p3", 7)] {
        tree.file(&format!("/sys/{real}{name}/dev"), format!("259:{number}\n"));
        if !name.is_empty() {
            tree.file(&format!("/sys/{real}{name}/partition"), "1\n");
        }
    }
    tree.link("/sys/block/nvme1n1", &format!("../{real}"));
    tree.file("/proc/spl/kstat/zfs/rpool/state", "ONLINE\n");
    tree.file("/proc/self/mountinfo", "26 1 0:27 / / rw - zfs rpool/ROOT/pve-1 rw\n");
    let (bound, listed) = refusals(&tree, DEVICE);
    let right = "0000:02:00.0 -> nvme1n1 -> nvme1n1p3 -> zpool rpool -> mounted on /";
    assert!(bound.cause.ends_with(right) && listed.cause.ends_with(right), "{bound:?}");
    let findings = doctor::examine(&tree.sysroot(), &chosen(&tree, DEVICE)).unwrap();
    let uses = findings.iter().filter(|finding| finding.check == 16);
    assert!(uses.clone().any(|finding| finding.fact == right && finding.level == Level::Warn));
}
