//! The capability lists of a function's config space: what is there and what it says.
//!
//! PCI Local Bus 3.0, 6.7 (the list in the first 256 bytes) and PCI Express Base 5.0, 7.6.3 (the extended list).
//! Without root the kernel shows 64 bytes, which hold neither list.

use std::fmt::Write as _;

use crate::size::Size;

/// Identifiers, standard list.
const POWER: u16 = 0x01;
const MSI: u16 = 0x05;
/// PCI Express.
pub const EXPRESS: u16 = 0x10;
const MSIX: u16 = 0x11;
/// Advanced Features, where a conventional function advertises its reset.
const ADVANCED: u16 = 0x13;

/// Identifiers, extended list.
pub const SERIAL: u16 = 0x0003;
/// Access Control Services.
pub const ACS: u16 = 0x000d;
/// Address Translation Services.
pub const ATS: u16 = 0x000f;
const SRIOV: u16 = 0x0010;
/// Resizable BAR.
pub const RESIZABLE: u16 = 0x0015;

/// Which list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Below 256 bytes.
    Standard,
    /// From 256 bytes on.
    Extended,
}

/// One entry of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// Its list.
    pub kind: Kind,
    /// What it is.
    pub id: u16,
    /// Where in config space.
    pub offset: usize,
}

/// Both lists in order, as far as `config` shows them.
pub fn walk(config: &[u8]) -> Vec<Capability> {
    let mut found = standard(config);
    found.extend(extended(config));
    found
}

/// The first with this identifier.
pub fn find(config: &[u8], kind: Kind, id: u16) -> Option<Capability> {
    walk(config).into_iter().find(|capability| (capability.kind, capability.id) == (kind, id))
}

/// Can the lists be seen at all?
pub fn is_visible(config: &[u8]) -> bool {
    config.len() > 64
}

/// A little-endian register; `None` beyond what is shown.
pub fn dword(config: &[u8], at: usize) -> Option<u32> {
    let bytes = config.get(at..at.checked_add(4)?)?;
    Some(u32::from_le_bytes(bytes.try_into().ok()?))
}

/// The same of 16 bits.
pub fn word(config: &[u8], at: usize) -> Option<u16> {
    let bytes = config.get(at..at.checked_add(2)?)?;
    Some(u16::from_le_bytes(bytes.try_into().ok()?))
}

/// The list below 256 bytes, in its order. Devices lie: it ends at the first pointer into the header, out of the bytes,
/// or to a place it has been.
pub fn standard(config: &[u8]) -> Vec<Capability> {
    const STATUS: usize = 0x06;
    /// Status bit 4: there is a list.
    const HAS_LIST: u16 = 1 << 4;
    const POINTER: usize = 0x34;
    /// A list behind the 64-byte header, 4 bytes an entry at least.
    const MAX: usize = (256 - 64) / 4;
    let mut found: Vec<Capability> = Vec::new();
    if word(config, STATUS).is_none_or(|status| status & HAS_LIST == 0) {
        return found;
    }
    let mut next = config.get(POINTER).copied();
    for _ in 0..MAX {
        let Some(offset) = next.map(|at| usize::from(at & 0xfc)).filter(|at| *at >= 64) else {
            break;
        };
        let Some(header) = word(config, offset) else { break };
        // An identifier of all ones is what absent space reads as.
        if header & 0xff == 0xff || found.iter().any(|known| known.offset == offset) {
            break;
        }
        found.push(Capability { kind: Kind::Standard, id: header & 0xff, offset });
        next = Some((header >> 8) as u8);
    }
    found
}

/// The list from 256 bytes on, likewise.
pub fn extended(config: &[u8]) -> Vec<Capability> {
    const START: usize = 0x100;
    /// Eight bytes an entry at least.
    const MAX: usize = (4096 - START) / 8;
    let mut found: Vec<Capability> = Vec::new();
    let mut offset = START;
    for _ in 0..MAX {
        let Some(header) = dword(config, offset) else { break };
        if header == 0 || header == u32::MAX || found.iter().any(|known| known.offset == offset) {
            break;
        }
        found.push(Capability { kind: Kind::Extended, id: header as u16, offset });
        offset = (header >> 20) as usize & 0xffc;
        if offset < START {
            break;
        }
    }
    found
}

impl Capability {
    /// Its name; `None` for one that this version does not know.
    pub fn name(self) -> Option<&'static str> {
        let (names, id): (&[(u16, &str)], u16) = match self.kind {
            Kind::Standard => (STANDARD, self.id),
            Kind::Extended => (EXTENDED, self.id),
        };
        names.iter().find(|(known, _)| *known == id).map(|(_, name)| *name)
    }

    /// What it says, in a few words; empty when nothing of it is worth a line.
    pub fn detail(self, config: &[u8]) -> String {
        let at = self.offset;
        let text = match (self.kind, self.id) {
            (Kind::Standard, MSI) => word(config, at + 2).map(msi),
            (Kind::Standard, MSIX) => {
                word(config, at + 2).map(|control| format!("{} vectors", (control & 0x7ff) + 1))
            }
            (Kind::Standard, EXPRESS) => express(config, at),
            (Kind::Standard, POWER) => {
                // PMCSR, bit 3: a return from D3hot keeps the state, so it is no reset.
                let keeps = word(config, at + 4).map(|control| control & 1 << 3 != 0);
                keeps.map(|keeps| {
                    if keeps { "D3hot keeps state" } else { "D3hot resets" }.to_owned()
                })
            }
            (Kind::Extended, SERIAL) => match (dword(config, at + 4), dword(config, at + 8)) {
                (Some(low), Some(high)) => {
                    Some(format!("{:016x}", u64::from(high) << 32 | u64::from(low)))
                }
                _ => None,
            },
            (Kind::Extended, ACS) => {
                word(config, at + 6).map(|control| format!("control {control:#04x}"))
            }
            (Kind::Extended, SRIOV) => {
                word(config, at + 0x0e).map(|total| format!("{total} virtual functions at most"))
            }
            (Kind::Extended, RESIZABLE) => Some(resizable_words(&resizable(config))),
            _ => None,
        };
        text.unwrap_or_default()
    }
}

/// Message control: bits 3:1 are the logarithm of the vectors, bit 7 says 64-bit addresses.
fn msi(control: u16) -> String {
    let width = if control & 1 << 7 != 0 { "64" } else { "32" };
    match 1 << ((control >> 1) & 7) {
        1 => format!("1 vector, {width}-bit"),
        vectors => format!("{vectors} vectors, {width}-bit"),
    }
}

fn express(config: &[u8], at: usize) -> Option<String> {
    let kind = match (word(config, at + 2)? >> 4) & 0xf {
        0 => "endpoint",
        1 => "legacy endpoint",
        4 => "root port",
        5 => "switch upstream port",
        6 => "switch downstream port",
        7 => "bridge to PCI",
        8 => "bridge from PCI",
        9 => "integrated endpoint",
        10 => "root complex event collector",
        _ => "unknown type",
    };
    let flr = if has_flr(config) { ", function reset" } else { "" };
    Some(format!("{kind}{flr}"))
}

/// Vectors of the function's MSI-X table (PCI Local Bus 3.0, 6.8.2.3). `None` without one, or where it is not shown.
pub fn msix_vectors(config: &[u8]) -> Option<u16> {
    let msix = standard(config).into_iter().find(|capability| capability.id == MSIX)?;
    Some((word(config, msix.offset + 2)? & 0x7ff) + 1)
}

/// Does the function advertise a function-level reset? Device capabilities, bit 28, or Advanced Features, bit 1
/// of its third byte's register.
pub fn has_flr(config: &[u8]) -> bool {
    let express = find(config, Kind::Standard, EXPRESS)
        .and_then(|found| dword(config, found.offset + 4))
        .is_some_and(|capabilities| capabilities & 1 << 28 != 0);
    let advanced = find(config, Kind::Standard, ADVANCED)
        .and_then(|found| config.get(found.offset + 3))
        .is_some_and(|capabilities| capabilities & 0b11 == 0b11);
    express || advanced
}

/// A BAR whose size software may choose (PCI Express Base 5.0, 7.8.6).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resizable {
    /// 0 to 5.
    pub bar: u8,
    /// Bytes now.
    pub current: u64,
    /// Bytes it can be, ascending.
    pub possible: Vec<u64>,
}

/// The BARs that can be resized.
pub fn resizable(config: &[u8]) -> Vec<Resizable> {
    const MIB: u64 = 1 << 20;
    let Some(found) = find(config, Kind::Extended, RESIZABLE) else { return Vec::new() };
    let registers = |entry: usize| {
        let at = found.offset + 4 + 8 * entry;
        Some((dword(config, at)?, dword(config, at + 4)?))
    };
    // The number of entries is in the first entry's control register, bits 7:5.
    let count = registers(0).map_or(0, |(_, control)| (control >> 5) & 7);
    (0..count.min(6) as usize)
        .filter_map(registers)
        .map(|(capability, control)| Resizable {
            bar: (control & 7) as u8,
            current: MIB << ((control >> 8) & 0x1f),
            possible: (4..32)
                .filter(|bit| capability >> bit & 1 != 0)
                .map(|bit| MIB << (bit - 4))
                .collect(),
        })
        .collect()
}

fn resizable_words(bars: &[Resizable]) -> String {
    let mut text = String::new();
    for bar in bars {
        let gap = if text.is_empty() { "" } else { "; " };
        let _ = write!(text, "{gap}BAR {} is {}", bar.bar, Size(bar.current));
        if let (Some(least), Some(most)) = (bar.possible.first(), bar.possible.last()) {
            let _ = write!(text, " of {} to {}", Size(*least), Size(*most));
        }
    }
    text
}

const STANDARD: &[(u16, &str)] = &[
    (POWER, "Power Management"),
    (0x02, "AGP"),
    (0x03, "Vital Product Data"),
    (0x04, "Slot Identification"),
    (MSI, "MSI"),
    (0x06, "CompactPCI Hot Swap"),
    (0x07, "PCI-X"),
    (0x08, "HyperTransport"),
    (0x09, "Vendor Specific"),
    (0x0a, "Debug Port"),
    (0x0c, "Hot-Plug Controller"),
    (0x0d, "Bridge Subsystem ID"),
    (EXPRESS, "PCI Express"),
    (MSIX, "MSI-X"),
    (0x12, "SATA Configuration"),
    (ADVANCED, "Advanced Features"),
    (0x14, "Enhanced Allocation"),
];

const EXTENDED: &[(u16, &str)] = &[
    (0x0001, "Advanced Error Reporting"),
    (0x0002, "Virtual Channel"),
    (SERIAL, "Device Serial Number"),
    (0x0004, "Power Budgeting"),
    (0x0009, "Virtual Channel (MFVC)"),
    (0x000b, "Vendor Specific"),
    (ACS, "Access Control Services"),
    (0x000e, "Alternative Routing-ID"),
    (0x000f, "Address Translation Services"),
    (SRIOV, "Single Root I/O Virtualization"),
    (0x0012, "Multicast"),
    (0x0013, "Page Request Interface"),
    (RESIZABLE, "Resizable BAR"),
    (0x0016, "Dynamic Power Allocation"),
    (0x0017, "TPH Requester"),
    (0x0018, "Latency Tolerance Reporting"),
    (0x0019, "Secondary PCI Express"),
    (0x001b, "Process Address Space ID"),
    (0x001d, "Downstream Port Containment"),
    (0x001e, "L1 PM Substates"),
    (0x001f, "Precision Time Measurement"),
    (0x0023, "Designated Vendor Specific"),
    (0x0024, "Virtual Function Resizable BAR"),
    (0x0025, "Data Link Feature"),
    (0x0026, "Physical Layer 16.0 GT/s"),
    (0x0027, "Lane Margining"),
    (0x002a, "Physical Layer 32.0 GT/s"),
];

#[cfg(test)]
mod tests {
    use super::*;

    fn put(config: &mut [u8], at: usize, value: u32) {
        config[at..at + 4].copy_from_slice(&value.to_le_bytes());
    }

    /// Power Management, MSI with 4 vectors, PCI Express with FLR, MSI-X with 6; ACS, Resizable BAR 1.
    fn card() -> Vec<u8> {
        let mut config = vec![0; 4096];
        config[0x06] = 1 << 4;
        config[0x34] = 0x60;
        put(&mut config, 0x60, 0x0003_6801);
        put(&mut config, 0x68, 0x0084_7805);
        put(&mut config, 0x78, 0x0002_b010);
        put(&mut config, 0x7c, 1 << 28);
        put(&mut config, 0xb0, 0x0005_0011);
        put(&mut config, 0x100, 0x2001_000d);
        put(&mut config, 0x104, 0x001d_005f);
        put(&mut config, 0x200, 0x0001_0015);
        // 256 MiB, 16 GiB and 32 GiB; now 16 GiB.
        put(&mut config, 0x204, 1 << 12 | 1 << 18 | 1 << 19);
        put(&mut config, 0x208, 14 << 8 | 1 << 5 | 1);
        config
    }

    #[test]
    fn walk_finds_both_lists_in_order_and_can_say_what_they_are() {
        let config = card();
        let found: Vec<_> = walk(&config)
            .into_iter()
            .map(|capability| (capability.name().unwrap(), capability.detail(&config)))
            .collect();
        let expected = [
            ("Power Management", "D3hot resets"),
            ("MSI", "4 vectors, 64-bit"),
            ("PCI Express", "endpoint, function reset"),
            ("MSI-X", "6 vectors"),
            ("Access Control Services", "control 0x1d"),
            ("Resizable BAR", "BAR 1 is 16 GiB of 256 MiB to 32 GiB"),
        ];
        assert_eq!(found, expected.map(|(name, detail)| (name, detail.to_owned())));
    }

    #[test]
    fn resizable_bar_lists_what_it_is_and_can_be() {
        let possible = vec![256 << 20, 16 << 30, 32 << 30];
        assert_eq!(resizable(&card()), [Resizable { bar: 1, current: 16 << 30, possible }]);
    }

    #[test]
    fn walk_of_loops_ends_and_lists_each_once() {
        let mut config = card();
        put(&mut config, 0xb0, 0x0005_6011);
        put(&mut config, 0x200, 0x1001_0015);
        assert_eq!(walk(&config).len(), 6);
    }

    #[test]
    fn walk_of_a_dead_or_hidden_config_space_is_empty() {
        assert_eq!(walk(&[0xff; 4096]), []);
        assert_eq!(walk(&[]), []);
        assert_eq!(walk(&card()[..64]), []);
        assert!(!is_visible(&card()[..64]) && is_visible(&card()[..256]));
    }
}
