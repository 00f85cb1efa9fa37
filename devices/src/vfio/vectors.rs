//! Message-signalled vectors between VFIO and the guest's interrupt controller.
//!
//! A vector costs a host interrupt and a GSI, so MSI-X vectors are made when the guest first unmasks them. A vector
//! that is masked again keeps both and loses only its way into the guest: what the device signals meanwhile waits in
//! the eventfd, shows as pending, and goes in at the unmask.

use std::{io, os::fd::AsRawFd};

use vmm_sys_util::{
    epoll::{ControlOperation, Epoll, EpollEvent, EventSet},
    eventfd::EventFd,
};

use crate::{
    pci::msix::{Msix, VectorState},
    ports::{MsiMessage, MsiRouter, MsiVector},
    vfio::{
        backend::{IrqIndex, VfioBackend},
        life::{LifeSigns, Warnings},
    },
};

/// One vector of ours, and what it is connected to.
pub(crate) struct Slot {
    vector: Box<dyn MsiVector>,
    connected: Option<MsiMessage>,
}

impl Slot {
    pub(crate) fn new(router: &dyn MsiRouter) -> io::Result<Self> {
        Ok(Self { vector: router.vector()?, connected: None })
    }

    pub(crate) fn eventfd(&self) -> &EventFd {
        self.vector.eventfd()
    }

    /// Connects or disconnects as the guest has it.
    pub(crate) fn sync(&mut self, state: VectorState, life: &LifeSigns) -> io::Result<()> {
        if state.masked {
            if self.connected.take().is_some() {
                self.vector.disconnect();
                life.disconnected();
            }
        } else if self.connected != Some(state.message) {
            self.vector.connect(state.message)?;
            if self.connected.replace(state.message).is_none() {
                life.connected();
            }
        }
        Ok(())
    }

    /// Has the device signalled while nothing was connected?
    pub(crate) fn is_waiting(&self) -> bool {
        self.connected.is_none() && has_event(self.eventfd()).unwrap_or(false)
    }
}

/// Looks without taking. An eventfd that cannot be looked at is one that nobody knows to wait.
fn has_event(eventfd: &EventFd) -> io::Result<bool> {
    let epoll = Epoll::new()?;
    let interest = EpollEvent::new(EventSet::IN, 0);
    epoll.ctl(ControlOperation::Add, eventfd.as_raw_fd(), interest)?;
    Ok(epoll.wait(0, &mut [EpollEvent::default()])? > 0)
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
        for (n, state) in unmasked(msix) {
            vectors.open(ports, n, state);
        }
        // Vector 0 alone, without an eventfd if it is masked, switches the device over: drivers talk to firmware
        // that looks at the enable bit long before they unmask a vector. More at once only where VFIO cannot add
        // vectors later.
        let used = vectors.slots.iter().rposition(Option::is_some).map_or(1, |last| last + 1);
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
        for n in 0..msix.count() {
            self.sync(ports, msix, n);
        }
    }

    /// After vector `n` changed.
    pub(crate) fn sync(&mut self, ports: &mut Ports<'_>, msix: &Msix, n: u16) {
        let state = msix.vector(n);
        let n = usize::from(n);
        if let Some(Some(slot)) = self.slots.get_mut(n) {
            if let Err(error) = slot.sync(state, &ports.warnings.life) {
                ports.warnings.once("an MSI-X vector cannot be connected", &error);
            }
        } else if !state.masked && self.open(ports, n, state) {
            if self.dynamic || n < self.capacity {
                self.trigger(ports, n);
            } else if let Err(error) = self.grow(ports, msix, n) {
                self.close(ports, n);
                ports.warnings.once("the host has no more MSI-X vectors", &error);
            }
        }
    }

    /// Has vector `n` been signalled while it was masked?
    pub(crate) fn is_waiting(&self, n: u16) -> bool {
        matches!(self.slots.get(usize::from(n)), Some(Some(slot)) if slot.is_waiting())
    }

    /// Turns MSI-X off in the device.
    pub(crate) fn disable(mut self, backend: &dyn VfioBackend) -> io::Result<()> {
        // Ours before the host's: a route must not go while its irqfd can still fire, nor the host's interrupt while
        // it is bypassed into the guest.
        self.slots.clear();
        if self.capacity > 0 { backend.disable_irqs(IrqIndex::Msix) } else { Ok(()) }
    }

    /// Makes vector `n` and connects it. The route first, the irqfd second (both in `connect`); the device third.
    fn open(&mut self, ports: &mut Ports<'_>, n: usize, state: VectorState) -> bool {
        let Some(place) = self.slots.get_mut(n) else { return false };
        let made = Slot::new(ports.router).and_then(|mut slot| {
            slot.sync(state, &ports.warnings.life)?;
            Ok(slot)
        });
        match made {
            Ok(slot) => *place = Some(slot),
            Err(error) => ports.warnings.once("the guest is out of interrupt lines", &error),
        }
        place.is_some()
    }

    /// Lets the device signal vector `n`, or gives it up.
    fn trigger(&mut self, ports: &mut Ports<'_>, n: usize) {
        let Some(Some(slot)) = self.slots.get(n) else { return };
        let trigger = [Some(slot.eventfd())];
        if let Err(error) = ports.backend.set_triggers(IrqIndex::Msix, n as u32, &trigger) {
            self.close(ports, n);
            ports.warnings.once("the host has no interrupt for an MSI-X vector", &error);
        }
    }

    fn close(&mut self, ports: &Ports<'_>, n: usize) {
        if let Some(slot) = self.slots.get_mut(n).and_then(Option::take)
            && slot.connected.is_some()
        {
            ports.warnings.life.disconnected();
        }
    }

    /// More host vectors than `capacity`, up to `n`: without dynamic MSI-X that means all off and all on again. To
    /// do so rarely, room is made for every vector with a message, and at least doubled.
    fn grow(&mut self, ports: &mut Ports<'_>, msix: &Msix, n: usize) -> io::Result<()> {
        let (old, used) = (self.capacity, n + 1);
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

fn unmasked(msix: &Msix) -> impl Iterator<Item = (usize, VectorState)> + '_ {
    (0..msix.count()).map(|n| (usize::from(n), msix.vector(n))).filter(|(_, state)| !state.masked)
}
