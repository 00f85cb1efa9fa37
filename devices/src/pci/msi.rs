//! The MSI capability as a pure state machine: bytes in, what happened out. (PCI 6.8.1, PCIe 7.7.1)

use crate::{
    pci::{
        caps::{read16, read32},
        regs::msi,
    },
    ports::MsiMessage,
};

/// The largest form of the capability: 64-bit addresses, mask and pending bits.
const MAX_SIZE: usize = 0x18;

/// One vector as the interrupt path needs to know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VectorState {
    /// What a signal writes.
    pub message: MsiMessage,
    /// Signals wait, whichever bit says so.
    pub masked: bool,
}

/// What a write did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum MsiEffect {
    /// Nothing that anyone outside needs to know.
    None,
    /// On, or on with another number of vectors.
    Enabled,
    /// Off.
    Disabled,
    /// On as before, with another message or other masks.
    Vectors,
}

/// The capability's registers.
#[derive(Clone, Debug)]
pub struct Msi {
    initial: [u8; MAX_SIZE],
    bytes: [u8; MAX_SIZE],
    writable: [u8; MAX_SIZE],
    size: u16,
    data_at: u16,
    /// The mask register, where there is one; the pending register follows it.
    mask_at: Option<u16>,
}

impl Msi {
    /// From the device's message control register and the number of vectors that can be had from VFIO
    /// (1 at least). Off, nothing masked, as after a reset.
    pub fn new(control: u16, vectors: u32) -> Self {
        let wide = control & msi::CONTROL_64 != 0;
        let mask_at = (control & msi::CONTROL_MASKABLE != 0).then_some(if wide {
            msi::MASK_64
        } else {
            msi::MASK_32
        });
        let data_at = if wide { msi::DATA_64 } else { msi::DATA_32 };

        let capable = (control & msi::CONTROL_CAPABLE) >> msi::CONTROL_CAPABLE_SHIFT;
        let granted = u16::try_from(vectors.max(1).ilog2()).unwrap_or(0);
        let log2 = capable.min(granted).min(msi::MAX_LOG2);
        let kept = control & (msi::CONTROL_64 | msi::CONTROL_MASKABLE);
        let mut initial = [0; MAX_SIZE];
        put(&mut initial, msi::CONTROL, &(kept | log2 << msi::CONTROL_CAPABLE_SHIFT).to_le_bytes());

        let mut writable = [0; MAX_SIZE];
        let control_bits = msi::CONTROL_ENABLE | msi::CONTROL_ENABLED;
        put(&mut writable, msi::CONTROL, &control_bits.to_le_bytes());
        put(&mut writable, msi::ADDRESS, &(!0x3u32).to_le_bytes());
        if wide {
            put(&mut writable, msi::ADDRESS_UPPER, &u32::MAX.to_le_bytes());
        }
        put(&mut writable, data_at, &u16::MAX.to_le_bytes());
        if let Some(mask_at) = mask_at {
            let vectors = u32::MAX.unbounded_shr(32_u32.saturating_sub(1 << log2));
            put(&mut writable, mask_at, &vectors.to_le_bytes());
        }
        let size = msi::size(control);
        Self { initial, bytes: initial, writable, size, data_at, mask_at }
    }

    /// Bytes of the capability, its two header bytes included.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Back to the state after a reset.
    pub fn reset(&mut self) {
        self.bytes = self.initial;
    }

    /// Clears the enable bit, because what it asked for cannot be had.
    pub fn refuse(&mut self) {
        let control = self.control() & !msi::CONTROL_ENABLE;
        put(&mut self.bytes, msi::CONTROL, &control.to_le_bytes());
    }

    /// The byte at an offset into the capability. `pending` has one bit for each vector that waits; it is
    /// asked only if the byte is one of the pending register.
    pub fn read_byte(&self, offset: u16, pending: impl FnOnce() -> u32) -> u8 {
        if let Some(byte) =
            self.mask_at.and_then(|at| offset.checked_sub(at)?.checked_sub(4)).filter(|&b| b < 4)
        {
            return pending().to_le_bytes()[usize::from(byte)];
        }
        self.bytes.get(usize::from(offset)).copied().unwrap_or(0)
    }

    /// Writes at an offset into the capability.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> MsiEffect {
        let (was, count, bytes) = (self.is_enabled(), self.count(), self.bytes);
        for (at, &byte) in (usize::from(offset)..MAX_SIZE).zip(data) {
            self.bytes[at] = self.bytes[at] & !self.writable[at] | byte & self.writable[at];
        }
        match (was, self.is_enabled()) {
            (true, false) => MsiEffect::Disabled,
            (false, true) => MsiEffect::Enabled,
            (true, true) if self.count() != count => MsiEffect::Enabled,
            (true, true) if self.bytes != bytes => MsiEffect::Vectors,
            _ => MsiEffect::None,
        }
    }

    /// Is MSI on?
    pub fn is_enabled(&self) -> bool {
        self.control() & msi::CONTROL_ENABLE != 0
    }

    /// Vectors in use: a power of two, 1..=32, never more than the function can.
    pub fn count(&self) -> u32 {
        let control = self.control();
        let capable = (control & msi::CONTROL_CAPABLE) >> msi::CONTROL_CAPABLE_SHIFT;
        let enabled = (control & msi::CONTROL_ENABLED) >> msi::CONTROL_ENABLED_SHIFT;
        1 << enabled.min(capable)
    }

    /// Vector `n` of [`Self::count`].
    pub fn vector(&self, n: u32) -> VectorState {
        let dword = |at| read32(&self.bytes, at).unwrap_or(0);
        let wide = self.data_at == msi::DATA_64;
        let upper = if wide { u64::from(dword(msi::ADDRESS_UPPER)) << 32 } else { 0 };
        let data = u32::from(read16(&self.bytes, self.data_at).unwrap_or(0));
        // The function puts the vector's number into the low bits that it was granted.
        let low = self.count().saturating_sub(1);
        VectorState {
            message: MsiMessage {
                address: upper | u64::from(dword(msi::ADDRESS)),
                data: data & !low | n & low,
            },
            masked: self.mask_at.is_some_and(|at| dword(at).checked_shr(n).unwrap_or(0) & 1 != 0),
        }
    }

    fn control(&self) -> u16 {
        read16(&self.bytes, msi::CONTROL).unwrap_or(0)
    }
}

/// Copies what fits.
fn put(bytes: &mut [u8; MAX_SIZE], offset: u16, value: &[u8]) {
    for (to, from) in bytes.iter_mut().skip(offset.into()).zip(value) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FULL: u16 = msi::CONTROL_64 | msi::CONTROL_MASKABLE | 5 << msi::CONTROL_CAPABLE_SHIFT;
    const ENABLE: u8 = msi::CONTROL_ENABLE as u8;

    fn read(msi: &Msi, offset: u16) -> u32 {
        u32::from_le_bytes([0, 1, 2, 3].map(|byte| msi.read_byte(offset + byte, || 0x8000_0001)))
    }

    #[test]
    fn narrow_message_is_assembled() {
        let mut msi = Msi::new(0, 1);
        assert_eq!(msi.write(msi::ADDRESS, &0xfee0_1003u32.to_le_bytes()), MsiEffect::None);
        assert_eq!(msi.write(msi::DATA_32, &[0x41, 0x40]), MsiEffect::None);
        assert_eq!(msi.write(msi::CONTROL, &[ENABLE]), MsiEffect::Enabled);
        let message = MsiMessage { address: 0xfee0_1000, data: 0x4041 };
        assert_eq!(msi.vector(0), VectorState { message, masked: false });
        assert_eq!(msi.size(), 0x0a);
    }

    #[test]
    fn wide_message_uses_the_upper_half_and_numbers_its_vectors() {
        let mut msi = Msi::new(FULL, 32);
        let _ = msi.write(msi::ADDRESS, &[0, 0, 0xe0, 0xfe, 1, 0, 0, 0, 0x47, 0]);
        assert_eq!(msi.write(msi::CONTROL, &[ENABLE | 2 << 4]), MsiEffect::Enabled);
        assert_eq!(msi.count(), 4);
        assert_eq!(msi.vector(2).message, MsiMessage { address: 0x1_fee0_0000, data: 0x46 });
    }

    #[test]
    fn grant_above_what_the_host_gives_is_clamped() {
        let mut msi = Msi::new(FULL, 4);
        assert_eq!(read(&msi, 0) >> 16 & 0xe, 2 << 1);
        let _ = msi.write(msi::CONTROL, &[ENABLE | 5 << 4]);
        assert_eq!(msi.count(), 4);
        let _ = msi.write(msi::MASK_64, &[0xff; 4]);
        assert_eq!(read(&msi, msi::MASK_64), 0xf);
    }

    #[test]
    fn mask_and_message_changes_while_on_are_told() {
        let mut msi = Msi::new(FULL, 32);
        assert_eq!(msi.write(msi::MASK_64, &[1]), MsiEffect::None);
        let _ = msi.write(msi::CONTROL, &[ENABLE]);
        assert!(msi.vector(0).masked);
        assert_eq!(msi.write(msi::MASK_64, &[0]), MsiEffect::Vectors);
        assert_eq!(msi.write(msi::DATA_64, &[0x51, 0]), MsiEffect::Vectors);
        assert_eq!(msi.write(msi::DATA_64, &[0x51, 0]), MsiEffect::None);
        assert_eq!(msi.write(msi::CONTROL, &[ENABLE | 1 << 4]), MsiEffect::Enabled);
        assert_eq!(msi.write(msi::CONTROL, &[0]), MsiEffect::Disabled);
    }

    #[test]
    fn pending_bits_come_from_outside_and_cannot_be_written() {
        let mut msi = Msi::new(FULL, 32);
        let _ = msi.write(msi::PENDING_64, &[0xff; 4]);
        assert_eq!(read(&msi, msi::PENDING_64), 0x8000_0001);
    }

    #[test]
    fn refused_enable_reads_back_as_off() {
        let mut msi = Msi::new(FULL, 32);
        let _ = msi.write(msi::CONTROL, &[ENABLE]);
        msi.refuse();
        assert!(!msi.is_enabled());
    }

    proptest! {
        #[test]
        fn any_writes_keep_vectors_within_the_grant(
            control: u16,
            host in 0u32..64,
            writes in proptest::collection::vec((0u16..0x20, any::<[u8; 4]>(), 1usize..=4), 0..50),
        ) {
            let mut msi = Msi::new(control, host);
            for (offset, data, len) in writes {
                let _ = msi.write(offset, &data[..len]);
                prop_assert!(msi.count() <= host.max(1) && msi.count() <= 32);
                let _ = msi.vector(31);
            }
            msi.reset();
            prop_assert!(!msi.is_enabled());
        }
    }
}
