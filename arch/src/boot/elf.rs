//! Whether an ELF file is a kernel and how much RAM it needs, known before a byte of it is loaded.

use std::io::{self, Read, Seek, SeekFrom};

use crate::layout::HIGH_MEMORY_START;

/// Kernels have a handful; more is no kernel.
const MAX_HEADERS: u16 = 64;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;

#[derive(Debug)]
pub(super) enum Error {
    Io(io::Error),
    /// What the file is instead.
    Odd(String),
}

/// First physical address above all segments, the lowest of which is not among the boot data in low memory.
pub(super) fn memory_end<F: Read + Seek>(image: &mut F) -> Result<u64, Error> {
    let mut header = [0u8; HEADER];
    image.rewind().and_then(|()| image.read_exact(&mut header)).map_err(cut)?;
    if header[4] != 2 || header[5] != 1 {
        return Err(odd("a 32-bit or big-endian ELF file"));
    }
    let machine = u16_at(&header, 18);
    if machine != EM_X86_64 {
        return Err(Error::Odd(format!("an ELF file for another machine (type {machine})")));
    }
    let (at, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(size) != PROGRAM_HEADER || count > MAX_HEADERS {
        return Err(odd("an ELF file with odd program headers"));
    }
    image.seek(SeekFrom::Start(at)).map_err(Error::Io)?;
    let mut end = 0;
    for _ in 0..count {
        let mut program = [0u8; PROGRAM_HEADER];
        image.read_exact(&mut program).map_err(cut)?;
        match u32_at(&program, 0) {
            PT_LOAD => {}
            PT_INTERP => return Err(odd("a program for Linux")),
            _ => continue,
        }
        let (physical, file, len) =
            (u64_at(&program, 24), u64_at(&program, 32), u64_at(&program, 40));
        if len == 0 {
            continue;
        }
        if physical < HIGH_MEMORY_START {
            return Err(odd("an ELF file with a segment below 1 MiB (a program or a library?)"));
        }
        if file > len {
            return Err(odd("an ELF file with more bytes than memory in a segment"));
        }
        let segment_end = physical
            .checked_add(len)
            .ok_or_else(|| odd("an ELF file whose segments do not fit in memory"))?;
        end = end.max(segment_end);
    }
    if end == 0 { Err(odd("an ELF file with nothing to load")) } else { Ok(end) }
}

fn odd(what: &str) -> Error {
    Error::Odd(what.to_owned())
}

fn cut(error: io::Error) -> Error {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => odd("an ELF file that is cut short"),
        _ => Error::Io(error),
    }
}

fn u16_at(bytes: &[u8], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from(u16_at(bytes, at)) | u32::from(u16_at(bytes, at + 2)) << 16
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32_at(bytes, at)) | u64::from(u32_at(bytes, at + 4)) << 32
}
