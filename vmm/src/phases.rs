//! When a machine came to each step of its way to the guest, for `strait bench`: points by the monotonic clock, kept in
//! memory and written at the end to the file that an environment variable of `strait bench`'s names.

use std::{env, fs, path::Path, sync::Mutex};

use rustix::time::{ClockId, clock_gettime};
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

/// Names the file.
pub(crate) const VARIABLE: &str = "STRAIT_PHASES";

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

/// Writes them where they are wanted. The run that they are of is over, and its end is what counts: a failure is only
/// told.
pub(crate) fn over() {
    if let Some(path) = env::var_os(VARIABLE) {
        write(Path::new(&path));
    }
}

fn write(path: &Path) {
    let steps = DONE.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let phase =
        |&(name, at, since): &(&str, f64, Option<f64>)| Phase { name: name.to_owned(), at, since };
    let phases: Vec<Phase> = steps.iter().map(phase).collect();
    let text = serde_json::to_string(&phases).unwrap_or_default();
    if let Err(error) = fs::write(path, text) {
        log::warn!("{} cannot be written: {error}", path.display());
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
        write(&file);
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
}
