//! The whole monitor with tiny guests of a few instructions. Needs /dev/kvm, of any kind; without it every
//! test here says so and is counted as skipped.

use std::{
    io::{Read, Write},
    os::unix::{net::UnixStream, process::ExitStatusExt},
    path::{Path, PathBuf},
    process::{Child, ChildStdin, ChildStdout, Command, Output, Stdio},
    time::Duration,
};

use strait_resources::host::fixture::skipped;

/// Where the tiny kernels are linked.
const LOAD: u32 = 0x10_0000;

/// A guest of raw 32-bit code, wrapped into an ELF file with a PVH entry note.
struct Guest {
    code: Vec<u8>,
}

impl Guest {
    fn new() -> Self {
        Self { code: Vec::new() }
    }

    fn raw(mut self, bytes: &[u8]) -> Self {
        self.code.extend_from_slice(bytes);
        self
    }

    /// `mov dx, port; mov al, value; out dx, al`
    fn out8(self, port: u16, value: u8) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high, 0xb0, value, 0xee])
    }

    /// `mov dx, port; mov ax, value; out dx, ax`
    fn out16(self, port: u16, value: u16) -> Self {
        let ([low, high], [v0, v1]) = (port.to_le_bytes(), value.to_le_bytes());
        self.raw(&[0x66, 0xba, low, high, 0x66, 0xb8, v0, v1, 0x66, 0xef])
    }

    fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |guest, byte| guest.out8(0x3f8, byte))
    }

    /// Sends back what is typed until a `q` comes.
    fn echo(self) -> Self {
        // mov dx,0x3fd; in al,dx; test al,1; jz back; mov dx,0x3f8; in al,dx; out dx,al; cmp al,'q'; jne back
        let code = [
            0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7, 0x66, 0xba, 0xf8, 0x03, 0xec,
            0xee, 0x3c, b'q', 0x75, 0xed,
        ];
        self.raw(&code)
    }

    /// Sleep type 0 with the enable bit into PM1 control, then wait for ever.
    fn power_off(self) -> Self {
        self.out16(0x604, 0x2000).raw(&[0xf4, 0xeb, 0xfd])
    }

    /// ELF64 with one loadable segment and one note (XEN_ELFNOTE_PHYS32_ENTRY).
    fn elf(&self) -> Vec<u8> {
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

struct Run {
    output: Output,
}

impl Run {
    fn stdout(&self) -> String {
        String::from_utf8_lossy(&self.output.stdout).into_owned()
    }

    fn stderr(&self) -> String {
        String::from_utf8_lossy(&self.output.stderr).into_owned()
    }

    fn code(&self) -> Option<i32> {
        self.output.status.code()
    }
}

fn strait(guest: &Guest, arguments: &[&str]) -> Option<Run> {
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
fn kernel(guest: &Guest) -> Option<tempfile::NamedTempFile> {
    if std::fs::File::options().read(true).write(true).open("/dev/kvm").is_err() {
        skipped("/dev/kvm cannot be opened");
        return None;
    }
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(&guest.elf()).expect("written");
    Some(file)
}

#[test]
fn guest_that_prints_and_powers_off_exits_0() {
    let Some(run) = strait(&Guest::new().print("hello\n").power_off(), &[]) else { return };
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), "hello\n"), "{}", run.stderr());
}

#[test]
fn guest_reset_starts_it_again_with_its_memory_kept() {
    // inc dword [0x200000]; cmp dword [0x200000], 3; jae +N over the reset
    let reset = Guest::new().print("r").out8(0xcf9, 0x06).raw(&[0xf4, 0xeb, 0xfd]).code;
    let guest = Guest::new()
        .raw(&[0xff, 0x05, 0, 0, 0x20, 0, 0x83, 0x3d, 0, 0, 0x20, 0, 3, 0x73, reset.len() as u8])
        .raw(&reset)
        .print("done")
        .power_off();
    let Some(run) = strait(&guest, &["--cpus", "2"]) else { return };
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), "rrdone"), "{}", run.stderr());
}

#[test]
fn keyboard_controller_reset_works_too() {
    let reset = Guest::new().print("k").out8(0x64, 0xfe).raw(&[0xf4, 0xeb, 0xfd]).code;
    let guest = Guest::new()
        .raw(&[0xff, 0x05, 0, 0, 0x20, 0, 0x83, 0x3d, 0, 0, 0x20, 0, 2, 0x73, reset.len() as u8])
        .raw(&reset)
        .power_off();
    let Some(run) = strait(&guest, &[]) else { return };
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), "k"), "{}", run.stderr());
}

#[test]
fn triple_fault_exits_8_with_the_code_and_where() {
    // lidt [0x300000] (zeroes: limit 0); ud2
    let guest = Guest::new().raw(&[0x0f, 0x01, 0x1d, 0, 0, 0x30, 0, 0x0f, 0x0b]);
    let Some(run) = strait(&guest, &[]) else { return };
    assert_eq!(run.code(), Some(8), "{}", run.stderr());
    assert!(run.stderr().contains("error[E8001]"), "{}", run.stderr());
    assert!(run.stderr().contains("rip=0x100007"), "{}", run.stderr());
    assert!(run.stderr().contains("0f 0b"), "{}", run.stderr());
}

#[test]
fn absent_devices_read_as_all_ones() {
    // mov eax,[0xd0000000]; cmp eax,-1; jne fail; mov dx,0x2000; in eax,dx; cmp eax,-1; jne fail
    let yes = Guest::new().print("ones").power_off().code;
    let guest = Guest::new()
        .raw(&[0xa1, 0, 0, 0, 0xd0, 0x83, 0xf8, 0xff, 0x75, (yes.len() + 10) as u8])
        .raw(&[0x66, 0xba, 0, 0x20, 0xed, 0x83, 0xf8, 0xff, 0x75, yes.len() as u8])
        .raw(&yes)
        .print("fail")
        .power_off();
    let Some(run) = strait(&guest, &[]) else { return };
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), "ones"), "{}", run.stderr());
}

#[test]
fn host_bridge_is_found_through_both_configuration_mechanisms() {
    // CF8 = 0x80000000, in eax from CFC; compare with the dword at ECAM 0xe0000000; print both match
    let yes = Guest::new().print("q35").power_off().code;
    let guest = Guest::new()
        .raw(&[0x66, 0xba, 0xf8, 0x0c, 0xb8, 0, 0, 0, 0x80, 0xef, 0x66, 0xba, 0xfc, 0x0c, 0xed])
        .raw(&[0x3d, 0x86, 0x80, 0xc0, 0x29, 0x75, (yes.len() + 8) as u8])
        .raw(&[0x3b, 0x05, 0, 0, 0, 0xe0, 0x75, yes.len() as u8])
        .raw(&yes)
        .print("fail")
        .power_off();
    let Some(run) = strait(&guest, &[]) else { return };
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), "q35"), "{}", run.stderr());
}

#[test]
fn serial_to_a_file_holds_what_the_guest_said() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path: PathBuf = directory.path().join("serial.log");
    let serial = format!("file={}", path.display());
    let Some(run) = strait(&Guest::new().print("to file").power_off(), &["--serial", &serial])
    else {
        return;
    };
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), ""), "{}", run.stderr());
    assert_eq!(std::fs::read_to_string(path).expect("written"), "to file");
}

#[test]
fn typed_bytes_reach_the_guest_and_its_answer_comes_back() {
    let Some(file) = kernel(&Guest::new().print(">").echo().power_off()) else { return };
    let (mut child, mut input, mut output) = prompted(file.path(), &[]);
    // More than the 16 bytes of the FIFO.
    input.write_all(b"the quick brown fox jumps over the lazy dog").expect("typed");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("read");
    assert_eq!(rest, "the q");
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}

#[test]
fn serial_socket_takes_one_client_after_another() {
    let Some(file) = kernel(&Guest::new().echo().power_off()) else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("serial");
    let mut child = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["run", "--memory", "32M", "--serial"])
        .arg(format!("socket={}", path.display()))
        .arg("--kernel")
        .arg(file.path())
        .stdin(Stdio::null())
        .spawn()
        .expect("strait starts");
    let connect = || {
        (0..500)
            .find_map(|_| {
                std::thread::sleep(Duration::from_millis(10));
                UnixStream::connect(&path).ok()
            })
            .expect("the socket is there")
    };
    for word in [&b"one."[..], b"two."] {
        let mut stream = connect();
        stream.write_all(word).expect("typed");
        read_until(&mut stream, word);
    }
    connect().write_all(b"q").expect("typed");
    assert_eq!(child.wait().expect("ended").code(), Some(0));
    assert!(!path.exists(), "the socket is removed");
}

/// A real terminal, made by script(1): raw while the guest runs, as it was afterwards.
#[test]
fn terminal_is_raw_for_the_guest_and_restored_after_ctrl_a_x() {
    let Some(file) = kernel(&Guest::new().print("go>").raw(&[0xeb, 0xfe])) else { return };
    if Command::new("script").arg("--version").output().is_err() {
        skipped("script (package util-linux or bsdutils) is not installed");
        return;
    }
    let strait = env!("CARGO_BIN_EXE_strait");
    let command = format!(
        "{strait} run --memory 32M --kernel {}; echo status=$?; stty -a",
        file.path().display()
    );
    let mut child = Command::new("script")
        .args(["-qec", &command, "/dev/null"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("script starts");
    let (mut input, mut output) =
        (child.stdin.take().expect("piped"), child.stdout.take().expect("piped"));
    read_until(&mut output, b"go>");
    // In a cooked terminal neither byte would arrive before a newline.
    input.write_all(b"\x01x").expect("typed");
    let mut rest = String::new();
    output.read_to_string(&mut rest).expect("read");
    child.wait().expect("ended");
    assert!(rest.contains("status=0"), "{rest}");
    assert!(rest.contains(" icanon") && rest.contains(" echo "), "{rest}");
}

#[test]
fn r87_running_guest_answers_inspect_whatever_other_clients_do() {
    let Some(file) = kernel(&Guest::new().print(">").echo().power_off()) else { return };
    let (mut child, mut input, mut output) = prompted(file.path(), &["--fake-battery"]);
    let id = child.id().to_string();
    let socket = std::fs::read_dir("/run/strait/vm").into_iter().flatten().find_map(|entry| {
        let path = entry.ok()?.path();
        path.file_name()?.to_str()?.starts_with(&format!("{id}-")).then_some(path)
    });
    if let Some(socket) = &socket {
        // They connect, say something and never read.
        let mut silent: Vec<UnixStream> =
            (0..64).map(|_| UnixStream::connect(socket).expect("connected")).collect();
        for client in &mut silent {
            client.set_nonblocking(true).expect("set");
            // It may be hung up on by now.
            let _ = client.write_all(&[b'x'; 1000]);
        }
        let inspect = Command::new(env!("CARGO_BIN_EXE_strait"))
            .args(["inspect", &id, "--json"])
            .output()
            .expect("strait starts");
        let told = String::from_utf8_lossy(&inspect.stdout).into_owned();
        assert!(told.contains("\"fake_battery\": true"), "{told}{inspect:?}");
        assert!(told.contains("\"memory\": 33554432"), "{told}");
    } else {
        skipped("/run/strait cannot be written");
    }
    input.write_all(b"a").expect("typed");
    read_until(&mut output, b"a");
    input.write_all(b"q").expect("typed");
    assert_eq!(child.wait().expect("ended").code(), Some(0));
    assert!(socket.is_none_or(|socket| !socket.exists()), "the socket is removed");
}

/// A guest on pipes that has said `>`.
fn prompted(kernel: &Path, flags: &[&str]) -> (Child, ChildStdin, ChildStdout) {
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

fn read_until(source: &mut impl Read, end: &[u8]) {
    let mut seen = Vec::new();
    while !seen.ends_with(end) {
        let mut byte = [0u8];
        source.read_exact(&mut byte).expect("more to come");
        seen.push(byte[0]);
    }
}

#[test]
fn sigterm_ends_a_guest_that_spins() {
    let guest = Guest::new().print("spin\n").raw(&[0xeb, 0xfe]);
    let Some(file) = kernel(&guest) else { return };
    let mut child = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["run", "--memory", "32M", "--kernel"])
        .arg(file.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .expect("strait starts");
    let mut line = [0u8; 5];
    std::io::Read::read_exact(child.stdout.as_mut().expect("piped"), &mut line)
        .expect("the guest speaks");
    Command::new("kill").arg(child.id().to_string()).status().expect("kill runs");
    for _ in 0..500 {
        if let Some(status) = child.try_wait().expect("waited") {
            assert_eq!((status.code(), status.signal()), (Some(0), None));
            return;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    panic!("strait did not end");
}
