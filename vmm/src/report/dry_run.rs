//! The machine as `--dry-run` shows it: what boots, the address map, each passed function with its place and BARs.

use std::fmt::Write as _;

use strait_arch::plan::{BarPlan, FunctionPlan, Plan, PortPlan, xorg_bus_id};
use strait_devices::pci::{
    caps,
    regs::{HEADER_SIZE, INTERRUPT_PIN, STATUS, STATUS_CAPABILITIES, capability, msi, msix},
};
use strait_resources::{
    bar::{BarIndex, BarKind},
    bdf::Bdf,
    host::{pci::HostFunction, reset::Way},
    names::{self, Names},
    size::Size,
};

use super::{QUIET, STRONG, labelled, plain, shortened};
use crate::{
    config::{After, BootMode, Cpu, Hide, Identity, Idle, Pages, Pin, RunConfig, Serial, Smbios},
    looked::PeerDma,
    passthrough::Extra,
    smbios::uuid_text,
};

/// What a line of the picture and of the lists may take.
const COLUMNS: usize = 100;
/// Room for the first word of a line: the longest is `interrupts`.
const LABEL: usize = 10;

/// The whole text. `functions` are the passed ones with the IDs the guest sees, in any order.
pub(super) fn render(
    config: &RunConfig,
    names: &Names,
    functions: &[(&HostFunction, Identity, &Way)],
    extra: impl Fn(Bdf) -> Extra,
    plan: &Plan,
    p2p: PeerDma,
) -> String {
    let mut text = String::new();
    let has_devices = !plan.ports.is_empty();
    heading(&mut text, "Machine");
    machine(&mut text, config, p2p);
    heading(&mut text, "Addresses");
    text.push_str(&plan.picture(COLUMNS));
    if has_devices {
        heading(&mut text, "Devices");
    }
    for (port, function) in plan
        .ports
        .iter()
        .flat_map(|port| port.functions.iter().map(move |function| (port, function)))
    {
        let known = functions.iter().find(|(host, ..)| host.bdf == function.host);
        device(&mut text, port, function, known.copied(), names);
        extras(&mut text, extra(function.host));
    }
    let _ = writeln!(
        text,
        "\n{QUIET}Nothing was touched. The same without --dry-run starts this machine.{QUIET:#}"
    );
    text
}

fn heading(text: &mut String, title: &str) {
    let gap = if text.is_empty() { "" } else { "\n" };
    let _ = writeln!(text, "{gap}{STRONG}{title}{STRONG:#}");
}

fn line(text: &mut String, label: &str, value: &str) {
    let value = plain(value);
    let _ = writeln!(text, "  {QUIET}{label:LABEL$}{QUIET:#}  {value}");
}

fn machine(text: &mut String, config: &RunConfig, p2p: PeerDma) {
    let kernel = &config.kernel;
    let entry = match kernel.boot {
        BootMode::Auto => "by PVH where it has that entry, else by the bzImage's 64-bit entry",
        BootMode::Pvh => "by PVH",
        BootMode::BzImage => "by the bzImage's 64-bit entry",
    };
    line(text, "kernel", &format!("{}, {entry}", kernel.path.display()));
    if let Some(initramfs) = &kernel.initramfs {
        line(text, "initramfs", &initramfs.display().to_string());
    }
    line(text, "cmdline", &kernel.cmdline);
    line(text, "CPUs", &cpus(&config.cpu));
    let pages = match config.memory.pages {
        Pages::Default => "in transparent huge pages where the host has them",
        Pages::Huge2M => "in huge pages of 2 MiB",
        Pages::Huge1G => "in huge pages of 1 GiB",
    };
    let pinned = match config.memory.pin {
        _ if config.vfio.is_empty() => "",
        Pin::Auto => "",
        Pin::Eager => ", pinned before the guest starts",
        Pin::Behind => ", pinned while the guest boots",
    };
    line(text, "memory", &format!("{} {pages}{pinned}", Size(config.memory.size)));
    let serial = match &config.serial {
        Serial::Stdio => "standard input and output".to_owned(),
        Serial::None => "nowhere".to_owned(),
        Serial::File(path) => format!("file {}", path.display()),
        Serial::Socket(path) => format!("socket {}", path.display()),
    };
    line(text, "serial", &serial);
    for table in &config.acpi {
        let from = table
            .path
            .as_ref()
            .map_or("a battery of strait's".to_owned(), |path| format!("from {}", path.display()));
        line(text, "ACPI", &format!("{}, {from}", table.name));
    }
    labelled(text, COLUMNS, LABEL, "SMBIOS", &smbios(&config.smbios));
    let p2p = match p2p {
        PeerDma::Asked => "on".to_owned(),
        PeerDma::Refused => "off".to_owned(),
        p2p => format!("{}: {}", if p2p.is_on() { "on" } else { "off" }, p2p.why()),
    };
    line(text, "P2P", &p2p);
}

/// `uuid 123e4567-..., manufacturer strait`.
fn smbios(smbios: &Smbios) -> String {
    let texts = [
        ("uuid", smbios.uuid.map(uuid_text)),
        ("manufacturer", smbios.manufacturer.clone()),
        ("product", smbios.product.clone()),
        ("version", smbios.version.clone()),
        ("serial", smbios.serial.clone()),
        ("SKU", smbios.sku.clone()),
        ("family", smbios.family.clone()),
        ("asset", smbios.asset.clone()),
    ];
    let mut parts: Vec<String> =
        texts.into_iter().filter_map(|(what, text)| Some(format!("{what} {}", text?))).collect();
    match smbios.oem.len() {
        0 => {}
        1 => parts.push("an OEM string".to_owned()),
        count => parts.push(format!("{count} OEM strings")),
    }
    parts.join(", ")
}

fn cpus(cpu: &Cpu) -> String {
    let (count, cores, threads) =
        (cpu.count.get(), cpu.cores_per_package.get(), cpu.threads_per_core.get());
    let packages = usize::from(count) / (usize::from(cores) * usize::from(threads)).max(1);
    let mut text = format!("{count}: {packages} x {cores} x {threads} (packages, cores, threads)");
    match cpu.hide {
        Hide::No => {}
        Hide::Kvm => text.push_str(", no KVM leaf"),
        Hide::All => text.push_str(", no KVM leaf, no hypervisor bit"),
    }
    if cpu.idle == Idle::Native {
        text.push_str(", idle natively");
    }
    if cpu.nested {
        text.push_str(", nested virtualization");
    }
    if cpu.pmu {
        text.push_str(", performance counters");
    }
    if !cpu.core_sched {
        text.push_str(", cores shared with other programs");
    }
    if let Some(vendor) = cpu.hv_vendor {
        let printable = String::from_utf8_lossy(&vendor);
        let _ = write!(text, ", hypervisor vendor \"{}\"", printable.trim_end_matches('\0'));
    }
    text
}

fn device(
    text: &mut String,
    port: &PortPlan,
    function: &FunctionPlan,
    known: Option<(&HostFunction, Identity, &Way)>,
    names: &Names,
) {
    let host = known.map(|(host, ..)| host);
    let name = host.map(|host| names.function(host)).unwrap_or_default();
    let room = COLUMNS.saturating_sub(16);
    let _ = writeln!(text, "  {STRONG}{}{STRONG:#}  {}", function.host, shortened(&name, room));
    let guest = format!(
        "{}, Xorg BusID \"{}\", behind root port {} ({})",
        short(function.at),
        xorg_bus_id(function.at),
        short(port.at),
        port.id
    );
    line(text, "guest", &guest);
    if let Some(host) = host {
        if let Some(shown) = known.and_then(|(_, identity, _)| other_ids(host, identity)) {
            line(text, "IDs", &shown);
        }
        line(text, "host", &facts(host));
        if let Some((.., reset)) = known {
            line(text, "reset", &reset.to_string());
        }
        line(text, "interrupts", &interrupts(host));
    }
    let sizes = function.bars.iter().map(|bar| Size(bar.spec.size).to_string().len());
    let size_column = sizes.max().unwrap_or(0);
    for bar in &function.bars {
        let kind = kind(bar.spec.kind);
        let size = Size(bar.spec.size).to_string();
        let note = note(bar, host);
        line(
            text,
            &bar.spec.index.to_string(),
            &format!("{kind:19}  {size:>size_column$}  {}{note}", bar.at),
        );
    }
}

/// What goes beyond what every function gets.
fn extras(text: &mut String, extra: Extra) {
    if !extra.atomics.is_none() {
        let widths: Vec<String> = extra.atomics.widths().iter().map(u8::to_string).collect();
        let words = format!("of {} bits, completed by the host's root port", widths.join(", "));
        line(text, "atomics", &words);
    }
    if extra.after == After::Vfio {
        line(text, "after", "stays on vfio-pci until strait unbind (after=vfio)");
    }
    if extra.trust_guest {
        line(text, "trust", "goes back to the host even where nothing resets it (trust-guest=on)");
    }
    if extra.raw_config {
        line(
            text,
            "config",
            "writes outside of capabilities reach the device from 0x100 on (raw-config=on)",
        );
    }
}

/// What the guest sees instead, where that differs.
fn other_ids(host: &HostFunction, identity: Identity) -> Option<String> {
    let pair = |vendor: u16, device: u16| format!("{vendor:04x}:{device:04x}");
    let Identity { vendor, device, subsystem_vendor, subsystem } = identity;
    let own = pair(host.vendor, host.device);
    let shown = pair(vendor.unwrap_or(host.vendor), device.unwrap_or(host.device));
    let (board_vendor, board) = (host.subsystem_vendor, host.subsystem_device);
    let own_board = pair(board_vendor, board);
    let shown_board = pair(subsystem_vendor.unwrap_or(board_vendor), subsystem.unwrap_or(board));
    let differs =
        |own: &String, shown: &String| (own != shown).then(|| format!("{shown} for {own}"));
    let ids = differs(&own, &shown);
    let board = differs(&own_board, &shown_board).map(|ids| format!("subsystem {ids}"));
    let all: Vec<String> = ids.into_iter().chain(board).collect();
    (!all.is_empty()).then(|| format!("the guest sees {}", all.join(", ")))
}

fn facts(host: &HostFunction) -> String {
    let mut facts = vec![names::class(host.class)];
    facts.push(match host.group {
        Some(group) => format!("IOMMU group {group}"),
        None => "no IOMMU group".to_owned(),
    });
    facts.push(match &host.driver {
        Some(driver) => format!("driver {driver}"),
        None => "no driver".to_owned(),
    });
    if let Some(node) = host.numa_node {
        facts.push(format!("NUMA node {node}"));
    }
    facts.join(", ")
}

/// What the function says it can do. The kernel may grant fewer vectors; that is known when it is opened.
pub(crate) fn interrupts(host: &HostFunction) -> String {
    let config = &host.config;
    let mut kinds = Vec::new();
    match config.get(usize::from(INTERRUPT_PIN)) {
        Some(pin @ 1..=4) => kinds.push(format!("INT{}", char::from(b'A' + pin - 1))),
        Some(_) => {}
        None => return "unknown: config space cannot be read".to_owned(),
    }
    for entry in caps::capabilities(config) {
        let control = |at| caps::read16(config, entry.offset + at);
        match entry.id {
            capability::MSI => kinds.extend(control(msi::CONTROL).map(|control| {
                let log2 = (control & msi::CONTROL_CAPABLE) >> msi::CONTROL_CAPABLE_SHIFT;
                format!("MSI ({})", 1_u32 << log2)
            })),
            capability::MSIX => kinds
                .extend(control(msix::CONTROL).map(|control| {
                    format!("MSI-X ({})", (control & msix::CONTROL_TABLE_SIZE) + 1)
                })),
            _ => {}
        }
    }
    let has_more = caps::read16(config, STATUS).unwrap_or(0) & STATUS_CAPABILITIES != 0;
    if has_more && config.len() <= usize::from(HEADER_SIZE) {
        kinds.push("others only root can see".to_owned());
    }
    if kinds.is_empty() { "none".to_owned() } else { kinds.join(", ") }
}

fn note(bar: &BarPlan, host: Option<&HostFunction>) -> &'static str {
    let on_host = host.and_then(|host| host.bars.iter().find(|spec| spec.index == bar.spec.index));
    let is = |kind: BarKind, prefetchable: bool| kind == BarKind::Memory64 { prefetchable };
    if is(bar.spec.kind, true) && on_host.is_some_and(|spec| is(spec.kind, false)) {
        return " (host: 64-bit)";
    }
    match (bar.dma_reachable, bar.spec.kind.is_memory(), bar.spec.index) {
        (false, true, index) if index != BarIndex::ROM => " (no DMA by peers)",
        _ => "",
    }
}

const fn kind(kind: BarKind) -> &'static str {
    match kind {
        BarKind::Io => "I/O ports",
        BarKind::Memory32 { prefetchable: false } => "32-bit",
        BarKind::Memory32 { prefetchable: true } => "32-bit prefetchable",
        BarKind::Memory64 { prefetchable: false } => "64-bit",
        BarKind::Memory64 { prefetchable: true } => "64-bit prefetchable",
        BarKind::Rom => "32-bit",
    }
}

/// The guest has one segment: it goes without saying.
fn short(bdf: Bdf) -> String {
    format!("{:02x}:{:02x}.{:x}", bdf.bus(), bdf.device(), bdf.function())
}

#[cfg(test)]
mod tests;
