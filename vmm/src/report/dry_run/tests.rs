use std::num::NonZeroU8;

use anstream::adapter::strip_str;
use strait_arch::plan::{FunctionRequest, PlanRequest, PortRequest};
use strait_resources::{
    bar::BarSpec,
    host::{
        pci::{Class, Header},
        sysroot::Sysroot,
    },
    range::AddressRange,
};

use super::*;
use crate::config::{Kernel, Memory, P2p};

fn bar(index: u8, kind: BarKind, size: u64) -> BarSpec {
    BarSpec { index: BarIndex::new(index).unwrap(), kind, size }
}

/// A GPU with INTA, 16 MSI vectors and 9 MSI-X vectors.
fn gpu() -> HostFunction {
    let mut config = vec![0; 256];
    config[0x06] = 0x10;
    config[0x34] = 0x40;
    config[0x3d] = 1;
    config[0x40..0x44].copy_from_slice(&[0x05, 0x60, 0x88, 0x00]);
    config[0x60..0x64].copy_from_slice(&[0x11, 0x00, 0x08, 0x00]);
    HostFunction {
        bdf: "3b:00.0".parse().unwrap(),
        vendor: 0x10de,
        device: 0x1e07,
        subsystem_vendor: 0,
        subsystem_device: 0,
        revision: 0xa1,
        class: Class(0x03_0000),
        driver: Some("vfio-pci".into()),
        group: Some(13),
        numa_node: Some(1),
        bars: vec![
            bar(0, BarKind::Memory32 { prefetchable: false }, 16 << 20),
            bar(1, BarKind::Memory64 { prefetchable: false }, 32 << 30),
            bar(5, BarKind::Io, 128),
            bar(6, BarKind::Rom, 512 << 10),
        ],
        unassigned: vec![],
        config,
        header: Header::Normal,
        link: None,
        reset_methods: vec!["flr".into(), "bus".into()],
        power_state: None,
        boot_vga: None,
        physical_function: None,
        behind: None,
        label: None,
    }
}

fn plan(hosts: &[HostFunction]) -> Plan {
    let port = |host: &HostFunction| PortRequest {
        id: "gpu".into(),
        bus: None,
        functions: vec![FunctionRequest { number: 0, host: host.bdf, bars: host.bars.clone() }],
    };
    let request = PlanRequest {
        ram: 4 << 30,
        physical_bits: 46,
        iova: AddressRange::inclusive(0, (1 << 46) - 1).into_iter().collect(),
        reserved: vec![],
        ports: hosts.iter().map(port).collect(),
        mmio32: None,
        mmio64: None,
    };
    request.solve().unwrap()
}

fn config() -> RunConfig {
    RunConfig {
        kernel: Kernel {
            path: "/boot/vmlinuz".into(),
            initramfs: None,
            cmdline: "console=ttyS0 quiet".into(),
            boot: BootMode::Auto,
        },
        cpu: Cpu {
            count: NonZeroU8::new(8).unwrap(),
            threads_per_core: NonZeroU8::new(2).unwrap(),
            cores_per_package: NonZeroU8::new(4).unwrap(),
            hide: Hide::Kvm,
            hv_vendor: Some(*b"short\0\0\0\0\0\0\0"),
            idle: Idle::Halt,
            nested: false,
            pmu: false,
            core_sched: true,
        },
        memory: Memory { size: 4 << 30, pages: Pages::Default, pin: Pin::Auto },
        vfio: vec![],
        p2p: P2p::Auto,
        serial: Serial::Stdio,
        acpi: vec![],
        smbios: Smbios { serial: Some("S1".into()), ..Smbios::default() },
        mmio32: None,
        mmio64: None,
        allow_boot_vga: false,
        release_fb: false,
        dry_run: true,
    }
}

fn text(hosts: &[HostFunction]) -> String {
    // An empty directory: names are numbers, whatever the machine of the test has.
    let nowhere = tempfile::tempdir().unwrap();
    let names = Names::load(&Sysroot::at(nowhere.path()));
    let flr = Way::Alone(vec!["flr".to_owned(), "bus".to_owned()]);
    let all: Vec<_> = hosts.iter().map(|host| (host, Identity::default(), &flr)).collect();
    let extra =
        |_| Extra { raw_config: true, after: After::Vfio, trust_guest: true, ..Extra::default() };
    let p2p = PeerDma::decide(P2p::Auto, hosts.len());
    strip_str(&render(&config(), &names, &all, extra, &plan(hosts), p2p)).to_string()
}

#[test]
fn device_is_shown_with_its_place_and_every_bar() {
    let text = text(&[gpu()]);
    for says in [
        "0000:3b:00.0  NVIDIA TU102 GeForce RTX 2080 Ti Rev. A [10de:1e07]",
        "01:00.0, Xorg BusID \"PCI:1:0:0\", behind root port 00:",
        "VGA controller, IOMMU group 13, driver vfio-pci, NUMA node 1\n",
        "reset       flr, then bus\n",
        "after       stays on vfio-pci until strait unbind",
        "trust       goes back to the host even where nothing resets it",
        "config      writes outside of capabilities reach the device",
        "INTA, MSI (16), MSI-X (9)",
        "BAR 0       32-bit                  16 MiB  0x",
        "BAR 5       I/O ports            128 bytes  0x",
        "ROM         32-bit                 512 KiB  0x",
        "64-bit prefetchable     32 GiB  0x800000000-0xfffffffff (host: 64-bit)",
        "8: 1 x 4 x 2 (packages, cores, threads), no KVM leaf, hypervisor vendor \"short\"",
        "4 GiB in transparent huge pages",
        "SMBIOS      serial S1\n",
    ] {
        assert!(text.contains(says), "no {says:?} in\n{text}");
    }
    let bar1 = plan(&[gpu()]).ports[0].functions[0].bars[1].at;
    assert!(text.contains(&bar1.to_string()), "{text}");
}

#[test]
fn r46_other_ids_are_shown_beside_the_devices_own() {
    let board = Identity { subsystem_vendor: Some(0x1043), ..Identity::default() };
    assert_eq!(
        other_ids(&gpu(), board).as_deref(),
        Some("the guest sees subsystem 1043:0000 for 0000:0000")
    );
    let card = Identity { device: Some(0x1e04), ..board };
    assert_eq!(
        other_ids(&gpu(), card).as_deref(),
        Some("the guest sees 10de:1e04 for 10de:1e07, subsystem 1043:0000 for 0000:0000")
    );
    assert_eq!(other_ids(&gpu(), Identity::default()), None);
}

#[test]
fn every_line_fits_a_hundred_columns() {
    let mut long = gpu();
    long.driver = Some("a_driver_with_quite_a_name".into());
    for line in text(&[long]).lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
}

#[test]
fn machine_without_devices_has_no_list_of_them() {
    let text = text(&[]);
    assert!(text.contains("Addresses") && !text.contains("Devices"), "{text}");
    assert!(text.contains("off: no device is passed"), "{text}");
}

#[test]
fn interrupts_of_a_header_alone_say_who_can_see_more() {
    let mut host = gpu();
    host.config.truncate(64);
    assert_eq!(interrupts(&host), "INTA, others only root can see");
    host.config.truncate(32);
    assert_eq!(interrupts(&host), "unknown: config space cannot be read");
    host.config = vec![0; 256];
    assert_eq!(interrupts(&host), "none");
}

#[test]
fn shortened_text_ends_in_dots() {
    assert_eq!(shortened("abcdef", 6), "abcdef");
    assert_eq!(shortened("abcdefg", 6), "abc...");
}
