//! `--json`: the document is docs/json.md.

use serde::Serialize;
use strait_resources::host::aer::Errors;

use crate::inspect::{
    facts::{DeviceFacts, Facts},
    guest::{Activity, Bar, Interrupts, Rom},
    verdict::{Cause, Seen, Verdict},
};

const SCHEMA: &str = "strait.inspect/1";

#[derive(Serialize)]
pub(crate) struct Answer {
    schema: &'static str,
    version: String,
    pid: u32,
    command: Vec<String>,
    seconds: u64,
    cpus: u8,
    memory: u64,
    kvm_visible: bool,
    hypervisor_visible: bool,
    fake_battery: bool,
    p2p: bool,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    id: String,
    bdf: String,
    guest: String,
    driver: Option<String>,
    power_state: Option<String>,
    alive: bool,
    shown_as: Option<String>,
    bars: Vec<Bar>,
    memory_decode: bool,
    bus_master: bool,
    interrupts: InterruptAnswer,
    resets: Resets,
    rom: Rom,
    rom_read: bool,
    dead_reads: u64,
    activity: Activity,
    iommu_faults: Option<Vec<String>>,
    errors: ErrorAnswer,
    left_behind: Vec<String>,
    verdict: VerdictAnswer,
}

#[derive(Serialize)]
struct ErrorAnswer {
    counted: bool,
    correctable: Vec<Counted>,
    nonfatal: Vec<Counted>,
    fatal: Vec<Counted>,
    status: Option<StatusAnswer>,
    log: Option<Vec<String>>,
}

#[derive(Serialize)]
struct Counted {
    name: String,
    count: u64,
}

#[derive(Serialize)]
struct StatusAnswer {
    correctable: Vec<&'static str>,
    nonfatal: Vec<&'static str>,
    fatal: Vec<&'static str>,
}

#[derive(Serialize)]
struct InterruptAnswer {
    mode: Interrupts,
    vectors: u32,
    connected: u64,
    delivered: Option<u64>,
    per_second: Option<u64>,
    posted: bool,
}

#[derive(Serialize)]
struct Resets {
    requested: u64,
    worked: u64,
}

#[derive(Serialize)]
struct VerdictAnswer {
    healthy: bool,
    text: String,
    causes: Vec<CauseAnswer>,
}

#[derive(Serialize)]
struct CauseAnswer {
    seen: Option<bool>,
    what: String,
    fix: Option<String>,
}

pub(crate) fn answer(facts: &Facts, verdicts: &[Verdict]) -> Answer {
    let guest = facts.guest.clone();
    Answer {
        schema: SCHEMA,
        version: guest.version,
        pid: guest.pid,
        command: guest.command,
        seconds: guest.seconds,
        cpus: guest.cpus,
        memory: guest.memory,
        kvm_visible: guest.kvm_visible,
        hypervisor_visible: guest.hypervisor_visible,
        fake_battery: guest.fake_battery,
        p2p: guest.p2p,
        devices: facts.devices.iter().zip(verdicts).map(device).collect(),
    }
}

fn device((facts, verdict): (&DeviceFacts, &Verdict)) -> Device {
    let device = facts.device.clone();
    let host = facts.host.as_ref();
    Device {
        id: device.id,
        bdf: device.host.to_string(),
        guest: device.guest.to_string(),
        driver: host.and_then(|host| host.driver.clone()),
        power_state: host.and_then(|host| host.power_state.clone()),
        alive: !device.lost && host.is_some_and(|host| !host.is_dead()),
        shown_as: device.shown_as,
        bars: device.bars,
        memory_decode: device.memory_decode,
        bus_master: device.bus_master,
        interrupts: InterruptAnswer {
            mode: device.interrupts,
            vectors: device.vectors,
            connected: device.vectors_connected,
            delivered: facts.delivered,
            per_second: facts.per_second,
            posted: facts.posted,
        },
        resets: Resets { requested: device.resets + device.failed_resets, worked: device.resets },
        rom: device.rom,
        rom_read: device.rom_read,
        dead_reads: device.dead_reads,
        activity: device.activity,
        iommu_faults: facts.faults.clone(),
        errors: errors(facts),
        left_behind: facts.left_behind.iter().map(ToString::to_string).collect(),
        verdict: VerdictAnswer {
            healthy: verdict.healthy,
            text: verdict.text.clone(),
            causes: verdict.causes.iter().map(cause).collect(),
        },
    }
}

fn errors(facts: &DeviceFacts) -> ErrorAnswer {
    let counts = facts.errors.clone().unwrap_or_default();
    let counted = |errors: Errors| {
        errors.into_iter().map(|(name, count)| Counted { name, count }).collect::<Vec<_>>()
    };
    ErrorAnswer {
        counted: facts.errors.is_some(),
        correctable: counted(counts.correctable),
        nonfatal: counted(counts.nonfatal),
        fatal: counted(counts.fatal),
        status: facts.error_status.clone().map(|status| StatusAnswer {
            correctable: status.correctable,
            nonfatal: status.nonfatal,
            fatal: status.fatal,
        }),
        log: facts.error_log.clone(),
    }
}

fn cause(cause: &Cause) -> CauseAnswer {
    CauseAnswer {
        seen: match cause.seen {
            Seen::Yes => Some(true),
            Seen::No => Some(false),
            Seen::Unknown => None,
        },
        what: cause.what.clone(),
        fix: Some(cause.fix.clone()).filter(|fix| !fix.is_empty()),
    }
}
