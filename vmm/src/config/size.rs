//! Sizes as people write them: `512M`, `8G`, `8GiB`. Always with a unit: others read a bare number as MiB or as bytes.

use std::fmt;

/// Why a text is no size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SizeError {
    /// Digits only.
    NoUnit,
    /// Not digits and a unit.
    Malformed,
    /// Past 64 bits.
    TooLarge,
}

impl fmt::Display for SizeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoUnit => "a size needs a unit",
            Self::Malformed => "that is no size",
            Self::TooLarge => "that is more than 64 bits can say",
        })
    }
}

/// Bytes. Units are `K`, `M`, `G` and `T`, powers of 1024, in either case, with or without `iB`.
pub(super) fn parse(text: &str) -> Result<u64, SizeError> {
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(SizeError::Malformed);
    }
    let shift = match unit.to_ascii_lowercase().as_str() {
        "" => return Err(SizeError::NoUnit),
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        "t" | "tib" => 40,
        _ => return Err(SizeError::Malformed),
    };
    let number: u64 = number.parse().map_err(|_| SizeError::TooLarge)?;
    number.checked_mul(1 << shift).ok_or(SizeError::TooLarge)
}

/// The largest unit that says it exactly: the text that [`parse`] takes back.
pub(crate) fn exact(bytes: u64) -> String {
    match [(40, "T"), (30, "G"), (20, "M"), (10, "K")]
        .into_iter()
        .find(|(shift, _)| bytes >= 1 << shift && bytes.is_multiple_of(1 << shift))
    {
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn parse_units_are_powers_of_1024() {
        for (text, bytes) in [
            ("512M", 512 << 20),
            ("8G", 8 << 30),
            ("8g", 8 << 30),
            ("8GiB", 8 << 30),
            ("0K", 0),
            ("4096k", 4 << 20),
            ("2T", 2 << 40),
        ] {
            assert_eq!(parse(text), Ok(bytes), "{text}");
        }
    }

    #[test]
    fn parse_refuses_what_is_no_size() {
        assert_eq!(parse("4096"), Err(SizeError::NoUnit));
        for text in ["", "G", "1.5G", "-1G", "+1G", "8 G", "8GB", "8X", "0x10M", "８G"] {
            assert_eq!(parse(text), Err(SizeError::Malformed), "{text}");
        }
        assert_eq!(parse("18446744073709551616K"), Err(SizeError::TooLarge));
        assert_eq!(parse("16777216T"), Err(SizeError::TooLarge));
    }

    proptest! {
        #[test]
        fn exact_parses_back(kib in 1..u64::MAX >> 10) {
            prop_assert_eq!(parse(&exact(kib << 10)), Ok(kib << 10));
        }

        #[test]
        fn parse_takes_any_text_without_a_panic(text in ".*") {
            let _ = parse(&text);
        }
    }
}
