//! A machine for a guest that means harm: root complex, two ports with two passed functions behind each, and the legacy
//! devices, with a monitor that checks whatever is asked of it.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    },
};

use strait_devices::{
    bus::Bus,
    legacy::{LegacyDevice, acpi_pm, acpi_pm::AcpiPm, i8042::I8042, rtc::Rtc, serial::Serial},
    pci::{
        port::{Link, RootPortParts},
        regs::{self, af, capability, extended, extended_header},
        root::{RootComplex, RootParts},
    },
    ports::{
        Access, BusMasterGate, GuestMapper, GuestMapping, HostMemory, LineRouter, MachineControl,
        PCI_LINES,
    },
    vfio::{
        attach::Identity,
        backend::IrqIndex,
        bars::presented_bars,
        fake::FakeDevice,
        function::{VfioFunction, VfioParts},
        rom::RomSource,
    },
};
use strait_resources::{
    bar::{BarKind, BarSpec},
    bdf::Bdf,
    range::AddressRange,
};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Where configuration space is after power-on.
pub(super) const ECAM: u64 = 0xe000_0000;
/// First port of the power management block.
pub(super) const POWER: u16 = 0x600;
const RAM: u64 = 0x8000_0000;
const PHYSICAL_BITS: u8 = 40;
/// Functions behind the ports, two each.
pub(super) const FUNCTIONS: usize = 4;
/// Host addresses that belong to one function's regions.
const HOST_MEMORY: usize = 1 << 44;

/// Offsets of the capabilities of every function.
const PM: u16 = 0x40;
const MSI: u16 = 0x50;
const VPD: u16 = 0x68;
const MSIX: u16 = 0x70;
const PCIE: u16 = 0x80;
const AF: u16 = 0xc0;
const AER: u16 = 0x100;
const SRIOV: u16 = 0x150;
const PASID: u16 = 0x1a0;
const TPH: u16 = 0x1b0;
const LTR: u16 = 0x1c0;

/// Registers that no write of a guest may reach in the device: first byte, bytes, which.
const KEPT: [(u16, u16, &str); 13] = [
    (regs::BIST, 1, "self test"),
    (regs::BAR0, 0x18, "BARs"),
    (regs::ROM_BAR, 4, "ROM BAR"),
    (regs::INTERRUPT_LINE, 1, "interrupt line"),
    (MSI, 0x18, "MSI"),
    (VPD + 4, 4, "vital product data"),
    (MSIX, 0x0c, "MSI-X"),
    (PCIE + 0x0a, 2, "device status"),
    (PCIE + 0x10, 4, "link control"),
    (AER, 0x48, "AER"),
    (SRIOV, 0x40, "SR-IOV"),
    (PASID, 8, "PASID"),
    (TPH, 0x18, "TPH, LTR"),
];

/// The machine and its devices.
pub(super) struct Machine {
    pub(super) bus: Arc<Bus>,
    pub(super) root: Arc<RootComplex>,
    pub(super) monitor: Arc<Monitor>,
    pub(super) devices: Vec<Arc<FakeDevice>>,
    pub(super) serial: Arc<Serial>,
    legacy: Vec<Arc<dyn LegacyDevice>>,
}

/// Memory slots, the gate, and what the guest wants of the machine.
#[derive(Default)]
pub(super) struct Monitor {
    me: Weak<Self>,
    slots: Mutex<BTreeMap<u64, (AddressRange, HostMemory)>>,
    next: AtomicU64,
    open: AtomicBool,
}

impl Monitor {
    pub(super) fn slots(&self) -> MutexGuard<'_, BTreeMap<u64, (AddressRange, HostMemory)>> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// RAM is mapped for DMA, or not yet.
    pub(super) fn open(&self, open: bool) {
        self.open.store(open, SeqCst);
    }
}

/// Where no slot may be: RAM below and above 4 GiB, the chipset.
fn forbidden() -> Vec<AddressRange> {
    [(0, RAM - 1), (1 << 32, (1 << 33) - 1), (0xfc00_0000, 0xffff_ffff)]
        .into_iter()
        .filter_map(|(first, last)| AddressRange::inclusive(first, last))
        .collect()
}

struct Slot(Arc<Monitor>, u64);

impl GuestMapping for Slot {}

impl Drop for Slot {
    fn drop(&mut self) {
        assert!(self.0.slots().remove(&self.1).is_some(), "a slot is gone before its end");
    }
}

impl GuestMapper for Monitor {
    fn map(
        &self,
        range: AddressRange,
        memory: HostMemory,
        _: Access,
    ) -> io::Result<Box<dyn GuestMapping>> {
        assert_eq!(range.len(), memory.len);
        assert!(range.last() < 1 << PHYSICAL_BITS, "{range} is past the CPU's address bits");
        for hole in forbidden() {
            assert!(!hole.overlaps(range), "{range} lies on {hole}");
        }
        let id = self.next.fetch_add(1, SeqCst);
        let mut slots = self.slots();
        for (other, _) in slots.values() {
            assert!(!other.overlaps(range), "the slots {other} and {range} overlap");
        }
        slots.insert(id, (range, memory));
        drop(slots);
        let me = self.me.upgrade().ok_or(io::ErrorKind::NotConnected)?;
        Ok(Box::new(Slot(me, id)))
    }
    fn withdraw(&self, _: HostMemory) {}
    fn settle(&self) {}
}

impl BusMasterGate for Monitor {
    /// As if the wait had ended well, although the gate may be closed: the function has to look again under its lock.
    fn pass(&self) -> bool {
        true
    }
    fn is_open(&self) -> bool {
        self.open.load(SeqCst)
    }
}

impl MachineControl for Monitor {
    fn power_off(&self) {}
    fn reset(&self) {}
}

impl LineRouter for Monitor {
    fn route(&self, irqs: [Option<u8>; PCI_LINES]) {
        for irq in irqs.into_iter().flatten() {
            assert!((3..=15).contains(&irq) && irq != 8 && irq != 13, "a line raises IRQ {irq}");
        }
    }
}

impl Machine {
    /// As after power-on, with the gate closed.
    pub(super) fn new() -> Self {
        let monitor = Arc::new_cyclic(|me| Monitor { me: Weak::clone(me), ..Monitor::default() });
        let bus = Arc::new(Bus::new());
        let root = RootComplex::new(RootParts {
            bus: bus.clone(),
            mapper: monitor.clone(),
            control: monitor.clone(),
            gate: monitor.clone(),
            ecam: range(ECAM, 4 << 20),
            forbidden: forbidden(),
            physical_bits: PHYSICAL_BITS,
            power: POWER,
            root_complex: 0xfed1_c000,
            lines: [10, 10, 11, 11, 10, 10, 11, 11],
            router: monitor.clone(),
        })
        .expect("an empty bus");
        let devices = (0..FUNCTIONS).map(|n| Arc::new(device(n))).collect::<Vec<_>>();
        for port in [0_u8, 1] {
            let at = root.add_port(RootPortParts {
                at: Bdf::new(0, 0, 1 + port, 0).expect("a slot of bus 0"),
                multifunction: false,
                secondary: 1 + port,
                io: None,
                memory: None,
                prefetchable: None,
                slot: 1,
                link: Link::default(),
                atomics: 0,
            });
            for number in [0_u8, 1] {
                let n = usize::from(port * 2 + number);
                root.add_function(at, number, Box::new(function(&devices[n], n, &monitor)));
            }
        }
        let (serial, legacy) = legacy(&bus, &monitor);
        devices.iter().for_each(|device| drop(device.calls()));
        Self { bus, root, monitor, devices, serial, legacy }
    }

    /// A reset of the whole machine, for which every CPU has stopped. What must hold of it afterwards.
    pub(super) fn reset(&self) {
        self.monitor.open(false);
        self.root.reset();
        self.legacy.iter().for_each(|device| device.reset());
        assert!(self.monitor.slots().is_empty(), "a reset leaves a BAR mapped");
        self.check();
    }

    /// What must hold between two accesses of one CPU.
    pub(super) fn check(&self) {
        let slots = self.monitor.slots();
        for (n, device) in self.devices.iter().enumerate() {
            let command = device.peek(regs::COMMAND);
            let masters = command & regs::COMMAND_MASTER as u8 != 0;
            assert!(self.monitor.is_open() || !masters, "function {n} masters a closed bus");
            let decodes = (regs::COMMAND_IO | regs::COMMAND_MEMORY) as u8;
            assert_eq!(command & decodes, decodes, "function {n} decodes no more");
            let sleeps = device.peek(PM + 4) & 3 != 0;
            let is_its = |memory: &HostMemory| memory.address / HOST_MEMORY == n + 1;
            let mapped = slots.values().any(|(_, memory)| is_its(memory));
            assert!(!sleeps || !mapped, "function {n} sleeps while the guest reaches its BARs");
            device.calls().iter().for_each(|call| check_write(call));
        }
    }

    /// Everything goes, as at the end of the machine.
    pub(super) fn end(self) {
        self.reset();
        self.root.clear();
        assert!(self.monitor.slots().is_empty(), "a slot outlives its function");
    }
}

/// No write reaches a register that is the host's.
fn check_write(call: &str) {
    let Some(rest) = call.strip_prefix("write 7 0x") else { return };
    let Some((at, bytes)) = rest.split_once(' ') else { return };
    let at = u16::from_str_radix(at, 16).expect("an offset");
    let end = at + u16::try_from(bytes.len() / 2).expect("a few bytes");
    for (first, len, which) in KEPT {
        assert!(end <= first || at >= first + len, "{which} of the device: {call}");
    }
}

fn range(first: u64, len: u64) -> AddressRange {
    AddressRange::new(first, len).expect("a range that ends")
}

/// A GPU with everything that a guest could do harm with: registers with the MSI-X table, a frame buffer of 32 GiB, a
/// small and an I/O BAR, a ROM, every kind of reset and of sleep, and what VFIO shows or hides of its extended space.
fn device(n: usize) -> FakeDevice {
    let header = |id, next| extended_header::new(id, 1, next);
    FakeDevice::new()
        .mapped_from((n + 1) * HOST_MEMORY)
        .region(0, &[0x11; 0x1_0000])
        .config32(0x14, 0xc)
        .empty_region(1, 32 << 30)
        .region(3, &[0x33; 0x100])
        .config32(0x20, 1)
        .region(4, &[0x44; 0x20])
        .region(6, &[0xaa; 3000])
        .config32(regs::INTERRUPT_LINE, 0x0100)
        .capability(capability::ADVANCED_FEATURES, AF as u8, &[6, af::CAPABILITIES_FLR])
        .capability(capability::PCIE, PCIE as u8, &[2, 0, 0, 0, 0, 0x10])
        // 64 vectors; the table at 0x2000 of BAR 0 and the pending bits at 0x2800, on the same page.
        .capability(capability::MSIX, MSIX as u8, &[0x3f, 0, 0, 0x20, 0, 0, 0, 0x28, 0, 0])
        .capability(capability::VPD, VPD as u8, &[])
        // 32 vectors, 64-bit addresses, maskable.
        .capability(capability::MSI, MSI as u8, &[0x80 | 0x0a, 1])
        .capability(capability::PM, PM as u8, &[3, 6])
        .config32(AER, header(extended::AER, SRIOV))
        .config32(SRIOV, header(extended::SRIOV, LTR))
        .config32(PASID, header(extended::PASID, TPH))
        .config32(TPH, header(extended::TPH, LTR))
        .config32(LTR, header(extended::LTR, 0))
        .hidden(SRIOV, &header(extended::SRIOV, PASID).to_le_bytes())
        .irq(IrqIndex::Intx, 1, true)
        .irq(IrqIndex::Msi, 32, true)
        .irq(IrqIndex::Msix, 64, n.is_multiple_of(2))
}

/// The function behind device `n`, with a BAR of each kind where the plan could have put it.
fn function(device: &Arc<FakeDevice>, n: usize, gate: &Arc<Monitor>) -> VfioFunction {
    let n = n as u64;
    let place = |spec: BarSpec| match (spec.index.get(), spec.kind) {
        (_, BarKind::Io) => 0x1000 + 0x100 * n,
        (_, BarKind::Memory64 { .. }) => 0x80_0000_0000 + (n << 35),
        (index, _) => 0xc000_0000 + 0x0100_0000 * u64::from(index) + (n << 20),
    };
    let rom = RomSource::Device;
    let specs = presented_bars(&**device, &rom).expect("BARs");
    let monitor = Arc::new(device.monitor());
    VfioFunction::new(VfioParts {
        name: "0000:3b:00.0".parse().expect("an address"),
        backend: device.clone(),
        identity: Identity::default(),
        own: (0x10de, 0x1234),
        bars: specs.into_iter().map(|spec| (spec, place(spec))).collect(),
        rom,
        multifunction: true,
        raw_config: false,
        atomics: false,
        msi: monitor.clone(),
        intx: Some(monitor),
        gate: gate.clone(),
    })
    .expect("a device that works")
}

/// The devices on fixed ports.
fn legacy(bus: &Bus, monitor: &Arc<Monitor>) -> (Arc<Serial>, Vec<Arc<dyn LegacyDevice>>) {
    let interrupt = EventFd::new(EFD_NONBLOCK).expect("a descriptor");
    let serial = Arc::new(Serial::new(interrupt, Box::new(io::sink()), Box::new(|| {})));
    let clock = Arc::new(Rtc::new(RAM, 1 << 32));
    let keyboard = Arc::new(I8042::new(monitor.clone()));
    let power = Arc::new(AcpiPm::new(monitor.clone()));
    let parts: [(u16, u64, Arc<dyn LegacyDevice>); 5] = [
        (0x3f8, 8, serial.clone()),
        (0x70, 2, clock.clone()),
        (0x60, 1, keyboard.clone()),
        (0x64, 1, keyboard.clone()),
        (POWER, acpi_pm::SIZE, power.clone()),
    ];
    for (first, len, device) in parts {
        bus.insert_pio(range(first.into(), len), device).expect("free ports");
    }
    (serial.clone(), vec![serial, clock, keyboard, power])
}
