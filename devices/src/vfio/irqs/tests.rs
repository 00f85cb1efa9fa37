use super::*;
use crate::{
    pci::regs::{msi, msix},
    vfio::{
        fake::{FakeDevice, FakeMonitor},
        life::{LifeReport, LifeSigns},
    },
};

struct Bench {
    device: Arc<FakeDevice>,
    monitor: Arc<FakeMonitor>,
    irqs: Irqs,
    life: Arc<LifeSigns>,
}

fn bench(device: FakeDevice) -> Bench {
    let device = Arc::new(device);
    let monitor = Arc::new(device.monitor());
    let life = Arc::new(LifeSigns::default());
    let name = "0000:3b:00.0".parse().unwrap();
    let warnings = Warnings::new(name, life.clone());
    let irqs = Irqs::new(device.clone(), monitor.clone(), Some(monitor.clone()), warnings);
    Bench { device, monitor, irqs, life }
}

impl Bench {
    fn waits(&self, n: u16) -> bool {
        self.irqs.waiting_msix(n..n + 1) == [n]
    }

    fn calls(&self) -> Vec<String> {
        self.device.calls()
    }
}

fn dynamic(vectors: u32) -> Bench {
    bench(FakeDevice::new().irq(IrqIndex::Msix, vectors, false))
}

fn fixed(vectors: u32) -> Bench {
    bench(FakeDevice::new().irq(IrqIndex::Msix, vectors, true))
}

/// MSI-X on, every vector with message data 0x40 + n and masked.
fn table(vectors: u16) -> Msix {
    let mut table = Msix::new(vectors);
    let _ = table.write_control(msix::CONTROL_ENABLE);
    for n in 0..u32::from(vectors) {
        let _ = table.write_table(u64::from(n) * 16 + 8, &(0x40 + n).to_le_bytes());
    }
    table
}

fn mask(table: &mut Msix, n: u16, masked: bool) {
    let _ = table.write_table(u64::from(n) * 16 + 12, &[masked.into(), 0, 0, 0]);
}

fn program(table: &mut Msix, n: u16) {
    let _ = table.write_table(u64::from(n) * 16, &0xfee0_0000u32.to_le_bytes());
}

#[test]
fn intx_is_masked_while_its_way_back_is_built() {
    let mut bench = bench(FakeDevice::new());
    assert!(bench.irqs.set(Wanted::Intx));
    assert_eq!(bench.calls(), ["triggers Intx 0 +", "mask", "line on", "resample +", "unmask"]);
    assert!(bench.irqs.set(Wanted::Intx));
    assert_eq!(bench.calls(), [""; 0]);
    assert!(bench.irqs.set(Wanted::None));
    assert_eq!(bench.calls(), ["mask", "resample -", "line off", "disable Intx"]);
}

#[test]
fn intx_that_fails_halfway_leaves_nothing_behind() {
    let mut bench = bench(FakeDevice::new().failing("resample +"));
    assert!(!bench.irqs.set(Wanted::Intx));
    let calls = bench.calls();
    assert_eq!(calls[calls.len() - 2..], ["line off", "disable Intx"]);
    assert_eq!(bench.life.report(), LifeReport::default());
}

#[test]
fn msi_connects_every_vector_before_the_device_may_signal() {
    let mut bench = bench(FakeDevice::new());
    let mut msi = Msi::new(2 << msi::CONTROL_CAPABLE_SHIFT, 4);
    let _ = msi.write(msi::DATA_32, &[0x40]);
    let _ = msi.write(msi::CONTROL, &[1 | 1 << 4]);
    assert!(bench.irqs.set(Wanted::Msi(&msi)));
    assert_eq!(bench.calls(), ["connect 0 0x40", "connect 1 0x41", "triggers Msi 0 ++"]);
    let _ = msi.write(msi::DATA_32, &[0x50]);
    assert!(bench.irqs.set(Wanted::Msi(&msi)));
    assert_eq!(bench.calls(), ["connect 0 0x50", "connect 1 0x51"]);
    assert!(bench.irqs.set(Wanted::None));
    assert_eq!(bench.calls(), ["drop 0", "drop 1", "disable Msi"]);
}

#[test]
fn msi_with_fewer_host_vectors_runs_with_those() {
    let mut bench = bench(FakeDevice::new().failing("triggers Msi 0 ++"));
    let mut msi = Msi::new(2 << msi::CONTROL_CAPABLE_SHIFT, 4);
    let _ = msi.write(msi::CONTROL, &[1 | 2 << 4]);
    assert!(bench.irqs.set(Wanted::Msi(&msi)));
    assert_eq!(bench.calls().last().unwrap(), "triggers Msi 0 +");
    assert!(bench.device.fire(IrqIndex::Msi, 0));
}

#[test]
fn masked_msi_vector_keeps_its_signal_and_shows_it() {
    let mut bench = bench(FakeDevice::new());
    let mut msi = Msi::new(msi::CONTROL_MASKABLE | 1 << msi::CONTROL_CAPABLE_SHIFT, 2);
    let _ = msi.write(msi::MASK_32, &[0b10]);
    let _ = msi.write(msi::CONTROL, &[1 | 1 << 4]);
    assert!(bench.irqs.set(Wanted::Msi(&msi)));
    assert_eq!(bench.calls(), ["connect 0 0x0", "triggers Msi 0 ++"]);
    assert_eq!(bench.irqs.waiting_msi(), 0);
    bench.device.fire(IrqIndex::Msi, 1);
    assert_eq!(bench.irqs.waiting_msi(), 0b10);
    let _ = msi.write(msi::MASK_32, &[0]);
    bench.irqs.set(Wanted::Msi(&msi));
    assert_eq!(bench.calls(), ["connect 1 0x1"]);
    assert_eq!(bench.irqs.waiting_msi(), 0);
}

#[test]
fn msix_with_all_masked_switches_the_device_over_with_no_vector() {
    let mut bench = dynamic(16);
    assert!(bench.irqs.set(Wanted::Msix(&table(16))));
    assert_eq!(bench.calls(), ["triggers Msix 0 -"]);
    assert_eq!(bench.life.report().interrupts, InterruptMode::Msix);
}

#[test]
fn unmask_takes_one_vector_where_the_kernel_can_add_them() {
    let mut bench = dynamic(16);
    let mut table = table(16);
    bench.irqs.set(Wanted::Msix(&table));
    mask(&mut table, 5, false);
    bench.irqs.sync_msix(&table, 5);
    assert_eq!(bench.calls(), ["triggers Msix 0 -", "connect 0 0x45", "triggers Msix 5 +"]);
    assert_eq!((bench.life.report().vectors, bench.life.report().unmasks), (1, 1));
}

#[test]
fn vectors_unmasked_before_the_enable_come_with_it() {
    let mut table = table(4);
    mask(&mut table, 0, false);
    mask(&mut table, 2, false);
    let mut bench = dynamic(4);
    bench.irqs.set(Wanted::Msix(&table));
    assert_eq!(
        bench.calls(),
        ["connect 0 0x40", "connect 1 0x42", "triggers Msix 0 +", "triggers Msix 2 +"]
    );
    let mut bench = fixed(4);
    bench.irqs.set(Wanted::Msix(&table));
    assert_eq!(bench.calls(), ["connect 0 0x40", "connect 1 0x42", "triggers Msix 0 +-+"]);
}

#[test]
fn masked_again_keeps_the_host_vector_and_loses_the_irqfd() {
    let mut bench = dynamic(4);
    let mut table = table(4);
    mask(&mut table, 1, false);
    bench.irqs.set(Wanted::Msix(&table));
    bench.calls();
    mask(&mut table, 1, true);
    bench.irqs.sync_msix(&table, 1);
    assert_eq!(bench.calls(), ["disconnect 0"]);
    assert!(!bench.waits(1));
    assert!(bench.device.fire(IrqIndex::Msix, 1));
    assert!(bench.waits(1));
    mask(&mut table, 1, false);
    bench.irqs.sync_msix(&table, 1);
    assert_eq!(bench.calls(), ["connect 0 0x41"]);
    assert_eq!(bench.life.report().vectors, 1);
}

#[test]
fn message_change_of_a_live_vector_only_changes_its_route() {
    let mut bench = dynamic(4);
    let mut table = table(4);
    mask(&mut table, 0, false);
    bench.irqs.set(Wanted::Msix(&table));
    bench.calls();
    let _ = table.write_table(8, &[0x77]);
    bench.irqs.sync_msix(&table, 0);
    assert_eq!(bench.calls(), ["connect 0 0x77"]);
}

#[test]
fn growth_without_dynamic_msix_makes_room_for_every_programmed_vector_at_once() {
    let mut bench = fixed(16);
    let mut table = table(16);
    bench.irqs.set(Wanted::Msix(&table));
    (0..6).for_each(|n| program(&mut table, n));
    for n in 0..6 {
        mask(&mut table, n, false);
        bench.irqs.sync_msix(&table, n);
    }
    assert_eq!(
        bench.calls(),
        [
            "triggers Msix 0 -",
            "connect 0 0x40",
            "triggers Msix 0 +",
            "connect 1 0x41",
            "disable Msix",
            "triggers Msix 0 ++----",
            "connect 2 0x42",
            "triggers Msix 2 +",
            "connect 3 0x43",
            "triggers Msix 3 +",
            "connect 4 0x44",
            "triggers Msix 4 +",
            "connect 5 0x45",
            "triggers Msix 5 +",
        ]
    );
}

#[test]
fn growth_without_messages_doubles() {
    let mut bench = fixed(2048);
    let mut table = table(2048);
    bench.irqs.set(Wanted::Msix(&table));
    for n in 0..2048 {
        mask(&mut table, n, false);
        bench.irqs.sync_msix(&table, n);
    }
    let calls = bench.calls();
    assert_eq!(calls.iter().filter(|call| *call == "disable Msix").count(), 11);
    assert_eq!(bench.life.report().vectors, 2048);
}

#[test]
fn growth_signals_live_vectors_once_for_what_was_lost() {
    let mut bench = fixed(4);
    let mut table = table(4);
    mask(&mut table, 0, false);
    bench.irqs.set(Wanted::Msix(&table));
    mask(&mut table, 3, false);
    bench.irqs.sync_msix(&table, 3);
    // Nobody reads the eventfds here, so what was signalled shows once they are masked.
    mask(&mut table, 0, true);
    mask(&mut table, 3, true);
    bench.irqs.set(Wanted::Msix(&table));
    assert!(bench.waits(0));
    assert!(!bench.waits(3));
}

#[test]
fn growth_that_fails_keeps_what_worked() {
    let mut bench = fixed(8);
    let mut table = table(8);
    mask(&mut table, 0, false);
    bench.irqs.set(Wanted::Msix(&table));
    bench.device.fail("triggers Msix 0 +-");
    bench.calls();
    mask(&mut table, 4, false);
    bench.irqs.sync_msix(&table, 4);
    assert_eq!(
        bench.calls(),
        ["connect 1 0x44", "disable Msix", "triggers Msix 0 +---+", "triggers Msix 0 +", "drop 1"]
    );
    assert!(bench.device.fire(IrqIndex::Msix, 0));
    // The next try is a new one.
    bench.device.heal();
    bench.irqs.sync_msix(&table, 4);
    assert!(bench.device.fire(IrqIndex::Msix, 4));
}

#[test]
fn wish_beyond_the_host_falls_back_to_what_is_used() {
    let mut table = table(8);
    mask(&mut table, 0, false);
    program(&mut table, 7);
    let mut bench = fixed(8);
    bench.device.fail("triggers Msix 0 +-------");
    assert!(bench.irqs.set(Wanted::Msix(&table)));
    assert_eq!(bench.calls().last().unwrap(), "triggers Msix 0 +");
}

#[test]
fn vectors_beyond_vfio_s_count_stay_dead() {
    let mut bench = dynamic(2);
    let mut table = table(4);
    bench.irqs.set(Wanted::Msix(&table));
    bench.calls();
    mask(&mut table, 3, false);
    bench.irqs.sync_msix(&table, 3);
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn teardown_drops_our_side_before_the_host_s() {
    let mut bench = dynamic(4);
    let mut table = table(4);
    mask(&mut table, 0, false);
    mask(&mut table, 1, false);
    bench.irqs.set(Wanted::Msix(&table));
    bench.calls();
    let device = bench.device.clone();
    drop(bench);
    assert_eq!(device.calls(), ["drop 0", "drop 1", "disable Msix"]);
}

#[test]
fn host_without_gsis_leaves_the_vector_dead_and_the_rest_alive() {
    let mut bench = dynamic(4);
    let mut table = table(4);
    mask(&mut table, 0, false);
    bench.irqs.set(Wanted::Msix(&table));
    bench.device.fail("vector");
    mask(&mut table, 1, false);
    bench.irqs.sync_msix(&table, 1);
    assert!(!bench.device.fire(IrqIndex::Msix, 1));
    assert!(bench.device.fire(IrqIndex::Msix, 0));
}

#[test]
fn modes_follow_one_another_through_nothing() {
    let mut bench = dynamic(4);
    bench.irqs.set(Wanted::Intx);
    bench.calls();
    bench.irqs.set(Wanted::Msix(&table(4)));
    assert_eq!(
        bench.calls(),
        ["mask", "resample -", "line off", "disable Intx", "triggers Msix 0 -"]
    );
    bench.irqs.set(Wanted::Intx);
    assert_eq!(bench.calls()[..2], ["disable Msix", "triggers Intx 0 +"]);
}

#[test]
fn function_mask_of_2048_vectors_costs_the_interrupt_controller_one_update() {
    let mut bench = dynamic(2048);
    let mut table = table(2048);
    (0..2048).for_each(|n| mask(&mut table, n, false));
    assert!(bench.irqs.set(Wanted::Msix(&table)));
    assert_eq!(bench.monitor.updates(), 1);
    for (control, updates) in [(msix::CONTROL_FUNCTION_MASK, 1), (0, 2)] {
        let _ = table.write_control(msix::CONTROL_ENABLE | control);
        assert!(bench.irqs.set(Wanted::Msix(&table)));
        assert_eq!(bench.monitor.updates(), updates);
    }
    assert_eq!(bench.life.report().vectors, 2048);
}

#[test]
fn vectors_that_are_first_unmasked_by_the_function_mask_are_made_in_one_update() {
    let mut bench = dynamic(2048);
    let mut table = table(2048);
    let _ = table.write_control(msix::CONTROL_ENABLE | msix::CONTROL_FUNCTION_MASK);
    (0..2048).for_each(|n| mask(&mut table, n, false));
    assert!(bench.irqs.set(Wanted::Msix(&table)));
    assert_eq!(bench.monitor.updates(), 0);
    let _ = table.write_control(msix::CONTROL_ENABLE);
    assert!(bench.irqs.set(Wanted::Msix(&table)));
    assert_eq!((bench.monitor.updates(), bench.life.report().vectors), (1, 2048));
}

#[test]
fn vectors_that_the_host_does_not_give_are_not_counted_as_connected() {
    let mut bench = bench(FakeDevice::new().failing("triggers Msi 0 ++"));
    let mut msi = Msi::new(2 << msi::CONTROL_CAPABLE_SHIFT, 4);
    let _ = msi.write(msi::CONTROL, &[1 | 2 << 4]);
    assert!(bench.irqs.set(Wanted::Msi(&msi)));
    assert_eq!(bench.life.report().vectors, 1);
}

#[test]
fn every_vector_that_waits_is_seen_in_one_look() {
    let mut bench = dynamic(130);
    let mut table = table(130);
    (0..130).for_each(|n| mask(&mut table, n, false));
    assert!(bench.irqs.set(Wanted::Msix(&table)));
    (0..130).for_each(|n| mask(&mut table, n, true));
    assert!(bench.irqs.set(Wanted::Msix(&table)));
    for n in [0, 64, 129] {
        bench.device.fire(IrqIndex::Msix, n);
    }
    assert_eq!(bench.irqs.waiting_msix(0..130), [0, 64, 129]);
    assert_eq!(bench.irqs.waiting_msix(1..129), [64]);
}
