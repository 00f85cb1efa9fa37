//! Takes the vmlinux out of a bzImage (Documentation/arch/x86/boot.rst, fields of the setup header), so
//! that guests need not decompress it under emulation for every scenario.

use std::{
    io::Write,
    process::{Command, Stdio},
    thread,
};

use anyhow::{Context, Result, bail, ensure};

use crate::files;

/// Header offset of the number of 512-byte setup sectors.
const SETUP_SECTS: usize = 0x1f1;
/// Header offset of the magic "HdrS".
const HEADER: usize = 0x202;
/// Header offset of the payload's offset, counted from the protected-mode code.
const PAYLOAD_OFFSET: usize = 0x248;
/// Header offset of the payload's length.
const PAYLOAD_LENGTH: usize = 0x24c;

/// The compressed payload of a bzImage and the command that unpacks it.
fn payload(image: &[u8]) -> Result<(&'static [&'static str], &[u8])> {
    ensure!(image.get(HEADER..HEADER + 4) == Some(b"HdrS"), "not a bzImage: no HdrS at 0x202");
    let word = |at: usize| -> Result<usize> {
        let bytes = image.get(at..at + 4).context("the bzImage ends in its header")?;
        Ok(u32::from_le_bytes(bytes.try_into()?) as usize)
    };
    let setup = match image[SETUP_SECTS] {
        0 => 4, // boot.rst: zero means four, for very old images
        n => usize::from(n),
    };
    let start = (setup + 1) * 512 + word(PAYLOAD_OFFSET)?;
    let bytes = image
        .get(start..start + word(PAYLOAD_LENGTH)?)
        .context("the bzImage ends before its payload does")?;
    // All formats but gzip carry four more bytes behind the stream: the unpacked size.
    let stream = &bytes[..bytes.len().saturating_sub(4)];
    match bytes {
        [0x1f, 0x8b, ..] => Ok((&["gzip", "-dc"], bytes)),
        [0xfd, b'7', b'z', b'X', b'Z', ..] => Ok((&["xz", "-dc"], stream)),
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Ok((&["zstd", "-dcq"], stream)),
        [0x02, 0x21, 0x4c, 0x18, ..] => Ok((&["lz4", "-dcq"], stream)),
        _ => bail!("the payload's compression is unknown: {:02x?}", bytes.get(..6)),
    }
}

/// The ELF kernel inside a bzImage.
pub(crate) fn vmlinux(image: &[u8]) -> Result<Vec<u8>> {
    let (command, packed) = payload(image)?;
    let elf = filter(command, packed)?;
    ensure!(elf.starts_with(b"\x7fELF"), "the unpacked payload is not an ELF file");
    Ok(elf)
}

/// Sends bytes through a program.
pub(crate) fn filter(command: &[&str], input: &[u8]) -> Result<Vec<u8>> {
    let [name, arguments @ ..] = command else { bail!("no command") };
    let program = files::program(name)
        .with_context(|| format!("{name} is needed to unpack the kernel and is not installed"))?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {name}"))?;
    let mut stdin = child.stdin.take().context("the child has no stdin")?;
    let output = thread::scope(|scope| {
        let writer = scope.spawn(move || stdin.write_all(input));
        let output = child.wait_with_output();
        // A failed write shows as a failed or short output, judged below.
        drop(writer.join());
        output
    })
    .with_context(|| format!("{name} failed"))?;
    ensure!(output.status.success(), "{name} failed: {}", output.status);
    Ok(output.stdout)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(payload: &[u8]) -> Vec<u8> {
        let mut image = vec![0u8; 1024];
        image[SETUP_SECTS] = 1;
        image[HEADER..HEADER + 4].copy_from_slice(b"HdrS");
        image[PAYLOAD_OFFSET..PAYLOAD_OFFSET + 4].copy_from_slice(&16u32.to_le_bytes());
        let length = u32::try_from(payload.len()).expect("small");
        image[PAYLOAD_LENGTH..PAYLOAD_LENGTH + 4].copy_from_slice(&length.to_le_bytes());
        image.extend_from_slice(&[0; 16]);
        image.extend_from_slice(payload);
        image
    }

    #[test]
    fn payload_of_xz_loses_its_size_trailer() {
        let image = image(b"\xfd7zXZ\0stream\x01\x02\x03\x04");
        let (command, stream) = payload(&image).expect("a payload");
        assert_eq!((command[0], stream), ("xz", &b"\xfd7zXZ\0stream"[..]));
    }

    #[test]
    fn payload_beyond_the_file_is_an_error() {
        let mut image = image(b"\x1f\x8bshort");
        image.truncate(image.len() - 1);
        assert!(payload(&image).is_err());
    }
}
