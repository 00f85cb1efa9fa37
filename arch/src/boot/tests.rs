use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
};

use super::{unwrap::tests::bzimage, *};
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
        self.boot(&self.request(&BootFiles::open(kernel, initramfs)?))
    }

    fn boot(&self, request: &BootRequest<'_>) -> Result<Entry, BootError> {
        load(&self.memory, request)?.prepare(&self.memory, &self.plan, layout::ACPI_START)
    }

    fn request<'a>(&'a self, files: &'a BootFiles) -> BootRequest<'a> {
        BootRequest {
            files,
            cmdline: "console=ttyS0",
            ram: &self.plan.ram,
            fresh: true,
            mode: BootMode::Auto,
        }
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

/// A bzImage around `vmlinux`, as gzip, that takes 100 bytes of command line and has a 64-bit entry.
fn bzimage_of(vmlinux: &[u8]) -> Vec<u8> {
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(vmlinux).unwrap();
    let mut image = bzimage(&gzip.finish().unwrap());
    image[0x211] = 1; // loadflags: LOADED_HIGH
    image[0x214..0x218].copy_from_slice(&(1_u32 << 20).to_le_bytes()); // code32_start
    image[0x236] = 1; // xloadflags: XLF_KERNEL_64
    image[0x238] = 100; // cmdline_size
    image[0x258..0x260].copy_from_slice(&(16 * MIB).to_le_bytes()); // pref_address
    image[0x260..0x264].copy_from_slice(&(2_u32 << 20).to_le_bytes()); // init_size
    image
}

#[test]
fn bzimage_is_unwrapped_and_entered_by_the_note_inside() {
    let fixture = Fixture::new(64);
    let kernel = fixture.file("vmlinuz", &bzimage_of(&elf(true, MIB)));
    let entry = fixture.load(&kernel, None).unwrap();
    assert_eq!(entry, Entry::Pvh { rip: 16 * MIB + 0x100, start_info: layout::PVH_START_INFO });
    assert_eq!(fixture.u64_at(16 * MIB).to_le_bytes(), *b"kernel!!");
}

#[test]
fn bzimage_without_a_note_inside_or_when_told_so_is_entered_by_its_own_code() {
    let fixture = Fixture::new(64);
    let kernel = fixture.file("vmlinuz", &bzimage_of(&elf(false, MIB)));
    let expected = Entry::Linux64 { rip: MIB + 0x200, zero_page: layout::ZERO_PAGE };
    assert_eq!(fixture.load(&kernel, None).unwrap(), expected);
    let kernel = fixture.file("vmlinuz", &bzimage_of(&elf(true, MIB)));
    let files = BootFiles::open(&kernel, None).unwrap();
    let told = BootRequest { mode: BootMode::BzImage, ..fixture.request(&files) };
    assert_eq!(fixture.boot(&told).unwrap(), expected);
    assert_eq!(fixture.u32_at(layout::ZERO_PAGE + 0x202), 0x5372_6448);
}

#[test]
fn command_line_that_the_unwrapped_kernel_would_cut_is_refused() {
    let fixture = Fixture::new(64);
    let kernel = fixture.file("vmlinuz", &bzimage_of(&elf(true, MIB)));
    let (fits, long) = ("x".repeat(100), "x".repeat(101));
    let files = BootFiles::open(&kernel, None).unwrap();
    let request = |cmdline| BootRequest { cmdline, ..fixture.request(&files) };
    fixture.boot(&request(&fits)).unwrap();
    let failure = fixture.boot(&request(&long)).unwrap_err().into_failure();
    assert_eq!((failure.code.id, &*failure.fix), ("E2105", "shorten --cmdline to 100 bytes"));
}

#[test]
fn initramfs_that_is_missing_or_empty_is_refused_before_the_kernel_is_looked_at() {
    let fixture = Fixture::new(64);
    let (missing, empty) = (fixture.directory.path().join("missing"), fixture.file("empty", b""));
    for initramfs in [&missing, &empty, &fixture.directory.path().to_owned()] {
        let failure = fixture.load(&missing, Some(initramfs)).unwrap_err().into_failure();
        assert_eq!(failure.code.id, "E2101");
        let name = initramfs.display().to_string();
        assert!(failure.cause.contains(&name), "{}", failure.cause);
    }
}

#[test]
fn program_for_linux_is_no_kernel() {
    let fixture = Fixture::new(64);
    let this_test = std::env::current_exe().unwrap();
    let failure = fixture.load(&this_test, None).unwrap_err().into_failure();
    assert_eq!(failure.code.id, "E2102");
    assert!(failure.cause.contains("program"), "{}", failure.cause);
    let mut low = elf(true, MIB);
    // The physical address of the first segment.
    low[64 + 24..64 + 32].copy_from_slice(&0x7000_u64.to_le_bytes());
    let failure = fixture.load(&fixture.file("low", &low), None).unwrap_err().into_failure();
    assert_eq!(failure.code.id, "E2102");
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
    let files = BootFiles::open(&kernel, None).unwrap();
    let request = BootRequest { cmdline: &long, ..fixture.request(&files) };
    assert_eq!(fixture.boot(&request).unwrap_err().into_failure().code.id, "E2105");
}

#[test]
fn low_ram_of_the_plan_is_what_the_fixture_has() {
    let fixture = Fixture::new(64);
    assert_eq!(fixture.plan.ram, [AddressRange::new(0, 64 * MIB).unwrap()]);
}

#[test]
fn check_refuses_without_a_machine_what_load_would() {
    let fixture = Fixture::new(64);
    let ram = 64 * MIB;
    let check = |kernel: &Path, initramfs: Option<&Path>, cmdline: &str| {
        BootFiles::open(kernel, initramfs)
            .and_then(|files| check(&files, cmdline, BootMode::Auto, ram))
            .map_err(|error| error.into_failure().code.id)
    };
    let good = fixture.file("vmlinux", &elf(true, MIB));
    let big = fixture.file("big", &elf(true, 100 * MIB));
    let text = fixture.file("text", b"hello\n");
    let initramfs = fixture.file("initramfs", &vec![0; 50 * MIB as usize]);
    assert_eq!(check(&good, None, "quiet"), Ok(()));
    assert_eq!(check(&big, None, ""), Err("E2103"));
    assert_eq!(check(&text, None, ""), Err("E2102"));
    assert_eq!(check(&good, Some(&initramfs), ""), Err("E2104"));
    assert_eq!(check(&good, None, &"x".repeat(0x1_0000)), Err("E2105"));
    assert_eq!(check(Path::new("/nonexistent"), None, ""), Err("E2101"));
}

/// The same refusal by both, so that nothing is taken for a kernel that does not start.
fn refused(fixture: &Fixture, image: &[u8], mode: BootMode) -> String {
    let kernel = fixture.file("refused", image);
    let files = BootFiles::open(&kernel, None).unwrap();
    let checked = check(&files, "quiet", mode, low_ram(&fixture.plan.ram)).unwrap_err();
    let request = BootRequest { mode, ..fixture.request(&files) };
    let loaded = fixture.boot(&request).unwrap_err().into_failure();
    let checked = checked.into_failure();
    assert_eq!((checked.code.id, &checked.cause), (loaded.code.id, &loaded.cause));
    format!("{} {}", checked.code.id, checked.cause)
}

/// Fields by Documentation/arch/x86/boot.rst and the ELF specification's lists of classes and machines.
#[test]
fn kernel_that_is_not_for_this_machine_is_refused_by_check_and_named_for_what_it_is() {
    let fixture = Fixture::new(64);
    let bzimage = |change: fn(&mut Vec<u8>)| {
        let mut image = bzimage_of(&elf(true, MIB));
        change(&mut image);
        image
    };
    let vmlinux = |class: u8, data: u8, machine: [u8; 2]| {
        let mut image = elf(true, MIB);
        (image[4], image[5]) = (class, data);
        image[18..20].copy_from_slice(&machine);
        image
    };
    let mut uki = vec![0_u8; 0x400];
    uki[..2].copy_from_slice(b"MZ");
    uki[0x3c] = 0x80;
    uki[0x86] = 2;
    uki[0x94] = 0xf0;
    let first = 0x80 + 24 + 0xf0;
    uki[first..first + 8].copy_from_slice(b".osrel\0\0");
    uki[first + 40..first + 48].copy_from_slice(b".linux\0\0");
    let mut arm64 = b"MZ".to_vec();
    arm64.resize(0x38, 0);
    arm64.extend(*b"ARM\x64");
    for (image, what) in [
        (bzimage(|image| image[0x236] = 0), "a bzImage without a 64-bit entry (a 32-bit kernel"),
        (bzimage(|image| image[0x206] = 0x0b), "a bzImage without a 64-bit entry"),
        (bzimage(|image| image[0x211] = 0), "a zImage"),
        (bzimage(|image| image[0x1f1] = 255), "a bzImage that is cut short"),
        (vmlinux(1, 1, [3, 0]), "a 32-bit ELF file"),
        (vmlinux(2, 2, [0, 22]), "a big-endian ELF file for another machine (S/390)"),
        (vmlinux(2, 1, [183, 0]), "an ELF file for another machine (arm64)"),
        (arm64, "an arm64 kernel"),
        (uki, "a unified kernel image"),
    ] {
        let said = refused(&fixture, &image, BootMode::Auto);
        assert!(said.starts_with("E2102") && said.contains(what), "{said}");
    }
}

#[test]
fn way_in_that_a_kernel_does_not_have_is_refused_by_check() {
    let fixture = Fixture::new(64);
    let bare = elf(false, MIB);
    assert!(refused(&fixture, &bare, BootMode::Pvh).contains("no PVH entry"));
    assert!(refused(&fixture, &bzimage_of(&bare), BootMode::Pvh).contains("without CONFIG_PVH"));
    assert!(refused(&fixture, &bzimage(b"BZh91AY&SY"), BootMode::Pvh).contains("E2102"));
    assert!(refused(&fixture, &bare, BootMode::BzImage).contains("wants a bzImage"));
    let mut broken = bzimage_of(&elf(true, MIB));
    broken.truncate(0x400 + 20);
    assert!(refused(&fixture, &broken, BootMode::Pvh).contains("does not decompress"));
}

#[test]
fn kernel_that_unpacks_itself_beyond_low_ram_is_refused_by_check() {
    let fixture = Fixture::new(64);
    let mut image = bzimage_of(&elf(true, MIB));
    image[0x260..0x264].copy_from_slice(&(100_u32 << 20).to_le_bytes());
    assert!(refused(&fixture, &image, BootMode::BzImage).starts_with("E2103"));
    let mut cut = elf(true, MIB);
    cut.truncate(204);
    assert!(refused(&fixture, &cut, BootMode::Auto).contains("cut short"));
}

/// A sparse file that claims notes and segments of 2^62 bytes costs no more than one that does not.
#[test]
fn notes_of_any_claimed_size_are_walked_in_bounded_time() {
    let fixture = Fixture::new(64);
    let mut image = elf(true, MIB);
    let note = 64 + 56;
    image[note + 32..note + 40].copy_from_slice(&(1_u64 << 62).to_le_bytes());
    // Away from the note: a hole, as far as the file goes.
    image[note + 8..note + 16].copy_from_slice(&4096_u64.to_le_bytes());
    let kernel = fixture.file("vmlinux", &image);
    fs::OpenOptions::new().write(true).open(&kernel).unwrap().set_len(1 << 40).unwrap();
    let entry = fixture.load(&kernel, None).unwrap();
    assert_eq!(entry, Entry::Linux64 { rip: 16 * MIB, zero_page: layout::ZERO_PAGE });
}

#[test]
fn reboot_loads_the_files_that_were_opened_first() {
    let fixture = Fixture::new(64);
    let kernel = fixture.file("vmlinux", &elf(true, MIB));
    let initramfs = fixture.file("initramfs", b"first");
    let files = BootFiles::open(&kernel, Some(&initramfs)).unwrap();
    let first = fixture.boot(&fixture.request(&files)).unwrap();
    // An upgrade renames new files over them; another removes them.
    fs::rename(fixture.file("new", &elf(false, 2 * MIB)), &kernel).unwrap();
    fs::remove_file(&initramfs).unwrap();
    fixture.memory.write_obj(0_u64, GuestAddress(16 * MIB)).unwrap();
    let again = BootRequest { fresh: false, ..fixture.request(&files) };
    assert_eq!(fixture.boot(&again).unwrap(), first);
    assert_eq!(fixture.u64_at(16 * MIB).to_le_bytes(), *b"kernel!!");
    let module = fixture.u64_at(layout::PVH_START_INFO + 16);
    assert_eq!(fixture.u32_at(fixture.u64_at(module)).to_le_bytes(), *b"firs");
}
