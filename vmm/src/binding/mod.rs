//! Taking functions from the host's drivers for vfio-pci, and giving them back.
//!
//! Order is everything here. What stands against it is found first (`host::check::bindable`). Then a journal with
//! the state before goes to disk; then one function after the other is switched with `driver_override`, which
//! touches no other device of the same kind, as `new_id` would. A [`Guard`] puts things back when it is dropped;
//! what a killed strait left is put back from its journal by the next one. A lock keeps two straits from changing
//! drivers at the same time, and the lock that an owner has on its journal keeps others from undoing what it has.
//!
//! A [`View`] only looks, at this host or at one laid out in a directory; a [`Binder`] changes this host and no other.
//!
//! - `for_run`: when a run takes what; `guard`: the way back; `heir`: the same after a panic.
//! - `journals`: the files under /run/strait/journal, whose text is `strait_resources::journal`.
//! - `write`: one write to sysfs, in a child process, because a driver's unbind can hang for ever; `inherited`: what that
//!   child must not have.
//! - `switch`: the steps for one function; `methods`: how it is reset meanwhile; `screen`: those for the host's framebuffer on it; `stay`: what no driver of the host gets back; `recover`: those of others; `rule`: the same at every boot.

mod for_run;
mod guard;
mod heir;
mod inherited;
mod journals;
mod methods;
mod recover;
mod rule;
mod screen;
mod stay;
mod switch;
mod write;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Deref,
    rc::Rc,
};

use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        check::{self, Allowed, Bindable},
        memory,
        pci::{self, HostFunction},
        sysroot::Sysroot,
    },
    journal::{Entry, Journal, Kind, Methods, boot_id},
};

pub(crate) use for_run::{Found, look, registered, unreset};
pub(crate) use guard::Guard;
pub(crate) use heir::{give_back, leave};
pub(crate) use recover::Undone;
pub(crate) use rule::rule_file;
pub(crate) use switch::commands;
pub(crate) use write::write_attributes;

use self::{
    journals::{Journals, Lock},
    write::{ChildWriter, Writer},
};
use crate::files::Trust;

/// What can be known of drivers and owners on a host, without a change to it.
#[derive(Clone)]
pub(crate) struct View {
    sysroot: Sysroot,
    journals: Journals,
}

/// What changes drivers on this host.
#[derive(Clone)]
pub(crate) struct Binder {
    view: View,
    writer: Rc<dyn Writer>,
}

impl Deref for Binder {
    type Target = View;

    fn deref(&self) -> &View {
        &self.view
    }
}

/// What is wanted of functions beside their being taken.
#[derive(Debug, Default)]
pub(crate) struct Wishes {
    /// By function, what `reset_method` must hold meanwhile.
    methods: BTreeMap<Bdf, String>,
    /// Those that stay on vfio-pci when the owner ends.
    stays: BTreeSet<Bdf>,
}

/// A journal, and whether its owner is there.
pub(crate) struct Owner {
    pub(crate) journal: Journal,
    pub(crate) lives: bool,
}

impl View {
    /// Of this host or of one laid out in a directory.
    pub(crate) fn at(sysroot: Sysroot) -> Self {
        let journals = Journals::new(sysroot.clone(), Trust::of(&sysroot));
        Self { sysroot, journals }
    }

    /// Only root may change drivers.
    pub(crate) fn is_root(&self) -> Result<bool, Failure> {
        Ok(memory::effective_uid(&self.sysroot)? == Some(0))
    }

    /// Refuses (E1003) who may not change drivers; `what` wanted to.
    pub(crate) fn need_root(&self, what: &str) -> Result<(), Failure> {
        if self.is_root()? {
            return Ok(());
        }
        let cause = format!("{what} changes drivers of the host, and strait does not run as root");
        Err(Failure::new(&codes::E1003, cause, "run it with sudo"))
    }

    /// What has to be taken for `functions`, which are all the user's and may be changed; refuses what another strait
    /// has (E1114), and everything that [`check::bindable`] refuses.
    pub(crate) fn plan(
        &self,
        functions: &[HostFunction],
        allowed: &Allowed,
    ) -> Result<Bindable, Failure> {
        self.refuse_owned(functions)?;
        check::bindable(&self.sysroot, functions, allowed)
    }

    /// Functions of live guests, and of groups that live guests use, are not ours. One that a child of an earlier
    /// strait still hangs in would only catch this one too.
    fn refuse_owned(&self, functions: &[HostFunction]) -> Result<(), Failure> {
        for found in self.journals.list()?.found {
            let journal = &found.journal;
            for entry in &journal.functions {
                let wanted = functions.iter().any(|function| function.bdf == entry.bdf);
                if let Some(failure) = guard::still_stuck(self, entry)?.filter(|_| wanted) {
                    return Err(Failure { code: &codes::E1112, ..failure });
                }
            }
            if journal.kind != Kind::Run || !found.lives {
                continue;
            }
            for entry in &journal.functions {
                let same_group = |function: &&HostFunction| {
                    function.bdf == entry.bdf
                        || function.group.is_some() && function.group == entry.group
                };
                // One that a guest merely uses is on VFIO, and VFIO itself says that it is busy.
                let contested = |function: &&HostFunction| {
                    same_group(function) && (entry.before.is_some() || !function.is_on_vfio())
                };
                if let Some(function) = functions.iter().find(contested) {
                    return Err(self.belongs(function.bdf, entry.bdf, journal)?);
                }
            }
        }
        Ok(())
    }

    fn belongs(&self, wanted: Bdf, has: Bdf, journal: &Journal) -> Result<Failure, Failure> {
        let pid = journal.process.pid;
        // In another PID namespace the number means another process here.
        let (owner, fix) = match journal.is_of_this_pid_namespace(&self.sysroot)? {
            true => (format!("pid {pid}"), format!("end that guest first: kill {pid}")),
            false => (
                format!("pid {pid} of another PID namespace, a container's"),
                "end that guest first, in the container that it runs in".to_owned(),
            ),
        };
        let cause = if wanted == has {
            format!("{wanted} belongs to a running strait ({owner})")
        } else {
            format!("{wanted} is in one IOMMU group with {has} of a running strait ({owner})")
        };
        Ok(Failure::new(&codes::E1114, cause, fix).detail(journal.command.join(" ")))
    }

    /// Every journal there is; the second list is of files that are none (E1126).
    pub(crate) fn owners(&self) -> Result<(Vec<Owner>, Vec<Failure>), Failure> {
        let listing = self.journals.list()?;
        let owner = |found: journals::Found| Owner { lives: found.lives, journal: found.journal };
        Ok((listing.found.into_iter().map(owner).collect(), listing.others))
    }

    /// The host that is looked at.
    pub(crate) fn sysroot(&self) -> &Sysroot {
        &self.sysroot
    }
}

impl Binder {
    /// Of the host that this process runs on: there is no other that could be changed.
    pub(crate) fn host() -> Self {
        Self { view: View::at(Sysroot::host()), writer: Rc::new(ChildWriter::new()) }
    }

    /// Keeps other straits from changing drivers until dropped.
    pub(crate) fn lock(&self) -> Result<Lock, Failure> {
        self.journals.lock(self.writer.as_ref())
    }

    /// Takes what was planned; not all of it when strait is told to end meanwhile, which the caller has to look at. `others`
    /// are on VFIO already and are only noted as in use. The lock is held until every
    /// function is switched. When one fails, those before it are given back.
    pub(crate) fn take(
        &self,
        lock: &Lock,
        kind: Kind,
        planned: &Bindable,
        others: &[HostFunction],
        wishes: &Wishes,
    ) -> Result<Guard, Failure> {
        switch::load_driver(&self.sysroot, self.writer.as_ref())?;
        let mut entries = Vec::new();
        for taking in &planned.take {
            entries.push(Entry::before(&self.sysroot, taking)?);
        }
        entries.extend(others.iter().map(Entry::used));
        for entry in &mut entries {
            entry.stays = entry.before.is_some() && wishes.stays.contains(&entry.bdf);
            let Some(wanted) = wishes.methods.get(&entry.bdf) else { continue };
            let before =
                pci::find(&self.sysroot, entry.bdf)?.map(|function| function.reset_methods);
            let methods = Methods::new(wanted, &before.unwrap_or_default());
            entry.methods = Some(methods.map_err(|error| {
                let cause = format!("{} is not reset by '{wanted}'", entry.bdf);
                Failure::new(&codes::E1404, cause, "leave reset= out").source(error)
            })?);
        }
        let count = entries.len();
        let journal = Journal::new(&self.sysroot, kind, entries)?;
        let mut guard = Guard::new(self.clone(), journal)?;
        for position in 0..count {
            // What is taken so far goes back with the guard.
            if self.writer.is_to_end() {
                break;
            }
            if let Err(failure) = guard.take(position) {
                guard.give_back(lock);
                return Err(failure);
            }
        }
        self.writer.rest();
        Ok(guard)
    }

    /// Notes for `strait ps` that a run uses these functions; nothing is changed.
    pub(crate) fn register(&self, functions: &[HostFunction]) -> Result<Guard, Failure> {
        let entries = functions.iter().map(Entry::used).collect();
        let journal = Journal::new(&self.sysroot, Kind::Run, entries)?;
        Guard::new(self.clone(), journal)
    }
}
