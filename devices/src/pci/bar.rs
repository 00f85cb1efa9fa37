//! The base address registers as a shadow: what the guest wrote, what it reads, where it decodes.
//!
//! The device's own registers keep what the host wrote. A write of all ones reads back as the size because the
//! low bits do not exist, exactly as in hardware (PCI 6.2.5.1), so sizing costs no access to the device.
//!
//! ```text
//!   memory  [ address ....................... | prefetchable 3 | type 2:1 | 0 ]
//!   I/O     [ address ..........................................| 0        | 1 ]
//!   ROM     [ address ................ 31:11 | reserved ................ | enable ]
//! ```

use strait_resources::bar::{BarIndex, BarKind, BarSpec};

use crate::pci::{
    function::{BarChanges, BarPlacement},
    regs,
};

/// The six BAR registers and the ROM's.
const REGISTERS: usize = 7;
/// x86 has 16 bits of I/O port.
const LAST_PORT: u64 = 0xffff;

/// A set of BARs that no function can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BarError {
    /// Two BARs want one register.
    #[error("{0} shares a register with another BAR")]
    Overlap(BarIndex),
    /// The kind does not fit the register: a ROM elsewhere than in its own, a 64-bit BAR in the last.
    #[error("{0} cannot be of this kind")]
    Kind(BarIndex),
    /// Not a power of two, or outside what the kind can decode.
    #[error("{bar} cannot have a size of {size:#x} bytes")]
    Size {
        /// Which.
        bar: BarIndex,
        /// Bytes.
        size: u64,
    },
    /// The address is not a multiple of the size or does not fit the register.
    #[error("{bar} cannot decode at {address:#x}")]
    Address {
        /// Which.
        bar: BarIndex,
        /// Guest address.
        address: u64,
    },
}

/// What Command and the power state let decode.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Decoding {
    /// I/O BARs.
    pub io: bool,
    /// Memory BARs and the ROM.
    pub memory: bool,
    /// The device can answer at all: it is in D0.
    pub answers: bool,
}

impl Decoding {
    /// From the guest's Command register; outside D0 nothing decodes (PM 5.4).
    pub const fn new(command: u16, in_d0: bool) -> Self {
        Self {
            io: in_d0 && command & regs::COMMAND_IO != 0,
            memory: in_d0 && command & regs::COMMAND_MEMORY != 0,
            answers: in_d0,
        }
    }
}

/// Shadow registers.
#[derive(Clone, Debug)]
pub struct Bars {
    bars: Vec<(BarSpec, u64)>,
    /// What the guest reads.
    values: [u32; REGISTERS],
    /// The address bits that exist, and the ROM's enable bit.
    writable: [u32; REGISTERS],
}

impl Bars {
    /// A shadow with these BARs, each at its initial address (0 if it has none).
    pub fn new(bars: &[(BarSpec, u64)]) -> Result<Self, BarError> {
        let mut taken = [false; REGISTERS];
        let mut writable = [0; REGISTERS];
        let mut sorted = bars.to_vec();
        sorted.sort_by_key(|(spec, _)| spec.index);
        for &(spec, address) in &sorted {
            check(spec, address)?;
            let mask = !spec.size.saturating_sub(1);
            for (register, shift) in registers(spec) {
                if std::mem::replace(&mut taken[register], true) {
                    return Err(BarError::Overlap(spec.index));
                }
                writable[register] = (mask >> shift) as u32;
            }
            if spec.kind == BarKind::Rom {
                writable[usize::from(BarIndex::ROM.get())] |= regs::ROM_ENABLE;
            }
        }
        let mut shadow = Self { bars: sorted, values: [0; REGISTERS], writable };
        shadow.restore();
        Ok(shadow)
    }

    /// Every BAR, by ascending index.
    pub fn specs(&self) -> impl Iterator<Item = BarSpec> + '_ {
        self.bars.iter().map(|&(spec, _)| spec)
    }

    /// Back to the initial addresses, the ROM not enabled.
    pub fn restore(&mut self) {
        self.clear();
        for &(spec, address) in &self.bars {
            for (register, shift) in registers(spec) {
                self.values[register] |= (address >> shift) as u32;
            }
        }
    }

    /// Every address 0, as after a function level reset.
    pub fn clear(&mut self) {
        self.values = [0; REGISTERS];
        for &(spec, _) in &self.bars {
            self.values[usize::from(spec.index.get())] = flags(spec.kind);
        }
    }

    /// The byte at a configuration offset; 0 where there is no BAR.
    pub fn read_byte(&self, offset: u16) -> u8 {
        let Some((register, shift)) = locate(offset) else { return 0 };
        (self.values[register] >> shift) as u8
    }

    /// Writes the byte at a configuration offset, as far as its bits exist.
    pub fn write_byte(&mut self, offset: u16, byte: u8) {
        let Some((register, shift)) = locate(offset) else { return };
        let writable = self.writable[register] & (0xff << shift);
        self.values[register] =
            self.values[register] & !writable | (u32::from(byte) << shift) & writable;
    }

    /// Where every BAR is, and whether it decodes there.
    pub fn placements(&self, decoding: Decoding) -> Vec<BarPlacement> {
        self.bars.iter().map(|&(spec, _)| self.placement(spec, decoding)).collect()
    }

    fn placement(&self, spec: BarSpec, decoding: Decoding) -> BarPlacement {
        let address = registers(spec)
            .map(|(register, shift)| {
                u64::from(self.values[register] & self.writable[register]) << shift
            })
            .fold(0, |sum, part| sum | part);
        let bar = spec.index;
        let enabled = match spec.kind {
            BarKind::Io => decoding.io,
            BarKind::Memory32 { .. } | BarKind::Memory64 { .. } => decoding.memory,
            BarKind::Rom => {
                decoding.memory && self.values[usize::from(bar.get())] & regs::ROM_ENABLE != 0
            }
        };
        let address =
            if spec.kind == BarKind::Rom { address & u64::from(regs::ROM_MASK) } else { address };
        BarPlacement {
            bar,
            address,
            decoded: enabled && is_assigned(spec, address),
            answers: decoding.answers,
        }
    }
}

/// What `new` has differently from `old`, two lists of [`Bars::placements`]. A BAR that decodes nowhere before
/// and after did not change, whatever its address: half-written addresses and sizing move nothing.
pub fn changes(old: &[BarPlacement], new: &[BarPlacement]) -> BarChanges {
    old.iter()
        .zip(new)
        .filter(|(old, new)| {
            old != new && (old.decoded || new.decoded || old.answers != new.answers)
        })
        .map(|(_, new)| *new)
        .collect()
}

/// Nothing sits at 0 or at the top: these are "not assigned" and "being sized". (Windows parks BARs at 0 with
/// decoding on.)
fn is_assigned(spec: BarSpec, address: u64) -> bool {
    let top = match spec.kind {
        BarKind::Memory64 { .. } => u64::MAX,
        _ => u64::from(u32::MAX),
    } & !spec.size.saturating_sub(1);
    let fits = spec.kind != BarKind::Io || address <= LAST_PORT;
    address != 0 && address != top && fits
}

/// The registers of a BAR as (index, bit of the address): the upper half of a 64-bit BAR is in the next one.
fn registers(spec: BarSpec) -> impl Iterator<Item = (usize, u32)> {
    let first = usize::from(spec.index.get());
    let halves = if matches!(spec.kind, BarKind::Memory64 { .. }) { 2 } else { 1 };
    (first..REGISTERS).zip([0, 32].into_iter().take(halves))
}

/// The register and the bit at which the byte of a configuration offset starts.
fn locate(offset: u16) -> Option<(usize, u32)> {
    let end = regs::BAR0 + 6 * regs::BAR_SIZE;
    let (register, byte) = if (regs::BAR0..end).contains(&offset) {
        (offset.saturating_sub(regs::BAR0) / regs::BAR_SIZE, offset % regs::BAR_SIZE)
    } else if (regs::ROM_BAR..regs::ROM_BAR + regs::BAR_SIZE).contains(&offset) {
        (u16::from(BarIndex::ROM.get()), offset % regs::BAR_SIZE)
    } else {
        return None;
    };
    Some((usize::from(register), u32::from(byte) * 8))
}

/// The read-only low bits.
fn flags(kind: BarKind) -> u32 {
    let (wide, prefetchable) = match kind {
        BarKind::Io => return regs::BAR_IO,
        BarKind::Rom => return 0,
        BarKind::Memory32 { prefetchable } => (0, prefetchable),
        BarKind::Memory64 { prefetchable } => (regs::BAR_MEMORY_64, prefetchable),
    };
    wide | if prefetchable { regs::BAR_PREFETCHABLE } else { 0 }
}

fn check(spec: BarSpec, address: u64) -> Result<(), BarError> {
    let bar = spec.index;
    let (smallest, largest) = match spec.kind {
        BarKind::Io => (4, 1 << 16),
        BarKind::Memory32 { .. } => (16, 1 << 31),
        BarKind::Memory64 { .. } => (16, 1 << 63),
        BarKind::Rom => (1 << 11, 1 << 24),
    };
    let is_rom = spec.kind == BarKind::Rom;
    let is_wide = matches!(spec.kind, BarKind::Memory64 { .. });
    if is_rom != (bar == BarIndex::ROM) || is_wide && bar.get() >= 5 {
        return Err(BarError::Kind(bar));
    }
    if !spec.size.is_power_of_two() || !(smallest..=largest).contains(&spec.size) {
        return Err(BarError::Size { bar, size: spec.size });
    }
    if !address.is_multiple_of(spec.size) || !is_wide && address > u64::from(u32::MAX) {
        return Err(BarError::Address { bar, address });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ON: Decoding = Decoding { io: true, memory: true, answers: true };
    const OFF: Decoding = Decoding { io: false, memory: false, answers: true };

    fn spec(index: u8, kind: BarKind, size: u64) -> BarSpec {
        BarSpec { index: BarIndex::new(index).unwrap(), kind, size }
    }

    /// A GPU's set: 16 MiB registers, a 32 GiB frame buffer, 32 MiB, I/O, ROM.
    fn gpu() -> Bars {
        let wide = BarKind::Memory64 { prefetchable: true };
        Bars::new(&[
            (spec(0, BarKind::Memory32 { prefetchable: false }, 16 << 20), 0xc000_0000),
            (spec(1, wide, 32 << 30), 0x80_0000_0000),
            (spec(3, wide, 32 << 20), 0x88_0000_0000),
            (spec(5, BarKind::Io, 128), 0x1000),
            (spec(6, BarKind::Rom, 512 << 10), 0xc100_0000),
        ])
        .unwrap()
    }

    fn write(bars: &mut Bars, offset: u16, value: u32) {
        for (at, byte) in (offset..).zip(value.to_le_bytes()) {
            bars.write_byte(at, byte);
        }
    }

    fn read(bars: &Bars, offset: u16) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|byte| bars.read_byte(offset + byte)))
    }

    fn address_of(bars: &Bars, index: u8) -> u64 {
        bars.placements(ON).iter().find(|p| p.bar.get() == index).unwrap().address
    }

    #[test]
    fn sizing_of_every_kind_answers_mask_and_flags() {
        let mut bars = gpu();
        for offset in (regs::BAR0..0x28).step_by(4).chain([regs::ROM_BAR]) {
            write(&mut bars, offset, u32::MAX);
        }
        assert_eq!(read(&bars, 0x10), 0xff00_0000);
        // The lower half of a BAR of 4 GiB or more has no address bit at all.
        assert_eq!((read(&bars, 0x14), read(&bars, 0x18)), (0x0000_000c, 0xffff_fff8));
        assert_eq!((read(&bars, 0x1c), read(&bars, 0x20)), (0xfe00_000c, 0xffff_ffff));
        assert_eq!(read(&bars, 0x24), 0xffff_ff81);
        assert_eq!(read(&bars, 0x30), 0xfff8_0001);
    }

    #[test]
    fn bytes_and_words_land_in_their_place() {
        let mut bars = gpu();
        bars.write_byte(0x13, 0xd0);
        assert_eq!(address_of(&bars, 0), 0xd000_0000);
        bars.write_byte(0x18, 0x88);
        assert_eq!(address_of(&bars, 1), 0x88_0000_0000);
    }

    #[test]
    fn absent_registers_stay_zero() {
        let mut bars = Bars::new(&[]).unwrap();
        write(&mut bars, 0x10, u32::MAX);
        write(&mut bars, 0x30, u32::MAX);
        assert_eq!((read(&bars, 0x10), read(&bars, 0x30)), (0, 0));
    }

    #[test]
    fn swap_through_overlap_reports_both_at_their_new_places() {
        let kind = BarKind::Memory32 { prefetchable: false };
        let mut bars =
            Bars::new(&[(spec(0, kind, 0x1000), 0x1_0000), (spec(1, kind, 0x1000), 0x2_0000)])
                .unwrap();
        let before = bars.placements(ON);
        write(&mut bars, 0x10, 0x2_0000);
        write(&mut bars, 0x14, 0x1_0000);
        let moved: Vec<_> = changes(&before, &bars.placements(ON))
            .iter()
            .map(|p| (p.bar.get(), p.address))
            .collect();
        assert_eq!(moved, [(0, 0x2_0000), (1, 0x1_0000)]);
    }

    #[test]
    fn address_written_while_undecoded_changes_nothing() {
        let mut bars = gpu();
        let before = bars.placements(OFF);
        write(&mut bars, 0x10, 0xd000_0000);
        assert_eq!(changes(&before, &bars.placements(OFF)), []);
    }

    #[test]
    fn rom_decodes_only_with_both_enable_bits() {
        let mut bars = gpu();
        let decoded = |bars: &Bars, how| bars.placements(how).last().unwrap().decoded;
        assert!(!decoded(&bars, ON));
        bars.write_byte(regs::ROM_BAR, 1);
        assert!(decoded(&bars, ON));
        assert!(!decoded(&bars, OFF));
        assert_eq!(address_of(&bars, 6), 0xc100_0000);
    }

    #[test]
    fn sizing_and_unassigned_addresses_do_not_decode() {
        let mut bars = gpu();
        for value in [0, u32::MAX] {
            write(&mut bars, 0x10, value);
            write(&mut bars, 0x24, value);
            let placements = bars.placements(ON);
            assert!(!placements[0].decoded, "BAR 0 decodes at {value:#x}");
            assert!(!placements[3].decoded, "BAR 5 decodes at {value:#x}");
        }
    }

    #[test]
    fn io_address_above_the_ports_does_not_decode() {
        let mut bars = gpu();
        write(&mut bars, 0x24, 0x1_0000);
        assert!(!bars.placements(ON)[3].decoded);
    }

    #[test]
    fn clear_and_restore_keep_the_flags() {
        let mut bars = gpu();
        bars.clear();
        assert_eq!((read(&bars, 0x1c), read(&bars, 0x20)), (0xc, 0));
        bars.restore();
        assert_eq!((read(&bars, 0x1c), read(&bars, 0x20)), (0xc, 0x88));
    }

    #[test]
    fn outside_d0_nothing_decodes() {
        let all = regs::COMMAND_IO | regs::COMMAND_MEMORY;
        assert_eq!(Decoding::new(all, true), ON);
        assert_eq!(Decoding::new(all, false), Decoding { answers: false, ..OFF });
    }

    #[test]
    fn impossible_sets_are_refused() {
        let memory = BarKind::Memory32 { prefetchable: false };
        let wide = BarKind::Memory64 { prefetchable: false };
        let one = |spec, address| Bars::new(&[(spec, address)]).unwrap_err();
        let index = |index| BarIndex::new(index).unwrap();
        assert_eq!(one(spec(5, wide, 16), 0), BarError::Kind(index(5)));
        assert_eq!(one(spec(0, BarKind::Rom, 2048), 0), BarError::Kind(index(0)));
        assert_eq!(one(spec(0, memory, 24), 0), BarError::Size { bar: index(0), size: 24 });
        assert_eq!(one(spec(0, memory, 0), 0), BarError::Size { bar: index(0), size: 0 });
        assert_eq!(one(spec(0, memory, 32), 16), BarError::Address { bar: index(0), address: 16 });
        let both = [(spec(0, wide, 16), 0), (spec(1, memory, 16), 0)];
        assert_eq!(Bars::new(&both).unwrap_err(), BarError::Overlap(index(1)));
    }

    proptest! {
        #[test]
        fn any_writes_keep_addresses_natural(
            writes in proptest::collection::vec((0u16..0x40, any::<u8>()), 0..200),
        ) {
            let mut bars = gpu();
            for (offset, byte) in writes {
                bars.write_byte(offset, byte);
            }
            for (spec, placement) in gpu().specs().zip(bars.placements(ON)) {
                prop_assert!(placement.address.is_multiple_of(spec.size));
                prop_assert!(placement.address.checked_add(spec.size - 1).is_some());
            }
        }
    }
}
