//! SMBIOS, as the guest's kernel found it: what it shows of it, and the bytes, for dmidecode on L0.

use std::fs;

use anyhow::{Context, Result};

use crate::report;

/// Step `dmi`: the names, then entry point and tables in hexadecimal.
pub(crate) fn show() -> Result<()> {
    for file in
        ["sys_vendor", "product_name", "product_serial", "product_uuid", "chassis_asset_tag"]
    {
        let text = fs::read_to_string(format!("/sys/class/dmi/id/{file}"));
        report(&format!("dmi.{file}"), text.unwrap_or_default().trim());
    }
    for (key, file) in [("dmi.entry", "smbios_entry_point"), ("dmi.table", "DMI")] {
        let path = format!("/sys/firmware/dmi/tables/{file}");
        let bytes =
            fs::read(&path).with_context(|| format!("the kernel found no SMBIOS: {path}"))?;
        for line in bytes.chunks(64) {
            let text: Vec<String> = line.iter().map(|byte| format!("{byte:02x}")).collect();
            report(key, text.join(""));
        }
    }
    Ok(())
}
