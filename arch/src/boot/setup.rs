//! The setup header of a bzImage (Documentation/arch/x86/boot.rst), from the first bytes of the file.

use super::{INITRAMFS_MAX, Limits};
use crate::layout::HIGH_MEMORY_START;

/// Magic of the setup header, and where it and what is read of it stand in a bzImage.
const MAGIC: &[u8; 4] = b"HdrS";
const MAGIC_AT: usize = 0x202;
const SETUP_SECTORS: usize = 0x1f1;
const VERSION: usize = 0x206;
const LOADFLAGS: usize = 0x211;
const CODE32_START: usize = 0x214;
const INITRD_ADDR_MAX: usize = 0x22c;
const XLOADFLAGS: usize = 0x236;
const CMDLINE_SIZE: usize = 0x238;
const PREF_ADDRESS: usize = 0x258;
const INIT_SIZE: usize = 0x260;
/// The first version with `xloadflags`.
const WITH_XLOADFLAGS: u16 = 0x020c;
const LOADED_HIGH: u8 = 1;
/// `XLF_KERNEL_64`: there is a 64-bit entry at 0x200.
const KERNEL_64: u16 = 1;

/// What a bzImage that can be entered says of itself.
#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    /// First address above what it needs when it unpacks itself, which is not below the end of the vmlinux inside.
    pub(super) end: u64,
    pub(super) limits: Limits,
}

/// Does a file start as a bzImage does?
pub(super) fn is_bzimage(head: &[u8]) -> bool {
    head.get(MAGIC_AT..MAGIC_AT + 4).is_some_and(|magic| magic == MAGIC)
}

/// Reads the header of a bzImage of `len` bytes; else what is wrong with it.
pub(super) fn read(head: &[u8], len: u64) -> Result<Setup, String> {
    let odd = |what: &str| Err(what.to_owned());
    let bytes = |at: usize, count: usize| head.get(at..at + count).unwrap_or_default();
    let number = |at: usize, count: usize| {
        bytes(at, count).iter().rev().fold(0_u64, |value, byte| value << 8 | u64::from(*byte))
    };
    let version = number(VERSION, 2) as u16;
    if bytes(LOADFLAGS, 1).first().is_none_or(|flags| flags & LOADED_HIGH == 0) {
        return odd("a zImage, or a bzImage without the flag LOADED_HIGH");
    }
    if version < WITH_XLOADFLAGS || number(XLOADFLAGS, 2) as u16 & KERNEL_64 == 0 {
        return odd("a bzImage without a 64-bit entry (a 32-bit kernel, or one older than 3.8)");
    }
    // 0 means 4, from the time of floppy disks; the boot sector itself comes on top.
    let sectors = match number(SETUP_SECTORS, 1) {
        0 => 4,
        sectors => sectors,
    };
    let Some(code) = len.checked_sub((sectors + 1) * 512).filter(|code| *code > 0) else {
        return odd("a bzImage that is cut short");
    };
    if number(CODE32_START, 4) < HIGH_MEMORY_START {
        return odd("a bzImage that wants to be below 1 MiB");
    }
    let told = |at| Some(number(at, 4)).filter(|value| *value > 0);
    let untold = Limits::UNTOLD;
    let cmdline = told(CMDLINE_SIZE).map_or(untold.cmdline, |size| size as usize);
    let limits = Limits {
        cmdline: cmdline.min(untold.cmdline),
        initramfs: told(INITRD_ADDR_MAX).unwrap_or(INITRAMFS_MAX),
    };
    // It decompresses itself to where it wants to run, and needs this much room there.
    let runs_at = HIGH_MEMORY_START.max(number(PREF_ADDRESS, 8));
    let end = runs_at.saturating_add(number(INIT_SIZE, 4));
    Ok(Setup { end: end.max(HIGH_MEMORY_START.saturating_add(code)), limits })
}
