//! `--dry-run --json`: the document is docs/json.md.

use std::collections::BTreeSet;

use serde::Serialize;
use strait_arch::{
    boot::BootMode,
    plan::{BarPlan, FunctionPlan, PortPlan},
    smbios::Identity,
};
use strait_resources::{
    failure::Failure,
    host::{
        iommu,
        pci::HostFunction,
        reset::Way,
        smt::{self, CoreScheduling},
        sysroot::{SysError, Sysroot},
    },
    names::Names,
    range::AddressRange,
};

use crate::{
    config::{Cpu, Hide, Idle, Pages, Pin, RunConfig, Serial},
    core_sched,
    inspect::guest,
    looked::Draft,
    report::{Refusal, dry_run},
    smbios,
    tsc::{self, Told},
};

const SCHEMA: &str = "strait.plan/1";

#[derive(Serialize)]
pub(crate) struct Answer {
    schema: &'static str,
    version: &'static str,
    kernel: Kernel,
    cpus: Cpus,
    memory: Memory,
    serial_port: String,
    acpi: Vec<Table>,
    smbios: Smbios,
    p2p: bool,
    p2p_reason: &'static str,
    addresses: Addresses,
    ports: Vec<Port>,
    devices: Vec<Device>,
    groups: Vec<Group>,
    take: Vec<Taking>,
    warnings: Vec<Refusal>,
}

#[derive(Serialize)]
struct Kernel {
    path: String,
    initramfs: Option<String>,
    cmdline: String,
    tsc: Option<&'static str>,
    boot: &'static str,
}

#[derive(Serialize)]
struct Cpus {
    count: u8,
    packages: u8,
    cores: u8,
    threads: u8,
    hide: &'static str,
    hv_vendor: Option<String>,
    idle: &'static str,
    nested: bool,
    pmu: bool,
    core_sched: &'static str,
}

#[derive(Serialize)]
struct Memory {
    size: u64,
    pages: &'static str,
    pin: &'static str,
}

#[derive(Serialize)]
struct Table {
    name: String,
    file: Option<String>,
}

#[derive(Serialize)]
struct Smbios {
    uuid: String,
    manufacturer: String,
    product: String,
    version: String,
    serial: String,
    sku: String,
    family: String,
    asset: String,
    oem: Vec<String>,
}

#[derive(Clone, Copy, Serialize)]
struct Range {
    first: u64,
    last: u64,
}

#[derive(Serialize)]
struct Addresses {
    physical_bits: u8,
    ram: Vec<Range>,
    ecam: Range,
    io: Range,
    mmio32: Range,
    mmio64: Option<Range>,
    holes: Vec<Hole>,
    unassigned: Vec<Unassigned>,
}

#[derive(Serialize)]
struct Hole {
    first: u64,
    last: u64,
    why: &'static str,
}

#[derive(Serialize)]
struct Unassigned {
    bdf: String,
    index: Option<u8>,
    size: u64,
}

#[derive(Serialize)]
struct Port {
    id: String,
    guest: String,
    bus: u8,
    io: Option<Range>,
    memory: Option<Range>,
    prefetchable: Option<Range>,
}

#[derive(Serialize)]
struct Device {
    bdf: String,
    ids: String,
    name: String,
    guest: String,
    port: String,
    driver: Option<String>,
    group: Option<u32>,
    numa_node: Option<u32>,
    shown_as: Option<String>,
    interrupts: String,
    raw_config: bool,
    after: &'static str,
    trust_guest: bool,
    atomics: Vec<u8>,
    reset: Reset,
    bars: Vec<Bar>,
}

#[derive(Serialize)]
struct Reset {
    way: &'static str,
    methods: Vec<String>,
    others: Vec<String>,
}

#[derive(Serialize)]
struct Bar {
    index: Option<u8>,
    kind: &'static str,
    prefetchable: bool,
    size: u64,
    first: u64,
    last: u64,
    dma_reachable: bool,
}

#[derive(Serialize)]
struct Group {
    group: u32,
    members: Vec<Member>,
}

#[derive(Serialize)]
struct Member {
    bdf: String,
    driver: Option<String>,
    passed: bool,
}

#[derive(Serialize)]
struct Taking {
    bdf: String,
    driver: Option<String>,
    framebuffer: Option<String>,
    asked_for: bool,
}

/// Of a machine that was only looked at.
pub(crate) fn answer(
    sysroot: &Sysroot,
    config: &RunConfig,
    draft: &Draft,
    names: &Names,
) -> Result<Answer, Failure> {
    let Draft { selection, plan, binding, p2p } = draft;
    let taking = |taking: &strait_resources::host::check::Taking| Taking {
        bdf: taking.function.bdf.to_string(),
        driver: taking.function.driver.clone(),
        framebuffer: taking.framebuffer.as_ref().map(|found| found.name.clone()),
        asked_for: !taking.along,
    };
    let holes = plan.holes.iter().map(|hole| {
        let Range { first, last } = range(hole.range);
        Hole { first, last, why: hole.why }
    });
    let unassigned = plan.unassigned.iter().map(|(bdf, spec)| Unassigned {
        bdf: bdf.to_string(),
        index: spec.index.number(),
        size: spec.size,
    });
    let places = plan
        .ports
        .iter()
        .flat_map(|port| port.functions.iter().map(move |function| (port, function)));
    let devices = places.map(|(port, function)| device(draft, names, port, function));
    let table = |table: &crate::config::AcpiTable| Table {
        name: table.name.to_string(),
        file: table.path.as_ref().map(|path| path.display().to_string()),
    };
    Ok(Answer {
        schema: SCHEMA,
        version: env!("CARGO_PKG_VERSION"),
        kernel: kernel(sysroot, config),
        cpus: cpus(&config.cpu, smt::core_scheduling(sysroot)?),
        memory: memory(config),
        serial_port: match &config.serial {
            Serial::Stdio => "stdio".to_owned(),
            Serial::None => "none".to_owned(),
            Serial::File(path) => format!("file={}", path.display()),
            Serial::Socket(path) => format!("socket={}", path.display()),
        },
        acpi: config.acpi.iter().map(table).collect(),
        smbios: smbios(smbios::identity(sysroot, config)),
        p2p: p2p.is_on(),
        p2p_reason: p2p.why(),
        addresses: Addresses {
            physical_bits: plan.physical_bits,
            ram: plan.ram.iter().copied().map(range).collect(),
            ecam: range(plan.ecam),
            io: range(plan.io),
            mmio32: range(plan.mmio32),
            mmio64: plan.mmio64.map(range),
            holes: holes.collect(),
            unassigned: unassigned.collect(),
        },
        ports: plan.ports.iter().map(port).collect(),
        devices: devices.collect(),
        groups: groups(sysroot, draft)?,
        take: binding.take.iter().map(taking).collect(),
        warnings: binding.warnings.iter().chain(&selection.warnings).map(Refusal::from).collect(),
    })
}

fn kernel(sysroot: &Sysroot, config: &RunConfig) -> Kernel {
    let (shown, told) = tsc::shown(sysroot, config);
    let kernel = &shown.kernel;
    Kernel {
        path: kernel.path.display().to_string(),
        initramfs: kernel.initramfs.as_ref().map(|path| path.display().to_string()),
        cmdline: kernel.cmdline.clone(),
        tsc: match told {
            Told::Nothing => None,
            Told::Cpuid => Some("cpuid"),
            Told::Word => Some("cmdline"),
        },
        boot: match kernel.boot {
            BootMode::Auto => "auto",
            BootMode::Pvh => "pvh",
            BootMode::BzImage => "bzimage",
        },
    }
}

fn cpus(cpu: &Cpu, host: CoreScheduling) -> Cpus {
    let (cores, threads) = (cpu.cores_per_package.get(), cpu.threads_per_core.get());
    let vendor = cpu.hv_vendor.map(|vendor| String::from_utf8_lossy(&vendor).into_owned());
    Cpus {
        count: cpu.count.get(),
        packages: cpu.count.get() / cores.saturating_mul(threads),
        cores,
        threads,
        hide: match cpu.hide {
            Hide::No => "no",
            Hide::Kvm => "kvm",
            Hide::All => "all",
        },
        hv_vendor: vendor.map(|vendor| vendor.trim_end_matches('\0').to_owned()),
        idle: match cpu.idle {
            Idle::Halt => "halt",
            Idle::Native => "native",
        },
        nested: cpu.nested,
        pmu: cpu.pmu,
        core_sched: core_sched::word(cpu.core_sched, host),
    }
}

fn smbios(identity: Identity) -> Smbios {
    let Identity { uuid, manufacturer, product, version, serial, sku, family, asset, oem } =
        identity;
    let uuid = smbios::uuid_text(uuid);
    Smbios { uuid, manufacturer, product, version, serial, sku, family, asset, oem }
}

fn memory(config: &RunConfig) -> Memory {
    Memory {
        size: config.memory.size,
        pages: match config.memory.pages {
            Pages::Default => "default",
            Pages::Huge2M => "2M",
            Pages::Huge1G => "1G",
        },
        pin: match config.memory.pin {
            Pin::Auto => "auto",
            Pin::Eager => "eager",
            Pin::Behind => "behind",
        },
    }
}

fn port(port: &PortPlan) -> Port {
    Port {
        id: port.id.clone(),
        guest: port.at.to_string(),
        bus: port.bus,
        io: port.io.map(range),
        memory: port.memory.map(range),
        prefetchable: port.prefetchable.map(range),
    }
}

fn device(draft: &Draft, names: &Names, port: &PortPlan, function: &FunctionPlan) -> Device {
    let known = draft.selection.shown().find(|(host, ..)| host.bdf == function.host);
    let host = known.map(|(host, ..)| host);
    let of = |what: fn(&HostFunction) -> String| host.map(what).unwrap_or_default();
    let extra = draft.selection.extra(function.host);
    Device {
        bdf: function.host.to_string(),
        ids: of(HostFunction::id),
        name: host.map(|host| names.function(host)).unwrap_or_default(),
        guest: function.at.to_string(),
        port: port.id.clone(),
        driver: host.and_then(|host| host.driver.clone()),
        group: host.and_then(|host| host.group),
        numa_node: host.and_then(|host| host.numa_node),
        shown_as: known.and_then(|(host, ids, _)| guest::shown_as((host.vendor, host.device), ids)),
        interrupts: of(dry_run::interrupts),
        raw_config: extra.raw_config,
        after: extra.after.word(),
        trust_guest: extra.trust_guest,
        atomics: extra.atomics.widths(),
        reset: reset(known.map_or(&Way::None, |(.., way)| way)),
        bars: function.bars.iter().map(bar).collect(),
    }
}

fn reset(way: &Way) -> Reset {
    let (way, methods, others) = match way {
        Way::Alone(methods) => ("alone", methods.clone(), Vec::new()),
        Way::Bus(others) => ("bus", Vec::new(), others.clone()),
        Way::Shared(others) => {
            ("shared", Vec::new(), others.iter().map(|other| other.bdf).collect())
        }
        Way::None => ("none", Vec::new(), Vec::new()),
        Way::Off => ("off", Vec::new(), Vec::new()),
    };
    Reset { way, methods, others: others.iter().map(ToString::to_string).collect() }
}

fn bar(bar: &BarPlan) -> Bar {
    let Range { first, last } = range(bar.at);
    Bar {
        index: bar.spec.index.number(),
        kind: bar.spec.kind.name(),
        prefetchable: bar.spec.kind.is_prefetchable(),
        size: bar.spec.size,
        first,
        last,
        dma_reachable: bar.dma_reachable,
    }
}

/// The IOMMU groups of the passed functions, with all their members.
fn groups(sysroot: &Sysroot, draft: &Draft) -> Result<Vec<Group>, SysError> {
    let passed: BTreeSet<_> = draft.selection.functions().map(|host| host.bdf).collect();
    let numbers: BTreeSet<u32> =
        draft.selection.functions().filter_map(|host| host.group).collect();
    let mut groups = Vec::new();
    for group in numbers {
        let member = |member: HostFunction| Member {
            bdf: member.bdf.to_string(),
            passed: passed.contains(&member.bdf),
            driver: member.driver,
        };
        let members = iommu::members(sysroot, group)?.into_iter().map(member).collect();
        groups.push(Group { group, members });
    }
    Ok(groups)
}

fn range(range: AddressRange) -> Range {
    Range { first: range.first(), last: range.last() }
}
