//! `strait bench-guest`: the work itself. In a guest it is init; on the host an ordinary child.

use std::{
    ffi::CString,
    fs, io,
    path::{Path, PathBuf},
    thread::sleep,
    time::Duration,
};

use rustix::{
    mount::{MountFlags, mount},
    system::{RebootCommand, init_module, reboot},
};
use serde::{Deserialize, Serialize};
use strait_resources::{codes, failure::Failure};

use super::{
    said::{Mark, Said, note},
    work,
};

/// What to do, as a file in the guest's initramfs or in the host's directory for the run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Task {
    /// On the host the function's address; in a guest, where it has another one, its IDs.
    pub(super) device: Device,
    /// Kernel modules to load, in order, as files of the initramfs.
    pub(super) modules: Vec<String>,
    /// How many operations are timed one by one.
    pub(super) operations: u32,
    /// Milliseconds that a measurement of a rate takes.
    pub(super) rate_ms: u64,
    /// The user's own program.
    pub(super) workload: Option<String>,
}

/// How to find the device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Device {
    /// `0000:3b:00.0`.
    Address(String),
    /// Vendor and device.
    Ids(u16, u16),
}

/// Does what the file says.
pub(crate) fn run(task: &Path) -> Result<u8, Failure> {
    let is_init = std::process::id() == 1;
    let done = read(task).and_then(|task| if is_init { as_init(&task) } else { work(&task) });
    if let Err(error) = &done {
        Said::Failed(error.to_string()).say();
    }
    if is_init {
        power_off();
    }
    let cause = |error: io::Error| {
        let fix = "strait bench runs this by itself: start that";
        Failure::new(&codes::E2101, format!("the work in {} did not end", task.display()), fix)
            .source(error)
    };
    done.map(|()| 0).map_err(cause)
}

fn read(task: &Path) -> io::Result<Task> {
    serde_json::from_slice(&fs::read(task)?).map_err(io::Error::other)
}

fn as_init(task: &Task) -> io::Result<()> {
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev")] {
        mount(kind, at, kind, MountFlags::empty(), None::<&std::ffi::CStr>)?;
    }
    Said::Mark(Mark::Up).say();
    for file in &task.modules {
        let image = fs::read(file)?;
        match init_module(&image, &CString::default()) {
            // A module that is built into this kernel, or that came with another, is there.
            Ok(()) | Err(rustix::io::Errno::EXIST) => {}
            Err(error) => note(format!("module {file} does not load: {error}")),
        }
    }
    measure(task)
}

fn work(task: &Task) -> io::Result<()> {
    Said::Mark(Mark::Up).say();
    measure(task)
}

fn measure(task: &Task) -> io::Result<()> {
    let sysfs = find(&task.device)?;
    work::measure(&sysfs, task)?;
    Said::Mark(Mark::Settled).say();
    sleep(Duration::from_millis(700));
    Said::Mark(Mark::Done).say();
    Ok(())
}

/// The function's directory in sysfs.
fn find(device: &Device) -> io::Result<PathBuf> {
    let all = Path::new("/sys/bus/pci/devices");
    match device {
        Device::Address(bdf) => Ok(all.join(bdf)),
        Device::Ids(vendor, id) => {
            let has = |directory: &Path, file: &str, wanted: u16| {
                let text = fs::read_to_string(directory.join(file)).unwrap_or_default();
                u16::from_str_radix(text.trim().trim_start_matches("0x"), 16)
                    .is_ok_and(|id| id == wanted)
            };
            let mut entries: Vec<PathBuf> =
                fs::read_dir(all)?.filter_map(|entry| Some(entry.ok()?.path())).collect();
            entries.sort();
            let found =
                entries.into_iter().find(|d| has(d, "vendor", *vendor) && has(d, "device", *id));
            found.ok_or_else(|| io::Error::other(format!("no function {vendor:04x}:{id:04x} here")))
        }
    }
}

fn power_off() -> ! {
    loop {
        rustix::fs::sync();
        // It does not come back unless the kernel has no way to power off; then there is nothing better to do.
        let _ = reboot(RebootCommand::PowerOff);
        sleep(Duration::from_secs(1));
    }
}
