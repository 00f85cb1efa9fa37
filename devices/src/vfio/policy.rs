//! Which register of a passed function is whose: a table, built once at attach and never changed.
//!
//! Everything constant is answered from what was read at attach and costs the device nothing. Some registers are
//! ours: the guest's view of them and the host's differ, or a write has to be seen. What reports errors, tunes the link
//! or outlives the guest is read in the hardware and never written there. The rest is volatile, or a driver's, and is
//! read and written in the hardware. The host's kernel has a table of its own behind that (vfio_pci_config.c) and lets
//! through what a user may touch, but also every byte that it knows nothing of.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod conventional;
mod extended;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzz;

use std::collections::BTreeMap;

use self::{
    conventional::{capability_rules, header_rules},
    extended::extended_rules,
};
use crate::{
    pci::{function::ConfigAccess, regs},
    vfio::attach::Identity,
};

/// Registers that we answer or have to see written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Register {
    /// Command: decode and INTx bits are the guest's own view, the rest reaches the device.
    Command,
    /// The BARs and the ROM BAR.
    Bars,
    /// Interrupt line, software's scratch.
    InterruptLine,
    /// The whole MSI capability after its header.
    Msi,
    /// MSI-X message control.
    Msix,
    /// Power management control and status: reaches the device, but moves the BARs.
    Power,
    /// PCIe device control: some bits reach the device, a reset goes through VFIO.
    DeviceControl,
    /// PCIe device control 2: some bits reach the device.
    DeviceControl2,
    /// Vital product data, address and data: reads are carried out, writes vanish.
    Vpd,
    /// Advanced features control, which is only a reset bit.
    AdvancedFeatures,
}

/// What becomes of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// The device's value of the time of attach; writes vanish.
    Snapshot,
    /// This value instead, little-endian in at most four bytes; writes vanish.
    Fix(u32),
    /// Zeros; writes vanish.
    Hide,
    /// The device's value of the time of attach, of which the guest changes the bits of this mask in a copy of its own.
    /// Little-endian in four bytes, and again for each further four.
    Shadow(u32),
    /// See [`Register`].
    Ours(Register),
    /// Read in the device; writes vanish.
    ReadOnly,
    /// Read and written in the device.
    Hardware,
}

/// One line of the table. A later line outranks an earlier one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rule {
    /// First byte.
    pub at: u16,
    /// Bytes.
    pub len: u16,
    /// What becomes of an access.
    pub action: Action,
    /// Which register, and why this action where that is not plain.
    pub why: &'static str,
}

/// Who answers a run of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// [`Policy::constant`].
    Constant,
    /// The guest's copy: [`Policy::constant`] at first, and [`Policy::writable`] bits of it change.
    Shadow,
    /// The function's own state.
    Ours(Register),
    /// The device, for reads; nobody, for writes.
    ReadOnly,
    /// The device.
    Hardware,
}

/// Part of an access that has one source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// Who answers.
    pub source: Source,
    /// First byte.
    pub offset: u16,
    /// Bytes, 1..=4.
    pub len: u8,
}

/// What the monitor decides about a function, apart from what the device says.
#[derive(Clone, Copy, Debug, Default)]
pub struct Presentation {
    /// IDs to show instead of the device's.
    pub identity: Identity,
    /// Other functions share the guest slot.
    pub multifunction: bool,
    /// The INTx pin leads somewhere.
    pub intx: bool,
    /// VFIO can deliver MSI.
    pub msi: bool,
    /// VFIO can deliver MSI-X, and the table is where it can be emulated.
    pub msix: bool,
    /// VFIO can reset the function.
    pub reset: bool,
    /// Writes from 0x100 on that hit no capability reach the device, and those to vendors' own capabilities.
    pub raw_config: bool,
    /// The host's path to memory completes AtomicOps, so the function may issue them.
    pub atomics: bool,
}

/// Where the registers are that are [`Source::Ours`] and move with the device. All are offsets into
/// configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Landmarks {
    /// The MSI capability.
    pub msi: Option<u16>,
    /// The MSI-X capability.
    pub msix: Option<u16>,
    /// PM control and status.
    pub power: Option<u16>,
    /// PCIe device control.
    pub device_control: Option<u16>,
    /// PCIe device control 2.
    pub device_control_2: Option<u16>,
    /// PCIe device control has the bit that resets.
    pub flr: bool,
    /// The VPD capability.
    pub vpd: Option<u16>,
    /// AF control, if the function has FLR there.
    pub advanced: Option<u16>,
}

/// The table.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    sources: Vec<Source>,
    constants: Vec<u8>,
    /// Of [`Source::Shadow`] bytes.
    writable: BTreeMap<u16, u8>,
    landmarks: Landmarks,
}

impl Policy {
    /// The table for a function whose configuration space VFIO shows as `config` (64 bytes at least) and the host's
    /// kernel as `host`, which may be short or empty where strait may not read it.
    pub fn new(config: &[u8], host: &[u8], shown: &Presentation) -> Self {
        let mut landmarks = Landmarks::default();
        let mut rules = header_rules(config, shown);
        rules.extend(capability_rules(config, host, shown, &mut landmarks));
        rules.extend(extended_rules(config, host, shown));
        let mut policy = Self {
            sources: vec![Source::Hardware; regs::CONFIG_SIZE.into()],
            constants: config.iter().copied().take(regs::CONFIG_SIZE.into()).collect(),
            writable: BTreeMap::new(),
            rules,
            landmarks,
        };
        // Space that the device lacks reads as absent.
        policy.constants.resize(regs::CONFIG_SIZE.into(), 0xff);
        if let Some(beyond) = policy.sources.get_mut(config.len()..) {
            beyond.fill(Source::Constant);
        }
        let end = config.len().min(regs::CONFIG_SIZE.into());
        for rule in policy.rules.clone() {
            policy.apply(rule, end);
        }
        policy
    }

    /// The lines, for people and tests.
    pub fn rules(&self) -> &[Rule] {
        &self.rules
    }

    /// Where our registers are.
    pub fn landmarks(&self) -> Landmarks {
        self.landmarks
    }

    /// The bits of a [`Source::Shadow`] byte that the guest may change.
    pub fn writable(&self, offset: u16) -> u8 {
        self.writable.get(&offset).copied().unwrap_or(0)
    }

    /// The byte of a [`Source::Constant`] register, the first one of a [`Source::Shadow`].
    pub fn constant(&self, offset: u16) -> u8 {
        self.constants.get(usize::from(offset)).copied().unwrap_or(0xff)
    }

    /// An access, cut where the source changes.
    pub fn runs(&self, at: ConfigAccess) -> impl Iterator<Item = Run> + use<> {
        let mut runs: Vec<Run> = Vec::with_capacity(4);
        for offset in at.offsets() {
            let source = self.sources.get(usize::from(offset)).copied().unwrap_or(Source::Constant);
            match runs.last_mut() {
                Some(run) if run.source == source => run.len = run.len.saturating_add(1),
                _ => runs.push(Run { source, offset, len: 1 }),
            }
        }
        runs.into_iter()
    }

    fn apply(&mut self, rule: Rule, end: usize) {
        let first = usize::from(rule.at).min(end);
        let last = usize::from(rule.at).saturating_add(rule.len.into()).min(end);
        let (source, fixed) = match rule.action {
            Action::Snapshot => (Source::Constant, None),
            Action::Fix(value) => (Source::Constant, Some(value)),
            Action::Hide => (Source::Constant, Some(0)),
            Action::Shadow(_) => (Source::Shadow, None),
            Action::Ours(register) => (Source::Ours(register), None),
            Action::ReadOnly => (Source::ReadOnly, None),
            Action::Hardware => (Source::Hardware, None),
        };
        if let Some(sources) = self.sources.get_mut(first..last) {
            sources.fill(source);
        }
        if let Some(value) = fixed {
            let bytes = value.to_le_bytes().into_iter().chain(std::iter::repeat(0));
            let constants = self.constants.get_mut(first..last).unwrap_or_default();
            for (byte, value) in constants.iter_mut().zip(bytes) {
                *byte = value;
            }
        }
        if let Action::Shadow(mask) = rule.action {
            let masks = mask.to_le_bytes().into_iter().cycle();
            self.writable.extend((rule.at..).zip(masks).take(usize::from(rule.len)));
        }
    }
}

/// Registers of a capability that is in the device and not in the list that VFIO shows.
fn unlisted(at: u16, len: u16) -> Rule {
    Rule { at, len, action: Action::Hide, why: "VFIO takes it out of the list" }
}

#[cfg(test)]
mod tests;
