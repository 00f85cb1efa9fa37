//! Guest RAM on its way to passed devices: faulted in, pinned and mapped for DMA, by workers that start as soon as
//! there is RAM. `pin=eager` waits for them before the first vCPU runs; `pin=behind` lets the guest boot meanwhile and
//! holds the vCPU that first sets Bus Master Enable in a passed function until every range is mapped.
//!
//! A device reaches RAM only while it masters the bus, and the write that lets it passes [`Gate`]. What speaks against
//! this, and what is done about it:
//!
//! - *A stall of unknown length at that write.* The workers started before the guest did, so it is never longer than
//!   `pin=eager` would have taken; it is shown as it goes on; it is waited for without a lock, so that other vCPUs run
//!   (as far as the guest lets them: Linux has one lock around the ports of configuration space); and the guest is told
//!   that it was stopped, which quiets its watchdogs.
//! - *A shortage that shows up late and kills the guest.* Limits are checked and address space is accounted for before
//!   anything starts, and pages of the hugetlb pool are reserved. Ordinary pages cannot be reserved: `behind` is the
//!   default only where the host has more than enough of them (`spare_memory`), else RAM is pinned eagerly. If memory
//!   goes all the same, the run ends with the same E1301 as it would have at the start.
//! - *Option ROMs and firmware that use devices early.* They set the same bit, and simply get `eager`.
//! - *A device that masters the bus by itself.* VFIO turns it off when it opens a device, attaching and every reset
//!   write it again, and it is read back: a device that says otherwise makes the machine wait before vCPUs run. One
//!   whose registers are mirrored in a BAR can be told there, past us; it then meets an IOMMU without a mapping: a line
//!   in the host's log, wrong data for a guest that asked for it, and nothing for anybody else.
//! - *Reboots.* RAM stays mapped; a reboot before it is mapped releases the held vCPU, whose write is forgotten.

use std::{
    io::{self, IsTerminal, Write},
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use strait_devices::{
    ports::{BusMasterGate, HostMemory},
    vfio::dma::DmaDomain,
};
use strait_resources::{codes, failure::Failure, range::AddressRange};

use crate::{
    control::{Control, Request},
    memory::GuestRam,
    phases,
};

/// What one worker faults in and maps before it looks for more work: a GiB takes seconds, a page too little. Also how
/// long the end of a machine may have to wait.
const CHUNK: u64 = 64 << 20;
/// The kernel allows a container 65535 mappings unless told otherwise; BARs want some too.
const MAX_CHUNKS: u64 = 16384;
/// More workers than this only fight over the kernel's memory locks.
const MAX_WORKERS: usize = 16;
/// A wait that is over by then shows no progress.
const QUIET: Duration = Duration::from_millis(300);
/// How often it is shown.
const TICK: Duration = Duration::from_millis(100);
/// Behind a boot the guest comes first: what workers give way by, as nice(2) counts.
const BEHIND_NICE: i32 = 5;

/// The workers. Dropping this ends them after the chunk that each is at.
pub(crate) struct Pinning {
    ram: Arc<Pinned>,
    workers: Vec<JoinHandle<()>>,
}

/// How far guest RAM is.
pub(crate) struct Pinned {
    total: u64,
    mapped: AtomicU64,
    /// Ends the workers.
    ending: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
    began: Instant,
}

/// What the workers share.
struct Work {
    ram: Arc<GuestRam>,
    domain: Arc<DmaDomain>,
    control: Arc<Control>,
    chunks: Vec<(AddressRange, HostMemory)>,
    next: AtomicUsize,
    pinned: Arc<Pinned>,
}

impl Pinning {
    /// Starts the workers; `behind`: the guest shall not feel them much. That RAM cannot be had, one of them tells
    /// `control`.
    pub(crate) fn start(
        ram: &Arc<GuestRam>,
        domain: &Arc<DmaDomain>,
        control: &Arc<Control>,
        behind: bool,
    ) -> io::Result<Self> {
        let total = ram.regions().map(|(range, _)| range.len()).sum();
        let size = chunk_size(total, ram.granule());
        let chunks: Vec<_> =
            ram.regions().flat_map(|(range, memory)| chunks(range, memory, size)).collect();
        let count = thread::available_parallelism().map_or(1, usize::from);
        let count = count.min(MAX_WORKERS).min(chunks.len());
        let pinned = Arc::new(Pinned::new(total));
        let work = Arc::new(Work {
            ram: Arc::clone(ram),
            domain: Arc::clone(domain),
            control: Arc::clone(control),
            chunks,
            next: AtomicUsize::new(0),
            pinned: Arc::clone(&pinned),
        });
        // Joined by the drop if a later one does not start.
        let mut pinning = Self { ram: pinned, workers: Vec::with_capacity(count) };
        for number in 0..count {
            let work = Arc::clone(&work);
            let thread = thread::Builder::new().name(format!("pin{number}")).stack_size(64 << 10);
            pinning.workers.push(thread.spawn(move || {
                if behind {
                    give_way();
                }
                work.run();
            })?);
        }
        Ok(pinning)
    }

    /// How far it is.
    pub(crate) fn pinned(&self) -> &Arc<Pinned> {
        &self.ram
    }
}

impl Drop for Pinning {
    fn drop(&mut self) {
        self.ram.end();
        for worker in self.workers.drain(..) {
            // One that panicked has said why.
            let _ = worker.join();
        }
    }
}

impl Work {
    fn run(&self) {
        while !self.pinned.ending.load(Ordering::Relaxed)
            && let Some((range, memory)) =
                self.chunks.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            if let Err(failure) = self.give(*range, *memory) {
                self.pinned.end();
                self.control.request(Request::Crash(Box::new(failure)));
                return;
            }
            if self.pinned.add(range.len()) {
                phases::done_beside("RAM pinned and mapped", self.pinned.began.elapsed());
                log::info!(
                    "guest RAM, {} MiB, is pinned and mapped for DMA after {:.2} s",
                    self.pinned.total >> 20,
                    self.pinned.began.elapsed().as_secs_f64()
                );
                self.control.nudge();
            }
        }
    }

    fn give(&self, range: AddressRange, memory: HostMemory) -> Result<(), Failure> {
        self.ram.populate(memory).map_err(|error| {
            let total = self.pinned.total >> 20;
            let cause = format!("the host ran out of memory for {total} MiB of guest RAM");
            Failure::new(&codes::E1301, cause, "give the guest less memory, or end other programs")
                .source(error)
        })?;
        let owner = Arc::clone(&self.ram) as _;
        self.domain.map_ram(range, memory, owner).map_err(|error| error.into_failure())
    }
}

impl Pinned {
    fn new(total: u64) -> Self {
        let (mapped, ending) = Default::default();
        let (lock, changed) = Default::default();
        Self { total, mapped, ending, lock, changed, began: Instant::now() }
    }

    /// Is all of RAM mapped?
    pub(crate) fn is_complete(&self) -> bool {
        self.mapped.load(Ordering::Acquire) >= self.total
    }

    /// Waits until all of RAM is mapped, or `ending`, which is looked at every now and then; which of both.
    pub(crate) fn wait(&self, ending: &AtomicBool) -> bool {
        let mut guard = self.guard();
        while !self.is_complete() {
            if ending.load(Ordering::Relaxed) || self.ending.load(Ordering::Relaxed) {
                return false;
            }
            let waited = self.changed.wait_timeout(guard, TICK);
            (guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
        true
    }

    /// More is mapped; `true` if that was the last.
    fn add(&self, bytes: u64) -> bool {
        let _guard = self.guard();
        self.mapped.fetch_add(bytes, Ordering::AcqRel);
        self.changed.notify_all();
        self.is_complete()
    }

    fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    fn guard(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn percent(&self) -> u64 {
        self.mapped.load(Ordering::Relaxed) * 100 / self.total.max(1)
    }
}

/// Passes bus mastering on once RAM is mapped.
pub(crate) struct Gate {
    control: Arc<Control>,
    /// `None`: there is nothing to wait for.
    pinned: Option<Arc<Pinned>>,
}

impl Gate {
    /// Opens when `pinned` is complete.
    pub(crate) fn new(control: &Arc<Control>, pinned: Option<&Arc<Pinned>>) -> Self {
        Self { control: Arc::clone(control), pinned: pinned.map(Arc::clone) }
    }
}

impl BusMasterGate for Gate {
    fn pass(&self) -> bool {
        let Some(pinned) = self.pinned.as_ref().filter(|pinned| !pinned.is_complete()) else {
            return true;
        };
        let percent = pinned.percent();
        log::info!(
            "a driver in the guest enables bus mastering: its vCPU waits until all of guest RAM is \
             mapped, {percent} % are"
        );
        let mut progress = Progress::new("the guest waits for its memory");
        let passed = self.control.hold(|| pinned.is_complete(), || progress.show(pinned));
        progress.end();
        let seconds = progress.began.elapsed().as_secs_f64();
        match passed {
            true => log::info!("the vCPU goes on after {seconds:.2} s"),
            false => log::info!("the wait ended with the machine after {seconds:.2} s"),
        }
        passed
    }

    fn is_open(&self) -> bool {
        self.pinned.as_ref().is_none_or(|pinned| pinned.is_complete())
    }
}

/// One line on a terminal that says how far it is.
pub(crate) struct Progress {
    what: &'static str,
    began: Instant,
    shown: bool,
    terminal: bool,
}

impl Progress {
    /// Shown only if it takes a while.
    pub(crate) fn new(what: &'static str) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { what, began: Instant::now(), shown: false, terminal }
    }

    /// How far it is now.
    pub(crate) fn show(&mut self, pinned: &Pinned) {
        if !self.terminal || self.began.elapsed() < QUIET {
            return;
        }
        self.shown = true;
        let (percent, mib) = (pinned.percent(), pinned.total >> 20);
        let _ = write!(io::stderr(), "\r{}: {percent:3} % of {mib} MiB", self.what);
    }

    /// Takes the line away.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// Whole huge pages, so that the IOMMU's tables can have them too; larger where there would be too many.
fn chunk_size(total: u64, granule: u64) -> u64 {
    CHUNK.max(granule).max((total / MAX_CHUNKS).next_power_of_two())
}

fn chunks(
    range: AddressRange,
    memory: HostMemory,
    size: u64,
) -> impl Iterator<Item = (AddressRange, HostMemory)> {
    (0..memory.len).step_by(size as usize).filter_map(move |at| {
        let len = (memory.len - at).min(size);
        let range = AddressRange::new(range.first().checked_add(at)?, len)?;
        Some((range, HostMemory { address: memory.address.checked_add(at as usize)?, len }))
    })
}

/// Of the calling thread alone: Linux counts threads here. For what the guest shall not feel.
pub(crate) fn give_way() {
    if let Err(error) = rustix::process::setpriority_process(None, BEHIND_NICE) {
        log::debug!("setpriority: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::install_kick_handler;

    #[test]
    fn chunks_cover_memory_without_a_gap_in_whole_pages() {
        for (len, granule) in [(200 << 20, 2 << 20), (3 << 30, 1 << 30), (64 << 20, 2 << 20)] {
            let memory = HostMemory { address: 0x7f00_0000_0000, len };
            let range = AddressRange::new(1 << 32, len).unwrap();
            let mut next = range.first();
            for (range, memory) in chunks(range, memory, chunk_size(len, granule)) {
                assert_eq!((range.first(), range.len()), (next, memory.len));
                assert_eq!(memory.address as u64 - 0x7f00_0000_0000, next - (1 << 32));
                assert!(memory.len.is_multiple_of(granule));
                next = range.last() + 1;
            }
            assert_eq!(next, range.last() + 1);
        }
    }

    #[test]
    fn chunks_of_much_memory_are_fewer_than_the_kernel_allows() {
        let total: u64 = 24 << 40;
        assert!(total / chunk_size(total, 2 << 20) <= MAX_CHUNKS);
    }

    fn gate(total: u64) -> (Arc<Control>, Arc<Pinned>, Gate) {
        install_kick_handler().unwrap();
        let control = Arc::new(Control::new().unwrap());
        control.resume();
        let pinned = Arc::new(Pinned::new(total));
        let gate = Gate::new(&control, Some(&pinned));
        (control, pinned, gate)
    }

    #[test]
    fn gate_opens_with_the_last_byte_and_not_before() {
        let (control, pinned, gate) = gate(20);
        thread::scope(|scope| {
            let held = scope.spawn(|| gate.pass());
            assert!(!pinned.add(19));
            control.nudge();
            thread::sleep(3 * TICK);
            assert!(!held.is_finished() && !gate.is_open());
            assert!(pinned.add(1));
            control.nudge();
            assert!(held.join().unwrap());
        });
        assert!(gate.is_open() && gate.pass());
    }

    #[test]
    fn gate_of_a_machine_that_ends_lets_nobody_through() {
        let (control, _, gate) = gate(1);
        thread::scope(|scope| {
            let held = scope.spawn(|| gate.pass());
            thread::sleep(TICK);
            control.request(Request::Quit);
            control.stop(Vec::new());
            assert!(!held.join().unwrap());
        });
    }

    #[test]
    fn gate_without_dma_is_open() {
        let control = Arc::new(Control::new().unwrap());
        let gate = Gate::new(&control, None);
        assert!(gate.is_open() && gate.pass());
    }
}
