//! The same at every boot: a udev rule for one function, before any driver of the host has it.

use std::{fs, io};

use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{pci::HostFunction, sysroot::Sysroot},
};

const DIRECTORY: &str = "/etc/udev/rules.d";

/// The file for one function, whether it is there or not.
pub(crate) fn rule_file(bdf: Bdf) -> String {
    // Before 80-drivers.rules, which loads the module that claims the device.
    format!("{DIRECTORY}/10-strait-{bdf}.rules")
}

/// Writes the rule; answers its path.
pub(crate) fn persist(sysroot: &Sysroot, function: &HostFunction) -> Result<String, Failure> {
    let path = rule_file(function.bdf);
    let write = || -> io::Result<()> {
        fs::create_dir_all(sysroot.path(DIRECTORY))?;
        fs::write(sysroot.path(&path), rule(function))
    };
    write().map_err(|error| {
        let cause = format!("the rule {path} cannot be written");
        Failure::new(&codes::E1003, cause, "run strait as root, where /etc is writable")
            .source(error)
    })?;
    Ok(path)
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
