mod closed;
mod hostile;
mod interrupts;
mod reboots;
mod resets;
mod virtual_function;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

use strait_resources::bar::BarKind;

use super::*;
use crate::{
    pci::regs::{af, extended_header, msix, pcie, pm},
    vfio::{
        bars::presented_bars,
        fake::FakeDevice,
        life::{BarReport, InterruptMode, LastActivity},
    },
};

const MSI: u16 = 0x50;
const MSIX: u16 = 0x70;
const PCIE: u16 = 0x80;
const PM: u16 = 0x40;
const AF: u16 = 0xc0;
const TABLE: u64 = 0x2000;
/// Behind the table's 4 entries, on the same page.
const PBA: u64 = 0x2800;

/// A GPU: registers with the MSI-X table (64 KiB), a 32 GiB frame buffer, a 256-byte and an I/O BAR, a ROM.
fn gpu() -> FakeDevice {
    let mut registers = vec![0; 0x1_0000];
    registers[0x2100] = 0x5a;
    FakeDevice::new()
        .region(0, &registers)
        .config32(0x14, 0xc)
        .empty_region(1, 32 << 30)
        .region(3, &[0x33; 0x100])
        .config32(0x20, 1)
        .region(4, &[0x44; 0x20])
        .region(6, &[0xaa; 3000])
        .config32(regs::INTERRUPT_LINE, 0x0100)
        .capability(capability::ADVANCED_FEATURES, AF as u8, &[6, af::CAPABILITIES_FLR])
        .capability(capability::PCIE, PCIE as u8, &[2, 0, 0, 0, 0, 0x10])
        .capability(capability::MSIX, MSIX as u8, &[3, 0, 0, 0x20, 0, 0, 0, 0x28, 0, 0])
        .capability(capability::MSI, MSI as u8, &[0x80, 0])
        .capability(capability::PM, PM as u8, &[3, 0])
        .irq(IrqIndex::Intx, 1, true)
        .irq(IrqIndex::Msi, 1, true)
        .irq(IrqIndex::Msix, 4, false)
}

struct Bench {
    device: Arc<FakeDevice>,
    function: VfioFunction,
    masters: Arc<AtomicUsize>,
    open: Arc<AtomicBool>,
}

/// Leaves a trace among the device's calls when it is asked.
struct Gate {
    open: Arc<AtomicBool>,
    seen: Arc<AtomicUsize>,
    log: Arc<FakeDevice>,
}

impl BusMasterGate for Gate {
    fn pass(&self) -> bool {
        panic!("a function never waits: its lock is held")
    }
    fn is_open(&self) -> bool {
        self.seen.fetch_add(1, Relaxed);
        self.log.region_read(0, 0xf00d, &mut [0]).unwrap();
        self.open.load(Relaxed)
    }
}

fn attach(device: FakeDevice) -> Result<Bench, AttachError> {
    let device = Arc::new(device);
    let rom = RomSource::Device;
    let specs = presented_bars(&*device, &rom)?;
    let bars = specs
        .into_iter()
        .map(|spec| {
            let address = match (spec.index.get(), spec.kind) {
                (_, BarKind::Io) => 0x1000,
                (index, BarKind::Memory64 { .. }) => 0x80_0000_0000 * u64::from(index.max(1)),
                (index, _) => 0xc000_0000 + 0x0100_0000 * u64::from(index),
            };
            (spec, address)
        })
        .collect();
    device.calls();
    let monitor = Arc::new(device.monitor());
    let masters = Arc::new(AtomicUsize::new(0));
    let open = Arc::new(AtomicBool::new(true));
    let (opened, seen, log) = (open.clone(), masters.clone(), device.clone());
    let function = VfioFunction::new(VfioParts {
        name: "0000:3b:00.0".parse().unwrap(),
        backend: device.clone(),
        identity: Identity::default(),
        own: (0x8086, 0x154c),
        bars,
        rom,
        multifunction: false,
        raw_config: false,
        atomics: false,
        msi: monitor.clone(),
        intx: Some(monitor),
        gate: Arc::new(Gate { open: opened, seen, log }),
    })?;
    Ok(Bench { device, function, masters, open })
}

/// Attached, with the calls of that forgotten.
fn bench() -> Bench {
    let bench = attach(gpu()).unwrap();
    bench.device.calls();
    bench
}

impl Bench {
    fn read(&mut self, offset: u16, len: u8) -> u32 {
        self.function.config_read(ConfigAccess::new(offset, len).unwrap())
    }

    /// Both halves, as the root complex does them; what moved in either.
    fn write(&mut self, offset: u16, len: u8, value: u32) -> Vec<(u8, u64, bool)> {
        let mut changes = self.begin(offset, len, value);
        changes.extend(self.function.settled());
        changes.iter().map(|c| (c.bar.get(), c.address, c.decoded)).collect()
    }

    /// The first half: nothing that moved is applied yet.
    fn begin(&mut self, offset: u16, len: u8, value: u32) -> BarChanges {
        self.function.config_write(ConfigAccess::new(offset, len).unwrap(), value)
    }

    fn command(&mut self, bits: u16) -> Vec<(u8, u64, bool)> {
        self.write(regs::COMMAND, 2, bits.into())
    }

    fn bar_read(&mut self, bar: u8, offset: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0x11; len];
        self.function.bar_read(BarIndex::new(bar).unwrap(), offset, &mut data);
        data
    }

    fn bar_write(&mut self, bar: u8, offset: u64, data: &[u8]) {
        self.function.bar_write(BarIndex::new(bar).unwrap(), offset, data);
    }

    fn enable_msix(&mut self) {
        self.write(MSIX + msix::CONTROL, 2, msix::CONTROL_ENABLE.into());
    }

    fn calls(&self) -> Vec<String> {
        self.device.calls()
    }
}

#[test]
fn attach_reads_once_turns_decoding_on_and_connects_the_pin() {
    let bench = attach(gpu()).unwrap();
    assert_eq!(
        bench.calls(),
        [
            "read 7 0x0 4096",
            "map 0 0x0 0x10000",
            "map 1 0x0 0x800000000",
            "write 7 0x4 0300",
            "triggers Intx 0 +",
            "mask",
            "line on",
            "resample +",
            "unmask",
        ]
    );
}

#[test]
fn direct_areas_leave_out_the_table_page() {
    let bench = bench();
    let bars: Vec<(u8, usize)> =
        bench.function.bars().iter().map(|bar| (bar.spec.index.get(), bar.direct.len())).collect();
    assert_eq!(bars, [(0, 2), (1, 1), (3, 0), (4, 0), (6, 0)]);
    assert_eq!(bench.function.bars()[0].direct[1].offset, 0x3000);
}

#[test]
fn enumeration_costs_the_device_nothing() {
    let mut bench = bench();
    for offset in [0x00, 0x08, 0x2c, 0x34, 0x3c, PM, MSI, MSIX + 4, PCIE, PCIE + 4] {
        bench.read(offset, 4);
    }
    for offset in (0x10..0x28).step_by(4).chain([0x30]) {
        let old = bench.read(offset, 4);
        bench.write(offset, 4, u32::MAX);
        bench.read(offset, 4);
        bench.write(offset, 4, old);
    }
    bench.command(regs::COMMAND_MEMORY | regs::COMMAND_IO);
    bench.command(0);
    assert_eq!(bench.read(regs::COMMAND, 2), 0);
    assert_eq!(bench.calls(), [""; 0]);
}

#[test]
fn decoding_places_every_bar_at_its_planned_address() {
    let mut bench = bench();
    assert_eq!(
        bench.command(regs::COMMAND_MEMORY),
        [(0, 0xc000_0000, true), (1, 0x80_0000_0000, true), (3, 0xc300_0000, true)]
    );
    assert_eq!(bench.command(regs::COMMAND_MEMORY | regs::COMMAND_IO), [(4, 0x1000, true)]);
    assert_eq!(bench.write(regs::ROM_BAR, 1, 1), [(6, 0xc600_0000, true)]);
    assert_eq!(bench.command(0).len(), 5);
    let life = bench.function.life_signs().report();
    assert!(life.decoded);
    assert_eq!(life.bars[3], BarReport { address: 0xc300_0000, decoded: false });
}

#[test]
fn r87_activity_is_what_reaches_the_monitor() {
    let mut bench = bench();
    let last = |bench: &Bench| bench.function.life_signs().report().last;
    assert_eq!(last(&bench), LastActivity::default());
    bench.read(0, 4);
    let seen = last(&bench);
    assert!(seen.config.is_some() && seen.bar.is_none() && seen.interrupts.is_none());
    bench.function.bar_read(BarIndex::new(0).unwrap(), 0x100, &mut [0; 4]);
    assert!(last(&bench).bar.is_some() && last(&bench).interrupts.is_none());
    bench.write(MSIX + 2, 2, 0x8000);
    assert!(last(&bench).interrupts.is_some());
}

#[test]
fn r87_reads_that_find_nobody_are_counted_and_registers_of_ones_are_not() {
    let mut bench = bench();
    let count = |bench: &Bench| bench.function.life_signs().report().dead_reads;
    bench.device.poke(PCIE + 2, &[0xff; 10]);
    for offset in (PCIE..PCIE + 12).step_by(4) {
        bench.read(offset, 4);
    }
    assert_eq!(count(&bench), 0);
    bench.device.poke(0, &[0xff; 256]);
    bench.read(PCIE + 10, 2);
    bench.read(0, 4);
    assert_eq!(count(&bench), 1);
}

#[test]
fn halves_of_a_wide_bar_move_one_after_the_other() {
    let mut bench = bench();
    bench.command(regs::COMMAND_MEMORY);
    assert_eq!(bench.write(0x18, 4, 0x90), [(1, 0x90_0000_0000, true)]);
    assert_eq!(bench.write(0x1a, 2, 0x1), [(1, 0x1_0090_0000_0000, true)]);
}

#[test]
fn command_and_status_in_one_write_reach_their_owners() {
    let mut bench = bench();
    bench.write(regs::COMMAND, 4, 0xf900_0002);
    assert_eq!(bench.calls(), ["write 7 0x6 00f9"]);
    assert_eq!(bench.read(regs::COMMAND, 1), 2);
}

#[test]
fn bus_mastering_is_asked_for_before_it_reaches_the_device() {
    let mut bench = bench();
    bench.command(regs::COMMAND_MASTER);
    assert_eq!(bench.calls(), ["read 0 0xf00d 1", "write 7 0x4 0700", "read 7 0x4 2"]);
    bench.command(regs::COMMAND_MASTER | regs::COMMAND_MEMORY);
    assert_eq!(bench.calls(), [""; 0]);
    bench.command(0);
    bench.command(regs::COMMAND_MASTER);
    assert_eq!(bench.masters.load(Relaxed), 2);
    assert!(bench.function.life_signs().report().bus_master);
}

#[test]
fn bus_mastering_never_reaches_the_device_while_the_gate_is_closed() {
    let mut bench = bench();
    bench.open.store(false, Relaxed);
    bench.command(regs::COMMAND_MASTER | regs::COMMAND_INVALIDATE | regs::COMMAND_MEMORY);
    let calls = bench.calls();
    assert_eq!(calls, ["read 0 0xf00d 1", "write 7 0x4 1300", "read 7 0x4 2"]);
    assert_eq!(bench.read(regs::COMMAND, 2) & u32::from(regs::COMMAND_MASTER), 0);
    assert!(!bench.function.life_signs().report().bus_master);
    bench.open.store(true, Relaxed);
    bench.command(regs::COMMAND_MASTER);
    assert!(bench.function.life_signs().report().bus_master);
}

#[test]
fn command_bits_that_the_device_lacks_read_back_as_zero() {
    let mut bench = bench();
    bench.command(regs::COMMAND_INVALIDATE | regs::COMMAND_SERR);
    assert_eq!(bench.read(regs::COMMAND, 2), u32::from(regs::COMMAND_SERR));
}

#[test]
fn small_and_io_bars_are_forwarded() {
    let mut bench = bench();
    assert_eq!(bench.bar_read(3, 0x10, 4), [0x33; 4]);
    bench.bar_write(4, 0x1f, &[1]);
    assert_eq!(bench.bar_read(4, 0x1e, 2), [0x44, 1]);
}

#[test]
fn past_the_end_or_failing_reads_are_ones() {
    let mut bench = bench();
    assert_eq!(bench.bar_read(3, 0xfe, 4), [0xff; 4]);
    assert_eq!(bench.bar_read(2, 0, 4), [0xff; 4]);
    assert_eq!(bench.calls(), [""; 0]);
    bench.device.fail("read 3");
    assert_eq!(bench.bar_read(3, 0, 4), [0xff; 4]);
}

#[test]
fn rom_is_read_from_the_device_when_the_guest_looks() {
    let mut bench = bench();
    assert_eq!(bench.bar_read(6, 2999, 2), [0xaa, 0xff]);
    bench.bar_write(6, 0, &[1]);
    assert_eq!(bench.bar_read(6, 0, 1), [0xaa]);
    assert_eq!(bench.calls(), ["read 6 0x0 3000"]);
    assert!(bench.function.life_signs().report().rom_read);
}

#[test]
fn msix_table_outside_its_bar_hides_the_capability() {
    let device = gpu().areas(0, &[]);
    device.poke(MSIX + 4, &[0xf8, 0xff, 0, 0]);
    let mut bench = attach(device).unwrap();
    assert_eq!(bench.read(MSIX, 4), 0);
    assert_eq!(bench.read(MSI, 2) >> 8, u32::from(PCIE));
}

#[test]
fn short_configuration_space_ends_in_ones() {
    let mut bench = attach(gpu().config_size(256)).unwrap();
    assert_eq!(bench.read(0x100, 4), u32::MAX);
    bench.write(0x100, 4, 0);
    assert_eq!(bench.read(0xffc, 2), 0xffff);
}

#[test]
fn what_is_no_endpoint_is_refused() {
    let device = gpu();
    device.poke(regs::HEADER_TYPE, &[0x81]);
    assert!(matches!(attach(device), Err(AttachError::Header(1))));
    let device = gpu();
    device.poke(0, &[0xff; 64]);
    assert!(matches!(attach(device), Err(AttachError::Dead)));
    assert!(matches!(attach(gpu().config_size(63)), Err(AttachError::ConfigSize(63))));
}

#[test]
fn hidden_resizable_bars_cannot_be_written() {
    let device = gpu().config32(0x100, extended_header::new(regs::extended::REBAR, 1, 0));
    let mut bench = attach(device).unwrap();
    bench.write(0x108, 4, u32::MAX);
    assert_eq!((bench.read(0x100, 4), bench.read(0x108, 4)), (0, 0));
    assert_eq!(bench.device.peek(0x108), 0);
}

#[test]
fn interrupt_line_is_the_firmwares_until_the_guest_writes_another() {
    let mut bench = bench();
    assert_eq!(bench.read(regs::INTERRUPT_LINE, 2), 0x010a);
    bench.write(regs::INTERRUPT_LINE, 1, 5);
    assert_eq!(bench.read(regs::INTERRUPT_LINE, 1), 5);
    bench.function.reset();
    assert_eq!(bench.read(regs::INTERRUPT_LINE, 1), 10);
}
