//! The root complex: ECAM and CF8/CFC, the functions of bus 0, root ports and what is behind them, and where the BARs
//! of passed functions are.
//!
//! Lock order: `writes` -> one function -> nothing; then, with the function's lock released, `apertures` -> the bus,
//! the mapper. A read takes one function's lock only.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError, RwLock, Weak,
    atomic::{AtomicU8, AtomicU32, Ordering},
};

use strait_resources::{
    bar::{BarIndex, BarKind},
    bdf::Bdf,
    range::AddressRange,
};
use vm_device::{
    DeviceMmio, DevicePio,
    bus::{MmioAddress, MmioAddressOffset, PioAddress, PioAddressOffset},
};

use crate::{
    bus::{Bus, BusError},
    pci::{
        apertures::{Apertures, Op},
        function::{BarChanges, BarLayout, BarPlacement, ConfigAccess, PciFunction},
        host_bridge::HostBridge,
        lpc::Lpc,
        port::{RootPort, RootPortParts},
    },
    ports::{GuestMapper, GuestMapping, MachineControl},
};

/// Where the LPC bridge is.
const LPC_DEVICE: u8 = 31;
const FUNCTIONS: usize = 8;
/// CONFIG_ADDRESS and CONFIG_DATA (PCI 3.0, 3.2.2.3.2); the reset control register lies among them.
const CONFIG_PORTS: u16 = 0xcf8;
const CONFIG_DATA: u16 = 4;
const RESET_CONTROL: u16 = 1;
const ADDRESS_ENABLE: u32 = 1 << 31;
/// Reset control: bit 2 resets the CPU, bit 1 says how thoroughly (Intel ICH9 datasheet, 13.7.5).
const RESET_CPU: u8 = 1 << 2;
const RESET_KIND: u8 = 1 << 1 | 1 << 3;

/// A function, shared by its slot and by the ranges it has on the bus.
type Shared = Arc<Mutex<dyn PciFunction>>;

/// What a root complex is made from.
pub struct RootParts {
    /// Where ECAM, the configuration ports and BARs go.
    pub bus: Arc<Bus>,
    /// Puts BARs into the guest's memory.
    pub mapper: Arc<dyn GuestMapper>,
    /// Takes the guest's wish for a reset.
    pub control: Arc<dyn MachineControl>,
    /// ECAM after power-on.
    pub ecam: AddressRange,
    /// Where no BAR may be, besides ECAM: RAM, the chipset.
    pub forbidden: Vec<AddressRange>,
    /// Physical-address bits of the guest's CPU.
    pub physical_bits: u8,
    /// First port of the power management block.
    pub power: u16,
    /// Address of the root complex registers.
    pub root_complex: u32,
}

/// The PCI side of the machine.
pub struct RootComplex {
    me: Weak<Self>,
    bus: Arc<Bus>,
    mapper: Arc<dyn GuestMapper>,
    control: Arc<dyn MachineControl>,
    /// One configuration write at a time, so that BARs move in the order in which they were written.
    writes: Mutex<()>,
    host_bridge: Mutex<HostBridge>,
    lpc: Mutex<Lpc>,
    ports: RwLock<Vec<Port>>,
    placed: Mutex<Placed>,
    forbidden: Vec<AddressRange>,
    address: AtomicU32,
    reset_kind: AtomicU8,
}

/// A root port and what is behind it.
struct Port {
    at: Bdf,
    port: Arc<Mutex<RootPort>>,
    /// The port's secondary bus register, where every access can look without a lock.
    secondary: AtomicU8,
    functions: [Option<Shared>; FUNCTIONS],
}

/// BARs and what they have in the guest's address space.
struct Placed {
    apertures: Apertures,
    bars: Vec<(usize, BarLayout, Shared)>,
    mapped: Vec<Mapped>,
    /// Where ECAM is on the bus.
    ecam: Option<AddressRange>,
}

/// One mapped BAR: its trapped range on the bus, and its direct parts, unmapped by their drop.
struct Mapped {
    key: (usize, u8),
    first: u64,
    io: bool,
    _direct: Vec<Box<dyn GuestMapping>>,
}

impl RootComplex {
    /// Host bridge and LPC bridge, ECAM and the configuration ports on the bus.
    ///
    /// # Errors
    /// When something is on the bus where ECAM or the ports should be.
    pub fn new(parts: RootParts) -> Result<Arc<Self>, BusError> {
        let mut forbidden = parts.forbidden.clone();
        forbidden.push(parts.ecam);
        let placed = Placed {
            apertures: Apertures::new(forbidden, parts.physical_bits),
            bars: Vec::new(),
            mapped: Vec::new(),
            ecam: Some(parts.ecam),
        };
        let root = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            bus: parts.bus,
            mapper: parts.mapper,
            control: parts.control,
            writes: Mutex::new(()),
            host_bridge: Mutex::new(HostBridge::new(parts.ecam)),
            lpc: Mutex::new(Lpc::new(parts.power, parts.root_complex)),
            ports: RwLock::default(),
            placed: Mutex::new(placed),
            forbidden: parts.forbidden,
            address: AtomicU32::new(0),
            reset_kind: AtomicU8::new(0),
        });
        root.bus.insert_mmio(parts.ecam, Arc::new(Ecam(Weak::clone(&root.me))))?;
        let ports = AddressRange::new(u64::from(CONFIG_PORTS), 8).unwrap_or(parts.ecam);
        root.bus.insert_pio(ports, Arc::new(ConfigPorts(Weak::clone(&root.me))))?;
        Ok(root)
    }

    /// Adds a root port; its index is what [`RootComplex::add_function`] wants.
    pub fn add_port(&self, parts: RootPortParts) -> usize {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        ports.push(Port {
            at: parts.at,
            port: Arc::new(Mutex::new(RootPort::new(parts))),
            secondary: AtomicU8::new(parts.secondary),
            functions: Default::default(),
        });
        ports.len() - 1
    }

    /// Puts a function behind a port, as function `number` of the one device there.
    pub fn add_function(&self, port: usize, number: u8, function: Box<dyn PciFunction>) {
        let layouts = function.bars();
        let shared: Shared = Arc::new(Mutex::new(Boxed(function)));
        let owner = port * FUNCTIONS + usize::from(number);
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        let Some(slot) =
            ports.get_mut(port).and_then(|port| port.functions.get_mut(usize::from(number)))
        else {
            return;
        };
        *slot = Some(Arc::clone(&shared));
        drop(ports);
        let mut placed = lock(&self.placed);
        for layout in layouts {
            let key = (owner, layout.spec.index.get());
            placed.apertures.add(key, layout.spec.kind == BarKind::Io, layout.spec.size);
            placed.bars.push((owner, layout, Arc::clone(&shared)));
        }
    }

    /// Everything as after power-on: devices reset, BARs undecoded at the plan's addresses, ECAM where it was. No
    /// vCPU may run.
    pub fn reset(&self) {
        let _order = lock(&self.writes);
        lock(&self.host_bridge).reset();
        lock(&self.lpc).reset();
        self.address.store(0, Ordering::Relaxed);
        self.reset_kind.store(0, Ordering::Relaxed);
        self.move_ecam();
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        for (index, port) in ports.iter().enumerate() {
            let mut bridge = lock(&port.port);
            bridge.reset();
            port.secondary.store(bridge.secondary(), Ordering::Relaxed);
            drop(bridge);
            self.reset_behind(index, port);
        }
    }

    /// Every function goes: interrupts off, BARs unmapped, devices closed. What is left on the bus reads as all ones.
    pub fn clear(&self) {
        let mut placed = lock(&self.placed);
        let mapped = std::mem::take(&mut placed.mapped);
        for bar in &mapped {
            self.take_off_the_bus(bar);
        }
        // Mappings before the functions that own the memory.
        drop(mapped);
        placed.bars.clear();
        placed.apertures = Apertures::new(Vec::new(), 0);
        drop(placed);
        self.ports.write().unwrap_or_else(PoisonError::into_inner).clear();
    }

    fn reset_behind(&self, index: usize, port: &Port) {
        for (number, function) in port.functions.iter().enumerate() {
            if let Some(function) = function {
                let changes = lock(function).reset();
                self.apply(index * FUNCTIONS + number, &changes);
            }
        }
    }

    fn read(&self, bdf: Bdf, at: ConfigAccess) -> u32 {
        match (bdf.bus(), bdf.device(), bdf.function()) {
            (0, 0, 0) => lock(&self.host_bridge).config_read(at),
            (0, LPC_DEVICE, 0) => lock(&self.lpc).config_read(at),
            (0, ..) => match self
                .port(|port| port.at.same_slot(bdf) && port.at.function() == bdf.function())
            {
                Some((_, port)) => lock(&port).config_read(at),
                None => at.all_ones(),
            },
            (_, 0, number) => match self.behind(bdf.bus(), number) {
                Some((_, function)) => lock(&function).config_read(at),
                None => at.all_ones(),
            },
            // A PCIe link has one device, number 0.
            _ => at.all_ones(),
        }
    }

    fn write(&self, bdf: Bdf, at: ConfigAccess, value: u32) {
        let _order = lock(&self.writes);
        match (bdf.bus(), bdf.device(), bdf.function()) {
            (0, 0, 0) => {
                lock(&self.host_bridge).config_write(at, value);
                self.move_ecam();
            }
            (0, LPC_DEVICE, 0) => {
                lock(&self.lpc).config_write(at, value);
            }
            (0, ..) => self.write_port(bdf, at, value),
            (_, 0, number) => {
                if let Some((owner, function)) = self.behind(bdf.bus(), number) {
                    let changes = lock(&function).config_write(at, value);
                    self.apply(owner, &changes);
                }
            }
            _ => {}
        }
    }

    fn write_port(&self, bdf: Bdf, at: ConfigAccess, value: u32) {
        let same = |port: &Port| port.at.same_slot(bdf) && port.at.function() == bdf.function();
        let Some((index, port)) = self.port(same) else { return };
        let mut bridge = lock(&port);
        bridge.config_write(at, value);
        let (secondary, bus_reset) = (bridge.secondary(), bridge.take_bus_reset());
        drop(bridge);
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        if let Some(port) = ports.get(index) {
            port.secondary.store(secondary, Ordering::Relaxed);
            if bus_reset {
                self.reset_behind(index, port);
            }
        }
    }

    fn port(&self, which: impl Fn(&Port) -> bool) -> Option<(usize, Arc<Mutex<RootPort>>)> {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        let index = ports.iter().position(which)?;
        Some((index, Arc::clone(&ports.get(index)?.port)))
    }

    /// The function behind the port whose secondary bus this is, with its number as an owner of BARs.
    fn behind(&self, bus: u8, number: u8) -> Option<(usize, Shared)> {
        let ports = self.ports.read().unwrap_or_else(PoisonError::into_inner);
        let index = ports.iter().position(|port| port.secondary.load(Ordering::Relaxed) == bus)?;
        let function = ports.get(index)?.functions.get(usize::from(number))?.as_ref()?;
        Some((index * FUNCTIONS + usize::from(number), Arc::clone(function)))
    }

    /// ECAM follows the host bridge's register.
    fn move_ecam(&self) {
        let wanted = lock(&self.host_bridge).ecam();
        let mut placed = lock(&self.placed);
        if placed.ecam == wanted {
            return;
        }
        if let Some(old) = placed.ecam.take() {
            self.bus.remove_mmio(old.first());
        }
        let mut forbidden = self.forbidden.clone();
        forbidden.extend(wanted);
        let ops = placed.apertures.forbid(forbidden);
        self.carry_out(&mut placed, &ops);
        if let Some(range) = wanted {
            match self.bus.insert_mmio(range, Arc::new(Ecam(Weak::clone(&self.me)))) {
                Ok(()) => placed.ecam = Some(range),
                Err(error) => log::debug!("the guest put ECAM on something else: {error}"),
            }
        }
        let ops = placed.apertures.settle();
        self.carry_out(&mut placed, &ops);
    }

    fn apply(&self, owner: usize, changes: &[BarPlacement]) {
        if changes.is_empty() {
            return;
        }
        let mut placed = lock(&self.placed);
        let mut ops = Vec::new();
        for change in changes {
            let key = (owner, change.bar.get());
            if change.answers {
                placed.apertures.place(key, change.decoded.then_some(change.address));
            } else {
                ops.extend(placed.apertures.withdraw(key));
            }
        }
        ops.extend(placed.apertures.settle());
        self.carry_out(&mut placed, &ops);
    }

    fn carry_out(&self, placed: &mut Placed, ops: &[Op]) {
        for op in ops {
            match *op {
                Op::Unmap(key) => {
                    if let Some(at) = placed.mapped.iter().position(|mapped| mapped.key == key) {
                        self.take_off_the_bus(&placed.mapped.swap_remove(at));
                    }
                }
                Op::Map(key, range) => {
                    let bar = placed
                        .bars
                        .iter()
                        .find(|(owner, layout, _)| (*owner, layout.spec.index.get()) == key);
                    if let Some((_, layout, function)) = bar {
                        let mapped = self.map(key, range, layout, function);
                        placed.mapped.push(mapped);
                    }
                }
            }
        }
    }

    fn take_off_the_bus(&self, bar: &Mapped) {
        if bar.io { self.bus.remove_pio(bar.first) } else { self.bus.remove_mmio(bar.first) }
    }

    fn map(
        &self,
        key: (usize, u8),
        range: AddressRange,
        layout: &BarLayout,
        function: &Shared,
    ) -> Mapped {
        let io = layout.spec.kind == BarKind::Io;
        let target = Arc::new(Bar { function: Arc::clone(function), bar: layout.spec.index });
        let inserted = if io {
            self.bus.insert_pio(range, target)
        } else {
            self.bus.insert_mmio(range, target)
        };
        if let Err(error) = inserted {
            log::warn!("{} of a passed device is not reachable: {error}", layout.spec.index);
        }
        let direct = layout.direct.iter().filter_map(|area| {
            let first = range.first().checked_add(area.offset)?;
            let part =
                AddressRange::new(first, area.memory.len).filter(|part| range.encloses(*part))?;
            // Without the mapping every access is trapped: slow, but right.
            self.mapper
                .map(part, area.memory)
                .inspect_err(|error| {
                    log::warn!("{} at {part} is trapped: {error}", layout.spec.index)
                })
                .ok()
        });
        Mapped { key, first: range.first(), io, _direct: direct.collect() }
    }
}

fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A boxed function as a function, so that the mutex around it can be unsized.
struct Boxed(Box<dyn PciFunction>);

impl PciFunction for Boxed {
    fn bars(&self) -> Vec<BarLayout> {
        self.0.bars()
    }
    fn config_read(&mut self, at: ConfigAccess) -> u32 {
        self.0.config_read(at)
    }
    fn config_write(&mut self, at: ConfigAccess, value: u32) -> BarChanges {
        self.0.config_write(at, value)
    }
    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.0.bar_read(bar, offset, data);
    }
    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.0.bar_write(bar, offset, data);
    }
    fn reset(&mut self) -> BarChanges {
        self.0.reset()
    }
}

/// A BAR on the bus.
struct Bar {
    function: Shared,
    bar: BarIndex,
}

impl DeviceMmio for Bar {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        lock(&self.function).bar_read(self.bar, offset, data);
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        lock(&self.function).bar_write(self.bar, offset, data);
    }
}

impl DevicePio for Bar {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        lock(&self.function).bar_read(self.bar, u64::from(offset), data);
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        lock(&self.function).bar_write(self.bar, u64::from(offset), data);
    }
}

/// ECAM (PCIe Base 5.0, 7.2.2): bus, device, function and register are the address.
struct Ecam(Weak<RootComplex>);

impl Ecam {
    /// An access in pieces that configuration space takes: naturally aligned, 4 bytes at most.
    fn pieces(offset: u64, len: usize) -> impl Iterator<Item = (usize, u64, u8)> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let left = len.checked_sub(at).filter(|left| *left > 0)?;
            let here = offset.wrapping_add(at as u64);
            let piece = [4_u8, 2, 1].into_iter().find(|piece| {
                here.is_multiple_of(u64::from(*piece)) && usize::from(*piece) <= left
            })?;
            let start = at;
            at += usize::from(piece);
            Some((start, here, piece))
        })
    }

    fn decode(address: u64, len: u8) -> Option<(Bdf, ConfigAccess)> {
        let bus = u8::try_from(address >> 20).ok()?;
        let bdf = Bdf::new(0, bus, (address >> 15 & 31) as u8, (address >> 12 & 7) as u8)?;
        Some((bdf, ConfigAccess::new((address & 0xfff) as u16, len)?))
    }
}

impl DeviceMmio for Ecam {
    fn mmio_read(&self, _: MmioAddress, offset: MmioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        let Some(root) = self.0.upgrade() else { return };
        for (start, address, len) in Self::pieces(offset, data.len()) {
            if let (Some((bdf, at)), Some(part)) =
                (Self::decode(address, len), data.get_mut(start..start + usize::from(len)))
            {
                part.copy_from_slice(&root.read(bdf, at).to_le_bytes()[..usize::from(len)]);
            }
        }
    }

    fn mmio_write(&self, _: MmioAddress, offset: MmioAddressOffset, data: &[u8]) {
        let Some(root) = self.0.upgrade() else { return };
        for (start, address, len) in Self::pieces(offset, data.len()) {
            if let (Some((bdf, at)), Some(part)) =
                (Self::decode(address, len), data.get(start..start + usize::from(len)))
            {
                root.write(bdf, at, value(part));
            }
        }
    }
}

fn value(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |value, byte| value << 8 | u32::from(*byte))
}

/// 0xCF8 to 0xCFF. The address register takes 32-bit accesses only; a byte at 0xCF9 is the reset control register.
struct ConfigPorts(Weak<RootComplex>);

impl ConfigPorts {
    fn target(root: &RootComplex, offset: u16, len: usize) -> Option<(Bdf, ConfigAccess)> {
        let address = root.address.load(Ordering::Relaxed);
        if address & ADDRESS_ENABLE == 0 {
            return None;
        }
        let (bus, device, function) =
            ((address >> 16) as u8, (address >> 11 & 31) as u8, (address >> 8 & 7) as u8);
        let register = (address & 0xfc) as u16 + offset.checked_sub(CONFIG_DATA)?;
        let len = u8::try_from(len).ok()?;
        Some((Bdf::new(0, bus, device, function)?, ConfigAccess::new(register, len)?))
    }
}

impl DevicePio for ConfigPorts {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        data.fill(0xff);
        let Some(root) = self.0.upgrade() else { return };
        let len = data.len();
        if offset == 0 && len == 4 {
            data.copy_from_slice(&root.address.load(Ordering::Relaxed).to_le_bytes());
        } else if offset == RESET_CONTROL && len == 1 {
            data.fill(root.reset_kind.load(Ordering::Relaxed));
        } else if let Some((bdf, at)) = Self::target(&root, offset, len) {
            data.copy_from_slice(&root.read(bdf, at).to_le_bytes()[..len]);
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let Some(root) = self.0.upgrade() else { return };
        if offset == 0 && data.len() == 4 {
            root.address.store(value(data), Ordering::Relaxed);
        } else if let (RESET_CONTROL, [byte]) = (offset, data) {
            root.reset_kind.store(byte & RESET_KIND, Ordering::Relaxed);
            if byte & RESET_CPU != 0 {
                root.control.reset();
            }
        } else if let Some((bdf, at)) = Self::target(&root, offset, data.len()) {
            root.write(bdf, at, value(data));
        }
    }
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
