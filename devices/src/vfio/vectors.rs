//! Message-signalled vectors between VFIO and the guest's interrupt controller.
//!
//! A vector costs a host interrupt and a GSI, so MSI-X vectors are made when the guest first unmasks them. A vector
//! that is masked again keeps both and loses only its way into the guest: what the device signals meanwhile waits in
//! the eventfd, shows as pending, and goes in at the unmask.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::{io, ops::Range, sync::Arc};

use vmm_sys_util::eventfd::EventFd;

use crate::{
    pci::msix::{Msix, VectorState},
    ports::{MsiMessage, MsiRouter, MsiVector},
    vfio::{
        backend::{IrqIndex, VfioBackend},
        ioctl,
        life::{LifeSigns, Warnings},
    },
};

/// One vector of ours, and what it is connected to.
pub(crate) struct Slot {
    vector: Box<dyn MsiVector>,
    connected: Option<MsiMessage>,
    life: Arc<LifeSigns>,
}

impl Slot {
    pub(crate) fn new(router: &dyn MsiRouter, life: &Arc<LifeSigns>) -> io::Result<Self> {
        Ok(Self { vector: router.vector()?, connected: None, life: Arc::clone(life) })
    }

    pub(crate) fn eventfd(&self) -> &EventFd {
        self.vector.eventfd()
    }

    /// [`Slot::sync`] with this state is next.
    pub(crate) fn announce(&mut self, state: VectorState) {
        if !state.masked && self.connected != Some(state.message) {
            self.vector.announce(state.message);
        }
    }

    /// Connects or disconnects as the guest has it.
    pub(crate) fn sync(&mut self, state: VectorState) -> io::Result<()> {
        if state.masked {
            if self.connected.take().is_some() {
                self.vector.disconnect();
                self.life.disconnected();
            }
        } else if self.connected != Some(state.message) {
            self.vector.connect(state.message)?;
            if self.connected.replace(state.message).is_none() {
                self.life.connected();
            }
        }
        Ok(())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        if self.connected.is_some() {
            self.life.disconnected();
        }
    }
}

/// Which of these the device has signalled while nothing was connected. Looks without taking, at all of them at once.
/// One that cannot be looked at is one that nobody knows to wait.
pub(crate) fn waiting<'a>(slots: impl Iterator<Item = (u16, &'a Slot)>) -> Vec<u16> {
    let (numbers, events): (Vec<u16>, Vec<&EventFd>) = slots
        .filter(|(_, slot)| slot.connected.is_none())
        .map(|(n, slot)| (n, slot.eventfd()))
        .unzip();
    let signalled = ioctl::signalled(&events).unwrap_or_default();
    numbers.into_iter().zip(signalled).filter_map(|(n, signalled)| signalled.then_some(n)).collect()
}

/// The parts of the world that vectors need.
pub(crate) struct Ports<'a> {
    pub(crate) backend: &'a dyn VfioBackend,
    pub(crate) router: &'a dyn MsiRouter,
    pub(crate) warnings: &'a mut Warnings,
}

/// The vectors of a function whose MSI-X is on.
pub(crate) struct MsixVectors {
    /// By vector number; as long as the table.
    slots: Vec<Option<Slot>>,
    /// Vectors that VFIO has host interrupts for, from 0 on. Without dynamic MSI-X only these can be used.
    capacity: usize,
    dynamic: bool,
}

impl MsixVectors {
    /// Turns MSI-X on in the device, with what is unmasked already.
    pub(crate) fn enable(ports: &mut Ports<'_>, msix: &Msix) -> io::Result<Self> {
        let info = ports.backend.irq(IrqIndex::Msix);
        let count = usize::from(msix.count()).min(info.count as usize);
        if count == 0 {
            return Err(io::Error::other("the host has no MSI-X vector for it"));
        }
        let mut vectors = Self {
            slots: std::iter::repeat_with(|| None).take(count).collect(),
            capacity: 0,
            dynamic: !info.no_resize,
        };
        for n in vectors.announce_all(ports, msix) {
            vectors.connect(ports, msix, n);
        }
        // Vector 0 alone, without an eventfd if it is masked, switches the device over: drivers talk to firmware
        // that looks at the enable bit long before they unmask a vector. More at once only where VFIO cannot add
        // vectors later.
        let used = vectors
            .slots
            .iter()
            .rposition(Option::is_some)
            .map_or(1, |last| last.saturating_add(1));
        let wish = usize::from(msix.programmed()).clamp(used, count);
        let (wish, used) = if vectors.dynamic { (1, 1) } else { (wish, used) };
        vectors.start(ports.backend, wish, used)?;
        if vectors.dynamic {
            for n in 1..count {
                vectors.trigger(ports, n);
            }
        }
        Ok(vectors)
    }

    /// After the function mask or the whole table may have changed.
    pub(crate) fn sync_all(&mut self, ports: &mut Ports<'_>, msix: &Msix) {
        let new = self.announce_all(ports, msix);
        for n in 0..msix.count() {
            self.finish(ports, msix, n, new.binary_search(&n).is_ok());
        }
    }

    /// After vector `n` changed.
    pub(crate) fn sync(&mut self, ports: &mut Ports<'_>, msix: &Msix, n: u16) {
        let new = self.announce(ports, msix, n);
        self.finish(ports, msix, n, new);
    }

    /// Those of these vectors that have been signalled while they were masked, in ascending order.
    pub(crate) fn waiting(&self, vectors: Range<u16>) -> Vec<u16> {
        let slots = vectors.filter_map(|n| Some((n, self.slots.get(usize::from(n))?.as_ref()?)));
        waiting(slots)
    }

    /// The vectors that are new, in ascending order. Nothing is connected yet.
    fn announce_all(&mut self, ports: &mut Ports<'_>, msix: &Msix) -> Vec<u16> {
        (0..msix.count()).filter(|n| self.announce(ports, msix, *n)).collect()
    }

    /// Says what vector `n` will be connected to; makes it if it is unmasked the first time, which is what it answers.
    fn announce(&mut self, ports: &mut Ports<'_>, msix: &Msix, n: u16) -> bool {
        let state = msix.vector(n);
        let Some(place) = self.slots.get_mut(usize::from(n)) else { return false };
        if let Some(slot) = place {
            slot.announce(state);
            return false;
        }
        if state.masked {
            return false;
        }
        match Slot::new(ports.router, &ports.warnings.life) {
            Ok(slot) => place.insert(slot).announce(state),
            Err(error) => ports.warnings.once("the guest is out of interrupt lines", &error),
        }
        place.is_some()
    }

    /// Connects or disconnects vector `n`. One that is `new` the device may signal from now on.
    fn finish(&mut self, ports: &mut Ports<'_>, msix: &Msix, n: u16, new: bool) {
        if !new {
            let Some(Some(slot)) = self.slots.get_mut(usize::from(n)) else { return };
            if let Err(error) = slot.sync(msix.vector(n)) {
                ports.warnings.once("an MSI-X vector cannot be connected", &error);
            }
        } else if self.connect(ports, msix, n) {
            let n = usize::from(n);
            if self.dynamic || n < self.capacity {
                self.trigger(ports, n);
            } else if let Err(error) = self.grow(ports, msix, n) {
                self.close(n);
                ports.warnings.once("the host has no more MSI-X vectors", &error);
            }
        }
    }

    /// Turns MSI-X off in the device.
    pub(crate) fn disable(mut self, backend: &dyn VfioBackend) -> io::Result<()> {
        // Ours before the host's: a route must not go while its irqfd can still fire, nor the host's interrupt while
        // it is bypassed into the guest.
        self.slots.clear();
        if self.capacity > 0 { backend.disable_irqs(IrqIndex::Msix) } else { Ok(()) }
    }

    /// Connects the new vector `n`, or gives it up. The route first, the irqfd second (both in `MsiVector::connect`);
    /// the device third.
    fn connect(&mut self, ports: &mut Ports<'_>, msix: &Msix, n: u16) -> bool {
        let at = usize::from(n);
        let Some(Some(slot)) = self.slots.get_mut(at) else { return false };
        let connected = slot.sync(msix.vector(n));
        if let Err(error) = &connected {
            self.close(at);
            ports.warnings.once("the guest is out of interrupt lines", error);
        }
        connected.is_ok()
    }

    /// Lets the device signal vector `n`, or gives it up.
    fn trigger(&mut self, ports: &mut Ports<'_>, n: usize) {
        let Some(Some(slot)) = self.slots.get(n) else { return };
        let trigger = [Some(slot.eventfd())];
        if let Err(error) = ports.backend.set_triggers(IrqIndex::Msix, n as u32, &trigger) {
            self.close(n);
            ports.warnings.once("the host has no interrupt for an MSI-X vector", &error);
        }
    }

    fn close(&mut self, n: usize) {
        if let Some(slot) = self.slots.get_mut(n) {
            *slot = None;
        }
    }

    /// More host vectors than `capacity`, up to `n`: without dynamic MSI-X that means all off and all on again. To
    /// do so rarely, room is made for every vector with a message, and at least doubled.
    fn grow(&mut self, ports: &mut Ports<'_>, msix: &Msix, n: usize) -> io::Result<()> {
        let (old, used) = (self.capacity, n.saturating_add(1));
        let doubled = old.saturating_mul(2);
        let wish = usize::from(msix.programmed()).max(doubled).clamp(used, self.slots.len());
        if old > 0 {
            ports.backend.disable_irqs(IrqIndex::Msix)?;
            self.capacity = 0;
        }
        let grown = self.start(ports.backend, wish, used);
        if grown.is_err() && old > 0 {
            self.start(ports.backend, old, old)?;
        }
        // What the device sent while MSI-X was off is lost. A driver stands one interrupt too many better than one
        // too few.
        for slot in self.slots.iter().take(old).flatten().filter(|slot| slot.connected.is_some()) {
            slot.eventfd().write(1)?;
        }
        grown
    }

    /// Turns MSI-X on with `wish` vectors, or with the `used` ones if the host has no more.
    fn start(&mut self, backend: &dyn VfioBackend, wish: usize, used: usize) -> io::Result<()> {
        let triggers: Vec<Option<&EventFd>> =
            self.slots.iter().map(|slot| slot.as_ref().map(Slot::eventfd)).collect();
        let start = |count: usize| {
            let triggers = triggers.get(..count).unwrap_or(&triggers);
            backend.set_triggers(IrqIndex::Msix, 0, triggers).map(|()| count)
        };
        self.capacity = match start(wish) {
            Err(_) if used < wish => start(used),
            outcome => outcome,
        }?;
        Ok(())
    }
}
