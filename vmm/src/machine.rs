//! A machine that is built: its start, its reboots, its end.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
};

use kvm_bindings::kvm_sregs;
use strait_arch::{
    acpi::{self, AcpiMachine, AcpiTables},
    boot::{BootFiles, Loaded},
    mptable::MpMachine,
    plan::Plan,
    regs,
    smbios::{Identity, Smbios, SmbiosSpec},
};
use strait_devices::{
    bus::Bus,
    legacy::LegacyDevice,
    pci::root::RootComplex,
    vfio::{dma::DmaDomain, hot_reset::ResetPlan},
};
use strait_resources::{codes, failure::Failure};

use crate::{
    ahead::Loading,
    binding::Guard,
    builder::internal,
    config::{Cpu, Hide, Kernel},
    console::Console,
    control::{Control, Request},
    core_sched,
    events::EventLoop,
    memory::GuestRam,
    passthrough::Opened,
    phases,
    pinning::{Pinning, Progress},
    resident,
    vcpu::{BootState, STACK, Vcpu, VcpuParts},
    vm::{Memslot, Memslots, Vm},
};

/// Everything that makes up a machine. Fields in the order of tear-down, for when a start fails half-way.
pub(crate) struct Machine {
    pub(crate) vcpus: Vec<Vcpu>,
    /// `None` without passed devices.
    pub(crate) pinning: Option<Pinning>,
    /// vCPUs may run before all of RAM is mapped.
    pub(crate) behind: bool,
    pub(crate) events: EventLoop,
    pub(crate) control: Arc<Control>,
    pub(crate) legacy: Vec<Arc<dyn LegacyDevice>>,
    pub(crate) root: Arc<RootComplex>,
    pub(crate) bus: Arc<Bus>,
    pub(crate) resets: ResetPlan,
    pub(crate) devices: Opened,
    pub(crate) dma: Option<Arc<DmaDomain>>,
    pub(crate) ram_slots: Vec<Memslot>,
    /// Where BARs are mapped into the guest, and for other devices.
    pub(crate) slots: Arc<Memslots>,
    pub(crate) vm: Vm,
    pub(crate) image: Image,
    /// The kernel that is in RAM, for the first start.
    pub(crate) loaded: Loaded,
    pub(crate) console: Console,
    pub(crate) ram: Arc<GuestRam>,
    /// Gives the devices back to the host's drivers.
    pub(crate) guard: Option<Guard>,
}

/// What is put into RAM at each start of the guest.
pub(crate) struct Image {
    pub(crate) plan: Plan,
    pub(crate) apic_ids: Vec<u32>,
    /// Open since strait looked at them: a reboot starts what was started.
    pub(crate) files: Arc<BootFiles>,
    pub(crate) kernel: Kernel,
    pub(crate) power_on: kvm_sregs,
    /// The guest needs the PM timer.
    pub(crate) pm_timer: bool,
    /// ACPI tables of the user's.
    pub(crate) acpi: Vec<Vec<u8>>,
    /// Who the guest reads that it is.
    pub(crate) identity: Identity,
    /// How many vCPUs there are, how they are arranged, and whether the guest may know that they are virtual.
    pub(crate) cpu: Cpu,
    /// EAX and EDX of CPUID leaf 1.
    pub(crate) cpu_id: (u32, u32),
}

/// The ACPI tables of a machine; refuses (E2108) more of the user's than there is room for.
pub(crate) fn acpi_tables(machine: &AcpiMachine<'_>) -> Result<AcpiTables, Failure> {
    acpi::build(machine).map_err(|error| match machine.extra {
        [] => Failure::new(&codes::E9001, error.to_string(), "use fewer vCPUs").source(error),
        _ => Failure::new(&codes::E2108, error.to_string(), "leave an --acpi-table out"),
    })
}

impl Image {
    /// Writes what the kernel is told and the ACPI tables; says how the boot CPU starts.
    fn prepare(&self, ram: &GuestRam, loaded: &Loaded) -> Result<BootState, Failure> {
        let machine = AcpiMachine {
            apic_ids: &self.apic_ids,
            plan: &self.plan,
            pm_timer: self.pm_timer,
            extra: &self.acpi,
        };
        let tables = acpi_tables(&machine)?;
        let entry = loaded
            .prepare(ram.memory(), &self.plan, tables.rsdp)
            .map_err(|error| error.into_failure())?;
        let written = |error| internal("writing boot data")(io::Error::other(error));
        tables.write(ram.memory()).map_err(written)?;
        self.write_bios(ram)?;
        regs::boot_state(ram.memory(), entry, self.power_on).map_err(written)
    }
}

impl Image {
    /// Writes what an operating system looks for where a BIOS would be: SMBIOS, and the MP table for one that does without
    /// ACPI.
    fn write_bios(&self, ram: &GuestRam) -> Result<(), Failure> {
        let written = |error| internal("writing firmware tables")(io::Error::other(error));
        let smbios = Smbios::new(&SmbiosSpec {
            identity: &self.identity,
            ram: &self.plan.ram,
            cpus: self.cpu.count.get().into(),
            topology: self.cpu.topology(),
            cpu_id: self.cpu_id,
            virtual_machine: self.cpu.hide == Hide::No,
        });
        smbios
            .and_then(|smbios| smbios.write(ram.memory()))
            .map_err(|error| internal("writing SMBIOS tables")(io::Error::other(error)))?;
        let Self { apic_ids, cpu_id, plan, .. } = self;
        let machine = MpMachine { apic_ids, cpu_id: *cpu_id, plan };
        machine.write(ram.memory()).map_err(written)
    }
}

impl Machine {
    /// Runs the guest until it powers off, crashes, or strait is told to end. The exit status.
    pub(crate) fn run(mut self) -> Result<u8, Failure> {
        let boot = self.image.prepare(&self.ram, &self.loaded)?;
        self.console.guest_runs().map_err(internal("making the terminal raw"))?;
        let threads = self.start(boot)?;
        phases::done("vCPUs started");
        let end = self.serve(&threads);
        self.guard.iter().for_each(Guard::prepare);
        self.control.stop(threads);
        self.console.guest_is_over();
        self.take_apart().finish();
        end
    }

    /// The way back: what signals and maps goes before what it signals and maps into. Somebody may wait for the devices:
    /// they go back to their drivers while KVM's part of the machine and RAM, which they know nothing of any more, are
    /// given up beside that. KVM's device for VFIO, which goes with the domain, keeps the rest of KVM alive until then.
    /// What is left is the console, for whose reader nothing of this waits.
    fn take_apart(self) -> Console {
        let Self { pinning, events, root, bus, resets, devices, dma, .. } = self;
        let Self { ram_slots, slots, vm, ram, guard, console, .. } = self;
        drop(pinning);
        drop(events);
        root.clear();
        drop((root, bus, slots));
        drop((resets, devices));
        drop(dma);
        let rest = (ram_slots, vm, ram);
        thread::scope(|scope| {
            // Without a thread it is dropped at once, as is every tuple: in this order.
            let begun = thread::Builder::new()
                .name("end".to_owned())
                .stack_size(STACK)
                .spawn_scoped(scope, || drop(rest));
            drop(guard);
            if let Err(error) = begun {
                log::debug!("no thread for the machine's end: {error}");
            }
        });
        console
    }

    fn start(&mut self, boot: BootState) -> Result<Vec<JoinHandle<()>>, Failure> {
        let parts = |index: usize| VcpuParts {
            seat: self.control.seat(),
            control: Arc::clone(&self.control),
            bus: Arc::clone(&self.bus),
            ram: Arc::clone(&self.ram),
            boot: (index == 0).then_some(boot),
        };
        if self.image.cpu.core_sched {
            core_sched::keep_cores();
        }
        let vcpus = std::mem::take(&mut self.vcpus);
        vcpus
            .into_iter()
            .enumerate()
            .map(|(index, vcpu)| vcpu.start(parts(index)))
            .collect::<io::Result<_>>()
            .map_err(internal("starting a vCPU thread"))
    }

    fn serve(&mut self, threads: &[JoinHandle<()>]) -> Result<u8, Failure> {
        let mut early = self.prepare()?;
        if early.is_none() {
            self.control.resume();
        }
        resident::let_go_of_code();
        loop {
            let request = match early.take() {
                Some(request) => request,
                None => self.events.wait().map_err(internal("waiting for events"))?,
            };
            match request {
                Request::PowerOff | Request::Quit => return Ok(0),
                Request::Crash(failure) => return Err(*failure),
                Request::Reset => {
                    self.control.pause_to_reset(threads);
                    early = self.reset()?;
                    if early.is_none() {
                        early = self.prepare()?;
                    }
                    if early.is_none() {
                        self.control.reset_vcpus();
                        self.control.resume();
                    }
                }
            }
        }
    }

    /// Before vCPUs run: waits until devices may use RAM, unless that can be behind the guest's boot, and each other's
    /// BARs, where somebody waits for that. What came instead.
    fn prepare(&mut self) -> Result<Option<Request>, Failure> {
        if let Some(request) = self.prepare_ram()? {
            return Ok(Some(request));
        }
        if self.slots.peers_are_ready() {
            return Ok(None);
        }
        let came = self.events.wait_until(|| self.slots.peers_are_ready(), || ());
        came.map_err(internal("waiting for BARs in the IOMMU"))
    }

    fn prepare_ram(&mut self) -> Result<Option<Request>, Failure> {
        let Some(pinning) = &self.pinning else { return Ok(None) };
        let pinned = pinning.pinned();
        if pinned.is_complete() || (self.behind && self.devices.are_silent()) {
            return Ok(None);
        }
        pinning.hurry();
        let mut progress = Progress::new("preparing memory");
        let ready = || pinned.is_complete();
        let came = self.events.wait_until(ready, || progress.show(pinned));
        progress.end();
        came.map_err(internal("waiting for guest RAM"))
    }

    /// Everything as at the start, with devices reset and RAM as the guest left it. No vCPU runs. What came instead.
    fn reset(&mut self) -> Result<Option<Request>, Failure> {
        self.root.reset();
        for reset in &self.resets.hot {
            if let Err(error) = reset.perform() {
                let functions: Vec<String> = reset.functions().map(|bdf| bdf.to_string()).collect();
                log::warn!("{} keep their state over the reboot: {error}", functions.join(", "));
            }
        }
        self.devices.check_alive()?;
        self.legacy.iter().for_each(|device| device.reset());
        self.vm.reset()?;
        // Kernel, initramfs and command line, over what a guest has left. The same each time: the plan does not change.
        let Image { files, kernel, plan, .. } = &self.image;
        let loading = Loading::start(&self.ram, (files, kernel), &plan.ram, false, &self.control)
            .map_err(internal("starting a thread"))?;
        let came = self
            .events
            .wait_until(|| loading.is_done(), || ())
            .map_err(internal("waiting for events"))?;
        if came.is_some() {
            return Ok(came);
        }
        let loaded = loading.finish()?;
        self.image.prepare(&self.ram, &loaded).map(|_| None)
    }
}
