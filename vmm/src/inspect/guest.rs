//! What only the monitor knows of its guest and the devices in it, at one moment. Counters are read, nothing is
//! stopped or asked: it costs the guest nothing.

use std::{env, sync::Arc, time::Instant};

use serde::{Deserialize, Serialize};
use strait_arch::plan::Plan;
use strait_devices::{
    pci::function::BarLayout,
    vfio::{
        life::{InterruptMode, LifeSigns},
        rom::RomSource,
    },
};
use strait_resources::{
    bar::BarIndex,
    bdf::Bdf,
    host::{aer, sysroot::Sysroot},
};

use crate::config::{Hide, Identity, RunConfig};

/// One line on the socket. Both ends are strait, maybe of different versions: a field that is new must have a default.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Guest {
    /// strait's.
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) command: Vec<String>,
    /// Its configuration, when a file was part of it.
    #[serde(default)]
    pub(crate) config: Option<String>,
    /// Since the machine was built.
    pub(crate) seconds: u64,
    pub(crate) cpus: u8,
    /// Bytes.
    pub(crate) memory: u64,
    /// Does the guest see KVM's CPUID leaf?
    pub(crate) kvm_visible: bool,
    /// Does it see that there is a hypervisor at all?
    pub(crate) hypervisor_visible: bool,
    pub(crate) fake_battery: bool,
    /// Do its devices reach each other's BARs by DMA?
    #[serde(default)]
    pub(crate) p2p: bool,
    pub(crate) devices: Vec<Device>,
}

/// One passed function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Device {
    /// The user's name for its slot.
    pub(crate) id: String,
    #[serde(with = "strait_resources::journal::text")]
    pub(crate) host: Bdf,
    #[serde(with = "strait_resources::journal::text")]
    pub(crate) guest: Bdf,
    pub(crate) rom: Rom,
    /// IDs that the guest sees instead of the device's, `10de:1e07`.
    pub(crate) shown_as: Option<String>,
    pub(crate) bars: Vec<Bar>,
    /// A BAR decoded once.
    pub(crate) memory_decode: bool,
    /// The guest let it reach RAM once.
    pub(crate) bus_master: bool,
    pub(crate) interrupts: Interrupts,
    /// Connected now.
    pub(crate) vectors: u32,
    /// How often one was connected.
    pub(crate) vectors_connected: u64,
    pub(crate) resets: u64,
    pub(crate) failed_resets: u64,
    pub(crate) rom_read: bool,
    /// It did not answer after its last reset.
    pub(crate) lost: bool,
    /// Configuration reads that found nobody there.
    #[serde(default)]
    pub(crate) dead_reads: u64,
    /// When the guest last did something to it.
    #[serde(default)]
    pub(crate) activity: Activity,
    /// What the host had counted before the guest was started.
    #[serde(default)]
    pub(crate) errors_before: Option<aer::Counters>,
}

/// Seconds ago; `None`: never. What a guest does without leaving itself, and interrupts, are not among it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Activity {
    /// Configuration space accessed.
    pub(crate) config: Option<u64>,
    /// A trapped part of a BAR accessed.
    pub(crate) bar: Option<u64>,
    /// A vector connected, disconnected or moved.
    pub(crate) interrupts: Option<u64>,
}

/// Where its expansion ROM comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Rom {
    /// From the device.
    Device,
    /// From a file.
    File,
    /// There is none.
    None,
}

/// How it interrupts now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Interrupts {
    /// Not at all.
    None,
    /// By its pin.
    Intx,
    /// By messages.
    Msi,
    /// The same, more of them.
    Msix,
}

/// One BAR as the guest has it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Bar {
    /// 0 to 5; `None`: the expansion ROM.
    pub(crate) index: Option<u8>,
    /// `io`, `memory32`, `memory64`, `rom`.
    pub(crate) kind: String,
    pub(crate) size: u64,
    /// What the guest wrote there.
    pub(crate) address: u64,
    /// Does it answer there now?
    pub(crate) decoded: bool,
    /// Bytes that the guest reaches without leaving itself.
    pub(crate) direct: u64,
}

/// What goes into each answer.
pub(crate) struct Subject {
    since: Instant,
    fixed: Guest,
    watched: Vec<Watched>,
}

/// A passed function while it is built.
pub(crate) struct Watched {
    pub(crate) id: String,
    pub(crate) host: Bdf,
    pub(crate) guest: Bdf,
    pub(crate) rom: Rom,
    pub(crate) shown_as: Option<String>,
    pub(crate) layouts: Vec<BarLayout>,
    pub(crate) life: Arc<LifeSigns>,
    pub(crate) errors_before: Option<aer::Counters>,
}

impl Subject {
    /// Of the machine that is being built; `p2p`: it has mappings of BARs for other devices.
    pub(crate) fn new(
        config: &RunConfig,
        file: Option<String>,
        plan: &Plan,
        p2p: bool,
        watched: Vec<Watched>,
    ) -> Self {
        let memory = plan.ram.iter().map(|range| range.len()).sum();
        let fixed = Guest {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            command: env::args().collect(),
            config: file,
            seconds: 0,
            cpus: config.cpu.count.get(),
            memory,
            kvm_visible: config.cpu.hide == Hide::No,
            hypervisor_visible: config.cpu.hide != Hide::All,
            fake_battery: config.acpi.iter().any(|table| table.path.is_none()),
            p2p,
            devices: Vec::new(),
        };
        Self { since: Instant::now(), fixed, watched }
    }

    /// A machine without devices.
    #[cfg(test)]
    pub(super) fn nothing() -> Self {
        let fixed = Guest {
            version: String::new(),
            pid: std::process::id(),
            command: Vec::new(),
            config: None,
            seconds: 0,
            cpus: 1,
            memory: 0,
            kvm_visible: true,
            hypervisor_visible: true,
            fake_battery: false,
            p2p: false,
            devices: Vec::new(),
        };
        Self { since: Instant::now(), fixed, watched: Vec::new() }
    }

    /// How it is now.
    pub(crate) fn answer(&self) -> Guest {
        Guest {
            seconds: self.since.elapsed().as_secs(),
            devices: self.watched.iter().map(Watched::answer).collect(),
            ..self.fixed.clone()
        }
    }
}

impl Watched {
    fn answer(&self) -> Device {
        let life = self.life.report();
        let bars = self.layouts.iter().map(|layout| {
            let spec = layout.spec;
            let now = life.bars.get(usize::from(spec.index.get())).copied().unwrap_or_default();
            Bar {
                index: spec.index.number(),
                kind: spec.kind.name().to_owned(),
                size: spec.size,
                address: now.address,
                decoded: now.decoded,
                direct: layout.direct.iter().map(|area| area.memory.len).sum(),
            }
        });
        Device {
            id: self.id.clone(),
            host: self.host,
            guest: self.guest,
            rom: self.rom,
            shown_as: self.shown_as.clone(),
            bars: bars.collect(),
            memory_decode: life.decoded,
            bus_master: life.bus_master,
            interrupts: match life.interrupts {
                InterruptMode::None => Interrupts::None,
                InterruptMode::Intx => Interrupts::Intx,
                InterruptMode::Msi => Interrupts::Msi,
                InterruptMode::Msix => Interrupts::Msix,
            },
            vectors: life.vectors,
            vectors_connected: life.unmasks,
            resets: life.resets,
            failed_resets: life.failed_resets,
            rom_read: life.rom_read,
            lost: life.lost,
            dead_reads: life.dead_reads,
            activity: Activity {
                config: life.last.config.map(|ago| ago.as_secs()),
                bar: life.last.bar.map(|ago| ago.as_secs()),
                interrupts: life.last.interrupts.map(|ago| ago.as_secs()),
            },
            errors_before: self.errors_before.clone(),
        }
    }
}

/// What of the ROM the guest has: a device without one shows none.
pub(crate) fn rom(source: &RomSource, layouts: &[BarLayout]) -> Rom {
    match source {
        RomSource::Bytes(_) => Rom::File,
        RomSource::Device if layouts.iter().any(|bar| bar.spec.index == BarIndex::ROM) => {
            Rom::Device
        }
        RomSource::Device | RomSource::Off => Rom::None,
    }
}

/// Errors that the host has counted so far. A sign of life is worth less than the guest, so a file that cannot be
/// read is as one that is not there.
pub(crate) fn errors(bdf: Bdf) -> Option<aer::Counters> {
    aer::Counters::read(&Sysroot::host(), bdf).unwrap_or_else(|error| {
        log::debug!("{bdf}: errors are not counted: {error}");
        None
    })
}

/// The IDs that the guest sees, if not the device's own.
pub(crate) fn shown_as(own: (u16, u16), identity: Identity) -> Option<String> {
    let vendor = identity.vendor.unwrap_or(own.0);
    let device = identity.device.unwrap_or(own.1);
    let other = identity != Identity::default();
    other.then(|| format!("{vendor:04x}:{device:04x}"))
}
