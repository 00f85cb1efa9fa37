//! Functions that are ours until the guard is dropped.

use strait_resources::{
    codes,
    failure::Failure,
    journal::{Entry, Journal, Process},
};

use super::{
    Binder, View,
    heir::Due,
    journals::{Held, Lock},
    methods, screen, stay,
    switch::{self, Trouble},
};
use crate::report;

/// Gives back on drop what it has, and removes its journal.
pub(crate) struct Guard {
    binder: Binder,
    journal: Option<Journal>,
    /// So many functions, the first ones, may have been written to.
    touched: usize,
    /// Somebody must give back what was touched, if strait itself cannot.
    due: Option<Due>,
    /// Tells other straits that the owner is there.
    _held: Held,
}

impl Guard {
    /// Writes the journal; nothing else yet.
    pub(super) fn new(binder: Binder, journal: Journal) -> Result<Self, Failure> {
        let held = binder.journals.write(&journal)?;
        Ok(Self { binder, journal: Some(journal), touched: 0, due: None, _held: held })
    }

    /// Takes the function at this position of the journal.
    pub(super) fn take(&mut self, position: usize) -> Result<(), Failure> {
        let Some(journal) = &mut self.journal else { return Ok(()) };
        let Some(entry) = journal.functions.get_mut(position) else { return Ok(()) };
        self.touched = position + 1;
        self.due.get_or_insert_with(Due::new);
        let Binder { view, writer } = &self.binder;
        switch::take(&view.sysroot, writer.as_ref(), entry)
            .map_err(|trouble| note_stuck(&self.binder, entry, trouble))
    }

    /// The drop comes soon: what it needs is started meanwhile.
    pub(crate) fn prepare(&self) {
        if self.touched > 0 {
            self.binder.writer.ready();
        }
    }

    /// The functions stay where they are: what `strait bind` is for.
    pub(crate) fn keep(mut self) -> Result<(), Failure> {
        let Some(mut journal) = self.journal.take() else { return Ok(()) };
        journal.settled = true;
        self.binder.journals.write(&journal).map(drop)
    }

    /// As if this process had been killed: nothing is given back, and the kernel lets go of the journal's lock.
    #[cfg(test)]
    pub(super) fn die(mut self) {
        self.journal = None;
    }

    /// The functions that were taken.
    pub(crate) fn taken(&self) -> impl Iterator<Item = &Entry> {
        let entries = self.journal.iter().flat_map(|journal| &journal.functions);
        entries.filter(|entry| entry.is_taken())
    }
}

impl Guard {
    /// What a drop does, under a lock that the caller has, for functions that no guest has had: none of them stays.
    pub(super) fn give_back(mut self, _lock: &Lock) {
        if let Some(mut journal) = self.due() {
            journal.functions.iter_mut().for_each(|entry| entry.stays = false);
            report::warnings(&undo(&self.binder, journal));
        }
    }

    /// What has to be put back. `None` when nothing was written to; then the journal is gone.
    fn due(&mut self) -> Option<Journal> {
        let mut journal = self.journal.take()?;
        journal.functions.truncate(self.touched);
        if !journal.functions.is_empty() {
            return Some(journal);
        }
        if let Err(failure) = self.binder.journals.remove(&journal) {
            report::warnings(&[failure]);
        }
        None
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(journal) = self.due() else { return };
        // Without the lock it is still better to give back than not to.
        let lock = self.binder.lock().map_err(|failure| report::warnings(&[failure])).ok();
        report::warnings(&undo(&self.binder, journal));
        drop(lock);
    }
}

/// Gives everything in a journal back, last first, but for what is to stay on vfio-pci. What could not be given back stays in
/// the journal. The lock must be held.
pub(super) fn undo(binder: &Binder, mut journal: Journal) -> Vec<Failure> {
    let (mut left, mut warnings) = stay::settle(binder, &mut journal);
    let_go_together(binder, &mut journal.functions);
    while let Some(mut entry) = journal.functions.pop() {
        match give_back(binder, &mut entry) {
            Ok(some) => warnings.extend(some),
            Err(failure) => {
                warnings.push(failure);
                left.insert(0, entry);
            }
        }
    }
    binder.writer.rest();
    let kept = if left.is_empty() {
        binder.journals.remove(&journal)
    } else {
        (journal.functions, journal.settled) = (left, false);
        binder.journals.write(&journal).map(drop)
    };
    warnings.extend(kept.err());
    warnings
}

/// The kernel changes the type of a group only while no driver has any of its functions: where that will be asked for, vfio-pci
/// lets go of all of them before the first one goes back. What does not work is told when its turn comes in [`give_back`].
pub(super) fn let_go_together(binder: &Binder, entries: &mut [Entry]) {
    let (sysroot, writer) = (&binder.sysroot, binder.writer.as_ref());
    let in_groups: Vec<Option<u32>> = entries.iter().map(|entry| entry.group).collect();
    for entry in entries.iter_mut().rev() {
        let shares = in_groups.iter().filter(|group| **group == entry.group).count() > 1;
        let open = entry
            .group
            .is_some_and(|group| shares && switch::is_open(sysroot, group).unwrap_or_default());
        if !open || !matches!(still_stuck(binder, entry), Ok(None)) {
            continue;
        }
        match switch::let_go(sysroot, writer, entry) {
            Ok(_) => {}
            Err(trouble) => log::info!("{}", note_stuck(binder, entry, trouble)),
        }
    }
}

/// Gives one function back, and its framebuffer; there may be warnings. A failure is a warning too: the guest is over, and
/// strait goes on.
pub(super) fn give_back(binder: &Binder, entry: &mut Entry) -> Result<Vec<Failure>, Failure> {
    if let Some(failure) = still_stuck(binder, entry)? {
        return Err(failure);
    }
    entry.stuck = None;
    let (bdf, sysroot, writer) = (entry.bdf, &binder.sysroot, binder.writer.as_ref());
    let restored = || {
        let mut warnings = Vec::new();
        warnings.extend(switch::give_back(sysroot, writer, entry)?);
        if let Some(methods) = &entry.methods {
            methods::restore(methods, sysroot, writer, bdf)?;
        }
        if let Some(screen) = &entry.screen {
            warnings.extend(screen::restore(screen, sysroot, writer, bdf)?);
        }
        Ok::<_, Trouble>(warnings)
    };
    let restored = restored();
    restored.map_err(|trouble| {
        let failure = note_stuck(binder, entry, trouble);
        Failure { code: &codes::E1115, ..failure }
    })
}

/// A function that a child of an earlier try still hangs in would only catch one more.
pub(super) fn still_stuck(view: &View, entry: &Entry) -> Result<Option<Failure>, Failure> {
    let Some(child) = entry.stuck else { return Ok(None) };
    if !child.lives(&view.sysroot)? {
        return Ok(None);
    }
    let (bdf, pid) = (entry.bdf, child.pid);
    let cause = format!("{bdf} still waits for its driver, in process {pid}");
    let fix = format!("end what uses the device, or reboot; where it waits: cat /proc/{pid}/stack");
    Ok(Some(Failure::new(&codes::E1115, cause, fix)))
}

fn note_stuck(binder: &Binder, entry: &mut Entry, trouble: Trouble) -> Failure {
    if let Trouble::Stuck { child, .. } = trouble {
        match Process::of(&binder.sysroot, child) {
            Ok(process) => entry.stuck = process,
            Err(error) => log::warn!("process {child}: {error}"),
        }
    }
    trouble.into_failure()
}
