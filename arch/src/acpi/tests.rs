use std::process::Command;

use strait_resources::{
    bar::{BarIndex, BarKind, BarSpec},
    bdf::Bdf,
};

use super::*;
use crate::plan::{FunctionRequest, PlanRequest, PortRequest};

fn plan() -> Plan {
    let bar = |index, kind, size| BarSpec { index: BarIndex::new(index).unwrap(), kind, size };
    let port = |id: &str| PortRequest {
        id: id.to_owned(),
        bus: None,
        functions: vec![FunctionRequest {
            number: 0,
            host: Bdf::new(0, 3, 0, 0).unwrap(),
            bars: vec![
                bar(0, BarKind::Memory32 { prefetchable: false }, 16 << 20),
                bar(1, BarKind::Memory64 { prefetchable: true }, 32 << 30),
                bar(5, BarKind::Io, 128),
            ],
        }],
    };
    let request = PlanRequest {
        ram: 8 << 30,
        physical_bits: 40,
        iova: Vec::new(),
        reserved: vec![
            strait_resources::range::AddressRange::inclusive(0xfee0_0000, 0xfeef_ffff).unwrap(),
            strait_resources::range::AddressRange::inclusive(0x9000_0000, 0x90ff_ffff).unwrap(),
        ],
        ports: vec![port("vfio0"), port("vfio1")],
        mmio32: None,
        mmio64: None,
    };
    request.solve().unwrap()
}

fn tables(cpus: u32) -> AcpiTables {
    let apic_ids: Vec<u32> = (0..cpus).collect();
    build(&AcpiMachine { apic_ids: &apic_ids, plan: &plan(), pm_timer: true, extra: &[] }).unwrap()
}

fn table(tables: &AcpiTables, signature: &[u8; 4]) -> Vec<u8> {
    tables.blobs.iter().find(|(_, bytes)| bytes.starts_with(signature)).unwrap().1.clone()
}

#[test]
fn every_table_has_its_length_and_a_checksum_of_zero() {
    let tables = tables(4);
    for (_, bytes) in &tables.blobs[1..] {
        let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap());
        assert_eq!(length as usize, bytes.len());
        if !bytes.starts_with(b"FACS") {
            let sum = bytes.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte));
            assert_eq!(sum, 0, "{}", String::from_utf8_lossy(&bytes[..4]));
        }
    }
}

#[test]
fn root_pointer_leads_to_every_table() {
    let tables = tables(1);
    assert_eq!(tables.rsdp, layout::ACPI_START);
    let at = |address: u64| &tables.blobs.iter().find(|(at, _)| *at == address).unwrap().1;
    let u64_at = |bytes: &[u8], offset: usize| {
        u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap())
    };
    assert_eq!(&at(tables.rsdp)[..8], b"RSD PTR ");
    let xsdt = at(u64_at(at(tables.rsdp), 24));
    let listed: Vec<&[u8]> =
        (36..xsdt.len()).step_by(8).map(|entry| &at(u64_at(xsdt, entry))[..4]).collect();
    assert_eq!(listed, [b"FACP", b"APIC", b"MCFG", b"WAET"]);
    let fadt = table(&tables, b"FACP");
    assert_eq!(&at(u64_at(&fadt, 140))[..4], b"DSDT");
    let facs = u32::from_le_bytes(fadt[36..40].try_into().unwrap());
    assert_eq!(&at(u64::from(facs))[..4], b"FACS");
}

#[test]
fn cpus_with_large_apic_ids_get_x2apic_entries() {
    let tables = build(&AcpiMachine {
        apic_ids: &[0, 254, 255, 300],
        plan: &plan(),
        pm_timer: true,
        extra: &[],
    })
    .unwrap();
    let madt = table(&tables, b"APIC");
    let (mut at, mut kinds) = (44, Vec::new());
    while at < madt.len() {
        kinds.push(madt[at]);
        at += usize::from(madt[at + 1]);
    }
    assert_eq!(kinds, [0, 0, 9, 9, 1, 2, 2, 4, 10]);
    assert_eq!(at, madt.len());
}

#[test]
fn small_apic_ids_need_no_x2apic_entries() {
    let madt = table(&tables(4), b"APIC");
    assert_eq!(madt.len(), 44 + 4 * 8 + 12 + 2 * 10 + 6);
}

#[test]
fn pm_timer_that_is_not_announced_has_no_address_and_no_length() {
    for pm_timer in [true, false] {
        let machine = AcpiMachine { apic_ids: &[0], plan: &plan(), pm_timer, extra: &[] };
        let fadt = table(&build(&machine).unwrap(), b"FACP");
        let port = u32::from_le_bytes(fadt[76..80].try_into().unwrap());
        let expected = if pm_timer { (u32::from(layout::PM_TIMER), 4) } else { (0, 0) };
        assert_eq!((port, fadt[91]), expected);
        assert_eq!(fadt[208..220].iter().all(|byte| *byte == 0), !pm_timer);
    }
}

#[test]
fn tables_of_255_cpus_fit() {
    tables(255);
}

#[test]
fn tables_that_do_not_fit_are_an_error() {
    let extra = [vec![0; 100_000]];
    let error =
        build(&AcpiMachine { apic_ids: &[0], plan: &plan(), pm_timer: true, extra: &extra })
            .unwrap_err();
    assert!(error.need > error.room);
}

/// Disassembles every table with iasl and compiles those of code again: no error, no warning.
#[test]
fn iasl_finds_nothing_to_complain_about() {
    if Command::new("iasl").arg("-v").output().is_err() {
        strait_resources::host::fixture::skipped("iasl (package acpica-tools) is not installed");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let tables = build(&AcpiMachine {
        apic_ids: &[0, 1, 2, 3],
        plan: &plan(),
        pm_timer: true,
        extra: &[fake_battery()],
    })
    .unwrap();
    for signature in [b"DSDT", b"FACP", b"APIC", b"MCFG", b"WAET", b"FACS", b"SSDT"] {
        let name = String::from_utf8_lossy(signature).to_lowercase();
        std::fs::write(directory.path().join(format!("{name}.aml")), table(&tables, signature))
            .unwrap();
        let iasl = |arguments: &[&str]| {
            let output = Command::new("iasl")
                .args(arguments)
                .current_dir(directory.path())
                .output()
                .unwrap();
            let said = [output.stdout, output.stderr].concat();
            (output.status.success(), String::from_utf8_lossy(&said).into_owned())
        };
        let (success, said) = iasl(&["-d", &format!("{name}.aml")]);
        assert!(success && !said.contains("Warning") && !said.contains("rror:"), "{name}: {said}");
        let (success, said) = iasl(&["-p", "again", &format!("{name}.dsl")]);
        let clean = !["dsdt", "ssdt"].contains(&name.as_str())
            || said.contains("0 Errors, 0 Warnings, 0 Remarks");
        assert!(success && clean, "{name}: {said}");
    }
}
