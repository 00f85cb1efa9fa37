//! Which register of a passed function is whose: a table, built once at attach and never changed.
//!
//! Everything constant is answered from what was read at attach and costs the device nothing. Some registers are
//! ours: the guest's view of them and the host's differ, or a write has to be seen. The rest is volatile, or
//! unknown, and is read and written in the hardware. The host's kernel has a table of its own behind that
//! (vfio_pci_config.c) and lets through what a user may touch.

use crate::{
    pci::{
        caps::{self, Capability, ExtendedCapability, read16, read32},
        function::ConfigAccess,
        regs::{self, af, capability, extended, extended_header, msi, msix, pcie, pm},
    },
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

/// Extended capabilities that the guest must not see, each with the reason.
const HIDDEN_EXTENDED: [(u16, &str); 10] = [
    (extended::SRIOV, "virtual functions are made on the host"),
    (extended::MRIOV, "virtual hierarchies are made on the host"),
    (extended::ARI, "the guest's port does not forward by ARI"),
    (extended::REBAR, "sizes are fixed while the device is passed"),
    (extended::VF_REBAR, "sizes are fixed while the device is passed"),
    (extended::ATS, "translations belong to the host's IOMMU"),
    (extended::PRI, "page requests belong to the host's IOMMU"),
    (extended::PASID, "the guest has no IOMMU"),
    (extended::L1_SUBSTATES, "the link's other end is the host's"),
    (extended::TPH, "steering tags name the host's CPUs"),
];

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

fn header_rules(config: &[u8], shown: &Presentation) -> Vec<Rule> {
    use Action::{Fix, Hardware, Ours, Snapshot};
    let rule = |at, len, action, why| Rule { at, len, action, why };
    let id =
        |at, shown: Option<u16>, why| rule(at, 2, shown.map_or(Snapshot, |id| Fix(id.into())), why);
    let layout = config.get(usize::from(regs::HEADER_TYPE)).copied().unwrap_or(0);
    let multifunction = if shown.multifunction { regs::HEADER_MULTI_FUNCTION } else { 0 };
    let header_type = layout & regs::HEADER_LAYOUT | multifunction;
    let bars = 6 * regs::BAR_SIZE;
    vec![
        id(regs::VENDOR_ID, shown.identity.vendor, "vendor"),
        id(regs::DEVICE_ID, shown.identity.device, "device"),
        rule(regs::COMMAND, 2, Ours(Register::Command), "decoding stays on in the device"),
        rule(regs::STATUS, 2, Hardware, "status"),
        rule(regs::REVISION_ID, 4, Snapshot, "revision and class"),
        rule(regs::CACHE_LINE_SIZE, 2, Hardware, "cache line size, latency timer"),
        rule(regs::HEADER_TYPE, 1, Fix(header_type.into()), "the guest's slot, not the host's"),
        rule(regs::BIST, 1, Hardware, "self test"),
        rule(regs::BAR0, bars, Ours(Register::Bars), "guest addresses"),
        rule(regs::CARDBUS_CIS, 4, Snapshot, "CardBus CIS"),
        id(regs::SUBSYSTEM_VENDOR_ID, shown.identity.subsystem_vendor, "subsystem vendor"),
        id(regs::SUBSYSTEM_ID, shown.identity.subsystem, "subsystem"),
        rule(regs::ROM_BAR, regs::BAR_SIZE, Ours(Register::Bars), "guest address of the ROM"),
        rule(regs::CAPABILITIES_POINTER, 8, Snapshot, "capability pointer, reserved"),
        rule(regs::INTERRUPT_LINE, 1, Ours(Register::InterruptLine), "software's scratch"),
        rule(
            regs::INTERRUPT_PIN,
            1,
            if shown.intx { Snapshot } else { Fix(0) },
            "no pin where it leads nowhere",
        ),
        rule(regs::MIN_GNT, 2, Snapshot, "Min_Gnt, Max_Lat"),
    ]
}

fn capability_rules(config: &[u8], shown: &Presentation, landmarks: &mut Landmarks) -> Vec<Rule> {
    let found = caps::capabilities(config);
    let mut seen = Vec::new();
    let (kept, hidden): (Vec<Capability>, Vec<Capability>) = found.into_iter().partition(|found| {
        let again = seen.contains(&found.id);
        seen.push(found.id);
        match found.id {
            // A capability too short for its registers cannot be answered.
            capability::MSI => shown.msi && !again && found.len >= msi_size(config, *found),
            capability::MSIX => shown.msix && !again && found.len >= msix::SIZE,
            capability::PM | capability::PCIE | capability::ADVANCED_FEATURES => !again,
            capability::ENHANCED_ALLOCATION => false,
            _ => true,
        }
    });
    let mut rules = Vec::new();
    for found in hidden {
        let why = "capability that cannot be served";
        rules.push(Rule { at: found.offset, len: found.len, action: Action::Hide, why });
    }
    // Every link is written anew, so a list that ended in nowhere ends properly.
    let mut link = regs::CAPABILITIES_POINTER;
    for found in &kept {
        let (at, why) = (found.offset, "capability header");
        rules.push(Rule { at, len: 2, action: Action::Snapshot, why });
        rules.push(pointer(link, found.offset));
        link = found.offset + 1;
        rules.extend(body_rules(config, *found, shown, landmarks));
    }
    rules.push(pointer(link, 0));
    rules
}

fn msi_size(config: &[u8], found: Capability) -> u16 {
    read16(config, found.offset + msi::CONTROL).map_or(u16::MAX, msi::size)
}

fn pointer(at: u16, to: u16) -> Rule {
    Rule { at, len: 1, action: Action::Fix(to.into()), why: "next capability" }
}

/// What is behind the two header bytes of a capability that is shown.
fn body_rules(
    config: &[u8],
    found: Capability,
    shown: &Presentation,
    landmarks: &mut Landmarks,
) -> Vec<Rule> {
    use Action::{Fix, Hardware, Ours, Snapshot};
    // Registers that lie behind the end of the capability are not there.
    let rule = |at: u16, len, action, why| {
        (at + len <= found.len).then_some(Rule { at: found.offset + at, len, action, why })
    };
    let landmark = |at: u16, len: u16| (at + len <= found.len).then_some(found.offset + at);
    let byte = |at: u16| config.get(usize::from(found.offset + at)).copied().unwrap_or(0);
    let rules = match found.id {
        capability::PM => {
            landmarks.power = landmarks.power.or(landmark(pm::CONTROL, 2));
            vec![
                rule(pm::CAPABILITIES, 2, Snapshot, "power management capabilities"),
                rule(pm::CONTROL, 2, Ours(Register::Power), "BARs decode in D0 only"),
            ]
        }
        capability::MSI => {
            landmarks.msi = landmarks.msi.or(Some(found.offset));
            let len = found.len.saturating_sub(msi::CONTROL);
            vec![rule(msi::CONTROL, len, Ours(Register::Msi), "VFIO owns the device's MSI")]
        }
        capability::MSIX => {
            landmarks.msix = landmarks.msix.or(Some(found.offset));
            vec![
                rule(msix::CONTROL, 2, Ours(Register::Msix), "VFIO owns the device's MSI-X"),
                rule(msix::TABLE, 8, Snapshot, "MSI-X table and pending bits"),
            ]
        }
        capability::VENDOR => vec![rule(2, 1, Snapshot, "length")],
        capability::ADVANCED_FEATURES => {
            let features = byte(af::CAPABILITIES);
            let has_flr = features & af::CAPABILITIES_FLR != 0;
            let hidden = if shown.reset { 0 } else { af::CAPABILITIES_FLR };
            if has_flr {
                landmarks.advanced = landmarks.advanced.or(landmark(af::CONTROL, 1));
            }
            let control = if has_flr { Ours(Register::AdvancedFeatures) } else { Snapshot };
            vec![
                rule(2, 1, Snapshot, "length"),
                rule(af::CAPABILITIES, 1, Fix((features & !hidden).into()), "FLR if VFIO has it"),
                rule(af::CONTROL, 1, control, "a reset goes through VFIO"),
            ]
        }
        capability::PCIE => return pcie_rules(config, found, shown, landmarks),
        _ => vec![Some(Rule {
            at: found.offset + 2,
            len: found.len.saturating_sub(2),
            action: Hardware,
            why: "unknown, so volatile",
        })],
    };
    rules.into_iter().flatten().collect()
}

fn pcie_rules(
    config: &[u8],
    found: Capability,
    shown: &Presentation,
    landmarks: &mut Landmarks,
) -> Vec<Rule> {
    use Action::{Fix, Hardware, Ours, Snapshot};
    let at = |register| found.offset + register;
    let capabilities = read32(config, at(pcie::DEVICE_CAPABILITIES)).unwrap_or(0);
    let has_flr = capabilities & pcie::DEVICE_CAPABILITIES_FLR != 0;
    if has_flr && found.len >= pcie::DEVICE_CONTROL + 2 {
        landmarks.device_control = landmarks.device_control.or(Some(at(pcie::DEVICE_CONTROL)));
    }
    // The kernel acts on the bit itself, so it is kept from it even where the guest is not shown the feature.
    let control = if has_flr { Ours(Register::DeviceControl) } else { Hardware };
    let hidden = if shown.reset { 0 } else { pcie::DEVICE_CAPABILITIES_FLR };
    let flags = read16(config, at(pcie::CAPABILITIES)).unwrap_or(0);
    let kind = (flags & pcie::CAPABILITIES_TYPE) >> pcie::CAPABILITIES_TYPE_SHIFT;
    let integrated = kind == pcie::TYPE_RC_ENDPOINT;
    let shown_flags =
        flags & !pcie::CAPABILITIES_TYPE | pcie::TYPE_ENDPOINT << pcie::CAPABILITIES_TYPE_SHIFT;

    let mut rules = vec![
        (pcie::CAPABILITIES, 2, Snapshot, "PCI Express capabilities"),
        (pcie::DEVICE_CAPABILITIES, 4, Fix(capabilities & !hidden), "FLR if VFIO has it"),
        (pcie::DEVICE_CONTROL, 2, control, "a reset goes through VFIO"),
        (pcie::DEVICE_STATUS, 2, Hardware, "device status"),
        (pcie::LINK_CAPABILITIES, 4, Snapshot, "link capabilities"),
        (pcie::LINK_CONTROL, 4, Hardware, "link control and status"),
        // Slot and root registers: an endpoint has none.
        (pcie::SLOT_CAPABILITIES, 16, Snapshot, "slot and root registers"),
        (pcie::DEVICE_CAPABILITIES_2, 4, Snapshot, "device capabilities 2"),
        (pcie::DEVICE_CONTROL_2, 4, Hardware, "device control and status 2"),
        (pcie::LINK_CAPABILITIES_2, 4, Snapshot, "link capabilities 2"),
        (pcie::LINK_CONTROL_2, 4, Hardware, "link control and status 2"),
        (pcie::SLOT_CAPABILITIES_2, 8, Snapshot, "slot registers 2"),
    ];
    if integrated {
        // Behind a root port there are no integrated endpoints; software expects a link.
        let why = "behind a root port";
        rules.push((pcie::CAPABILITIES, 2, Fix(shown_flags.into()), why));
        if read32(config, at(pcie::LINK_CAPABILITIES)).unwrap_or(0) == 0 {
            let link = 1 << pcie::LINK_CAPABILITIES_WIDTH_SHIFT | 1;
            rules.push((pcie::LINK_CAPABILITIES, 4, Fix(link), why));
            let status = 1 << pcie::LINK_STATUS_WIDTH_SHIFT | 1;
            rules.push((pcie::LINK_CONTROL, 4, Fix(status << 16), why));
        }
    }
    rules
        .into_iter()
        .filter(|&(register, len, ..)| register + len <= found.len)
        .map(|(register, len, action, why)| Rule { at: at(register), len, action, why })
        .collect()
}

fn extended_rules(config: &[u8]) -> Vec<Rule> {
    use Action::{Fix, Hide, Snapshot};
    let found = caps::extended_capabilities(config);
    let hidden = |found: &ExtendedCapability| {
        HIDDEN_EXTENDED.iter().find(|&&(id, _)| id == found.id).map(|&(_, why)| why)
    };
    let mut rules = Vec::new();
    for found in &found {
        let (at, len) = (found.offset, found.len);
        match hidden(found) {
            Some(why) => rules.push(Rule { at, len, action: Hide, why }),
            None if found.id == extended::SERIAL_NUMBER => {
                rules.push(Rule { at, len: len.min(12), action: Snapshot, why: "serial number" });
            }
            None => {}
        }
    }
    // The list starts at 0x100 whatever is there: a hidden head becomes a null capability that leads on, an
    // empty list a dword of zeros (PCIe 7.6.1).
    let mut headers: Vec<(u16, u16, u8)> = vec![(regs::EXTENDED_START, extended::NULL, 1)];
    for found in found.iter().filter(|found| hidden(found).is_none()) {
        if found.offset == regs::EXTENDED_START {
            headers.clear();
        }
        headers.push((found.offset, found.id, found.version));
    }
    let nexts = headers.iter().skip(1).map(|&(offset, ..)| offset).chain([0]);
    for (&(at, id, version), next) in headers.iter().zip(nexts) {
        let empty = id == extended::NULL && next == 0;
        let header = if empty { 0 } else { extended_header::new(id, version, next) };
        rules.push(Rule { at, len: 4, action: Fix(header), why: "extended capability header" });
    }
    rules
}

#[cfg(test)]
mod tests;
