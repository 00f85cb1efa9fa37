use std::{fs, path::PathBuf};

use super::*;
use crate::plan::PlanRequest;

const MIB: u64 = 1 << 20;

struct Fixture {
    directory: tempfile::TempDir,
    memory: GuestMemoryMmap,
    plan: Plan,
}

impl Fixture {
    fn new(mib: u64) -> Self {
        let request = PlanRequest {
            ram: mib * MIB,
            physical_bits: 40,
            iova: Vec::new(),
            reserved: Vec::new(),
            ports: Vec::new(),
            mmio32: None,
            mmio64: None,
        };
        let memory =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), (mib * MIB) as usize)]).unwrap();
        Self { directory: tempfile::tempdir().unwrap(), memory, plan: request.solve().unwrap() }
    }

    fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.directory.path().join(name);
        fs::write(&path, bytes).unwrap();
        path
    }

    fn load(&self, kernel: &Path, initramfs: Option<&Path>) -> Result<Entry, BootError> {
        let request = BootRequest {
            kernel,
            initramfs,
            cmdline: "console=ttyS0",
            plan: &self.plan,
            rsdp: layout::ACPI_START,
            mode: BootMode::Auto,
        };
        load(&self.memory, &request)
    }

    fn u64_at(&self, address: u64) -> u64 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }

    fn u32_at(&self, address: u64) -> u32 {
        self.memory.read_obj(GuestAddress(address)).unwrap()
    }
}

/// An ELF kernel at 16 MiB with `memory` bytes, with or without a PVH note.
fn elf(pvh: bool, memory: u64) -> Vec<u8> {
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2u8, 0, 62, 0, 1, 0, 0, 0]);
    elf.extend([16 * MIB, 64, 0].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend([0u8, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
    let mut segment = |kind: u32, at: u64, address: u64, file: u64, memory: u64| {
        elf.extend([kind, 5].iter().flat_map(|n| n.to_le_bytes()));
        elf.extend([at, address, address, file, memory, 4].iter().flat_map(|n| n.to_le_bytes()));
    };
    segment(1, 200, 16 * MIB, 8, memory);
    segment(if pvh { 4 } else { 0 }, 176, 0, 20, 20);
    elf.extend([4u32, 4, 18].iter().flat_map(|n| n.to_le_bytes()));
    elf.extend(*b"Xen\0");
    elf.extend((16 * MIB + 0x100).to_le_bytes());
    elf.resize(200, 0);
    elf.extend(*b"kernel!!");
    elf
}

#[test]
fn elf_with_a_pvh_note_is_entered_by_it_with_initramfs_and_memory_map() {
    let fixture = Fixture::new(64);
    let (kernel, initramfs) =
        (fixture.file("vmlinux", &elf(true, MIB)), fixture.file("initramfs", &[0xab; 5000]));
    let entry = fixture.load(&kernel, Some(&initramfs)).unwrap();
    let info = layout::PVH_START_INFO;
    assert_eq!(entry, Entry::Pvh { rip: 16 * MIB + 0x100, start_info: info });
    assert_eq!(fixture.u32_at(info), 0x336e_c578);
    assert_eq!(fixture.u64_at(info + 32), layout::ACPI_START);
    let module = fixture.u64_at(info + 16);
    let (start, len) = (fixture.u64_at(module), fixture.u64_at(module + 8));
    assert_eq!((start, len), (64 * MIB - 8192, 5000));
    assert_eq!(fixture.u32_at(start), 0xabab_abab);
    let (map, entries) = (fixture.u64_at(info + 40), fixture.u32_at(info + 48));
    assert_eq!(entries as usize, fixture.plan.e820().len());
    assert_eq!((fixture.u64_at(map), fixture.u64_at(map + 8)), (0, layout::LOW_MEMORY_END));
    let mut cmdline = [0u8; 14];
    fixture.memory.read_slice(&mut cmdline, GuestAddress(layout::CMDLINE)).unwrap();
    assert_eq!(&cmdline, b"console=ttyS0\0");
}

#[test]
fn elf_without_the_note_is_entered_at_its_64_bit_entry() {
    let fixture = Fixture::new(64);
    let kernel = fixture.file("vmlinux", &elf(false, MIB));
    let entry = fixture.load(&kernel, None).unwrap();
    assert_eq!(entry, Entry::Linux64 { rip: 16 * MIB, zero_page: layout::ZERO_PAGE });
    assert_eq!(fixture.u64_at(layout::ZERO_PAGE + 0x70), layout::ACPI_START);
    assert_eq!(fixture.u32_at(layout::ZERO_PAGE + 0x228), layout::CMDLINE as u32);
    let entries: u8 = fixture.memory.read_obj(GuestAddress(layout::ZERO_PAGE + 0x1e8)).unwrap();
    assert_eq!(usize::from(entries), fixture.plan.e820().len());
}

#[test]
fn kernel_whose_bss_ends_above_low_ram_is_refused_with_numbers() {
    let fixture = Fixture::new(64);
    let kernel = fixture.file("vmlinux", &elf(true, 100 * MIB));
    let failure = fixture.load(&kernel, None).unwrap_err().into_failure();
    assert_eq!(failure.code.id, "E2103");
    assert!(
        failure.cause.contains("116 MiB") && failure.cause.contains("64 MiB"),
        "{}",
        failure.cause
    );
    assert_eq!(failure.fix, "give the guest more RAM: --memory 256M");
}

#[test]
fn initramfs_that_would_touch_the_kernel_is_refused() {
    let fixture = Fixture::new(64);
    let (kernel, initramfs) = (
        fixture.file("vmlinux", &elf(true, 47 * MIB)),
        fixture.file("initramfs", &vec![0; 2 * MIB as usize]),
    );
    let failure = fixture.load(&kernel, Some(&initramfs)).unwrap_err().into_failure();
    assert_eq!(failure.code.id, "E2104");
}

#[test]
fn files_that_are_no_kernel_are_named_for_what_they_are() {
    let fixture = Fixture::new(64);
    for (bytes, what) in [
        (&b""[..], "an empty file"),
        (b"070701000000", "a cpio archive (an initramfs?)"),
        (b"\x1f\x8b\x08\0\0", "gzip-compressed (an initramfs?)"),
        (b"QFI\xfb\0\0\0\x03", "a qcow2 disk image"),
        (b"#!/bin/sh\n", "a script"),
        (b"hello\n", "a text file"),
    ] {
        let kernel = fixture.file("not-a-kernel", bytes);
        let failure = fixture.load(&kernel, None).unwrap_err().into_failure();
        assert_eq!(failure.code.id, "E2102");
        assert!(failure.cause.contains(what), "{}", failure.cause);
    }
}

#[test]
fn elf_for_another_machine_is_refused() {
    let fixture = Fixture::new(64);
    let mut arm = elf(true, MIB);
    arm[18] = 183;
    let failure = fixture.load(&fixture.file("vmlinux", &arm), None).unwrap_err().into_failure();
    assert_eq!(failure.code.id, "E2102");
    assert!(failure.cause.contains("another machine"), "{}", failure.cause);
}

#[test]
fn command_line_of_64_kib_is_refused() {
    let fixture = Fixture::new(64);
    let kernel = fixture.file("vmlinux", &elf(true, MIB));
    let long = "x".repeat(0x1_0000);
    let request = BootRequest {
        kernel: &kernel,
        initramfs: None,
        cmdline: &long,
        plan: &fixture.plan,
        rsdp: 0,
        mode: BootMode::Auto,
    };
    assert_eq!(load(&fixture.memory, &request).unwrap_err().into_failure().code.id, "E2105");
}

#[test]
fn low_ram_of_the_plan_is_what_the_fixture_has() {
    let fixture = Fixture::new(64);
    assert_eq!(fixture.plan.ram, [AddressRange::new(0, 64 * MIB).unwrap()]);
}
