//! The files of the journals: one an owner under /run/strait/journal, whole or not there, written before the first change.
//!
//! An owner keeps its file open and locked as long as it lives, and the kernel ends the lock with the process, however that
//! ends. So another strait may undo exactly the journals that it can lock. A process ID would not do: in another PID
//! namespace that shares /run it means another process, or none.

use std::{
    cell::OnceCell,
    fs::{File, TryLockError},
    io::{self, Read as _},
    rc::Rc,
    time::{Duration, Instant},
};

use strait_resources::{
    codes,
    failure::Failure,
    host::sysroot::Sysroot,
    journal::{Journal, MAX_SIZE, boot_id},
};

use super::write::Writer;
use crate::files::{Directory, Manner, PRIVATE_DIRECTORY, PRIVATE_FILE, RUN, Trust, unusable};

const JOURNALS: &str = "journal";
const LOCK: &str = "lock";

/// Longer than one driver that hangs is waited for (`write`): whoever waits for the lock then hears why. Root alone can have it.
const LOCK_LIMIT: Duration = Duration::from_secs(45);

/// The directory of journals of one host.
#[derive(Clone, Debug)]
pub(super) struct Journals {
    sysroot: Sysroot,
    trust: Trust,
    /// Opened once.
    directories: Rc<OnceCell<Directories>>,
}

#[derive(Debug)]
struct Directories {
    run: Directory,
    journals: Directory,
}

/// No other strait changes drivers while this lives.
pub(crate) struct Lock {
    _locked: Locked,
}

/// A file that this process has locked. It is unlocked and not only closed: a child of another thread that has not come to its
/// exec yet has a copy of every descriptor.
#[derive(Debug)]
struct Locked(File);

impl Drop for Locked {
    fn drop(&mut self) {
        if let Err(error) = self.0.unlock() {
            log::debug!("unlocking a file: {error}");
        }
    }
}

/// A journal of this process's own. As long as this lives, every other strait sees that its owner does.
#[derive(Debug)]
pub(crate) struct Held {
    _locked: Locked,
}

/// What is in the directory.
#[derive(Debug, Default)]
pub(super) struct Listing {
    /// By file name.
    pub(super) found: Vec<Found>,
    /// Files that are no journals of this strait's (E1126).
    pub(super) others: Vec<Failure>,
}

/// A journal that was read.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) journal: Journal,
    /// Its owner is there.
    pub(super) lives: bool,
    /// Of a dead owner's: while this is open no other strait sees it as a dead one's to undo.
    _file: File,
}

impl Journals {
    pub(super) fn new(sysroot: Sysroot, trust: Trust) -> Self {
        Self { sysroot, trust, directories: Rc::default() }
    }

    /// `None` when there are none and none shall be made.
    fn open(&self, create: bool) -> Result<Option<&Directories>, Failure> {
        if let Some(opened) = self.directories.get() {
            return Ok(Some(opened));
        }
        let Some(run) = Directory::run(&self.sysroot, self.trust, create)? else { return Ok(None) };
        let mode = create.then_some(PRIVATE_DIRECTORY);
        let Some(journals) = run.sub(JOURNALS, mode)? else { return Ok(None) };
        Ok(Some(self.directories.get_or_init(|| Directories { run, journals })))
    }

    fn made(&self) -> Result<&Directories, Failure> {
        self.open(true)?.ok_or_else(|| unusable(RUN, io::ErrorKind::NotFound))
    }

    /// Is there a directory of journals at all?
    pub(super) fn exist(&self) -> Result<bool, Failure> {
        Ok(self.open(false)?.is_some())
    }

    /// Waits its turn.
    pub(super) fn lock(&self, writer: &dyn Writer) -> Result<Lock, Failure> {
        let directory = &self.made()?.run;
        let file = directory.lock_file(LOCK)?;
        let end = Instant::now() + LOCK_LIMIT;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Lock { _locked: Locked(file) }),
                Err(TryLockError::WouldBlock) if Instant::now() < end => {
                    writer.pause(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    let cause = "another strait has been changing drivers for a long time";
                    let fix = format!("see what it waits for: fuser -v {}", directory.at(LOCK));
                    return Err(Failure::new(&codes::E1114, cause, fix));
                }
                Err(TryLockError::Error(error)) => {
                    return Err(unusable(&directory.at(LOCK), error));
                }
            }
        }
    }

    /// All that can be read, by file name. Refuses (E1125) one that others could have written.
    pub(super) fn list(&self) -> Result<Listing, Failure> {
        let mut listing = Listing::default();
        let Some(Directories { journals, .. }) = self.open(false)? else { return Ok(listing) };
        for name in journals.names()? {
            if !name.ends_with(".json") {
                continue;
            }
            let Some(read) = self.read(journals, &name)? else { continue };
            match read {
                Ok(found) => listing.found.push(found),
                Err(other) => listing.others.push(other),
            }
        }
        Ok(listing)
    }

    /// `None` when its owner removed it meanwhile; the inner error is a file that is no journal of this strait's.
    fn read(
        &self,
        journals: &Directory,
        name: &str,
    ) -> Result<Option<Result<Found, Failure>>, Failure> {
        /// How often a file may be replaced under its name while it is read.
        const TRIES: usize = 10;
        let path = journals.at(name);
        for _ in 0..TRIES {
            let Some(file) = journals.file(name)? else { return Ok(None) };
            let mut bytes = Vec::new();
            let limit = MAX_SIZE as u64 + 1;
            (&file).take(limit).read_to_end(&mut bytes).map_err(|error| unusable(&path, error))?;
            let journal = match Journal::parse(&bytes) {
                Ok(journal) if journal.file_name() == name => journal,
                Ok(journal) => {
                    let cause = format!(
                        "{path} is left alone: it is a copy of the journal {}",
                        journal.file_name()
                    );
                    return Ok(Some(Err(other(&path, cause))));
                }
                Err(error) => {
                    let cause = format!("{path} is left alone: {error}");
                    return Ok(Some(Err(other(&path, cause).source(error))));
                }
            };
            let lives = self.has_an_owner(&journal, &file, &path)?;
            // The lock of the file that has the name now is the one that counts.
            if journals.is_at(&file, name) {
                return Ok(Some(Ok(Found { journal, lives, _file: file })));
            }
        }
        Ok(None)
    }

    /// A shared lock is enough to see that nobody has the owner's: those who only look do not look like owners to each other.
    fn has_an_owner(&self, journal: &Journal, file: &File, path: &str) -> Result<bool, Failure> {
        if journal.boot != boot_id(&self.sysroot)? {
            return Ok(false);
        }
        match self.trust {
            Trust::Owner => match file.try_lock_shared() {
                Ok(()) => Ok(false),
                Err(TryLockError::WouldBlock) => Ok(true),
                Err(TryLockError::Error(error)) => Err(unusable(path, error)),
            },
            // There are no locks in a copy of a host.
            Trust::Anybody => Ok(journal.process.lives(&self.sysroot)?),
        }
    }

    /// On disk, whole, when this returns; one that has nothing to put back may be lost with the host's power.
    pub(super) fn write(&self, journal: &Journal) -> Result<Held, Failure> {
        let directory = &self.made()?.journals;
        let durable = !journal.functions.is_empty();
        let manner = Manner { mode: PRIVATE_FILE, durable, locked: true };
        let write = || directory.put(&journal.file_name(), &journal.bytes()?, manner);
        let file = write().map_err(|error| {
            let cause = format!(
                "{} cannot be written, and no driver is changed without a journal",
                directory.path()
            );
            let fix = "run strait as root, where /run is writable";
            Failure::new(&codes::E1003, cause, fix).source(error)
        })?;
        Ok(Held { _locked: Locked(file) })
    }

    /// Nothing is left to put back.
    pub(super) fn remove(&self, journal: &Journal) -> Result<(), Failure> {
        match self.open(false)? {
            Some(Directories { journals, .. }) => journals.remove(&journal.file_name()),
            None => Ok(()),
        }
    }
}

fn other(path: &str, cause: String) -> Failure {
    let fix = format!("see which devices it names (cat {path}), strait unbind them, rm {path}");
    Failure::new(&codes::E1126, cause, fix)
}
