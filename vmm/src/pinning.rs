//! Guest RAM on its way to passed devices: faulted in, then pinned and mapped for DMA, by workers that start as soon as
//! there is RAM. `pin=eager` waits for them before the first vCPU runs; `pin=behind` lets the guest boot meanwhile and
//! holds the vCPU that first sets Bus Master Enable in a passed function until every range is mapped.
//!
//! First all of it is faulted in, by all workers, while devices are being opened; then all of it is mapped, by one at a time. Both at once is slower:
//! to pin, the kernel takes the lock of the address space for writing once for every run of pages, waits for each
//! worker to finish the page that it is zeroing, and keeps all of them and the guest's own page faults waiting. Zeroing
//! is nine tenths of the work.
//!
//! A device reaches RAM only while it masters the bus, and the write that lets it passes [`Gate`]. What speaks against
//! this, and what is done about it:
//!
//! - *A stall of unknown length at that write.* The workers started before the guest did, and others that give way to
//!   nobody join them, so it is never longer than `pin=eager` would have taken; it is shown as it goes on; it is waited
//!   for without a lock, so that other vCPUs run (as far as the guest lets them: Linux has one lock around the ports of
//!   configuration space); and the guest is told that it was stopped, which quiets its watchdogs.
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

mod gate;

use std::{
    io,
    ops::Range,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use strait_devices::{ports::HostMemory, vfio::dma::DmaDomain};
use strait_resources::{codes, failure::Failure, range::AddressRange};

use crate::{
    control::{Control, Request},
    memory::{GuestRam, pieces},
    phases,
};

pub(crate) use self::gate::{Gate, Progress};

/// What one worker faults in before it looks for more work.
const SHARE: u64 = 16 << 20;
/// Offsets in RAM of what of a kernel is not zero.
const KERNEL: Range<u64> = 16 << 20..48 << 20;
/// What is mapped in one call: a tenth of a second, for which the end of a machine may have to wait.
const MAPPING: u64 = 1 << 30;
/// The kernel allows a container 65535 mappings unless told otherwise; BARs want some too. And a list of more shares than
/// this would be memory itself.
const MAX_PARTS: u64 = 16384;
/// More workers than this only fight over the kernel's memory locks.
const MAX_WORKERS: usize = 16;
/// How often whoever waits looks whether the machine ends.
const TICK: Duration = Duration::from_millis(100);
/// Behind a boot the guest comes first: what workers give way by, as nice(2) counts. As far as can be.
const BEHIND_NICE: i32 = 19;

/// The workers. Dropping this ends them after the page or the mapping that each is at.
pub(crate) struct Pinning {
    work: Arc<Work>,
}

/// How far guest RAM is.
pub(crate) struct Pinned {
    total: u64,
    /// Bytes that are there.
    faulted: AtomicU64,
    /// All of it is there, and devices reach it.
    mapped: AtomicBool,
    /// Ends the workers.
    ending: AtomicBool,
    lock: Mutex<()>,
    changed: Condvar,
    /// Seconds of the monotonic clock.
    began: f64,
}

/// What the workers share.
struct Work {
    ram: Arc<GuestRam>,
    control: Arc<Control>,
    shares: Vec<HostMemory>,
    next: AtomicUsize,
    pinned: Arc<Pinned>,
    /// Where it is mapped; set once devices are open.
    domain: OnceLock<Arc<DmaDomain>>,
    /// What is not mapped yet, the lowest last. Held while one is: the kernel maps one at a time. Under it, the domain's
    /// locks, `Pinned::lock` and the control's are taken.
    mappings: Mutex<Vec<(AddressRange, HostMemory)>>,
    /// They are as fast as they can be.
    hurried: AtomicBool,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Pinning {
    /// Starts the workers, which map nothing before [`Pinning::map_into`]; `behind`: the guest shall not feel them much.
    /// That RAM cannot be had, one of them tells `control`.
    pub(crate) fn start(
        ram: &Arc<GuestRam>,
        control: &Arc<Control>,
        behind: bool,
    ) -> io::Result<Self> {
        let total = ram.regions().map(|(range, _)| range.len()).sum();
        let work = Arc::new(Work {
            ram: Arc::clone(ram),
            control: Arc::clone(control),
            shares: shares(ram),
            next: AtomicUsize::new(0),
            pinned: Arc::new(Pinned::new(total)),
            domain: OnceLock::new(),
            mappings: Mutex::new(parts(ram, MAPPING)),
            hurried: AtomicBool::new(!behind),
            workers: Mutex::default(),
        });
        // Ends those that did start if a later one does not.
        let pinning = Self { work };
        pinning.work.employ(behind)?;
        Ok(pinning)
    }

    /// Devices are open: what is there may be mapped.
    pub(crate) fn map_into(&self, domain: &Arc<DmaDomain>) {
        // There is one domain in a machine's life.
        let _ = self.work.domain.set(Arc::clone(domain));
        self.work.pinned.wake();
    }

    /// How far it is.
    pub(crate) fn pinned(&self) -> &Arc<Pinned> {
        &self.work.pinned
    }

    /// Somebody waits.
    pub(crate) fn hurry(&self) {
        self.work.hurry();
    }
}

impl Drop for Pinning {
    fn drop(&mut self) {
        self.work.pinned.end();
        let workers = std::mem::take(&mut *self.work.workers());
        for worker in workers {
            // One that panicked has said why.
            let _ = worker.join();
        }
    }
}

impl Work {
    /// More workers: one for each CPU that strait may run on.
    fn employ(self: &Arc<Self>, behind: bool) -> io::Result<()> {
        let mut workers = self.workers();
        if self.pinned.ending.load(Ordering::Relaxed) {
            return Ok(());
        }
        let cpus = thread::available_parallelism().map_or(1, usize::from);
        let left = self.shares.len().saturating_sub(self.next.load(Ordering::Relaxed));
        // One to map, if nothing else is left.
        for _ in 0..cpus.min(MAX_WORKERS).min(left).max(1) {
            let work = Arc::clone(self);
            let thread = thread::Builder::new().name(format!("pin{}", workers.len()));
            workers.push(thread.stack_size(64 << 10).spawn(move || {
                if behind {
                    give_way();
                }
                work.run(behind);
            })?);
        }
        Ok(())
    }

    /// Workers that give way may not get to work at all on a busy host, and may not come back from giving way without a
    /// privilege; new ones can be as fast as whoever waits for them.
    fn hurry(self: &Arc<Self>) {
        if !self.hurried.swap(true, Ordering::Relaxed)
            && let Err(error) = self.employ(false)
        {
            log::debug!("no further thread pins guest RAM: {error}");
        }
    }

    fn run(&self, behind: bool) {
        if let Err(failure) = self.give(behind) {
            self.pinned.end();
            self.control.request(Request::Crash(Box::new(failure)));
        }
    }

    fn give(&self, behind: bool) -> Result<(), Failure> {
        let mut was_last = false;
        while !self.pinned.ending.load(Ordering::Relaxed)
            && let Some(share) = self.shares.get(self.next.fetch_add(1, Ordering::Relaxed))
        {
            self.fault_in(*share)?;
            was_last = self.pinned.add(share.len);
        }
        // Of those who give way one is enough; who does not is here because somebody waits.
        if behind && !was_last {
            return Ok(());
        }
        let domain = || self.domain.get().filter(|_| self.pinned.is_there());
        match self.pinned.wait_for(&self.pinned.ending, domain) {
            Some(domain) => self.map(|range, memory| {
                let owner = Arc::clone(&self.ram) as _;
                domain.map_ram(range, memory, owner).map_err(|error| error.into_failure())
            }),
            None => Ok(()),
        }
    }

    fn fault_in(&self, share: HostMemory) -> Result<(), Failure> {
        self.ram.populate(share, &self.pinned.ending).map_err(|error| {
            let total = self.pinned.total >> 20;
            let cause = format!("the host ran out of memory for {total} MiB of guest RAM");
            Failure::new(&codes::E1301, cause, "give the guest less memory, or end other programs")
                .source(error)
        })
    }

    /// All of RAM is there. After a part that cannot be mapped nobody maps another: with the last one, RAM would count as
    /// mapped.
    fn map(
        &self,
        map: impl Fn(AddressRange, HostMemory) -> Result<(), Failure>,
    ) -> Result<(), Failure> {
        loop {
            let mut left = self.mappings.lock().unwrap_or_else(PoisonError::into_inner);
            if self.pinned.ending.load(Ordering::Relaxed) {
                return Ok(());
            }
            let Some((range, memory)) = left.pop() else { return Ok(()) };
            // Before the next one may look.
            map(range, memory).inspect_err(|_| self.pinned.end())?;
            if left.is_empty() {
                self.all_is_mapped();
            }
        }
    }

    fn all_is_mapped(&self) {
        self.pinned.complete();
        phases::done_beside("RAM pinned and mapped", self.pinned.began);
        log::info!(
            "guest RAM, {} MiB, is pinned and mapped for DMA after {:.2} s",
            self.pinned.total >> 20,
            phases::now() - self.pinned.began
        );
        self.control.nudge();
    }

    fn workers(&self) -> MutexGuard<'_, Vec<JoinHandle<()>>> {
        self.workers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pinned {
    fn new(total: u64) -> Self {
        let (faulted, mapped, ending) = Default::default();
        let (lock, changed) = Default::default();
        Self { total, faulted, mapped, ending, lock, changed, began: phases::now() }
    }

    /// Is all of RAM mapped?
    pub(crate) fn is_complete(&self) -> bool {
        self.mapped.load(Ordering::Acquire)
    }

    /// Waits until all of RAM is mapped, or `ending`, which is looked at every now and then; which of both.
    pub(crate) fn wait(&self, ending: &AtomicBool) -> bool {
        self.wait_for(ending, || self.is_complete().then_some(())).is_some()
    }

    fn wait_for<T>(&self, ending: &AtomicBool, ready: impl Fn() -> Option<T>) -> Option<T> {
        let mut guard = self.guard();
        loop {
            if let Some(ready) = ready() {
                return Some(ready);
            }
            if ending.load(Ordering::Relaxed) || self.ending.load(Ordering::Relaxed) {
                return None;
            }
            let waited = self.changed.wait_timeout(guard, TICK);
            (guard, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// More is there; `true` for whoever brought the last.
    fn add(&self, bytes: u64) -> bool {
        let was_last = self.faulted.fetch_add(bytes, Ordering::AcqRel) + bytes == self.total;
        if was_last {
            self.wake();
        }
        was_last
    }

    /// Is all of RAM faulted in?
    fn is_there(&self) -> bool {
        self.faulted.load(Ordering::Acquire) == self.total
    }

    fn complete(&self) {
        self.mapped.store(true, Ordering::Release);
        self.wake();
    }

    /// Under the lock, so that it cannot come between a look and the wait.
    fn wake(&self) {
        let _guard = self.guard();
        self.changed.notify_all();
    }

    fn end(&self) {
        self.ending.store(true, Ordering::Relaxed);
        self.wake();
    }

    fn guard(&self) -> MutexGuard<'_, ()> {
        self.lock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The last of them is for mapping.
    fn percent(&self) -> u64 {
        self.faulted.load(Ordering::Relaxed) * 99 / self.total.max(1)
    }
}

/// Where kernels are loaded first, in front of whoever loads one; then from the top down, where Linux takes the first
/// memory that it needs from.
fn shares(ram: &GuestRam) -> Vec<HostMemory> {
    let mut shares: Vec<_> = parts(ram, SHARE).into_iter().map(|(_, memory)| memory).collect();
    let start = ram.regions().next().map_or(0, |(_, memory)| memory.address);
    // A higher range of guest RAM may lie below the first one in this process.
    shares.sort_by_key(|share| !KERNEL.contains(&(share.address.wrapping_sub(start) as u64)));
    shares
}

/// All of RAM in parts of `least` bytes or more, the highest first.
fn parts(ram: &GuestRam, least: u64) -> Vec<(AddressRange, HostMemory)> {
    let total = ram.regions().map(|(range, _)| range.len()).sum();
    let size = part_size(least, total, ram.granule());
    let mut parts: Vec<_> =
        ram.regions().flat_map(|(range, memory)| pieces(range, memory, size)).collect();
    parts.reverse();
    parts
}

/// Whole huge pages, so that the IOMMU's tables can have them too; larger where there would be too many.
fn part_size(least: u64, total: u64, granule: u64) -> u64 {
    least.max(granule).max((total / MAX_PARTS).next_power_of_two())
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
    use crate::config::Pages;

    #[test]
    fn shares_are_all_of_ram_from_the_top_down_but_where_kernels_are_loaded() {
        let ranges = [(0, 80 << 20), (1 << 32, 20 << 20)];
        let ranges = ranges.map(|(first, len)| AddressRange::new(first, len).unwrap());
        let ram = GuestRam::new(&ranges, Pages::Default).unwrap();
        let mut shares = shares(&ram);
        let start = ram.regions().next().unwrap().1.address;
        let offsets: Vec<_> =
            shares.iter().map(|share| share.address.wrapping_sub(start) >> 20).collect();
        assert_eq!(offsets[..2], [32, 16]);
        assert!(offsets[2..].windows(2).all(|pair| pair[0] > pair[1]), "{offsets:?}");
        shares.sort_by_key(|share| std::cmp::Reverse(share.address));
        let mut expected: Vec<_> = ram.regions().map(|(_, memory)| memory).collect();
        expected.sort_by_key(|region| region.address);
        for share in &shares {
            let region = expected.last_mut().unwrap();
            assert_eq!(share.address as u64 + share.len, region.address as u64 + region.len);
            assert!(share.len <= SHARE && share.address.is_multiple_of(2 << 20));
            region.len -= share.len;
            expected.retain(|region| region.len > 0);
        }
        assert_eq!((shares.len(), expected.len()), (7, 0));
    }

    #[test]
    fn ram_does_not_count_as_mapped_where_a_part_could_not_be() {
        let ranges = [AddressRange::new(0, 4 << 20).unwrap()];
        let ram = GuestRam::new(&ranges, Pages::Default).unwrap();
        let work = Work {
            control: Arc::new(Control::new().unwrap()),
            shares: shares(&ram),
            next: AtomicUsize::new(0),
            pinned: Arc::new(Pinned::new(4 << 20)),
            domain: OnceLock::new(),
            mappings: Mutex::new(parts(&ram, 2 << 20)),
            hurried: AtomicBool::new(true),
            workers: Mutex::default(),
            ram,
        };
        assert_eq!(work.mappings.lock().unwrap().len(), 2);
        let fails = || Err(Failure::new(&codes::E1303, "by intent", "none"));
        thread::scope(|scope| {
            // The first holds the lock until the second waits for it, or has had the time to.
            let second = || work.map(|_, _| unreachable!("mapped after a failure"));
            let first = work.map(|_, _| {
                scope.spawn(second);
                thread::sleep(TICK);
                fails()
            });
            assert!(first.is_err());
        });
        assert!(!work.pinned.is_complete());
        assert_eq!(work.mappings.lock().unwrap().len(), 1);
    }

    #[test]
    fn mappings_of_much_memory_are_fewer_than_the_kernel_allows() {
        let total: u64 = 24 << 40;
        assert!(total / part_size(MAPPING, total, 2 << 20) <= MAX_PARTS);
        assert_eq!(part_size(MAPPING, 8 << 30, 2 << 20), 1 << 30);
    }
}
