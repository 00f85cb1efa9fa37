//! Tables of the user's, looked at before a guest is given them: an operating system that finds a broken one says so
//! deep in its log, if at all.

use std::fmt;

/// Bytes of the header that every table has (ACPI 6.5, 5.2.6).
const HEADER: usize = 36;
/// The tables that only the machine itself can know: with another one beside it, a guest would not start or not find
/// its devices.
const OURS: &[[u8; 4]] =
    &[*b"RSDT", *b"XSDT", *b"FACP", *b"FACS", *b"DSDT", *b"APIC", *b"MCFG", *b"WAET"];
/// Tables of which there may be several (5.2.11.2 and table 5.5); they differ in their OEM table ID.
const SEVERAL: &[[u8; 4]] = &[*b"SSDT", *b"PSDT", *b"UEFI"];

/// The names in a header.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct TableName {
    /// `SSDT`.
    pub signature: [u8; 4],
    /// Who made it.
    pub oem: [u8; 6],
    /// The maker's name for it.
    pub table: [u8; 8],
}

impl TableName {
    /// Of a table that was checked.
    fn of(table: &[u8]) -> Option<Self> {
        Some(Self {
            signature: table.get(0..4)?.try_into().ok()?,
            oem: table.get(10..16)?.try_into().ok()?,
            table: table.get(16..24)?.try_into().ok()?,
        })
    }

    /// Would an operating system take these for the same?
    fn clashes(&self, other: &Self) -> bool {
        self.signature == other.signature && (!SEVERAL.contains(&self.signature) || self == other)
    }
}

/// `SSDT "NVIDIA Optimus"`.
impl fmt::Display for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = |bytes: &[u8]| {
            let text: String = bytes.iter().map(|byte| printable(*byte)).collect();
            text.trim_end().to_owned()
        };
        write!(f, "{} ({} {})", text(&self.signature), text(&self.oem), text(&self.table))
    }
}

impl fmt::Debug for TableName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

fn printable(byte: u8) -> char {
    match byte {
        b' '..=b'~' => char::from(byte),
        0 => ' ',
        _ => '?',
    }
}

/// Why a file is no table for a guest.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TableError {
    /// No room for a header.
    #[error("it has {0} bytes, and the header alone has {HEADER}")]
    Short(usize),
    /// The source that iasl compiles, not what comes out.
    #[error("it is text: compile it first")]
    Text,
    /// Four bytes that are no name.
    #[error("it does not begin with a table's name")]
    Signature,
    /// A damaged or padded file.
    #[error("its header says {header} bytes, but the file has {file}")]
    Length {
        /// From the header.
        header: u32,
        /// Of the file.
        file: usize,
    },
    /// Not all bytes add up to zero.
    #[error("its checksum is wrong: it was damaged, or changed by hand")]
    Checksum,
    /// One of [`OURS`].
    #[error("it is a {0}, and strait makes that table itself")]
    Ours(String),
    /// The guest would see two of the same.
    #[error("there is a {0} already")]
    Twice(TableName),
}

/// Looks at a table and notes it in `seen`.
pub fn check_table(bytes: &[u8], seen: &mut Vec<TableName>) -> Result<TableName, TableError> {
    let is_text = |bytes: &[u8]| {
        bytes.iter().all(|byte| byte.is_ascii_graphic() || byte.is_ascii_whitespace())
    };
    if bytes.len() >= 16 && is_text(bytes) {
        return Err(TableError::Text);
    }
    let name = TableName::of(bytes).filter(|_| bytes.len() >= HEADER);
    let (Some(name), Some(length)) = (name, bytes.get(4..8)) else {
        return Err(TableError::Short(bytes.len()));
    };
    let is_name = |byte: &u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || *byte == b'_';
    if !name.signature.iter().all(is_name) {
        return Err(TableError::Signature);
    }
    let header = length.iter().rev().fold(0, |length, byte| length << 8 | u32::from(*byte));
    if usize::try_from(header) != Ok(bytes.len()) {
        return Err(TableError::Length { header, file: bytes.len() });
    }
    if bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)) != 0 {
        return Err(TableError::Checksum);
    }
    if OURS.contains(&name.signature) {
        return Err(TableError::Ours(String::from_utf8_lossy(&name.signature).into_owned()));
    }
    if seen.iter().any(|other| other.clashes(&name)) {
        return Err(TableError::Twice(name));
    }
    seen.push(name);
    Ok(name)
}

#[cfg(test)]
mod tests {
    use super::{super::fake_battery, *};

    fn table(signature: &[u8; 4], name: &[u8; 8]) -> Vec<u8> {
        let mut table = fake_battery();
        table[..4].copy_from_slice(signature);
        table[16..24].copy_from_slice(name);
        seal(table)
    }

    fn seal(mut table: Vec<u8>) -> Vec<u8> {
        table[9] = 0;
        let sum = table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        table[9] = sum.wrapping_neg();
        table
    }

    fn check(table: &[u8]) -> Result<TableName, TableError> {
        check_table(table, &mut Vec::new())
    }

    #[test]
    fn r45_whole_table_is_taken_and_named() {
        let name = check(&table(b"SSDT", b"Optimus\0")).unwrap();
        assert_eq!(name.to_string(), "SSDT (STRAIT Optimus)");
    }

    #[test]
    fn r45_damaged_tables_say_what_is_wrong() {
        let good = table(b"SSDT", b"Optimus ");
        let mut long = good.clone();
        long.push(0);
        let file = good.len() + 1;
        assert_eq!(check(&long), Err(TableError::Length { header: file as u32 - 1, file }));
        assert_eq!(check(&good[..20]), Err(TableError::Short(20)));
        let mut changed = good.clone();
        changed[40] ^= 1;
        assert_eq!(check(&changed), Err(TableError::Checksum));
        assert_eq!(check(&table(b"ss\0\0", b"Optimus ")), Err(TableError::Signature));
        let source = b"DefinitionBlock (\"\", \"SSDT\", 2, \"A\", \"B\", 1) {}\n";
        assert_eq!(check(source), Err(TableError::Text));
        assert_eq!(check(b""), Err(TableError::Short(0)));
    }

    #[test]
    fn r45_tables_of_the_machine_are_refused() {
        for signature in OURS {
            let error = check(&table(signature, b"Optimus ")).unwrap_err();
            assert!(matches!(error, TableError::Ours(_)), "{error}");
        }
    }

    #[test]
    fn r45_second_table_of_a_name_is_refused_but_not_a_second_ssdt() {
        let mut seen = Vec::new();
        check_table(&table(b"SSDT", b"one     "), &mut seen).unwrap();
        check_table(&table(b"SSDT", b"two     "), &mut seen).unwrap();
        let again = check_table(&table(b"SSDT", b"one     "), &mut seen).unwrap_err();
        assert_eq!(again.to_string(), "there is a SSDT (STRAIT one) already");
        check_table(&table(b"SLIC", b"one     "), &mut seen).unwrap();
        let again = check_table(&table(b"SLIC", b"two     "), &mut seen).unwrap_err();
        assert!(matches!(again, TableError::Twice(_)), "{again}");
    }
}
