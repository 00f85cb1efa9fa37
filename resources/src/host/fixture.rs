//! Small hosts in a temporary directory, for tests of this crate and, with the feature `fixture`, of others.
//!
//! Provenance: what is here is written by hand in the form that Documentation/ABI and the manual pages of procfs give, the
//! values after public descriptions of such machines (lspci listings, data sheets); nothing is a dump of a host. Such a tree
//! shows what the code makes of a file, not that a host has it. Every module of tests says what its own trees are made
//! from; real dumps are kept as they were taken, beside the test that tells how.

mod hosts;

use std::{fs, io::Write as _, os::unix::fs::symlink, path::PathBuf, thread};

pub use hosts::{HOSTS, Host};

use super::sysroot::Sysroot;

/// Says that the running test cannot test anything, and what it lacks. The test harness keeps what passing tests print and
/// counts them as passed, so the line goes past the harness, and `cargo lab test` counts it as a skip.
pub fn skipped(reason: &str) {
    let thread = thread::current();
    let line = format!("SKIPPED {}: {reason}\n", thread.name().unwrap_or("a test"));
    // Standard error that is closed has no reader to tell.
    drop(std::io::stderr().write_all(line.as_bytes()));
}

/// A tree that a [`Sysroot`] reads; gone when dropped.
pub struct Tree {
    dir: tempfile::TempDir,
}

/// What sysfs says about a function; the rest has sensible defaults.
pub struct Function<'a> {
    /// `0000:00:02.0`.
    pub bdf: &'a str,
    /// Vendor and device.
    pub id: (u16, u16),
    /// Class code in 24 bits.
    pub class: u32,
    /// The driver that has it.
    pub driver: Option<&'a str>,
    /// IOMMU group.
    pub group: Option<u32>,
    /// (line, start, end, flags) of `resource`.
    pub resources: &'a [(usize, u64, u64, u64)],
    /// Register 0x0e.
    pub header_type: u8,
    /// The functions above it, from the root bus down; empty: it stands alone in the list of devices.
    pub under: &'a [&'a str],
}

impl Default for Function<'_> {
    fn default() -> Self {
        Self {
            bdf: "0000:00:02.0",
            id: (0x8086, 0x10d3),
            class: 0x02_0000,
            driver: None,
            group: None,
            resources: &[],
            header_type: 0,
            under: &[],
        }
    }
}

impl Tree {
    /// An empty one.
    #[expect(clippy::new_without_default, reason = "a directory is made")]
    pub fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    /// What the checks read it through.
    pub fn sysroot(&self) -> Sysroot {
        Sysroot::at(self.dir.path())
    }

    /// Writes a file, and the directories above it.
    pub fn file(&self, path: &str, content: impl AsRef<[u8]>) {
        fs::write(self.make_parent(path), content).unwrap();
    }

    /// Makes what stands for a device node: `b259:1`, `c226:0`.
    pub fn node(&self, path: &str, number: &str) {
        self.file(path, format!("{number}\n"));
    }

    /// Makes a symbolic link, and the directories above it.
    pub fn link(&self, path: &str, target: &str) {
        symlink(target, self.make_parent(path)).unwrap();
    }

    /// Makes a directory, and those above it.
    pub fn directory(&self, path: &str) {
        fs::create_dir_all(self.sysroot().path(path)).unwrap();
    }

    /// Removes a file, or a directory with all in it.
    pub fn remove(&self, path: &str) {
        let path = self.sysroot().path(path);
        if path.is_dir() { fs::remove_dir_all(path) } else { fs::remove_file(path) }.unwrap();
    }

    fn make_parent(&self, path: &str) -> PathBuf {
        let path = self.sysroot().path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        path
    }

    /// Adds a function with its group.
    pub fn function(&self, function: &Function<'_>) {
        let Function { bdf, id, class, driver, group, resources, header_type, under } = *function;
        if let Some(first) = under.first() {
            let root = &first[..first.len() - 5];
            let real = format!("devices/pci{root}/{}/{bdf}", under.join("/"));
            self.directory(&format!("/sys/{real}"));
            self.link(&format!("/sys/bus/pci/devices/{bdf}"), &format!("../../../{real}"));
        }
        let at = |name: &str| format!("/sys/bus/pci/devices/{bdf}/{name}");
        let hex = |name: &str, value: u32| self.file(&at(name), format!("{value:#x}\n"));
        hex("vendor", id.0.into());
        hex("device", id.1.into());
        hex("subsystem_vendor", 0x1458);
        hex("subsystem_device", 0x37a9);
        hex("revision", 0xa1);
        hex("class", class);
        self.file(&at("numa_node"), "0\n");
        self.file(&at("driver_override"), "(null)\n");
        let mut table =
            vec!["0x0000000000000000 0x0000000000000000 0x0000000000000000".to_owned(); 13];
        for (line, start, end, flags) in resources {
            table[*line] = format!("{start:#018x} {end:#018x} {flags:#018x}");
        }
        self.file(&at("resource"), table.join("\n") + "\n");
        let mut config = [0; 64];
        config[0..2].copy_from_slice(&id.0.to_le_bytes());
        config[2..4].copy_from_slice(&id.1.to_le_bytes());
        config[9..12].copy_from_slice(&class.to_le_bytes()[..3]);
        config[14] = header_type;
        self.file(&at("config"), config);
        if let Some(driver) = driver {
            self.link(&at("driver"), &format!("../../../bus/pci/drivers/{driver}"));
        }
        if let Some(group) = group {
            self.link(&at("iommu_group"), &format!("../../../kernel/iommu_groups/{group}"));
            let groups = format!("/sys/kernel/iommu_groups/{group}");
            self.link(
                &format!("{groups}/devices/{bdf}"),
                &format!("../../../../bus/pci/devices/{bdf}"),
            );
            self.file(
                &format!("{groups}/reserved_regions"),
                "0x00000000fee00000 0x00000000feefffff msi\n",
            );
            self.file(&format!("/dev/vfio/{group}"), "");
        }
    }

    /// The two-card server of many passthrough guides: each GPU with audio, USB and UCSI functions, all on
    /// vfio-pci, each card one IOMMU group; the host's own display is a BMC.
    pub fn two_cards() -> Self {
        let tree = Self::new();
        tree.host_basics();
        for (bus, group) in [("3b", 31), ("d8", 94)] {
            // Named lines: (BAR, start, end, flags) with IORESOURCE_MEM 0x200, PREFETCH 0x2000, MEM_64 0x100000.
            let gpu: &[_] = &[
                (0, 0xb800_0000, 0xb8ff_ffff, 0x40200),
                (1, 0x3_8000_0000, 0x3_8fff_ffff, 0x14220c),
                (3, 0x3_9000_0000, 0x3_91ff_ffff, 0x14220c),
                (5, 0x6000, 0x607f, 0x40101),
                (6, 0xb900_0000, 0xb907_ffff, 0x46200),
            ];
            let audio: &[_] = &[(0, 0xb908_0000, 0xb908_3fff, 0x40200)];
            let usb: &[_] = &[(0, 0x3_9200_0000, 0x3_9203_ffff, 0x14220c)];
            let ucsi: &[_] = &[(0, 0xb908_4000, 0xb908_4fff, 0x40200)];
            for (number, device, class, resources) in [
                (0, 0x1e07, 0x03_0000, gpu),
                (1, 0x10f7, 0x04_0300, audio),
                (2, 0x1ad6, 0x0c_0330, usb),
                (3, 0x1ad7, 0x0c_8000, ucsi),
            ] {
                tree.function(&Function {
                    bdf: &format!("0000:{bus}:00.{number}"),
                    id: (0x10de, device),
                    class,
                    driver: Some("vfio-pci"),
                    group: Some(group),
                    resources,
                    header_type: 0x80,
                    under: &[],
                });
            }
        }
        tree.function(&Function {
            bdf: "0000:03:00.0",
            id: (0x1a03, 0x2000),
            class: 0x03_0000,
            driver: Some("ast"),
            group: Some(12),
            ..Function::default()
        });
        tree.file("/sys/bus/pci/devices/0000:03:00.0/boot_vga", "1\n");
        for card in ["0000:3b:00.0", "0000:d8:00.0"] {
            tree.file(&format!("/sys/bus/pci/devices/{card}/boot_vga"), "0\n");
        }
        tree
    }

    /// The firmware left a picture in this function's BAR, and `driver` draws a text console on it; /proc/iomem calls it
    /// `name`.
    pub fn framebuffer(&self, bdf: &str, name: &str, driver: &str) {
        self.file(
            "/proc/iomem",
            format!(
                "b0000000-bfffffff : PCI Bus\n  b8000000-b8ffffff : {bdf}\n    b8000000-b82fffff : {name}\n  b9000000-b9ffffff : other\n"
            ),
        );
        let device = format!("/sys/devices/platform/{driver}.0");
        self.link(&format!("{device}/driver"), &format!("../../../bus/platform/drivers/{driver}"));
        self.link(
            &format!("/sys/bus/platform/devices/{driver}.0"),
            &format!("../../../devices/platform/{driver}.0"),
        );
        for attribute in ["bind", "unbind"] {
            self.file(&format!("/sys/bus/platform/drivers/{driver}/{attribute}"), "");
        }
        self.link(
            &format!("/sys/bus/platform/drivers/{driver}/{driver}.0"),
            &format!("../../../../devices/platform/{driver}.0"),
        );
        self.file("/proc/fb", "0 VESA VGA\n");
        for (console, name, bound) in
            [(0, "(S) dummy device", "0"), (1, "(M) frame buffer device", "1")]
        {
            self.file(&format!("/sys/class/vtconsole/vtcon{console}/name"), format!("{name}\n"));
            self.file(&format!("/sys/class/vtconsole/vtcon{console}/bind"), format!("{bound}\n"));
        }
    }

    /// An Intel server with the IOMMU on, KVM and VFIO loaded, 64 GiB, run by root; shortened to what is read.
    pub fn host_basics(&self) {
        self.file("/proc/cpuinfo", CPUINFO);
        self.file("/proc/cmdline", "BOOT_IMAGE=/vmlinuz root=/dev/sda2 intel_iommu=on iommu=pt\n");
        self.file(
            "/proc/meminfo",
            "MemTotal:       65763912 kB\nMemFree:         1234 kB\nMemAvailable:   60123456 kB\nHugepagesize:       2048 kB\n",
        );
        self.file("/proc/self/cgroup", "0::/user.slice/session.scope\n");
        self.file("/proc/self/limits", limits(8 << 20, 8 << 20));
        self.file("/proc/self/status", status(0, 0x1ff_ffff_ffff));
        self.file("/dev/kvm", "");
        self.file("/dev/vfio/vfio", "");
        self.directory("/sys/kernel/iommu_groups");
        self.file("/sys/firmware/acpi/tables/DMAR", "DMAR");
        // A Xeon's: MGAW 0x2f is 48 bits, SAGAW 4 levels; ecap with interrupt remapping (bit 3).
        self.file("/sys/class/iommu/dmar0/intel-iommu/cap", "8d2078c106f0466\n");
        self.file("/sys/class/iommu/dmar0/intel-iommu/ecap", "f020df\n");
    }
}

/// `/proc/self/limits` as far as it is read, with these soft and hard memlock limits.
pub fn limits(soft: u64, hard: u64) -> String {
    format!(
        "Limit                     Soft Limit           Hard Limit           Units     \n\
         Max processes             255000               255000               processes \n\
         Max locked memory         {soft:<20} {hard:<20} bytes     \n\
         Max address space         unlimited            unlimited            bytes     \n"
    )
}

/// `/proc/self/status` as far as it is read.
pub fn status(uid: u32, capabilities: u64) -> String {
    format!(
        "Name:\tstrait\nUid:\t{uid}\t{uid}\t{uid}\t{uid}\nGid:\t{uid}\t{uid}\t{uid}\t{uid}\n\
         Groups:\t{uid} 27 \nVmLck:\t       0 kB\nCapEff:\t{capabilities:016x}\n"
    )
}

const CPUINFO: &str = "processor\t: 0\nvendor_id\t: GenuineIntel\nmodel name\t: Intel(R) Xeon(R) Gold 6130 CPU @ 2.10GHz\n\
flags\t\t: fpu vme lm constant_tsc nonstop_tsc vmx ept\naddress sizes\t: 46 bits physical, 48 bits virtual\n\n\
processor\t: 1\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vme lm vmx\naddress sizes\t: 46 bits physical, 48 bits virtual\n";
