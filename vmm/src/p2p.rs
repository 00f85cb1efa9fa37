//! Device-to-device DMA: BARs of passed devices in the IOMMU, so that other passed devices reach them.
//!
//! Mapping a large BAR takes the kernel seconds to minutes, and nobody may have asked for it: a thread of its own does
//! it, in pieces. `--p2p auto` lets the guest boot meanwhile; with `--p2p on` the guest's start, and a vCPU that has
//! moved a BAR, wait for it. A mapping stays when the guest turns decoding off; it goes when its BAR really moves, when
//! another BAR takes its addresses, and while the BAR's device cannot answer. A BAR that cannot be mapped costs
//! device-to-device DMA and nothing else.

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Condvar, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
};

use strait_devices::{ports::HostMemory, vfio::dma::DmaDomain};
use strait_resources::{codes, range::AddressRange};

use crate::{
    control::Control,
    memory::pieces,
    pinning::{Pinned, give_way},
    vcpu::STACK,
};

/// What is mapped in one call: the end of a machine waits for the call that runs.
const PIECE: u64 = 1 << 30;

/// Part of a BAR, by address and length in this process.
type Area = (usize, u64);
/// Ends with its drop.
type Mapping = Box<dyn Send>;
type Map = dyn Fn(AddressRange, HostMemory) -> io::Result<Mapping> + Send + Sync;

/// The BARs that are in the IOMMU, or on their way there.
pub(crate) struct PeerMappings {
    peers: Arc<Peers>,
    control: Arc<Control>,
    /// Whoever maps a BAR waits for it.
    awaited: bool,
    worker: Option<JoinHandle<()>>,
}

struct Peers {
    state: Mutex<State>,
    changed: Condvar,
    map: Box<Map>,
    /// Something is not where it is wanted. Whoever waits looks at this under a lock of its own.
    behind: AtomicBool,
    /// Ends the wait for RAM, which looks at it now and then.
    ending: AtomicBool,
}

/// At most one entry in each map for every area there is, however often the guest moves a BAR.
#[derive(Default)]
struct State {
    /// Where the guest has each area now: the latest wish counts, and older ones are not carried out.
    wanted: BTreeMap<Area, AddressRange>,
    /// Where each area is in the IOMMU.
    mapped: BTreeMap<Area, Peer>,
    /// What the worker maps at the moment.
    busy: Option<Area>,
    warned: bool,
    ending: bool,
}

struct Peer {
    range: AddressRange,
    /// None where the kernel refused.
    _pieces: Vec<Mapping>,
}

impl PeerMappings {
    /// None yet. `after`: they are mapped after that RAM, without anybody waiting.
    pub(crate) fn new(
        domain: Arc<DmaDomain>,
        control: &Arc<Control>,
        after: Option<&Arc<Pinned>>,
    ) -> io::Result<Self> {
        let map = move |range, memory| {
            domain.map_p2p(range, memory).map(|mapping| Box::new(mapping) as Mapping)
        };
        Self::start(Box::new(map), control, after)
    }

    fn start(map: Box<Map>, control: &Arc<Control>, ram: Option<&Arc<Pinned>>) -> io::Result<Self> {
        let (state, changed, behind, ending) = Default::default();
        let peers = Arc::new(Peers { state, changed, map, behind, ending });
        let (worker, ram, told) = (Arc::clone(&peers), ram.map(Arc::clone), Arc::clone(control));
        let awaited = ram.is_none();
        let work = move || {
            if let Some(ram) = ram {
                give_way();
                // No device moves anything before, and the kernel maps one thing at a time.
                if !ram.wait(&worker.ending) {
                    return;
                }
            }
            worker.work(&told);
        };
        let worker = thread::Builder::new().name("p2p".to_owned()).stack_size(STACK).spawn(work)?;
        Ok(Self { peers, control: Arc::clone(control), awaited, worker: Some(worker) })
    }

    /// Sees to it that devices reach `memory` at `range`, as far as that can be. Returns at once.
    pub(crate) fn map(&self, range: AddressRange, memory: HostMemory) {
        self.peers.want(range, memory);
    }

    /// Devices do not reach `memory` any more when this returns. That may take a mapping of one piece, which cannot be
    /// interrupted.
    pub(crate) fn withdraw(&self, memory: HostMemory) {
        self.peers.withdraw(memory);
    }

    /// Is nothing left that somebody waits for?
    pub(crate) fn is_ready(&self) -> bool {
        !self.awaited || !self.peers.behind.load(Ordering::Acquire)
    }

    /// Keeps a vCPU thread until all that is wanted is mapped, or until the machine stops or is reset. No lock of a
    /// device's may be held.
    pub(crate) fn wait(&self) {
        if !self.is_ready() {
            self.control.hold(|| self.is_ready(), || ());
        }
    }
}

impl Drop for PeerMappings {
    fn drop(&mut self) {
        self.peers.ending.store(true, Ordering::Relaxed);
        self.peers.lock().ending = true;
        self.peers.changed.notify_all();
        if let Some(worker) = self.worker.take() {
            // One that panicked has said why.
            let _ = worker.join();
        }
    }
}

impl State {
    /// Something that is not where it is wanted.
    fn next(&self) -> Option<(Area, AddressRange)> {
        let mut wanted = self.wanted.iter().map(|(area, range)| (*area, *range));
        wanted.find(|(area, range)| self.mapped.get(area).is_none_or(|peer| peer.range != *range))
    }

    fn is_wanted(&self, area: Area, range: AddressRange) -> bool {
        !self.ending && self.wanted.get(&area) == Some(&range)
    }
}

impl Peers {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn want(&self, range: AddressRange, memory: HostMemory) {
        let area = (memory.address, memory.len);
        let mut state = self.lock();
        // Who was there before has moved, or will.
        state.wanted.retain(|other, place| *other == area || !place.overlaps(range));
        state.wanted.insert(area, range);
        self.behind.store(state.next().is_some(), Ordering::Release);
        self.changed.notify_all();
    }

    fn withdraw(&self, memory: HostMemory) {
        let area = (memory.address, memory.len);
        let mut state = self.lock();
        state.wanted.remove(&area);
        // Under the lock: its addresses are free for others only when the kernel has ended it.
        drop(state.mapped.remove(&area));
        while state.busy == Some(area) {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The worker: until the end.
    fn work(&self, control: &Control) {
        let mut state = self.lock();
        while !state.ending {
            let Some((area, range)) = state.next() else {
                if self.behind.swap(false, Ordering::AcqRel) {
                    // Without our lock: whoever waits holds that of `control` while it looks.
                    drop(state);
                    control.nudge();
                    state = self.lock();
                } else {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                continue;
            };
            // What is in the way, and where this area was before.
            state.mapped.retain(|other, peer| *other != area && !peer.range.overlaps(range));
            state.busy = Some(area);
            drop(state);
            let outcome = self.map_pieces(area, range);
            state = self.lock();
            if state.is_wanted(area, range) {
                let pieces = outcome.unwrap_or_else(|error| {
                    warn(range, &error, std::mem::replace(&mut state.warned, true));
                    Vec::new()
                });
                state.mapped.insert(area, Peer { range, _pieces: pieces });
            } else {
                drop(outcome);
            }
            state.busy = None;
            self.changed.notify_all();
        }
    }

    /// All of it or nothing; less only when it is not wanted there any more.
    fn map_pieces(&self, (address, len): Area, range: AddressRange) -> io::Result<Vec<Mapping>> {
        pieces(range, HostMemory { address, len }, PIECE)
            .take_while(|_| self.lock().is_wanted((address, len), range))
            .map(|(range, memory)| (self.map)(range, memory))
            .collect()
    }
}

fn warn(range: AddressRange, error: &io::Error, again: bool) {
    if again {
        log::info!("device-to-device DMA to {range} is off: {error}");
    } else {
        log::warn!(
            "[{}] device-to-device DMA to {range} is off: {error}; everything else works",
            codes::E1305.id
        );
    }
}

#[cfg(test)]
mod tests;
