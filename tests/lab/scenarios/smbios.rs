//! SMBIOS: what the guest's kernel shows of it, and what dmidecode makes of the bytes.

use std::{fs, process::Command};

use crate::{
    files,
    hosts::HostKind,
    outcome::Outcome,
    scenario::{Scenario, Vm},
};

const UUID: &str = "123e4567-e89b-12d3-a456-426614174000";

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("smbios", HostKind::Main, "the guest reads who it is, and dmidecode takes every structure")
            .strait_only()
            .vm(Vm::new("a", "dmi").cpus(2).flags(&format!(
                "--smbios uuid={UUID},serial=LAB-7,product=Bench,manufacturer=Lab --smbios oem=lab:oem-string"
            )))
            .reports("a", "dmi.sys_vendor", "Lab")
            .reports("a", "dmi.product_name", "Bench")
            .reports("a", "dmi.product_serial", "LAB-7")
            .reports("a", "dmi.product_uuid", UUID)
            .check(|outcome| {
                let said = decoded(outcome)?;
                let wanted = [
                    "SMBIOS 3.1",
                    "Manufacturer: Lab",
                    "Product Name: Bench",
                    "Serial Number: LAB-7",
                    UUID,
                    "Base Board Information",
                    "Socket Designation: CPU 0",
                    "Size: 512 MB",
                    "String 1: lab:oem-string",
                    "Status: No errors detected",
                    "End Of Table",
                ];
                let missing: Vec<_> = wanted.iter().filter(|word| !said.contains(**word)).collect();
                if missing.is_empty() { Ok(()) } else { Err(format!("no {missing:?} in {said}")) }
            }),
        Scenario::new("smbios-hidden", HostKind::Main, "a hidden guest's SMBIOS names no monitor")
            .strait_only()
            .vm(Vm::new("a", "dmi").flags("--cpu hide=kvm"))
            .check(|outcome| {
                let said = decoded(outcome)?.to_lowercase();
                let found: Vec<_> =
                    ["strait", "kvm", "qemu", "virtual"].into_iter().filter(|w| said.contains(w)).collect();
                if found.is_empty() { Ok(()) } else { Err(format!("{found:?} in {said}")) }
            }),
    ]
}

/// What dmidecode says of the guest's tables, in the form of a dump: the entry point with the tables at 20h.
fn decoded(outcome: &Outcome) -> Result<String, String> {
    const TABLES_AT: u8 = 0x20;
    let run = outcome.vm("a")?;
    let bytes = |key: &str| -> Option<Vec<u8>> {
        let hex: String = run.all(key).collect();
        let byte = |n: usize| u8::from_str_radix(hex.get(2 * n..2 * n + 2)?, 16).ok();
        (0..hex.len() / 2).map(byte).collect()
    };
    let (Some(mut dump), Some(tables)) = (bytes("dmi.entry"), bytes("dmi.table")) else {
        return Err("the guest's tables came garbled".to_owned());
    };
    if dump.len() != 24 || !dump.starts_with(b"_SM3_") {
        return Err(format!("the entry point is {dump:x?}"));
    }
    dump[16..].copy_from_slice(&u64::from(TABLES_AT).to_le_bytes());
    dump[5] = 0;
    dump[5] = dump.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    dump.resize(TABLES_AT.into(), 0);
    dump.extend(tables);
    let file = outcome.job.join("smbios.dump");
    fs::write(&file, dump).map_err(|error| error.to_string())?;
    let dmidecode = files::program("dmidecode").ok_or("dmidecode is missing")?;
    let output = Command::new(dmidecode).arg("--from-dump").arg(&file).output();
    let output = output.map_err(|error| format!("dmidecode: {error}"))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let complaint = [output.stderr, b"\n".to_vec()].concat();
    let complaint = String::from_utf8_lossy(&complaint).trim().to_owned();
    let broken = ["Wrong", "truncated", "bad", "<OUT OF SPEC>", "invalid"];
    match broken.iter().find(|word| said.contains(**word)) {
        _ if !complaint.is_empty() => Err(format!("dmidecode: {complaint}")),
        Some(word) => Err(format!("dmidecode says {word}: {said}")),
        None => Ok(said),
    }
}
