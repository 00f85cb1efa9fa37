//! Brings a function's interrupts into the guest: one state machine over INTx, MSI and MSI-X.
//!
//! A function interrupts in one way at a time, as the kernel sees it and as PCI has it. Every change goes down to
//! nothing and up again. An interrupt, once set up, passes from the host's handler through an eventfd into KVM
//! without a thread of ours.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::{io, ops::Range, sync::Arc};

use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::{
    pci::{msi::Msi, msix::Msix},
    ports::{IrqLine, MsiRouter},
    vfio::{
        backend::{IrqIndex, VfioBackend},
        life::{InterruptMode, Warnings},
        vectors::{MsixVectors, Ports, Slot, waiting},
    },
};

/// How the guest wants the function to interrupt.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Wanted<'a> {
    /// Not at all.
    None,
    /// By its pin.
    Intx,
    /// By MSI, which is on.
    Msi(&'a Msi),
    /// By MSI-X, which is on.
    Msix(&'a Msix),
}

/// The interrupts of one function. Dropping it turns them off.
pub(crate) struct Irqs {
    state: State,
    backend: Arc<dyn VfioBackend>,
    router: Arc<dyn MsiRouter>,
    line: Option<Arc<dyn IrqLine>>,
    warnings: Warnings,
}

enum State {
    None,
    Intx(Intx),
    Msi(MsiVectors),
    Msix(MsixVectors),
}

struct Intx {
    line: Arc<dyn IrqLine>,
    trigger: EventFd,
    resample: EventFd,
}

struct MsiVectors {
    /// As many as the host gave.
    slots: Vec<Slot>,
    /// As many as the guest asked for.
    asked: u32,
}

impl Irqs {
    pub(crate) fn new(
        backend: Arc<dyn VfioBackend>,
        router: Arc<dyn MsiRouter>,
        line: Option<Arc<dyn IrqLine>>,
        warnings: Warnings,
    ) -> Self {
        Self { state: State::None, backend, router, line, warnings }
    }

    /// Makes it so. False if it cannot be had: then the function does not interrupt at all.
    pub(crate) fn set(&mut self, wanted: Wanted<'_>) -> bool {
        let mut ports =
            Ports { backend: &*self.backend, router: &*self.router, warnings: &mut self.warnings };
        match (&mut self.state, wanted) {
            (State::None, Wanted::None) | (State::Intx(_), Wanted::Intx) => return true,
            (State::Msi(vectors), Wanted::Msi(msi)) if vectors.asked == msi.count() => {
                vectors.sync_all(&mut ports, msi);
                return true;
            }
            (State::Msix(vectors), Wanted::Msix(msix)) => {
                vectors.sync_all(&mut ports, msix);
                return true;
            }
            _ => {}
        }
        self.down();
        match self.up(wanted) {
            Ok(()) => true,
            Err((what, error)) => {
                self.warnings.once(what, &error);
                self.warnings.life.mode(InterruptMode::None);
                false
            }
        }
    }

    /// After vector `n` of MSI-X, which is on, changed.
    pub(crate) fn sync_msix(&mut self, msix: &Msix, n: u16) {
        if let State::Msix(vectors) = &mut self.state {
            let mut ports = Ports {
                backend: &*self.backend,
                router: &*self.router,
                warnings: &mut self.warnings,
            };
            vectors.sync(&mut ports, msix, n);
        }
    }

    /// Those of these MSI-X vectors that have been signalled while they were masked, in ascending order.
    pub(crate) fn waiting_msix(&self, vectors: Range<u16>) -> Vec<u16> {
        match &self.state {
            State::Msix(msix) => msix.waiting(vectors),
            _ => Vec::new(),
        }
    }

    /// The MSI vectors that have been signalled while they were masked, a bit each.
    pub(crate) fn waiting_msi(&self) -> u32 {
        let State::Msi(vectors) = &self.state else { return 0 };
        let waiting = waiting((0..32).zip(&vectors.slots));
        waiting.into_iter().fold(0, |bits, n| bits | 1 << n)
    }

    fn up(&mut self, wanted: Wanted<'_>) -> Result<(), (&'static str, io::Error)> {
        let life = self.warnings.life.clone();
        let mut ports =
            Ports { backend: &*self.backend, router: &*self.router, warnings: &mut self.warnings };
        self.state = match wanted {
            Wanted::None => State::None,
            Wanted::Intx => {
                let Some(line) = &self.line else { return Ok(()) };
                life.mode(InterruptMode::Intx);
                let intx = Intx::enable(&*self.backend, line.clone())
                    .map_err(|error| ("INTx cannot be set up", error))?;
                life.connected();
                State::Intx(intx)
            }
            Wanted::Msi(msi) => {
                life.mode(InterruptMode::Msi);
                let vectors = MsiVectors::enable(&mut ports, msi)
                    .map_err(|error| ("MSI cannot be set up", error))?;
                State::Msi(vectors)
            }
            Wanted::Msix(msix) => {
                life.mode(InterruptMode::Msix);
                let vectors = MsixVectors::enable(&mut ports, msix)
                    .map_err(|error| ("MSI-X cannot be set up", error))?;
                State::Msix(vectors)
            }
        };
        Ok(())
    }

    fn down(&mut self) {
        let outcome = match std::mem::replace(&mut self.state, State::None) {
            State::None => return,
            State::Intx(intx) => intx.disable(&*self.backend),
            State::Msi(vectors) => vectors.disable(&*self.backend),
            State::Msix(vectors) => vectors.disable(&*self.backend),
        };
        self.warnings.life.mode(InterruptMode::None);
        if let Err(error) = outcome {
            self.warnings.once("interrupts cannot be turned off", &error);
        }
    }
}

impl Drop for Irqs {
    fn drop(&mut self) {
        self.down();
    }
}

impl Intx {
    fn enable(backend: &dyn VfioBackend, line: Arc<dyn IrqLine>) -> io::Result<Self> {
        let flags = EFD_NONBLOCK | EFD_CLOEXEC;
        let (trigger, resample) = (EventFd::new(flags)?, EventFd::new(flags)?);
        backend.set_triggers(IrqIndex::Intx, 0, &[Some(&trigger)])?;
        let intx = Self { line, trigger, resample };
        match intx.connect(backend) {
            Ok(()) => Ok(intx),
            Err(error) => {
                // The first error says more than one of the way back.
                let _ = backend.disable_irqs(IrqIndex::Intx);
                Err(error)
            }
        }
    }

    /// The kernel enables INTx unmasked, so mask it first: an interrupt that comes before the way back (resample) is
    /// complete would be masked by the kernel and never be unmasked. One that came already waits in the trigger and
    /// goes in as the irqfd is connected. The unmask is last, when everything stands.
    fn connect(&self, backend: &dyn VfioBackend) -> io::Result<()> {
        backend.mask_intx()?;
        self.line.connect(&self.trigger, &self.resample)?;
        let armed =
            backend.set_intx_unmask(Some(&self.resample)).and_then(|()| backend.unmask_intx());
        if armed.is_err() {
            // As above.
            let _ = self.line.disconnect(&self.trigger, &self.resample);
        }
        armed
    }

    /// Tries every step, and returns the first error.
    fn disable(self, backend: &dyn VfioBackend) -> io::Result<()> {
        // Masked first, so that nothing fires into a line that is being taken apart.
        let masked = backend.mask_intx();
        let unarmed = backend.set_intx_unmask(None);
        let disconnected = self.line.disconnect(&self.trigger, &self.resample);
        let disabled = backend.disable_irqs(IrqIndex::Intx);
        masked.and(unarmed).and(disconnected).and(disabled)
    }
}

impl MsiVectors {
    /// Route and irqfd first (in `connect`), the device last: it may signal as soon as VFIO has the eventfds.
    fn enable(ports: &mut Ports<'_>, msi: &Msi) -> io::Result<Self> {
        let mut slots = Vec::new();
        for n in 0..msi.count() {
            let mut slot = Slot::new(ports.router, &ports.warnings.life)?;
            slot.announce(msi.vector(n));
            slots.push(slot);
        }
        for (n, slot) in (0..).zip(&mut slots) {
            slot.sync(msi.vector(n))?;
        }
        loop {
            let triggers: Vec<_> = slots.iter().map(|slot| Some(slot.eventfd())).collect();
            let Err(error) = ports.backend.set_triggers(IrqIndex::Msi, 0, &triggers) else { break };
            // A host without interrupt remapping has one MSI vector for a device, however many it is capable of.
            if slots.len() <= 1 {
                return Err(error);
            }
            slots.truncate(slots.len() / 2);
            ports.warnings.once("the host has fewer MSI vectors than the guest asked for", &error);
        }
        Ok(Self { slots, asked: msi.count() })
    }

    fn sync_all(&mut self, ports: &mut Ports<'_>, msi: &Msi) {
        for (n, slot) in (0..).zip(&mut self.slots) {
            slot.announce(msi.vector(n));
        }
        for (n, slot) in (0..).zip(&mut self.slots) {
            if let Err(error) = slot.sync(msi.vector(n)) {
                ports.warnings.once("an MSI vector cannot be connected", &error);
            }
        }
    }

    fn disable(self, backend: &dyn VfioBackend) -> io::Result<()> {
        // As with MSI-X: irqfds and routes before the host's interrupts.
        drop(self.slots);
        backend.disable_irqs(IrqIndex::Msi)
    }
}

#[cfg(test)]
mod tests;
