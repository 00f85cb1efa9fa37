//! Tiny guests of a few instructions, wrapped into PVH kernels, and strait runs of them.

use std::{
    io::{Read, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use strait_resources::host::fixture::skipped;

/// Where the tiny kernels are linked.
pub(crate) const LOAD: u32 = 0x10_0000;

/// A guest of raw 32-bit code, wrapped into an ELF file with a PVH entry note.
pub(crate) struct Guest {
    pub(crate) code: Vec<u8>,
}

impl Guest {
    pub(crate) fn new() -> Self {
        Self { code: Vec::new() }
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.code.extend_from_slice(bytes);
        self
    }

    /// `mov dx, port; mov al, value; out dx, al`
    pub(crate) fn out8(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// `mov dx, port; mov ax, value; out dx, ax`
    pub(crate) fn out16(self, port: u16, value: u16) -> Self {
        let ([low, high], [v0, v1]) = (port.to_le_bytes(), value.to_le_bytes());
        self.raw(&[0x66, 0xba, low, high, 0x66, 0xb8, v0, v1, 0x66, 0xef])
    }

    pub(crate) fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |guest, byte| guest.out8(0x3f8, byte))
    }

    /// Sends back what is typed until a `q` comes.
    pub(crate) fn echo(self) -> Self {
        // mov dx,0x3fd; in al,dx; test al,1; jz back; mov dx,0x3f8; in al,dx; out dx,al; cmp al,'q'; jne back
        let code = [
            0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec,
            0xee, 0x3c, b'q', 0x75, 0xed,
        ];
        self.raw(&code)
    }

    /// Sleep type 0 with the enable bit into PM1 control, then wait for ever.
    pub(crate) fn power_off(self) -> Self {
        self.out16(0x604, 0x2000).raw(&[0xf4, 0xeb, 0xfd])
    }

    /// ELF64 with one loadable segment and one note (XEN_ELFNOTE_PHYS32_ENTRY).
    pub(crate) fn elf(&self) -> Vec<u8> {
        let note: Vec<u8> = [4u32, 4, 18]
            .iter()
            .flat_map(|n| n.to_le_bytes())
            .chain(*b"Xen\0")
            .chain(LOAD.to_le_bytes())
            .collect();
        let (headers, code) = (64 + 2 * 56, self.code.len() as u64);
        let note_at = headers as u64;
        let code_at = note_at + note.len() as u64;
        let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        elf.extend([2u8, 0, 62, 0, 1, 0, 0, 0]);
        elf.extend([u64::from(LOAD), 64, 0].iter().flat_map(|n| n.to_le_bytes()));
        elf.extend([0u8, 0, 0, 0, 64, 0, 56, 0, 2, 0, 64, 0, 0, 0, 0, 0]);
        let mut segment = |kind: u32, flags: u32, at: u64, address: u64, len: u64| {
            elf.extend([kind, flags].iter().flat_map(|n| n.to_le_bytes()));
            elf.extend([at, address, address, len, len, 4].iter().flat_map(|n| n.to_le_bytes()));
        };
        segment(1, 5, code_at, u64::from(LOAD), code);
        segment(4, 4, note_at, 0, note.len() as u64);
        elf.extend(note);
        elf.extend(&self.code);
        elf
    }
}

pub(crate) struct Run {
    pub(crate) output: Output,
}

impl Run {
    pub(crate) fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    pub(crate) fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    pub(crate) fn code(&self) -> Option<i32> {
        self.output.status.code()
    }
}

pub(crate) fn strait(guest: &Guest, arguments: &[&str]) -> Option<Run> {
    let file = kernel(guest)?;
    let output = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["run", "--memory", "32M", "--kernel"])
        .arg(file.path())
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .expect("strait starts");
    Some(Run { output })
}

/// The kernel as a file; `None`, said aloud, where there is no KVM to run it.
pub(crate) fn kernel(guest: &Guest) -> Option<tempfile::NamedTempFile> {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        skipped("/dev/kvm cannot be opened");
        return None;
    }
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&guest.elf()).expect("written");
    Some(file)
}

/// A guest on pipes that has said `>`.
pub(crate) fn prompted(kernel: &Path, flags: &[&str]) -> (Child, ChildStdin, ChildStdout) {
    let mut child = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["run", "--memory", "32M"])
        .args(flags)
        .arg("--kernel")
        .arg(kernel)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("strait starts");
    let input = child.stdin.take().expect("piped");
    let mut output = child.stdout.take().expect("piped");
    read_until(&mut output, b">");
    (child, input, output)
}

pub(crate) fn read_until(source: &mut impl Read, end: &[u8]) {
    let mut seen = Vec::new();
    while !seen.ends_with(end) {
        let mut byte = [0u8];
        source.read_exact(&mut byte).expect("more to come");
        seen.push(byte[0]);
    }
}
