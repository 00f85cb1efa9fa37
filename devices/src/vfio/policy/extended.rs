//! Configuration space from 0x100 on. What belongs to no capability here is the device's own affair or the host's (the
//! link's tuning registers of common cores lie there): reads reach it, writes do not unless the user asks for them.

use super::{Action, Presentation, Rule, unlisted};
use crate::pci::{
    caps::{self, ExtendedCapability},
    regs::{
        self, extended,
        extended::{aer, power_budgeting},
        extended_header,
    },
};

const LINK: &str = "the link's other end is the host's";

/// Extended capabilities that the guest must not see, each with the reason.
pub(super) const HIDDEN_EXTENDED: [(u16, &str); 28] = [
    (extended::SRIOV, "virtual functions are made on the host"),
    (extended::MRIOV, "virtual hierarchies are made on the host"),
    (extended::ARI, "the guest's port does not forward by ARI"),
    (extended::REBAR, "sizes are fixed while the device is passed"),
    (extended::VF_REBAR, "sizes are fixed while the device is passed"),
    (extended::ATS, "translations belong to the host's IOMMU"),
    (extended::PRI, "page requests belong to the host's IOMMU"),
    (extended::PASID, "the guest has no IOMMU"),
    (extended::TPH, "steering tags name the host's CPUs"),
    (extended::L1_SUBSTATES, LINK),
    (extended::SECONDARY_PCIE, LINK),
    (extended::PMUX, LINK),
    (extended::MPHY, LINK),
    (extended::DATA_LINK, LINK),
    (extended::PHYSICAL_16, LINK),
    (extended::PHYSICAL_32, LINK),
    (extended::PHYSICAL_64, LINK),
    (extended::LANE_MARGINING, LINK),
    (extended::ALTERNATE_PROTOCOL, LINK),
    (extended::FLIT_LOGGING, LINK),
    (extended::FLIT_PERFORMANCE, LINK),
    (extended::FLIT_ERROR_INJECTION, LINK),
    (extended::IDE, "the keys of the link's encryption are the host's"),
    (extended::DOE, "mailboxes for attestation and for the keys of the link"),
    (extended::PTM, "the clock is the host's port's"),
    (extended::DPC, "containment is the host's answer to errors"),
    (extended::NPEM, "the enclosure's lights are the host's"),
    (extended::SFI, "the firmware's hot-plug is the host's"),
];

/// Rules for everything from 0x100 on. `config` is what VFIO shows, `host` what the host's kernel reads: VFIO takes
/// capabilities out of the list that it shows and leaves their registers open to reads and writes.
pub(super) fn extended_rules(config: &[u8], host: &[u8], shown: &Presentation) -> Vec<Rule> {
    let unlisted_action = if shown.raw_config { Action::Hardware } else { Action::ReadOnly };
    let mut rules = vec![Rule {
        at: regs::EXTENDED_START,
        len: regs::CONFIG_SIZE - regs::EXTENDED_START,
        action: unlisted_action,
        why: "of no capability, or of none that is known",
    }];
    let mut listed = caps::extended_capabilities(config);
    let mut there = caps::extended_capabilities(host);
    let starts: Vec<u16> = listed.iter().chain(&there).map(|found| found.offset).collect();
    for found in listed.iter_mut().chain(&mut there) {
        found.len = caps::cut(found.offset, found.len, &starts);
    }
    let is_listed = |hidden: &ExtendedCapability| {
        listed.iter().any(|found| (found.id, found.offset) == (hidden.id, hidden.offset))
    };
    for found in &listed {
        match hide(found) {
            Some(rule) => rules.push(rule),
            // Where VFIO hides the head it leaves a null capability, and what was found there stays hidden.
            None if found.id == extended::NULL => {}
            None => rules.extend(body_rules(found, shown)),
        }
    }
    // These outrank what VFIO's list says, where it names something else at the same place.
    for found in there.iter().filter(|found| !is_listed(found)) {
        rules.push(hide(found).unwrap_or_else(|| unlisted(found.offset, found.len)));
    }
    rules.extend(header_rules(listed.iter().filter(|found| hide(found).is_none())));
    rules
}

/// `None` for a capability that the guest may see.
fn hide(found: &ExtendedCapability) -> Option<Rule> {
    let (_, why) = HIDDEN_EXTENDED.iter().find(|(id, _)| *id == found.id)?;
    Some(Rule { at: found.offset, len: found.len, action: Action::Hide, why })
}

/// The registers of a capability that the guest sees, its header too.
fn body_rules(found: &ExtendedCapability, shown: &Presentation) -> Vec<Rule> {
    use Action::{Hardware, ReadOnly, Shadow, Snapshot};
    let all = |action, why| vec![(0, found.len, action, why)];
    let rules = match found.id {
        // No port above tells the guest of an error, and the host's handler needs to find what the device noted. What
        // is masked or fatal decides what the host's port does: it may reset everything behind it.
        extended::AER => vec![
            (0, aer::SIZE.min(found.len), ReadOnly, "the host's error handler reads and clears it"),
            (aer::UNCORRECTABLE_MASK, 8, Shadow(u32::MAX), "which errors the host hears of"),
            (aer::CORRECTABLE_MASK, 4, Shadow(u32::MAX), "which errors the host hears of"),
            (aer::CONTROL, 4, Shadow(aer::CONTROL_WRITABLE), "ECRC takes the whole path"),
        ],
        extended::SERIAL_NUMBER => all(Snapshot, "serial number"),
        extended::POWER_BUDGETING => vec![
            (0, found.len, ReadOnly, "power budgeting"),
            (power_budgeting::DATA_SELECT, 1, Hardware, "an index without further effect"),
        ],
        extended::VENDOR | extended::DVSEC => match shown.raw_config {
            true => all(Hardware, "the vendor's own: the user asked for it"),
            false => all(ReadOnly, "the vendor's own: link, firmware, debugging"),
        },
        extended::VC | extended::VC9 | extended::MFVC => {
            all(ReadOnly, "channels end at the host's port")
        }
        extended::LTR => all(ReadOnly, "the host's platform says how late it may be"),
        extended::DPA => all(ReadOnly, "the card's power is the host's"),
        extended::ACS => all(ReadOnly, "what the host keeps apart stays apart"),
        _ => all(ReadOnly, "not written by drivers"),
    };
    let inside = |at: u16, len| at.checked_add(len).filter(|end| *end <= found.len);
    let rule = |(at, len, action, why)| {
        inside(at, len)?;
        Some(Rule { at: found.offset.checked_add(at)?, len, action, why })
    };
    rules.into_iter().filter_map(rule).collect()
}

/// The list starts at 0x100 whatever is there: a hidden head becomes a null capability that leads on, an empty list a
/// dword of zeros (PCIe 7.6.1).
fn header_rules<'a>(shown: impl Iterator<Item = &'a ExtendedCapability>) -> Vec<Rule> {
    let mut headers: Vec<(u16, u16, u8)> = vec![(regs::EXTENDED_START, extended::NULL, 1)];
    for found in shown {
        if found.offset == regs::EXTENDED_START {
            headers.clear();
        }
        headers.push((found.offset, found.id, found.version));
    }
    let nexts: Vec<u16> = headers.iter().skip(1).map(|&(offset, ..)| offset).chain([0]).collect();
    let rule = |(&(at, id, version), next): (&(u16, u16, u8), u16)| {
        let empty = id == extended::NULL && next == 0;
        let header = if empty { 0 } else { extended_header::new(id, version, next) };
        Rule { at, len: 4, action: Action::Fix(header), why: "extended capability header" }
    };
    headers.iter().zip(nexts).map(rule).collect()
}
