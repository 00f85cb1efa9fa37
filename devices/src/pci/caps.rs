//! The two capability lists of a function: where each capability lies, and how long it can be.
//!
//! Configuration space comes from a device, and devices lie: the walk, which the host's checks share, ends at the first
//! pointer that leads into the header, out of the bytes, or to a place it has been. (PCI 6.7; PCIe 7.6.3)

use strait_resources::host::capabilities as walk;

use crate::pci::regs::{
    self, af, capability,
    extended::{self, acs, aer, power_budgeting, rebar, vendor},
    extended_header, msi, msix, pcie, pm, ssvid, vpd,
};

/// One entry of the list that starts at 0x34.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capability {
    /// From [`regs::capability`].
    pub id: u8,
    /// Where it starts: a multiple of 4, 0x40..=0xfc.
    pub offset: u16,
    /// Bytes that are certainly its own: never into the next capability nor past 0x100.
    pub len: u16,
}

impl Capability {
    /// Where in configuration space its register of `len` bytes at `at` is; `None` for one that is cut off.
    pub(crate) fn register(&self, at: u16, len: u16) -> Option<u16> {
        at.checked_add(len).filter(|end| *end <= self.len)?;
        self.offset.checked_add(at)
    }
}

/// One entry of the list that starts at 0x100.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ExtendedCapability {
    /// From [`regs::extended`].
    pub id: u16,
    /// Of the structure.
    pub version: u8,
    /// Where it starts: a multiple of 4, 0x100..=0xffc.
    pub offset: u16,
    /// Bytes that are its own where the specification says how many, else up to the next capability in address order,
    /// or to the end.
    pub len: u16,
}

/// The capabilities of `config`, a type 0 configuration space, in list order.
pub fn capabilities(config: &[u8]) -> Vec<Capability> {
    let end = config.len().min(regs::CONVENTIONAL_SIZE.into());
    let config = config.get(..end).unwrap_or_default();
    let found = placed(&walk::standard(config));
    let starts: Vec<u16> = found.iter().map(|&(_, offset)| offset).collect();
    found
        .into_iter()
        .filter_map(|(id, offset)| {
            let id = u8::try_from(id).ok()?;
            let room = room(&starts, offset, end);
            let len = known_len(config, id, offset).map_or(room, |len| len.min(room));
            Some(Capability { id, offset, len })
        })
        .collect()
}

/// The extended capabilities of `config`, in list order; none if the function has only conventional space.
pub fn extended_capabilities(config: &[u8]) -> Vec<ExtendedCapability> {
    let end = config.len().min(regs::CONFIG_SIZE.into());
    let found = placed(&walk::extended(config));
    let starts: Vec<u16> = found.iter().map(|&(_, offset)| offset).collect();
    found
        .into_iter()
        .filter_map(|(id, offset)| {
            let version = extended_header::version(read32(config, offset)?);
            let room = room(&starts, offset, end);
            let len = extended_len(config, id, offset).map_or(room, |len| len.min(room));
            Some(ExtendedCapability { id, version, offset, len })
        })
        .collect()
}

/// Identifier and offset, which fits into the 12 bits of a pointer.
fn placed(found: &[walk::Capability]) -> Vec<(u16, u16)> {
    found.iter().filter_map(|found| Some((found.id, u16::try_from(found.offset).ok()?))).collect()
}

/// Little-endian, `None` past the end.
pub fn read16(config: &[u8], offset: u16) -> Option<u16> {
    walk::word(config, offset.into())
}

/// Little-endian, `None` past the end.
pub fn read32(config: &[u8], offset: u16) -> Option<u32> {
    walk::dword(config, offset.into())
}

fn byte(config: &[u8], offset: u16) -> Option<u8> {
    config.get(usize::from(offset)).copied()
}

/// Bytes from `offset` to the next start in address order or to `end`.
fn room(starts: &[u16], offset: u16, end: usize) -> u16 {
    let end = u16::try_from(end).unwrap_or(regs::CONFIG_SIZE);
    starts
        .iter()
        .copied()
        .filter(|&start| start > offset)
        .fold(end, u16::min)
        .saturating_sub(offset)
}

/// `len` bytes from `offset`, but none of those from the next of `starts` on.
pub(crate) fn cut(offset: u16, len: u16, starts: &[u16]) -> u16 {
    let next = starts.iter().filter(|start| **start > offset).min();
    next.map_or(len, |next| len.min(next.saturating_sub(offset)))
}

/// What the specification says about the length of a capability, if it does.
fn known_len(config: &[u8], id: u8, offset: u16) -> Option<u16> {
    Some(match id {
        capability::PM => pm::SIZE,
        capability::VPD => vpd::SIZE,
        capability::MSI => msi::size(read16(config, offset.checked_add(msi::CONTROL)?)?),
        capability::MSIX => msix::SIZE,
        capability::ADVANCED_FEATURES => af::SIZE,
        capability::PCIE => {
            let flags = read16(config, offset.checked_add(pcie::CAPABILITIES)?)?;
            if flags & pcie::CAPABILITIES_VERSION < 2 { pcie::SIZE_V1_ENDPOINT } else { pcie::SIZE }
        }
        // A length below the three bytes that say it is a lie.
        capability::VENDOR => u16::from(byte(config, offset.checked_add(2)?)?).max(3),
        capability::HOT_SWAP | capability::COMPACT_PCI | capability::DEBUG_PORT => 4,
        capability::SSVID => ssvid::SIZE,
        _ => return None,
    })
}

/// The same of an extended capability.
fn extended_len(config: &[u8], id: u16, offset: u16) -> Option<u16> {
    let word = |at: u16| read16(config, offset.checked_add(at)?);
    let dword = |at: u16| read32(config, offset.checked_add(at)?);
    Some(match id {
        extended::AER => aer::SIZE,
        extended::SERIAL_NUMBER => 0x0c,
        extended::POWER_BUDGETING | extended::PRI => power_budgeting::SIZE,
        extended::ARI | extended::ATS | extended::LTR | extended::PASID => 0x08,
        extended::SRIOV => 0x40,
        extended::MULTICAST => 0x30,
        // One register for each of up to 32 lanes at the end of some of these: the most there can be.
        extended::SECONDARY_PCIE => 0x4c,
        extended::L1_SUBSTATES => 0x14,
        extended::PTM | extended::DATA_LINK => 0x0c,
        extended::PHYSICAL_16 | extended::PHYSICAL_32 | extended::PHYSICAL_64 => 0x40,
        extended::LANE_MARGINING => 0x84,
        extended::DOE => 0x18,
        extended::ACS => {
            let capabilities = word(acs::CAPABILITIES)?;
            let bits = match capabilities >> 8 {
                0 => 256,
                bits => bits,
            };
            let vector = if capabilities & acs::EGRESS_CONTROL == 0 { 0 } else { bits };
            vector.div_ceil(32).saturating_mul(4).saturating_add(acs::SIZE)
        }
        extended::REBAR | extended::VF_REBAR => {
            let entries = (dword(rebar::CONTROL)? >> 5 & 7) as u16;
            entries.max(1).saturating_mul(8).saturating_add(4)
        }
        // A length below the two headers is a lie.
        extended::VENDOR | extended::DVSEC => {
            ((dword(vendor::HEADER)? >> 20) as u16).max(vendor::SIZE)
        }
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Configuration space with a capability list that starts at `first`, entries as (offset, id, next).
    fn config(first: u8, entries: &[(usize, u8, u8)]) -> Vec<u8> {
        let mut config = vec![0; 4096];
        config[usize::from(regs::STATUS)] = regs::STATUS_CAPABILITIES as u8;
        config[usize::from(regs::CAPABILITIES_POINTER)] = first;
        for &(offset, id, next) in entries {
            config[offset] = id;
            config[offset + 1] = next;
        }
        config
    }

    fn extended_config(entries: &[(u16, u16, u16)]) -> Vec<u8> {
        let mut config = vec![0; 4096];
        for &(offset, id, next) in entries {
            let header = extended_header::new(id, 1, next).to_le_bytes();
            config[usize::from(offset)..][..4].copy_from_slice(&header);
        }
        config
    }

    fn offsets(config: &[u8]) -> Vec<u16> {
        capabilities(config).iter().map(|found| found.offset).collect()
    }

    #[test]
    fn list_out_of_address_order_keeps_list_order_and_bounds_lengths() {
        let config = config(0x80, &[(0x80, capability::PCIE, 0x50), (0x50, capability::PM, 0x54)]);
        let config = {
            let mut config = config;
            config[0x54] = capability::VPD;
            config[0x82] = 2;
            config
        };
        assert_eq!(
            capabilities(&config),
            [
                Capability { id: capability::PCIE, offset: 0x80, len: 0x3c },
                // Eight bytes by the book, but the next capability starts after four.
                Capability { id: capability::PM, offset: 0x50, len: 4 },
                Capability { id: capability::VPD, offset: 0x54, len: 8 },
            ]
        );
    }

    #[test]
    fn list_without_the_status_bit_is_empty() {
        let mut config = config(0x40, &[(0x40, capability::PM, 0)]);
        config[usize::from(regs::STATUS)] = 0;
        assert_eq!(capabilities(&config), []);
    }

    #[test]
    fn cycle_ends_the_walk() {
        let config = config(0x40, &[(0x40, 1, 0x50), (0x50, 5, 0x40)]);
        assert_eq!(offsets(&config), [0x40, 0x50]);
    }

    #[test]
    fn pointer_into_the_header_ends_the_walk() {
        assert_eq!(offsets(&config(0x40, &[(0x40, 1, 0x10)])), [0x40]);
        assert_eq!(offsets(&config(0x3c, &[])), [0; 0]);
    }

    #[test]
    fn unaligned_pointer_loses_its_low_bits() {
        assert_eq!(offsets(&config(0x43, &[(0x40, 1, 0x52), (0x50, 5, 0)])), [0x40, 0x50]);
    }

    #[test]
    fn pointer_past_the_bytes_ends_the_walk() {
        let config = config(0x40, &[(0x40, 1, 0xf0)]);
        assert_eq!(offsets(&config[..0x80]), [0x40]);
    }

    #[test]
    fn absent_capability_ends_the_walk() {
        assert_eq!(offsets(&config(0x40, &[(0x40, 1, 0x60), (0x60, 0xff, 0xff)])), [0x40]);
    }

    #[test]
    fn extended_list_out_of_address_order_has_lengths_of_the_specification() {
        let config = extended_config(&[
            (0x100, extended::AER, 0x200),
            (0x200, extended::SRIOV, 0x150),
            (0x150, extended::ATS, 0),
        ]);
        let found: Vec<_> =
            extended_capabilities(&config).iter().map(|c| (c.id, c.offset, c.len)).collect();
        assert_eq!(
            found,
            [
                (extended::AER, 0x100, 0x48),
                (extended::SRIOV, 0x200, 0x40),
                (extended::ATS, 0x150, 0x08)
            ]
        );
    }

    #[test]
    fn extended_capabilities_that_say_their_length_are_believed_up_to_the_next() {
        let mut config = extended_config(&[
            (0x100, extended::VENDOR, 0x140),
            (0x140, extended::DVSEC, 0x180),
            (0x180, extended::REBAR, 0x200),
            (0x200, extended::ACS, 0x300),
            (0x300, extended::VC, 0),
        ]);
        config[0x104..0x108].copy_from_slice(&(0x018_u32 << 20).to_le_bytes());
        config[0x144..0x148].copy_from_slice(&(0xfff_u32 << 20).to_le_bytes());
        config[0x188..0x18c].copy_from_slice(&(3_u32 << 5).to_le_bytes());
        config[0x204..0x206].copy_from_slice(&(33_u16 << 8 | acs::EGRESS_CONTROL).to_le_bytes());
        let lengths: Vec<_> = extended_capabilities(&config).iter().map(|c| c.len).collect();
        assert_eq!(lengths, [0x18, 0x40, 4 + 3 * 8, 8 + 8, 0xd00]);
    }

    #[test]
    fn extended_cycle_and_pointer_into_the_header_end_the_walk() {
        let cycle = extended_config(&[(0x100, 1, 0x140), (0x140, 3, 0x100)]);
        assert_eq!(extended_capabilities(&cycle).len(), 2);
        let header = extended_config(&[(0x100, 1, 0x040)]);
        assert_eq!(extended_capabilities(&header).len(), 1);
    }

    #[test]
    fn extended_list_of_absent_space_is_empty() {
        assert_eq!(extended_capabilities(&[0xff; 4096]), []);
        assert_eq!(extended_capabilities(&[0; 4096]), []);
        assert_eq!(extended_capabilities(&[1; 256]), []);
    }

    proptest! {
        #[test]
        fn any_bytes_give_bounded_disjoint_capabilities(
            config in proptest::collection::vec(any::<u8>(), 0..=4096),
        ) {
            let mut spans: Vec<(u16, u16)> =
                capabilities(&config).iter().map(|c| (c.offset, c.len)).collect();
            spans.extend(extended_capabilities(&config).iter().map(|c| (c.offset, c.len)));
            spans.sort_unstable();
            for pair in spans.windows(2) {
                prop_assert!(pair[0].0 + pair[0].1 <= pair[1].0);
            }
            if let Some(&(offset, len)) = spans.last() {
                prop_assert!(usize::from(offset + len) <= config.len());
            }
        }
    }
}
