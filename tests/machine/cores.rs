//! Cores that a guest shares with no other program.

use std::{
    fs,
    io::Write,
    process::{Command, Stdio},
};

use rustix::{
    process::Pid,
    thread::{CoreSchedulingScope, core_scheduling_cookie},
};
use strait_resources::host::fixture::skipped;

use super::guest::{Guest, kernel, prompted};

const KEPT: &str = "no other program shares a core with the guest while it runs";

/// What strait says of cores with `-v`.
fn said(kernel: &std::path::Path, flags: &[&str]) -> String {
    let run = Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(["-v", "run", "--memory", "32M"])
        .args(flags)
        .arg("--kernel")
        .arg(kernel)
        .stdin(Stdio::null())
        .output()
        .expect("strait starts");
    assert_eq!(run.status.code(), Some(0));
    let told = String::from_utf8_lossy(&run.stderr).into_owned();
    told.lines().filter(|line| line.contains(" core")).map(str::to_owned).collect()
}

#[test]
fn what_becomes_of_a_guests_cores_is_said_once_and_only_to_who_wants_to_know() {
    let Some(file) = kernel(&Guest::new().power_off()) else { return };
    let told = said(file.path(), &[]);
    let known = [KEPT, "no core has two threads", "other programs may share a core with the guest"];
    assert_eq!(known.iter().filter(|words| told.contains(*words)).count(), 1, "{told}");
    assert_eq!(said(file.path(), &["--cpu", "core-sched=off"]), "");
}

#[test]
fn every_thread_of_a_guest_has_the_same_core_cookie() {
    let Some(file) = kernel(&Guest::new().print(">").echo().power_off()) else { return };
    let quick = kernel(&Guest::new().power_off()).expect("as above");
    if !said(quick.path(), &[]).contains(KEPT) {
        return skipped("this host has no SMT or its kernel no core scheduling");
    }
    let (mut child, mut input, _output) = prompted(file.path(), &["--cpus", "2"]);
    let tasks = fs::read_dir(format!("/proc/{}/task", child.id())).expect("it runs");
    let cookies: Vec<u64> = tasks
        .map(|task| {
            let name = task.expect("listed").file_name().into_string().expect("a number");
            let id = Pid::from_raw(name.parse().expect("a number")).expect("not 0");
            core_scheduling_cookie(id, CoreSchedulingScope::Thread).expect("asked")
        })
        .collect();
    assert!(cookies.len() > 3 && cookies.iter().all(|one| *one == cookies[0] && *one != 0));
    input.write_all(b"q").expect("typed");
    assert_eq!(child.wait().expect("ended").code(), Some(0));
}
