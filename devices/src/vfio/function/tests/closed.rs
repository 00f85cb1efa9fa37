//! Writes that do not reach the device.

use super::*;
use crate::pci::regs::{extended, vpd};

/// The GPU with an AER at 0x100, PASID at 0x150, L1 substates at 0x160 and LTR at 0x200, of which VFIO shows the first
/// and the last.
fn with_hidden() -> FakeDevice {
    let header = |id, next| extended_header::new(id, 1, next).to_le_bytes();
    let shown = |id, next| extended_header::new(id, 1, next);
    gpu()
        .config32(0x100, shown(extended::AER, 0x200))
        .config32(0x10c, 0x0046_2030)
        .config32(0x150, shown(extended::PASID, 0x160))
        .config32(0x154, 0x1406)
        .config32(0x160, shown(extended::L1_SUBSTATES, 0x200))
        .config32(0x200, shown(extended::LTR, 0))
        .hidden(0x100, &header(extended::AER, 0x150))
}

fn quiet(device: FakeDevice) -> Bench {
    let bench = attach(device).unwrap();
    bench.device.calls();
    bench
}

fn writes(bench: &Bench) -> Vec<String> {
    bench.calls().into_iter().filter(|call| call.starts_with("write 7 ")).collect()
}

#[test]
fn registers_of_capabilities_that_vfio_takes_out_of_the_list_are_closed() {
    let mut bench = quiet(with_hidden());
    assert_eq!((bench.read(0x150, 4), bench.read(0x154, 4)), (0, 0));
    bench.write(0x156, 2, 0x0007);
    bench.write(0x168, 4, 0x0f);
    bench.write(0x204, 4, u32::MAX);
    bench.write(0x70c, 4, u32::MAX);
    assert_eq!(writes(&bench), [""; 0]);
}

#[test]
fn registers_of_no_capability_are_read_in_the_device() {
    let mut bench = quiet(with_hidden().config32(0x700, 0x1234_5678));
    assert_eq!(bench.read(0x700, 4), 0x1234_5678);
}

#[test]
fn error_severity_is_written_and_read_back_without_the_device() {
    let mut bench = quiet(with_hidden());
    assert_eq!(bench.read(0x10c, 4), 0x0046_2030);
    bench.write(0x10c, 4, 0xffff_ffff);
    bench.write(0x10d, 1, 0x55);
    assert_eq!(bench.read(0x10c, 4), 0xffff_55ff);
    bench.write(0x104, 4, u32::MAX);
    assert_eq!(writes(&bench), [""; 0]);
    bench.function.reset();
    assert_eq!(bench.read(0x10c, 4), 0x0046_2030);
}

#[test]
fn error_reporting_stays_as_the_host_has_it() {
    let device = gpu();
    device.poke(PCIE + pcie::DEVICE_CONTROL, &[0x17, 0x20]);
    device.poke(regs::COMMAND, &[0, 1]);
    let mut bench = quiet(device);
    bench.write(PCIE + pcie::DEVICE_CONTROL, 1, 0x18);
    assert_eq!(writes(&bench), [""; 0]);
    assert_eq!(bench.read(PCIE + pcie::DEVICE_CONTROL, 2), 0x2018);
    bench.command(regs::COMMAND_SERR | regs::COMMAND_PARITY);
    bench.command(regs::COMMAND_MASTER);
    assert_eq!(writes(&bench), ["write 7 0x4 0701"]);
    assert_eq!(bench.read(regs::COMMAND, 2), u32::from(regs::COMMAND_MASTER));
}

#[test]
fn read_request_size_reaches_the_device() {
    let mut bench = bench();
    bench.write(PCIE + pcie::DEVICE_CONTROL, 2, 0x5000);
    assert_eq!(writes(&bench), ["write 7 0x88 0050"]);
}

#[test]
fn reset_bit_of_a_function_without_one_vanishes() {
    let device = gpu();
    device.poke(PCIE + pcie::DEVICE_CAPABILITIES, &[0; 4]);
    let mut bench = quiet(device);
    bench.write(PCIE + pcie::DEVICE_CONTROL, 2, 0x8000);
    assert!(bench.calls().iter().all(|call| !call.starts_with("write") && call != "reset"));
}

#[test]
fn device_control_2_keeps_what_the_hosts_port_has_to_know() {
    let at = PCIE + pcie::DEVICE_CONTROL_2;
    let mut bench = bench();
    bench.write(at, 2, 0xffff);
    // Completion timeout value and disable; no AtomicOps on this path.
    assert_eq!(writes(&bench), ["write 7 0xa8 1f00"]);
    let device = gpu();
    device.poke(at, &[0, 0x74]);
    let mut bench = quiet(device);
    bench.write(at, 2, 0);
    assert_eq!(writes(&bench), [""; 0]);
    assert_eq!(bench.read(at, 2), 0x7400);
}

#[test]
fn vital_product_data_is_read_and_not_written() {
    const VPD: u16 = 0x60;
    let mut bench = quiet(gpu().capability(capability::VPD, VPD as u8, &[]));
    bench.write(VPD + vpd::ADDRESS, 2, 0x0040);
    assert_eq!(writes(&bench), ["write 7 0x62 4000"]);
    bench.device.poke(VPD + vpd::ADDRESS, &[0x40, 0x80, 0xde, 0xad, 0xbe, 0xef]);
    assert_eq!(bench.read(VPD + vpd::ADDRESS, 2), 0x8040);
    assert_eq!(bench.read(VPD + vpd::DATA, 4), 0xefbe_adde);
    bench.write(VPD + vpd::DATA, 4, 0x1234_5678);
    bench.write(VPD, 4, 0x8044_0000);
    bench.write(VPD + vpd::ADDRESS, 1, 0x48);
    bench.write(VPD + vpd::ADDRESS + 1, 1, 0x80);
    assert_eq!(writes(&bench), [""; 0]);
    // Reads as done.
    assert_eq!(bench.read(VPD + vpd::ADDRESS, 2), 0x0048);
}

#[test]
fn self_test_is_not_started() {
    let device = gpu();
    device.poke(regs::BIST, &[0x80]);
    let mut bench = quiet(device);
    assert_eq!(bench.read(regs::BIST, 1), 0);
    bench.write(regs::BIST, 1, 0xc0);
    assert_eq!(writes(&bench), [""; 0]);
}
