//! Signs of life of a passed device: what its driver in the guest has done so far. When "it does not work", these
//! tell a missing driver from a lost interrupt.

use std::{
    collections::HashSet,
    fmt::Display,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use rustix::time::{ClockId, clock_gettime};
use strait_resources::bdf::Bdf;

use crate::pci::function::BarPlacement;

/// How a function interrupts at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum InterruptMode {
    /// Not at all.
    #[default]
    None,
    /// By its pin.
    Intx,
    /// By MSI.
    Msi,
    /// By MSI-X.
    Msix,
}

/// Counters, written by the function and read by anyone. They order nothing.
#[derive(Debug, Default)]
pub struct LifeSigns {
    mode: AtomicU8,
    vectors: AtomicU32,
    unmasks: AtomicU64,
    resets: AtomicU64,
    failed_resets: AtomicU64,
    bus_master: AtomicBool,
    decoded: AtomicBool,
    rom_read: AtomicBool,
    lost: AtomicBool,
    dead_reads: AtomicU64,
    /// By [`Activity`]: milliseconds of [`now`]; 0: never.
    last: [AtomicU64; ACTIVITIES],
    bars: [BarSign; BARS],
}

/// What a guest does with a function that does not go past strait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Activity {
    /// An access to configuration space.
    Config,
    /// An access to a part of a BAR that is not mapped into the guest.
    Bar,
    /// A vector connected, disconnected or moved. Interrupts themselves pass nothing of ours.
    Interrupts,
}

const ACTIVITIES: usize = 3;

/// How long ago the guest last did each; `None`: never.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LastActivity {
    /// Accessed configuration space.
    pub config: Option<Duration>,
    /// Accessed a trapped part of a BAR.
    pub bar: Option<Duration>,
    /// Changed its interrupts.
    pub interrupts: Option<Duration>,
}

/// A clock that is a memory read even where the fine ones are an access to a slow timer, some milliseconds coarse.
fn now() -> u64 {
    let time = clock_gettime(ClockId::MonotonicCoarse);
    time.tv_sec.unsigned_abs() * 1000 + time.tv_nsec.unsigned_abs() / 1_000_000
}

/// Six BARs and the ROM's.
const BARS: usize = 7;

#[derive(Debug, Default)]
struct BarSign {
    address: AtomicU64,
    decoded: AtomicBool,
}

/// Where a BAR is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BarReport {
    /// What the guest has written there.
    pub address: u64,
    /// Does it answer there?
    pub decoded: bool,
}

/// The counters at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LifeReport {
    /// How it interrupts now.
    pub interrupts: InterruptMode,
    /// Vectors connected to the guest now; 1 for INTx.
    pub vectors: u32,
    /// How often a vector was connected.
    pub unmasks: u64,
    /// Resets that worked.
    pub resets: u64,
    /// Resets that did not.
    pub failed_resets: u64,
    /// The guest let the device reach RAM once.
    pub bus_master: bool,
    /// A BAR decoded once.
    pub decoded: bool,
    /// The guest read the ROM.
    pub rom_read: bool,
    /// The device did not answer after its last reset.
    pub lost: bool,
    /// Configuration reads of the guest that found nobody there.
    pub dead_reads: u64,
    /// When the guest last did something.
    pub last: LastActivity,
    /// BARs 0 to 5 and the ROM's; zeros where there is none.
    pub bars: [BarReport; BARS],
}

impl LifeSigns {
    /// All of them.
    pub fn report(&self) -> LifeReport {
        LifeReport {
            interrupts: match self.mode.load(Relaxed) {
                1 => InterruptMode::Intx,
                2 => InterruptMode::Msi,
                3 => InterruptMode::Msix,
                _ => InterruptMode::None,
            },
            vectors: self.vectors.load(Relaxed),
            unmasks: self.unmasks.load(Relaxed),
            resets: self.resets.load(Relaxed),
            failed_resets: self.failed_resets.load(Relaxed),
            bus_master: self.bus_master.load(Relaxed),
            decoded: self.decoded.load(Relaxed),
            rom_read: self.rom_read.load(Relaxed),
            lost: self.lost.load(Relaxed),
            dead_reads: self.dead_reads.load(Relaxed),
            last: LastActivity {
                config: self.ago(Activity::Config),
                bar: self.ago(Activity::Bar),
                interrupts: self.ago(Activity::Interrupts),
            },
            bars: std::array::from_fn(|index| BarReport {
                address: self.bars[index].address.load(Relaxed),
                decoded: self.bars[index].decoded.load(Relaxed),
            }),
        }
    }

    pub(crate) fn mode(&self, mode: InterruptMode) {
        self.mode.store(mode as u8, Relaxed);
        self.vectors.store(0, Relaxed);
    }

    pub(crate) fn connected(&self) {
        self.vectors.fetch_add(1, Relaxed);
        self.unmasks.fetch_add(1, Relaxed);
    }

    pub(crate) fn disconnected(&self) {
        let less = |vectors: u32| Some(vectors.saturating_sub(1));
        // The closure never refuses.
        let _ = self.vectors.fetch_update(Relaxed, Relaxed, less);
    }

    pub(crate) fn reset(&self, worked: bool) {
        if worked { &self.resets } else { &self.failed_resets }.fetch_add(1, Relaxed);
    }

    pub(crate) fn bus_master(&self) {
        self.bus_master.store(true, Relaxed);
    }

    pub(crate) fn decoded(&self) {
        self.decoded.store(true, Relaxed);
    }

    pub(crate) fn placed(&self, placements: &[BarPlacement]) {
        for placement in placements {
            if let Some(bar) = self.bars.get(usize::from(placement.bar.get())) {
                bar.address.store(placement.address, Relaxed);
                bar.decoded.store(placement.decoded, Relaxed);
            }
        }
    }

    pub(crate) fn rom_read(&self) {
        self.rom_read.store(true, Relaxed);
    }

    pub(crate) fn lost(&self, lost: bool) {
        self.lost.store(lost, Relaxed);
    }

    pub(crate) fn dead_read(&self) {
        self.dead_reads.fetch_add(1, Relaxed);
    }

    /// For accesses that have cost an exit to this process already.
    pub(crate) fn active(&self, what: Activity) {
        self.last[what as usize].store(now(), Relaxed);
    }

    fn ago(&self, what: Activity) -> Option<Duration> {
        let then = Some(self.last[what as usize].load(Relaxed)).filter(|then| *then != 0)?;
        Some(Duration::from_millis(now().saturating_sub(then)))
    }
}

/// Warnings about one function, each kind once: what the guest can repeat must not fill the log.
#[derive(Debug)]
pub(crate) struct Warnings {
    function: Bdf,
    said: HashSet<&'static str>,
    pub(crate) life: Arc<LifeSigns>,
}

impl Warnings {
    pub(crate) fn new(function: Bdf, life: Arc<LifeSigns>) -> Self {
        Self { function, said: HashSet::new(), life }
    }

    /// Logs `what` with its reason, the first time.
    pub(crate) fn once(&mut self, what: &'static str, why: &dyn Display) {
        if self.said.insert(what) {
            log::warn!("{}: {what}: {why}", self.function);
        }
    }
}
