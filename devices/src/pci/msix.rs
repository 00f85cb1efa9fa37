//! The MSI-X capability and its table as a pure state machine: bytes in, what happened out.
//! (PCI 6.8.2, PCIe 7.7.2)

use strait_resources::{bar::BarIndex, range::AddressRange};

pub use crate::pci::msi::VectorState;
use crate::{
    pci::{
        caps::{read16, read32},
        regs::msix,
    },
    ports::MsiMessage,
};

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum MsixEffect {
    /// Nothing that anyone outside needs to know.
    None,
    /// MSI-X went on.
    Enabled,
    /// MSI-X went off.
    Disabled,
    /// The function mask changed: look at every vector.
    FunctionMask,
    /// This vector was masked, unmasked, or has another message while live.
    Vector(u16),
}

/// Where table and pending bits lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MsixLayout {
    /// Vectors, 1..=2048.
    pub vectors: u16,
    /// The table's BAR.
    pub table_bar: BarIndex,
    /// The table in its BAR, in bytes.
    pub table: AddressRange,
    /// The pending bit array's BAR.
    pub pba_bar: BarIndex,
    /// The pending bit array in its BAR, in bytes.
    pub pba: AddressRange,
}

impl MsixLayout {
    /// From the capability at `offset` of `config`; `None` when it is cut off, names a BAR that cannot be, or
    /// lets table and pending bits share bytes.
    pub fn parse(config: &[u8], offset: u16) -> Option<Self> {
        let control = read16(config, offset.checked_add(msix::CONTROL)?)?;
        let table = read32(config, offset.checked_add(msix::TABLE)?)?;
        let pba = read32(config, offset.checked_add(msix::PBA)?)?;
        let vectors = (control & msix::CONTROL_TABLE_SIZE).saturating_add(1);
        let bar = |register: u32| {
            BarIndex::new((register & msix::BAR) as u8).filter(|&bar| bar != BarIndex::ROM)
        };
        let at = |register: u32, len| AddressRange::new((register & msix::OFFSET).into(), len);
        let layout = Self {
            vectors,
            table_bar: bar(table)?,
            table: at(table, u64::from(vectors) * msix::ENTRY_SIZE)?,
            pba_bar: bar(pba)?,
            pba: at(pba, pba_bytes(vectors))?,
        };
        let shared = layout.table_bar == layout.pba_bar && layout.table.overlaps(layout.pba);
        (!shared).then_some(layout)
    }

    /// An offset into the table's BAR as one into the table.
    pub(crate) const fn in_table(&self, offset: u64) -> u64 {
        offset.saturating_sub(self.table.first())
    }

    /// The byte ranges of one BAR that are table or pending bits.
    pub fn in_bar(&self, bar: BarIndex) -> impl Iterator<Item = AddressRange> {
        let table = (self.table_bar == bar).then_some(self.table);
        let pba = (self.pba_bar == bar).then_some(self.pba);
        table.into_iter().chain(pba)
    }
}

/// Bytes of the pending bit array: whole quadwords (PCI 6.8.2.10).
pub const fn pba_bytes(vectors: u16) -> u64 {
    (vectors as u64).div_ceil(64).saturating_mul(8)
}

/// Control word and table.
#[derive(Clone, Debug)]
pub struct Msix {
    entries: Vec<[u32; 4]>,
    enabled: bool,
    function_masked: bool,
}

impl Msix {
    /// `vectors` of them (1..=2048), each masked, MSI-X off.
    pub fn new(vectors: u16) -> Self {
        let count = usize::from(vectors.clamp(1, msix::CONTROL_TABLE_SIZE + 1));
        Self { entries: vec![MASKED; count], enabled: false, function_masked: false }
    }

    /// Back to the state after a reset.
    pub fn reset(&mut self) {
        self.entries.fill(MASKED);
        self.enabled = false;
        self.function_masked = false;
    }

    /// Clears the enable bit, because what it asked for cannot be had.
    pub fn refuse(&mut self) {
        self.enabled = false;
    }

    /// Is MSI-X on?
    pub fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Vectors in the table, 1..=2048.
    pub fn count(&self) -> u16 {
        // The constructor bounds it.
        self.entries.len() as u16
    }

    /// One vector; one that is not in the table is masked.
    pub fn vector(&self, n: u16) -> VectorState {
        let [lower, upper, data, control] =
            self.entries.get(usize::from(n)).copied().unwrap_or(MASKED);
        VectorState {
            message: MsiMessage { address: u64::from(upper) << 32 | u64::from(lower), data },
            masked: !self.enabled || self.function_masked || control & msix::ENTRY_MASKED != 0,
        }
    }

    /// Vectors up to the last one that has a message: software has said that it means to use them.
    pub fn programmed(&self) -> u16 {
        let last = self.entries.iter().rposition(|&[lower, upper, ..]| lower != 0 || upper != 0);
        last.map_or(0, |last| (last as u16).saturating_add(1))
    }

    /// Message control.
    pub fn control(&self) -> u16 {
        let enable = if self.enabled { msix::CONTROL_ENABLE } else { 0 };
        let mask = if self.function_masked { msix::CONTROL_FUNCTION_MASK } else { 0 };
        self.count().saturating_sub(1) | enable | mask
    }

    /// Writes message control; the read-only bits stay.
    pub fn write_control(&mut self, value: u16) -> MsixEffect {
        let (was_enabled, was_masked) = (self.enabled, self.function_masked);
        self.enabled = value & msix::CONTROL_ENABLE != 0;
        self.function_masked = value & msix::CONTROL_FUNCTION_MASK != 0;
        match (was_enabled, self.enabled) {
            (false, true) => MsixEffect::Enabled,
            (true, false) => MsixEffect::Disabled,
            (true, true) if was_masked != self.function_masked => MsixEffect::FunctionMask,
            _ => MsixEffect::None,
        }
    }

    /// Reads the table at a byte offset; zeros past its end.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        for (at, byte) in (offset..).zip(data) {
            let dword =
                place(at).and_then(|(n, word)| self.entries.get(n).map(|entry| entry[word]));
            *byte = (dword.unwrap_or(0) >> shift(at)) as u8;
        }
    }

    /// Writes the table at a byte offset, in any width. `data` ends with the entry it starts in; what reaches
    /// beyond it is not written (the caller splits).
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> MsixEffect {
        let Some((n, _)) = place(offset) else { return MsixEffect::None };
        let Ok(number) = u16::try_from(n) else { return MsixEffect::None };
        let before = self.vector(number);
        let Some(entry) = self.entries.get_mut(n) else { return MsixEffect::None };
        for (at, &byte) in (offset % msix::ENTRY_SIZE..msix::ENTRY_SIZE).zip(data) {
            let (word, shift) = ((at / 4) as usize, shift(at));
            let writable = WRITABLE[word] & 0xff << shift;
            entry[word] = entry[word] & !writable | u32::from(byte) << shift & writable;
        }
        let after = self.vector(number);
        let dead = before.masked && after.masked;
        if dead || before == after { MsixEffect::None } else { MsixEffect::Vector(number) }
    }

    /// Reads the pending bits at a byte offset. `pending` is asked only for vectors that are masked: one that
    /// is not masked does not wait.
    pub fn read_pba(&self, offset: u64, data: &mut [u8], pending: impl Fn(u16) -> bool) {
        for (at, byte) in (offset..).zip(data) {
            let vectors = at.saturating_mul(8)..at.saturating_mul(8).saturating_add(8);
            *byte = vectors.enumerate().fold(0, |bits, (bit, n)| {
                let waits = u16::try_from(n)
                    .is_ok_and(|n| n < self.count() && self.vector(n).masked && pending(n));
                bits | u8::from(waits) << bit
            });
        }
    }
}

/// An entry after a reset.
const MASKED: [u32; 4] = [0, 0, 0, msix::ENTRY_MASKED];
/// The bits of an entry that exist.
const WRITABLE: [u32; 4] = [!0x3, u32::MAX, u32::MAX, msix::ENTRY_MASKED];

/// The bit of its dword at which a byte begins.
const fn shift(offset: u64) -> u32 {
    ((offset & 3) << 3) as u32
}

/// The entry and the dword in it of a byte offset into the table.
fn place(offset: u64) -> Option<(usize, usize)> {
    let entry = usize::try_from(offset / msix::ENTRY_SIZE).ok()?;
    Some((entry, (offset % msix::ENTRY_SIZE / 4) as usize))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const ON: u16 = msix::CONTROL_ENABLE;

    fn config(control: u16, table: u32, pba: u32) -> Vec<u8> {
        let mut config = vec![0; 0x4c];
        config[0x42..0x44].copy_from_slice(&control.to_le_bytes());
        config[0x44..0x48].copy_from_slice(&table.to_le_bytes());
        config[0x48..0x4c].copy_from_slice(&pba.to_le_bytes());
        config
    }

    /// MSI-X on, vector `n` with a message, still masked.
    fn programmed(vectors: u16, n: u16) -> Msix {
        let mut msix = Msix::new(vectors);
        assert_eq!(msix.write_control(ON), MsixEffect::Enabled);
        let entry = u64::from(n) * 16;
        for (at, value) in [(0, 0xfee0_1000u32), (4, 0), (8, 0x41)] {
            assert_eq!(msix.write_table(entry + at, &value.to_le_bytes()), MsixEffect::None);
        }
        msix
    }

    #[test]
    fn pba_takes_whole_quadwords() {
        for (vectors, bytes) in [(1, 8), (64, 8), (65, 16), (2048, 256)] {
            assert_eq!(pba_bytes(vectors), bytes, "{vectors} vectors");
        }
    }

    #[test]
    fn layout_names_bars_and_ranges() {
        let layout = MsixLayout::parse(&config(0x7ff, 0x2000 | 4, 0xa000 | 4), 0x40).unwrap();
        assert_eq!(layout.vectors, 2048);
        assert_eq!(layout.table_bar, BarIndex::new(4).unwrap());
        assert_eq!(layout.table, AddressRange::inclusive(0x2000, 0x9fff).unwrap());
        assert_eq!(layout.pba, AddressRange::inclusive(0xa000, 0xa0ff).unwrap());
        assert_eq!(layout.in_bar(layout.pba_bar).count(), 2);
    }

    #[test]
    fn layout_refuses_what_cannot_be() {
        assert_eq!(MsixLayout::parse(&config(0, 6, 0x1000), 0x40), None);
        assert_eq!(MsixLayout::parse(&config(0, 0, 0x1007), 0x40), None);
        assert_eq!(MsixLayout::parse(&config(1, 0, 0x10), 0x40), None);
        assert_eq!(MsixLayout::parse(&config(0, 0, 0x10)[..0x4a], 0x40), None);
        assert!(MsixLayout::parse(&config(1, 0, 0x20), 0x40).is_some());
    }

    #[test]
    fn unmask_tells_the_vector_once() {
        let mut msix = programmed(8, 3);
        assert_eq!(msix.write_table(3 * 16 + 12, &[0; 4]), MsixEffect::Vector(3));
        assert_eq!(msix.write_table(3 * 16 + 12, &[0; 4]), MsixEffect::None);
        let message = MsiMessage { address: 0xfee0_1000, data: 0x41 };
        assert_eq!(msix.vector(3), VectorState { message, masked: false });
        assert_eq!(msix.programmed(), 4);
    }

    #[test]
    fn message_of_a_live_vector_is_told() {
        let mut msix = programmed(8, 0);
        let _ = msix.write_table(12, &[0; 4]);
        assert_eq!(msix.write_table(8, &[0x42]), MsixEffect::Vector(0));
    }

    #[test]
    fn quadword_and_byte_writes_land_in_their_dwords() {
        let mut msix = Msix::new(1);
        let _ = msix.write_control(ON);
        let _ = msix.write_table(0, &0x1_fee0_2003u64.to_le_bytes());
        assert_eq!(msix.vector(0).message.address, 0x1_fee0_2000);
        let data = 0x41u64;
        assert_eq!(msix.write_table(8, &data.to_le_bytes()), MsixEffect::Vector(0));
        assert_eq!(msix.write_table(9, &[0x40]), MsixEffect::Vector(0));
        assert_eq!(msix.vector(0).message.data, 0x4041);
        let mut entry = [0; 16];
        msix.read_table(0, &mut entry);
        assert_eq!(entry, [0, 0x20, 0xe0, 0xfe, 1, 0, 0, 0, 0x41, 0x40, 0, 0, 0, 0, 0, 0]);
    }

    #[test]
    fn function_mask_masks_all_and_keeps_the_entries() {
        let mut msix = programmed(8, 1);
        let _ = msix.write_table(16 + 12, &[0; 4]);
        assert_eq!(msix.write_control(ON | msix::CONTROL_FUNCTION_MASK), MsixEffect::FunctionMask);
        assert!(msix.vector(1).masked);
        assert_eq!(msix.write_table(16 + 8, &[0x99]), MsixEffect::None);
        assert_eq!(msix.write_control(ON), MsixEffect::FunctionMask);
        assert!(!msix.vector(1).masked);
        assert_eq!(msix.control(), ON | 7);
        assert_eq!(msix.write_control(0), MsixEffect::Disabled);
    }

    #[test]
    fn pending_shows_only_for_masked_vectors_in_the_table() {
        let mut msix = programmed(66, 1);
        let _ = msix.write_table(16 + 12, &[0; 4]);
        let mut bits = [0; 16];
        msix.read_pba(0, &mut bits, |_| true);
        assert_eq!(bits[..9], [0xfd, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x03]);
        assert_eq!(bits[9..], [0; 7]);
        let mut byte = [0];
        msix.read_pba(8, &mut byte, |n| n == 65);
        assert_eq!(byte, [0x02]);
    }

    #[test]
    fn last_entry_of_the_largest_table_works() {
        let mut msix = programmed(2048, 2047);
        assert_eq!(msix.write_table(2047 * 16 + 12, &[0; 4]), MsixEffect::Vector(2047));
        assert_eq!(msix.write_table(2048 * 16 + 12, &[0; 4]), MsixEffect::None);
    }

    proptest! {
        #[test]
        fn any_table_write_reads_back_up_to_reserved_bits(
            vectors in 1u16..40,
            offset in 0u64..700,
            data in proptest::collection::vec(any::<u8>(), 1..=8),
        ) {
            let mut msix = Msix::new(vectors);
            let _ = msix.write_table(offset, &data);
            let mut back = vec![0; data.len()];
            msix.read_table(offset, &mut back);
            for ((at, wrote), read) in (offset..).zip(data).zip(back) {
                let inside = at / 16 == offset / 16 && at / 16 < u64::from(vectors);
                let bits = WRITABLE[(at % 16 / 4) as usize].to_le_bytes()[(at % 4) as usize];
                if inside {
                    prop_assert_eq!(read & bits, wrote & bits);
                }
            }
        }
    }
}
