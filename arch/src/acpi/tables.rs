//! The tables with fixed layouts.

use acpi_tables::{
    fadt::FADTBuilder,
    gas::{AccessSize, AddressSpace, GAS},
    mcfg::MCFG,
    sdt::Sdt,
};

use super::{OEM, OEM_REVISION, OEM_TABLE, bytes};
use crate::{layout, plan::Plan};

/// FADT flags (ACPI 6.5, table 5.10): WBINVD works; C1 on all CPUs; no power button, no sleep button and no RTC alarm
/// in the fixed hardware; there is a reset register. Not USE_PLATFORM_CLOCK: Windows would leave the TSC for the PM
/// timer, an exit to user space at each reading.
const FADT_FLAGS: u32 = 1 | 1 << 2 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 10;
/// IA-PC boot flags (table 5.11): ISA devices; no keyboard controller to probe (its reset line works all the same); no
/// VGA to probe; no ASPM, which is the host's to manage for passed devices.
const BOOT_ARCH: u16 = 1 | 1 << 2 | 1 << 4;
/// What to write to 0xCF9: a full reset.
const RESET_VALUE: u8 = 0x0f;
/// Latencies above 100 µs and 1000 µs say that there is no C2 and no C3 (ACPI 6.5, 5.2.9).
const NO_C2: u16 = 101;
const NO_C3: u16 = 1001;
/// CMOS index of the century.
const CMOS_CENTURY: u8 = 0x32;

const HEADER: u32 = 36;

pub(super) fn fadt(dsdt: u64, facs: u64, pm_timer: bool) -> Vec<u8> {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION);
    // Below 1 MiB: the 32-bit fields hold both. X_DSDT says the same again for who reads no other; a second address
    // for the FACS would be a second FACS.
    fadt.dsdt = (dsdt as u32).into();
    fadt.x_dsdt = dsdt.into();
    fadt.firmware_ctrl = (facs as u32).into();
    fadt.sci_int = (layout::SCI_IRQ as u16).into();
    let blocks = [(layout::PM1_EVENT, 4), (layout::PM1_CONTROL, 2), (layout::PM_TIMER, 4)];
    let [event, control, timer] = blocks.map(|(port, len)| port_block(port, len));
    fadt.pm1a_evt_blk = u32::from(layout::PM1_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(layout::PM1_CONTROL).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len) = (4, 2);
    (fadt.x_pm1a_evt_blk, fadt.x_pm1a_cnt_blk) = (event, control);
    if pm_timer {
        fadt.pm_tmr_blk = u32::from(layout::PM_TIMER).into();
        fadt.pm_tmr_len = 4;
        fadt.x_pm_tmr_blk = timer;
    }
    (fadt.p_lvl2_lat, fadt.p_lvl3_lat) = (NO_C2.into(), NO_C3.into());
    fadt.century = CMOS_CENTURY;
    fadt.iapc_boot_arch = BOOT_ARCH.into();
    fadt.flags = FADT_FLAGS.into();
    fadt.reset_reg = port_block(layout::RESET_PORT, 1);
    fadt.reset_value = RESET_VALUE;
    bytes(&fadt.finalize())
}

fn port_block(port: u16, len: u8) -> GAS {
    let access = match len {
        1 => AccessSize::ByteAccess,
        2 => AccessSize::WordAccess,
        _ if port == layout::PM1_EVENT => AccessSize::WordAccess,
        _ => AccessSize::DwordAccess,
    };
    GAS::new(AddressSpace::SystemIo, len * 8, 0, access, u64::from(port))
}

/// Firmware ACPI control structure: no checksum, 64 bytes, version 2 (5.2.10).
pub(super) fn facs() -> Vec<u8> {
    let mut facs = vec![0u8; 64];
    facs[..4].copy_from_slice(b"FACS");
    facs[4..8].copy_from_slice(&64_u32.to_le_bytes());
    facs[32] = 2;
    facs
}

/// Interrupt controllers (5.2.12). By hand: acpi_tables has no x2APIC, override or NMI entries.
pub(super) fn madt(apic_ids: &[u32]) -> Vec<u8> {
    let mut madt = Sdt::new(*b"APIC", HEADER, 5, OEM, OEM_TABLE, OEM_REVISION);
    madt.append_slice(&(layout::LOCAL_APIC as u32).to_le_bytes());
    // PCAT_COMPAT: there are two 8259s too.
    madt.append_slice(&1_u32.to_le_bytes());
    let mut x2apics = false;
    for (uid, id) in (0_u32..).zip(apic_ids) {
        match (u8::try_from(uid), u8::try_from(*id)) {
            (Ok(uid), Ok(id)) if id < 0xff => {
                madt.append_slice(&[0, 8, uid, id, 1, 0, 0, 0]);
            }
            _ => {
                x2apics = true;
                madt.append_slice(&[9, 16, 0, 0]);
                for value in [*id, 1, uid] {
                    madt.append_slice(&value.to_le_bytes());
                }
            }
        }
    }
    madt.append_slice(&[1, 12, 0, 0]);
    madt.append_slice(&(layout::IOAPIC as u32).to_le_bytes());
    madt.append_slice(&0_u32.to_le_bytes());
    // The timer is on pin 2, conforming to ISA; the SCI is level, active high.
    for (source, gsi, flags) in
        [(0_u8, 2_u32, 0_u16), (layout::SCI_IRQ as u8, layout::SCI_IRQ, 0xd)]
    {
        madt.append_slice(&[2, 10, 0, source]);
        madt.append_slice(&gsi.to_le_bytes());
        madt.append_slice(&flags.to_le_bytes());
    }
    // NMI on LINT1 of every CPU.
    madt.append_slice(&[4, 6, 0xff, 0, 0, 1]);
    if x2apics {
        madt.append_slice(&[0xa, 12, 0, 0, 0xff, 0xff, 0xff, 0xff, 1, 0, 0, 0]);
    }
    madt.as_slice().to_vec()
}

pub(super) fn mcfg(plan: &Plan) -> Vec<u8> {
    let mut mcfg = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    mcfg.add_ecam(plan.ecam.first(), 0, 0, super::dsdt::last_bus(plan));
    bytes(&mcfg)
}

/// Windows ACPI emulated devices table: RTC and PM timer need no second read.
pub(super) fn waet() -> Vec<u8> {
    let mut waet = Sdt::new(*b"WAET", HEADER, 1, OEM, OEM_TABLE, OEM_REVISION);
    waet.append_slice(&3_u32.to_le_bytes());
    waet.as_slice().to_vec()
}
