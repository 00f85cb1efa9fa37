//! What was before: one file an owner under /run/strait/journal, whole or not there, written before the first change.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Write as _},
    path::PathBuf,
    time::{Duration, Instant},
};

use serde::{Deserialize, Serialize};
use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        check::Taking,
        pci::{self, HostFunction},
        sysroot::{SysError, Sysroot},
    },
};

use super::{
    methods::Methods,
    owner::{Process, boot_id},
    screen::Screen,
    write::Writer,
};

/// Where the journals are.
const DIRECTORY: &str = "/run/strait/journal";

/// Changing drivers back after a guest takes seconds; a driver that hangs has longer limits than this in `write`, and
/// then strait says so.
const LOCK_LIMIT: Duration = Duration::from_secs(90);

/// Why functions were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    /// For a guest: given back when the owner ends.
    Run,
    /// By `strait bind`: kept until `strait unbind`.
    Bind,
}

/// One owner and what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Journal {
    /// The strait that wrote it.
    pub(crate) process: Process,
    /// The boot it ran in.
    pub(crate) boot: String,
    /// Its command line.
    pub(crate) command: Vec<String>,
    /// Why.
    pub(crate) kind: Kind,
    /// `strait bind` came to its end: the functions stay on vfio-pci although their owner is gone.
    pub(crate) settled: bool,
    /// In the order in which they were taken.
    pub(crate) functions: Vec<Entry>,
}

/// One function of an owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// Its address.
    #[serde(with = "text")]
    pub(crate) bdf: Bdf,
    /// Its IOMMU group.
    pub(crate) group: Option<u32>,
    /// Taken only because it shares a group with another.
    pub(crate) along: bool,
    /// How to put it back; `None`: it was on VFIO before.
    pub(crate) before: Option<Before>,
    /// The host's framebuffer that had to let go of it.
    #[serde(default)]
    pub(crate) screen: Option<Screen>,
    /// How it is reset meanwhile, where that is another way than before.
    #[serde(default)]
    pub(crate) methods: Option<Methods>,
    /// A child that hangs in a write for this function.
    pub(crate) stuck: Option<Process>,
}

/// The state of a function before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Before {
    /// Driver.
    pub(crate) driver: Option<String>,
    /// `driver_override`.
    pub(crate) driver_override: Option<String>,
    /// `power/control`: `auto` or `on`; `None` when there is no such file.
    pub(crate) power_control: Option<String>,
    /// `d3cold_allowed`: `0` or `1`; `None` when there is no such file.
    pub(crate) d3cold_allowed: Option<String>,
    /// Nobody knows what was before: any driver that the kernel finds is right.
    #[serde(default)]
    pub(crate) any_driver: bool,
}

impl Before {
    /// Of a function that nobody noted anything about.
    pub(super) fn unknown() -> Self {
        Self { any_driver: true, ..Self::default() }
    }
}

impl Entry {
    /// Of a function that will be taken.
    pub(crate) fn before(sysroot: &Sysroot, taking: &Taking) -> Result<Self, Failure> {
        let function = &taking.function;
        let attribute = |name: &str| sysroot.read_if_present(&pci::path(function.bdf, name));
        let before = Before {
            driver: function.driver.clone(),
            driver_override: driver_override(sysroot, function.bdf)?,
            power_control: attribute("power/control")?,
            d3cold_allowed: attribute("d3cold_allowed")?,
            any_driver: false,
        };
        // One that is on VFIO only has a framebuffer to lose.
        let before = (!function.is_on_vfio()).then_some(before);
        let screen = taking.framebuffer.as_ref().and_then(Screen::of);
        Ok(Self { along: taking.along, before, screen, ..Self::used(function) })
    }

    /// Of a function that is on VFIO already.
    pub(super) fn used(function: &HostFunction) -> Self {
        let (bdf, group) = (function.bdf, function.group);
        Self { bdf, group, along: false, before: None, screen: None, methods: None, stuck: None }
    }

    /// Is there something to give back?
    pub(crate) fn is_taken(&self) -> bool {
        self.before.is_some() || self.screen.is_some() || self.methods.is_some()
    }
}

impl Journal {
    /// Is the strait that wrote it still there?
    pub(crate) fn owner_lives(&self, sysroot: &Sysroot) -> Result<bool, SysError> {
        Ok(self.boot == boot_id(sysroot)? && self.process.lives(sysroot)?)
    }

    fn name(&self) -> String {
        let kind = match self.kind {
            Kind::Run => "run",
            Kind::Bind => "bind",
        };
        format!("{kind}-{}-{}.json", self.process.pid, self.process.start)
    }
}

/// What `driver_override` holds; a driver that does not let go of the device (E1112) keeps even this from being read.
pub(super) fn driver_override(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<String>, Failure> {
    pci::driver_override(sysroot, bdf).map_err(|error| {
        if !error.is_stuck() {
            return error.into();
        }
        let cause =
            format!("a driver does not let go of {bdf}: even its attributes cannot be read");
        let fix = "see in dmesg what its driver waits for; end what uses the device, or reboot";
        Failure::new(&codes::E1112, cause, fix).source(error)
    })
}

/// The directory of journals.
pub(super) struct Journals<'a> {
    sysroot: &'a Sysroot,
}

/// No other strait changes drivers while this lives.
pub(crate) struct Lock {
    _directory: File,
}

impl<'a> Journals<'a> {
    pub(super) fn new(sysroot: &'a Sysroot) -> Self {
        Self { sysroot }
    }

    fn directory(&self) -> PathBuf {
        self.sysroot.path(DIRECTORY)
    }

    /// Is there a directory of journals at all?
    pub(super) fn exist(&self) -> bool {
        self.sysroot.exists(DIRECTORY)
    }

    /// Waits its turn.
    pub(super) fn lock(&self, writer: &dyn Writer) -> Result<Lock, Failure> {
        let open = || {
            fs::create_dir_all(self.directory())?;
            File::open(self.directory())
        };
        let directory = open().map_err(unwritable)?;
        let end = Instant::now() + LOCK_LIMIT;
        loop {
            match directory.try_lock() {
                Ok(()) => return Ok(Lock { _directory: directory }),
                Err(TryLockError::WouldBlock) if Instant::now() < end => {
                    writer.pause(Duration::from_millis(50));
                }
                Err(TryLockError::WouldBlock) => {
                    let cause = "another strait has been changing drivers for a long time";
                    let fix = format!("see what it waits for: fuser -v {DIRECTORY}");
                    return Err(Failure::new(&codes::E1114, cause, fix));
                }
                Err(TryLockError::Error(error)) => return Err(unwritable(error)),
            }
        }
    }

    /// All that can be read, by file name. One that cannot is told and left alone: nobody knows what it would undo.
    pub(super) fn list(&self) -> Result<Vec<Journal>, Failure> {
        let mut journals = Vec::new();
        for name in self.sysroot.list_if_present(DIRECTORY)? {
            if !name.ends_with(".json") {
                continue;
            }
            let path = format!("{DIRECTORY}/{name}");
            // Its owner may remove it at any moment.
            let Some(text) = self.sysroot.read_if_present(&path)? else { continue };
            match serde_json::from_str(&text) {
                Ok(journal) => journals.push(journal),
                Err(error) => log::warn!("{path} is no journal of this strait: {error}"),
            }
        }
        Ok(journals)
    }

    /// On disk, whole, when this returns; one that has nothing to put back may be lost with the host's power.
    pub(super) fn write(&self, journal: &Journal) -> Result<(), Failure> {
        let write = || -> io::Result<()> {
            let directory = self.directory();
            fs::create_dir_all(&directory)?;
            let temporary = directory.join(format!(".{}.tmp", journal.name()));
            let mut file = File::create(&temporary)?;
            file.write_all(&serde_json::to_vec_pretty(journal)?)?;
            let matters = !journal.functions.is_empty();
            if matters {
                file.sync_all()?;
            }
            fs::rename(&temporary, directory.join(journal.name()))?;
            if matters {
                File::open(&directory)?.sync_all()?;
            }
            Ok(())
        };
        write().map_err(unwritable)
    }

    /// Nothing is left to put back.
    pub(super) fn remove(&self, journal: &Journal) -> Result<(), Failure> {
        match fs::remove_file(self.directory().join(journal.name())) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unwritable(error)),
            _ => Ok(()),
        }
    }
}

fn unwritable(error: io::Error) -> Failure {
    let cause =
        format!("{DIRECTORY} cannot be written, and no driver is changed without a journal");
    let fix = "run strait as root, where /run is writable";
    Failure::new(&codes::E1003, cause, fix).source(error)
}

/// A BDF as its text.
pub(crate) mod text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};
    use strait_resources::bdf::Bdf;

    pub(crate) fn serialize<S: Serializer>(bdf: &Bdf, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(bdf)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bdf, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}
