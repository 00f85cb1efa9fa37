//! An ELF kernel's headers and notes, understood before a byte of it is loaded. Every walk is bounded: a file may be
//! sparse and claim any size.

use std::io::{self, Read, Seek, SeekFrom};

use crate::layout::HIGH_MEMORY_START;

/// Kernels have a handful; more is no kernel.
const MAX_HEADERS: u16 = 64;
/// Bytes of a note segment that are looked at. Linux has less than 1 KiB of notes.
const MAX_NOTES: u64 = 64 << 10;
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const EM_X86_64: u16 = 62;
const PT_LOAD: u32 = 1;
const PT_INTERP: u32 = 3;
const PT_NOTE: u32 = 4;
/// `XEN_ELFNOTE_PHYS32_ENTRY` of the name "Xen": where PVH enters.
const PHYS32_ENTRY: u32 = 18;
const XEN: &[u8] = b"Xen\0";

#[derive(Debug)]
pub(super) enum Error {
    Io(io::Error),
    /// What the file is instead.
    Odd(String),
}

/// What is to be loaded, and where the CPU may start.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Layout {
    /// The ELF header's entry point.
    pub(super) entry: u64,
    /// Entry point of the PVH note.
    pub(super) pvh: Option<u64>,
    /// First physical address above all segments.
    pub(super) end: u64,
    pub(super) segments: Vec<Segment>,
}

/// Bytes of the file that go into RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Segment {
    /// In the file.
    pub(super) offset: u64,
    /// Guest-physical address.
    pub(super) physical: u64,
    /// Bytes in the file.
    pub(super) len: u64,
}

/// Reads headers and notes. No segment is among the boot data in low memory, and all of them are in the file.
pub(super) fn layout<F: Read + Seek>(image: &mut F) -> Result<Layout, Error> {
    let file_len = image.seek(SeekFrom::End(0)).map_err(Error::Io)?;
    let mut header = [0u8; HEADER];
    image.rewind().and_then(|()| image.read_exact(&mut header)).map_err(cut)?;
    is_for_us(&header)?;
    let (at, size, count) = (u64_at(&header, 32), u16_at(&header, 54), u16_at(&header, 56));
    if usize::from(size) != PROGRAM_HEADER || count > MAX_HEADERS {
        return Err(odd("an ELF file with odd program headers"));
    }
    image.seek(SeekFrom::Start(at)).map_err(Error::Io)?;
    let mut layout = Layout { entry: u64_at(&header, 24), pvh: None, end: 0, segments: Vec::new() };
    let mut notes = Vec::new();
    for _ in 0..count {
        let mut program = [0u8; PROGRAM_HEADER];
        image.read_exact(&mut program).map_err(cut)?;
        let (offset, physical) = (u64_at(&program, 8), u64_at(&program, 24));
        let (len, memory) = (u64_at(&program, 32), u64_at(&program, 40));
        match u32_at(&program, 0) {
            PT_LOAD => layout.add(Segment { offset, physical, len }, memory, file_len)?,
            PT_INTERP => return Err(odd("a program for Linux")),
            PT_NOTE => notes.push((offset, len)),
            _ => {}
        }
    }
    if layout.end == 0 {
        return Err(odd("an ELF file with nothing to load"));
    }
    for (offset, len) in notes {
        let mut bytes = Vec::new();
        image.seek(SeekFrom::Start(offset)).map_err(Error::Io)?;
        image.by_ref().take(len.min(MAX_NOTES)).read_to_end(&mut bytes).map_err(Error::Io)?;
        layout.pvh = layout.pvh.or(pvh_entry(&bytes));
    }
    let start = layout.pvh.unwrap_or(layout.entry);
    if !(HIGH_MEMORY_START..layout.end).contains(&start) {
        return Err(Error::Odd(format!(
            "an ELF file whose entry {start:#x} is not in what it loads"
        )));
    }
    Ok(layout)
}

impl Layout {
    fn add(&mut self, segment: Segment, memory: u64, file_len: u64) -> Result<(), Error> {
        if memory == 0 {
            return Ok(());
        }
        if segment.physical < HIGH_MEMORY_START {
            return Err(odd("an ELF file with a segment below 1 MiB (a program or a library?)"));
        }
        if segment.len > memory {
            return Err(odd("an ELF file with more bytes than memory in a segment"));
        }
        if segment.offset.checked_add(segment.len).is_none_or(|end| end > file_len) {
            return Err(odd("an ELF file that is cut short"));
        }
        let end = segment.physical.checked_add(memory);
        let end = end.ok_or_else(|| odd("an ELF file whose segments do not fit in memory"))?;
        self.end = self.end.max(end);
        if segment.len > 0 {
            self.segments.push(segment);
        }
        Ok(())
    }
}

/// The identification: 64-bit, little-endian, x86-64.
fn is_for_us(header: &[u8; HEADER]) -> Result<(), Error> {
    let is_big = header[5] == 2;
    let raw = [header[18], header[19]];
    let machine = if is_big { u16::from_be_bytes(raw) } else { u16::from_le_bytes(raw) };
    let name = match machine {
        2 | 18 | 43 => "SPARC",
        3 => "32-bit x86",
        8 => "MIPS",
        20 | 21 => "PowerPC",
        22 => "S/390",
        40 => "32-bit ARM",
        EM_X86_64 => "x86-64",
        183 => "arm64",
        243 => "RISC-V",
        258 => "LoongArch",
        _ => "",
    };
    let machine_name = match name {
        "" => format!("another machine (type {machine})"),
        name => format!("another machine ({name})"),
    };
    match (header[4], header[5]) {
        (2, 1) if machine == EM_X86_64 => Ok(()),
        (2, 1) => Err(Error::Odd(format!("an ELF file for {machine_name}"))),
        (1, _) => Err(odd("a 32-bit ELF file")),
        (2, _) => Err(Error::Odd(format!("a big-endian ELF file for {machine_name}"))),
        _ => Err(odd("an ELF file of an unknown class")),
    }
}

/// Notes are a header of three words, a name and a descriptor, the latter two padded to 4 bytes (ELF, "Note Section").
fn pvh_entry(mut notes: &[u8]) -> Option<u64> {
    loop {
        let header = notes.get(..12)?;
        let (name_len, len) = (u32_at(header, 0) as usize, u32_at(header, 4) as usize);
        let kind = u32_at(header, 8);
        let rest = notes.get(12..)?;
        let descriptor = rest.get(name_len.checked_next_multiple_of(4)?..)?;
        if kind == PHYS32_ENTRY && rest.get(..name_len) == Some(XEN) && len >= 4 {
            return Some(u64::from(u32_at(descriptor.get(..4)?, 0)));
        }
        notes = descriptor.get(len.checked_next_multiple_of(4)?..)?;
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn note_is_found_behind_others_and_never_outside() {
        let note = |name: &[u8], kind: u32, descriptor: &[u8]| {
            let mut bytes = Vec::new();
            bytes.extend((name.len() as u32).to_le_bytes());
            bytes.extend((descriptor.len() as u32).to_le_bytes());
            bytes.extend(kind.to_le_bytes());
            bytes.extend(name);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes.extend(descriptor);
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            bytes
        };
        let pvh = note(XEN, PHYS32_ENTRY, &0x100_0123_u64.to_le_bytes());
        let gnu = note(b"GNU\0", 3, &[0xab; 20]);
        let other = note(b"Linux\0", PHYS32_ENTRY, &[1; 4]);
        assert_eq!(pvh_entry(&[gnu.clone(), other, pvh.clone()].concat()), Some(0x100_0123));
        for len in 0..pvh.len() - 4 {
            assert_eq!(pvh_entry(&pvh[..len]), None, "{len}");
        }
        let mut huge = gnu.clone();
        huge[0..8].fill(0xff);
        assert_eq!(pvh_entry(&[huge, pvh].concat()), None);
        assert_eq!(pvh_entry(&vec![0; 1 << 16]), None);
    }
}
