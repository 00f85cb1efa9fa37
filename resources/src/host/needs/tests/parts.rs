//! What a function has that is neither a disk nor a network: parts of it, nodes, what the kernel does with it.
//!
//! Provenance: by sysfs and procfs documents, as all of `needs`; no dump of a host.

use super::*;

const MAIN: &str = "0000:00:02.0";

#[test]
fn boot_display_is_no_loss_once_it_is_on_vfio() {
    let tree = tree("nouveau");
    tree.file(&format!("{DEVICE}/boot_vga"), "1\n");
    assert_eq!(chains(&tree), ["the host's console is on this display"]);
    let taken = Tree::new();
    taken.function(&Function { driver: Some("vfio-pci"), ..Function::default() });
    taken.file(&format!("{DEVICE}/boot_vga"), "1\n");
    assert_eq!(chains(&taken), [""; 0]);
}

#[test]
fn guest_with_a_virtual_function_has_a_part_of_the_physical_one() {
    let tree = tree("i40e");
    let part = "0000:00:0a.0";
    let (driver, group) = (Some("vfio-pci"), Some(60));
    tree.function(&Function { bdf: part, driver, group, ..Function::default() });
    tree.link(&format!("{DEVICE}/virtfn0"), &format!("../{part}"));
    assert_eq!(chains(&tree), [""; 0]);
    tree.link("/proc/4711/fd/27", "/dev/vfio/60");
    tree.file("/proc/4711/comm", "qemu-system-x86\n");
    let found = found(&tree, MAIN, &[]);
    assert!(found[0].is_guest_of_part(), "{found:?}");
    let right = format!(
        "{MAIN} -> virtual function {part} -> /dev/vfio/60 -> open in qemu-system-x86 (pid 4711)"
    );
    assert_eq!(found[0].to_string(), right);
    // Of the part itself it is the whole.
    assert_eq!(chains_of(&tree, part), [""; 0]);
}

#[test]
fn route_by_a_virtual_function_is_lost_with_the_physical_one() {
    let tree = tree("ixgbe");
    nic(&tree, OTHER, "eno1v0");
    tree.link(&format!("{DEVICE}/virtfn0"), &format!("../{OTHER}"));
    routes(&tree, &[("eno1v0", "00000000", "0102A8C0", "00000000")]);
    assert_eq!(chains(&tree), [format!("virtual function {OTHER} -> eno1v0 -> {DEFAULT}")]);
}

#[test]
fn guest_with_a_mediated_device_has_a_part_of_the_card() {
    let tree = tree("nvidia");
    let uuid = "c2177883-f1bb-47f0-914d-32a22e3a8804";
    tree.link(&format!("{DEVICE}/{uuid}/iommu_group"), "/sys/kernel/iommu_groups/90");
    tree.directory("/sys/kernel/iommu_groups/90");
    tree.link(
        &format!("/sys/bus/mdev/devices/{uuid}"),
        &format!("../../pci/devices/{MAIN}/{uuid}"),
    );
    tree.link("/proc/4711/fd/27", "/dev/vfio/90");
    let found = found(&tree, MAIN, &[]);
    assert!(found.len() == 1 && found[0].is_guest_of_part(), "{found:?}");
}

#[test]
fn nodes_are_those_below_the_device_and_what_its_driver_counts_by_itself() {
    let tree = tree("nvidia");
    let held = |pid: u32, path: &str| {
        tree.link(&format!("/proc/{pid}/fd/3"), path);
        tree.file(&format!("/proc/{pid}/comm"), "program\n");
    };
    tree.file(&format!("{DEVICE}/drm/card1/dev"), "226:1\n");
    tree.file(&format!("{DEVICE}/drm/card1/uevent"), "MAJOR=226\nDEVNAME=dri/card1\n");
    tree.file(&format!("{DEVICE}/sound/card2/pcmC2D3p/dev"), "116:3\n");
    tree.file(
        "/proc/driver/nvidia/gpus/0000:00:02.0/information",
        "Model: \t\t NVIDIA\nDevice Minor: \t 3\n",
    );
    held(10, "/dev/nvidia3");
    held(11, "/dev/nvidia0");
    held(12, "/dev/dri/card1");
    held(13, "/dev/dri/card0");
    held(14, "/dev/snd/pcmC2D3p");
    let sysroot = tree.sysroot();
    let function = pci::find(&sysroot, MAIN.parse().unwrap()).unwrap().unwrap();
    let holders = Needs::new(&sysroot).holders(&function).unwrap().found;
    let mut pids: Vec<u32> = holders.iter().map(|holder| holder.pid).collect();
    pids.sort_unstable();
    assert_eq!(pids, [10, 12, 14]);
    let found = chains_of(&tree, OTHER);
    assert_eq!(found, [""; 0]);
}

/// A container has the card's node under another name, and another card's node under its name.
#[test]
fn nodes_are_told_by_number() {
    let tree = tree("amdgpu");
    tree.file(&format!("{DEVICE}/drm/renderD129/dev"), "226:129\n");
    tree.file("/sys/class/kfd/kfd/dev", "234:0\n");
    tree.link("/proc/10/fd/3", "/dev/dri/renderD128");
    tree.node("/proc/10/root/dev/dri/renderD128", "c226:129");
    tree.link("/proc/11/fd/3", "/dev/dri/renderD129");
    tree.node("/proc/11/root/dev/dri/renderD129", "c226:128");
    tree.link("/proc/12/fd/3", "/srv/compute");
    tree.node("/srv/compute", "c234:0");
    let found = found(&tree, MAIN, &[]);
    let mut pids: Vec<u32> = found.iter().filter_map(|need| Some(need.held()?.pid)).collect();
    pids.sort_unstable();
    // The node for computing is one for all such cards.
    assert_eq!(pids, [10, 12]);
}

#[test]
fn console_watchdog_memory_and_cryptography_of_the_kernel_count() {
    let serial = tree("serial");
    serial.directory(&format!("{DEVICE}/tty/ttyS4"));
    serial.link("/sys/class/tty/ttyS4", &format!("../../bus/pci/devices/{MAIN}/tty/ttyS4"));
    serial.file("/proc/consoles", "tty0 -WU (EC p  ) 4:1\nttyS4 -W- (EC p a) 4:68\n");
    assert_eq!(chains(&serial), ["the kernel's console ttyS4"]);

    let dog = tree("i6300esb");
    dog.file(&format!("{DEVICE}/watchdog/watchdog0/state"), "inactive\n");
    dog.link(
        "/sys/class/watchdog/watchdog0",
        &format!("../../bus/pci/devices/{MAIN}/watchdog/watchdog0"),
    );
    assert_eq!(chains(&dog), [""; 0]);
    dog.file(&format!("{DEVICE}/watchdog/watchdog0/state"), "active\n");
    assert_eq!(chains(&dog), ["watchdog0 is active"]);

    let memory = tree("cxl_pci");
    let port = "/sys/devices/platform/ACPI0017:00/root0/endpoint2";
    memory.directory(&format!("{DEVICE}/mem0"));
    memory.directory(&format!("{port}/decoder2.0"));
    memory.link(&format!("{port}/uport"), &format!("../../../../../bus/pci/devices/{MAIN}/mem0"));
    memory.link(
        "/sys/bus/cxl/devices/decoder2.0",
        "../../../devices/platform/ACPI0017:00/root0/endpoint2/decoder2.0",
    );
    memory.file("/sys/bus/cxl/devices/region0/target0", "decoder2.0\n");
    memory.file("/sys/bus/cxl/devices/region0/commit", "0\n");
    assert_eq!(chains(&memory), [""; 0]);
    memory.file("/sys/bus/cxl/devices/region0/commit", "1\n");
    assert_eq!(chains(&memory), ["the host's memory (region0)"]);

    let crypto = tree("qat_4xxx");
    let entry = |users: u32| {
        format!(
            "name : cbc(aes)\ndriver : qat_aes_cbc\nmodule : intel_qat\nrefcnt : {users}\n\nname : x\ndriver : x-generic\nrefcnt : 5\n"
        )
    };
    crypto.file("/proc/crypto", entry(1));
    assert_eq!(chains(&crypto), [""; 0]);
    crypto.file("/proc/crypto", entry(3));
    assert_eq!(chains(&crypto), ["the kernel's qat_aes_cbc"]);
}
