//! MSI, MSI-X, its table page and the pin.

use super::*;

#[test]
fn msix_takes_over_from_the_pin_and_gives_back() {
    let mut bench = bench();
    bench.enable_msix();
    assert_eq!(
        bench.calls(),
        ["mask", "resample -", "line off", "disable Intx", "triggers Msix 0 -"]
    );
    bench.bar_write(0, TABLE + 16, &0xfee0_0000_u64.to_le_bytes());
    bench.bar_write(0, TABLE + 24, &0x41_u64.to_le_bytes());
    assert_eq!(bench.calls(), ["connect 0 0x41", "triggers Msix 1 +"]);
    bench.write(MSIX + msix::CONTROL + 1, 1, 0);
    assert_eq!(bench.calls()[..3], ["drop 0", "disable Msix", "triggers Intx 0 +"]);
}

#[test]
fn interrupt_disable_takes_the_pin_away() {
    let mut bench = bench();
    bench.command(regs::COMMAND_INTX_DISABLE);
    assert_eq!(bench.calls().last().unwrap(), "disable Intx");
    bench.enable_msix();
    bench.write(MSIX + msix::CONTROL, 2, 0);
    assert_eq!(bench.calls().last().unwrap(), "disable Msix");
    bench.command(0);
    assert_eq!(bench.calls()[0], "triggers Intx 0 +");
}

#[test]
fn refused_msix_reads_back_as_off_and_the_pin_returns() {
    let mut bench = bench();
    bench.device.fail("triggers Msix");
    bench.enable_msix();
    assert_eq!(bench.read(MSIX + msix::CONTROL, 2), 3);
    assert_eq!(bench.function.life_signs().report().interrupts, InterruptMode::Intx);
}

#[test]
fn msi_never_touches_configuration_space() {
    let mut bench = bench();
    bench.write(MSI + 4, 4, 0xfee0_1000);
    bench.write(MSI + 12, 2, 0x31);
    bench.write(MSI + 2, 2, 1);
    assert!(bench.calls().ends_with(&["connect 0 0x31".into(), "triggers Msi 0 +".into()]));
    assert_eq!(bench.read(MSI, 4) >> 16, 0x81);
    assert_eq!(bench.read(MSI + 12, 4), 0x31);
}

#[test]
fn masked_vector_that_fired_is_pending_and_delivered_by_the_unmask() {
    let mut bench = bench();
    bench.enable_msix();
    bench.bar_write(0, TABLE + 12, &[0; 4]);
    bench.bar_write(0, TABLE + 12, &[1, 0, 0, 0]);
    bench.calls();
    assert!(bench.device.fire(IrqIndex::Msix, 0));
    assert_eq!(bench.bar_read(0, PBA, 8), [1, 0, 0, 0, 0, 0, 0, 0]);
    bench.calls();
    bench.bar_write(0, TABLE + 12, &[0; 4]);
    assert_eq!(bench.calls(), ["connect 0 0x0"]);
    assert_eq!(bench.bar_read(0, PBA, 4), [0; 4]);
}

#[test]
fn pending_bits_of_the_device_show_for_vectors_not_opened_yet() {
    let mut bench = bench();
    bench.device.region_write(0, PBA, &[0xff]).unwrap();
    assert_eq!(bench.bar_read(0, PBA, 2), [0x0f, 0]);
}

#[test]
fn rest_of_the_table_page_reaches_the_device_in_the_same_width() {
    let mut bench = bench();
    assert_eq!(bench.bar_read(0, 0x2100, 2), [0x5a, 0]);
    bench.bar_write(0, 0x2fff, &[7]);
    bench.bar_write(0, PBA + 8, &[1, 2, 3, 4]);
    assert_eq!(bench.calls(), ["read 0 0x2100 2", "write 0 0x2fff 07", "write 0 0x2808 01020304"]);
}

#[test]
fn access_over_the_end_of_the_table_is_split() {
    let mut bench = bench();
    bench.bar_write(0, TABLE + 4 * 16 - 4, &[0, 0, 0, 0, 9, 9, 9, 9]);
    assert_eq!(bench.calls(), ["write 0 0x2040 09090909"]);
    assert_eq!(bench.bar_read(0, TABLE + 4 * 16 - 4, 8), [0, 0, 0, 0, 9, 9, 9, 9]);
}
