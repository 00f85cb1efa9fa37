//! Passed devices on their way into the machine: chosen on the host, opened, given addresses, built.

mod alive;
mod opened;
pub(crate) mod rom;

use std::collections::{BTreeMap, BTreeSet};

use strait_arch::plan::{FunctionRequest, PortRequest};
use strait_devices::{
    pci::port::Link,
    vfio::{attach::Identity, rom::RomSource},
};
use strait_resources::{
    bar::{BarIndex, BarKind, BarSpec},
    bdf::{Bdf, BdfSelector},
    codes,
    failure::Failure,
    host::{
        atomics::AtomicOps,
        check, iommu,
        pci::{HostFunction, Link as HostLink},
        reset::{self, Way},
        sysroot::Sysroot,
        trouble,
    },
    selector::Selector,
};

pub(crate) use self::opened::{Built, Opened};
use crate::config::{After, VfioConfig};

/// What goes behind one root port: functions of one host slot, as the user asked for them.
pub(crate) struct Slot {
    /// The user's name for it, or `vfio0`.
    pub(crate) id: String,
    /// The secondary bus the user wants.
    pub(crate) bus: Option<u8>,
    /// By ascending guest function number, 0 first.
    pub(crate) functions: Vec<Chosen>,
    /// AtomicOps that the host completes for every one of them.
    pub(crate) atomics: AtomicOps,
}

/// One function that passed every check.
pub(crate) struct Chosen {
    /// Function number in the guest.
    pub(crate) number: u8,
    /// The user chose the number.
    fixed: bool,
    /// What the host knows of it.
    pub(crate) host: HostFunction,
    rom: RomSource,
    /// IDs for the guest.
    pub(crate) identity: Identity,
    extra: Extra,
}

/// Everything that was looked up before anything is touched.
pub(crate) struct Selection {
    /// One entry a root port.
    pub(crate) slots: Vec<Slot>,
    /// Worth a line to the user, but no reason to stop.
    pub(crate) warnings: Vec<Failure>,
    /// What sysfs says that the IOMMU can address and what it keeps.
    pub(crate) constraints: iommu::DmaConstraints,
    /// How each function is reset.
    resets: BTreeMap<Bdf, Way>,
}

/// What the guest gets with a function beside its identity and its reset.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Extra {
    /// See [`VfioConfig::raw_config`].
    pub(crate) raw_config: bool,
    /// See [`VfioConfig::after`].
    pub(crate) after: After,
    /// See [`VfioConfig::trust_guest`].
    pub(crate) trust_guest: bool,
    /// AtomicOps that its root port completes.
    pub(crate) atomics: AtomicOps,
}

impl Extra {
    /// What the user wants of the device; its root port is not known yet.
    fn of(device: &VfioConfig) -> Self {
        let VfioConfig { raw_config, after, trust_guest, .. } = *device;
        Self { raw_config, after, trust_guest, ..Self::default() }
    }
}

/// How one function is reset.
pub(crate) struct Reset {
    pub(crate) bdf: Bdf,
    pub(crate) way: Way,
    pub(crate) methods: Option<String>,
}

/// The devices on the host that are meant, whoever has them now.
pub(crate) struct Candidates<'a> {
    wanted: &'a [VfioConfig],
    resolved: Vec<check::Slot>,
}

impl<'a> Candidates<'a> {
    /// Finds them, and sees whether this host can pass devices at all.
    pub(crate) fn find(sysroot: &Sysroot, wanted: &'a [VfioConfig]) -> Result<Self, Failure> {
        if wanted.is_empty() {
            return Ok(Self { wanted, resolved: Vec::new() });
        }
        let selectors: Vec<Selector> =
            wanted.iter().map(|device| device.selector.clone()).collect();
        let resolved = check::resolve(sysroot, &selectors)?;
        for (device, slot) in wanted.iter().zip(&resolved) {
            if let (Some((vendor, id)), Some(first)) = (device.expect, slot.functions.first()) {
                check::expect(sysroot, first, vendor, id)?;
            }
        }
        check::host(sysroot)?;
        Ok(Self { wanted, resolved })
    }

    /// Every function, and what the user wants of it.
    pub(crate) fn functions(&self) -> impl Iterator<Item = (&HostFunction, &'a VfioConfig)> {
        let slots = self.wanted.iter().zip(&self.resolved);
        slots.flat_map(|(device, slot)| slot.functions.iter().map(move |f| (f, device)))
    }

    /// How each function is reset, and what its `reset_method` has to hold for that when it does not.
    pub(crate) fn resets(&self, sysroot: &Sysroot) -> Result<Vec<Reset>, Failure> {
        let all: Vec<HostFunction> =
            self.functions().map(|(function, _)| function.clone()).collect();
        let chosen = self.functions().map(|(function, device)| {
            let (way, methods) = reset::chosen(sysroot, function, &all, device.reset)?;
            Ok(Reset { bdf: function.bdf, way, methods })
        });
        chosen.collect()
    }
}

impl Selection {
    /// Runs every check, in the order in which a user can mend things; `pretend` that all of them are on VFIO.
    pub(crate) fn of(
        sysroot: &Sysroot,
        candidates: Candidates<'_>,
        pretend: bool,
    ) -> Result<Self, Failure> {
        let ways = candidates.resets(sysroot)?;
        let Candidates { wanted, resolved } = candidates;
        if wanted.is_empty() {
            let constraints = iommu::DmaConstraints::default();
            let (slots, warnings, resets) = (Vec::new(), Vec::new(), BTreeMap::new());
            return Ok(Self { slots, warnings, constraints, resets });
        }
        let all: Vec<HostFunction> =
            resolved.iter().flat_map(|slot| slot.functions.clone()).collect();
        let mut warnings = if pretend { Vec::new() } else { check::assignable(sysroot, &all)? };
        warnings.extend(check::exposed(sysroot)?);
        let mut resets = BTreeMap::new();
        for (function, Reset { bdf, way, .. }) in all.iter().zip(ways) {
            warnings.extend(trouble::warning(function));
            warnings.extend(reset::warning(bdf, &way));
            resets.insert(bdf, way);
        }
        let groups: BTreeSet<u32> = all.iter().filter_map(|function| function.group).collect();
        let constraints = iommu::dma_constraints(sysroot, &groups.into_iter().collect::<Vec<_>>())?;
        let mut slots = arrange(sysroot, wanted, resolved, &mut warnings)?;
        for slot in &mut slots {
            slot.atomics = atomics(sysroot, &slot.functions)?;
        }
        Ok(Self { slots, warnings, constraints, resets })
    }

    /// Every function, the IDs that the guest sees on it, and how it is reset.
    pub(crate) fn shown(&self) -> impl Iterator<Item = (&HostFunction, Identity, &Way)> {
        let functions = self.slots.iter().flat_map(|slot| &slot.functions);
        functions.map(|function| {
            let reset = self.resets.get(&function.host.bdf).unwrap_or(&Way::None);
            (&function.host, function.identity, reset)
        })
    }

    /// What else the guest gets with a function.
    pub(crate) fn extra(&self, bdf: Bdf) -> Extra {
        let mut all =
            self.slots.iter().flat_map(|slot| slot.functions.iter().map(move |f| (slot, f)));
        let found = all.find(|(_, function)| function.host.bdf == bdf);
        let extra =
            |(slot, function): (&Slot, &Chosen)| Extra { atomics: slot.atomics, ..function.extra };
        found.map(extra).unwrap_or_default()
    }

    /// Every function, in the order of the slots.
    pub(crate) fn functions(&self) -> impl Iterator<Item = &HostFunction> {
        self.slots.iter().flat_map(|slot| slot.functions.iter().map(|function| &function.host))
    }
}

/// Functions of one host slot share a root port, and so do those that the user put on one guest bus.
fn arrange(
    sysroot: &Sysroot,
    wanted: &[VfioConfig],
    resolved: Vec<check::Slot>,
    warnings: &mut Vec<check::Warning>,
) -> Result<Vec<Slot>, Failure> {
    #[derive(PartialEq, Eq, PartialOrd, Ord)]
    enum Home {
        Bus(u8),
        HostSlot(Bdf),
    }
    let mut order: Vec<Home> = Vec::new();
    let mut homes: Vec<Slot> = Vec::new();
    for (position, (device, slot)) in wanted.iter().zip(resolved).enumerate() {
        let Some(first) = slot.functions.first() else { continue };
        let home = match device.guest_bus {
            Some(bus) => Home::Bus(bus),
            None => Home::HostSlot(first.bdf.with_function(0).unwrap_or(first.bdf)),
        };
        let at = order.iter().position(|known| *known == home).unwrap_or_else(|| {
            let id = device.id.clone().unwrap_or_else(|| format!("vfio{position}"));
            let (bus, functions, atomics) = (device.guest_bus, Vec::new(), AtomicOps::default());
            homes.push(Slot { id, bus, functions, atomics });
            order.push(home);
            homes.len() - 1
        });
        for host in slot.functions {
            let number = device.guest_function.unwrap_or_else(|| host.bdf.function());
            let fixed = device.guest_function.is_some();
            let first = is_first(slot.selector, &host);
            let identity = if first { device.identity } else { Identity::default() };
            let (rom, warning) = rom::choose(sysroot, device, first, &host)?;
            warnings.extend(warning);
            let extra = Extra::of(device);
            homes[at].functions.push(Chosen { number, fixed, host, rom, identity, extra });
        }
    }
    for slot in &mut homes {
        number(slot)?;
    }
    Ok(homes)
}

/// What the host's paths to memory complete for all of these functions: they share a root port.
fn atomics(sysroot: &Sysroot, functions: &[Chosen]) -> Result<AtomicOps, Failure> {
    let mut all: Option<AtomicOps> = None;
    for function in functions {
        let one = AtomicOps::of(sysroot, &function.host)?;
        all = Some(all.map_or(one, |all| all.and(one)));
    }
    Ok(all.unwrap_or_default())
}

/// With a whole slot, what is said of one function is meant for its first.
fn is_first(selector: BdfSelector, function: &HostFunction) -> bool {
    !matches!(selector, BdfSelector::Slot(first) if first != function.bdf)
}

/// Gives out guest function numbers: the user's, else the host's where they can stay. A device without function 0 is not
/// found by any operating system, so when none of them has it the lowest takes it.
fn number(slot: &mut Slot) -> Result<(), Failure> {
    slot.functions.sort_by_key(|function| function.number);
    if slot.functions.iter().all(|function| function.number != 0) {
        // The configuration has refused a bus whose numbers are all the user's without a 0 among them.
        if let Some(first) = slot.functions.iter_mut().find(|function| !function.fixed) {
            first.number = 0;
        }
        slot.functions.sort_by_key(|function| function.number);
    }
    let mut seen: BTreeMap<u8, Bdf> = BTreeMap::new();
    for function in &slot.functions {
        if let Some(other) = seen.insert(function.number, function.host.bdf) {
            let cause = format!(
                "{other} and {} both want guest function {}",
                function.host.bdf, function.number
            );
            let fix = "give each its own with guest-address=BB:00.F";
            return Err(Failure::new(&codes::E2005, cause, fix));
        }
    }
    Ok(())
}

impl Slot {
    /// What the address plan needs to know, with BARs as `bars` finds them.
    pub(crate) fn request(
        &self,
        mut bars: impl FnMut(&Chosen) -> Result<Vec<BarSpec>, Failure>,
    ) -> Result<PortRequest, Failure> {
        let functions = self.functions.iter().map(|function| {
            let (number, host) = (function.number, function.host.bdf);
            Ok(FunctionRequest { number, host, bars: bars(function)? })
        });
        let functions = functions.collect::<Result<_, Failure>>()?;
        Ok(PortRequest { id: self.id.clone(), bus: self.bus, functions })
    }

    /// The first function's link: that between slot and card.
    pub(crate) fn link(&self) -> Link {
        let host = self.functions.first().and_then(|function| function.host.link.as_ref());
        // A card that idles has its link turned down: what card and slot can is what a driver will find under load.
        let reachable = host.and_then(HostLink::reachable);
        reachable.map_or_else(Link::default, |(speed, width)| Link { speed, width })
    }
}

impl Chosen {
    /// The device's BARs as the host's sysfs has them, with the ROM that the guest will see: for a plan without the
    /// device being opened.
    pub(crate) fn bars_from_host(&self) -> Vec<BarSpec> {
        let mut bars = self.host.bars.clone();
        if self.rom != RomSource::Device {
            bars.retain(|bar| bar.index != BarIndex::ROM);
        }
        if let RomSource::Bytes(bytes) = &self.rom {
            let size = (bytes.len() as u64).next_power_of_two().max(2048);
            bars.push(BarSpec { index: BarIndex::ROM, kind: BarKind::Rom, size });
        }
        bars
    }
}
