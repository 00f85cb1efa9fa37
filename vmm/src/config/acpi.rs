//! `--acpi-table` and `--fake-battery`: tables that the guest finds beside the machine's own.

use std::{
    fs::{self, File},
    io::Read as _,
    path::{Path, PathBuf},
};

use strait_arch::acpi::{TableName, check_table, fake_battery};
use strait_resources::{codes, failure::Failure};

use super::{AcpiTable, files};

/// More than fits into the guest's area for tables, by far.
const MAX_SIZE: u64 = 1 << 20;

/// Reads and checks every table.
pub(super) fn parse(paths: &[PathBuf], battery: bool) -> Result<Vec<AcpiTable>, Failure> {
    let mut seen = Vec::new();
    let mut tables = Vec::new();
    if battery {
        let bytes = fake_battery();
        let name = check(&bytes, &mut seen, "--fake-battery")?;
        tables.push(AcpiTable { path: None, name, bytes });
    }
    for path in paths {
        let bytes = read(path)?;
        let name = check(&bytes, &mut seen, &format!("--acpi-table {}", path.display()))?;
        tables.push(AcpiTable { path: Some(path.clone()), name, bytes });
    }
    Ok(tables)
}

fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    files::readable("--acpi-table", path)?;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_SIZE).read_to_end(&mut bytes));
    match (read, fs::metadata(path)) {
        (Ok(_), Ok(file)) if file.len() > MAX_SIZE => {
            let cause =
                format!("--acpi-table {}: {} bytes are no table", path.display(), file.len());
            Err(Failure::new(&codes::E2108, cause, "name one table, as acpidump -b writes them"))
        }
        (Ok(_), _) => Ok(bytes),
        (Err(error), _) => {
            let cause = format!("--acpi-table {}: this file cannot be read", path.display());
            Err(Failure::new(&codes::E2101, cause, "look at the disk it is on").source(error))
        }
    }
}

fn check(bytes: &[u8], seen: &mut Vec<TableName>, what: &str) -> Result<TableName, Failure> {
    use strait_arch::acpi::TableError as Error;
    check_table(bytes, seen).map_err(|error| {
        let fix = match error {
            Error::Text => "iasl SOURCE.dsl makes SOURCE.aml, which is the file to name",
            Error::Ours(_) => "only tables that add something can be given: SSDT, SLIC and others",
            Error::Twice(_) => "keep one of them, or give it another OEM table ID",
            _ => "take it from the host anew: cat /sys/firmware/acpi/tables/SSDT1 > FILE",
        };
        Failure::new(&codes::E2108, format!("{what}: {error}"), fix)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(bytes: &[u8], battery: bool) -> String {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), bytes).unwrap();
        let failure = parse(&[file.path().into()], battery).unwrap_err();
        assert_eq!(failure.code.id, "E2108");
        format!("{} {}", failure.cause, failure.fix)
    }

    #[test]
    fn r45_tables_come_in_order_and_with_their_names() {
        let mut table = fake_battery();
        // Another OEM table ID of the same sum.
        table[16..24].copy_from_slice(b"YRETTAB ");
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), &table).unwrap();
        let tables = parse(&[file.path().into()], true).unwrap();
        let names: Vec<String> = tables.iter().map(|table| table.name.to_string()).collect();
        assert_eq!(names, ["SSDT (STRAIT BATTERY)", "SSDT (STRAIT YRETTAB)"]);
        assert_eq!(tables[1].bytes, table);
    }

    #[test]
    fn r45_tables_that_cannot_be_are_refused() {
        assert!(
            refused(&fake_battery(), true).contains("there is a SSDT (STRAIT BATTERY) already")
        );
        assert!(refused(b"/* source */ DefinitionBlock", false).contains("iasl"));
        assert!(refused(&[0; 64], false).contains("table's name"));
        assert!(refused(&vec![0; 2 << 20], false).contains("2097152 bytes"));
        let mut facp = fake_battery();
        facp[..4].copy_from_slice(b"FACP");
        let sum = facp.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
        facp[9] = facp[9].wrapping_sub(sum);
        assert!(refused(&facp, false).contains("it is a FACP, and strait makes that"));
    }
}
