//! Taking functions from the host's drivers for vfio-pci, and giving them back.
//!
//! Order is everything here. What stands against it is found first (`host::check::bindable`). Then a journal with
//! the state before goes to disk; then one function after the other is switched with `driver_override`, which
//! touches no other device of the same kind, as `new_id` would. A [`Guard`] puts things back when it is dropped;
//! what a killed strait left is put back from its journal by the next one. A lock keeps two straits from changing
//! drivers at the same time, and the owner's process ID and start time keep one from undoing what a live one has.
//!
//! - `for_run`: when a run takes what; `guard`: the way back.
//! - `journal`: the files under /run/strait/journal; `owner`: is the one who wrote it alive?
//! - `write`: one write to sysfs, in a child process, because a driver's unbind can hang for ever.
//! - `switch`: the steps for one function; `methods`: how it is reset meanwhile; `screen`: those for the host's framebuffer on it; `recover`: those of others; `rule`: the same at every boot.

mod for_run;
mod guard;
mod journal;
mod methods;
mod owner;
mod recover;
mod rule;
mod screen;
mod switch;
mod write;

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;

use std::{collections::BTreeMap, env, net::IpAddr, rc::Rc};

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
};

pub(crate) use for_run::{Owned, owned, registered};
pub(crate) use guard::Guard;
pub(crate) use journal::{Entry, Journal, Kind, text as bdf_text};
pub(crate) use owner::Process;
pub(crate) use rule::{persist, rule_file};
pub(crate) use switch::commands;
pub(crate) use write::write_attributes;

use self::{
    journal::{Journals, Lock},
    methods::Methods,
    write::{ChildWriter, Writer},
};

/// What changes drivers on a host.
#[derive(Clone)]
pub(crate) struct Binder {
    sysroot: Sysroot,
    writer: Rc<dyn Writer>,
}

impl Binder {
    /// On this host.
    pub(crate) fn host() -> Self {
        Self::at(Sysroot::host())
    }

    /// On another host to look at: what is written goes to this one all the same.
    pub(crate) fn at(sysroot: Sysroot) -> Self {
        Self { sysroot, writer: Rc::new(ChildWriter::new()) }
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

    /// Keeps other straits from changing drivers until dropped.
    pub(crate) fn lock(&self) -> Result<Lock, Failure> {
        Journals::new(&self.sysroot).lock(self.writer.as_ref())
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
        for journal in Journals::new(&self.sysroot).list()? {
            for entry in &journal.functions {
                let wanted = functions.iter().any(|function| function.bdf == entry.bdf);
                if let Some(failure) = guard::still_stuck(self, entry)?.filter(|_| wanted) {
                    return Err(Failure { code: &codes::E1112, ..failure });
                }
            }
            if journal.kind != Kind::Run || !journal.owner_lives(&self.sysroot)? {
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
                    return Err(belongs(function.bdf, entry.bdf, &journal));
                }
            }
        }
        Ok(())
    }

    /// Takes what was planned. `others` are on VFIO already and are only noted as in use. `methods` are those by which some
    /// are to be reset meanwhile. The lock is held until every
    /// function is switched. When one fails, those before it are given back.
    pub(crate) fn take(
        &self,
        lock: &Lock,
        kind: Kind,
        planned: &Bindable,
        others: &[HostFunction],
        methods: &BTreeMap<Bdf, String>,
    ) -> Result<Guard, Failure> {
        switch::load_driver(&self.sysroot, self.writer.as_ref())?;
        let mut entries = Vec::new();
        for taking in &planned.take {
            entries.push(Entry::before(&self.sysroot, taking)?);
        }
        entries.extend(others.iter().map(Entry::used));
        for entry in &mut entries {
            let Some(wanted) = methods.get(&entry.bdf) else { continue };
            let before =
                pci::find(&self.sysroot, entry.bdf)?.map(|function| function.reset_methods);
            entry.methods = Some(Methods::new(wanted.clone(), &before.unwrap_or_default()));
        }
        let count = entries.len();
        let mut guard = Guard::new(self.clone(), self.journal(kind, entries)?)?;
        for position in 0..count {
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
        Guard::new(self.clone(), self.journal(Kind::Run, entries)?)
    }

    /// Every journal there is.
    pub(crate) fn journals(&self) -> Result<Vec<Journal>, Failure> {
        Journals::new(&self.sysroot).list()
    }

    /// The host that is changed.
    pub(crate) fn sysroot(&self) -> &Sysroot {
        &self.sysroot
    }

    fn journal(&self, kind: Kind, functions: Vec<Entry>) -> Result<Journal, Failure> {
        Ok(Journal {
            process: Process::current(&self.sysroot)?,
            boot: owner::boot_id(&self.sysroot)?,
            command: env::args().collect(),
            kind,
            settled: false,
            functions,
        })
    }
}

fn belongs(wanted: Bdf, has: Bdf, journal: &Journal) -> Failure {
    let pid = journal.process.pid;
    let cause = if wanted == has {
        format!("{wanted} belongs to a running strait (pid {pid})")
    } else {
        format!("{wanted} is in one IOMMU group with {has} of a running strait (pid {pid})")
    };
    Failure::new(&codes::E1114, cause, format!("end that guest first: kill {pid}"))
        .detail(journal.command.join(" "))
}

/// Whom the user of this process must not lose: the far end of the SSH session it was started from.
pub(crate) fn session_peers() -> Vec<IpAddr> {
    let connection = env::var("SSH_CONNECTION").unwrap_or_default();
    connection.split(' ').next().and_then(|peer| peer.parse().ok()).into_iter().collect()
}
