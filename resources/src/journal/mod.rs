//! The journal of an owner of devices: what was before, so that it can be put back, even by another strait.
//!
//! A journal is carried out by root. So each of its fields has a type that only holds what such a field means, fields that
//! nobody knows are refused, and [`Attribute`] is every file that can come out of one: whatever bytes a journal is, what
//! is written for it goes to these files and no others.
//!
//! - `words`: names and choices; `attribute`: the files; `screen`: the host's framebuffer; `owner`: whose it is.
//!
//! This is the text and its meaning alone; what reads and writes the files is in the monitor.

mod attribute;
mod owner;
mod screen;
mod words;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::{
    attribute::Attribute,
    owner::{Process, boot_id, pid_namespace},
    screen::{Platform, Screen},
    words::{BootId, D3cold, PowerControl, ResetList, ResetMethod, Word, WordError},
};
use crate::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        check::Taking,
        pci::{self, HostFunction},
        sysroot::{SysError, Sysroot},
    },
};

/// The first words of every journal: which kind of text this is, and which version of it.
const SCHEMA: &str = "strait.journal/2";

/// Bytes. One function takes some hundred, and a machine has some hundred functions at most.
pub const MAX_SIZE: usize = 1 << 20;

/// The driver that hands functions to guests.
pub const VFIO: &str = "vfio-pci";

/// One write to a file of sysfs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Which file.
    pub to: Attribute,
    /// What is written.
    pub value: String,
}

impl Write {
    /// `value` to `to`.
    pub fn new(to: Attribute, value: impl Into<String>) -> Self {
        Self { to, value: value.into() }
    }
}

/// Why functions were taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// For a guest: given back when the owner ends.
    Run,
    /// By `strait bind`: kept until `strait unbind`.
    Bind,
}

/// One owner and what it has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Journal {
    /// Of this text.
    schema: Schema,
    /// The strait that wrote it. For people: whether it is still there, a lock on the file says.
    pub process: Process,
    /// The PID namespace in which it has that process ID, by inode.
    pub pid_namespace: Option<u64>,
    /// The boot it ran in.
    pub boot: BootId,
    /// Its command line.
    pub command: Vec<String>,
    /// Why.
    pub kind: Kind,
    /// `strait bind` came to its end: the functions stay on vfio-pci although their owner is gone.
    pub settled: bool,
    /// In the order in which they were taken.
    pub functions: Vec<Entry>,
}

/// The one that is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
enum Schema {
    #[serde(rename = "strait.journal/2")]
    Second,
}

/// One function of an owner.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Entry {
    /// Its address.
    #[serde(with = "text")]
    pub bdf: Bdf,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// Taken only because it shares a group with another.
    pub along: bool,
    /// How to put it back; `None`: it was on VFIO before.
    pub before: Option<Before>,
    /// The host's framebuffer that had to let go of it.
    pub screen: Option<Screen>,
    /// How it is reset meanwhile, where that is another way than before.
    pub methods: Option<Methods>,
    /// After the guest it stays on vfio-pci, and is given back like what `strait bind` took. Written only when it is so: an
    /// older strait does not know the word, leaves such a journal alone, and with it the function on vfio-pci.
    #[serde(default, skip_serializing_if = "is_no")]
    pub stays: bool,
    /// A child that hangs in a write for this function.
    pub stuck: Option<Process>,
}

/// The state of a function before.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Before {
    /// Driver.
    pub driver: Option<Word>,
    /// `driver_override`.
    pub driver_override: Option<Word>,
    /// `power/control`; `None` when there is no such file.
    pub power_control: Option<PowerControl>,
    /// `d3cold_allowed`; `None` when there is no such file.
    pub d3cold_allowed: Option<D3cold>,
    /// Nobody knows what was before: any driver that the kernel finds is right.
    pub any_driver: bool,
}

/// A list of resets and the one that was there before.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Methods {
    /// Empty: no reset.
    pub wanted: ResetList,
    /// `None`: a list with a word that nobody knows; the kernel makes a new one.
    pub before: Option<ResetList>,
}

/// Why bytes are no journal that can be carried out.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// Of an older strait, or of a newer one.
    #[error("it is a '{}', and this strait knows '{SCHEMA}'", .0.escape_debug())]
    Version(String),
    /// Something else, or broken.
    #[error("it is not what strait writes")]
    Malformed(#[source] serde_json::Error),
    /// Longer than any.
    #[error("it is longer than {MAX_SIZE} bytes")]
    TooLong,
}

impl Journal {
    /// Of an owner that has these functions.
    pub fn new(sysroot: &Sysroot, kind: Kind, functions: Vec<Entry>) -> Result<Self, Failure> {
        Ok(Self {
            schema: Schema::Second,
            process: Process::current(sysroot)?,
            pid_namespace: pid_namespace(sysroot)?,
            boot: boot_id(sysroot)?,
            command: std::env::args().collect(),
            kind,
            settled: false,
            functions,
        })
    }

    /// Understands what [`Journal::bytes`] made.
    ///
    /// # Errors
    /// [`JournalError::Version`] when it is that of another strait, which may mean something else by it.
    pub fn parse(bytes: &[u8]) -> Result<Self, JournalError> {
        if bytes.len() > MAX_SIZE {
            return Err(JournalError::TooLong);
        }
        let malformed = JournalError::Malformed;
        let fields: Map<String, Value> = serde_json::from_slice(bytes).map_err(malformed)?;
        // The first version did not say so.
        let schema = fields.get("schema").map_or(Some("strait.journal/1"), Value::as_str);
        if let Some(other) = schema.filter(|schema| *schema != SCHEMA) {
            return Err(JournalError::Version(other.chars().take(80).collect()));
        }
        serde_json::from_slice(bytes).map_err(JournalError::Malformed)
    }

    /// Its text.
    pub fn bytes(&self) -> Result<Vec<u8>, serde_json::Error> {
        serde_json::to_vec_pretty(self)
    }

    /// The name of its file.
    pub fn file_name(&self) -> String {
        let kind = match self.kind {
            Kind::Run => "run",
            Kind::Bind => "bind",
        };
        format!("{kind}-{}-{}.json", self.process.pid, self.process.start)
    }

    /// Does `pid` of its process mean the same process here?
    pub fn is_of_this_pid_namespace(&self, sysroot: &Sysroot) -> Result<bool, SysError> {
        Ok(self.pid_namespace == pid_namespace(sysroot)?)
    }
}

impl Entry {
    /// Of a function that will be taken.
    pub fn before(sysroot: &Sysroot, taking: &Taking) -> Result<Self, Failure> {
        let function = &taking.function;
        let bdf = function.bdf;
        let attribute = |name: &str| sysroot.read_if_present(&pci::path(bdf, name));
        let word = |name: &str, text: Option<String>| {
            text.map(|text| Word::new(&text)).transpose().map_err(|error| odd(bdf, name, error))
        };
        // One that is on VFIO only has a framebuffer to lose.
        let before = match function.is_on_vfio() {
            true => None,
            false => Some(Before {
                driver: word("driver", function.driver.clone())?,
                driver_override: word("driver_override", driver_override(sysroot, bdf)?)?,
                power_control: attribute("power/control")?
                    .map(|text| PowerControl::new(&text))
                    .transpose()
                    .map_err(|error| odd(bdf, "power/control", error))?,
                d3cold_allowed: attribute("d3cold_allowed")?
                    .map(|text| D3cold::new(&text))
                    .transpose()
                    .map_err(|error| odd(bdf, "d3cold_allowed", error))?,
                any_driver: false,
            }),
        };
        let screen = taking.framebuffer.as_ref().map(Screen::of).transpose();
        let screen = screen.map_err(|error| odd(bdf, "framebuffer", error))?.flatten();
        Ok(Self { along: taking.along, before, screen, ..Self::used(function) })
    }

    /// Of a function that is on VFIO already.
    pub fn used(function: &HostFunction) -> Self {
        let (bdf, group) = (function.bdf, function.group);
        let (before, screen, methods, stuck) = (None, None, None, None);
        Self { bdf, group, along: false, before, screen, methods, stays: false, stuck }
    }

    /// Is there something to give back?
    pub fn is_taken(&self) -> bool {
        self.before.is_some() || self.screen.is_some() || self.methods.is_some()
    }

    /// What keeps a function that goes back to a driver of the host inside of what that driver maps, whatever a guest has left
    /// in it: the type of its group becomes DMA. Where it is identity, which `iommu=pt` asks for, a device reaches all of
    /// the host's memory as soon as it masters the bus. `None` for one that goes back to no driver.
    ///
    /// Nothing sets it back: only a power cycle makes a device forget its guest, and the type is the kernel's default again
    /// after a boot.
    pub fn confinement(&self) -> Option<Write> {
        let before = self.before.as_ref()?;
        let group = self.group.filter(|_| before.driver.is_some() || before.any_driver)?;
        Some(Write::new(Attribute::GroupType(group), "DMA"))
    }

    /// Every write that giving it back can come to, whatever state its function is in.
    pub fn way_back(&self) -> Vec<Write> {
        let (bdf, address) = (self.bdf, self.bdf.to_string());
        let mut writes = Vec::new();
        if let Some(before) = &self.before {
            writes.push(Write::new(Attribute::Unbind(bdf), &address));
            writes.push(before.override_again(bdf));
            writes.extend(self.confinement());
            writes.push(Write::new(Attribute::Probe, &address));
            writes.extend(before.bind(bdf));
            writes.extend(before.power(bdf));
        }
        writes.extend(self.methods.iter().flat_map(|methods| methods.back(bdf)));
        if let Some(screen) = &self.screen {
            writes.push(screen.bind());
            writes.extend(screen.switch("1"));
        }
        writes
    }
}

/// What libFuzzer calls with whatever it makes up: bytes are a journal that root carries out.
///
/// # Panics
/// When something would be written outside of the files that [`Attribute`] names, or more than one line.
pub fn fuzz(bytes: &[u8]) {
    let Ok(journal) = Journal::parse(bytes) else { return };
    for Write { to, value } in journal.functions.iter().flat_map(Entry::way_back) {
        let path = to.to_string();
        assert_eq!(path.parse().as_ref(), Ok(&to), "{path}");
        assert!(!path.split('/').any(|part| part == ".." || part == "."), "{path}");
        assert!(value == "\n" || !value.chars().any(char::is_control), "{value:?} to {path}");
    }
    let again = journal.bytes().expect("a journal that was read can be written");
    assert_eq!(Journal::parse(&again).expect("what strait writes it reads"), journal);
}

/// What `driver_override` holds; a driver that does not let go of the device (E1112) keeps even this from being read.
pub fn driver_override(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<String>, Failure> {
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

/// What cannot be journalled cannot be put back, so it is not taken.
fn odd(bdf: Bdf, what: &str, error: WordError) -> Failure {
    let cause = format!("the {what} of {bdf} could not be put back later");
    let fix = "give the function to vfio-pci by hand, with driver_override and drivers_probe";
    Failure::new(&codes::E1105, cause, fix).source(error)
}

impl Before {
    /// Of a function that nobody noted anything about.
    pub fn unknown() -> Self {
        Self { any_driver: true, ..Self::default() }
    }

    /// Sets `driver_override` as it was; an empty line ends one.
    pub fn override_again(&self, bdf: Bdf) -> Write {
        let value = self.driver_override.as_deref().unwrap_or("\n");
        Write::new(Attribute::DriverOverride(bdf), value)
    }

    /// Gives the function to its driver by name, where the kernel does not find it by itself.
    pub fn bind(&self, bdf: Bdf) -> Option<Write> {
        let driver = self.driver.clone()?;
        Some(Write::new(Attribute::Bind(driver), bdf.to_string()))
    }

    /// Sets both switches of its power management as they were.
    pub fn power(&self, bdf: Bdf) -> Vec<Write> {
        let cold = self.d3cold_allowed.map(|it| (Attribute::D3coldAllowed(bdf), it.word()));
        let control = self.power_control.map(|it| (Attribute::PowerControl(bdf), it.word()));
        cold.into_iter().chain(control).map(|(to, value)| Write::new(to, value)).collect()
    }
}

impl Methods {
    /// Refuses a list of which strait does not know every word.
    pub fn new(wanted: &str, before: &[String]) -> Result<Self, WordError> {
        Ok(Self { wanted: ResetList::new(wanted)?, before: ResetList::new(&before.join(" ")).ok() })
    }

    /// Sets the list that the guest wants.
    pub fn set(&self, bdf: Bdf) -> Write {
        Write::new(Attribute::ResetMethod(bdf), self.wanted.value())
    }

    /// What is tried to set the list as it was, until the kernel takes one.
    pub fn back(&self, bdf: Bdf) -> Vec<Write> {
        let anew = || "default".to_owned();
        let before = self.before.iter().map(ResetList::value);
        let lists = before.chain([anew()]);
        lists.map(|list| Write::new(Attribute::ResetMethod(bdf), list)).collect()
    }
}

/// What serde asks of a switch that is left out when it is off.
fn is_no(switch: &bool) -> bool {
    !*switch
}

/// A BDF as its text.
pub mod text {
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    use crate::bdf::Bdf;

    /// Writes it.
    pub fn serialize<S: Serializer>(bdf: &Bdf, to: S) -> Result<S::Ok, S::Error> {
        to.collect_str(bdf)
    }

    /// Reads it.
    pub fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Bdf, D::Error> {
        String::deserialize(from)?.parse().map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests;
