use std::{
    io,
    sync::{atomic::AtomicUsize, mpsc},
    time::Duration,
};

use strait_resources::bar::{BarIndex, BarSpec};

use super::*;
use crate::{
    pci::{
        function::{BarChanges, DirectArea},
        port::Link,
        regs::{self},
    },
    ports::{Access, HostMemory},
};

const ECAM: u64 = 0xe000_0000;
const BAR: u64 = 0x9000_0000;

#[derive(Default)]
struct Machine {
    resets: AtomicUsize,
    maps: Mutex<Vec<AddressRange>>,
    /// What went away, in its order: mappings of the guest, peers' reach, and what waited for both.
    ends: Arc<Mutex<Vec<&'static str>>>,
    settles: AtomicUsize,
}

impl LineRouter for Machine {
    fn route(&self, _: [Option<u8>; PCI_LINES]) {}
}

struct Mapping(Arc<Mutex<Vec<&'static str>>>);

impl GuestMapping for Mapping {}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.0.lock().unwrap().push("unmapped");
    }
}

impl GuestMapper for Machine {
    fn map(
        &self,
        range: AddressRange,
        _: HostMemory,
        _: Access,
    ) -> io::Result<Box<dyn GuestMapping>> {
        self.maps.lock().unwrap().push(range);
        Ok(Box::new(Mapping(Arc::clone(&self.ends))))
    }
    fn withdraw(&self, _: HostMemory) {
        self.ends.lock().unwrap().push("withdrawn");
    }
    fn settle(&self) {
        self.settles.fetch_add(1, Ordering::Relaxed);
    }
}

/// Open, or closed until somebody opens it; `pass` says that it waits.
#[derive(Default)]
struct Gate {
    closed: Mutex<Option<(mpsc::Sender<()>, mpsc::Receiver<bool>)>>,
}

impl BusMasterGate for Gate {
    fn pass(&self) -> bool {
        let closed = self.closed.lock().unwrap().take();
        match closed {
            None => true,
            Some((waits, opens)) => {
                waits.send(()).unwrap();
                opens.recv().unwrap()
            }
        }
    }
    fn is_open(&self) -> bool {
        self.closed.lock().unwrap().is_none()
    }
}

impl MachineControl for Machine {
    fn power_off(&self) {}
    fn reset(&self) {
        self.resets.fetch_add(1, Ordering::Relaxed);
    }
}

/// A function with one 64 KiB BAR, whose registers are all plain bytes; BAR 0 is written whole.
struct Device {
    config: Vec<u8>,
    resets: Arc<AtomicUsize>,
    ends: Arc<Mutex<Vec<&'static str>>>,
    sleeps: bool,
}

impl Device {
    fn placement(&self) -> BarPlacement {
        let address = u32::from_le_bytes(self.config[0x10..0x14].try_into().unwrap());
        BarPlacement {
            bar: BarIndex::new(0).unwrap(),
            address: u64::from(address & !0xf),
            decoded: self.config[4] & 2 != 0,
            answers: self.config[0x50] == 0,
        }
    }
}

impl PciFunction for Device {
    fn bars(&self) -> Vec<BarLayout> {
        let spec = BarSpec {
            index: BarIndex::new(0).unwrap(),
            kind: BarKind::Memory32 { prefetchable: false },
            size: 0x1_0000,
        };
        let memory = HostMemory { address: 0x7000_0000, len: 0xf000 };
        vec![BarLayout {
            spec,
            direct: vec![DirectArea { offset: 0x1000, memory, access: Access::ReadWrite }],
        }]
    }
    fn config_read(&mut self, at: ConfigAccess) -> u32 {
        let bytes = &self.config[usize::from(at.offset())..][..usize::from(at.len())];
        bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
    }
    fn config_write(&mut self, at: ConfigAccess, value: u32) -> BarChanges {
        let before = self.placement();
        let bytes = value.to_le_bytes();
        self.config[usize::from(at.offset())..][..usize::from(at.len())]
            .copy_from_slice(&bytes[..usize::from(at.len())]);
        let now = self.placement();
        self.sleeps = before.answers && !now.answers;
        if now == before { vec![] } else { vec![now] }
    }
    fn settled(&mut self) -> BarChanges {
        if std::mem::take(&mut self.sleeps) {
            self.ends.lock().unwrap().push("asleep");
        }
        vec![]
    }
    fn bar_read(&mut self, _: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn bar_write(&mut self, _: BarIndex, _: u64, _: &[u8]) {}
    fn reset(&mut self) -> BarChanges {
        self.resets.fetch_add(1, Ordering::Relaxed);
        self.ends.lock().unwrap().push("reset");
        self.config[4] = 0;
        vec![self.placement()]
    }
}

struct Fixture {
    bus: Arc<Bus>,
    machine: Arc<Machine>,
    root: Arc<RootComplex>,
    resets: Arc<AtomicUsize>,
    gate: Arc<Gate>,
}

fn fixture() -> Fixture {
    let gate = Arc::new(Gate::default());
    let (bus, machine) = (Arc::new(Bus::new()), Arc::new(Machine::default()));
    let range = |first, len| AddressRange::new(first, len).unwrap();
    let root = RootComplex::new(RootParts {
        bus: Arc::clone(&bus),
        mapper: Arc::clone(&machine) as Arc<dyn GuestMapper>,
        control: Arc::clone(&machine) as Arc<dyn MachineControl>,
        gate: Arc::clone(&gate) as Arc<dyn BusMasterGate>,
        ecam: range(ECAM, 4 << 20),
        forbidden: vec![range(0, 0x8000_0000)],
        physical_bits: 40,
        power: 0x600,
        root_complex: 0xfed1_c000,
        lines: [10; PCI_LINES],
        router: Arc::clone(&machine) as Arc<dyn LineRouter>,
    })
    .unwrap();
    let port = root.add_port(RootPortParts {
        at: Bdf::new(0, 0, 1, 0).unwrap(),
        multifunction: false,
        secondary: 1,
        io: None,
        memory: Some(range(BAR, 1 << 20)),
        prefetchable: None,
        slot: 1,
        link: Link::default(),
        atomics: 0,
    });
    let resets = Arc::new(AtomicUsize::new(0));
    let mut config = vec![0; 4096];
    config[..4].copy_from_slice(&0x5678_1234_u32.to_le_bytes());
    config[0x10..0x14].copy_from_slice(&(BAR as u32).to_le_bytes());
    root.add_function(
        port,
        0,
        Box::new(Device {
            config,
            resets: Arc::clone(&resets),
            ends: Arc::clone(&machine.ends),
            sleeps: false,
        }),
    );
    Fixture { bus, machine, root, resets, gate }
}

impl Fixture {
    fn read(&self, address: u64, len: usize) -> u64 {
        let mut data = [0u8; 8];
        self.bus.mmio_read(address, &mut data[..len]);
        u64::from_le_bytes(data)
    }

    fn write(&self, address: u64, value: u32) {
        self.bus.mmio_write(address, &value.to_le_bytes());
    }

    fn ends(&self) -> Vec<&'static str> {
        std::mem::take(&mut *self.machine.ends.lock().unwrap())
    }

    fn maps(&self) -> Vec<AddressRange> {
        std::mem::take(&mut *self.machine.maps.lock().unwrap())
    }
}

fn at(bus: u64, device: u64, register: u64) -> u64 {
    ECAM + (bus << 20) + (device << 15) + register
}

#[test]
fn ecam_and_ports_reach_the_same_registers_in_every_width() {
    let fixture = fixture();
    assert_eq!(fixture.read(at(0, 0, 0), 4), 0x29c0_8086);
    assert_eq!(fixture.read(at(0, 31, 2), 2), 0x2918);
    assert_eq!(fixture.read(at(1, 0, 3), 1), 0x56);
    assert_eq!(fixture.read(at(1, 0, 0), 8), 0x5678_1234);
    fixture.bus.pio_write(0xcf8, &0x8001_0000_u32.to_le_bytes());
    let mut data = [0u8; 4];
    fixture.bus.pio_read(0xcfc, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x5678_1234);
    fixture.bus.pio_read(0xcfe, &mut data[..2]);
    assert_eq!(data[..2], [0x78, 0x56]);
}

#[test]
fn what_is_not_there_reads_as_all_ones() {
    let fixture = fixture();
    for (bus, device) in [(0, 2), (1, 1), (2, 0), (3, 31)] {
        assert_eq!(fixture.read(at(bus, device, 0), 4), 0xffff_ffff, "{bus}:{device}");
    }
    assert_eq!(fixture.read(at(1, 0, 0) + (1 << 12), 4), 0xffff_ffff, "function 1");
    let mut data = [0u8; 4];
    fixture.bus.pio_read(0xcfc, &mut data);
    assert_eq!(data, [0xff; 4], "no address latched");
}

#[test]
fn bus_numbers_are_the_guests() {
    let fixture = fixture();
    fixture.write(at(0, 1, u64::from(regs::PRIMARY_BUS)), 0x0003_0300);
    assert_eq!(fixture.read(at(1, 0, 0), 4), 0xffff_ffff);
    assert_eq!(fixture.read(at(3, 0, 0), 4), 0x5678_1234);
}

#[test]
fn bar_is_trapped_and_mapped_while_it_decodes_and_stays_mapped_after() {
    let fixture = fixture();
    fixture.write(at(1, 0, 4), 2);
    assert_eq!(fixture.maps(), [AddressRange::new(BAR + 0x1000, 0xf000).unwrap()]);
    assert_eq!(fixture.read(BAR + 0x42, 1), 0x42);
    fixture.write(at(1, 0, 4), 0);
    fixture.write(at(1, 0, 4), 2);
    assert_eq!(fixture.maps(), [], "decode off and on maps nothing again");
    fixture.write(at(1, 0, 0x10), 0x9008_0000);
    assert_eq!(fixture.maps(), [AddressRange::new(0x9008_1000, 0xf000).unwrap()]);
    assert_eq!(fixture.read(BAR + 0x42, 1), 0xff);
    assert_eq!(fixture.read(0x9008_0042, 1), 0x42);
}

#[test]
fn device_that_cannot_answer_is_taken_out() {
    let fixture = fixture();
    fixture.write(at(1, 0, 4), 2);
    fixture.write(at(1, 0, 0x50), 3);
    assert_eq!(fixture.ends(), ["unmapped", "withdrawn", "asleep"]);
    assert_eq!(fixture.read(BAR + 0x42, 1), 0xff);
    fixture.write(at(1, 0, 0x50), 0);
    assert_eq!(fixture.read(BAR + 0x42, 1), 0x42);
}

#[test]
fn ecam_moves_with_its_register_and_comes_back_with_a_reset() {
    let fixture = fixture();
    fixture.write(at(0, 0, 0x60), 0xb000_0001);
    assert_eq!(fixture.read(at(0, 0, 0), 4), 0xffff_ffff);
    assert_eq!(fixture.read(0xb000_0000, 4), 0x29c0_8086);
    assert_eq!(fixture.read(0xb010_0000, 4), 0x5678_1234);
    fixture.root.reset();
    assert_eq!(fixture.read(at(0, 0, 0), 4), 0x29c0_8086);
    assert_eq!(fixture.resets.load(Ordering::Relaxed), 1);
}

#[test]
fn secondary_bus_reset_resets_what_is_behind() {
    let fixture = fixture();
    let control = at(0, 1, u64::from(regs::BRIDGE_CONTROL));
    fixture.bus.mmio_write(control, &regs::BRIDGE_CONTROL_RESET.to_le_bytes());
    assert_eq!(fixture.resets.load(Ordering::Relaxed), 0);
    fixture.bus.mmio_write(control, &[0, 0]);
    assert_eq!(fixture.resets.load(Ordering::Relaxed), 1);
}

#[test]
fn device_is_reset_after_guest_and_peers_have_lost_its_bars() {
    let fixture = fixture();
    fixture.write(at(1, 0, 4), 2);
    fixture.root.reset();
    assert_eq!(fixture.ends(), ["unmapped", "withdrawn", "reset"]);
    // Turned off, a BAR is still where peers reach it.
    fixture.write(at(1, 0, 4), 2);
    fixture.write(at(1, 0, 4), 0);
    assert_eq!(fixture.ends(), [""; 0]);
    let control = at(0, 1, u64::from(regs::BRIDGE_CONTROL));
    fixture.bus.mmio_write(control, &regs::BRIDGE_CONTROL_RESET.to_le_bytes());
    fixture.bus.mmio_write(control, &[0, 0]);
    assert_eq!(fixture.ends(), ["unmapped", "withdrawn", "reset"]);
    assert_ne!(fixture.machine.settles.load(Ordering::Relaxed), 0);
}

#[test]
fn reset_control_register_resets_and_is_no_part_of_the_address() {
    let fixture = fixture();
    fixture.bus.pio_write(0xcf8, &0x8000_0000_u32.to_le_bytes());
    fixture.bus.pio_write(0xcf9, &[0x02]);
    assert_eq!(fixture.machine.resets.load(Ordering::Relaxed), 0);
    fixture.bus.pio_write(0xcf9, &[0x06]);
    assert_eq!(fixture.machine.resets.load(Ordering::Relaxed), 1);
    let mut data = [0u8; 4];
    fixture.bus.pio_read(0xcf8, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x8000_0000);
}

#[test]
fn accesses_that_cross_registers_are_split() {
    let fixture = fixture();
    assert_eq!(fixture.read(at(1, 0, 1), 4), 0x0056_7812);
    assert_eq!(fixture.read(at(1, 0, 0xffe), 4), 0xffff_0000, "the second half is function 1's");
}

#[test]
fn clearing_takes_every_function_out() {
    let fixture = fixture();
    fixture.write(at(1, 0, 4), 2);
    fixture.root.clear();
    assert_eq!(fixture.read(at(1, 0, 0), 4), 0xffff_ffff);
    assert_eq!(fixture.read(BAR + 0x42, 1), 0xff);
    assert_eq!(Arc::strong_count(&fixture.resets), 1, "the device is dropped");
}

#[test]
fn data_port_takes_a_word_at_an_odd_port() {
    let fixture = fixture();
    fixture.bus.pio_write(0xcf8, &0x8001_0000_u32.to_le_bytes());
    let mut data = [0u8; 2];
    fixture.bus.pio_read(0xcfd, &mut data);
    assert_eq!(data, [0x12, 0x78]);
    fixture.bus.pio_write(0xcf8, &0x8001_0060_u32.to_le_bytes());
    fixture.bus.pio_write(0xcfd, &[0xaa, 0xbb]);
    assert_eq!(fixture.read(at(1, 0, 0x60), 4), 0x00bb_aa00);
}

/// A function with one I/O BAR of 8 ports; BAR 0 is written whole and decodes whenever it is not 0.
struct Ports(u32);

impl PciFunction for Ports {
    fn bars(&self) -> Vec<BarLayout> {
        let spec = BarSpec { index: BarIndex::new(0).unwrap(), kind: BarKind::Io, size: 8 };
        vec![BarLayout { spec, direct: Vec::new() }]
    }
    fn config_read(&mut self, _: ConfigAccess) -> u32 {
        self.0
    }
    fn config_write(&mut self, _: ConfigAccess, value: u32) -> BarChanges {
        self.0 = value;
        let (bar, address) = (BarIndex::new(0).unwrap(), u64::from(value));
        vec![BarPlacement { bar, address, decoded: value != 0, answers: true }]
    }
    fn settled(&mut self) -> BarChanges {
        Vec::new()
    }
    fn bar_read(&mut self, _: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(offset as u8);
    }
    fn bar_write(&mut self, _: BarIndex, _: u64, _: &[u8]) {}
    fn reset(&mut self) -> BarChanges {
        Vec::new()
    }
}

#[test]
fn io_bar_put_on_the_machines_own_ports_neither_gets_nor_removes_them() {
    let fixture = fixture();
    fixture.root.add_function(0, 1, Box::new(Ports(0)));
    let bar = at(1, 0, 0x10) + (1 << 12);
    fixture.write(bar, 0xcf8);
    fixture.write(bar, 0x4000);
    fixture.bus.pio_write(0xcf8, &0x8000_0000_u32.to_le_bytes());
    let mut data = [0u8; 4];
    fixture.bus.pio_read(0xcfc, &mut data);
    assert_eq!(u32::from_le_bytes(data), 0x29c0_8086, "still the configuration ports");
    fixture.bus.pio_read(0x4005, &mut data[..1]);
    assert_eq!(data[0], 5, "and the BAR is where it went next");
}

/// A function that says when a configuration write, a reset for example, begins, and ends it when it is told to.
struct Slow {
    began: mpsc::Sender<()>,
    end: mpsc::Receiver<()>,
}

impl PciFunction for Slow {
    fn bars(&self) -> Vec<BarLayout> {
        Vec::new()
    }
    fn config_read(&mut self, _: ConfigAccess) -> u32 {
        0
    }
    fn config_write(&mut self, _: ConfigAccess, _: u32) -> BarChanges {
        self.began.send(()).unwrap();
        assert!(self.end.recv().is_err(), "nothing is sent, the channel closes");
        Vec::new()
    }
    fn settled(&mut self) -> BarChanges {
        Vec::new()
    }
    fn bar_read(&mut self, _: BarIndex, _: u64, _: &mut [u8]) {}
    fn bar_write(&mut self, _: BarIndex, _: u64, _: &[u8]) {}
    fn reset(&mut self) -> BarChanges {
        Vec::new()
    }
}

#[test]
fn a_function_in_a_long_reset_holds_up_nobody_behind_another_port() {
    let fixture = fixture();
    let ((began, has_begun), (release, end)) = (mpsc::channel(), mpsc::channel::<()>());
    let port = fixture.root.add_port(RootPortParts {
        at: Bdf::new(0, 0, 2, 0).unwrap(),
        multifunction: false,
        secondary: 2,
        io: None,
        memory: None,
        prefetchable: None,
        slot: 2,
        link: Link::default(),
        atomics: 0,
    });
    fixture.root.add_function(port, 0, Box::new(Slow { began, end }));
    let (done, is_done) = mpsc::channel();
    let others = std::thread::scope(|scope| {
        scope.spawn(|| fixture.write(at(2, 0, 4), 1));
        has_begun.recv().unwrap();
        scope.spawn(|| {
            fixture.write(at(1, 0, 4), 2);
            fixture.write(at(0, 1, 4), 2);
            done.send(()).unwrap();
        });
        let others = is_done.recv_timeout(Duration::from_secs(10));
        drop(release);
        others
    });
    assert_eq!(others, Ok(()));
    assert_eq!(fixture.read(BAR + 0x42, 1), 0x42);
}

#[test]
fn bus_mastering_waits_for_the_gate_while_other_cpus_go_on() {
    let fixture = fixture();
    for (passes, command) in [(false, 0), (true, 4)] {
        let (waits, waiting) = mpsc::channel();
        let (open, opens) = mpsc::channel();
        *fixture.gate.closed.lock().unwrap() = Some((waits, opens));
        let seen = std::thread::scope(|scope| {
            let held = scope.spawn(|| fixture.write(at(1, 0, 4), 4));
            waiting.recv_timeout(Duration::from_secs(10)).unwrap();
            // The same function, its port, and a write that lets nobody at RAM.
            fixture.write(at(1, 0, 0x3c), 5);
            let reads = [at(1, 0, 4), at(0, 1, 0), at(1, 0, 0x3c)].map(|at| fixture.read(at, 1));
            let waits = !held.is_finished();
            open.send(passes).unwrap();
            (reads, waits)
        });
        assert_eq!(seen, ([0, fixture.read(at(0, 1, 0), 1), 5], true));
        assert_eq!(fixture.read(at(1, 0, 4), 2), command);
    }
}

#[test]
fn bus_mastering_of_nobody_and_of_a_port_waits_for_nothing() {
    let fixture = fixture();
    let (waits, waiting) = mpsc::channel();
    let (_open, opens) = mpsc::channel();
    *fixture.gate.closed.lock().unwrap() = Some((waits, opens));
    for (bus, device) in [(0, 1), (0, 5), (1, 1), (7, 0)] {
        fixture.write(at(bus, device, 4), 4);
    }
    assert!(waiting.try_recv().is_err());
}
