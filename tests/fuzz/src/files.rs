//! Files that a user names: kernels, ROMs, ACPI tables.

use std::{fs::File, io::Write as _, os::fd::AsRawFd as _, path::PathBuf};

use rustix::fs::{MemfdFlags, memfd_create};
use strait_arch::{
    acpi,
    boot::{self, BootFiles, BootMode, BootRequest},
};
use strait_resources::{
    host::rom::{self, Wearer},
    range::AddressRange,
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

/// Bytes of the guest that kernels are loaded into: small, so that too large is tried, too.
const RAM: usize = 64 << 20;
/// No kernel unpacks to more.
const UNPACKED_MAX: usize = 1 << 30;

/// A kernel: looked at, then loaded. What is refused at the look is refused by the load.
pub(crate) fn kernel(bytes: &[u8]) {
    let Some((_file, path)) = in_memory(bytes) else { return };
    let Ok(files) = BootFiles::open(&path, None) else { return };
    let ram = AddressRange::new(0, RAM as u64 - 1).into_iter().collect::<Vec<_>>();
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), RAM)]).expect("64 MiB");
    for mode in [BootMode::Auto, BootMode::Pvh, BootMode::BzImage] {
        let looked = boot::check(&files, "quiet", mode, RAM as u64);
        let request =
            BootRequest { files: &files, cmdline: "quiet", ram: &ram, fresh: false, mode };
        let loaded = boot::load(&memory, &request);
        assert!(looked.is_ok() || loaded.is_err(), "{mode:?}: refused at the look, and loaded");
    }
}

/// A compressed file.
pub(crate) fn unpack(bytes: &[u8]) {
    if let Ok(unpacked) = boot::decompressed(bytes) {
        assert!(unpacked.len() <= UNPACKED_MAX, "{} bytes", unpacked.len());
    }
}

/// An expansion ROM, for the card that it says it is for and for another.
pub(crate) fn rom(bytes: &[u8]) {
    let Ok(images) = rom::parse(bytes) else { return };
    assert!(!images.is_empty());
    let mut end = 0;
    for image in &images {
        assert!(image.offset >= end, "two images overlap at {:#x}", image.offset);
        end = image.offset.saturating_add(image.len);
    }
    let own = images[0].devices.iter().map(|device| (images[0].vendor, *device)).collect();
    for ids in [own, vec![(0x10de, 0x1e07)]] {
        let wearer = Wearer { ids, class: images[0].class, siblings: Vec::new() };
        // Only that it returns: whether it fits has tests of its own.
        drop(rom::check(bytes, &wearer));
    }
}

/// An ACPI table, given twice.
pub(crate) fn acpi(bytes: &[u8]) {
    let mut seen = Vec::new();
    if acpi::check_table(bytes, &mut seen).is_ok() {
        assert_eq!(bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(seen.len(), 1);
        assert!(acpi::check_table(bytes, &mut seen).is_err(), "the same table twice");
    }
}

/// A file without a name on any disk, and a path by which it can be opened while it lives.
fn in_memory(bytes: &[u8]) -> Option<(File, PathBuf)> {
    let mut file = File::from(memfd_create("kernel", MemfdFlags::CLOEXEC).ok()?);
    file.write_all(bytes).ok()?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    Some((file, path))
}
