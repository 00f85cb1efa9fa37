//! The ACPI tables, for iasl on L0.

use std::fs;

use anyhow::Result;

use crate::report;

/// Step `acpi`: every table in hexadecimal.
pub(crate) fn dump() -> Result<()> {
    let mut names: Vec<_> =
        fs::read_dir("/sys/firmware/acpi/tables")?.filter_map(Result::ok).collect();
    names.sort_by_key(fs::DirEntry::file_name);
    for entry in names.into_iter().filter(|entry| entry.path().is_file()) {
        let name = entry.file_name().to_string_lossy().into_owned();
        let bytes = fs::read(entry.path())?;
        report("acpi.table", format!("{name} {}", bytes.len()));
        for line in bytes.chunks(64) {
            let text: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            report(&format!("acpi.{name}"), text.join(""));
        }
    }
    Ok(())
}
