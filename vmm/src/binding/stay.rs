//! Functions that stay on vfio-pci when their guest is over: `after=vfio`. What a guest left in a device meets no driver of
//! the host then, only the next guest.
//!
//! They move from the journal of the run to one as `strait bind` writes it, which `strait unbind` undoes.

use std::collections::BTreeSet;

use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{pci::is_vfio_driver, sysroot::Sysroot},
    journal::{Entry, Journal, Kind},
};

use super::{Binder, methods, switch};

/// The functions of a journal that stay: those that shall, and have come to vfio-pci, with what was only taken along for
/// them. One that was on its way when strait was killed has had no guest, and goes back.
pub(super) fn staying(sysroot: &Sysroot, journal: &Journal) -> Result<BTreeSet<Bdf>, Failure> {
    let mut there = Vec::new();
    for entry in &journal.functions {
        let driver = switch::driver(sysroot, entry.bdf)?;
        if entry.stuck.is_none() && driver.is_some_and(|driver| is_vfio_driver(&driver)) {
            there.push(entry);
        }
    }
    let asked: Vec<&&Entry> = there.iter().filter(|entry| entry.stays).collect();
    let groups: BTreeSet<u32> = asked.iter().filter_map(|entry| entry.group).collect();
    let along = |entry: &&&Entry| {
        entry.along && entry.before.is_some() && entry.group.is_some_and(|it| groups.contains(&it))
    };
    let along = there.iter().filter(along);
    Ok(asked.into_iter().chain(along).map(|entry| entry.bdf).collect())
}

/// Notes the functions that stay in a journal of their own and takes them out of this one. Returns those that could not be
/// noted, for the next strait to try, and what did not work.
pub(super) fn settle(binder: &Binder, journal: &mut Journal) -> (Vec<Entry>, Vec<Failure>) {
    let staying = match staying(&binder.sysroot, journal) {
        Ok(staying) if staying.is_empty() => return (Vec::new(), Vec::new()),
        Ok(staying) => staying,
        // Nobody knows which: all of them do, until that can be seen.
        Err(failure) => return (std::mem::take(&mut journal.functions), vec![failure]),
    };
    let all = std::mem::take(&mut journal.functions);
    let (mut kept, gone): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|entry| staying.contains(&entry.bdf));
    journal.functions = gone;
    let mut warnings = Vec::new();
    for entry in &mut kept {
        warnings.extend(restore_methods(binder, entry));
    }
    let mut bound = journal.clone();
    (bound.kind, bound.settled, bound.functions) = (Kind::Bind, true, kept);
    match binder.journals.write(&bound) {
        Ok(_) => {
            for Entry { bdf, .. } in &bound.functions {
                log::info!("{bdf} stays on vfio-pci; strait unbind {bdf} gives it back");
            }
            (Vec::new(), warnings)
        }
        Err(failure) => {
            warnings.push(failure);
            (bound.functions, warnings)
        }
    }
}

/// The next guest's resets are not this one's. What does not work is tried again when the function goes back.
fn restore_methods(binder: &Binder, entry: &mut Entry) -> Option<Failure> {
    let methods = entry.methods.as_ref()?;
    match methods::restore(methods, &binder.sysroot, binder.writer.as_ref(), entry.bdf) {
        Ok(()) => {
            entry.methods = None;
            None
        }
        Err(trouble) => Some(Failure { code: &codes::E1115, ..trouble.into_failure() }),
    }
}
