//! Power states, function-level resets and resets of the machine.

use super::*;

#[test]
fn sleep_waits_until_the_bars_are_gone() {
    let mut bench = bench();
    bench.command(regs::COMMAND_MEMORY);
    bench.calls();
    let gone = bench.begin(PM + pm::CONTROL, 2, 3);
    // Those that do not decode too: a mapping may outlive decoding.
    assert_eq!(gone.len(), 5);
    assert!(gone.iter().all(|change| !change.decoded && !change.answers));
    // Another CPU looks at the function before its BARs are gone.
    bench.read(0, 4);
    assert_eq!(bench.read(PM + pm::CONTROL, 2), 0);
    assert_eq!(bench.calls(), ["read 7 0x44 2"]);
    assert_eq!(bench.function.settled(), []);
    assert_eq!(bench.read(PM + pm::CONTROL, 2), 3);
    assert_eq!(bench.calls(), ["write 7 0x44 0300", "read 7 0x44 2"]);
    assert_eq!(bench.write(PM + pm::CONTROL, 2, 0).len(), 5);
    assert_eq!(bench.calls(), ["write 7 0x44 0000", "read 7 0x44 2"]);
}

#[test]
fn unsupported_power_state_moves_nothing() {
    let mut bench = bench();
    bench.command(regs::COMMAND_MEMORY);
    assert_eq!(bench.write(PM + pm::CONTROL, 2, 1), []);
    assert!(bench.function.power.in_d0());
}

#[test]
fn device_that_stays_asleep_keeps_its_bars_undecoded() {
    let mut bench = bench();
    bench.command(regs::COMMAND_MEMORY);
    bench.write(PM + pm::CONTROL, 2, 3);
    bench.read(0, 2);
    bench.device.fail("write 7 0x44");
    assert_eq!(bench.write(PM + pm::CONTROL, 2, 0), []);
}

#[test]
fn function_level_reset_clears_what_hardware_would() {
    let mut bench = bench();
    bench.command(regs::COMMAND_MEMORY | regs::COMMAND_MASTER);
    bench.write(regs::INTERRUPT_LINE, 1, 11);
    bench.enable_msix();
    bench.bar_write(0, TABLE + 12, &[0; 4]);
    bench.calls();
    let gone = bench.begin(PCIE + pcie::DEVICE_CONTROL, 2, pcie::DEVICE_CONTROL_FLR.into());
    assert!(gone.len() == 5 && gone.iter().all(|change| !change.decoded && !change.answers));
    // Another CPU looks at the function before its BARs are gone.
    bench.read(0, 4);
    assert_eq!(bench.calls(), [""; 0]);
    let back = bench.function.settled();
    assert!(back.len() == 5 && back.iter().all(|change| change.answers && change.address == 0));
    assert_eq!(
        bench.calls()[..5],
        ["drop 0", "disable Msix", "reset", "write 7 0x4 0300", "read 7 0x8 4"]
    );
    assert_eq!((bench.read(regs::COMMAND, 2), bench.read(regs::INTERRUPT_LINE, 1)), (0, 0));
    assert_eq!((bench.read(0x10, 4), bench.read(0x14, 4)), (0, 0xc));
    assert_eq!(bench.read(MSIX + msix::CONTROL, 2), 3);
    assert_eq!(bench.bar_read(0, TABLE + 12, 4), [1, 0, 0, 0]);
    assert_eq!(bench.function.life_signs().report().interrupts, InterruptMode::Intx);
    assert_eq!(bench.function.life_signs().report().resets, 1);
}

#[test]
fn reset_bits_are_found_in_any_width() {
    let mut bench = bench();
    bench.write(PCIE + pcie::DEVICE_CONTROL + 1, 1, 0x80);
    bench.write(PCIE + pcie::DEVICE_CONTROL, 4, 0x8000);
    bench.write(AF + af::CONTROL, 1, 1);
    assert_eq!(bench.calls().iter().filter(|call| *call == "reset").count(), 3);
    bench.write(PCIE + pcie::DEVICE_CONTROL, 1, 0x80);
    bench.write(AF + af::CONTROL, 1, 0xfe);
    assert!(!bench.calls().contains(&"reset".to_owned()));
}

#[test]
fn function_level_reset_without_means_vanishes() {
    let mut bench = attach(gpu().without_reset()).unwrap();
    bench.command(regs::COMMAND_MEMORY);
    assert_eq!(bench.write(PCIE + pcie::DEVICE_CONTROL, 2, 0x8000), []);
    assert_eq!(bench.read(regs::COMMAND, 2), u32::from(regs::COMMAND_MEMORY));
}

#[test]
fn machine_reset_returns_to_the_plan() {
    let mut bench = bench();
    bench.command(regs::COMMAND_MEMORY);
    bench.write(0x10, 4, 0xd000_0000);
    bench.write(regs::ROM_BAR, 1, 1);
    let placements = bench.function.reset();
    let places: Vec<_> = placements.iter().map(|p| (p.bar.get(), p.address)).collect();
    assert_eq!(
        places,
        [(0, 0xc000_0000), (1, 0x80_0000_0000), (3, 0xc300_0000), (4, 0x1000), (6, 0xc600_0000)]
    );
    assert!(placements.iter().all(|placement| !placement.decoded));
    assert!(bench.function.is_alive() && bench.function.fault().is_none());
}

#[test]
fn device_that_dies_in_the_reset_is_remembered_as_gone() {
    let mut bench = attach(gpu().dying_on_reset()).unwrap();
    bench.function.reset();
    assert_eq!(bench.function.fault(), Some(&DeviceFault::Gone));
    assert!(!bench.function.is_alive());
    assert!(bench.function.life_signs().report().lost);
}

#[test]
fn busy_device_is_reset_at_the_next_try() {
    let mut bench = attach(gpu().busy(2)).unwrap();
    bench.function.reset();
    assert_eq!(bench.function.fault(), None);
    assert_eq!(bench.calls().iter().filter(|call| *call == "reset").count(), 3);
}

/// The kernel wakes a device only for a reset that it begins.
#[test]
fn sleeping_device_is_woken_where_its_reset_fails() {
    let mut bench = bench();
    bench.write(PM + pm::CONTROL, 2, 3);
    bench.device.fail("reset");
    bench.function.reset();
    assert_eq!(bench.device.peek(PM + pm::CONTROL), 0);
    bench.write(PM + pm::CONTROL, 2, 3);
    bench.write(PCIE + pcie::DEVICE_CONTROL, 2, pcie::DEVICE_CONTROL_FLR.into());
    assert_eq!(bench.device.peek(PM + pm::CONTROL), 0);
}

#[test]
fn failed_reset_is_remembered_until_one_works() {
    let mut bench = bench();
    bench.device.fail("reset");
    bench.function.reset();
    assert!(matches!(bench.function.fault(), Some(DeviceFault::Reset(_))));
    bench.device.heal();
    bench.function.reset();
    assert_eq!(bench.function.fault(), None);
    let report = bench.function.life_signs().report();
    assert_eq!((report.failed_resets, report.resets), (1, 1));
}
