//! Passed functions, open: reset, asked for their BARs, and built for their places in the machine.

use std::{sync::Arc, time::Duration};

use strait_arch::plan::{PortPlan, PortRequest};
use strait_devices::{
    pci::function::PciFunction,
    ports::{BusMasterGate, IrqLine, MsiRouter},
    vfio::{
        attach::{AttachError, comes_alive},
        backend::{CONFIG_REGION, VfioBackend},
        bars::presented_bars,
        dma::DmaDomain,
        function::{VfioFunction, VfioParts},
        hot_reset::ResetPlan,
        kernel::KernelDevice,
    },
};
use strait_resources::{bdf::Bdf, codes, failure::Failure, host::reset::Way};

use super::{Chosen, Selection, Slot, alive::first_dead};
use crate::{
    inspect::guest::{self, Watched},
    signals,
};

/// Offset of the Command register, and its Bus Master Enable.
const COMMAND: u64 = 4;
const COMMAND_MASTER: u16 = 1 << 2;

/// How long a device may take to come back from a reset.
const ALIVE_LIMIT: Duration = Duration::from_secs(10);
/// How often whoever waits for that looks whether strait is to end.
const LOOK: Duration = Duration::from_millis(100);

/// Offset of the Interrupt Pin register.
const INTERRUPT_PIN: u64 = 0x3d;

/// A device that opens and then is no use.
fn cannot_attach(bdf: Bdf, error: AttachError) -> Failure {
    let cause = format!("{bdf} cannot be prepared for the guest");
    match error {
        AttachError::Map { .. } => {
            let fix = format!(
                "something else on the host claims the BAR's addresses: look for \"can't reserve\" in dmesg, and \
                 with grep {bdf} /proc/iomem"
            );
            Failure::new(&codes::E1203, cause, fix).source(error)
        }
        _ => {
            let fix = "the device may be in D3 or dead: power-cycle it, then look at dmesg";
            Failure::new(&codes::E1110, cause, fix).source(error)
        }
    }
}

/// A function for its place in the guest's slot, and what is watched of it.
pub(crate) struct Built {
    /// Its number there.
    pub(crate) number: u8,
    pub(crate) function: Box<dyn PciFunction>,
    pub(crate) watched: Watched,
}

/// Every passed function, open. In the order of the slots and their functions.
pub(crate) struct Opened {
    devices: Vec<Vec<Arc<KernelDevice>>>,
}

impl Opened {
    /// No devices.
    pub(crate) fn none() -> Self {
        Self { devices: Vec::new() }
    }

    /// How functions without a reset of their own are reset; said at once where there is no way. One that the user wants
    /// no reset for is left out.
    pub(crate) fn reset_plan(&self, selection: &Selection) -> ResetPlan {
        let is_reset = |device: &&Arc<KernelDevice>| {
            selection.resets.get(&device.bdf()).is_none_or(|way| *way != Way::Off)
        };
        let devices: Vec<_> =
            self.devices.iter().flatten().filter(is_reset).map(Arc::clone).collect();
        let plan = ResetPlan::new(&devices);
        for (bdf, reason) in &plan.without {
            // The user has had E1405, from the same facts as sysfs tells them.
            log::info!("{bdf} keeps its state over guest reboots: {reason}");
        }
        plan
    }

    /// Does no device master the bus? Asks them. One that is gone does nothing.
    pub(crate) fn are_silent(&self) -> bool {
        let masters = |device: &Arc<KernelDevice>| {
            let mut command = [0; 2];
            let read = device.region_read(CONFIG_REGION, COMMAND, &mut command);
            let command = u16::from_le_bytes(command);
            let masters = read.is_err() || (command != 0xffff && command & COMMAND_MASTER != 0);
            if masters {
                log::info!("{} masters the bus by itself: guest RAM is pinned first", device.bdf());
            }
            masters
        };
        !self.devices.iter().flatten().any(masters)
    }

    /// After a reset: does every device answer? Not waited for when strait is to end.
    pub(crate) fn check_alive(&self) -> Result<(), Failure> {
        let alive = |device: &&Arc<KernelDevice>| comes_alive(device.as_ref(), LOOK);
        match first_dead(self.devices.iter().flatten(), ALIVE_LIMIT, alive, signals::have_come) {
            None => Ok(()),
            Some(dead) => {
                let seconds = ALIVE_LIMIT.as_secs();
                let cause = format!(
                    "{} did not come back from its reset: its config space reads as all ones for {seconds} s",
                    dead.bdf()
                );
                let fix = "power-cycle the host; if it happens again, look for its reset bug: strait explain E1401";
                Err(Failure::new(&codes::E1401, cause, fix))
            }
        }
    }

    /// Opens group, container and device of each function; the kernel resets each on the way. Refuses (E1401) one that
    /// does not come back. Not all of them when strait is told to end meanwhile, which the caller has to look at.
    pub(crate) fn new(domain: &Arc<DmaDomain>, slots: &[Slot]) -> Result<Self, Failure> {
        let open = |function: &Chosen| {
            domain.open(function.host.bdf).map(Arc::new).map_err(|error| error.into_failure())
        };
        // Each may take as long as its reset.
        let wanted = |_: &&Chosen| !signals::have_come();
        let devices = slots
            .iter()
            .map(|slot| slot.functions.iter().take_while(wanted).map(open).collect())
            .collect::<Result<_, Failure>>()?;
        let opened = Self { devices };
        opened.check_alive()?;
        Ok(opened)
    }

    /// The slots as the plan needs them, BARs as VFIO reports them.
    pub(crate) fn requests(&self, slots: &[Slot]) -> Result<Vec<PortRequest>, Failure> {
        slots
            .iter()
            .zip(&self.devices)
            .map(|(slot, devices)| {
                let mut devices = devices.iter();
                slot.request(|function| match devices.next() {
                    Some(device) => presented_bars(device.as_ref(), &function.rom)
                        .map_err(|error| cannot_attach(function.host.bdf, error)),
                    None => Ok(Vec::new()),
                })
            })
            .collect()
    }

    /// Each device with its host address.
    pub(crate) fn iter<'a>(
        &'a self,
        slots: &'a [Slot],
    ) -> impl Iterator<Item = (Bdf, &'a Arc<KernelDevice>)> {
        let functions = slots.iter().flat_map(|slot| &slot.functions);
        functions.map(|function| function.host.bdf).zip(self.devices.iter().flatten())
    }

    /// Builds the guest's view of each function of slot `index`, at the addresses of its port.
    pub(crate) fn functions(
        &self,
        index: usize,
        slot: &Slot,
        port: &PortPlan,
        msi: &Arc<dyn MsiRouter>,
        gate: &Arc<dyn BusMasterGate>,
        intx: impl Fn(u8) -> Arc<dyn IrqLine>,
    ) -> Result<Vec<Built>, Failure> {
        let devices = self.devices.get(index).map_or(&[][..], Vec::as_slice);
        let parts = slot.functions.iter().zip(&port.functions).zip(devices);
        parts
            .map(|((function, plan), device)| {
                let backend: Arc<dyn VfioBackend> = Arc::clone(device) as Arc<dyn VfioBackend>;
                let mut pin = [0u8];
                let pin = backend
                    .region_read(CONFIG_REGION, INTERRUPT_PIN, &mut pin)
                    .map_or(0, |()| pin[0]);
                let built = VfioFunction::new(VfioParts {
                    backend,
                    name: function.host.bdf,
                    bars: plan.bars.iter().map(|bar| (bar.spec, bar.at.first())).collect(),
                    rom: function.rom.clone(),
                    multifunction: slot.functions.len() > 1,
                    raw_config: function.extra.raw_config,
                    atomics: !slot.atomics.is_none(),
                    msi: Arc::clone(msi),
                    // INTA is 1; a port's device number stands for the function on bus 0.
                    intx: pin.checked_sub(1).filter(|pin| *pin < 4).map(&intx),
                    identity: function.identity,
                    own: (function.host.vendor, function.host.device),
                    gate: Arc::clone(gate),
                })
                .map_err(|error| cannot_attach(function.host.bdf, error))?;
                let (own, layouts) = ((function.host.vendor, function.host.device), built.bars());
                let watched = Watched {
                    id: slot.id.clone(),
                    host: function.host.bdf,
                    guest: plan.at,
                    rom: guest::rom(&function.rom, &layouts),
                    shown_as: guest::shown_as(own, function.identity),
                    layouts,
                    life: built.life_signs(),
                    errors_before: guest::errors(function.host.bdf),
                };
                Ok(Built { number: function.number, function: Box::new(built), watched })
            })
            .collect()
    }
}
