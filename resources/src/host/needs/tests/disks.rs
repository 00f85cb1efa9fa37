//! Disks: what is on them, whatever tells of it.
//!
//! Provenance: proc(5), Documentation/ABI/testing/sysfs-block, and what the documents of ZFS, LVM,
//! btrfs, md and bcache say of their files; no dump of a host.

use super::*;

const MAIN: &str = "0000:00:02.0";

#[test]
fn mounted_partition_is_found_by_number_and_the_disk_beside_it_is_free() {
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 1);
    disk(&tree, OTHER, "nvme1n1", 8, 1);
    tree.file("/proc/self/mountinfo", "25 1 259:1 / / rw shared:1 - ext4 /dev/nvme0n1p1 rw\n");
    assert_eq!(chains(&tree), ["nvme0n1 -> nvme0n1p1 -> mounted on /"]);
    assert_eq!(chains_of(&tree, OTHER), [""; 0]);
}

#[test]
fn volume_on_an_nvme_with_multipath_is_found() {
    let tree = tree("nvme");
    let subsystem = "/sys/devices/virtual/nvme-subsystem/nvme-subsys0";
    tree.file(&format!("{DEVICE}/nvme/nvme0/address"), "0000:00:02.0\n");
    tree.link(&format!("{subsystem}/nvme0"), "../../../../bus/pci/devices/0000:00:02.0/nvme/nvme0");
    tree.file(&format!("{subsystem}/nvme0n1/dev"), "259:0\n");
    tree.link("/sys/block/nvme0n1", "../devices/virtual/nvme-subsystem/nvme-subsys0/nvme0n1");
    tree.directory(&format!("{subsystem}/nvme0n1/holders/dm-0"));
    tree.file("/sys/block/dm-0/dev", "254:0\n");
    tree.file("/sys/block/dm-0/dm/name", "vg-home\n");
    tree.file("/proc/self/mountinfo", "25 1 254:0 / /home rw - ext4 /dev/mapper/vg-home rw\n");
    let volume = "nvme0n1 -> dm-0 (vg-home)";
    assert_eq!(
        chains(&tree),
        [format!("{volume} -> mounted on /home"), format!("{volume} -> active")]
    );
}

#[test]
fn swap_counts_on_a_partition_in_a_file_and_on_compressed_memory() {
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 3);
    tree.file("/sys/block/zram0/dev", "253:0\n");
    tree.file("/sys/block/zram0/backing_dev", "/dev/nvme0n1p3\n");
    tree.file("/proc/self/mountinfo", "25 1 259:1 / /data rw - ext4 /dev/nvme0n1p1 rw\n");
    tree.file(
        "/proc/swaps",
        "Filename Type Size Used Priority\n/dev/nvme0n1p2 partition 1 0 -2\n\
         /data/my\\040swap file 1 0 -3\n/dev/zram0 partition 1 0 100\n",
    );
    let found = chains(&tree);
    for right in [
        "nvme0n1 -> nvme0n1p2 -> in use as swap (/dev/nvme0n1p2)",
        "nvme0n1 -> nvme0n1p1 -> mounted on /data -> in use as swap (/data/my swap)",
        "nvme0n1 -> nvme0n1p3 -> zram0 -> in use as swap (/dev/zram0)",
    ] {
        assert!(found.iter().any(|chain| chain == right), "{right}: {found:#?}");
    }
}

/// A Proxmox host: both halves of a mirror, nothing but the mount and the module's statistics tell of the pool.
#[test]
fn pool_whose_members_nothing_tells_may_be_on_any_unexplained_disk() {
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 3);
    disk(&tree, OTHER, "nvme1n1", 8, 3);
    tree.file("/proc/spl/kstat/zfs/rpool/state", "ONLINE\n");
    tree.file("/proc/spl/kstat/zfs/arcstats", "");
    tree.file("/proc/self/mountinfo", "26 1 0:27 / / rw - zfs rpool/ROOT/pve-1 rw,xattr\n");
    let right = |disk: &str| {
        let pool = format!("{disk} -> {disk}p3 -> zpool rpool");
        [format!("{pool} -> mounted on /"), format!("{pool} -> imported")]
    };
    assert_eq!(chains(&tree), right("nvme0n1"));
    assert_eq!(chains_of(&tree, OTHER), right("nvme1n1"));
}

#[test]
fn pool_is_on_the_members_that_udev_or_the_cache_name_and_on_no_other() {
    let by_udev = tree("nvme");
    disk(&by_udev, MAIN, "nvme0n1", 0, 2);
    disk(&by_udev, OTHER, "nvme1n1", 8, 2);
    by_udev.file("/proc/spl/kstat/zfs/tank/state", "ONLINE\n");
    by_udev.file("/run/udev/data/b259:2", "E:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=tank\n");
    assert_eq!(chains(&by_udev), ["nvme0n1 -> nvme0n1p2 -> zpool tank -> imported"]);
    assert_eq!(chains_of(&by_udev, OTHER), [""; 0]);

    let by_cache = tree("nvme");
    disk(&by_cache, MAIN, "nvme0n1", 0, 2);
    disk(&by_cache, OTHER, "nvme1n1", 8, 2);
    by_cache.file("/proc/spl/kstat/zfs/tank/state", "ONLINE\n");
    by_cache.node("/dev/nvme0n1p1", "b259:1");
    by_cache.link("/dev/disk/by-id/nvme-A-part1", "../../nvme0n1p1");
    let text = |text: &str| {
        let mut bytes = u32::try_from(text.len()).unwrap().to_be_bytes().to_vec();
        bytes.extend(text.as_bytes());
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes
    };
    let pair = |key, value| [text(key), vec![0, 0, 0, 9, 0, 0, 0, 1], text(value)].concat();
    let path = pair("path", "/dev/disk/by-id/nvme-A-part1");
    by_cache.file("/etc/zfs/zpool.cache", [pair("name", "tank"), path].concat());
    assert_eq!(chains(&by_cache), ["nvme0n1 -> nvme0n1p1 -> zpool tank -> imported"]);
    assert_eq!(chains_of(&by_cache, OTHER), [""; 0]);
    by_cache.remove("/proc/spl/kstat/zfs/tank");
    assert_eq!(chains(&by_cache), [""; 0]);
}

#[test]
fn volume_of_a_pool_that_is_swap_names_the_pool() {
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 1);
    tree.file("/proc/spl/kstat/zfs/rpool/state", "ONLINE\n");
    tree.file("/run/udev/data/b259:1", "E:ID_FS_TYPE=zfs_member\nE:ID_FS_LABEL=rpool\n");
    tree.file("/sys/block/zd0/dev", "230:0\n");
    tree.file("/proc/swaps", "Filename Type Size Used Priority\n/dev/zd0 partition 1 0 -2\n");
    let pool = "nvme0n1 -> nvme0n1p1 -> zpool rpool";
    assert_eq!(chains(&tree)[0], format!("{pool} -> zd0 -> in use as swap (/dev/zd0)"));
}

#[test]
fn btrfs_over_two_disks_is_on_both_though_the_mount_names_one() {
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 0);
    disk(&tree, OTHER, "nvme1n1", 8, 0);
    let at = "/sys/fs/btrfs/11111111-2222";
    tree.file(&format!("{at}/label"), "data\n");
    for name in ["nvme0n1", "nvme1n1"] {
        tree.link(&format!("{at}/devices/{name}"), &format!("../../../../block/{name}"));
    }
    tree.file("/proc/self/mountinfo", "25 1 0:22 /sub /data rw - btrfs /dev/nvme0n1 rw\n");
    assert_eq!(chains_of(&tree, OTHER), ["nvme1n1 -> btrfs data -> mounted on /data"]);
    tree.file("/proc/self/mountinfo", "");
    assert!(
        chains(&tree)[0].starts_with("nvme0n1 -> btrfs data -> claimed"),
        "{:?}",
        chains(&tree)
    );
}

#[test]
fn bcachefs_and_a_journal_elsewhere_count_on_every_device() {
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 2);
    disk(&tree, OTHER, "nvme1n1", 8, 2);
    tree.file(
        "/proc/self/mountinfo",
        "25 1 0:22 / /pool rw - bcachefs /dev/nvme0n1p1:/dev/nvme1n1p1 rw\n\
         26 1 259:2 / /srv rw - xfs /dev/nvme0n1p2 rw,logdev=/dev/nvme1n1p2\n",
    );
    let right =
        ["nvme1n1 -> nvme1n1p1 -> mounted on /pool", "nvme1n1 -> nvme1n1p2 -> mounted on /srv"];
    assert_eq!(chains_of(&tree, OTHER), right);
}

#[test]
fn active_volume_is_in_use_without_a_mount_by_holders_or_by_slaves() {
    for file in ["/sys/block/nvme0n1/nvme0n1p1/holders/dm-5", "/sys/block/dm-5/slaves/nvme0n1p1"] {
        let tree = tree("nvme");
        disk(&tree, MAIN, "nvme0n1", 0, 1);
        tree.file("/sys/block/dm-5/dev", "253:5\n");
        tree.file("/sys/block/dm-5/dm/name", "vg1-vm--101--disk--0\n");
        tree.directory(file);
        tree.link("/proc/4711/fd/15", "/dev/dm-5");
        tree.file("/proc/4711/comm", "kvm\n");
        let volume = "nvme0n1 -> nvme0n1p1 -> dm-5 (vg1-vm--101--disk--0)";
        let right = [format!("{volume} -> active"), format!("{volume} -> open in kvm (pid 4711)")];
        assert_eq!(chains(&tree), right, "{file}");
    }
}

#[test]
fn empty_member_of_a_volume_group_in_use_belongs_to_it() {
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 1);
    disk(&tree, OTHER, "nvme1n1", 8, 1);
    tree.directory("/sys/block/nvme1n1/nvme1n1p1/holders/dm-0");
    tree.file("/sys/block/dm-0/dev", "253:0\n");
    tree.file("/sys/block/dm-0/dm/name", "my--vg-root\n");
    tree.file("/sys/block/dm-0/dm/uuid", "LVM-abc\n");
    tree.file("/run/lvm/pvs_online/abc", "259:1\nvg:my-vg\ndev:/dev/nvme0n1p1\n");
    let right = "nvme0n1 -> nvme0n1p1 -> volume group my-vg -> dm-0 (my--vg-root) -> active";
    assert_eq!(chains(&tree), [right]);
    // Of a group without an active volume it is data that nobody uses.
    tree.file("/run/lvm/pvs_online/abc", "259:1\nvg:other\n");
    assert_eq!(chains(&tree), [""; 0]);
}

#[test]
fn file_on_the_disk_that_is_a_disk_itself_counts() {
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 1);
    tree.file("/sys/block/loop3/dev", "7:3\n");
    tree.file("/sys/block/loop3/loop/backing_file", "/srv/images/a.img (deleted)\n");
    tree.file(
        "/proc/self/mountinfo",
        "25 1 259:1 / /srv rw - ext4 /dev/nvme0n1p1 rw\n26 1 7:3 / /mnt rw - ext4 /dev/loop3 rw\n",
    );
    let found = chains(&tree);
    let right = "nvme0n1 -> nvme0n1p1 -> mounted on /srv -> loop3 -> mounted on /mnt";
    assert!(found.iter().any(|chain| chain == right), "{found:#?}");
}

#[test]
fn mount_in_another_namespace_names_whose_it_is() {
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 0);
    tree.file("/proc/self/mountinfo", "25 1 0:5 / /tmp rw - tmpfs tmpfs rw\n");
    tree.file("/proc/812/mountinfo", "95 1 259:0 / /data rw - ext4 /dev/nvme0n1 rw\n");
    tree.file("/proc/812/comm", "postgres\n");
    assert_eq!(chains(&tree), ["nvme0n1 -> mounted on /data for postgres (pid 812)"]);
}

#[test]
fn disk_that_is_exported_or_resumed_from_counts() {
    for (file, text, right) in [
        (
            "/sys/kernel/config/target/core/iblock_0/disk0/udev_path",
            "/dev/nvme0n1\n",
            "target disk0",
        ),
        (
            "/sys/kernel/config/nvmet/subsystems/nqn.x/namespaces/1/device_path",
            "/dev/nvme0n1\n",
            "NVMe target nqn.x",
        ),
    ] {
        let tree = tree("nvme");
        disk(&tree, MAIN, "nvme0n1", 0, 0);
        tree.file(file, text);
        assert_eq!(chains(&tree), [format!("nvme0n1 -> exported as {right}")]);
    }
    let tree = tree("nvme");
    disk(&tree, MAIN, "nvme0n1", 0, 2);
    tree.file("/proc/cmdline", "quiet resume=PARTUUID=1234-02\n");
    tree.node("/dev/nvme0n1p2", "b259:2");
    tree.link("/dev/disk/by-partuuid/1234-02", "../../nvme0n1p2");
    assert_eq!(chains(&tree), ["nvme0n1 -> nvme0n1p2 -> the kernel resumes from it (resume=)"]);
}

#[test]
fn disk_that_strait_runs_from_is_found_by_its_number() {
    let tree = tree("nvme");
    tree.file("/proc/self/exe", "");
    let number = tree.sysroot().device_of("/proc/self/exe").unwrap().unwrap();
    tree.file(&format!("{DEVICE}/block/sda/dev"), &number);
    tree.link("/sys/block/sda", "../bus/pci/devices/0000:00:02.0/block/sda");
    assert_eq!(chains(&tree), ["sda -> strait's own program or current directory"]);
}
