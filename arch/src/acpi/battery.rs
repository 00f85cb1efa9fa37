//! An SSDT with a battery and a power supply, for drivers that start on notebooks only when they see these.
//!
//! The battery is full and the mains are plugged in, for ever. Nothing in it changes, so nothing is notified.

use acpi_tables::{
    aml::{Device, EISAName, Name, Package, Path},
    sdt::Sdt,
};

use super::{OEM, OEM_REVISION, dsdt::in_system_bus};

const TABLE: [u8; 8] = *b"BATTERY ";
/// What both power.
const SYSTEM_BUS: &str = "\\_SB_";
/// `_STA` (ACPI 6.5, 6.3.7): present, enabled, shown, working; and for a battery, it is in its bay (10.2.1).
const ADAPTER_STATUS: u8 = 0x0f;
const BATTERY_STATUS: u8 = 0x1f;
/// mAh and mV of a common notebook.
const CAPACITY: u32 = 5000;
const VOLTAGE: u32 = 11_100;

/// The table, with header and checksum.
pub fn fake_battery() -> Vec<u8> {
    let mut table = Sdt::new(*b"SSDT", 36, 2, OEM, TABLE, OEM_REVISION);
    table.append_slice(&adapter());
    table.append_slice(&battery());
    table.as_slice().to_vec()
}

fn adapter() -> Vec<u8> {
    let on_line = 1_u8;
    in_system_bus(&Device::new(
        Path::new("AC00"),
        vec![
            &Name::new(Path::new("_HID"), &"ACPI0003"),
            &Name::new(Path::new("_UID"), &0_u8),
            &Name::new(Path::new("_STA"), &ADAPTER_STATUS),
            &Name::new(Path::new("_PCL"), &Package::new(vec![&Path::new(SYSTEM_BUS)])),
            &Name::new(Path::new("_PSR"), &on_line),
        ],
    ))
}

fn battery() -> Vec<u8> {
    let (milliampere_hours, rechargeable) = (1_u8, 1_u8);
    let (warning, low, step) = (CAPACITY / 10, CAPACITY / 20, 1_u8);
    // 10.2.2.1: unit, design and full capacity, technology, voltage, warning, low, steps, then four texts.
    let information = Package::new(vec![
        &milliampere_hours,
        &CAPACITY,
        &CAPACITY,
        &rechargeable,
        &VOLTAGE,
        &warning,
        &low,
        &step,
        &step,
        &"strait",
        &"1",
        &"LION",
        &"strait",
    ]);
    // 10.2.2.11: neither charging nor discharging, at no rate, full, at its voltage.
    let (state, rate) = (0_u8, 0_u8);
    let status = Package::new(vec![&state, &rate, &CAPACITY, &VOLTAGE]);
    in_system_bus(&Device::new(
        Path::new("BAT0"),
        vec![
            &Name::new(Path::new("_HID"), &EISAName::new("PNP0C0A")),
            &Name::new(Path::new("_UID"), &0_u8),
            &Name::new(Path::new("_STA"), &BATTERY_STATUS),
            &Name::new(Path::new("_PCL"), &Package::new(vec![&Path::new(SYSTEM_BUS)])),
            &Name::new(Path::new("_BIF"), &information),
            &Name::new(Path::new("_BST"), &status),
        ],
    ))
}
