//! The guest's console through real pipes and real terminals, with readers that stop.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::{AsFd, OwnedFd},
    os::unix::net::UnixStream,
    path::Path,
    process::{Child, Command, Stdio},
    thread,
    time::Duration,
};

use rustix::{
    fs::{OFlags, fcntl_setfl},
    io::ioctl_fionread,
    pipe::pipe,
    process::Signal,
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};

use super::{
    guest::{Guest, kernel, prompted, read_until},
    signals::{ended, send},
};

/// Bytes of a paste.
const PASTE: usize = 1 << 20;
/// Begins a command to strait on a terminal, and nowhere else.
const CTRL_A: u8 = 0x01;
/// Where [`summing`] puts what it reads.
const BUFFER: u32 = 0x21_0000;

/// All values but 0, which an empty port reads as, and those that `is_taken` on the way; in an order that does not repeat
/// with the length of any buffer.
fn paste(is_taken: impl Fn(u8) -> bool) -> Vec<u8> {
    let bytes = (0_u32..).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8);
    bytes.filter(|byte| *byte != 0 && !is_taken(*byte)).take(PASTE).collect()
}

/// What [`summing`] makes of bytes, four at a time; their order counts.
fn sum(bytes: &[u8]) -> u32 {
    bytes.chunks_exact(4).fold(0, |sum, four| {
        let word = u32::from_le_bytes([four[0], four[1], four[2], four[3]]);
        u32::wrapping_add(u32::wrapping_mul(sum, 0x0100_0193), word)
    })
}

/// Prints `>`, reads so many bytes, 256 in an instruction, prints what they come to and powers off. Few instructions a
/// byte: where KVM emulates every one of them, a MiB of bytes one by one takes minutes.
fn summing(count: usize) -> Guest {
    let (count, at) = (count as u32, BUFFER.to_le_bytes());
    let (words, end) = ((count / 4).to_le_bytes(), (BUFFER + count).to_le_bytes());
    Guest::new()
        .print(">")
        // mov edi,BUFFER; again: mov dx,0x3fd; in al,dx; test al,1; jz again
        .raw(&[0xbf, at[0], at[1], at[2], at[3]])
        .raw(&[0x66, 0xba, 0xfd, 0x03, 0xec, 0xa8, 0x01, 0x74, 0xf7])
        // mov ebx,edi; mov ecx,256; mov dx,0x3f8; rep insb. A port that has nothing more reads as 0.
        .raw(&[0x89, 0xfb, 0xb9, 0, 1, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xf3, 0x6c])
        // mov edi,ebx; xor eax,eax; mov ecx,256; repne scasb; jne whole
        .raw(&[0x89, 0xdf, 0x31, 0xc0, 0xb9, 0, 1, 0, 0, 0xf2, 0xae, 0x75, 0x11])
        // Leaves the zeros out: mov esi,ebx; mov edi,ebx; mov ecx,256; next: lodsb; test al,al; jz skip; stosb;
        // skip: loop next
        .raw(&[
            0x89, 0xde, 0x89, 0xdf, 0xb9, 0, 1, 0, 0, 0xac, 0x84, 0xc0, 0x74, 0x01, 0xaa, 0xe2,
            0xf8,
        ])
        // whole: cmp edi,end; jb again
        .raw(&[0x81, 0xff, end[0], end[1], end[2], end[3], 0x72, 0xc4])
        // mov esi,BUFFER; mov ecx,words; xor ebx,ebx; next: lodsd; imul ebx,ebx,0x01000193; add ebx,eax; loop next
        .raw(&[0xbe, at[0], at[1], at[2], at[3], 0xb9, words[0], words[1], words[2], words[3]])
        .raw(&[0x31, 0xdb, 0xad, 0x69, 0xdb, 0x93, 0x01, 0x00, 0x01, 0x01, 0xc3, 0xe2, 0xf5])
        // mov eax,ebx; mov dx,0x3f8; four times: out dx,al; shr eax,8
        .raw(&[0x89, 0xd8, 0x66, 0xba, 0xf8, 0x03])
        .raw(&[0xee, 0xc1, 0xe8, 8, 0xee, 0xc1, 0xe8, 8, 0xee, 0xc1, 0xe8, 8, 0xee])
        .power_off()
}

/// Prints `>`, then the same byte for ever.
fn flooding() -> Guest {
    // mov dx,0x3f8; mov al,'x'; out dx,al; jmp back
    Guest::new().print(">").raw(&[0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0xeb, 0xfd])
}

/// A terminal: the side of whoever sits in front of it, and the side of programs.
fn terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&master).expect("granted");
    unlockpt(&master).expect("unlocked");
    let name = ptsname(&master, Vec::new()).expect("named").into_string().expect("ASCII");
    let programs = File::options().read(true).write(true).open(name).expect("opened");
    (File::from(master), programs)
}

/// strait with `kernel` on a terminal.
fn on_a_terminal(kernel: &Path) -> (Child, File) {
    let (user, programs) = terminal();
    let child = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["run", "--memory", "32M", "--kernel"])
        .arg(kernel)
        .env("TERM", "xterm")
        .stdin(programs.try_clone().expect("cloned"))
        .stdout(programs)
        .spawn()
        .expect("strait starts");
    (child, user)
}

/// Until the reader of `output` has more before it than it reads.
fn wait_until_full(output: impl AsFd, bytes: u64) {
    while ioctl_fionread(&output).expect("asked") < bytes {
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn long_paste_through_a_pipe_reaches_the_guest_whole_and_in_order() {
    let Some(file) = kernel(&summing(PASTE)) else { return };
    let (mut child, mut input, mut output) = prompted(file.path(), &[]);
    let bytes = paste(|_| false);
    input.write_all(&bytes).expect("typed");
    let mut got = Vec::new();
    output.read_to_end(&mut got).expect("read");
    assert_eq!(got, sum(&bytes).to_le_bytes());
    assert_eq!(ended(&mut child).code(), Some(0));
}

#[test]
fn long_paste_into_a_terminal_reaches_the_guest_whole_and_in_order() {
    let Some(file) = kernel(&summing(PASTE)) else { return };
    let (mut child, mut user) = on_a_terminal(file.path());
    read_until(&mut user, b">");
    // A terminal has the escape.
    let bytes = paste(|byte| byte == CTRL_A);
    user.write_all(&bytes).expect("typed");
    // Ends with an error when the last program has closed the other side.
    let mut got = Vec::new();
    let _ = user.read_to_end(&mut got);
    // Output is cooked, and modes that such bytes may have set are reset behind it.
    let expected: Vec<u8> = sum(&bytes).to_le_bytes().into_iter().flat_map(cooked).collect();
    assert_eq!(got.get(..expected.len()), Some(&expected[..]));
    assert_eq!(ended(&mut child).code(), Some(0));
}

fn cooked(byte: u8) -> Vec<u8> {
    if byte == b'\n' { b"\r\n".to_vec() } else { vec![byte] }
}

/// Alternate screen, hidden cursor, mouse, bracketed paste, red; and the start of a title that is never ended.
const MODES: &str = "\x1b[?1049h\x1b[?25l\x1b[?1003h\x1b[?2004h\x1b[31mvi\x1b]0;half a ti";

/// All that comes out of a terminal until strait is over.
fn rest(child: &mut Child, mut user: File) -> String {
    let mut got = Vec::new();
    let _ = user.read_to_end(&mut got);
    ended(child);
    String::from_utf8(got).expect("ASCII")
}

#[test]
fn terminal_is_out_of_the_modes_that_a_guest_left_however_it_ended() {
    let spins = Guest::new().print(">").print(MODES).print("<").raw(&[0xeb, 0xfe]);
    let powers_off = Guest::new().print(">").print(MODES).print("<").power_off();
    // lidt [0x300000] (zeroes: limit 0); ud2
    let dies = Guest::new().print(">").print(MODES).print("<");
    let dies = dies.raw(&[0x0f, 0x01, 0x1d, 0, 0, 0x30, 0, 0x0f, 0x0b]);
    for (guest, signalled) in [(powers_off, false), (dies, false), (spins, true)] {
        let Some(file) = kernel(&guest) else { return };
        let (mut child, mut user) = on_a_terminal(file.path());
        read_until(&mut user, b"<");
        if signalled {
            send(&child, Signal::TERM);
        }
        let got = rest(&mut child, user);
        // The unfinished sequence is ended first; what comes last is plain text with a cursor.
        assert!(got.starts_with('\x18'), "{got:?}");
        for undone in ["\x1b[?1049l", "1003;", "\x1b[?2004l", "\x1b[!p"] {
            assert!(got.contains(undone), "{undone:?} in {got:?}");
        }
        assert!(got.ends_with("\x1b[0m\x1b[?25h"), "{got:?}");
    }
}

#[test]
fn guest_that_sets_no_mode_and_one_on_a_pipe_get_nothing_behind_what_they_print() {
    let Some(file) = kernel(&Guest::new().print(">plain\n").power_off()) else { return };
    let (mut child, mut user) = on_a_terminal(file.path());
    read_until(&mut user, b">");
    assert_eq!(rest(&mut child, user), "plain\r\n");
    let Some(file) = kernel(&Guest::new().print(">").print(MODES).power_off()) else { return };
    let (mut child, _input, mut output) = prompted(file.path(), &[]);
    let mut got = String::new();
    output.read_to_string(&mut got).expect("ASCII");
    assert_eq!((got.as_str(), ended(&mut child).code()), (MODES, Some(0)));
}

#[test]
fn paste_comes_back_from_a_guest_that_echoes_it_byte_for_byte() {
    let Some(file) = kernel(&Guest::new().print(">").echo().power_off()) else { return };
    let (mut child, mut input, mut output) = prompted(file.path(), &[]);
    let mut bytes = paste(|byte| byte == b'q');
    bytes.truncate(64 << 10);
    bytes.push(b'q');
    input.write_all(&bytes).expect("typed");
    let mut got = Vec::new();
    output.read_to_end(&mut got).expect("read");
    assert!(got == bytes, "{} bytes of {}", got.len(), bytes.len());
    assert_eq!(ended(&mut child).code(), Some(0));
}

#[test]
fn file_as_standard_input_is_typed_at_the_guest() {
    let Some(file) = kernel(&Guest::new().echo().power_off()) else { return };
    let mut input = tempfile::tempfile().expect("a file");
    let text = [&[b'.'; 5000][..], b"q"].concat();
    input.write_all(&text).expect("written");
    std::io::Seek::rewind(&mut input).expect("rewound");
    let run = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["run", "--memory", "32M", "--kernel"])
        .arg(file.path())
        .stdin(input)
        .output()
        .expect("strait starts");
    assert!(run.stdout == text, "{} bytes", run.stdout.len());
    assert_eq!(run.status.code(), Some(0));
}

#[test]
fn pipe_that_nobody_reads_keeps_sigterm_not_away() {
    let Some(file) = kernel(&flooding()) else { return };
    let (mut child, mut input, output) = prompted(file.path(), &[]);
    wait_until_full(&output, 60_000);
    // For the guest: it once made the main thread wait for the vCPU.
    input.write_all(b"typed").expect("typed");
    send(&child, Signal::TERM);
    assert_eq!(ended(&mut child).code(), Some(0));
}

/// What a person types to strait is nothing in a file that is piped in.
#[test]
fn ctrl_a_in_a_pipe_a_file_and_a_socket_is_the_guests() {
    let Some(file) = kernel(&Guest::new().print(">").echo().power_off()) else { return };
    let bytes = b"\x01x\x01\x01\x00\x01q";
    let (mut child, mut input, mut output) = prompted(file.path(), &[]);
    input.write_all(bytes).expect("typed");
    let mut got = Vec::new();
    output.read_to_end(&mut got).expect("read");
    assert_eq!((got.as_slice(), ended(&mut child).code()), (&bytes[..], Some(0)));

    let mut typed = tempfile::tempfile().expect("a file");
    typed.write_all(bytes).expect("written");
    std::io::Seek::rewind(&mut typed).expect("rewound");
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    (&ours).write_all(bytes).expect("typed");
    for input in [Stdio::from(typed), Stdio::from(OwnedFd::from(theirs))] {
        let run = Command::new(env!("CARGO_BIN_EXE_strait"))
            .args(["run", "--memory", "32M", "--kernel"])
            .arg(file.path())
            .stdin(input)
            .output()
            .expect("strait starts");
        assert_eq!((&run.stdout[1..], run.status.code()), (&bytes[..], Some(0)));
    }
}

#[test]
fn terminal_that_nobody_reads_keeps_neither_sigterm_nor_ctrl_a_x_away() {
    let Some(file) = kernel(&flooding()) else { return };
    for by_key in [false, true] {
        let (mut child, mut user) = on_a_terminal(file.path());
        read_until(&mut user, b">");
        wait_until_full(&user, 2048);
        user.write_all(b"typed").expect("typed");
        match by_key {
            true => user.write_all(b"\x01x").expect("typed"),
            false => send(&child, Signal::TERM),
        }
        assert_eq!(ended(&mut child).code(), Some(0));
    }
}

#[test]
fn client_of_the_serial_socket_that_does_not_read_holds_nothing_up() {
    let Some(file) = kernel(&flooding()) else { return };
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
    let connect = || loop {
        match UnixStream::connect(&path) {
            Ok(stream) => break stream,
            Err(_) => thread::sleep(Duration::from_millis(10)),
        }
    };
    let mut stalled = connect();
    stalled.write_all(b"typed").expect("typed");
    // Bytes that come one by one take much of a socket's memory.
    wait_until_full(&stalled, 200);
    // The next one is served all the same.
    let mut next = connect();
    let mut some = [0; 10_000];
    next.read_exact(&mut some).expect("read");
    assert!(some.iter().all(|byte| b">x".contains(byte)));
    send(&child, Signal::TERM);
    assert_eq!(ended(&mut child).code(), Some(0));
    assert!(!path.exists(), "the socket is removed");
}

/// A pipe for standard error that is full already.
fn full_pipe() -> (OwnedFd, OwnedFd) {
    let (reader, writer) = pipe().expect("a pipe");
    fcntl_setfl(&writer, OFlags::NONBLOCK).expect("set");
    while rustix::io::write(&writer, &[b'.'; 4096]).is_ok() {}
    fcntl_setfl(&writer, OFlags::empty()).expect("set");
    (reader, writer)
}

#[test]
fn standard_error_that_nobody_reads_holds_nothing_up() {
    let Some(file) = kernel(&Guest::new().print("hello").power_off()) else { return };
    let (_reader, writer) = full_pipe();
    let mut child = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["-vvv", "run", "--memory", "32M", "--kernel"])
        .arg(file.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(writer)
        .spawn()
        .expect("strait starts");
    let mut said = String::new();
    child.stdout.take().expect("piped").read_to_string(&mut said).expect("read");
    assert_eq!((ended(&mut child).code(), said.as_str()), (Some(0), "hello"));
}

#[test]
fn signals_of_every_kind_end_a_guest_in_order_or_not_at_all() {
    let Some(file) = kernel(&Guest::new().print(">").echo().power_off()) else { return };
    for last in [Signal::INT, Signal::HUP, Signal::QUIT, Signal::TERM] {
        let (mut child, mut input, mut output) = prompted(file.path(), &[]);
        for signal in [Signal::USR1, Signal::USR2, Signal::ALARM, Signal::PIPE, Signal::XFSZ] {
            send(&child, signal);
        }
        input.write_all(b"a").expect("typed");
        read_until(&mut output, b"a");
        send(&child, last);
        assert_eq!(ended(&mut child).code(), Some(0), "{last:?}");
    }
}

/// As by systemd's LimitFSIZE=.
#[test]
fn serial_file_at_its_limit_is_told_of_once_and_the_guest_goes_on() {
    // mov ecx,20000; mov dx,0x3f8; mov al,'x'; out dx,al; dec ecx; jnz back
    let guest = Guest::new()
        .raw(&[0xb9, 0x20, 0x4e, 0, 0, 0x66, 0xba, 0xf8, 0x03, 0xb0, b'x', 0xee, 0x49, 0x75, 0xfc])
        .power_off();
    let Some(file) = kernel(&guest) else { return };
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().join("console.txt");
    let run = Command::new("prlimit")
        .arg("--fsize=8192")
        .arg(env!("CARGO_BIN_EXE_strait"))
        .args(["run", "--memory", "32M", "--serial"])
        .arg(format!("file={}", path.display()))
        .arg("--kernel")
        .arg(file.path())
        .stdin(Stdio::null())
        .output()
        .expect("prlimit (package util-linux) starts");
    let told = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(0), "{told}");
    assert_eq!(std::fs::metadata(&path).expect("made").len(), 8192);
    assert!(told.contains("after 8192 bytes: File too large"), "{told}");
    assert!(told.contains("11808 bytes of the guest's console are lost"), "{told}");
    assert_eq!(told.matches("E8004").count(), 2, "{told}");
}
