//! Putting back what others left: a strait that was killed, and `strait bind`.

use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        check,
        pci::{self, HostFunction},
    },
    journal::{Before, Entry, Journal, Kind},
};

use super::{
    Binder, View, boot_id,
    guard::{give_back, let_go_together, undo},
    journals::{Found, Lock},
    stay,
};

/// What was put back.
#[derive(Debug, Default)]
pub(crate) struct Undone {
    /// A line for each owner or function.
    pub(crate) lines: Vec<String>,
    /// What did not work.
    pub(crate) warnings: Vec<Failure>,
}

impl Binder {
    /// Undoes the journals of straits that are dead. Nothing happens on a host where none ever ran.
    pub(crate) fn recover(&self) -> Result<Undone, Failure> {
        if !self.journals.exist()? {
            return Ok(Undone::default());
        }
        let lock = self.lock()?;
        self.recover_locked(&lock)
    }

    /// The same under a lock that the caller has.
    pub(crate) fn recover_locked(&self, _lock: &Lock) -> Result<Undone, Failure> {
        let mut undone = Undone::default();
        let listing = self.journals.list()?;
        undone.warnings.extend(listing.others);
        for found in listing.found {
            let journal = found.journal.clone();
            // The kernel has forgotten everything since.
            if journal.boot != boot_id(&self.sysroot)? {
                self.journals.remove(&journal)?;
                continue;
            }
            let kept = journal.kind == Kind::Bind && journal.settled;
            if kept || found.lives {
                continue;
            }
            let pid = journal.process.pid;
            let staying = stay::staying(&self.sysroot, &journal)?;
            let (kept, taken): (Vec<&Entry>, Vec<&Entry>) = journal
                .functions
                .iter()
                .filter(|entry| entry.is_taken())
                .partition(|entry| staying.contains(&entry.bdf));
            let (kept, taken) = (names(kept), names(taken));
            let warnings = undo(self, journal);
            let back = warnings.iter().all(Undone::is_back);
            if !taken.is_empty() && back {
                undone
                    .lines
                    .push(format!("strait {pid} ended without giving {taken} back: done now"));
            }
            if !kept.is_empty() && back {
                undone
                    .lines
                    .push(format!("strait {pid} ended: after=vfio leaves {kept} on vfio-pci"));
            }
            undone.warnings.extend(warnings);
        }
        Ok(undone)
    }

    /// Gives functions back to the host: by the journal of the `strait bind` that took them, else to the driver that
    /// the kernel finds. Refuses those of a running guest (E1114), or of another monitor's (E1107), before it touches any.
    pub(crate) fn unbind(
        &self,
        lock: &Lock,
        functions: &[HostFunction],
    ) -> Result<Undone, Failure> {
        let mut undone = self.recover_locked(lock)?;
        self.refuse_owned(functions)?;
        check::unused(&self.sysroot, functions)?;
        let mut wanted: Vec<Bdf> = functions.iter().map(|function| function.bdf).collect();
        for found in self.journals.list()?.found {
            let journal = &found.journal;
            if journal.kind != Kind::Bind || !journal.settled {
                continue;
            }
            let (mut gone, stays) = split(journal.functions.clone(), &wanted);
            if gone.is_empty() {
                continue;
            }
            wanted.retain(|bdf| gone.iter().all(|entry| entry.bdf != *bdf));
            for entry in &mut gone {
                // It was on VFIO already, and only its framebuffer let go: leaving VFIO is what is asked for now.
                let before = entry.before.get_or_insert_with(Before::unknown);
                let driver = match before.any_driver {
                    true => "any driver that wants it",
                    false => before.driver.as_deref().unwrap_or("no driver"),
                };
                undone.lines.push(format!("{} goes back to {driver}", entry.bdf));
            }
            undone.warnings.extend(self.undo_some(journal, gone, stays)?);
        }
        for bdf in wanted {
            undone.extend(self.unbind_unknown(bdf)?);
        }
        Ok(undone)
    }

    /// Gives `gone` back one at a time, last first, so that the file says at every moment what is still away.
    fn undo_some(
        &self,
        journal: &Journal,
        mut gone: Vec<Entry>,
        mut stays: Vec<Entry>,
    ) -> Result<Vec<Failure>, Failure> {
        let mut warnings = Vec::new();
        let_go_together(self, &mut gone);
        while let Some(mut entry) = gone.pop() {
            match give_back(self, &mut entry) {
                Ok(some) => warnings.extend(some),
                Err(failure) => {
                    warnings.push(failure);
                    stays.push(entry);
                }
            }
            let mut now = journal.clone();
            now.functions = stays.iter().chain(&gone).cloned().collect();
            match now.functions.is_empty() {
                true => self.journals.remove(&now)?,
                false => drop(self.journals.write(&now)?),
            }
        }
        Ok(warnings)
    }

    /// One that nobody noted anything about: a boot rule or a person gave it to vfio-pci.
    fn unbind_unknown(&self, bdf: Bdf) -> Result<Undone, Failure> {
        let Some(function) = pci::find(&self.sysroot, bdf)? else { return Ok(Undone::default()) };
        if !function.is_on_vfio() {
            let driver = function.driver.as_deref().unwrap_or("no driver");
            let lines = vec![format!("{bdf} is on {driver}: nothing to do")];
            return Ok(Undone { lines, warnings: Vec::new() });
        }
        self.rebind(&function)
    }

    fn rebind(&self, function: &HostFunction) -> Result<Undone, Failure> {
        let bdf = function.bdf;
        let entry = Entry { before: Some(Before::unknown()), ..Entry::used(function) };
        // The journal is for a strait that dies half-way.
        let journal = Journal::new(&self.sysroot, Kind::Run, vec![entry])?;
        let held = self.journals.write(&journal)?;
        let warnings = undo(self, journal);
        drop(held);
        let driver = super::switch::driver(&self.sysroot, bdf)?;
        let driver = driver.as_deref().unwrap_or("no driver: none of the host wants it");
        Ok(Undone { lines: vec![format!("{bdf} goes back to {driver}")], warnings })
    }
}

impl View {
    /// What [`Binder::unbind`] would give back that a `strait bind` of this boot took.
    pub(crate) fn noted(&self, functions: &[HostFunction]) -> Result<Vec<Entry>, Failure> {
        let wanted: Vec<Bdf> = functions.iter().map(|function| function.bdf).collect();
        let mut noted = Vec::new();
        for Found { journal, .. } in self.journals.list()?.found {
            let bound = journal.kind == Kind::Bind && journal.settled;
            if bound && journal.boot == boot_id(&self.sysroot)? {
                noted.extend(split(journal.functions, &wanted).0);
            }
        }
        Ok(noted)
    }
}

impl Undone {
    /// Is the function of this warning with the host again? Its framebuffer or its IOMMU group may not be as before.
    pub(crate) fn is_back(warning: &Failure) -> bool {
        [&codes::E1117, &codes::E1128].contains(&warning.code)
    }

    fn extend(&mut self, other: Self) {
        self.lines.extend(other.lines);
        self.warnings.extend(other.warnings);
    }
}

/// Those that go back, and those that stay. One that was only taken along goes with the last of its group that was
/// asked for.
fn split(entries: Vec<Entry>, wanted: &[Bdf]) -> (Vec<Entry>, Vec<Entry>) {
    let (mut gone, mut stays): (Vec<_>, Vec<_>) =
        entries.into_iter().partition(|entry| wanted.contains(&entry.bdf));
    let needed: Vec<Option<u32>> =
        stays.iter().filter(|entry| !entry.along).map(|entry| entry.group).collect();
    let groups: Vec<Option<u32>> = gone.iter().map(|entry| entry.group).collect();
    let (follow, rest): (Vec<_>, Vec<_>) = stays.drain(..).partition(|entry| {
        entry.along && groups.contains(&entry.group) && !needed.contains(&entry.group)
    });
    gone.extend(follow);
    (gone, rest)
}

fn names(entries: Vec<&Entry>) -> String {
    entries.into_iter().map(|entry| entry.bdf.to_string()).collect::<Vec<_>>().join(", ")
}
