//! `strait bench-guest`: the work itself. In a guest it is init; on the host an ordinary child.

use std::{
    ffi::CString,
    fs, io,
    net::Ipv4Addr,
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
    /// For a NIC: who answers.
    pub(super) network: Option<Network>,
}

/// A NIC's surroundings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Network {
    /// Answers to echoes.
    pub(super) peer: Ipv4Addr,
    /// Our own address: the host's, and the guest's while it has the NIC.
    pub(super) own: Ipv4Addr,
    /// Of its network.
    pub(super) prefix: u8,
}

impl Network {
    /// Reads `PEER,address=OWN/PREFIX`.
    pub(super) fn parse(text: &str) -> Result<Self, Failure> {
        let parsed = || {
            let (peer, own) = text.split_once(",address=")?;
            let (own, prefix) = own.split_once('/')?;
            let network = Self {
                peer: peer.parse().ok()?,
                own: own.parse().ok()?,
                prefix: prefix.parse().ok()?,
            };
            let hosts = 32u32.checked_sub(network.prefix.into()).filter(|bits| *bits >= 2)?;
            let mask = u32::MAX.checked_shl(hosts).unwrap_or(0);
            let near = network.peer.to_bits() & mask == network.own.to_bits() & mask;
            (near && network.peer != network.own).then_some(network)
        };
        parsed().ok_or_else(|| {
            let cause = format!("--peer {text} is no neighbour and own address");
            let fix = "for example --peer 192.168.7.1,address=192.168.7.2/24: both in one network";
            Failure::new(&codes::E2003, cause, fix)
        })
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_is_a_neighbour_and_an_own_address() {
        let network = Network::parse("10.0.2.2,address=10.0.2.15/24").unwrap();
        let wanted = ([10, 0, 2, 2].into(), [10, 0, 2, 15].into(), 24);
        assert_eq!((network.peer, network.own, network.prefix), wanted);
        for wrong in [
            "10.0.2.2",
            "10.0.2.2,address=10.0.2.15",
            "10.0.2.2,address=10.0.3.15/24",
            "10.0.2.2,address=10.0.2.2/24",
            "10.0.2.2,address=10.0.2.15/33",
            "10.0.2.2,address=10.0.2.15/0x",
            "gateway,address=10.0.2.15/24",
        ] {
            assert_eq!(Network::parse(wrong).unwrap_err().code.id, "E2003", "{wrong}");
        }
    }
}
