//! The contract between the root complex and one PCI function.

use strait_resources::bar::{BarIndex, BarSpec};

use crate::{
    pci::regs,
    ports::{Access, HostMemory},
};

/// A configuration access inside one function: 1, 2 or 4 bytes that do not cross a 4-byte boundary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConfigAccess {
    offset: u16,
    len: u8,
}

impl ConfigAccess {
    /// `None` unless `len` is 1, 2 or 4, `offset` is a multiple of it, and both stay inside 4 KiB.
    pub const fn new(offset: u16, len: u8) -> Option<Self> {
        let aligned = matches!(len, 1 | 2 | 4) && offset.is_multiple_of(len as u16);
        if aligned && offset < 4096 { Some(Self { offset, len }) } else { None }
    }

    /// First byte, 0..4096.
    pub const fn offset(self) -> u16 {
        self.offset
    }

    /// 1, 2 or 4.
    pub const fn len(self) -> u8 {
        self.len
    }

    /// Every byte of it, in ascending order.
    pub(crate) fn offsets(self) -> impl Iterator<Item = u16> + use<> {
        (self.offset..).take(self.len.into())
    }

    /// Never; an access has at least one byte.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Does a write of `value` set Bus Master Enable?
    pub(crate) fn sets_bus_master(self, value: u32) -> bool {
        self.offset == regs::COMMAND && value & u32::from(regs::COMMAND_MASTER) != 0
    }

    /// All ones in the width of the access: what an absent register reads as.
    pub const fn all_ones(self) -> u32 {
        match self.len {
            1 => 0xff,
            2 => 0xffff,
            _ => 0xffff_ffff,
        }
    }
}

/// Part of a BAR that the guest may reach without an exit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectArea {
    /// Bytes from the start of the BAR, page aligned.
    pub offset: u64,
    /// What is behind; stays mapped as long as the function lives.
    pub memory: HostMemory,
    /// What the device's kernel interface lets be done to it.
    pub access: Access,
}

/// A BAR as the root complex needs to know it: asked once, when the function is added.
#[derive(Clone, Debug)]
pub struct BarLayout {
    /// Register, kind and size as the guest sees them.
    pub spec: BarSpec,
    /// Parts reached directly; everything else is trapped. Empty for I/O, ROM and sub-page BARs.
    pub direct: Vec<DirectArea>,
}

/// Where one BAR decodes after a configuration write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BarPlacement {
    /// Which BAR.
    pub bar: BarIndex,
    /// Its address: a guest-physical address, or a port for an I/O BAR.
    pub address: u64,
    /// Does it decode there (enable bit in Command, ROM enable bit, power state D0)?
    pub decoded: bool,
    /// Could the device answer there if it decoded? Not outside D0: what is mapped of it must go, while a mapping
    /// may outlive decoding that is only turned off.
    pub answers: bool,
}

/// The placements that a configuration write changed; empty for nearly every write.
pub type BarChanges = Vec<BarPlacement>;

/// One PCI function. Absent reads are all ones; refused writes vanish.
pub trait PciFunction: Send {
    /// Every implemented BAR, ROM included, by ascending index. Constant.
    fn bars(&self) -> Vec<BarLayout>;
    /// The value, right-aligned.
    fn config_read(&mut self, at: ConfigAccess) -> u32;
    /// What moved is applied by the root complex after our lock is released. A write after which the device does not
    /// answer, or not for a while, says so here and reaches the device in [`PciFunction::settled`].
    fn config_write(&mut self, at: ConfigAccess, value: u32) -> BarChanges;
    /// What moved after the last write is applied: what waited for that reaches the device now. What moves by it.
    fn settled(&mut self) -> BarChanges;
    /// Trapped read; `offset` is relative to the BAR.
    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]);
    /// Trapped write.
    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]);
    /// Back to the state after power-on: BARs undecoded, interrupts off, the device reset. Returns every placement. The
    /// guest has lost the BARs before.
    fn reset(&mut self) -> BarChanges;
}
