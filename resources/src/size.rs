//! Amounts of memory as people write them.

use std::fmt;

/// Bytes, printed as `512 MiB`, `16 GiB`, `12.3 GiB`: exact when the number is round, else one decimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 5] = ["bytes", "KiB", "MiB", "GiB", "TiB"];
        let mut power = 0;
        while power < UNITS.len() - 1 && self.0 >> (10 * (power + 1)) > 0 {
            power += 1;
        }
        let (whole, rest) = (self.0 >> (10 * power), self.0 & ((1 << (10 * power)) - 1));
        // Rounded down: "12.3 GiB are free" must not promise more than there is.
        match (u128::from(rest) * 10) >> (10 * power) {
            0 if rest == 0 => write!(f, "{whole} {}", UNITS[power]),
            tenths => write!(f, "{whole}.{tenths} {}", UNITS[power]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_round_numbers_are_exact_and_others_have_one_decimal() {
        let printed = |bytes| Size(bytes).to_string();
        assert_eq!(printed(0), "0 bytes");
        assert_eq!(printed(1023), "1023 bytes");
        assert_eq!(printed(16 << 30), "16 GiB");
        assert_eq!(printed((16 << 30) - 1), "15.9 GiB");
        assert_eq!(printed(2 << 50), "2048 TiB");
        assert_eq!(printed((1 << 30) + 1), "1.0 GiB");
        assert_eq!(printed(u64::MAX), "16777215.9 TiB");
    }
}
