//! The header and the capabilities in the first 256 bytes.

use super::{Action, Landmarks, Presentation, Register, Rule, unlisted};
use crate::pci::{
    caps::{self, Capability, read16, read32},
    regs::{self, af, capability, msi, msix, pcie, pm, vpd},
};

pub(super) fn header_rules(config: &[u8], shown: &Presentation) -> Vec<Rule> {
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
        // The device may be away for two seconds, for the host's port too.
        rule(regs::BIST, 1, Fix(0), "no self test"),
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

pub(super) fn capability_rules(
    config: &[u8],
    host: &[u8],
    shown: &Presentation,
    landmarks: &mut Landmarks,
) -> Vec<Rule> {
    let mut found = caps::capabilities(config);
    let mut there = caps::capabilities(host);
    let starts: Vec<u16> = found.iter().chain(&there).map(|found| found.offset).collect();
    for found in found.iter_mut().chain(&mut there) {
        found.len = caps::cut(found.offset, found.len, &starts);
    }
    let is_listed = |hidden: &&Capability| {
        found.iter().any(|found| (found.id, found.offset) == (hidden.id, hidden.offset))
    };
    let unlisted: Vec<Rule> = there
        .iter()
        .filter(|there| !is_listed(there))
        .map(|found| unlisted(found.offset, found.len))
        .collect();
    let mut seen = Vec::new();
    let (kept, hidden): (Vec<Capability>, Vec<Capability>) = found.into_iter().partition(|found| {
        let again = seen.contains(&found.id);
        seen.push(found.id);
        match found.id {
            // A capability too short for its registers cannot be answered.
            capability::MSI => shown.msi && !again && found.len >= msi_size(config, *found),
            capability::MSIX => shown.msix && !again && found.len >= msix::SIZE,
            capability::PM | capability::PCIE | capability::ADVANCED_FEATURES | capability::VPD => {
                !again
            }
            capability::ENHANCED_ALLOCATION => false,
            _ => true,
        }
    });
    let mut rules = Vec::new();
    for found in &kept {
        rules.extend(body_rules(config, *found, shown, landmarks));
    }
    // These outrank what a list says that names something else at the same place.
    rules.extend(unlisted);
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
        link = found.offset.saturating_add(1);
    }
    rules.push(pointer(link, 0));
    rules
}

fn msi_size(config: &[u8], found: Capability) -> u16 {
    read16(config, found.offset.saturating_add(msi::CONTROL)).map_or(u16::MAX, msi::size)
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
    let landmark = |at: u16, len: u16| found.register(at, len);
    let rule =
        |at: u16, len, action, why| found.register(at, len).map(|at| Rule { at, len, action, why });
    let byte = |at: u16| {
        let at = found.offset.saturating_add(at);
        config.get(usize::from(at)).copied().unwrap_or(0)
    };
    let rest = |at: u16, action, why| {
        let (at, len) = (found.offset.saturating_add(at), found.len.saturating_sub(at));
        Some(Rule { at, len, action, why })
    };
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
        capability::VENDOR => vec![
            rule(2, 1, Snapshot, "length"),
            // Drivers of network cards reach their firmware by these, and as often by bytes of no capability nearby.
            rest(3, Hardware, "the driver's own window into the device"),
        ],
        capability::VPD => {
            let whole = found.len >= vpd::SIZE;
            landmarks.vpd = landmarks.vpd.or(whole.then_some(found.offset));
            let why = "what is written outlives the guest, and the host's next start";
            let action = if whole { Ours(Register::Vpd) } else { Action::ReadOnly };
            vec![rest(vpd::ADDRESS, action, why)]
        }
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
        _ => vec![rest(2, Hardware, "unknown, so volatile")],
    };
    rules.into_iter().flatten().collect()
}

fn pcie_rules(
    config: &[u8],
    found: Capability,
    shown: &Presentation,
    landmarks: &mut Landmarks,
) -> Vec<Rule> {
    use Action::{Fix, Ours, ReadOnly, Snapshot};
    let at = |register| found.offset.saturating_add(register);
    let has = |register: u16| found.register(register, 2).is_some();
    let dword = |register| read32(config, at(register)).unwrap_or(0);
    let word = |register| read16(config, at(register)).unwrap_or(0);
    let capabilities = dword(pcie::DEVICE_CAPABILITIES);
    let hidden = if shown.reset { 0 } else { pcie::DEVICE_CAPABILITIES_FLR };
    if landmarks.device_control.is_none() && has(pcie::DEVICE_CONTROL) {
        landmarks.device_control = Some(at(pcie::DEVICE_CONTROL));
        // The kernel acts on the bit itself, so it is kept from it even where the guest is not shown the feature.
        landmarks.flr = capabilities & pcie::DEVICE_CAPABILITIES_FLR != 0;
        landmarks.device_control_2 =
            has(pcie::DEVICE_CONTROL_2).then_some(at(pcie::DEVICE_CONTROL_2));
    }
    let flags = word(pcie::CAPABILITIES);
    let kind = (flags & pcie::CAPABILITIES_TYPE) >> pcie::CAPABILITIES_TYPE_SHIFT;
    let integrated = kind == pcie::TYPE_RC_ENDPOINT;
    let shown_flags =
        flags & !pcie::CAPABILITIES_TYPE | pcie::TYPE_ENDPOINT << pcie::CAPABILITIES_TYPE_SHIFT;
    let capabilities_2 =
        dword(pcie::DEVICE_CAPABILITIES_2) & !unavailable(word(pcie::DEVICE_CONTROL_2));

    const LINK: &str = "the link's other end is the host's";
    let mut rules = vec![
        (pcie::CAPABILITIES, 2, Snapshot, "PCI Express capabilities"),
        (pcie::DEVICE_CAPABILITIES, 4, Fix(capabilities & !hidden), "FLR if VFIO has it"),
        (
            pcie::DEVICE_CONTROL,
            2,
            Ours(Register::DeviceControl),
            "errors and ordering are the host's",
        ),
        (pcie::DEVICE_STATUS, 2, ReadOnly, "the host's error handler clears it"),
        (pcie::LINK_CAPABILITIES, 4, Snapshot, "link capabilities"),
        (pcie::LINK_CONTROL, 4, ReadOnly, LINK),
        // Slot and root registers: an endpoint has none.
        (pcie::SLOT_CAPABILITIES, 16, Snapshot, "slot and root registers"),
        (
            pcie::DEVICE_CAPABILITIES_2,
            4,
            Fix(capabilities_2),
            "what the host's port cannot, none can",
        ),
        (
            pcie::DEVICE_CONTROL_2,
            2,
            Ours(Register::DeviceControl2),
            "what the host's port cannot, none can",
        ),
        (pcie::DEVICE_CONTROL_2 + 2, 2, ReadOnly, "device status 2"),
        (pcie::LINK_CAPABILITIES_2, 4, Snapshot, "link capabilities 2"),
        (pcie::LINK_CONTROL_2, 4, ReadOnly, LINK),
        (pcie::SLOT_CAPABILITIES_2, 8, Snapshot, "slot registers 2"),
    ];
    if integrated {
        // Behind a root port there are no integrated endpoints; software expects a link.
        let why = "behind a root port";
        rules.push((pcie::CAPABILITIES, 2, Fix(shown_flags.into()), why));
        if dword(pcie::LINK_CAPABILITIES) == 0 {
            let link = 1 << pcie::LINK_CAPABILITIES_WIDTH_SHIFT | 1;
            rules.push((pcie::LINK_CAPABILITIES, 4, Fix(link), why));
            let status = 1 << pcie::LINK_STATUS_WIDTH_SHIFT | 1;
            rules.push((pcie::LINK_CONTROL, 4, Fix(status << 16), why));
        }
    }
    let inside = rules.into_iter().filter(|&(at, len, ..)| found.register(at, len).is_some());
    // Of registers that the next capability cuts off nothing is known.
    let rest = found.len.saturating_sub(pcie::CAPABILITIES);
    std::iter::once((pcie::CAPABILITIES, rest, ReadOnly, "part of a register"))
        .chain(inside)
        .map(|(register, len, action, why)| Rule { at: at(register), len, action, why })
        .collect()
}

/// The features of device capabilities 2 that take the port above, and that the host has not turned on in device
/// control 2: the guest cannot either.
fn unavailable(control: u16) -> u32 {
    [
        (pcie::DEVICE_CONTROL_2_LTR, pcie::DEVICE_CAPABILITIES_2_LTR),
        (pcie::DEVICE_CONTROL_2_TAGS_10, pcie::DEVICE_CAPABILITIES_2_TAGS_10_REQUESTER),
        (pcie::DEVICE_CONTROL_2_OBFF, pcie::DEVICE_CAPABILITIES_2_OBFF),
    ]
    .into_iter()
    .filter(|(enable, _)| control & enable == 0)
    .fold(0, |all, (_, capability)| all | capability)
}
