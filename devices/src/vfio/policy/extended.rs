//! The capabilities from 0x100 on.

use super::{Action, Rule};
use crate::pci::{
    caps::{self, ExtendedCapability},
    regs::{self, extended, extended_header},
};

/// Extended capabilities that the guest must not see, each with the reason.
pub(super) const HIDDEN_EXTENDED: [(u16, &str); 10] = [
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

pub(super) fn extended_rules(config: &[u8]) -> Vec<Rule> {
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
