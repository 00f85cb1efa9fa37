//! A passed-through function as the guest's PCI bus sees it.
//!
//! Configuration space goes by [`Policy`]; BARs are reached directly where they can be and trapped where they must;
//! interrupts go by `irqs`. This file puts them together and holds what is trapped in BARs; `function/config.rs`
//! does configuration accesses and resets.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

mod config;
mod express;
mod vpd;

use std::{collections::BTreeMap, fmt, sync::Arc};

use strait_resources::{
    bar::{BarIndex, BarSpec},
    bdf::Bdf,
    range::AddressRange,
};

use self::{
    config::{Command, Power, Waiting},
    express::SharedControl,
    vpd::Vpd,
};
use crate::{
    pci::{
        bar::{Bars, Decoding, changes},
        caps::{self, read16},
        function::{BarChanges, BarLayout, BarPlacement, ConfigAccess, PciFunction},
        msi::Msi,
        msix::{Msix, MsixEffect, MsixLayout},
        regs::{self, capability},
    },
    ports::{BusMasterGate, IrqLine, MsiRouter},
    vfio::{
        attach::{AttachError, Identity, is_alive, read_config},
        backend::{IrqIndex, VfioBackend},
        bars::map_direct,
        irqs::{Irqs, Wanted},
        life::{Activity, LifeSigns, Warnings},
        policy::{Policy, Presentation},
        rom::{Rom, RomSource},
    },
};

/// What a function is made from.
pub struct VfioParts {
    /// The function on the host, for messages.
    pub name: Bdf,
    /// The open device.
    pub backend: Arc<dyn VfioBackend>,
    /// IDs to show instead of the device's.
    pub identity: Identity,
    /// Vendor and device ID as the host's kernel knows them, for a function whose registers do not tell.
    pub own: (u16, u16),
    /// Every BAR as the guest shall see it, and its first address: [`presented_bars`] after the address plan.
    ///
    /// [`presented_bars`]: crate::vfio::bars::presented_bars
    pub bars: Vec<(BarSpec, u64)>,
    /// Where the ROM comes from; the same as was given to `presented_bars`.
    pub rom: RomSource,
    /// Other functions share the guest slot.
    pub multifunction: bool,
    /// Writes from 0x100 on that hit no capability reach the device, and those to vendors' own capabilities.
    pub raw_config: bool,
    /// The guest's root port completes AtomicOps, as the host's does.
    pub atomics: bool,
    /// Where vectors come from.
    pub msi: Arc<dyn MsiRouter>,
    /// Where the INTx pin leads; `None` shows a function without a pin.
    pub intx: Option<Arc<dyn IrqLine>>,
    /// Asked each time before Bus Master Enable goes from 0 to 1 in the device, and while it is closed the bit stays 0.
    /// The root complex has waited for it, without our lock; that no write gets past it is seen to here.
    pub gate: Arc<dyn BusMasterGate>,
}

/// A device that stopped answering.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DeviceFault {
    /// VFIO could not reset it.
    #[error("the reset failed: {0}")]
    Reset(String),
    /// Its configuration space reads as all ones.
    #[error("it did not come back from the reset: its configuration space reads as all ones")]
    Gone,
}

/// One passed-through function.
///
/// Field order is tear-down order.
pub struct VfioFunction {
    /// First: stop signalling.
    irqs: Irqs,
    name: Bdf,
    policy: Policy,
    bars: Bars,
    layouts: Vec<BarLayout>,
    /// Bytes that VFIO has behind each BAR, which may be less than the guest sees.
    sizes: [u64; 6],
    command: Command,
    power: Power,
    waiting: Option<Waiting>,
    device_control: Option<SharedControl>,
    device_control_2: Option<SharedControl>,
    vpd: Option<Vpd>,
    /// Bytes of `Source::Shadow` that the guest has written.
    shadow: BTreeMap<u16, u8>,
    interrupt_line: u8,
    /// What firmware leaves in it.
    first_interrupt_line: u8,
    has_intx: bool,
    msi: Option<(u16, Msi)>,
    msix: Option<(u16, MsixLayout, Msix)>,
    rom: Rom,
    gate: Arc<dyn BusMasterGate>,
    fault: Option<DeviceFault>,
    warnings: Warnings,
    /// Last: the mappings in `layouts` live as long as it.
    backend: Arc<dyn VfioBackend>,
}

impl VfioFunction {
    /// Attaches an open device: reads its configuration once, maps its BARs, turns decoding on in the device (but
    /// not for the guest) and connects its pin. Interrupts that cannot be had are a warning, not an error.
    pub fn new(parts: VfioParts) -> Result<Self, AttachError> {
        let backend = parts.backend;
        let config = read_config(&*backend)?;
        let host = host_config(&*backend, parts.name);
        let bars = Bars::new(&parts.bars)?;

        let found = caps::capabilities(&config);
        let find = |id| found.iter().find(|found| found.id == id).map(|found| found.offset);
        let has_vectors = |index| backend.irq(index).count > 0;
        let layout = find(capability::MSIX)
            .and_then(|at| MsixLayout::parse(&config, at))
            .filter(|layout| has_vectors(IrqIndex::Msix) && fits(layout, &bars));
        let pin = config.get(usize::from(regs::INTERRUPT_PIN)).copied().unwrap_or(0);
        let has_intx =
            parts.intx.is_some() && has_vectors(IrqIndex::Intx) && (1..=4).contains(&pin);
        let policy = Policy::new(
            &config,
            &host,
            &Presentation {
                identity: parts.identity.completed(&config, parts.own),
                multifunction: parts.multifunction,
                intx: has_intx,
                msi: has_vectors(IrqIndex::Msi),
                msix: layout.is_some(),
                reset: backend.can_reset(),
                raw_config: parts.raw_config,
                atomics: parts.atomics,
            },
        );

        let landmarks = policy.landmarks();
        let msi = landmarks.msi.and_then(|at| {
            let control = read16(&config, at.saturating_add(regs::msi::CONTROL))?;
            Some((at, Msi::new(control, backend.irq(IrqIndex::Msi).count)))
        });
        let msix = landmarks.msix.zip(layout).map(|(at, layout)| {
            let vectors = Msix::new(layout.vectors);
            (at, layout, vectors)
        });
        let layouts = bars
            .specs()
            .map(|spec| {
                let layout = msix.as_ref().map(|(_, layout, _)| layout);
                let direct = map_direct(&*backend, spec, layout)?;
                Ok(BarLayout { spec, direct })
            })
            .collect::<Result<Vec<_>, AttachError>>()?;

        let interrupt_line = parts.intx.as_ref().filter(|_| has_intx).map_or(0, |line| line.irq());
        let life = Arc::new(LifeSigns::default());
        let warnings = || Warnings::new(parts.name, life.clone());
        let mut function = Self {
            irqs: Irqs::new(backend.clone(), parts.msi, parts.intx, warnings()),
            name: parts.name,
            sizes: [0, 1, 2, 3, 4, 5].map(|index| backend.region(index).size),
            command: Command::new(bars.specs(), &config),
            power: Power::new(&config, landmarks.power),
            waiting: None,
            device_control: SharedControl::device(&config, &landmarks),
            device_control_2: SharedControl::device_2(&config, &landmarks, parts.atomics),
            vpd: landmarks.vpd.map(Vpd::new),
            shadow: BTreeMap::new(),
            bars,
            layouts,
            policy,
            interrupt_line,
            first_interrupt_line: interrupt_line,
            has_intx,
            msi,
            msix,
            rom: Rom::new(parts.rom),
            gate: parts.gate,
            fault: None,
            warnings: warnings(),
            backend,
        };
        function.wake()?;
        function.settle_interrupts();
        function.warnings.life.placed(&function.placements());
        Ok(function)
    }

    /// Counters that outlive the function.
    pub fn life_signs(&self) -> Arc<LifeSigns> {
        self.warnings.life.clone()
    }

    /// The table that decides about configuration space.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Does the device answer? Asks it.
    pub fn is_alive(&self) -> bool {
        is_alive(&*self.backend)
    }

    /// What went wrong at the last reset, until one works.
    pub fn fault(&self) -> Option<&DeviceFault> {
        self.fault.as_ref()
    }

    fn decoding(&self) -> Decoding {
        let answers = self.power.in_d0() && !matches!(self.waiting, Some(Waiting::Reset));
        Decoding::new(self.command.guest(), answers)
    }

    fn placements(&self) -> Vec<BarPlacement> {
        self.bars.placements(self.decoding())
    }

    /// What is elsewhere than `before`.
    fn moved(&self, before: &[BarPlacement]) -> BarChanges {
        let changes = changes(before, &self.placements());
        if changes.iter().any(|change| change.decoded) {
            self.warnings.life.decoded();
        }
        self.warnings.life.placed(&changes);
        changes
    }

    /// Brings interrupts to where the registers say. What cannot be had is taken back in its register, and the next
    /// best tried: MSI-X, MSI, INTx.
    fn settle_interrupts(&mut self) {
        if let Some((_, _, msix)) = self.msix.as_mut().filter(|(.., msix)| msix.is_enabled()) {
            if self.irqs.set(Wanted::Msix(msix)) {
                return;
            }
            msix.refuse();
        }
        if let Some((_, msi)) = self.msi.as_mut().filter(|(_, msi)| msi.is_enabled()) {
            if self.irqs.set(Wanted::Msi(msi)) {
                return;
            }
            msi.refuse();
        }
        let pin = self.has_intx && self.command.guest() & regs::COMMAND_INTX_DISABLE == 0;
        // Told once where it fails; the guest sees a device that does not interrupt.
        self.irqs.set(if pin { Wanted::Intx } else { Wanted::None });
    }

    fn after_msix(&mut self, effect: MsixEffect) {
        if effect != MsixEffect::None {
            self.warnings.life.active(Activity::Interrupts);
        }
        match (effect, &self.msix) {
            (MsixEffect::None, _) | (_, None) => {}
            (MsixEffect::Vector(n), Some((_, _, msix))) => self.irqs.sync_msix(msix, n),
            (MsixEffect::Enabled | MsixEffect::Disabled | MsixEffect::FunctionMask, Some(_)) => {
                self.settle_interrupts();
            }
        }
    }

    /// Cuts a trapped access where table or pending bits start or end, and at each table entry.
    fn zones(&self, bar: BarIndex, offset: u64, len: usize) -> Vec<(Zone, u64, usize)> {
        let Some((_, layout, _)) = &self.msix else { return vec![(Zone::Device, offset, len)] };
        let zone = |at| match () {
            () if layout.table_bar == bar && layout.table.contains(at) => {
                Zone::Table(layout.in_table(at) / regs::msix::ENTRY_SIZE)
            }
            () if layout.pba_bar == bar && layout.pba.contains(at) => Zone::Pba,
            () => Zone::Device,
        };
        let mut zones: Vec<(Zone, u64, usize)> = Vec::new();
        for at in (0..len as u64).map(|byte| offset.saturating_add(byte)) {
            match zones.last_mut() {
                Some((last, _, len)) if *last == zone(at) => *len = len.saturating_add(1),
                _ => zones.push((zone(at), at, 1)),
            }
        }
        zones
    }

    fn read_device(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        data.fill(0xff);
        if !self.is_inside(bar, offset, data.len()) {
            return;
        }
        if let Err(error) = self.backend.region_read(bar.get().into(), offset, data) {
            data.fill(0xff);
            self.warnings.once("a BAR cannot be read", &error);
        }
    }

    fn write_device(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        if !self.is_inside(bar, offset, data.len()) {
            return;
        }
        if let Err(error) = self.backend.region_write(bar.get().into(), offset, data) {
            self.warnings.once("a BAR cannot be written", &error);
        }
    }

    fn is_inside(&self, bar: BarIndex, offset: u64, len: usize) -> bool {
        let size = self.sizes.get(usize::from(bar.get())).copied().unwrap_or(0);
        offset.checked_add(len as u64).is_some_and(|end| end <= size)
    }

    /// A vector waits if the device holds it back (its host vector is not there yet) or if we do.
    fn read_pba(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        let mut held = vec![0; data.len()];
        if self.backend.region_read(bar.get().into(), offset, &mut held).is_err() {
            held.fill(0);
        }
        let Some((_, layout, msix)) = &self.msix else { return };
        let start = offset.saturating_sub(layout.pba.first());
        let vector = |byte: u64| {
            let count = u64::from(msix.count());
            byte.saturating_mul(8).min(count) as u16
        };
        let end = start.saturating_add(data.len() as u64);
        let waiting = self.irqs.waiting_msix(vector(start)..vector(end));
        msix.read_pba(start, data, |n| {
            let byte = (u64::from(n) / 8).checked_sub(start).and_then(|at| held.get(at as usize));
            byte.is_some_and(|byte| byte >> (n % 8) & 1 != 0) || waiting.binary_search(&n).is_ok()
        });
    }
}

impl fmt::Debug for VfioFunction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VfioFunction").field("name", &self.name).finish_non_exhaustive()
    }
}

impl PciFunction for VfioFunction {
    fn bars(&self) -> Vec<BarLayout> {
        self.layouts.clone()
    }

    fn config_read(&mut self, at: ConfigAccess) -> u32 {
        self.warnings.life.active(Activity::Config);
        let mut value = [0; 4];
        for run in self.policy.runs(at) {
            let start = usize::from(run.offset.saturating_sub(at.offset()));
            if let Some(bytes) = value.get_mut(start..start.saturating_add(run.len.into())) {
                self.read_run(run, bytes);
            }
        }
        u32::from_le_bytes(value)
    }

    fn config_write(&mut self, at: ConfigAccess, value: u32) -> BarChanges {
        self.warnings.life.active(Activity::Config);
        let before = self.placements();
        let value = value.to_le_bytes();
        for run in self.policy.runs(at) {
            let start = usize::from(run.offset.saturating_sub(at.offset()));
            if let Some(bytes) = value.get(start..start.saturating_add(run.len.into())) {
                self.write_run(run, bytes);
            }
        }
        self.moved(&before)
    }

    fn settled(&mut self) -> BarChanges {
        if self.waiting.is_none() {
            return BarChanges::new();
        }
        let before = self.placements();
        if let Some(waiting) = self.waiting.take() {
            self.carry_out(waiting);
        }
        self.moved(&before)
    }

    fn bar_read(&mut self, bar: BarIndex, offset: u64, data: &mut [u8]) {
        self.warnings.life.active(Activity::Bar);
        if bar == BarIndex::ROM {
            self.warnings.life.rom_read();
            if let Err(error) = self.rom.read(&*self.backend, offset, data) {
                self.warnings.once("the ROM cannot be read", &error);
            }
            return;
        }
        let mut rest = data;
        for (zone, at, len) in self.zones(bar, offset, rest.len()) {
            let (piece, after) = rest.split_at_mut(len);
            rest = after;
            match (zone, &self.msix) {
                (Zone::Table(_), Some((_, layout, msix))) => {
                    msix.read_table(layout.in_table(at), piece);
                }
                (Zone::Pba, _) => self.read_pba(bar, at, piece),
                _ => self.read_device(bar, at, piece),
            }
        }
    }

    fn bar_write(&mut self, bar: BarIndex, offset: u64, data: &[u8]) {
        self.warnings.life.active(Activity::Bar);
        if bar == BarIndex::ROM {
            return;
        }
        let mut rest = data;
        for (zone, at, len) in self.zones(bar, offset, rest.len()) {
            let (piece, after) = rest.split_at(len);
            rest = after;
            match (zone, &mut self.msix) {
                (Zone::Table(_), Some((_, layout, msix))) => {
                    let effect = msix.write_table(layout.in_table(at), piece);
                    self.after_msix(effect);
                }
                (Zone::Pba, _) => {}
                _ => self.write_device(bar, at, piece),
            }
        }
    }

    fn reset(&mut self) -> BarChanges {
        self.reset_device();
        // These outlive a function level reset and no reset of the machine.
        self.shadow.clear();
        self.interrupt_line = self.first_interrupt_line;
        self.bars.restore();
        self.settle_interrupts();
        let placements = self.placements();
        self.warnings.life.placed(&placements);
        placements
    }
}

/// Who answers a byte of a BAR.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Zone {
    Device,
    /// This entry of the MSI-X table.
    Table(u64),
    Pba,
}

/// What VFIO hides of configuration space can be seen by the host alone.
fn host_config(backend: &dyn VfioBackend, name: Bdf) -> Vec<u8> {
    let config = backend.host_config().unwrap_or_else(|error| {
        log::info!("{name}: the host's view of its configuration space cannot be read: {error}");
        Vec::new()
    });
    if config.len() <= regs::HEADER_SIZE.into() {
        log::info!(
            "{name}: only root sees the capabilities that VFIO hides; below 0x100 their registers stay open"
        );
    }
    config
}

/// Do table and pending bits lie in memory BARs that the guest sees?
fn fits(layout: &MsixLayout, bars: &Bars) -> bool {
    let inside = |bar, range: AddressRange| {
        bars.specs()
            .any(|spec| spec.index == bar && spec.kind.is_memory() && range.last() < spec.size)
    };
    inside(layout.table_bar, layout.table) && inside(layout.pba_bar, layout.pba)
}

#[cfg(test)]
mod tests;
