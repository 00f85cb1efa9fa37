//! The vmlinux inside a bzImage (Documentation/arch/x86/boot.rst, payload_offset), decompressed by the monitor.

use std::{
    fs::File,
    io::{self, Read, Seek, SeekFrom},
};

/// A kernel is tens of MiB; a stream that grows beyond this is no kernel.
const MAX_VMLINUX: u64 = 1 << 30;
/// How far the size that the file claims is believed ahead of seeing the bytes.
const MAX_HINT: usize = 128 << 20;
/// The kernel's lz4 stream is in the legacy format: blocks of 8 MiB decompressed, each with its length.
const LZ4_MAGIC: [u8; 4] = [0x02, 0x21, 0x4c, 0x18];
const LZ4_BLOCK: usize = 8 << 20;
/// What an xz decoder may take, in KiB: the kernel's build asks for dictionaries of up to 128 MiB.
const XZ_MEMORY: u32 = 192 << 10;
const SECTOR: u64 = 512;

const SETUP_SECTORS: usize = 0x1f1;
const VERSION: usize = 0x206;
const PAYLOAD_OFFSET: usize = 0x248;
const PAYLOAD_LENGTH: usize = 0x24c;

#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error("cannot be read")]
    Io(#[source] io::Error),
    #[error("its boot protocol is older than 2.08")]
    Old,
    #[error("its payload is compressed in a way strait does not know (it starts with {0:02x?})")]
    Unknown([u8; 4]),
    #[error("its payload does not decompress: {0}")]
    Broken(String),
    #[error("its payload is no ELF file")]
    NotElf,
}

/// Reads the payload of a bzImage that starts with `head` and decompresses it. `most`: bytes of RAM that there are for
/// what comes out.
pub(super) fn vmlinux(file: &mut File, head: &[u8], most: u64) -> Result<Vec<u8>, Error> {
    let most = most.min(MAX_VMLINUX);
    let (offset, len) = payload(head).ok_or(Error::Old)?;
    if len > most {
        return Err(too_large(most));
    }
    file.seek(SeekFrom::Start(offset)).map_err(Error::Io)?;
    let mut compressed = Vec::new();
    file.by_ref().take(len).read_to_end(&mut compressed).map_err(Error::Io)?;
    let vmlinux = decompress_to(&compressed, most)?;
    if vmlinux.starts_with(b"\x7fELF") { Ok(vmlinux) } else { Err(Error::NotElf) }
}

/// Where the payload is in the file, and its length.
fn payload(head: &[u8]) -> Option<(u64, u64)> {
    let u32_at = |at: usize| Some(u32::from_le_bytes(head.get(at..at + 4)?.try_into().ok()?));
    let version = u16::from_le_bytes(head.get(VERSION..VERSION + 2)?.try_into().ok()?);
    if version < 0x0208 {
        return None;
    }
    // 0 means 4, from the time of floppy disks; the boot sector itself comes on top.
    let sectors = match *head.get(SETUP_SECTORS)? {
        0 => 4,
        sectors => u64::from(sectors),
    };
    let offset = (sectors + 1) * SECTOR + u64::from(u32_at(PAYLOAD_OFFSET)?);
    let len = u64::from(u32_at(PAYLOAD_LENGTH)?);
    (len > 4).then_some((offset, len))
}

/// By the magic bytes at the start; an ELF file is as it is.
pub(super) fn decompress(compressed: &[u8]) -> Result<Vec<u8>, Error> {
    decompress_to(compressed, MAX_VMLINUX)
}

/// At most `most` bytes.
fn decompress_to(compressed: &[u8], most: u64) -> Result<Vec<u8>, Error> {
    let magic = compressed.first_chunk::<4>().copied().unwrap_or_default();
    // The build appends the decompressed size (gzip ends with it anyway). A hint only: one allocation instead of ten.
    let size = compressed.last_chunk::<4>().map_or(0, |size| u32::from_le_bytes(*size));
    match magic {
        [0x1f, 0x8b, ..] => bounded(flate2::read::GzDecoder::new(compressed), size, most),
        // One stream; what the build appended behind it (the size) must not be taken for another.
        [0xfd, b'7', b'z', b'X'] => {
            bounded(lzma_rust2::XzReader::new_mem_limit(compressed, false, XZ_MEMORY), size, most)
        }
        [0x28, 0xb5, 0x2f, 0xfd] => {
            let stream = ruzstd::decoding::StreamingDecoder::new(compressed);
            bounded(stream.map_err(|error| Error::Broken(error.to_string()))?, size, most)
        }
        LZ4_MAGIC => lz4(compressed.get(4..).unwrap_or_default(), most),
        [0x7f, b'E', b'L', b'F'] => Ok(compressed.to_vec()),
        other => Err(Error::Unknown(other)),
    }
}

fn bounded(stream: impl Read, size: u32, most: u64) -> Result<Vec<u8>, Error> {
    let mut vmlinux =
        Vec::with_capacity(usize::try_from(size).map_or(0, |size| size.min(MAX_HINT)));
    let read = stream.take(most + 1).read_to_end(&mut vmlinux);
    match read {
        Ok(len) if len as u64 > most => Err(too_large(most)),
        Ok(_) => Ok(vmlinux),
        Err(error) => Err(Error::Broken(error.to_string())),
    }
}

fn lz4(mut blocks: &[u8], most: u64) -> Result<Vec<u8>, Error> {
    let mut vmlinux = Vec::new();
    // One for all blocks: the work for a block depends on its length, not on what a block may hold.
    let mut room = vec![0; LZ4_BLOCK];
    while let Some((len, rest)) = blocks.split_first_chunk::<4>() {
        let len = u32::from_le_bytes(*len) as usize;
        // The build appends the decompressed size; no block starts where the payload ends.
        let Some(block) = rest.get(..len) else { break };
        let len_of_data = lz4_flex::block::decompress_into(block, &mut room)
            .map_err(|error| Error::Broken(error.to_string()))?;
        vmlinux.extend_from_slice(room.get(..len_of_data).unwrap_or_default());
        if vmlinux.len() as u64 > most {
            return Err(too_large(most));
        }
        blocks = &rest[len..];
    }
    Ok(vmlinux)
}

fn too_large(most: u64) -> Error {
    Error::Broken(format!("more than {} MiB come out", most >> 20))
}

#[cfg(test)]
pub(super) mod tests {
    use std::io::Write;

    use super::*;

    /// A bzImage with nothing but the fields that matter, and a payload.
    pub(in crate::boot) fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 0x400];
        image[SETUP_SECTORS] = 1;
        image[0x202..0x206].copy_from_slice(b"HdrS");
        image[VERSION..VERSION + 2].copy_from_slice(&0x020f_u16.to_le_bytes());
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4]
            .copy_from_slice(&(payload.len() as u32).to_le_bytes());
        image.extend_from_slice(payload);
        image
    }

    fn unwrap(payload: &[u8]) -> Result<Vec<u8>, Error> {
        let image = bzimage(payload);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&image).unwrap();
        vmlinux(&mut file, &image, MAX_VMLINUX)
    }

    fn elf() -> Vec<u8> {
        let mut elf = b"\x7fELF".to_vec();
        elf.extend((0..100_000_u32).flat_map(|n| (n / 7).to_le_bytes()));
        elf
    }

    #[test]
    fn gzip_payload_with_its_size_appended_comes_out_whole() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf()).unwrap();
        assert_eq!(unwrap(&gzip.finish().unwrap()).unwrap(), elf());
    }

    #[test]
    fn lz4_payload_of_several_blocks_with_its_size_appended_comes_out_whole() {
        let mut payload = LZ4_MAGIC.to_vec();
        for chunk in elf().chunks(150_000) {
            let block = lz4_flex::block::compress(chunk);
            payload.extend((block.len() as u32).to_le_bytes());
            payload.extend(block);
        }
        payload.extend((elf().len() as u32).to_le_bytes());
        assert_eq!(unwrap(&payload).unwrap(), elf());
    }

    #[test]
    fn zstd_payload_with_its_size_appended_comes_out_whole() {
        let level = ruzstd::encoding::CompressionLevel::Fastest;
        let mut compressed = ruzstd::encoding::compress_to_vec(elf().as_slice(), level);
        compressed.extend((elf().len() as u32).to_le_bytes());
        assert_eq!(unwrap(&compressed).unwrap(), elf());
    }

    /// As the kernel's build makes it: the x86 filter, which turns relative calls into absolute ones, then LZMA2, a
    /// CRC-32, the size appended. From `xz --check=crc32 --x86 --lzma2=dict=1MiB`.
    #[test]
    fn xz_payload_through_the_x86_filter_comes_out_whole() {
        const PAYLOAD: [u8; 88] = [
            0xfd, 0x37, 0x7a, 0x58, 0x5a, 0x00, 0x00, 0x01, 0x69, 0x22, 0xde, 0x36, 0x02, 0x01,
            0x04, 0x00, 0x21, 0x01, 0x10, 0x00, 0x8b, 0x21, 0x6f, 0x49, 0xe0, 0x05, 0x03, 0x00,
            0x16, 0x5d, 0x00, 0x3f, 0x91, 0x45, 0x84, 0x70, 0x69, 0xd0, 0x09, 0xac, 0x57, 0x74,
            0x28, 0x51, 0xe0, 0xd7, 0xc1, 0xb5, 0x63, 0x1c, 0x7b, 0x2c, 0x00, 0x00, 0x00, 0x00,
            0x29, 0x49, 0xe5, 0x19, 0x00, 0x01, 0x2e, 0x84, 0x0a, 0x00, 0x00, 0x00, 0xad, 0x46,
            0x28, 0xd5, 0x3e, 0x30, 0x0d, 0x8b, 0x02, 0x00, 0x00, 0x00, 0x00, 0x01, 0x59, 0x5a,
            0x04, 0x05, 0x00, 0x00,
        ];
        let mut calls = b"\x7fELF".to_vec();
        for call in 0..256_i32 {
            calls.push(0xe8);
            calls.extend((0x1000 - 5 * call).to_le_bytes());
        }
        assert_eq!(unwrap(&PAYLOAD).unwrap(), calls);
    }

    #[test]
    fn payload_that_is_cut_is_an_error() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(&elf()).unwrap();
        let gzip = gzip.finish().unwrap();
        assert!(matches!(unwrap(&gzip[..gzip.len() / 2]), Err(Error::Broken(_))));
    }

    #[test]
    fn payload_of_an_unknown_kind_is_named_by_its_bytes() {
        assert!(matches!(unwrap(b"BZh91AY&SY"), Err(Error::Unknown([b'B', b'Z', b'h', b'9']))));
    }

    #[test]
    fn payload_that_is_no_elf_file_is_refused() {
        let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gzip.write_all(b"hello").unwrap();
        assert!(matches!(unwrap(&gzip.finish().unwrap()), Err(Error::NotElf)));
    }
}
