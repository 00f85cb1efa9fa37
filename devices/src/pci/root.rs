//! The root complex: ECAM and CF8/CFC, the functions of bus 0, root ports and what is behind them, and where the BARs
//! of passed functions are.
//!
//! Lock order: `ports`, which is written only while the machine is built and taken apart -> `order` of one port -> one
//! function -> nothing; then, with the function's lock released, `placed` -> the host bridge, the bus, the mapper. A
//! read takes one function's lock only. `GuestMapper::settle` may wait long and is called with none of them.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, Weak,
        atomic::{AtomicU8, Ordering},
    },
};

use crate::{
    bus::{Bus, BusError},
    pci::{
        access::{ConfigPorts, Ecam},
        apertures::{Apertures, Key, Op},
        function::{BarLayout, BarPlacement, ConfigAccess, PciFunction},
        host_bridge::HostBridge,
        lpc::{Lpc, LpcParts},
        port::{RootPort, RootPortParts},
        shared::{Bar, Boxed, Shared, lock},
    },
    ports::{BusMasterGate, GuestMapper, GuestMapping, LineRouter, MachineControl, PCI_LINES},
};
use strait_resources::{bar::BarKind, bdf::Bdf, range::AddressRange};

/// Where the LPC bridge is.
const LPC_DEVICE: u8 = 31;
const FUNCTIONS: usize = 8;

/// What a root complex is made from.
pub struct RootParts {
    /// Where ECAM, the configuration ports and BARs go.
    pub bus: Arc<Bus>,
    /// Puts BARs into the guest's memory.
    pub mapper: Arc<dyn GuestMapper>,
    /// Takes the guest's wish for a reset.
    pub control: Arc<dyn MachineControl>,
    /// Says when passed functions may master the bus.
    pub gate: Arc<dyn BusMasterGate>,
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
    /// The ISA interrupt that each PCI line raises after power-on, 3 to 15; `router` has them so.
    pub lines: [u8; PCI_LINES],
    /// Takes the guest's wish for others.
    pub router: Arc<dyn LineRouter>,
}

/// The PCI side of the machine.
pub struct RootComplex {
    me: Weak<Self>,
    bus: Arc<Bus>,
    mapper: Arc<dyn GuestMapper>,
    gate: Arc<dyn BusMasterGate>,
    host_bridge: Mutex<HostBridge>,
    lpc: Mutex<Lpc>,
    ports: RwLock<Vec<Port>>,
    placed: Mutex<Placed>,
    forbidden: Vec<AddressRange>,
    config_ports: Arc<ConfigPorts>,
}

/// A root port and what is behind it.
struct Port {
    at: Bdf,
    /// One configuration write to the port or to a function behind it at a time, so that BARs move in the order in
    /// which they were written. Others need not wait: a write may reset a device, which takes its time.
    order: Mutex<()>,
    port: Mutex<RootPort>,
    /// The port's secondary bus register, where every access can look without a lock.
    secondary: AtomicU8,
    functions: [Option<Shared>; FUNCTIONS],
}

/// BARs and what they have in the guest's address space.
struct Placed {
    apertures: Apertures,
    bars: Vec<(usize, BarLayout, Shared)>,
    mapped: Vec<Mapped>,
    /// Whose trouble is in the log already: a guest may cause it as often as it likes.
    warned: BTreeSet<Key>,
    /// Where ECAM is on the bus.
    ecam: Option<AddressRange>,
}

/// One mapped BAR: its trapped range on the bus, and its direct parts, unmapped by their drop.
struct Mapped {
    key: Key,
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
            warned: BTreeSet::new(),
            ecam: Some(parts.ecam),
        };
        let lpc =
            LpcParts { power: parts.power, root_complex: parts.root_complex, lines: parts.lines };
        let root = Arc::new_cyclic(|me| Self {
            me: Weak::clone(me),
            bus: parts.bus,
            mapper: parts.mapper,
            gate: parts.gate,
            host_bridge: Mutex::new(HostBridge::new(parts.ecam)),
            lpc: Mutex::new(Lpc::new(lpc, parts.router)),
            ports: RwLock::default(),
            placed: Mutex::new(placed),
            forbidden: parts.forbidden,
            config_ports: Arc::new(ConfigPorts::new(Weak::clone(me), parts.control)),
        });
        root.bus.insert_mmio(parts.ecam, Arc::new(Ecam::new(Weak::clone(&root.me))))?;
        let ports = Arc::clone(&root.config_ports);
        root.bus.insert_pio(ConfigPorts::range(), ports)?;
        Ok(root)
    }

    /// Adds a root port; its index is what [`RootComplex::add_function`] wants.
    pub fn add_port(&self, parts: RootPortParts) -> usize {
        let mut ports = self.ports.write().unwrap_or_else(PoisonError::into_inner);
        ports.push(Port {
            at: parts.at,
            order: Mutex::default(),
            port: Mutex::new(RootPort::new(parts)),
            secondary: AtomicU8::new(parts.secondary),
            functions: Default::default(),
        });
        ports.len().saturating_sub(1)
    }

    /// Puts a function behind a port, as function `number` of the one device there.
    pub fn add_function(&self, port: usize, number: u8, function: Box<dyn PciFunction>) {
        let layouts = function.bars();
        let shared: Shared = Boxed::shared(function);
        let owner = owner(port, number.into());
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
        lock(&self.host_bridge).reset();
        lock(&self.lpc).reset();
        self.config_ports.reset();
        self.move_ecam();
        for (index, port) in self.ports().iter().enumerate() {
            let _order = lock(&port.order);
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
                let owner = owner(index, number);
                self.withdraw(owner);
                let changes = lock(function).reset();
                self.apply(owner, &changes);
            }
        }
    }

    /// A configuration register; all ones where nobody is.
    pub(super) fn read(&self, bdf: Bdf, at: ConfigAccess) -> u32 {
        match (bdf.bus(), bdf.device(), bdf.function()) {
            (0, 0, 0) => lock(&self.host_bridge).config_read(at),
            (0, LPC_DEVICE, 0) => lock(&self.lpc).config_read(at),
            (0, ..) => match self.ports().iter().find(|port| port.at == bdf) {
                Some(port) => lock(&port.port).config_read(at),
                None => at.all_ones(),
            },
            (bus, 0, number) => {
                let function = behind(&self.ports(), bus)
                    .and_then(|(_, port)| port.function(number))
                    .map(Arc::clone);
                function.map_or(at.all_ones(), |function| lock(&function).config_read(at))
            }
            // A PCIe link has one device, number 0.
            _ => at.all_ones(),
        }
    }

    /// Writes a configuration register, and carries out what follows from it.
    pub(super) fn write(&self, bdf: Bdf, at: ConfigAccess, value: u32) {
        match (bdf.bus(), bdf.device(), bdf.function()) {
            (0, 0, 0) => {
                lock(&self.host_bridge).config_write(at, value);
                self.move_ecam();
            }
            (0, LPC_DEVICE, 0) => {
                lock(&self.lpc).config_write(at, value);
            }
            (0, ..) => self.write_port(bdf, at, value),
            (bus, 0, number) => {
                // Before any lock: a CPU may stand here for long, and the others go on.
                if at.sets_bus_master(value) && !self.may_master(bus, number) {
                    return;
                }
                self.write_function(bus, number, at, value);
            }
            _ => {}
        }
        self.mapper.settle();
    }

    fn write_function(&self, bus: u8, number: u8, at: ConfigAccess, value: u32) {
        let ports = self.ports();
        let Some((index, port)) = behind(&ports, bus) else { return };
        let Some(function) = port.function(number) else { return };
        let owner = owner(index, number.into());
        let _order = lock(&port.order);
        let changes = lock(function).config_write(at, value);
        self.apply(owner, &changes);
        // Nobody else writes to the function in between, and a read changes nothing.
        let changes = lock(function).settled();
        self.apply(owner, &changes);
    }

    /// Waits until a function may master the bus; at once if there is no such function. `false`: the write must vanish.
    fn may_master(&self, bus: u8, number: u8) -> bool {
        let exists = behind(&self.ports(), bus).is_some_and(|(_, p)| p.function(number).is_some());
        !exists || self.gate.pass()
    }

    fn write_port(&self, bdf: Bdf, at: ConfigAccess, value: u32) {
        let ports = self.ports();
        let Some((index, port)) = ports.iter().enumerate().find(|(_, port)| port.at == bdf) else {
            return;
        };
        let _order = lock(&port.order);
        let mut bridge = lock(&port.port);
        bridge.config_write(at, value);
        let bus_reset = bridge.take_bus_reset();
        port.secondary.store(bridge.secondary(), Ordering::Relaxed);
        drop(bridge);
        if bus_reset {
            self.reset_behind(index, port);
        }
    }

    fn ports(&self) -> RwLockReadGuard<'_, Vec<Port>> {
        self.ports.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// ECAM follows the host bridge's register.
    fn move_ecam(&self) {
        // Asked under the lock, so that of two writers the later one's value stays.
        let mut placed = lock(&self.placed);
        let wanted = lock(&self.host_bridge).ecam();
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
            match self.bus.insert_mmio(range, Arc::new(Ecam::new(Weak::clone(&self.me)))) {
                Ok(()) => placed.ecam = Some(range),
                Err(error) => log::debug!("the guest put ECAM on something else: {error}"),
            }
        }
        let ops = placed.apertures.settle();
        self.carry_out(&mut placed, &ops);
    }

    /// Takes every BAR of a function away from the guest and from other devices: it is about to be reset.
    fn withdraw(&self, owner: usize) {
        let mut placed = lock(&self.placed);
        let bars: Vec<u8> = placed
            .bars
            .iter()
            .filter(|(of, ..)| *of == owner)
            .map(|(_, layout, _)| layout.spec.index.get())
            .collect();
        let mut ops = Vec::new();
        ops.extend(bars.iter().filter_map(|bar| placed.apertures.withdraw((owner, *bar))));
        self.carry_out(&mut placed, &ops);
        bars.iter().for_each(|bar| self.withdraw_peers(&placed, (owner, *bar)));
    }

    /// Other devices may reach a BAR that the guest has turned off, so this is no part of its unmapping.
    fn withdraw_peers(&self, placed: &Placed, key: Key) {
        let bars = placed.bars.iter();
        let mut bars = bars.filter(|(of, layout, _)| (*of, layout.spec.index.get()) == key);
        if let Some((_, layout, _)) = bars.next() {
            layout.direct.iter().for_each(|area| self.mapper.withdraw(area.memory));
        }
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
        for change in changes.iter().filter(|change| !change.answers) {
            self.withdraw_peers(&placed, (owner, change.bar.get()));
        }
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
                    let Placed { bars, mapped, warned, .. } = &mut *placed;
                    let bar = bars
                        .iter()
                        .find(|(owner, layout, _)| (*owner, layout.spec.index.get()) == key);
                    if let Some((_, layout, function)) = bar {
                        mapped.extend(self.map(key, range, layout, function, warned));
                    }
                }
            }
        }
    }

    fn take_off_the_bus(&self, bar: &Mapped) {
        if bar.io { self.bus.remove_pio(bar.first) } else { self.bus.remove_mmio(bar.first) }
    }

    /// `None` when something else is on the bus there, which the bus then keeps.
    fn map(
        &self,
        key: Key,
        range: AddressRange,
        layout: &BarLayout,
        function: &Shared,
        warned: &mut BTreeSet<Key>,
    ) -> Option<Mapped> {
        let (io, index) = (layout.spec.kind == BarKind::Io, layout.spec.index);
        let target = Arc::new(Bar::new(function, index));
        let inserted = if io {
            self.bus.insert_pio(range, target)
        } else {
            self.bus.insert_mmio(range, target)
        };
        if let Err(error) = inserted {
            if warned.insert(key) {
                log::warn!("{index} of a passed device is not reachable: {error}");
            }
            return None;
        }
        let direct = layout.direct.iter().filter_map(|area| {
            let first = range.first().checked_add(area.offset)?;
            let part =
                AddressRange::new(first, area.memory.len).filter(|part| range.encloses(*part))?;
            // Without the mapping every access is trapped: slow, but right.
            let mapping = self.mapper.map(part, area.memory, area.access);
            if let Err(error) = &mapping
                && warned.insert(key)
            {
                log::warn!("{index} at {part} is trapped: {error}");
            }
            mapping.ok()
        });
        let direct = direct.collect();
        Some(Mapped { key, first: range.first(), io, _direct: direct })
    }
}

impl Port {
    fn function(&self, number: u8) -> Option<&Shared> {
        self.functions.get(usize::from(number))?.as_ref()
    }
}

/// The number of a function: of its port, and behind it.
const fn owner(port: usize, function: usize) -> usize {
    port.saturating_mul(FUNCTIONS).saturating_add(function)
}

/// The port whose secondary bus this is, with its index.
fn behind(ports: &[Port], bus: u8) -> Option<(usize, &Port)> {
    ports.iter().enumerate().find(|(_, port)| port.secondary.load(Ordering::Relaxed) == bus)
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
