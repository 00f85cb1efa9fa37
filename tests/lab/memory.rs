//! L0's view of the memory behind an emulated device: the memfd that QEMU holds.

use std::{
    fs::{self, File},
    os::unix::fs::FileExt,
};

/// Reads eight bytes of the shared memory of this size.
pub(crate) fn read64(qemu: Option<u32>, size: u64, at: u64) -> Result<u64, String> {
    let pid = qemu.ok_or("there is no L0 here")?;
    let directory = format!("/proc/{pid}/fd");
    let entries = fs::read_dir(&directory).map_err(|error| format!("{directory}: {error}"))?;
    for entry in entries.filter_map(Result::ok) {
        let is_memory = fs::read_link(entry.path())
            .is_ok_and(|target| target.to_string_lossy().starts_with("/memfd:"));
        if !is_memory || !fs::metadata(entry.path()).is_ok_and(|data| data.len() == size) {
            continue;
        }
        let mut bytes = [0; 8];
        File::open(entry.path())
            .and_then(|file| file.read_exact_at(&mut bytes, at))
            .map_err(|error| format!("QEMU's memory at {at:#x}: {error}"))?;
        return Ok(u64::from_le_bytes(bytes));
    }
    Err(format!("QEMU holds no memory of {size:#x} bytes"))
}
