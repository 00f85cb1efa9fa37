//! The whole monitor with tiny guests of a few instructions. Needs /dev/kvm, of any kind; without it every
//! test here says so and is counted as skipped.

#[path = "machine/console.rs"]
mod console;
#[path = "machine/cores.rs"]
mod cores;
#[path = "machine/descriptors.rs"]
mod descriptors;
#[path = "machine/guest.rs"]
mod guest;
#[path = "machine/resets.rs"]
mod resets;
#[path = "machine/signals.rs"]
mod signals;
#[path = "machine/strings.rs"]
mod strings;

use std::{
    io::{Read, Write},
    os::unix::{net::UnixStream, process::ExitStatusExt},
    path::PathBuf,
    process::{Command, Stdio},
    time::Duration,
};

use guest::{Guest, kernel, prompted, read_until, strait};
use strait_resources::host::fixture::skipped;

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
