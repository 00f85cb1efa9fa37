//! Which register of a passed function is whose: a table, built once at attach and never changed.
//!
//! Everything constant is answered from what was read at attach and costs the device nothing. Some registers are
//! ours: the guest's view of them and the host's differ, or a write has to be seen. The rest is volatile, or
//! unknown, and is read and written in the hardware. The host's kernel has a table of its own behind that
//! (vfio_pci_config.c) and lets through what a user may touch.

mod conventional;
mod extended;

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
    /// PCIe device control: reaches the device, but for the reset bit.
    DeviceControl,
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
    /// See [`Register`].
    Ours(Register),
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
    /// The function's own state.
    Ours(Register),
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
    /// PCIe device control, if the function has FLR.
    pub device_control: Option<u16>,
    /// AF control, if the function has FLR there.
    pub advanced: Option<u16>,
}

/// The table.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
    sources: Vec<Source>,
    constants: Vec<u8>,
    landmarks: Landmarks,
}

impl Policy {
    /// The table for a function whose configuration space reads as `config` (64 bytes at least).
    pub fn new(config: &[u8], shown: &Presentation) -> Self {
        let mut landmarks = Landmarks::default();
        let mut rules = header_rules(config, shown);
        rules.extend(capability_rules(config, shown, &mut landmarks));
        rules.extend(extended_rules(config));
        let mut policy = Self {
            sources: vec![Source::Hardware; regs::CONFIG_SIZE.into()],
            constants: config.iter().copied().take(regs::CONFIG_SIZE.into()).collect(),
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

    /// The byte of a [`Source::Constant`] register.
    pub fn constant(&self, offset: u16) -> u8 {
        self.constants.get(usize::from(offset)).copied().unwrap_or(0xff)
    }

    /// An access, cut where the source changes.
    pub fn runs(&self, at: ConfigAccess) -> impl Iterator<Item = Run> + use<> {
        let end = at.offset() + u16::from(at.len());
        let mut runs: Vec<Run> = Vec::with_capacity(4);
        for offset in at.offset()..end {
            let source = self.sources.get(usize::from(offset)).copied().unwrap_or(Source::Constant);
            match runs.last_mut() {
                Some(run) if run.source == source => run.len += 1,
                _ => runs.push(Run { source, offset, len: 1 }),
            }
        }
        runs.into_iter()
    }

    fn apply(&mut self, rule: Rule, end: usize) {
        let first = usize::from(rule.at).min(end);
        let last = (usize::from(rule.at) + usize::from(rule.len)).min(end);
        let (source, fixed) = match rule.action {
            Action::Snapshot => (Source::Constant, None),
            Action::Fix(value) => (Source::Constant, Some(value)),
            Action::Hide => (Source::Constant, Some(0)),
            Action::Ours(register) => (Source::Ours(register), None),
            Action::Hardware => (Source::Hardware, None),
        };
        self.sources[first..last].fill(source);
        if let Some(value) = fixed {
            let bytes = value.to_le_bytes().into_iter().chain(std::iter::repeat(0));
            for (byte, value) in self.constants[first..last].iter_mut().zip(bytes) {
                *byte = value;
            }
        }
    }
}

#[cfg(test)]
mod tests;
