//! The address of a PCI function: segment, bus, device, function.

use std::{fmt, str::FromStr};

/// One PCI function, `0000:3b:00.0`. Segments that Linux makes up itself, as for the devices behind Intel's VMD, have
/// numbers from 1_0000h on: `10000:e1:00.0`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    segment: u32,
    bus: u8,
    device: u8,
    function: u8,
}

impl Bdf {
    /// `None` when `device` is above 31 or `function` above 7.
    pub const fn new(segment: u32, bus: u8, device: u8, function: u8) -> Option<Self> {
        if device > 31 || function > 7 {
            return None;
        }
        Some(Self { segment, bus, device, function })
    }

    /// PCI segment group, 0 on most machines.
    pub const fn segment(self) -> u32 {
        self.segment
    }

    /// Bus number.
    pub const fn bus(self) -> u8 {
        self.bus
    }

    /// Device number on the bus, 0..=31.
    pub const fn device(self) -> u8 {
        self.device
    }

    /// Function number in the device, 0..=7.
    pub const fn function(self) -> u8 {
        self.function
    }

    /// The same slot, another function; `None` above 7.
    pub const fn with_function(self, function: u8) -> Option<Self> {
        Self::new(self.segment, self.bus, self.device, function)
    }

    /// Do both belong to one device (slot)?
    pub const fn same_slot(self, other: Self) -> bool {
        self.segment == other.segment && self.bus == other.bus && self.device == other.device
    }
}

impl fmt::Display for Bdf {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:04x}:{:02x}:{:02x}.{:x}", self.segment, self.bus, self.device, self.function)
    }
}

/// Why a text is no PCI address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "'{0}' is not a PCI address; write it as 0000:3b:00.0, 3b:00.0, or 3b:00 for the whole slot"
)]
pub struct BdfError(pub String);

impl FromStr for Bdf {
    type Err = BdfError;

    /// `0000:3b:00.0` or `3b:00.0`, hexadecimal.
    fn from_str(text: &str) -> Result<Self, BdfError> {
        match text.parse::<BdfSelector>()? {
            BdfSelector::Function(bdf) => Ok(bdf),
            BdfSelector::Slot(_) => Err(BdfError(text.to_owned())),
        }
    }
}

/// What a user names on the command line: one function, or every function of a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BdfSelector {
    /// `3b:00.0`: this function.
    Function(Bdf),
    /// `3b:00`: every function of the slot; held as function 0.
    Slot(Bdf),
}

impl FromStr for BdfSelector {
    type Err = BdfError;

    fn from_str(text: &str) -> Result<Self, BdfError> {
        parse(text).ok_or_else(|| BdfError(text.to_owned()))
    }
}

impl fmt::Display for BdfSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Function(bdf) => bdf.fmt(f),
            Self::Slot(b) => write!(f, "{:04x}:{:02x}:{:02x}", b.segment, b.bus, b.device),
        }
    }
}

fn parse(text: &str) -> Option<BdfSelector> {
    let (address, function) = match text.split_once('.') {
        Some((address, function)) => (address, Some(hex(function, 1)?)),
        None => (text, None),
    };
    let parts: Vec<&str> = address.split(':').collect();
    let (segment, bus, device) = match parts.as_slice() {
        [bus, device] => (0, hex(bus, 2)?, hex(device, 2)?),
        [segment, bus, device] => (hex(segment, 8)?, hex(bus, 2)?, hex(device, 2)?),
        _ => return None,
    };
    let (bus, device) = (u8::try_from(bus).ok()?, u8::try_from(device).ok()?);
    Some(match function {
        Some(function) => {
            BdfSelector::Function(Bdf::new(segment, bus, device, u8::try_from(function).ok()?)?)
        }
        None => BdfSelector::Slot(Bdf::new(segment, bus, device, 0)?),
    })
}

/// One to `digits` hexadecimal digits and nothing else (`from_str_radix` alone would take a sign).
fn hex(text: &str, digits: usize) -> Option<u32> {
    let fits = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    fits.then(|| u32::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_printed_address_parses_back() {
        for (bus, device, function) in
            (0..=255).flat_map(|b| (0..32).flat_map(move |d| (0..8).map(move |f| (b, d, f))))
        {
            let bdf = Bdf::new(0x1a, bus, device, function).unwrap();
            assert_eq!(bdf.to_string().parse(), Ok(bdf));
        }
    }

    #[test]
    fn segments_beyond_16_bits_are_read_and_printed_as_linux_does() {
        let bdf = Bdf::new(0x1_0000, 0xe1, 0, 0).unwrap();
        assert_eq!("10000:e1:00.0".parse(), Ok(bdf));
        assert_eq!("10000:e1:00".parse(), Ok(BdfSelector::Slot(bdf)));
        assert_eq!(bdf.to_string(), "10000:e1:00.0");
        let last = Bdf::new(u32::MAX, 0, 0, 0).unwrap();
        assert_eq!(last.to_string().parse(), Ok(last));
        assert_ne!(bdf, Bdf::new(0, 0xe1, 0, 0).unwrap());
    }

    #[test]
    fn short_forms_default_the_segment() {
        assert_eq!("3b:00.1".parse(), Ok(Bdf::new(0, 0x3b, 0, 1).unwrap()));
        assert_eq!("3b:00".parse(), Ok(BdfSelector::Slot(Bdf::new(0, 0x3b, 0, 0).unwrap())));
        assert!("3b:00".parse::<Bdf>().is_err());
    }

    #[test]
    fn rejects_what_is_no_address() {
        for text in [
            "",
            "3b",
            "3b:20.0",
            "3b:00.8",
            "3b:00.",
            "+b:00.0",
            "0:0:0:0.0",
            "100000000:3b:00.0",
            "3b:00.0 ",
        ] {
            assert!(text.parse::<BdfSelector>().is_err(), "{text:?} was taken");
        }
    }
}
