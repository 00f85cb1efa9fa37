//! What `--json` answers. docs/json.md lists every field, and a test compares the two.

use serde::Serialize;
use strait_resources::{
    bar::BarSpec,
    bdf::Bdf,
    failure::Failure,
    host::{
        capabilities::{Capability, Kind},
        inventory::{Entry, Totals, Verdict as Judgement},
        pci::HostFunction,
    },
    names::{self, Names},
};

use super::{is_of, show::Facts};
use crate::cli::DeviceClass;

/// Counts up when a field changes its meaning or goes; a new field does not.
const SCHEMA: &str = "strait.devices/1";

#[derive(Serialize)]
pub(super) struct List {
    schema: &'static str,
    devices: Vec<Device>,
}

#[derive(Serialize)]
pub(super) struct Show {
    schema: &'static str,
    devices: Vec<ShownDevice>,
}

#[derive(Serialize)]
struct Device {
    bdf: String,
    class: String,
    class_name: String,
    kind: Option<&'static str>,
    vendor: String,
    device: String,
    subsystem_vendor: String,
    subsystem_device: String,
    revision: String,
    vendor_name: Option<String>,
    device_name: Option<String>,
    driver: Option<String>,
    group: Option<u32>,
    numa_node: Option<u32>,
    bars: Vec<Bar>,
    address_space: AddressSpace,
    link: Option<Link>,
    reset_methods: Vec<String>,
    power_state: Option<String>,
    boot_vga: Option<bool>,
    physical_function: Option<String>,
    behind: Option<String>,
    slot: Option<String>,
    label: Option<String>,
    serial: Option<String>,
    path: Vec<String>,
    verdict: Verdict,
}

#[derive(Serialize)]
struct Bar {
    /// 0 to 5; `null` is the ROM.
    index: Option<u8>,
    kind: &'static str,
    prefetchable: bool,
    size: u64,
    assigned: bool,
}

#[derive(Serialize)]
struct AddressSpace {
    io: u64,
    memory32: u64,
    memory64: u64,
    rom: u64,
}

#[derive(Serialize)]
struct Link {
    at: String,
    speed: String,
    width: u32,
    max_speed: String,
    max_width: u32,
}

#[derive(Serialize)]
struct Verdict {
    answer: &'static str,
    bind: Vec<String>,
    refusal: Option<Refusal>,
}

#[derive(Serialize)]
struct Refusal {
    code: &'static str,
    cause: String,
    fix: String,
    details: Vec<String>,
}

#[derive(Serialize)]
struct ShownDevice {
    #[serde(flatten)]
    device: Device,
    driver_override: Option<String>,
    driver_stuck: bool,
    siblings: Vec<String>,
    group_members: Vec<String>,
    capabilities: Vec<ShownCapability>,
    uses: Vec<String>,
    holders: Vec<Holder>,
    hidden_processes: usize,
}

#[derive(Serialize)]
struct ShownCapability {
    id: String,
    extended: bool,
    offset: usize,
    name: Option<&'static str>,
    detail: String,
}

#[derive(Serialize)]
struct Holder {
    pid: u32,
    name: String,
    node: String,
}

pub(super) fn list(entries: &[&Entry], names: &Names) -> List {
    List { schema: SCHEMA, devices: entries.iter().map(|entry| device(entry, names)).collect() }
}

pub(super) fn show(shown: &[Facts], names: &Names) -> Show {
    let devices = shown.iter().map(|facts| ShownDevice {
        device: device(&facts.entry, names),
        driver_override: facts.driver_override.clone(),
        driver_stuck: facts.driver_stuck,
        siblings: texts(&facts.siblings),
        group_members: texts(&facts.group_members),
        capabilities: facts
            .capabilities
            .iter()
            .map(|found| capability(*found, &facts.entry.function.config))
            .collect(),
        uses: facts.uses.iter().map(ToString::to_string).collect(),
        holders: facts
            .holders
            .found
            .iter()
            .map(|holder| Holder {
                pid: holder.pid,
                name: holder.name.clone(),
                node: holder.node.clone(),
            })
            .collect(),
        hidden_processes: facts.holders.hidden,
    });
    Show { schema: SCHEMA, devices: devices.collect() }
}

fn device(entry: &Entry, names: &Names) -> Device {
    let function = &entry.function;
    Device {
        bdf: function.bdf.to_string(),
        class: function.class.to_string(),
        class_name: names::class(function.class),
        kind: kind(function),
        vendor: id(function.vendor),
        device: id(function.device),
        subsystem_vendor: id(function.subsystem_vendor),
        subsystem_device: id(function.subsystem_device),
        revision: format!("{:02x}", function.revision),
        vendor_name: names.vendor(function.vendor).map(str::to_owned),
        device_name: names.device(function.vendor, function.device).map(str::to_owned),
        driver: function.driver.clone(),
        group: function.group,
        numa_node: function.numa_node,
        bars: bars(function),
        address_space: address_space(entry.totals),
        link: function.link.as_ref().map(|link| Link {
            at: link.at.to_string(),
            speed: link.speed.clone(),
            width: link.width,
            max_speed: link.max_speed.clone(),
            max_width: link.max_width,
        }),
        reset_methods: function.reset_methods.clone(),
        power_state: function.power_state.clone(),
        boot_vga: function.boot_vga,
        physical_function: function.physical_function.map(|bdf| bdf.to_string()),
        behind: function.behind.map(|bdf| bdf.to_string()),
        slot: entry.slot.clone(),
        label: function.label.clone(),
        serial: entry.serial.map(|serial| format!("{serial:016x}")),
        path: texts(&entry.path),
        verdict: verdict(&entry.verdict),
    }
}

fn kind(function: &HostFunction) -> Option<&'static str> {
    [
        (DeviceClass::Gpu, "gpu"),
        (DeviceClass::Nic, "nic"),
        (DeviceClass::Nvme, "nvme"),
        (DeviceClass::Usb, "usb"),
    ]
    .into_iter()
    .find(|(class, _)| is_of(*class, function.class))
    .map(|(_, name)| name)
}

fn bars(function: &HostFunction) -> Vec<Bar> {
    let bar = |spec: &BarSpec| Bar {
        index: spec.index.number(),
        kind: spec.kind.name(),
        prefetchable: spec.kind.is_prefetchable(),
        size: spec.size,
        assigned: !function.unassigned.contains(&spec.index),
    };
    function.bars.iter().map(bar).collect()
}

const fn address_space(totals: Totals) -> AddressSpace {
    let Totals { io, memory32, memory64, rom } = totals;
    AddressSpace { io, memory32, memory64, rom }
}

fn verdict(verdict: &Judgement) -> Verdict {
    match verdict {
        Judgement::Assignable => Verdict { answer: "assignable", bind: Vec::new(), refusal: None },
        Judgement::AfterBinding(bind) => {
            Verdict { answer: "after-binding", bind: texts(bind), refusal: None }
        }
        Judgement::No(failure) => {
            Verdict { answer: "no", bind: Vec::new(), refusal: Some(refusal(failure)) }
        }
    }
}

fn refusal(failure: &Failure) -> Refusal {
    Refusal {
        code: failure.code.id,
        cause: failure.cause.clone(),
        fix: failure.fix.clone(),
        details: failure.details.clone(),
    }
}

fn capability(found: Capability, config: &[u8]) -> ShownCapability {
    let extended = found.kind == Kind::Extended;
    let id = if extended { format!("{:04x}", found.id) } else { format!("{:02x}", found.id) };
    ShownCapability {
        id,
        extended,
        offset: found.offset,
        name: found.name(),
        detail: found.detail(config),
    }
}

fn id(id: u16) -> String {
    format!("{id:04x}")
}

fn texts(bdfs: &[Bdf]) -> Vec<String> {
    bdfs.iter().map(Bdf::to_string).collect()
}
