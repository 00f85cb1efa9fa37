//! Tiny guests of a few instructions, wrapped into PVH kernels, and strait runs of them.

use std::{
    io::{Read, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
};

use strait_resources::host::fixture::skipped;

/// Where the tiny kernels are linked.
pub(crate) const LOAD: u32 = 0x10_0000;
/// Interrupt command register of the local APIC, low half.
const INTERRUPT_COMMAND: u32 = 0xfee0_0300;

/// Second bytes of the long conditional jumps.
const JB: u8 = 0x82;
const JAE: u8 = 0x83;
const JNE: u8 = 0x85;
/// Bytes of one.
const JUMP_LEN: i32 = 6;

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

    /// `inc dword [address]`
    pub(crate) fn increment(self, address: u32) -> Self {
        self.raw(&[0xff, 0x05]).raw(&address.to_le_bytes())
    }

    /// `mov dword [address], value`
    pub(crate) fn store(self, address: u32, value: u32) -> Self {
        self.raw(&[0xc7, 0x05]).raw(&address.to_le_bytes()).raw(&value.to_le_bytes())
    }

    /// Runs `block` if the dword at `address` is `value`.
    pub(crate) fn if_equal(self, address: u32, value: u32, block: &Guest) -> Self {
        self.compare(address, value).over(JNE, block)
    }

    /// Runs `block` if the dword at `address` is below `value`.
    pub(crate) fn if_below(self, address: u32, value: u32, block: &Guest) -> Self {
        self.compare(address, value).over(JAE, block)
    }

    /// Repeats `body` until the dword at `address` is at least `value`.
    pub(crate) fn until(self, address: u32, value: u32, body: &Guest) -> Self {
        let round = Self::new().raw(&body.code).compare(address, value);
        let back = -(round.code.len() as i32 + JUMP_LEN);
        self.raw(&round.code).raw(&[0x0f, JB]).raw(&back.to_le_bytes())
    }

    /// Waits until the dword at `address`, which another CPU writes, is at least `value`; says `X` and powers off when
    /// that takes too long: a second of CPU time, a minute where KVM emulates every instruction.
    pub(crate) fn wait_for(self, address: u32, value: u32) -> Self {
        // mov ecx, 1 << 24; pause; cmp [address], value; jae on; dec ecx; jne back; say X
        let look = Self::new().raw(&[0xf3, 0x90]).compare(address, value);
        let back = -(look.code.len() as i32 + JUMP_LEN + 1 + JUMP_LEN);
        let again = Self::new().raw(&[0x49, 0x0f, JNE]).raw(&back.to_le_bytes()).fail();
        self.raw(&[0xb9, 0, 0, 0, 0x01]).raw(&look.code).over(JAE, &again)
    }

    /// Says `X` and powers off.
    pub(crate) fn fail(self) -> Self {
        self.print("X").power_off()
    }

    /// The chipset's reset control register, then `hlt` for ever.
    pub(crate) fn reset(self) -> Self {
        self.out8(0xcf9, 0x06).halt()
    }

    /// `hlt; jmp back`
    pub(crate) fn halt(self) -> Self {
        self.raw(&[0xf4, 0xeb, 0xfd])
    }

    /// `jmp` to itself: a block that never ends.
    pub(crate) fn forever(self, body: &Guest) -> Self {
        let back = -(body.code.len() as i32 + 5);
        self.raw(&body.code).raw(&[0xe9]).raw(&back.to_le_bytes())
    }

    /// Waits for a byte on the serial port and takes it.
    pub(crate) fn key(self) -> Self {
        // mov dx,0x3fd; in al,dx; test al,1; jz back; mov dx,0x3f8; in al,dx
        let code =
            [0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec];
        self.raw(&code)
    }

    /// `mov edx, port; mov edi, address; mov ecx, count`, then the string instruction `code`.
    pub(crate) fn string_in(self, port: u16, address: u32, count: u32, code: &[u8]) -> Self {
        self.raw(&[0xba])
            .raw(&u32::from(port).to_le_bytes())
            .raw(&[0xbf])
            .raw(&address.to_le_bytes())
            .raw(&[0xb9])
            .raw(&count.to_le_bytes())
            .raw(code)
    }

    /// `rep outsb` of `text` to the serial port.
    pub(crate) fn print_at_once(self, text: &str) -> Self {
        // jmp over the text
        let guest = self.raw(&[0xe9]).raw(&(text.len() as u32).to_le_bytes());
        let at = LOAD + guest.code.len() as u32;
        // mov esi, at; mov ecx, length; mov edx, 0x3f8; rep outsb
        guest
            .raw(text.as_bytes())
            .raw(&[0xbe])
            .raw(&at.to_le_bytes())
            .raw(&[0xb9])
            .raw(&(text.len() as u32).to_le_bytes())
            .raw(&[0xba, 0xf8, 0x03, 0, 0, 0xf3, 0x6e])
    }

    /// Starts every other CPU (INIT, SIPI) on `body`, which runs in flat 32-bit mode without a stack and does not end.
    pub(crate) fn start_others(self, body: &Guest) -> Self {
        // At 0x8000: jmp +6; limit and base of the boot GDT; cli; lgdt cs:[2]; mov eax,cr0; or eax,1; mov cr0,eax;
        // jmp 0x10:0x8025; mov ax,0x18; mov ds,ax; mov es,ax; mov ss,ax
        let others = Self::new()
            .raw(&[0xeb, 0x06, 0x27, 0x00, 0x00, 0x05, 0x00, 0x00])
            .raw(&[0xfa, 0x2e, 0x66, 0x0f, 0x01, 0x16, 0x02, 0x00, 0x0f, 0x20, 0xc0])
            .raw(&[0x66, 0x83, 0xc8, 0x01, 0x0f, 0x22, 0xc0])
            .raw(&[0x66, 0xea, 0x22, 0x80, 0x00, 0x00, 0x10, 0x00])
            .raw(&[0x66, 0xb8, 0x18, 0x00, 0x8e, 0xd8, 0x8e, 0xc0, 0x8e, 0xd0])
            .raw(&body.code);
        let len = others.code.len() as u32;
        let guest = self.raw(&[0xe9]).raw(&len.to_le_bytes());
        let from = LOAD + guest.code.len() as u32;
        // mov esi, from; mov edi, 0x8000; mov ecx, len; rep movsb
        guest
            .raw(&others.code)
            .raw(&[0xbe])
            .raw(&from.to_le_bytes())
            .raw(&[0xbf, 0x00, 0x80, 0, 0, 0xb9])
            .raw(&len.to_le_bytes())
            .raw(&[0xf3, 0xa4])
            .store(INTERRUPT_COMMAND, 0x000c_4500)
            .store(INTERRUPT_COMMAND, 0x000c_4608)
    }

    /// `cmp dword [address], value`
    fn compare(self, address: u32, value: u32) -> Self {
        self.raw(&[0x81, 0x3d]).raw(&address.to_le_bytes()).raw(&value.to_le_bytes())
    }

    /// Jumps over `block` if the condition of `jump` is met.
    fn over(self, jump: u8, block: &Guest) -> Self {
        self.raw(&[0x0f, jump]).raw(&(block.code.len() as u32).to_le_bytes()).raw(&block.code)
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
