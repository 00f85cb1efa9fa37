//! The same at every boot: a udev rule for one function, before any driver of the host has it.

use std::io;

use rustix::fs::Mode;
use strait_resources::{bdf::Bdf, codes, failure::Failure, host::pci::HostFunction};

use super::Binder;
use crate::files::{Directory, Manner};

const DIRECTORY: &str = "/etc/udev/rules.d";

/// udev reads it as root, and people may.
const MANNER: Manner = Manner { mode: Mode::from_raw_mode(0o644), durable: true, locked: false };

/// The file for one function, whether it is there or not.
pub(crate) fn rule_file(bdf: Bdf) -> String {
    format!("{DIRECTORY}/{}", file_name(bdf))
}

/// Before 80-drivers.rules, which loads the module that claims the device.
fn file_name(bdf: Bdf) -> String {
    format!("10-strait-{bdf}.rules")
}

impl Binder {
    /// Is there a place for rules that nobody but root can write to? Refuses (E1125) another, before anything is changed.
    pub(crate) fn may_persist(&self) -> Result<(), Failure> {
        Directory::of_root(&self.sysroot, DIRECTORY).map(drop)
    }

    /// Writes the rule; answers its path.
    pub(crate) fn persist(&self, function: &HostFunction) -> Result<String, Failure> {
        let path = rule_file(function.bdf);
        let cannot = |error: io::Error| {
            let cause = format!("the rule {path} cannot be written");
            let fix = "run strait as root, where /etc is writable";
            Failure::new(&codes::E1003, cause, fix).source(error)
        };
        let directory = match Directory::of_root(&self.sysroot, DIRECTORY)? {
            Some(directory) => directory,
            None => Directory::made(&self.sysroot, DIRECTORY).map_err(cannot)?,
        };
        let written = directory.put(&file_name(function.bdf), rule(function).as_bytes(), MANNER);
        written.map_err(cannot)?;
        Ok(path)
    }
}

/// The IDs are in it as well, so that another card at this address (they move when one is added) is left alone.
fn rule(function: &HostFunction) -> String {
    let HostFunction { bdf, vendor, device, .. } = function;
    format!(
        "# {bdf} belongs to guests: written by strait bind --persist; undone by removing this file.\n\
         ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"{bdf}\", \
         ATTR{{vendor}}==\"{vendor:#06x}\", ATTR{{device}}==\"{device:#06x}\", \
         ATTR{{driver_override}}=\"vfio-pci\", RUN{{builtin}}+=\"kmod load vfio-pci\"\n"
    )
}
