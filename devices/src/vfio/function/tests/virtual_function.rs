//! SR-IOV virtual functions, whose headers tell less than others' (PCI Express Base 6.0, 9.3.4.1).

use super::*;

/// A virtual function of an Intel X710 as its registers are: IDs of all ones, no interrupt pin, no Memory Space Enable,
/// no power management; MSI-X in BAR 3. BAR registers read zero in hardware, and VFIO makes them up.
fn virtual_function() -> FakeDevice {
    FakeDevice::new()
        .config32(regs::VENDOR_ID, 0xffff_ffff)
        .config32(regs::REVISION_ID, 0x0200_0002)
        .config32(regs::SUBSYSTEM_VENDOR_ID, 0x0000_8086)
        .config32(0x10, 0xc)
        .empty_region(0, 0x1_0000)
        .config32(0x1c, 0xc)
        .empty_region(3, 0x4000)
        .capability(capability::PCIE, 0xa0, &[2, 0, 0, 0, 0, 0x10])
        .capability(capability::MSIX, MSIX as u8, &[4, 0, 3, 0, 0, 0, 3, 0x20, 0, 0])
        .irq(IrqIndex::Msix, 5, false)
}

#[test]
fn guest_of_a_virtual_function_sees_the_ids_that_the_host_knows() {
    let mut bench = attach(virtual_function()).unwrap();
    assert_eq!(bench.read(regs::VENDOR_ID, 4), 0x154c_8086);
    assert_eq!(bench.read(regs::SUBSYSTEM_VENDOR_ID, 4), 0x0000_8086);
    assert_eq!(bench.read(regs::INTERRUPT_PIN, 1), 0);
    assert!(bench.function.is_alive());
    // Decoding is the guest's own view, whatever the device has of it.
    assert_eq!(bench.command(regs::COMMAND_MEMORY).len(), 2);
    assert_eq!(bench.read(regs::COMMAND, 2), u32::from(regs::COMMAND_MEMORY));
    assert_eq!(bench.read(MSIX + msix::CONTROL, 2), 4);
}

#[test]
fn ids_that_the_user_chose_and_those_that_the_device_tells_stay() {
    let config = |ids: u32| ids.to_le_bytes();
    let own = (0x8086, 0x154c);
    let none = Identity::default();
    assert_eq!(none.completed(&config(0x1234_10de), own), none);
    let chosen = Identity { device: Some(0x1889), ..none };
    let shown = chosen.completed(&config(0xffff_ffff), own);
    assert_eq!((shown.vendor, shown.device), (Some(0x8086), Some(0x1889)));
}
