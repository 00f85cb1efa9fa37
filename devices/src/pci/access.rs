//! The two ways into configuration space: ECAM (PCIe Base 5.0, 7.2.2) and the ports CONFIG_ADDRESS and CONFIG_DATA
//! (PCI 3.0, 3.2.2.3.2), among which the chipset's reset control register lies (Intel ICH9 datasheet, 13.7.5).

use std::sync::{
    Arc, Weak,
    atomic::{AtomicU8, AtomicU32, Ordering},
};

use strait_resources::{bdf::Bdf, range::AddressRange};
use vm_device::{
    DeviceMmio, DevicePio,
    bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset},
};

use crate::{
    pci::{function::ConfigAccess, root::RootComplex},
    ports::MachineControl,
};

/// CF8 to CFF.
const PORTS: AddressRange = match AddressRange::inclusive(0xcf8, 0xcff) {
    Some(ports) => ports,
    None => panic!("the ports are in order"),
};
const ADDRESS: PioAddressOffset = 0;
const RESET_CONTROL: PioAddressOffset = 1;
const DATA: PioAddressOffset = 4;
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Reset control: bit 2 resets the CPU, bits 1 and 3 say how thoroughly.
const RESET_CPU: u8 = 1 << 2;
const RESET_KIND: u8 = 1 << 1 | 1 << 3;

/// ECAM: bus, device, function and register are the address.
pub(super) struct Ecam(Weak<RootComplex>);

/// The ports. The address register takes 32-bit accesses only; a byte at CF9 is the reset control register.
pub(super) struct ConfigPorts {
    root: Weak<RootComplex>,
    control: Arc<dyn MachineControl>,
    address: AtomicU32,
    reset_kind: AtomicU8,
}

impl Ecam {
    pub(super) fn new(root: Weak<RootComplex>) -> Self {
        Self(root)
    }
}

impl DeviceMmio for Ecam {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        read(&self.0, offset, data);
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        write(&self.0, offset, data);
    }
}

impl ConfigPorts {
    pub(super) fn new(root: Weak<RootComplex>, control: Arc<dyn MachineControl>) -> Self {
        Self { root, control, address: AtomicU32::new(0), reset_kind: AtomicU8::new(0) }
    }

    /// Where on the bus.
    pub(super) const fn range() -> AddressRange {
        PORTS
    }

    /// As after power-on.
    pub(super) fn reset(&self) {
        self.address.store(0, Ordering::Relaxed);
        self.reset_kind.store(0, Ordering::Relaxed);
    }

    /// What a data port leads to, as an offset into ECAM: the address register lacks only its four bits of register
    /// number.
    fn selected(&self, port: PioAddressOffset) -> Option<u64> {
        let address = self.address.load(Ordering::Relaxed);
        let function = u64::from(address >> 8 & 0xffff) << 12;
        let register = u64::from(address & 0xfc).checked_add(port.checked_sub(DATA)?.into())?;
        function.checked_add(register).filter(|_| address & ADDRESS_ENABLE != 0)
    }
}

impl DevicePio for ConfigPorts {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        if offset == ADDRESS && data.len() == 4 {
            data.copy_from_slice(&self.address.load(Ordering::Relaxed).to_le_bytes());
        } else if offset == RESET_CONTROL && data.len() == 1 {
            data.fill(self.reset_kind.load(Ordering::Relaxed));
        } else if let Some(at) = self.selected(offset) {
            read(&self.root, at, data);
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        if let (ADDRESS, &[a, b, c, d]) = (offset, data) {
            self.address.store(u32::from_le_bytes([a, b, c, d]), Ordering::Relaxed);
        } else if let (RESET_CONTROL, [byte]) = (offset, data) {
            self.reset_kind.store(byte & RESET_KIND, Ordering::Relaxed);
            if byte & RESET_CPU != 0 {
                self.control.reset();
            }
        } else if let Some(at) = self.selected(offset) {
            write(&self.root, at, data);
        }
    }
}

fn read(root: &Weak<RootComplex>, offset: u64, data: &mut [u8]) {
    data.fill(0xff);
    let Some(root) = root.upgrade() else { return };
    let mut rest = data;
    for (function, at) in pieces(offset, rest.len()) {
        let Some((piece, after)) = rest.split_at_mut_checked(at.len().into()) else { return };
        let value = root.read(function, at).to_le_bytes();
        piece.iter_mut().zip(value).for_each(|(byte, read)| *byte = read);
        rest = after;
    }
}

fn write(root: &Weak<RootComplex>, offset: u64, data: &[u8]) {
    let Some(root) = root.upgrade() else { return };
    let mut rest = data;
    for (function, at) in pieces(offset, rest.len()) {
        let Some((piece, after)) = rest.split_at_checked(at.len().into()) else { return };
        let mut value = [0; 4];
        value.iter_mut().zip(piece).for_each(|(byte, written)| *byte = *written);
        root.write(function, at, u32::from_le_bytes(value));
        rest = after;
    }
}

/// `len` bytes of ECAM as accesses that a function takes: naturally aligned, 4 bytes at most, in order. They end where
/// the buses do.
fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (Bdf, ConfigAccess)> {
    let (mut next, end) = (offset, offset.saturating_add(len as u64));
    std::iter::from_fn(move || {
        let at = next;
        let fits =
            |len: u8| at.is_multiple_of(len.into()) && u64::from(len) <= end.saturating_sub(at);
        let len = [4, 2, 1].into_iter().find(|len| fits(*len))?;
        next = at.saturating_add(len.into());
        let bus = u8::try_from(at >> 20).ok()?;
        let function = Bdf::new(0, bus, (at >> 15 & 31) as u8, (at >> 12 & 7) as u8)?;
        Some((function, ConfigAccess::new((at & 0xfff) as u16, len)?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn split(offset: u64, len: usize) -> Vec<(String, u16, u8)> {
        pieces(offset, len).map(|(bdf, at)| (bdf.to_string(), at.offset(), at.len())).collect()
    }

    #[test]
    fn quadword_is_two_dwords() {
        let bdf = "0000:05:03.1".to_owned();
        let offset = 5 << 20 | 3 << 15 | 1 << 12 | 0x40;
        assert_eq!(split(offset, 8), [(bdf.clone(), 0x40, 4), (bdf, 0x44, 4)]);
    }

    #[test]
    fn unaligned_access_is_split_and_may_cross_functions() {
        let (first, second) = ("0000:00:00.0".to_owned(), "0000:00:00.1".to_owned());
        let expected = [(first.clone(), 0xffd, 1), (first, 0xffe, 2), (second, 0x000, 1)];
        assert_eq!(split(0xffd, 4), expected);
    }

    #[test]
    fn nobody_is_past_bus_255() {
        assert_eq!(split(256 << 20, 4), []);
        assert_eq!(split(u64::MAX - 1, 8), []);
    }
}
