//! When a machine came to each step of its way to the guest, for `strait bench`: points by the monotonic clock, kept in
//! memory and written at the end into a file that `strait bench` hands over, open.

use std::{
    env,
    fs::{self, File, OpenOptions},
    io::{self, Write as _},
    os::fd::AsRawFd as _,
    path::Path,
    process::Command,
    sync::{Mutex, OnceLock},
};

use rustix::{
    io::{FdFlags, fcntl_setfd},
    time::{ClockId, clock_gettime},
};
use serde::{Deserialize, Serialize};

/// A step and when it was done.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Phase {
    /// What had been done.
    pub(crate) name: String,
    /// Seconds of the monotonic clock.
    pub(crate) at: f64,
    /// When it began, if it went on beside other steps; otherwise with the end of the one before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) since: Option<f64>,
}

/// Holds the number of a descriptor, and no path: an environment is a user's, also where sudo hands it on to root, and then
/// nothing is made or changed but what that user had open for writing already.
const VARIABLE: &str = "STRAIT_PHASES";

/// The file that was handed over.
static FILE: OnceLock<File> = OnceLock::new();

static DONE: Mutex<Vec<(&'static str, f64, Option<f64>)>> = Mutex::new(Vec::new());

/// Seconds of the clock that every process of this host shares.
pub(crate) fn now() -> f64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// This step is done. Later calls with the same name, after a reboot of the guest, change nothing.
pub(crate) fn done(name: &'static str) {
    add(name, now(), None);
}

/// The same of one that began then and went on while other steps were done.
pub(crate) fn done_beside(name: &'static str, since: f64) {
    add(name, now(), Some(since));
}

fn add(name: &'static str, at: f64, since: Option<f64>) {
    let mut steps = DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    if steps.iter().all(|(known, ..)| *known != name) {
        steps.push((name, at, since));
    }
}

/// Takes what was handed over. To be called before anything is opened: a number may only mean what was open then.
pub(crate) fn take() {
    let Some(number) = env::var_os(VARIABLE) else { return };
    match handed_over(&number.to_string_lossy()) {
        Ok(file) => drop(FILE.set(file)),
        Err(error) => log::warn!("{VARIABLE} is not the number of a file to write to: {error}"),
    }
}

fn handed_over(number: &str) -> io::Result<File> {
    /// O_WRONLY and O_RDWR, of which an open descriptor has one or none (fcntl(2)).
    const WRITES: u32 = 3;
    let number: u32 = number.parse().map_err(|_| io::ErrorKind::InvalidInput)?;
    // `flags: 0100001`, in octal. The link below opens the file anew, with what this process may do.
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{number}"))?;
    let flags = text.lines().find_map(|line| line.strip_prefix("flags:"));
    let flags = flags.and_then(|flags| u32::from_str_radix(flags.trim(), 8).ok());
    match flags.map(|flags| flags & WRITES) {
        Some(1 | 2) => {}
        _ => return Err(io::ErrorKind::PermissionDenied.into()),
    }
    let file = OpenOptions::new().write(true).open(format!("/proc/self/fd/{number}"))?;
    match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(io::ErrorKind::InvalidInput.into()),
    }
}

/// Hands `file` over to a strait that `command` will start; to be kept open until then.
pub(crate) fn hand_over(file: &File, command: &mut Command) -> io::Result<()> {
    fcntl_setfd(file, FdFlags::empty())?;
    command.env(VARIABLE, file.as_raw_fd().to_string());
    Ok(())
}

/// Writes them where they are wanted. The run that they are of is over, and its end is what counts: a failure is only
/// told.
pub(crate) fn over() {
    if let Some(file) = FILE.get() {
        write(file);
    }
}

fn write(mut file: &File) {
    let steps = DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let phase =
        |&(name, at, since): &(&str, f64, Option<f64>)| Phase { name: name.to_owned(), at, since };
    let phases: Vec<Phase> = steps.iter().map(phase).collect();
    let text = serde_json::to_string(&phases).unwrap_or_default();
    if let Err(error) = file.write_all(text.as_bytes()) {
        log::warn!("the file for phases takes no more: {error}");
    }
}

/// Reads what another strait wrote; nothing when it wrote nothing.
pub(crate) fn read(path: &Path) -> Vec<Phase> {
    let text = fs::read(path).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn phases_come_back_in_order_and_once() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("phases");
        for name in ["test: one", "test: two", "test: one"] {
            done(name);
        }
        done_beside("test: three", now() - 2.0);
        write(&File::create(&file).unwrap());
        let phases: Vec<_> =
            read(&file).into_iter().filter(|phase| phase.name.starts_with("test: ")).collect();
        assert_eq!(
            phases.iter().map(|p| p.name.as_str()).collect::<Vec<_>>(),
            ["test: one", "test: two", "test: three"]
        );
        assert!(phases[0].at <= phases[1].at && phases[1].since.is_none());
        assert!((2.0..3.0).contains(&(phases[2].at - phases[2].since.unwrap())));
        assert!(read(&directory.path().join("absent")).is_empty());
    }

    /// What a user has whom sudo lets run strait: nothing is made, and what he may only read stays as it is.
    #[test]
    fn number_of_a_file_that_is_open_for_writing_is_taken_and_nothing_else() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("victim");
        fs::write(&path, "old").unwrap();
        let refused = |text: &str| handed_over(text).unwrap_err();
        for text in [path.to_str().unwrap(), "", "-1", "1x", "99999", "../fd/1"] {
            refused(text);
        }
        assert!(fs::read_dir(directory.path()).unwrap().count() == 1);
        let number = |file: &File| file.as_raw_fd().to_string();
        let reader = File::open(&path).unwrap();
        assert_eq!(refused(&number(&reader)).kind(), io::ErrorKind::PermissionDenied);
        refused(&number(&File::open(directory.path()).unwrap()));
        refused(&number(&OpenOptions::new().write(true).open("/dev/null").unwrap()));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        let writer = OpenOptions::new().write(true).open(&path).unwrap();
        handed_over(&number(&writer)).unwrap().write_all(b"new").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
    }

    #[test]
    fn file_that_is_handed_over_is_open_in_the_child_under_the_number_that_it_is_told() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("phases");
        let file = File::create(&path).unwrap();
        let mut child = Command::new("sh");
        child.args(["-c", "echo [] >/proc/self/fd/$STRAIT_PHASES"]);
        hand_over(&file, &mut child).unwrap();
        assert!(child.status().unwrap().success());
        assert_eq!(fs::read_to_string(&path).unwrap(), "[]\n");
    }
}
