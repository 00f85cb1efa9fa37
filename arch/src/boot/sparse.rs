//! A kernel's file on its way into RAM that may be fresh: what is zero in both is left alone.
//!
//! Close to half of a distribution's vmlinux is zeros in one piece, the room for its variables. Not to write them spares
//! the host from finding memory for them before the guest runs.

use std::io::{self, Read, Seek, SeekFrom};

use vm_memory::{
    ReadVolatile, VolatileMemory, VolatileMemoryError, VolatileSlice, bitmap::BitmapSlice,
};

/// What is looked at together: small enough to stay in a CPU's cache between the look and the copy.
const PIECE: usize = 256 << 10;
/// Where there was something, this much is read without a look: a look costs a copy.
const UNSEEN: usize = 2 << 20;

/// Reads `file`.
pub(super) struct Sparse<F> {
    file: F,
    /// Of a piece, where RAM has been written nowhere yet; otherwise empty.
    piece: Vec<u8>,
}

impl<F> Sparse<F> {
    pub(super) fn new(file: F, fresh: bool) -> Self {
        Self { file, piece: vec![0; if fresh { PIECE } else { 0 }] }
    }
}

impl<F: Read + ReadVolatile> ReadVolatile for Sparse<F> {
    /// As much as there is: guest memory takes less for an error.
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        into: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        let mut done = 0;
        let mut look = true;
        while done < into.len() {
            let left = into.len() - done;
            let looked = look && !self.piece.is_empty();
            let result = if looked {
                let most = left.min(PIECE);
                self.file.read(&mut self.piece[..most]).map_err(VolatileMemoryError::IOError)
            } else {
                self.file.read_volatile(&mut into.get_slice(done, left.min(UNSEEN))?)
            };
            let len = match result {
                Ok(0) => break,
                Ok(len) => len,
                Err(VolatileMemoryError::IOError(error))
                    if error.kind() == io::ErrorKind::Interrupted =>
                {
                    continue;
                }
                Err(error) => return Err(error),
            };
            look = true;
            if looked && !is_zero(&self.piece[..len]) {
                into.get_slice(done, len)?.copy_from(&self.piece[..len]);
                look = false;
            }
            done += len;
        }
        Ok(done)
    }
}

impl<F: Read> Read for Sparse<F> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        self.file.read(into)
    }
}

impl<F: Seek> Seek for Sparse<F> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// Sixteen bytes a step.
fn is_zero(bytes: &[u8]) -> bool {
    let (steps, rest) = bytes.as_chunks::<16>();
    steps.iter().all(|step| u128::from_ne_bytes(*step) == 0) && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

    use super::*;

    /// A file of a piece of sevens, four MiB of zeros, a piece of eights, and a few more bytes.
    fn file() -> Vec<u8> {
        let mut file = vec![7; PIECE];
        file.resize(PIECE + 2 * UNSEEN, 0);
        file.resize(2 * PIECE + 2 * UNSEEN, 8);
        file.extend([0, 0, 9]);
        file
    }

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 8 << 20)]).unwrap()
    }

    fn loaded(fresh: bool) -> Vec<u8> {
        let (file, memory, at) = (file(), memory(), GuestAddress(0x1000));
        memory.write_slice(&vec![0xee; file.len()], at).unwrap();
        let mut sparse = Sparse::new(Cursor::new(file.clone()), fresh);
        memory.read_exact_volatile_from(at, &mut sparse, file.len()).unwrap();
        let mut loaded = vec![0; file.len()];
        memory.read_slice(&mut loaded, at).unwrap();
        loaded
    }

    #[test]
    fn all_of_a_file_is_written_where_ram_may_hold_anything() {
        assert!(loaded(false) == file());
    }

    #[test]
    fn pieces_of_zeros_are_left_alone_in_fresh_ram() {
        let mut expected = file();
        // After something a stretch is read without a look.
        expected[PIECE + UNSEEN..PIECE + 2 * UNSEEN].fill(0xee);
        assert!(loaded(true) == expected);
    }

    #[test]
    fn one_byte_anywhere_makes_a_piece_worth_writing() {
        for (len, at) in [(1, 0), (16, 15), (33, 32), (4096, 4095), (4096, 17)] {
            let mut bytes = vec![0; len];
            assert!(is_zero(&bytes));
            bytes[at] = 1;
            assert!(!is_zero(&bytes));
        }
    }

    #[test]
    fn file_that_ends_too_soon_is_an_error() {
        for fresh in [false, true] {
            let mut sparse = Sparse::new(Cursor::new(file()), fresh);
            let len = file().len() + 1;
            let at = GuestAddress(0);
            assert!(memory().read_exact_volatile_from(at, &mut sparse, len).is_err());
        }
    }
}
