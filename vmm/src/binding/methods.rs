//! The kernel's list of ways to reset a function (`reset_method` in sysfs), while a guest that wants others has it.
//! VFIO resets by that list when it opens a function, when the guest asks, and when it closes it.

use std::fmt;

use serde::{Deserialize, Serialize};
use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{pci, sysroot::Sysroot},
};

use super::{
    switch::Trouble,
    write::{FAST, WriteError, Writer},
};

/// A list and what was there before, as they are journalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Methods {
    /// Names with spaces between them; empty: no reset.
    wanted: String,
    before: String,
}

impl fmt::Display for Methods {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.wanted.as_str() {
            "" => f.write_str("nothing of the kernel's"),
            wanted => f.write_str(wanted),
        }
    }
}

impl Methods {
    pub(super) fn new(wanted: String, before: &[String]) -> Self {
        Self { wanted, before: before.join(" ") }
    }

    /// Sets the list. The kernel tries each method before it takes it.
    pub(super) fn set(&self, writer: &dyn Writer, bdf: Bdf) -> Result<(), Trouble> {
        write(writer, bdf, &self.wanted).map_err(|error| match error {
            stuck @ WriteError::Stuck { .. } => Trouble::of(bdf, None, stuck),
            refused @ WriteError::Refused { .. } => {
                let cause = format!("the kernel does not reset {bdf} by '{}'", self.wanted);
                let fix =
                    "leave reset= out, or load the module that brings this reset (vendor-reset)";
                Failure::new(&codes::E1404, cause, fix).source(refused).into()
            }
        })
    }

    /// Sets the list as it was. One that was made before the kernel knew the whole bus may hold what it refuses now:
    /// then it makes a new one.
    pub(super) fn restore(
        &self,
        sysroot: &Sysroot,
        writer: &dyn Writer,
        bdf: Bdf,
    ) -> Result<(), Trouble> {
        // Gone with its device.
        if !sysroot.exists(&pci::path(bdf, "reset_method")) {
            return Ok(());
        }
        let restored = match write(writer, bdf, &self.before) {
            Err(WriteError::Refused { .. }) => write(writer, bdf, "default"),
            done => done,
        };
        restored.map_err(|error| match error {
            stuck @ WriteError::Stuck { .. } => Trouble::of(bdf, None, stuck),
            refused @ WriteError::Refused { .. } => {
                let cause = format!("{bdf} is not reset by '{}' again", self.before);
                let fix = format!("echo default > {}", pci::path(bdf, "reset_method"));
                Failure::new(&codes::E1115, cause, fix).source(refused).into()
            }
        })
    }
}

/// An empty list is an empty line: a write of nothing does not reach the kernel.
fn write(writer: &dyn Writer, bdf: Bdf, list: &str) -> Result<(), WriteError> {
    let value = if list.is_empty() { "\n" } else { list };
    writer.write(&pci::path(bdf, "reset_method"), value, FAST)
}
