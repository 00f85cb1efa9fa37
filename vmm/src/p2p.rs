//! Device-to-device DMA: BARs of passed devices in the IOMMU, so that other passed devices reach them.
//!
//! Mapping a large BAR takes the kernel seconds, so it is done before the guest starts, at the addresses that the plan
//! gave, and a mapping stays when the guest turns decoding off: it goes when its BAR really moves, or when another BAR
//! takes its addresses. A BAR that cannot be mapped costs device-to-device DMA and nothing else.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicBool, Ordering},
};

use strait_devices::{
    ports::HostMemory,
    vfio::dma::{DmaDomain, DmaMapping},
};
use strait_resources::{codes, range::AddressRange};

/// The BARs that are in the IOMMU.
pub(crate) struct PeerMappings {
    // In the order of tear-down.
    mapped: Mutex<Vec<Peer>>,
    domain: Arc<DmaDomain>,
    warned: AtomicBool,
}

struct Peer {
    range: AddressRange,
    memory: HostMemory,
    _mapping: DmaMapping,
}

impl PeerMappings {
    /// None yet.
    pub(crate) fn new(domain: Arc<DmaDomain>) -> Self {
        Self { mapped: Mutex::default(), domain, warned: AtomicBool::new(false) }
    }

    /// Sees to it that devices reach `memory` at `range`, as far as that can be.
    pub(crate) fn map(&self, range: AddressRange, memory: HostMemory) {
        let mut mapped = self.mapped.lock().unwrap_or_else(PoisonError::into_inner);
        if mapped.iter().any(|peer| peer.range == range && peer.memory == memory) {
            return;
        }
        // What was here before, and where this BAR was before.
        mapped.retain(|peer| !peer.range.overlaps(range) && peer.memory != memory);
        match self.domain.map_p2p(range, memory) {
            Ok(mapping) => mapped.push(Peer { range, memory, _mapping: mapping }),
            Err(error) if self.warned.swap(true, Ordering::Relaxed) => {
                log::info!("device-to-device DMA to {range} is off: {error}");
            }
            Err(error) => log::warn!(
                "[{}] device-to-device DMA to {range} is off: {error}; everything else works",
                codes::E1305.id
            ),
        }
    }
}
