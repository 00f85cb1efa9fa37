//! Address ranges with an inclusive end, so that the last byte of an address space can be in one.

use std::fmt;

/// A non-empty range of addresses, first and last byte inclusive.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    first: u64,
    last: u64,
}

impl AddressRange {
    /// `len` bytes from `first`; `None` when empty or when the end does not fit in 64 bits.
    pub const fn new(first: u64, len: u64) -> Option<Self> {
        if len == 0 {
            return None;
        }
        match first.checked_add(len - 1) {
            Some(last) => Some(Self { first, last }),
            None => None,
        }
    }

    /// From the first to the last byte, both inside; `None` when `last < first`.
    pub const fn inclusive(first: u64, last: u64) -> Option<Self> {
        if last < first { None } else { Some(Self { first, last }) }
    }

    /// The first byte.
    pub const fn first(self) -> u64 {
        self.first
    }

    /// The last byte.
    pub const fn last(self) -> u64 {
        self.last
    }

    /// Length in bytes, saturating at `u64::MAX` for the range that holds every address.
    pub const fn len(self) -> u64 {
        (self.last - self.first).saturating_add(1)
    }

    /// Never: a range holds at least one byte. Here because clippy asks for it beside `len`.
    pub const fn is_empty(self) -> bool {
        false
    }

    /// Is this address inside?
    pub const fn contains(self, address: u64) -> bool {
        self.first <= address && address <= self.last
    }

    /// Is the whole of `other` inside?
    pub const fn encloses(self, other: Self) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Do the two share a byte?
    pub const fn overlaps(self, other: Self) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// The bytes in both.
    pub fn intersect(self, other: Self) -> Option<Self> {
        Self::inclusive(self.first.max(other.first), self.last.min(other.last))
    }

    /// What is left of `self` once `hole` is taken out: nothing, one piece or two, in order.
    pub fn subtract(self, hole: Self) -> impl Iterator<Item = Self> {
        let (before, after) = if self.overlaps(hole) {
            (
                hole.first.checked_sub(1).and_then(|last| Self::inclusive(self.first, last)),
                hole.last.checked_add(1).and_then(|first| Self::inclusive(first, self.last)),
            )
        } else {
            (Some(self), None)
        };
        before.into_iter().chain(after)
    }

    /// What is left of `self` once every hole is taken out, in order.
    pub fn subtract_all(self, holes: impl IntoIterator<Item = Self>) -> Vec<Self> {
        let mut left = vec![self];
        for hole in holes {
            left = left.into_iter().flat_map(|piece| piece.subtract(hole)).collect();
        }
        left
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.first, self.last)
    }
}

/// The next multiple of `align` (a power of two) at or above `value`; `None` past 64 bits.
pub const fn align_up(value: u64, align: u64) -> Option<u64> {
    match value.checked_add(align - 1) {
        Some(sum) => Some(sum & !(align - 1)),
        None => None,
    }
}

/// The last multiple of `align` (a power of two) at or below `value`.
pub const fn align_down(value: u64, align: u64) -> u64 {
    value & !(align - 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> AddressRange {
        AddressRange::inclusive(first, last).unwrap()
    }

    #[test]
    fn new_rejects_empty_and_wrapping() {
        assert_eq!(AddressRange::new(0x1000, 0), None);
        assert_eq!(AddressRange::new(u64::MAX, 2), None);
        assert_eq!(AddressRange::new(u64::MAX, 1), Some(range(u64::MAX, u64::MAX)));
    }

    #[test]
    fn subtract_inside_leaves_two_pieces() {
        let pieces: Vec<_> = range(0, 99).subtract(range(10, 19)).collect();
        assert_eq!(pieces, [range(0, 9), range(20, 99)]);
    }

    #[test]
    fn subtract_at_the_end_of_the_address_space_does_not_wrap() {
        let pieces: Vec<_> = range(0, u64::MAX).subtract(range(10, u64::MAX)).collect();
        assert_eq!(pieces, [range(0, 9)]);
    }

    #[test]
    fn subtract_all_keeps_order() {
        let pieces = range(0, 99).subtract_all([range(50, 59), range(0, 4)]);
        assert_eq!(pieces, [range(5, 49), range(60, 99)]);
    }

    #[test]
    fn align_up_past_the_end_is_none() {
        assert_eq!(align_up(u64::MAX, 0x1000), None);
        assert_eq!(align_up(0x1001, 0x1000), Some(0x2000));
    }
}
