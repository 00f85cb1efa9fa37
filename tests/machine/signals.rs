//! Signals in every part of a machine's life, and files that take long.

use std::{
    io::Write,
    process::{Child, Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use rustix::process::{Pid, Signal, kill_process};

use super::guest::{Guest, kernel, read_until};

pub(crate) fn send(child: &Child, signal: Signal) {
    kill_process(Pid::from_child(child), signal).expect("signalled");
}

/// Ends a child that does not end.
pub(crate) fn ended(child: &mut Child) -> ExitStatus {
    for _ in 0..6000 {
        if let Some(status) = child.try_wait().expect("waited") {
            return status;
        }
        thread::sleep(Duration::from_millis(10));
    }
    let _ = child.kill();
    panic!("strait did not end");
}

/// A file of this length that is a hole behind its first bytes.
fn hole(start: &[u8], len: u64) -> tempfile::NamedTempFile {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(start).expect("written");
    file.as_file().set_len(len).expect("lengthened");
    file
}

/// A reboot reads kernel and initramfs again, and here that is all that is ever done: wherever the signal meets it.
#[test]
fn sigterm_ends_a_guest_whose_reboots_take_long() {
    let Some(file) = kernel(&Guest::new().print(">").reset()) else { return };
    let initramfs = hole(b"070701", 256 << 20);
    for moment in [0, 40, 90, 150, 230, 370] {
        let mut child = Command::new(env!("CARGO_BIN_EXE_strait"))
            .args(["run", "--memory", "512M", "--kernel"])
            .arg(file.path())
            .arg("--initramfs")
            .arg(initramfs.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .expect("strait starts");
        // So often it has rebooted.
        let output = child.stdout.as_mut().expect("piped");
        read_until(output, b">>>");
        thread::sleep(Duration::from_millis(moment));
        send(&child, Signal::TERM);
        assert_eq!(ended(&mut child).code(), Some(0), "after {moment} ms");
    }
}

/// From the first instruction of strait on: with a machine it ends in order, without one like any program.
#[test]
fn sigterm_at_any_moment_of_a_start_ends_strait() {
    let Some(file) = kernel(&Guest::new().print(">").echo()) else { return };
    for moment in (0..120).step_by(6) {
        let mut child = Command::new(env!("CARGO_BIN_EXE_strait"))
            .args(["run", "--memory", "32M", "--kernel"])
            .arg(file.path())
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .expect("strait starts");
        thread::sleep(Duration::from_millis(moment));
        send(&child, Signal::TERM);
        let status = ended(&mut child);
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&status);
        assert!(status.code() == Some(0) || by_signal == Some(15), "after {moment} ms: {status:?}");
    }
}

/// It once kept strait looking for notes for hours, signals or not.
#[test]
fn kernel_with_notes_as_long_as_a_sparse_file_starts_as_any_other() {
    const LEN: u64 = 1 << 40;
    let Some(file) = kernel(&Guest::new().print("hello").power_off()) else { return };
    let mut elf = std::fs::read(file.path()).expect("read");
    // The second program header, p_offset and p_filesz: ELF-64 object file format, 8.
    let note = 64 + 56;
    let offset = u64::from_le_bytes(elf[note + 8..note + 16].try_into().expect("8 bytes"));
    elf[note + 32..note + 40].copy_from_slice(&(LEN - offset).to_le_bytes());
    let sparse = hole(&elf, LEN);
    let mut child = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["run", "--memory", "32M", "--kernel"])
        .arg(sparse.path())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .expect("strait starts");
    assert_eq!(ended(&mut child).code(), Some(0));
}
