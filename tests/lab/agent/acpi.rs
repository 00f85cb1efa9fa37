//! The ACPI tables, for iasl on L0, and what the guest's kernel made of them.

use std::{fs, path::Path};

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

/// Step `acpi-devices`: every device in ACPI's namespace by its ID, and what the kernel calls a power supply.
pub(crate) fn devices() -> Result<()> {
    for name in names("/sys/bus/acpi/devices")? {
        let path = fs::read_to_string(format!("/sys/bus/acpi/devices/{name}/path"));
        report("acpi.device", format!("{name} {}", path.unwrap_or_default().trim()));
    }
    for name in names("/sys/class/power_supply")? {
        let fact = |file: &str| {
            let text = fs::read_to_string(format!("/sys/class/power_supply/{name}/{file}"));
            text.unwrap_or_default().trim().to_owned()
        };
        let facts: Vec<String> = ["type", "online", "status", "capacity", "technology"]
            .map(fact)
            .into_iter()
            .filter(|fact| !fact.is_empty())
            .collect();
        report("acpi.power", format!("{name} {}", facts.join(" ")));
    }
    Ok(())
}

fn names(directory: &str) -> Result<Vec<String>> {
    if !Path::new(directory).exists() {
        return Ok(Vec::new());
    }
    let mut names = Vec::new();
    for entry in fs::read_dir(directory)? {
        names.push(entry?.file_name().to_string_lossy().into_owned());
    }
    names.sort();
    Ok(names)
}
