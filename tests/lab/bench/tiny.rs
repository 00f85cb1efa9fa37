//! The smallest kernel that says something: an ELF file with a PVH entry (Xen's boot ABI for PVH guests) that writes one
//! line to the first serial port and halts. What a monitor costs by itself shows with it, and it runs on any KVM, even one
//! that cannot boot Linux.

/// Where it is loaded, and entered in 32-bit protected mode with flat segments.
const BASE: u64 = 1 << 20;
const LINE: &[u8] = b"LAB up=0\n\0";
const HEADER: usize = 64;
const PROGRAM_HEADER: usize = 56;
const CODE_AT: usize = 0x100;

/// The file.
pub(crate) fn kernel() -> Vec<u8> {
    let note_at = HEADER + 2 * PROGRAM_HEADER;
    let line_at = CODE_AT + CODE.len();
    let total = line_at + LINE.len();
    let mut file = Vec::new();
    let word = |file: &mut Vec<u8>, value: u64, bytes: usize| {
        file.extend_from_slice(&value.to_le_bytes()[..bytes])
    };
    // ELF header: 64-bit, little-endian, executable, x86-64.
    file.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    let entry = BASE + CODE_AT as u64;
    for (value, bytes) in [
        (2, 2),
        (62, 2),
        (1, 4),
        (entry, 8),
        (HEADER as u64, 8),
        (0, 8),
        (0, 4),
        (HEADER as u64, 2),
        (PROGRAM_HEADER as u64, 2),
        (2, 2),
        (0, 2),
        (0, 2),
        (0, 2),
    ] {
        word(&mut file, value, bytes);
    }
    // PT_LOAD of the whole file, readable and executable; PT_NOTE.
    for (kind, flags, at, length, alignment) in
        [(1u64, 7u64, 0usize, total, 0x1000u64), (4, 4, note_at, 24, 4)]
    {
        let address = BASE + at as u64;
        let length = length as u64;
        for (value, bytes) in [
            (kind, 4),
            (flags, 4),
            (at as u64, 8),
            (address, 8),
            (address, 8),
            (length, 8),
            (length, 8),
            (alignment, 8),
        ] {
            word(&mut file, value, bytes);
        }
    }
    // XEN_ELFNOTE_PHYS32_ENTRY is 18; its value the entry point.
    for (value, bytes) in [(4, 4), (8, 4), (18, 4)] {
        word(&mut file, value, bytes);
    }
    file.extend_from_slice(b"Xen\0");
    word(&mut file, entry, 8);
    file.resize(CODE_AT, 0);
    let mut code = CODE.to_vec();
    let line = (BASE as u32 + line_at as u32).to_le_bytes();
    code[LINE_OPERAND..LINE_OPERAND + 4].copy_from_slice(&line);
    file.extend_from_slice(&code);
    file.extend_from_slice(LINE);
    file
}

/// Where `mov esi` has its operand.
const LINE_OPERAND: usize = 1;
const CODE: &[u8] = &[
    0xbe, 0, 0, 0, 0, // mov esi, line
    0x66, 0xba, 0xfd, 0x03, // wait: mov dx, 0x3fd
    0xec, // in al, dx
    0xa8, 0x20, // test al, 0x20: may the next byte come?
    0x74, 0xf7, // jz wait
    0xac, // lodsb
    0x84, 0xc0, // test al, al
    0x74, 0x07, // jz end
    0x66, 0xba, 0xf8, 0x03, // mov dx, 0x3f8
    0xee, // out dx, al
    0xeb, 0xeb, // jmp wait
    0xfa, // end: cli
    0xf4, // hlt
    0xeb, 0xfc, // jmp end
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jumps_of_the_code_land_on_instructions() {
        // Starts of the instructions named in the comments above.
        let (wait, end) = (5, 26);
        let target = |at: usize| (at + 2).wrapping_add_signed(isize::from(CODE[at + 1] as i8));
        assert_eq!(target(12), wait);
        assert_eq!(target(17), end);
        assert_eq!(target(24), wait);
        assert_eq!(target(28), end);
    }

    #[test]
    fn kernel_has_its_line_where_the_code_looks() {
        let file = kernel();
        let operand = &file[CODE_AT + LINE_OPERAND..CODE_AT + LINE_OPERAND + 4];
        let at =
            u32::from_le_bytes(operand.try_into().expect("four bytes")) as usize - BASE as usize;
        assert_eq!(&file[at..], LINE);
    }
}
