//! Boot errors as refusals: what the file is, and what to do.

use strait_resources::{codes, failure::Failure};

use super::BootError;

impl BootError {
    /// With code and fix.
    pub fn into_failure(self) -> Failure {
        let cause = self.to_string();
        match self {
            Self::Read { source, .. } => {
                Failure::new(&codes::E2101, cause, "check the path and its permissions")
                    .source(source)
            }
            Self::NotAKernel { .. } => Failure::new(
                &codes::E2102,
                cause,
                "give --kernel a bzImage (/boot/vmlinuz-*) or an ELF vmlinux for x86-64",
            ),
            Self::NotAnInitramfs { .. } => Failure::new(
                &codes::E2101,
                cause,
                "give --initramfs a cpio archive, or leave it out",
            ),
            Self::NoPvh { .. } => {
                Failure::new(&codes::E2102, cause, "use --boot auto, which finds another way in")
            }
            Self::KernelTooBig { end, .. } => {
                // Twice what is loaded: a kernel also unpacks its initramfs and works.
                let mib = (end.div_ceil(1 << 20) * 2).next_multiple_of(64);
                Failure::new(
                    &codes::E2103,
                    cause,
                    format!("give the guest more RAM: --memory {mib}M"),
                )
            }
            Self::InitramfsTooBig { len, .. } => {
                let fix = format!(
                    "give the guest {} MiB more RAM (up to 2 GiB of it is below 4 GiB), or a smaller initramfs",
                    len.div_ceil(1 << 20).next_multiple_of(64)
                );
                Failure::new(&codes::E2104, cause, fix)
            }
            Self::CmdlineTooLong { limit, .. } => {
                Failure::new(&codes::E2105, cause, format!("shorten --cmdline to {limit} bytes"))
            }
            Self::Memory(_) => {
                Failure::new(&codes::E2103, cause, "give the guest more RAM: --memory 512M")
            }
        }
    }
}

/// What a file that is no kernel looks like by its first bytes.
pub(super) fn what_is(head: &[u8]) -> String {
    let at = |offset: usize, magic: &[u8]| head.get(offset..offset + magic.len()) == Some(magic);
    let known = if head.is_empty() {
        "an empty file"
    } else if at(0, b"070701") || at(0, b"070702") {
        "a cpio archive (an initramfs?)"
    } else if at(0x38, b"ARM\x64") {
        "an arm64 kernel"
    } else if at(0x30, b"RISCV") {
        "a RISC-V kernel"
    } else if at(0, &[0x27, 0x05, 0x19, 0x56]) {
        "a U-Boot image"
    } else if at(0, b"\x1f\x8b") {
        "gzip-compressed (an initramfs?)"
    } else if at(0, b"\xfd7zXZ") || at(0, b"\x28\xb5\x2f\xfd") {
        "a compressed file (an initramfs?)"
    } else if at(0, b"QFI\xfb") {
        "a qcow2 disk image"
    } else if at(0x1fe, b"\x55\xaa") {
        "a disk image or an old kernel without a boot header"
    } else if at(0, b"MZ\0\0zimg") {
        "a compressed EFI kernel (zboot), as arm64 and RISC-V have them"
    } else if at(0, b"MZ") && has_section(head, b".linux\0\0") {
        "a unified kernel image (the kernel is inside: objcopy -O binary -j .linux UKI vmlinuz)"
    } else if at(0, b"MZ") {
        "an EFI program"
    } else if at(0, b"#!") {
        "a script"
    } else if head.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace()) {
        "a text file"
    } else {
        "a file of an unknown kind"
    };
    known.to_owned()
}

/// Has the section table of an EFI program a section of this name? (PE format: 8 bytes of name in entries of 40 bytes
/// behind the optional header.)
fn has_section(head: &[u8], name: &[u8; 8]) -> bool {
    const ENTRY: usize = 40;
    let number = |at: usize, count: usize| -> Option<usize> {
        let bytes = head.get(at..at.checked_add(count)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | usize::from(*byte)))
    };
    let table = || -> Option<(usize, usize)> {
        let pe = number(0x3c, 4)?;
        let sections = number(pe.checked_add(6)?, 2)?;
        let optional = number(pe.checked_add(20)?, 2)?;
        Some((pe.checked_add(24)?.checked_add(optional)?, sections))
    };
    let Some((at, sections)) = table() else { return false };
    head.get(at..)
        .unwrap_or_default()
        .chunks(ENTRY)
        .take(sections)
        .any(|entry| entry.starts_with(name))
}
