//! The kernel's list of ways to reset a function (`reset_method` in sysfs), while a guest that wants others has it.
//! VFIO resets by that list when it opens a function, when the guest asks, and when it closes it.

use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{pci, sysroot::Sysroot},
    journal::Methods,
};

use super::{
    switch::Trouble,
    write::{WriteError, Writer},
};

/// For people.
pub(super) fn shown(methods: &Methods) -> String {
    match methods.wanted.to_string() {
        none if none.is_empty() => "nothing of the kernel's".to_owned(),
        wanted => wanted,
    }
}

/// Sets the list. The kernel tries each method before it takes it.
pub(super) fn set(methods: &Methods, writer: &dyn Writer, bdf: Bdf) -> Result<(), Trouble> {
    writer.write(&methods.set(bdf)).map_err(|error| match error {
        stuck @ WriteError::Stuck { .. } => Trouble::of(bdf, None, stuck),
        refused @ WriteError::Refused { .. } => {
            let cause = format!("the kernel does not reset {bdf} by '{}'", methods.wanted);
            let fix = "leave reset= out, or load the module that brings this reset (vendor-reset)";
            Failure::new(&codes::E1404, cause, fix).source(refused).into()
        }
    })
}

/// Sets the list as it was. One that was made before the kernel knew the whole bus may hold what it refuses now:
/// then it makes a new one.
pub(super) fn restore(
    methods: &Methods,
    sysroot: &Sysroot,
    writer: &dyn Writer,
    bdf: Bdf,
) -> Result<(), Trouble> {
    // Gone with its device.
    if !sysroot.exists(&pci::path(bdf, "reset_method")) {
        return Ok(());
    }
    let mut last = None;
    for write in methods.back(bdf) {
        match writer.write(&write) {
            Ok(()) => return Ok(()),
            Err(stuck @ WriteError::Stuck { .. }) => return Err(Trouble::of(bdf, None, stuck)),
            Err(refused) => last = Some(refused),
        }
    }
    let before = methods.before.as_ref().map(ToString::to_string).unwrap_or_default();
    let cause = format!("{bdf} is not reset by '{before}' again");
    let fix = format!("echo default > {}", pci::path(bdf, "reset_method"));
    let failure = Failure::new(&codes::E1115, cause, fix);
    Err(match last {
        Some(refused) => failure.source(refused).into(),
        None => failure.into(),
    })
}
