//! Who gives devices back when strait ends in a panic.
//!
//! strait cannot do it itself then: vCPUs and devices run on, and the kernel takes a device from nobody who has it open or
//! mapped. So a child is left behind that waits until all of the process is gone, and does what the next strait would do
//! with the journal of one that was killed.

use std::{
    io,
    os::{fd::OwnedFd, unix::process::CommandExt as _},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
};

use rustix::{
    event::{PollFd, PollFlags, poll},
    io::Errno,
    process::{PidfdFlags, getpid, pidfd_open},
};
use strait_resources::failure::Failure;

use super::{Binder, inherited};
use crate::report;

/// How many owners of this process have something to give back.
static OWNERS: AtomicUsize = AtomicUsize::new(0);

/// An owner has something to give back for as long as this lives.
#[derive(Debug)]
pub(super) struct Due(());

impl Due {
    pub(super) fn new() -> Self {
        OWNERS.fetch_add(1, Ordering::AcqRel);
        Self(())
    }
}

impl Drop for Due {
    fn drop(&mut self) {
        OWNERS.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Leaves a child that gives back what this process has taken, if it has, when it is gone. For a panic hook: takes no
/// lock of strait's, and waits for nothing.
pub(crate) fn leave() {
    if OWNERS.load(Ordering::Acquire) == 0 {
        return;
    }
    // The file may have been replaced since this process started; the link leads to what runs.
    let mut command = Command::new("/proc/self/exe");
    if let Err(error) = start(command.arg("give-back")) {
        log::warn!("nobody gives the devices back until the next strait: {error}");
    }
}

/// Starts a child whose standard input is this process: readable (pidfd_open(2)) once its last thread is gone, and with it
/// every descriptor and mapping.
fn start(command: &mut Command) -> io::Result<()> {
    let process: OwnedFd = pidfd_open(getpid(), PidfdFlags::empty())?;
    let child = command
        .stdin(process)
        .stdout(Stdio::null())
        // Ctrl-C on the terminal is not for it.
        .process_group(0)
        .spawn()?;
    // Whoever waits for this process's children does for this one.
    drop(child);
    Ok(())
}

/// What the child does.
pub(crate) fn give_back() -> Result<u8, Failure> {
    inherited::outlive();
    wait_for_the_end(&io::stdin());
    let undone = Binder::host().recover()?;
    report::notes(&undone.lines);
    report::warnings(&undone.warnings);
    Ok(0)
}

/// Waits for a process.
fn wait_for_the_end(process: &impl std::os::fd::AsFd) {
    let mut waits = [PollFd::new(process, PollFlags::IN)];
    // What cannot be waited for is looked at now: an owner that lives is left alone.
    while poll(&mut waits, None) == Err(Errno::INTR) {}
}

#[cfg(test)]
mod tests {
    use std::{env, fs, thread};

    use super::*;
    use crate::{
        binding::{
            Kind, Wishes,
            fake::{GPU, Host},
        },
        report::end_on_panic,
    };
    use strait_resources::host::check::Allowed;

    /// In the children of a test: who they are.
    const CHILD: &str = "STRAIT_TEST_HEIR";
    /// The process that ends.
    const OF: &str = "STRAIT_TEST_HEIR_OF";

    fn this(name: &str) -> Command {
        let mut command = Command::new(env::current_exe().unwrap());
        command.args(["--exact", &format!("binding::heir::tests::{name}"), "--nocapture"]);
        command
    }

    /// A vCPU's thread panics while the main thread goes on.
    #[test]
    fn child_of_a_panic_of_any_thread_waits_until_the_process_is_gone() {
        const NAME: &str = "child_of_a_panic_of_any_thread_waits_until_the_process_is_gone";
        match env::var(CHILD).as_deref() {
            Ok("heir") => {
                wait_for_the_end(&io::stdin());
                let of = env::var(OF).unwrap();
                // Gone, or a zombie: its parent has not asked for its status.
                let state = fs::read_to_string(format!("/proc/{of}/stat")).unwrap_or_default();
                let gone = state.is_empty() || state.contains(") Z ");
                eprintln!("heir: {}", if gone { "gone" } else { &state });
            }
            Ok(_) => {
                let leave = || {
                    let of = std::process::id().to_string();
                    start(this(NAME).env(CHILD, "heir").env(OF, of)).unwrap();
                };
                end_on_panic(|| {}, leave);
                let panics = thread::spawn(|| panic!("by intent"));
                let _ = panics.join();
                unreachable!("the hook did not end the process");
            }
            Err(_) => {
                let ended = this(NAME).env(CHILD, "process").output().unwrap();
                let told = String::from_utf8_lossy(&ended.stderr);
                assert_eq!(ended.status.code(), Some(9), "{told}");
                // The child has the same standard error, and `output` waits for both.
                let (_, after) = told.split_once("error[E9001]: panic at ").expect("no E9001");
                assert!(after.contains("heir: gone"), "{told}");
            }
        }
    }

    /// In a process of its own: the count is of all threads.
    #[test]
    fn child_is_left_only_by_who_has_taken_something() {
        const NAME: &str = "child_is_left_only_by_who_has_taken_something";
        if env::var_os(CHILD).is_none() {
            let child = this(NAME).env(CHILD, "1").output().unwrap();
            let told = String::from_utf8_lossy(&child.stdout).into_owned();
            assert!(child.status.success() && told.contains("1 passed"), "{child:?}");
            return;
        }
        let due = || OWNERS.load(Ordering::Acquire);
        let host = Host::card();
        let binder = host.binder();
        let only_used = binder.register(&[host.find(GPU)]).unwrap();
        assert_eq!(due(), 0);
        drop(only_used);
        let take = || {
            let lock = binder.lock().unwrap();
            let planned = binder.plan(&[host.find(GPU)], &Allowed::default()).unwrap();
            binder.take(&lock, Kind::Run, &planned, &[], &Wishes::default())
        };
        let guard = take().unwrap();
        assert_eq!(due(), 1);
        drop(guard);
        assert_eq!(due(), 0);
        take().unwrap().keep().unwrap();
        assert_eq!(due(), 0);
    }
}
