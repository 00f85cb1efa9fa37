//! Configuration spaces that a device could have, and what no guest may write in any of them. The list of what is denied
//! is made from the raw space, by the specification and not by the table's own rules.

#![allow(clippy::arithmetic_side_effects, reason = "an overflow here ends a fuzzer, not a guest")]

use super::{Policy, Presentation, Source};
use crate::{
    pci::{
        caps::{self, Capability, ExtendedCapability, read16, read32},
        function::ConfigAccess,
        regs::{self, capability, extended, extended_header, msi, msix, pcie, vpd},
    },
    vfio::attach::Identity,
};

/// Bytes of an input for one capability: identifier, place, and four of its body.
const RECORD: usize = 8;
/// Capabilities that the table has rules for, so that few inputs are wasted on others.
const CONVENTIONAL: [u8; 16] = [
    capability::PM,
    capability::VPD,
    capability::MSI,
    capability::MSIX,
    capability::PCIE,
    capability::VENDOR,
    capability::ADVANCED_FEATURES,
    capability::ENHANCED_ALLOCATION,
    capability::DEBUG_PORT,
    capability::SSVID,
    capability::SATA,
    capability::PCIX,
    capability::HYPERTRANSPORT,
    capability::AGP,
    capability::HOT_PLUG,
    0x7f,
];
/// Extended capabilities that are closed to a guest, and the fewest bytes that each has (PCIe 7.8, 7.9).
const CLOSED: [(u16, u16); 22] = [
    (extended::SRIOV, 0x40),
    (extended::MRIOV, 0x08),
    (extended::ARI, 0x08),
    (extended::REBAR, 0x0c),
    (extended::VF_REBAR, 0x0c),
    (extended::ATS, 0x08),
    (extended::PRI, 0x10),
    (extended::PASID, 0x08),
    (extended::TPH, 0x0c),
    (extended::L1_SUBSTATES, 0x10),
    (extended::SECONDARY_PCIE, 0x0c),
    (extended::DATA_LINK, 0x0c),
    (extended::PHYSICAL_16, 0x20),
    (extended::PHYSICAL_32, 0x20),
    (extended::PHYSICAL_64, 0x10),
    (extended::LANE_MARGINING, 0x08),
    (extended::ALTERNATE_PROTOCOL, 0x0c),
    (extended::IDE, 0x0c),
    (extended::DOE, 0x18),
    (extended::PTM, 0x0c),
    (extended::DPC, 0x0c),
    (extended::NPEM, 0x10),
];
/// Those of which a guest reads what it may, and writes nothing, or to a copy.
const READ_ONLY: [(u16, u16); 8] = [
    (extended::AER, 0x2c),
    (extended::VC, 0x10),
    (extended::VC9, 0x10),
    (extended::MFVC, 0x10),
    (extended::ACS, 0x08),
    (extended::LTR, 0x08),
    (extended::DPA, 0x10),
    (extended::SERIAL_NUMBER, 0x0c),
];
/// Those of which a guest may write some.
const OPEN: [u16; 3] = [extended::VENDOR, extended::DVSEC, extended::POWER_BUDGETING];

/// What a function is, as VFIO and as the host's kernel have it.
struct Space {
    shown: View,
    host: View,
}

/// A configuration space and what is in it.
struct View {
    config: Vec<u8>,
    capabilities: Vec<Capability>,
    extended: Vec<ExtendedCapability>,
}

impl View {
    fn new(config: Vec<u8>) -> Self {
        let capabilities = caps::capabilities(&config);
        let extended = caps::extended_capabilities(&config);
        Self { config, capabilities, extended }
    }

    /// Where its capabilities below 0x100 begin.
    fn starts(&self) -> Vec<u16> {
        self.capabilities.iter().map(|found| found.offset).collect()
    }
}

impl Space {
    fn new(shown: Vec<u8>, host: Vec<u8>) -> Self {
        Self { shown: View::new(shown), host: View::new(host) }
    }
}

/// What libFuzzer calls with whatever it makes up: bytes are a function's configuration space.
///
/// # Panics
/// When the table gives a register to hardware that no guest may write.
pub fn fuzz(bytes: &[u8]) {
    let Some((&flags, rest)) = bytes.split_first() else { return };
    let space = if flags & 1 != 0 { raw(rest) } else { made(rest) };
    let has = |bit: u8| flags & bit != 0;
    let shown = Presentation {
        identity: Identity { vendor: has(2).then_some(0x1234), ..Identity::default() },
        multifunction: has(2),
        intx: !has(4),
        msi: !has(8),
        msix: !has(16),
        reset: !has(32),
        raw_config: has(64),
        atomics: has(128),
    };
    let policy = Policy::new(&space.shown.config, &space.host.config, &shown);
    let dwords = (0..regs::CONFIG_SIZE).step_by(4);
    let accesses = dwords.filter_map(|offset| ConfigAccess::new(offset, 4));
    let runs = accesses.flat_map(|at| policy.runs(at));
    for run in runs.filter(|run| run.source == Source::Hardware) {
        for offset in (run.offset..).take(run.len.into()) {
            if let Some(why) = denied(&space, offset, shown.raw_config) {
                panic!("{offset:#x} goes to hardware: {why}");
            }
        }
    }
}

/// Why no guest may write the byte, if that is so.
fn denied(space: &Space, offset: u16, raw_config: bool) -> Option<&'static str> {
    if usize::from(offset) >= space.shown.config.len() {
        return Some("VFIO shows no such byte");
    }
    if offset >= regs::EXTENDED_START {
        return beyond(space, offset, raw_config);
    }
    match offset {
        regs::COMMAND | 0x05 => Some("Command"),
        regs::BIST => Some("self test"),
        regs::BAR0..regs::CARDBUS_CIS => Some("BARs"),
        regs::ROM_BAR..regs::CAPABILITIES_POINTER => Some("ROM BAR"),
        regs::INTERRUPT_LINE => Some("interrupt line"),
        regs::HEADER_SIZE.. => conventional(space, offset).or_else(|| hidden(space, offset)),
        _ => None,
    }
}

/// Registers of the capabilities that VFIO shows. They may end where the host's kernel sees another.
fn conventional(space: &Space, offset: u16) -> Option<&'static str> {
    let View { config, capabilities, .. } = &space.shown;
    let starts = space.host.starts();
    let (found, at) = capabilities.iter().find_map(|found| {
        let at = offset.checked_sub(found.offset)?;
        (at < caps::cut(found.offset, found.len, &starts)).then_some((found, at))
    })?;
    match (found.id, at) {
        (_, 0 | 1) => Some("header of a capability"),
        (capability::MSI, _) if at < msi::size(control(config, found.offset)) => Some("MSI"),
        (capability::MSIX, ..msix::SIZE) => Some("MSI-X"),
        (capability::PCIE, ..pcie::SIZE) => Some("PCI Express"),
        (capability::VPD, ..vpd::SIZE) => Some("vital product data"),
        (capability::PM, 2..=5) => Some("power management"),
        _ => None,
    }
}

fn control(config: &[u8], capability: u16) -> u16 {
    read16(config, capability + msi::CONTROL).unwrap_or(0)
}

/// Registers of capabilities that only the host's kernel sees. They may end where VFIO shows another.
fn hidden(space: &Space, offset: u16) -> Option<&'static str> {
    let shown = &space.shown.capabilities;
    let starts = space.shown.starts();
    let is_inside = |found: &Capability| {
        let at = offset.checked_sub(found.offset);
        at.is_some_and(|at| at < caps::cut(found.offset, found.len, &starts))
    };
    let is_hidden = |found: &&Capability| {
        !shown.iter().any(|other| (other.id, other.offset) == (found.id, found.offset))
    };
    let there = &space.host.capabilities;
    there.iter().filter(is_hidden).any(is_inside).then_some("VFIO takes it out of the list")
}

/// From 0x100 on.
fn beyond(space: &Space, offset: u16, raw_config: bool) -> Option<&'static str> {
    let both = || space.shown.extended.iter().chain(&space.host.extended);
    let starts: Vec<u16> = both().map(|found| found.offset).collect();
    let mut open = raw_config;
    for found in both() {
        let Some(at) = offset.checked_sub(found.offset) else { continue };
        let is_inside = |len| at < caps::cut(found.offset, len, &starts);
        let one_of =
            |list: &[(u16, u16)]| list.iter().any(|&(id, len)| id == found.id && is_inside(len));
        if at < 4 && found.id != extended::NULL {
            return Some("header of an extended capability");
        } else if one_of(&CLOSED) {
            return Some("a closed capability");
        } else if one_of(&READ_ONLY) {
            return Some("a capability that is read only");
        }
        open |= (found.id, at) == (extended::POWER_BUDGETING, 4);
    }
    (!open).then_some("of no capability that a guest may write")
}

/// Any bytes as the device has them, and some of them changed for VFIO.
fn raw(bytes: &[u8]) -> Space {
    let mut host = bytes.to_vec();
    host.resize(regs::CONFIG_SIZE.into(), 0);
    host[usize::from(regs::STATUS)] |= regs::STATUS_CAPABILITIES as u8;
    let mut shown = host.clone();
    for change in bytes.chunks_exact(RECORD).skip(32) {
        let at = usize::from(u16::from_le_bytes([change[0], change[1]]) & 0xfff);
        shown[at] = change[2];
    }
    Space::new(shown, host)
}

/// Capabilities where the input says, some of them out of the lists that VFIO shows.
fn made(bytes: &[u8]) -> Space {
    let mut host = vec![0; regs::CONFIG_SIZE.into()];
    host[usize::from(regs::STATUS)] = regs::STATUS_CAPABILITIES as u8;
    host[usize::from(regs::INTERRUPT_PIN)] = 1;
    let mut shown = host.clone();
    let mut links = [Links::new(), Links::new()];
    for record in bytes.chunks_exact(RECORD).take(64) {
        let (choice, place) = (record[1], u16::from_le_bytes([record[2], record[3]]));
        let hides = record[0] & 1 != 0;
        if record[0] & 2 != 0 {
            let id = CONVENTIONAL[usize::from(choice) % CONVENTIONAL.len()];
            let at = usize::from(0x40 + (place & !3) % 0xc0);
            for config in [&mut host, &mut shown] {
                config[at..at + 4].copy_from_slice(&[id, 0, record[4], record[5]]);
            }
            links[0].conventional(&mut host, at);
            if !hides {
                links[1].conventional(&mut shown, at);
            }
        } else {
            let at = if record[0] & 4 != 0 { 0x100 } else { 0x100 + (place & !3) % 0xf00 };
            let id = extended_id(choice);
            let body = &record[4..8];
            for config in [&mut host, &mut shown] {
                let header = extended_header::new(id, 1, 0).to_le_bytes();
                config[usize::from(at)..][..4].copy_from_slice(&header);
                if let Some(to) = config.get_mut(usize::from(at) + 4..usize::from(at) + 8) {
                    to.copy_from_slice(body);
                }
            }
            links[0].extended(&mut host, at);
            if !hides {
                links[1].extended(&mut shown, at);
            }
        }
    }
    Space::new(shown, host)
}

fn extended_id(choice: u8) -> u16 {
    let known = CLOSED.iter().chain(&READ_ONLY).map(|&(id, _)| id).chain(OPEN);
    known.cycle().nth(choice.into()).unwrap_or(extended::NULL)
}

/// Where the two lists of one view end so far.
struct Links {
    conventional: usize,
    extended: u16,
}

impl Links {
    fn new() -> Self {
        Self { conventional: regs::CAPABILITIES_POINTER.into(), extended: regs::EXTENDED_START }
    }

    /// The capability at `at` is the next one.
    fn conventional(&mut self, config: &mut [u8], at: usize) {
        config[self.conventional] = at as u8;
        self.conventional = at + 1;
    }

    /// Likewise; the first one is where the list begins, whatever is there.
    fn extended(&mut self, config: &mut [u8], at: u16) {
        let link = read32(config, self.extended).unwrap_or(0) & 0x000f_ffff;
        let link = link | u32::from(at) << 20;
        if at != self.extended {
            config[usize::from(self.extended)..][..4].copy_from_slice(&link.to_le_bytes());
        }
        self.extended = at;
    }
}
