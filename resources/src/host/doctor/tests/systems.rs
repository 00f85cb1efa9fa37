//! `--fix-plan` on many systems. Each fixture has the files and kernel arguments by which its system is known, as its
//! own documentation and installer describe them.
//!
//! Provenance: the files are written after those documents, from no installed system.

use super::*;

const WORDS: &str = "# this system keeps its configuration elsewhere: add intel_iommu=on to the kernel command line the way that system does";

/// An Intel host with the IOMMU off for want of an argument and a card on nouveau; nothing of a distribution yet.
fn host(os: &str, cmdline: &str) -> Tree {
    let tree = Tree::new();
    tree.host_basics();
    tree.remove("/sys/kernel/iommu_groups");
    tree.remove("/sys/class/iommu");
    tree.file("/proc/sys/kernel/osrelease", "6.12.5\n");
    tree.file("/proc/cmdline", format!("{cmdline}\n"));
    tree.file("/etc/os-release", os);
    tree.function(&Function {
        bdf: "0000:01:00.0",
        id: (0x10de, 0x1c82),
        class: 0x03_0000,
        driver: Some("nouveau"),
        ..Function::default()
    });
    tree
}

fn variable(tree: &Tree, name: &str, text: &str) {
    let path = format!("/sys/firmware/efi/efivars/{name}-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f");
    let utf16: Vec<u8> = text.bytes().flat_map(|byte| [byte, 0]).collect();
    tree.file(&path, [vec![6, 0, 0, 0], utf16].concat());
}

/// The lines that change something, for the arguments and for the device.
fn commands(tree: &Tree) -> Vec<String> {
    let plan = plan(tree, &["01:00.0"]);
    plan.lines().filter(|line| !line.starts_with('#')).map(str::to_owned).collect()
}

/// Nothing is written, and the words are there.
fn assert_words_alone(tree: &Tree, what: &str) {
    assert_eq!(commands(tree), Vec::<String>::new(), "{what}: {}", plan(tree, &["01:00.0"]));
    assert!(plan(tree, &[]).starts_with(WORDS), "{what}: {}", plan(tree, &[]));
}

fn assert_lines(tree: &Tree, expected: &[&str]) {
    let found = plan(tree, &[]);
    let found: Vec<&str> = found.lines().filter(|line| !line.starts_with('#')).collect();
    assert_eq!(found, expected);
}

#[test]
fn ostree_is_changed_by_rpm_ostree_and_never_in_usr_or_grub() {
    for os in [
        "ID=bazzite\nID_LIKE=\"fedora\"\n",
        "ID=fedora\nVARIANT_ID=silverblue\n",
        "ID=fedora\nVARIANT_ID=coreos\n",
    ] {
        let tree = host(
            os,
            "BOOT_IMAGE=(hd1,gpt2)/ostree/default-4af2/vmlinuz root=UUID=1 rw ostree=/ostree/boot.1/default/4af2/0",
        );
        tree.file("/run/ostree-booted", "");
        tree.file("/usr/bin/rpm-ostree", "");
        tree.file("/usr/bin/dracut", "");
        tree.file("/usr/sbin/grubby", "");
        tree.file("/etc/default/grub", "GRUB_TIMEOUT=1\n");
        assert_lines(&tree, &["rpm-ostree kargs --append-if-missing=intel_iommu=on", "reboot"]);
        let all = plan(&tree, &["01:00.0"]);
        assert!(
            all.contains("rpm-ostree initramfs --enable --arg=--add-drivers --arg=vfio-pci"),
            "{all}"
        );
        for never in ["dracut -f", "grub2-mkconfig", "grubby", "/etc/default/grub"] {
            assert!(!all.contains(never), "{never}: {all}");
        }
        // Endless OS and other images are ostree without rpm-ostree.
        tree.remove("/usr/bin/rpm-ostree");
        assert_words_alone(&tree, "ostree");
    }
}

#[test]
fn nixos_and_guix_are_told_what_to_declare() {
    let tree = host(
        "ID=nixos\nPRETTY_NAME=\"NixOS 24.11 (Vicuna)\"\n",
        "initrd=\\EFI\\nixos\\a1-initrd.efi init=/nix/store/abc-nixos-system-host-24.11/init loglevel=4",
    );
    variable(&tree, "LoaderInfo", "systemd-boot 256.8");
    tree.file("/boot/loader/loader.conf", "");
    tree.file(
        "/boot/loader/entries/nixos-generation-12.conf",
        "options init=/nix/store/abc-nixos-system-host-24.11/init loglevel=4\n",
    );
    assert_eq!(commands(&tree), Vec::<String>::new());
    let all = plan(&tree, &["01:00.0"]);
    assert!(all.contains("boot.kernelParams = [ \"intel_iommu=on\" ];"), "{all}");
    assert!(all.contains("boot.initrd.kernelModules = [ \"vfio_pci\" ];"), "{all}");
    let tree =
        host("ID=guix\n", "BOOT_IMAGE=/gnu/store/a-linux/bzImage gnu.system=/gnu/store/b-system");
    tree.file("/etc/default/grub", "");
    assert_words_alone(&tree, "Guix");
}

#[test]
fn unraid_is_changed_on_its_boot_medium() {
    let tree =
        host("ID=\"unraid-os\"\nID_LIKE=\"slackware\"\n", "BOOT_IMAGE=/bzimage initrd=/bzroot");
    let config = "label Unraid OS\n  kernel /bzimage\n  append initrd=/bzroot\nlabel Memtest86+\n  kernel /memtest\n";
    tree.file("/boot/syslinux/syslinux.cfg", config);
    assert_lines(
        &tree,
        &[
            "sed -Ei '/^[[:space:]]*append[[:space:]].*initrd=/I s/$/ intel_iommu=on/' /boot/syslinux/syslinux.cfg",
            "reboot",
        ],
    );
    let all = plan(&tree, &["01:00.0"]);
    assert!(
        all.contains("echo 'BIND=0000:01:00.0|10de:1c82' > /boot/config/vfio-pci.cfg"),
        "{all}"
    );
    assert!(!all.contains("/etc/") && !all.contains("grub"), "{all}");
    tree.remove("/boot/syslinux/syslinux.cfg");
    assert!(plan(&tree, &[]).starts_with(WORDS));
}

/// Where / is an image, a snapshot or memory, and where another system has the kernel.
#[test]
fn systems_that_lose_or_generate_their_files_get_words_alone() {
    let grub = "BOOT_IMAGE=/vmlinuz-6.12.5 root=UUID=1 ro";
    let live = "BOOT_IMAGE=/live/vmlinuz boot=live components quiet";
    let cases: [(&str, &str, &str, &str, &str); 9] = [
        ("Debian live", "ID=debian\n", live, "", ""),
        ("Ubuntu Core", "ID=ubuntu-core\n", "snapd_recovery_mode=run", "", ""),
        ("SteamOS", "ID=steamos\nID_LIKE=arch\n", grub, "", ""),
        ("container", "ID=debian\n", grub, "/run/.containerenv", ""),
        ("Docker", "ID=ubuntu\nID_LIKE=debian\n", grub, "/.dockerenv", ""),
        ("TrueNAS", "ID=debian\n", grub, "/usr/bin/midclt", ""),
        (
            "overlayroot",
            "ID=ubuntu\nID_LIKE=debian\n",
            grub,
            "",
            "22 1 0:21 / / rw - overlay overlayroot rw\n",
        ),
        (
            "Alpine diskless",
            "ID=alpine\n",
            "BOOT_IMAGE=/boot/vmlinuz-lts",
            "",
            "1 1 0:2 / / rw - tmpfs rootfs rw\n",
        ),
        (
            "read-only root",
            "ID=custom\nID_LIKE=debian\n",
            grub,
            "",
            "1 1 8:1 / / ro,relatime - ext4 /dev/sda1 ro\n",
        ),
    ];
    for (what, os, cmdline, sign, mounts) in cases {
        let tree = host(os, cmdline);
        tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n");
        tree.file("/usr/sbin/update-grub", "");
        tree.file("/etc/initramfs-tools/initramfs.conf", "");
        if !sign.is_empty() {
            tree.file(sign, "");
        }
        tree.file("/proc/self/mountinfo", mounts);
        assert_words_alone(&tree, what);
    }
}

#[test]
fn transactional_update_makes_its_own_snapshots() {
    let tree = host(
        "ID=\"opensuse-microos\"\nID_LIKE=\"suse opensuse\"\n",
        "BOOT_IMAGE=/boot/vmlinuz-6.12.5 root=UUID=1",
    );
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n");
    tree.file("/usr/sbin/transactional-update", "");
    tree.file("/usr/bin/dracut", "");
    tree.file("/proc/self/mountinfo", "1 1 0:30 / / ro,relatime - btrfs /dev/vda3 ro\n");
    assert_lines(
        &tree,
        &[
            "sed -Ei 's/^(GRUB_CMDLINE_LINUX=\"[^\"]*)\"/\\1 intel_iommu=on\"/' /etc/default/grub",
            "transactional-update --continue grub.cfg",
            "reboot",
        ],
    );
    let all = plan(&tree, &["01:00.0"]);
    assert!(
        all.contains("transactional-update --continue initrd") && !all.contains("dracut -f"),
        "{all}"
    );
}

#[test]
fn unified_image_is_built_anew_by_who_made_it() {
    let tree = host("ID=arch\n", "root=UUID=1 rw quiet");
    variable(&tree, "LoaderInfo", "systemd-boot 257.2-2-arch");
    tree.file("/efi/loader/loader.conf", "");
    tree.file("/etc/kernel/cmdline", "root=UUID=1 rw quiet\n");
    tree.file("/etc/mkinitcpio.conf", "MODULES=()\nFILES=()\n");
    tree.file(
        "/etc/mkinitcpio.d/linux.preset",
        "#default_image=x\ndefault_uki=\"/efi/EFI/Linux/arch-linux.efi\"\n",
    );
    let lines = ["sed -Ei '1 s/$/ intel_iommu=on/' /etc/kernel/cmdline", "mkinitcpio -P", "reboot"];
    assert_lines(&tree, &lines);
    assert!(commands(&tree).contains(&"mkinitcpio -P".to_owned()));
    // An image that brings another command line.
    tree.file("/etc/kernel/cmdline", "root=UUID=2 rw\n");
    assert!(plan(&tree, &[]).starts_with(WORDS));
    tree.file("/etc/kernel/cmdline", "root=UUID=1 rw quiet\n");
    // Asked for and not built.
    tree.file("/etc/kernel/cmdline", "root=UUID=1 rw quiet intel_iommu=on\n");
    assert_lines(&tree, &["mkinitcpio -P", "reboot"]);
    // Started by the firmware itself.
    tree.file("/etc/kernel/cmdline", "root=UUID=1 rw quiet\n");
    tree.remove("/sys/firmware/efi/efivars");
    variable(&tree, "StubInfo", "systemd-stub 257");
    assert_lines(&tree, &lines);
    // dracut's arguments lie in its own configuration.
    tree.remove("/etc/mkinitcpio.d");
    tree.file("/etc/dracut.conf.d/uki.conf", "uefi=\"yes\"\nkernel_cmdline=\"root=UUID=1\"\n");
    assert!(plan(&tree, &[]).starts_with(WORDS), "{}", plan(&tree, &[]));
}

#[test]
fn refind_is_changed_in_the_file_that_started_this_kernel() {
    let tree = host("ID=arch\n", "root=UUID=1 rw quiet initrd=boot\\initramfs-linux.img");
    tree.file("/etc/mkinitcpio.conf", "MODULES=()\nFILES=()\n");
    tree.file(
        "/boot/refind_linux.conf",
        "\"Boot with standard options\" \"root=UUID=1 rw quiet\"\n",
    );
    let line = "sed -Ei 's/^([[:space:]]*\"[^\"]*\"[[:space:]]+\"[^\"]*)\"/\\1 intel_iommu=on\"/' /boot/refind_linux.conf";
    assert_lines(&tree, &[line, "reboot"]);
    // A stanza of refind.conf did it.
    tree.file("/boot/refind_linux.conf", "\"Boot with standard options\" \"root=UUID=2 rw\"\n");
    assert!(plan(&tree, &[]).starts_with(WORDS));
    // rEFInd and systemd-boot are both installed, and neither says that it was it.
    tree.file("/boot/loader/loader.conf", "");
    assert!(plan(&tree, &[]).starts_with(WORDS));
    // rEFInd started GRUB, which started the kernel.
    tree.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz-linux root=UUID=1 rw\n");
    variable(&tree, "LoaderInfo", "rEFInd 0.14.2");
    tree.file("/boot/grub/grub.cfg", "");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n");
    assert!(plan(&tree, &[]).contains("grub-mkconfig -o /boot/grub/grub.cfg"));
}

#[test]
fn systemd_boot_is_changed_in_the_entry_that_was_started() {
    let tree = host("ID=arch\n", "initrd=\\initramfs-linux.img root=UUID=1 rw");
    variable(&tree, "LoaderInfo", "systemd-boot 257.2-2-arch");
    variable(&tree, "LoaderEntrySelected", "arch.conf");
    tree.file("/efi/loader/entries/arch.conf", "linux /vmlinuz-linux\noptions root=UUID=1 rw\n");
    tree.file(
        "/efi/loader/entries/rescue.conf",
        "linux /vmlinuz-linux\noptions root=UUID=1 rw single\n",
    );
    // Left behind by something else, and read by nobody.
    tree.file("/etc/kernel/cmdline", "root=UUID=1 rw\n");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n");
    assert_lines(
        &tree,
        &["sed -Ei '/^options/ s/$/ intel_iommu=on/' /efi/loader/entries/arch.conf", "reboot"],
    );
    // kernel-install writes its entries anew.
    let id = "0123456789abcdef0123456789abcdef";
    tree.file("/etc/machine-id", format!("{id}\n"));
    tree.remove("/efi/loader/entries/arch.conf");
    tree.file(&format!("/efi/loader/entries/{id}-6.12.5.conf"), "options root=UUID=1 rw\n");
    variable(&tree, "LoaderEntrySelected", &format!("{id}-6.12.5.conf"));
    tree.file("/boot/vmlinuz-6.12.5", "");
    assert_lines(
        &tree,
        &[
            "sed -Ei '1 s/$/ intel_iommu=on/' /etc/kernel/cmdline",
            "kernel-install add \"$(uname -r)\" \"/boot/vmlinuz-6.12.5\"",
            "reboot",
        ],
    );
    // Pop!_OS.
    tree.file("/usr/bin/kernelstub", "");
    assert_lines(&tree, &["kernelstub -a \"intel_iommu=on\"", "reboot"]);
}

#[test]
fn proxmox_is_refreshed_for_the_loader_that_it_starts_with() {
    let tree = host(
        "ID=debian\n",
        "initrd=\\EFI\\proxmox\\6.12.5\\initrd.img root=ZFS=rpool/ROOT/pve-1 boot=zfs",
    );
    variable(&tree, "LoaderInfo", "systemd-boot 252.31");
    tree.file("/etc/kernel/proxmox-boot-uuids", "ABCD-1234\n");
    tree.file("/etc/kernel/cmdline", "root=ZFS=rpool/ROOT/pve-1 boot=zfs\n");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n");
    let sed = "sed -Ei '1 s/$/ intel_iommu=on/' /etc/kernel/cmdline";
    assert_lines(&tree, &[sed, "proxmox-boot-tool refresh", "reboot"]);
    tree.remove("/sys/firmware");
    tree.file("/sys/firmware/acpi/tables/DMAR", "DMAR");
    tree.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz-6.12.5 root=ZFS=rpool/ROOT/pve-1 boot=zfs\n");
    let all = plan(&tree, &[]);
    assert!(
        all.contains("/etc/default/grub\nupdate-grub\nproxmox-boot-tool refresh\nreboot"),
        "{all}"
    );
}

#[test]
fn other_loaders_and_their_tools() {
    // Clear Linux.
    let tree = host("ID=clear-linux-os\n", "initrd=EFI\\org.clearlinux\\initrd root=UUID=1");
    tree.file("/usr/bin/clr-boot-manager", "");
    assert!(
        plan(&tree, &[]).contains("/etc/kernel/cmdline.d/strait.conf\nclr-boot-manager update")
    );
    // Alpine with EXTLINUX, which leaves initrd= and BOOT_IMAGE=.
    let tree =
        host("ID=alpine\n", "BOOT_IMAGE=vmlinuz-lts root=UUID=1 modules=ext4 initrd=initramfs-lts");
    tree.file("/boot/extlinux.conf", "LABEL lts\n  APPEND root=UUID=1 modules=ext4\n");
    tree.file("/etc/update-extlinux.conf", "default_kernel_opts=\"quiet\"\n");
    tree.file("/etc/mkinitfs/mkinitfs.conf", "");
    assert!(plan(&tree, &[]).contains("/etc/update-extlinux.conf\nupdate-extlinux\nreboot"));
    assert!(!plan(&tree, &["01:00.0"]).contains("\nmkinitfs"));
    // Limine with CachyOS's tool, and without.
    let tree = host("ID=cachyos\nID_LIKE=arch\n", "root=UUID=1 rw");
    variable(&tree, "LoaderInfo", "Limine 9.2.3");
    tree.file("/boot/limine.conf", "cmdline: root=UUID=1 rw\n");
    assert!(plan(&tree, &[]).starts_with(WORDS));
    tree.file("/etc/default/limine", "KERNEL_CMDLINE[default]=\"root=UUID=1 rw\"\n");
    tree.file("/usr/bin/limine-update", "");
    assert!(plan(&tree, &[]).contains(">> /etc/default/limine\nlimine-update\nreboot"));
    // ZFSBootMenu starts by kexec; a GRUB that was there before it counts for nothing.
    let tree = host("ID=void\n", "root=zfs:zroot/ROOT/void quiet");
    tree.file("/etc/zfsbootmenu/config.yaml", "");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n");
    assert!(plan(&tree, &[]).starts_with(WORDS) && plan(&tree, &[]).contains("org.zfsbootmenu"));
    // Void with GRUB and dracut.
    let tree = host("ID=void\n", "BOOT_IMAGE=/boot/vmlinuz-6.12.5 root=UUID=1");
    tree.file("/etc/default/grub", "GRUB_CMDLINE_LINUX=\"\"\n");
    assert!(plan(&tree, &[]).starts_with(WORDS), "a distribution that is not known");
    tree.file("/usr/bin/update-grub", "");
    assert!(plan(&tree, &[]).contains("/etc/default/grub\nupdate-grub\nreboot"));
    // openSUSE with entries of sdbootutil.
    let tree = host("ID=opensuse-tumbleweed\nID_LIKE=\"opensuse suse\"\n", "root=UUID=1 quiet");
    variable(&tree, "LoaderInfo", "systemd-boot 257.4");
    tree.file("/usr/bin/sdbootutil", "");
    tree.file("/etc/kernel/cmdline", "root=UUID=1 quiet\n");
    tree.file("/boot/efi/loader/entries/opensuse-6.12.5-1.conf", "options root=UUID=1 quiet\n");
    assert!(
        plan(&tree, &[]).contains("/etc/kernel/cmdline\nsdbootutil update-all-entries\nreboot")
    );
}

#[test]
fn initramfs_tool_is_the_one_that_is_installed() {
    let cmdline = "BOOT_IMAGE=/vmlinuz-6.12.5 root=UUID=1 ro";
    let tree = host("ID=debian\n", cmdline);
    // Left by initramfs-tools, which dracut has replaced.
    tree.directory("/etc/initramfs-tools");
    tree.file("/usr/sbin/update-initramfs", "");
    tree.file("/usr/bin/dracut", "");
    assert!(plan(&tree, &["01:00.0"]).contains("\ndracut -f\n"));
    tree.file("/usr/sbin/mkinitramfs", "");
    let all = plan(&tree, &["01:00.0"]);
    assert!(!all.contains("dracut -f") && !all.contains("update-initramfs"), "{all}");
    let tree = host("ID=arch\n", cmdline);
    tree.file("/usr/bin/booster", "");
    tree.file("/etc/mkinitcpio.conf", "");
    assert!(plan(&tree, &["01:00.0"]).contains("/usr/lib/booster/regenerate_images"));
}
