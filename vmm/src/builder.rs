//! How a machine is made, top to bottom.
//!
//! First everything is looked at and nothing touched; then devices are opened, because only an open container knows
//! what the IOMMU can address; then the plan says where everything goes; then interrupts, devices and vCPUs are made in
//! the order in which they need each other. RAM, which takes longest, is begun first, where a plan from sysfs has it.
//! [`crate::machine`] runs what comes out.

use std::{io, sync::Arc};

use kvm_bindings::CpuId;
use strait_arch::{
    boot::BootFiles,
    cpuid::{CpuidSpec, KVM_APIC_KHZ, apic_id, can_nest, cpu_id, guest_cpuid, is_amd},
    layout,
    plan::Plan,
};
use strait_devices::{
    bus::{Bus, PioTarget},
    legacy::{
        LegacyDevice,
        acpi_pm::{self, AcpiPm},
        i8042::I8042,
        rtc::Rtc,
        serial,
    },
    pci::{
        port::RootPortParts,
        root::{RootComplex, RootParts},
    },
    ports::{BusMasterGate, GuestMapper, IrqLine, LineRouter, MachineControl, MsiRouter},
    vfio::{
        backend::{IrqIndex, VfioBackend},
        dma::DmaDomain,
    },
};
use strait_resources::{
    codes,
    failure::Failure,
    host::{check, cpu, pci::HostFunction, sysroot::Sysroot},
    range::AddressRange,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{
    ahead::Ahead,
    binding::{self, Binder, Guard},
    config::{Hide, Idle, P2p, Pages, Pin, RunConfig},
    console::Console,
    control::{Control, Request},
    descriptors,
    events::EventLoop,
    inspect::{guest::Subject, socket::Socket},
    irq::{KvmIrqLine, KvmMsiRouter, Routes},
    looked::{self, Looked, PeerDma, dry_plan, plan_request, user_tables},
    machine::{Image, Machine},
    p2p::PeerMappings,
    passthrough::{Built, Candidates, Opened, Selection},
    phases,
    pinning::{Gate, Pinning},
    report, signals, smbios,
    tsc::Told,
    vcpu::{Vcpu, install_kick_handler},
    vm::{Host, Memslots, NewVm, Vm},
};

/// Builds the machine, runs it until its end, takes it apart. The exit status, or why there is no machine. `file` is its
/// configuration as a text, when it came from one.
pub(crate) fn run(config: &RunConfig, file: Option<String>) -> Result<u8, Failure> {
    report::never_wait();
    descriptors::raise();
    let binder = Binder::host();
    let sysroot = Sysroot::host();
    let vm = NewVm::start().map_err(internal("starting a thread"))?;
    let Looked { files, selection, plan, p2p, found } =
        looked::look(&binder, Some(&binder), config)?;
    if !config.vfio.is_empty() {
        raise_memlock()?;
    }
    // A part of the machine, the last: the devices go back to their drivers however it ends.
    let (vm, selection, plan, guard) = if found.changes() {
        // KVM's own refusals come before the first change, too.
        let vm = vm.ready()?;
        let all: Vec<HostFunction> = selection.functions().cloned().collect();
        let guard = found.take(&binder, &all)?;
        if signals::have_come() {
            return Ok(told_to_end());
        }
        let candidates = Candidates::find(&sysroot, &config.vfio)?;
        let selection = Selection::of(&sysroot, candidates, false)?;
        let plan = dry_plan(&sysroot, config, &selection)?;
        (vm, selection, plan, Some(guard))
    } else {
        let guard = binding::registered(&binder, &selection);
        (vm, selection, plan, guard)
    };
    report::warnings(&selection.warnings);
    signals::hold().map_err(internal("installing a signal handler"))?;
    let behind = pins_behind(&sysroot, config)?;
    phases::done("checks of host and device");
    let parts = Parts { config, file, files, p2p, behind };
    let end = match build(parts, vm, &selection, &plan, guard) {
        Ok(Some(machine)) => machine.run(),
        Ok(None) => Ok(told_to_end()),
        Err(failure) => Err(failure),
    };
    phases::over();
    end
}

/// The exit status of a run that was over before it began.
fn told_to_end() -> u8 {
    log::info!("strait was told to end before the guest ran");
    0
}

/// May the guest run while its RAM is pinned? Unless asked, only where memory that is missing late is out of the
/// question: reserved in a pool, or much more than is needed.
fn pins_behind(sysroot: &Sysroot, config: &RunConfig) -> Result<bool, Failure> {
    if config.vfio.is_empty() {
        return Ok(false);
    }
    let behind = match (config.memory.pin, config.memory.pages) {
        (Pin::Eager, _) => return Ok(false),
        (Pin::Behind, _) | (Pin::Auto, Pages::Huge2M | Pages::Huge1G) => true,
        (Pin::Auto, Pages::Default) => check::has_spare_memory(sysroot, config.memory.size)?,
    };
    if !behind {
        log::info!(
            "the host has little memory to spare: guest RAM is pinned before the guest starts"
        );
    }
    Ok(behind)
}

/// The soft limit is ours to raise up to the hard one, which [`check::memlock`] has found large enough.
fn raise_memlock() -> Result<(), Failure> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let limit = getrlimit(Resource::Memlock);
    setrlimit(Resource::Memlock, Rlimit { current: limit.maximum, maximum: limit.maximum })
        .map_err(|error| internal("raising the locked-memory limit")(error.into()))
}

/// What [`build`] is told beside the machine's parts.
struct Parts<'a> {
    config: &'a RunConfig,
    /// The configuration as a text, when it came from one.
    file: Option<String>,
    files: Arc<BootFiles>,
    p2p: PeerDma,
    /// The guest may run while its RAM is pinned.
    behind: bool,
}

/// `None`: strait was told to end meanwhile. What takes its time is looked at in between.
fn build(
    parts: Parts<'_>,
    vm: NewVm,
    selection: &Selection,
    expected: &Plan,
    guard: Option<Guard>,
) -> Result<Option<Machine>, Failure> {
    let Parts { config, file, files, p2p, behind } = parts;
    // Workers fault RAM in and the kernel is read from here on.
    let control = Arc::new(Control::new().map_err(internal("making an eventfd"))?);
    let mut events = EventLoop::new(&control).map_err(internal("making the event loop"))?;
    let mut ahead = Ahead::start(config, &files, &expected.ram, behind, &control)?;

    let (host, vm) = vm.finish()?;
    install_kick_handler().map_err(internal("installing a signal handler"))?;

    let dma = match selection.slots.is_empty() {
        true => None,
        false => {
            let kvm = Arc::new(vm.vfio_device()?);
            Some(DmaDomain::new(Some(kvm)).map_err(|error| error.into_failure())?)
        }
    };
    let devices = match &dma {
        Some(domain) => Opened::new(domain, &selection.slots)?,
        None => Opened::none(),
    };

    phases::done("device opened");
    if signals::have_come() {
        return Ok(None);
    }

    let supported = host.supported_cpuid()?;
    let physical_bits = Host::physical_bits(&supported);
    let iova = match &dma {
        Some(domain) => {
            domain.iova_ranges().map_err(internal("asking the IOMMU for its ranges"))?
        }
        None => Vec::new(),
    };
    let ports = devices.requests(&selection.slots)?;
    let plan = plan_request(config, selection, physical_bits, iova, ports)
        .solve()
        .map_err(|error| error.into_failure())?;
    for (function, bar) in &plan.unassigned {
        log::info!(
            "{function} {}: no I/O ports are left for it, the guest sees it unassigned",
            bar.index
        );
    }

    if plan.ram != expected.ram {
        log::info!("VFIO knows more of the IOMMU than the host's sysfs: RAM lies elsewhere");
        if ended_before(&mut events, || ahead.loading.is_done())? {
            return Ok(None);
        }
        ahead.give_up();
        ahead = Ahead::start(config, &files, &plan.ram, behind, &control)?;
    }
    let Ahead { ram, pinning, loading } = ahead;
    // Workers give RAM to the IOMMU from here on. No device can master the bus before they are done: the gate.
    pinning.iter().zip(&dma).for_each(|(pinning, domain)| pinning.map_into(domain));
    let pinned = pinning.as_ref().map(Pinning::pinned);
    let gate: Arc<dyn BusMasterGate> = Arc::new(Gate::new(&control, pinning.as_ref()));
    let after = pinned.filter(|_| config.p2p == P2p::Auto);
    let peers = dma
        .clone()
        .filter(|_| p2p.is_on())
        .map(|domain| PeerMappings::new(domain, &control, after));
    let peers = peers.transpose().map_err(internal("starting a thread"))?;
    let slots = Arc::new(Memslots::new(&vm, peers));
    let ram_slots = ram
        .regions()
        .map(|(range, memory)| slots.map_ram(range, memory))
        .collect::<io::Result<Vec<_>>>()
        .map_err(internal("giving RAM to KVM"))?;

    let routes = Routes::new(vm.fd()).map_err(internal("routing interrupts"))?;
    let bus = Arc::new(Bus::new());
    let mut console = Console::open(&config.serial)?;
    let legacy = legacy(&plan, &vm, &bus, &control, &mut console)?;

    let root = root_complex(&plan, &bus, Arc::clone(&slots), &control, &gate, &routes)?;
    let mut watched = Vec::new();
    let msi: Arc<dyn MsiRouter> = Arc::new(KvmMsiRouter(routes));
    for (index, (slot, port)) in selection.slots.iter().zip(&plan.ports).enumerate() {
        let multifunction =
            plan.ports.iter().any(|other| other.at != port.at && other.at.same_slot(port.at));
        let at = root.add_port(RootPortParts {
            at: port.at,
            multifunction,
            secondary: port.bus,
            io: port.io,
            memory: port.memory,
            prefetchable: port.prefetchable,
            slot: index as u16 + 1,
            link: slot.link(),
            atomics: slot.atomics.register(),
        });
        let intx = |pin| -> Arc<dyn IrqLine> {
            Arc::new(KvmIrqLine::new(vm.fd(), layout::pci_gsi(port.at.device(), pin)))
        };
        for Built { number, function, watched: signs } in
            devices.functions(index, slot, port, &msi, &gate, intx)?
        {
            watched.push(signs);
            let planned = port.functions.iter().find(|planned| planned.at.function() == number);
            for bar in function.bars() {
                let place =
                    planned.and_then(|f| f.bars.iter().find(|b| b.spec.index == bar.spec.index));
                place.iter().for_each(|place| slots.prepare_peer(place.at.first(), &bar.direct));
            }
            root.add_function(at, number, function);
        }
    }
    watch(&mut events, &devices, selection)?;
    match Socket::new(
        &Sysroot::host(),
        Subject::new(config, file, &plan, slots.has_peers(), watched),
    ) {
        Ok(socket) => events.add_socket(socket),
        Err(failure) => log::info!("strait inspect will not find this guest: {failure}"),
    }
    let resets = devices.reset_plan(selection);

    phases::done("device attached");

    if config.cpu.idle == Idle::Native {
        let cpus = std::thread::available_parallelism().map_or(1, usize::from);
        vm.idle_natively(config.cpu.count.get().into(), cpus)?;
    }
    let vcpus = vcpus(config, &host, &vm, &supported)?;
    if ended_before(&mut events, || loading.is_done())? {
        return Ok(None);
    }
    let mut loaded = loading.finish()?;
    let mut kernel = config.kernel.clone();
    if let Some(khz) = vcpus.first().and_then(Vcpu::tsc_khz) {
        kernel.cmdline = Told::of(&Sysroot::host(), config).cmdline(&kernel.cmdline, Some(khz));
        loaded.set_cmdline(ram.memory(), &kernel.cmdline).map_err(|error| error.into_failure())?;
    }
    Ok(Some(Machine {
        image: Image {
            plan,
            apic_ids: apic_ids(config),
            files,
            kernel,
            // A guest that sees KVM has kvm-clock. One that does not runs on its TSC and needs something to check it
            // against: with nothing better Linux takes its own tick, and then distrusts the TSC.
            pm_timer: config.cpu.hide != Hide::No,
            acpi: user_tables(config),
            identity: smbios::identity(&Sysroot::host(), config),
            cpu: config.cpu,
            cpu_id: cpu_id(supported.as_slice()),
            power_on: vcpus.first().map(Vcpu::power_on_sregs).unwrap_or_default(),
        },
        vcpus,
        loaded,
        pinning,
        behind,
        console,
        events,
        control,
        legacy,
        root,
        bus,
        resets,
        devices,
        dma,
        ram_slots,
        slots,
        vm,
        ram,
        guard,
    }))
}

/// Waits for `ready`; whether strait was told to end before it was. That RAM cannot be had is a failure.
fn ended_before(events: &mut EventLoop, ready: impl Fn() -> bool) -> Result<bool, Failure> {
    match events.wait_until(ready, || ()).map_err(internal("waiting for events"))? {
        None => Ok(false),
        Some(Request::Crash(failure)) => Err(*failure),
        Some(Request::Quit | Request::PowerOff | Request::Reset) => Ok(true),
    }
}

/// COM1, the clock, the keyboard controller's reset line and the power management block; all of them, for a reset.
fn legacy(
    plan: &Plan,
    vm: &Vm,
    bus: &Bus,
    control: &Arc<Control>,
    console: &mut Console,
) -> Result<Vec<Arc<dyn LegacyDevice>>, Failure> {
    let no_eventfd = internal("making an eventfd");
    let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(&no_eventfd)?;
    vm.register_irq(&interrupt, layout::SERIAL_IRQ)?;
    let wake = console.wake().map_err(&no_eventfd)?;
    let serial = Arc::new(serial::Serial::new(interrupt, console.output(), wake));
    console.connect(&serial, control).map_err(internal("starting a thread"))?;

    let machine = || Arc::clone(control) as Arc<dyn MachineControl>;
    let above: u64 =
        plan.ram.iter().filter(|range| range.first() >= 1 << 32).map(|range| range.len()).sum();
    let below: u64 = plan.ram.iter().map(|range| range.len()).sum::<u64>() - above;
    let keyboard = Arc::new(I8042::new(machine()));
    let devices: [(u16, u64, Arc<dyn LegacyDevice>); 5] = [
        (layout::SERIAL_PORT, 8, serial),
        (0x70, 2, Arc::new(Rtc::new(below, above))),
        // Both ports of the keyboard controller; the timer's port 0x61 between them is KVM's.
        (0x60, 1, Arc::clone(&keyboard) as _),
        (0x64, 1, keyboard),
        (layout::PM_BASE, acpi_pm::SIZE, Arc::new(AcpiPm::new(machine()))),
    ];
    for (port, len, device) in &devices {
        let (port, len) = (*port, *len);
        let range = AddressRange::new(u64::from(port), len).expect("a few ports from a fixed one");
        bus.insert_pio(range, Arc::clone(device) as PioTarget)
            .map_err(|error| internal("placing a device")(io::Error::other(error)))?;
    }
    Ok(devices.map(|(.., device)| device).into())
}

fn root_complex(
    plan: &Plan,
    bus: &Arc<Bus>,
    mapper: Arc<Memslots>,
    control: &Arc<Control>,
    gate: &Arc<dyn BusMasterGate>,
    routes: &Arc<Routes>,
) -> Result<Arc<RootComplex>, Failure> {
    let chipset = AddressRange::inclusive(layout::CHIPSET_START, u64::from(u32::MAX));
    RootComplex::new(RootParts {
        bus: Arc::clone(bus),
        mapper: mapper as Arc<dyn GuestMapper>,
        control: Arc::clone(control) as Arc<dyn MachineControl>,
        gate: Arc::clone(gate),
        ecam: plan.ecam,
        forbidden: plan.ram.iter().copied().chain(chipset).collect(),
        physical_bits: plan.physical_bits,
        power: layout::PM_BASE,
        root_complex: layout::RCBA as u32,
        lines: layout::PCI_IRQS,
        router: Arc::clone(routes) as Arc<dyn LineRouter>,
    })
    .map_err(|error| internal("placing the root complex")(io::Error::other(error)))
}

/// A device that dies, and one that the host wants back, end the guest.
fn watch(events: &mut EventLoop, devices: &Opened, selection: &Selection) -> Result<(), Failure> {
    for (bdf, device) in devices.iter(&selection.slots) {
        for index in [IrqIndex::Error, IrqIndex::Request] {
            if device.irq(index).count == 0 {
                continue;
            }
            let event =
                EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(internal("making an eventfd"))?;
            if let Err(error) = device.set_triggers(index, 0, &[Some(&event)]) {
                log::warn!("{bdf} does not report {index:?} events: {error}");
                continue;
            }
            match index {
                IrqIndex::Error => events.add_device_error(bdf.to_string(), event),
                _ => events.add_device_request(bdf.to_string(), event),
            }
        }
    }
    Ok(())
}

pub(crate) fn apic_ids(config: &RunConfig) -> Vec<u32> {
    let topology = config.cpu.topology();
    (0..u32::from(config.cpu.count.get())).map(|index| apic_id(index, topology)).collect()
}

fn vcpus(
    config: &RunConfig,
    host: &Host,
    vm: &Vm,
    supported: &CpuId,
) -> Result<Vec<Vcpu>, Failure> {
    let msr_indices = host.msr_indices()?;
    let tsc_invariant = cpu::tsc_is_vouched_for(&Sysroot::host())?;
    let cpu = &config.cpu;
    host.check_vcpus(usize::from(cpu.count.get()))?;
    if is_amd(supported.as_slice()) {
        vm.answer_hwcr();
    }
    if cpu.nested && !can_nest(supported.as_slice()) {
        let cause = "--cpu nested=on: this host's KVM gives guests no virtualization of their own";
        return Err(Failure::new(&codes::E1005, cause, "leave nested=on out"));
    }
    if !cpu.pmu {
        vm.give_no_counters();
    }
    let hidden = cpu.hide != Hide::No;
    apic_ids(config)
        .into_iter()
        .enumerate()
        .map(|(index, apic_id)| {
            let cpuid = |tsc_khz| {
                let spec = CpuidSpec {
                    apic_id,
                    cpus: u32::from(cpu.count.get()),
                    topology: cpu.topology(),
                    physical_bits: None,
                    hide: cpu.hide,
                    hv_vendor: cpu.hv_vendor,
                    tsc_khz,
                    tsc_invariant,
                    apic_khz: KVM_APIC_KHZ,
                    tsc_deadline: host.has_tsc_deadline(),
                    pmu: cpu.pmu,
                    nested: cpu.nested,
                };
                CpuId::from_entries(&guest_cpuid(supported.as_slice(), &spec)).map_err(|error| {
                    internal("building CPUID")(io::Error::other(format!("{error:?}")))
                })
            };
            Vcpu::new(vm.fd(), index, apic_id, cpuid, hidden, &msr_indices)
        })
        .collect()
}

/// Something that works on every host that got this far did not.
pub(crate) fn internal(what: &'static str) -> impl Fn(io::Error) -> Failure {
    move |error| {
        let fix = "look at the host's kernel log (dmesg) and at open-file limits (ulimit -n)";
        Failure::new(&codes::E9001, format!("{what} failed"), fix).source(error)
    }
}
