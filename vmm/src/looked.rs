//! What is known of a machine before anything on the host is changed, and everything that stands against it.
//!
//! A dry run and a run look at the same things in the same order, here: a run changes the host only with what this
//! returns, and a dry run shows it.

use std::sync::Arc;

use strait_arch::{
    acpi::AcpiMachine,
    boot::{self, BootFiles},
    layout,
    plan::{Plan, PlanRequest, PortRequest},
};
use strait_resources::{
    failure::Failure,
    host::{
        check::{self, Bindable},
        cpu,
        sysroot::Sysroot,
    },
    range::AddressRange,
};

use crate::{
    binding::{self, Binder, Found, View},
    builder::apic_ids,
    config::{Idle, Kernel, P2p, Pages, RunConfig},
    descriptors,
    machine::acpi_tables,
    passthrough::{Candidates, Selection},
    tsc::Told,
    vm::Host,
};

/// What can be known before the machine is built.
pub(crate) struct Looked {
    /// Kernel and initramfs, which every start of the guest is made from.
    pub(crate) files: Arc<BootFiles>,
    pub(crate) selection: Selection,
    pub(crate) plan: Plan,
    pub(crate) p2p: PeerDma,
    /// What is to be taken from the host's drivers.
    pub(crate) found: Found,
}

/// Is there DMA between passed devices, and why?
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PeerDma {
    /// `--p2p on`.
    Asked,
    /// `--p2p auto` with several devices.
    Several,
    /// `--p2p off`.
    Refused,
    /// `--p2p auto` with one device.
    Single,
    /// No device is passed.
    NoDevice,
}

impl PeerDma {
    /// `devices`: root ports. Functions behind one port are one device and rarely talk to each other, and mapping a large
    /// BAR is not cheap.
    pub(crate) const fn decide(wanted: P2p, devices: usize) -> Self {
        match (wanted, devices) {
            (P2p::Off, _) => Self::Refused,
            (_, 0) => Self::NoDevice,
            (P2p::On, _) => Self::Asked,
            (P2p::Auto, 1) => Self::Single,
            (P2p::Auto, _) => Self::Several,
        }
    }

    pub(crate) const fn is_on(self) -> bool {
        matches!(self, Self::Asked | Self::Several)
    }

    /// For a person.
    pub(crate) const fn why(self) -> &'static str {
        match self {
            Self::Asked => "--p2p on",
            Self::Several => "there are two devices or more",
            Self::Refused => "--p2p off",
            Self::Single => "it takes two devices",
            Self::NoDevice => "no device is passed",
        }
    }
}

/// Looks at everything; the refusals of a run, in the order in which a user can mend things. Without a binder it is a dry
/// run, which leaves also what an earlier strait has left.
pub(crate) fn look(
    view: &View,
    binder: Option<&Binder>,
    config: &RunConfig,
) -> Result<Looked, Failure> {
    let sysroot = view.sysroot();
    let told = Told::of(sysroot, config);
    let files = open(config)?;
    check_boot(&files, config, told, config.memory.size.min(layout::LOW_RAM_MAX))?;
    descriptors::check(sysroot, config)?;
    let (candidates, found) = binding::look(view, binder, config)?;
    let pretend = !found.planned().take.is_empty();
    let selection = Selection::of(sysroot, candidates, pretend)?;
    let plan = dry_plan(sysroot, config, &selection)?;
    // Where the host keeps addresses for itself there is less RAM below 4 GiB.
    check_boot(&files, config, told, boot::low_ram(&plan.ram))?;
    check_acpi(config, &plan)?;
    check_cpu(sysroot, config)?;
    check::kvm(sysroot)?;
    check_size(sysroot, config)?;
    // Whoever only looks may be another user than the one who will run it: a dry run warns of this instead.
    if binder.is_some() {
        check_lock(sysroot, config)?;
    }
    if sysroot.is_host() {
        check_kvm(config)?;
    }
    let p2p = PeerDma::decide(config.p2p, selection.slots.len());
    Ok(Looked { files: Arc::new(files), selection, plan, p2p, found })
}

fn open(config: &RunConfig) -> Result<BootFiles, Failure> {
    let Kernel { path, initramfs, .. } = &config.kernel;
    BootFiles::open(path, initramfs.as_deref()).map_err(|error| error.into_failure())
}

fn check_boot(files: &BootFiles, config: &RunConfig, told: Told, low: u64) -> Result<(), Failure> {
    let Kernel { cmdline, boot: mode, .. } = &config.kernel;
    boot::check(files, &told.longest_cmdline(cmdline), *mode, low)
        .map_err(|error| told.blamed(error))
}

/// What only /dev/kvm itself can tell.
fn check_kvm(config: &RunConfig) -> Result<(), Failure> {
    let (host, vcpus) = (Host::open()?, usize::from(config.cpu.count.get()));
    host.check_vcpus(vcpus)?;
    match config.cpu.idle {
        Idle::Native => host.check_idle_natively(vcpus),
        Idle::Halt => Ok(()),
    }
}

/// A machine that is only looked at.
pub(crate) struct Draft {
    pub(crate) selection: Selection,
    pub(crate) plan: Plan,
    pub(crate) p2p: PeerDma,
    /// What would be taken from the host's drivers.
    pub(crate) binding: Bindable,
}

/// What [`crate::builder::run`] would build, on any host; nothing is touched.
pub(crate) fn draft(sysroot: &Sysroot, config: &RunConfig) -> Result<Draft, Failure> {
    let looked = look(&View::at(sysroot.clone()), None, config)?;
    let Looked { mut selection, plan, p2p, found, .. } = looked;
    selection.warnings.extend(check_lock(sysroot, config).err());
    Ok(Draft { selection, plan, p2p, binding: found.into_planned() })
}

/// The same for a machine that runs: its files were there when it was started, and its devices are its own.
pub(crate) fn draft_of_running(sysroot: &Sysroot, config: &RunConfig) -> Result<Draft, Failure> {
    let candidates = Candidates::find(sysroot, &config.vfio)?;
    let selection = Selection::of(sysroot, candidates, true)?;
    let plan = dry_plan(sysroot, config, &selection)?;
    let p2p = PeerDma::decide(config.p2p, selection.slots.len());
    Ok(Draft { selection, plan, p2p, binding: Bindable::default() })
}

/// The plan from what sysfs says, the container not opened: what cannot fit is refused here. What runs is planned again
/// from what VFIO says, which knows more of the IOMMU.
pub(crate) fn dry_plan(
    sysroot: &Sysroot,
    config: &RunConfig,
    selection: &Selection,
) -> Result<Plan, Failure> {
    let requests =
        selection.slots.iter().map(|slot| slot.request(|function| Ok(function.bars_from_host())));
    let ports = requests.collect::<Result<_, Failure>>()?;
    let iova = selection.constraints.iova.clone();
    plan_request(config, selection, cpu::physical_bits(sysroot), iova, ports)
        .solve()
        .map_err(|error| error.into_failure())
}

/// Is there room for the user's ACPI tables? What the plan from VFIO adds to ours is a few bytes a device.
fn check_acpi(config: &RunConfig, plan: &Plan) -> Result<(), Failure> {
    let (apic_ids, extra) = (apic_ids(config), user_tables(config));
    let machine = AcpiMachine { apic_ids: &apic_ids, plan, pm_timer: true, extra: &extra };
    acpi_tables(&machine).map(drop)
}

pub(crate) fn user_tables(config: &RunConfig) -> Vec<Vec<u8>> {
    config.acpi.iter().map(|table| table.bytes.clone()).collect()
}

pub(crate) fn plan_request(
    config: &RunConfig,
    selection: &Selection,
    physical_bits: u8,
    iova: Vec<AddressRange>,
    ports: Vec<PortRequest>,
) -> PlanRequest {
    PlanRequest {
        ram: config.memory.size,
        physical_bits,
        iova,
        reserved: selection.constraints.reserved.clone(),
        ports,
        mmio32: config.mmio32,
        mmio64: config.mmio64,
    }
}

/// Can the guest's CPU have what is asked for? Known before a device is touched, as far as KVM's modules tell.
pub(crate) fn check_cpu(sysroot: &Sysroot, config: &RunConfig) -> Result<(), Failure> {
    if config.cpu.nested {
        check::nested(sysroot)?;
    }
    if config.cpu.pmu {
        check::pmu(sysroot)?;
    }
    Ok(())
}

/// Is there enough memory? Known before a device is touched.
fn check_size(sysroot: &Sysroot, config: &RunConfig) -> Result<(), Failure> {
    match config.memory.pages {
        Pages::Default => check::memory(sysroot, config.memory.size),
        pages => check::huge_pages(sysroot, pages.granule(), config.memory.size),
    }
}

/// May this process lock the guest's RAM, which DMA takes?
fn check_lock(sysroot: &Sysroot, config: &RunConfig) -> Result<(), Failure> {
    if config.vfio.is_empty() {
        return Ok(());
    }
    check::memlock(sysroot, config.memory.size)
}

#[cfg(test)]
mod tests;
