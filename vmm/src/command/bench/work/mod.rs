//! What is measured, by kind of device. Nothing is ever written to a disk; a NIC sends to
//! its peer only.

mod interrupts;
mod mmio;
mod nic;
mod nvme;
mod program;
mod route;

use std::{
    fs, io,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use super::{
    guest::Task,
    said::{Mark, Said, note},
};

/// How long a driver may take to make its device usable.
const PATIENCE: Duration = Duration::from_secs(20);

/// Points of the distribution that are kept.
const PERCENTILES: &[f64] = &[
    0.0, 5.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0, 70.0, 80.0, 90.0, 95.0, 98.0, 99.0, 99.5, 99.9,
    99.99, 100.0,
];

/// Measures what this function permits.
pub(super) fn measure(sysfs: &Path, task: &Task) -> io::Result<()> {
    let class = attribute(sysfs, "class").unwrap_or_default();
    let is = |prefix: &str| class.starts_with(prefix);
    if is("0x0108") {
        let disk = wait_for("its disk", || nvme::disk(sysfs))?;
        Said::Mark(Mark::Device).say();
        nvme::measure(&disk, sysfs, task)?;
    } else if is("0x0200")
        && let Some(network) = &task.network
    {
        nic::measure(sysfs, task, network)?;
    } else {
        // Most drivers have their device at once; a device without a driver is measured as it is.
        let driver = wait_for("a driver", || fs::read_link(sysfs.join("driver")).ok());
        if driver.is_err() {
            note("no driver takes the device: only its BARs are measured");
        }
        Said::Mark(Mark::Device).say();
        Said::Mark(Mark::First).say();
        if is("0x0200") {
            note("round trips and packets are measured with a neighbour that answers: --peer");
        } else {
            let kind = if is("0x03") { "a GPU" } else { "this kind of device" };
            note(format!(
                "strait has no work of its own for {kind}: --workload 'PROGRAM' runs yours on both sides"
            ));
        }
    }
    if let Some(command) = &task.workload {
        program::measure(command)?;
    }
    mmio::measure(sysfs, task);
    Ok(())
}

/// A file of sysfs, without the line's end.
fn attribute(sysfs: &Path, name: &str) -> Option<String> {
    Some(fs::read_to_string(sysfs.join(name)).ok()?.trim_end().to_owned())
}

fn wait_for(what: &str, mut attempt: impl FnMut() -> Option<PathBuf>) -> io::Result<PathBuf> {
    const STEP: Duration = Duration::from_millis(5);
    for _ in 0..PATIENCE.as_millis() / STEP.as_millis() {
        if let Some(found) = attempt() {
            return Ok(found);
        }
        sleep(STEP);
    }
    Err(io::Error::other(format!("{what} did not come within {} s", PATIENCE.as_secs())))
}
