//! Device-to-device DMA: BARs of passed devices in the IOMMU, so that other passed devices reach them.
//!
//! Mapping a large BAR takes the kernel seconds to minutes, and nobody may have asked for it: `--p2p auto` does it in a
//! thread of its own while the guest boots, `--p2p on` before the guest starts. A mapping stays when the guest turns
//! decoding off; it goes when its BAR really moves, or when another BAR takes its addresses. A BAR that cannot be mapped
//! costs device-to-device DMA and nothing else.

use std::{
    io,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc::{Sender, channel},
    },
    thread::{self, JoinHandle},
};

use strait_devices::{
    ports::HostMemory,
    vfio::dma::{DmaDomain, DmaMapping},
};
use strait_resources::{codes, range::AddressRange};

use crate::{
    memory::pieces,
    pinning::{Pinned, give_way},
    vcpu::STACK,
};

/// What is mapped in one call: the end of a machine waits for the call that runs.
const PIECE: u64 = 1 << 30;

/// The BARs that are in the IOMMU, or on their way there.
pub(crate) struct PeerMappings {
    peers: Arc<Peers>,
    /// `None`: mapped by whoever asks.
    worker: Option<Worker>,
}

struct Worker {
    requests: Sender<(AddressRange, HostMemory)>,
    thread: JoinHandle<()>,
}

struct Peers {
    // In the order of tear-down.
    mapped: Mutex<Vec<Peer>>,
    domain: Arc<DmaDomain>,
    warned: AtomicBool,
    ending: AtomicBool,
}

struct Peer {
    range: AddressRange,
    memory: HostMemory,
    _pieces: Vec<DmaMapping>,
}

impl PeerMappings {
    /// None yet. `after`: map them in a thread of their own, after RAM, which is waited for.
    pub(crate) fn new(domain: Arc<DmaDomain>, after: Option<&Arc<Pinned>>) -> io::Result<Self> {
        let (warned, ending) = Default::default();
        let peers = Arc::new(Peers { mapped: Mutex::default(), domain, warned, ending });
        let worker = after.map(|ram| Worker::start(&peers, ram)).transpose()?;
        Ok(Self { peers, worker })
    }

    /// Sees to it that devices reach `memory` at `range`, as far as that can be.
    pub(crate) fn map(&self, range: AddressRange, memory: HostMemory) {
        match &self.worker {
            // The thread ends only with us.
            Some(worker) => drop(worker.requests.send((range, memory))),
            None => self.peers.map(range, memory),
        }
    }
}

impl Drop for PeerMappings {
    fn drop(&mut self) {
        self.peers.ending.store(true, Ordering::Relaxed);
        if let Some(Worker { requests, thread }) = self.worker.take() {
            drop(requests);
            // One that panicked has said why.
            let _ = thread.join();
        }
    }
}

impl Worker {
    fn start(peers: &Arc<Peers>, ram: &Arc<Pinned>) -> io::Result<Self> {
        let (requests, waiting) = channel();
        let (peers, ram) = (Arc::clone(peers), Arc::clone(ram));
        let thread =
            thread::Builder::new().name("p2p".to_owned()).stack_size(STACK).spawn(move || {
                give_way();
                // No device moves anything before, and the kernel maps one thing at a time.
                if !ram.wait(&peers.ending) {
                    return;
                }
                for (range, memory) in waiting {
                    peers.map(range, memory);
                }
            })?;
        Ok(Self { requests, thread })
    }
}

impl Peers {
    fn map(&self, range: AddressRange, memory: HostMemory) {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if mapped.iter().any(|peer| peer.range == range && peer.memory == memory) {
            return;
        }
        // What was here before, and where this BAR was before.
        mapped.retain(|peer| !peer.range.overlaps(range) && peer.memory != memory);
        match self.map_pieces(range, memory) {
            Ok(pieces) => mapped.push(Peer { range, memory, _pieces: pieces }),
            Err(error) if self.warned.swap(true, Ordering::Relaxed) => {
                log::info!("device-to-device DMA to {range} is off: {error}");
            }
            Err(error) => log::warn!(
                "[{}] device-to-device DMA to {range} is off: {error}; everything else works",
                codes::E1305.id
            ),
        }
    }

    /// All of it or nothing; less only when the machine ends.
    fn map_pieces(&self, range: AddressRange, memory: HostMemory) -> io::Result<Vec<DmaMapping>> {
        pieces(range, memory, PIECE)
            .take_while(|_| !self.ending.load(Ordering::Relaxed))
            .map(|(range, memory)| self.domain.map_p2p(range, memory))
            .collect()
    }
}
