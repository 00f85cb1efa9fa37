//! Base address registers as facts: which, what kind, how large.

use std::fmt;

/// BAR 0 to 5 of a function, or its expansion ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BarIndex(u8);

impl BarIndex {
    /// The expansion ROM, VFIO's region 6.
    pub const ROM: Self = Self(6);

    /// `None` above 6.
    pub const fn new(index: u8) -> Option<Self> {
        if index > 6 { None } else { Some(Self(index)) }
    }

    /// 0..=5 for a BAR, 6 for the ROM.
    pub const fn get(self) -> u8 {
        self.0
    }

    /// 0 to 5; `None` for the ROM's.
    pub const fn number(self) -> Option<u8> {
        match self.0 == Self::ROM.0 {
            true => None,
            false => Some(self.0),
        }
    }
}

impl fmt::Display for BarIndex {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::ROM { f.write_str("ROM") } else { write!(f, "BAR {}", self.0) }
    }
}

/// What address space a BAR decodes (PCI Local Bus 3.0, 6.2.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BarKind {
    /// I/O ports.
    Io,
    /// 32-bit memory.
    Memory32 {
        /// Reads have no side effect.
        prefetchable: bool,
    },
    /// 64-bit memory; takes this register and the next.
    Memory64 {
        /// Reads have no side effect.
        prefetchable: bool,
    },
    /// Expansion ROM: 32-bit memory with an enable bit of its own.
    Rom,
}

impl BarKind {
    /// Is this memory (not I/O)?
    pub const fn is_memory(self) -> bool {
        !matches!(self, Self::Io)
    }

    /// May reads of it be merged and done ahead (PCI 3.0, 6.2.5.1)?
    pub const fn is_prefetchable(self) -> bool {
        matches!(
            self,
            Self::Memory32 { prefetchable: true } | Self::Memory64 { prefetchable: true }
        )
    }

    /// As answers for programs have it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Io => "io",
            Self::Memory32 { .. } => "memory32",
            Self::Memory64 { .. } => "memory64",
            Self::Rom => "rom",
        }
    }
}

/// One implemented BAR: a power-of-two `size` in bytes, 4 at least for I/O, 16 for memory, 2048 for a ROM.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct BarSpec {
    /// Which register.
    pub index: BarIndex,
    /// Which address space.
    pub kind: BarKind,
    /// Bytes, a power of two.
    pub size: u64,
}
