//! Interrupts into the guest: GSI routes and irqfds (Documentation/virt/kvm/api.rst, 4.52 and 4.75).
//!
//! A GSI is a line number inside KVM. The first 24 are the pins of PIC and I/O APIC; each message-signalled
//! vector in use takes one of its own above them. Order matters: a route comes before its irqfd and goes
//! after it, or an edge is lost (and on AMD hosts with posted interrupts the host's kernel crashed).

use std::{
    collections::BTreeMap,
    io,
    sync::{Arc, Mutex, MutexGuard},
};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use strait_devices::ports::{IrqLine, MsiMessage, MsiRouter, MsiVector};
use strait_resources::window::IdPool;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Pins of the I/O APIC.
const IOAPIC_PINS: u32 = 24;
/// `KVM_MAX_IRQ_ROUTES`; the pins take 40 entries of it.
const MAX_GSI: u32 = 4096 - 40;

/// All routes of one VM.
pub(crate) struct Routes {
    vm: Arc<VmFd>,
    gsis: IdPool,
    /// What each GSI of a connected vector injects.
    messages: Mutex<BTreeMap<u32, MsiMessage>>,
}

impl Routes {
    /// Routes for the pins only.
    pub(crate) fn new(vm: &Arc<VmFd>) -> io::Result<Arc<Self>> {
        let gsis = IdPool::new(IOAPIC_PINS, MAX_GSI);
        let routes = Self { vm: Arc::clone(vm), gsis, messages: Mutex::default() };
        routes.commit(&routes.lock())?;
        Ok(Arc::new(routes))
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, MsiMessage>> {
        self.messages.lock().expect("no panic while held")
    }

    /// KVM takes the whole table at once.
    fn commit(&self, messages: &BTreeMap<u32, MsiMessage>) -> io::Result<()> {
        let mut entries = pin_routes();
        entries.extend(messages.iter().map(|(gsi, message)| msi_route(*gsi, *message)));
        let routing = KvmIrqRouting::from_entries(&entries)
            .map_err(|e| io::Error::other(format!("{e:?}")))?;
        self.vm.set_gsi_routing(&routing).map_err(errno)
    }
}

/// GSI 0..=15 reach PIC and I/O APIC, 16..=23 the I/O APIC alone; the timer's GSI 0 is on I/O APIC pin 2,
/// as the MADT says.
fn pin_routes() -> Vec<kvm_irq_routing_entry> {
    let pic = (0..16).filter(|gsi| *gsi != 2).map(|gsi| match gsi {
        0..8 => pin_route(gsi, KVM_IRQCHIP_PIC_MASTER, gsi),
        _ => pin_route(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8),
    });
    let ioapic = (0..IOAPIC_PINS).filter(|gsi| *gsi != 2).map(|gsi| match gsi {
        0 => pin_route(0, KVM_IRQCHIP_IOAPIC, 2),
        _ => pin_route(gsi, KVM_IRQCHIP_IOAPIC, gsi),
    });
    pic.chain(ioapic).collect()
}

fn pin_route(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

fn msi_route(gsi: u32, message: MsiMessage) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = message.address as u32;
    entry.u.msi.address_hi = (message.address >> 32) as u32;
    entry.u.msi.data = message.data;
    entry
}

/// Message-signalled vectors over KVM.
pub(crate) struct KvmMsiRouter(pub(crate) Arc<Routes>);

impl MsiRouter for KvmMsiRouter {
    fn vector(&self) -> io::Result<Box<dyn MsiVector>> {
        let eventfd = EventFd::new(EFD_NONBLOCK)?;
        let gsi = self.0.gsis.allocate().map_err(io::Error::other)?;
        Ok(Box::new(Vector { routes: Arc::clone(&self.0), gsi, eventfd, connected: None }))
    }
}

struct Vector {
    routes: Arc<Routes>,
    gsi: u32,
    eventfd: EventFd,
    connected: Option<MsiMessage>,
}

impl MsiVector for Vector {
    fn eventfd(&self) -> &EventFd {
        &self.eventfd
    }

    fn connect(&mut self, message: MsiMessage) -> io::Result<()> {
        if self.connected == Some(message) {
            return Ok(());
        }
        let mut messages = self.routes.lock();
        let before = messages.insert(self.gsi, message);
        if let Err(error) = self.routes.commit(&messages) {
            match before {
                Some(before) => messages.insert(self.gsi, before),
                None => messages.remove(&self.gsi),
            };
            return Err(error);
        }
        drop(messages);
        if self.connected.is_none() {
            self.routes.vm.register_irqfd(&self.eventfd, self.gsi).map_err(errno)?;
        }
        self.connected = Some(message);
        Ok(())
    }

    fn disconnect(&mut self) {
        if self.connected.take().is_none() {
            return;
        }
        if let Err(error) = self.routes.vm.unregister_irqfd(&self.eventfd, self.gsi) {
            log::warn!("irqfd of GSI {} stays: {error}", self.gsi);
        }
        // The route stays in KVM until the next commit: nothing signals it any more, and taking it out
        // alone would cost a table update for each masked vector.
        self.routes.lock().remove(&self.gsi);
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.disconnect();
        self.routes.gsis.free(self.gsi);
    }
}

/// One pin of the I/O APIC, level-triggered.
pub(crate) struct KvmIrqLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl KvmIrqLine {
    /// The line of a GSI below 24.
    pub(crate) fn new(vm: &Arc<VmFd>, gsi: u32) -> Self {
        Self { vm: Arc::clone(vm), gsi }
    }
}

impl IrqLine for KvmIrqLine {
    fn connect(&self, trigger: &EventFd, resample: &EventFd) -> io::Result<()> {
        self.vm.register_irqfd_with_resample(trigger, resample, self.gsi).map_err(errno)
    }

    fn disconnect(&self, trigger: &EventFd, _resample: &EventFd) -> io::Result<()> {
        self.vm.unregister_irqfd(trigger, self.gsi).map_err(errno)
    }
}

fn errno(error: kvm_ioctls::Error) -> io::Error {
    io::Error::from_raw_os_error(error.errno())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pin_routes_reach_every_pin_and_move_the_timer_to_pin_2() {
        let routes = pin_routes();
        let ioapic: Vec<(u32, u32)> =
            routes.iter().filter_map(|route| pin_of(route, KVM_IRQCHIP_IOAPIC)).collect();
        assert!(ioapic.contains(&(0, 2)));
        assert_eq!(ioapic.iter().filter(|(_, pin)| *pin == 2).count(), 1);
        assert!((16..24).all(|gsi| ioapic.contains(&(gsi, gsi))));
        let pic: Vec<_> = routes.iter().filter_map(|r| pin_of(r, KVM_IRQCHIP_PIC_SLAVE)).collect();
        assert_eq!(pic.first(), Some(&(8, 0)));
        assert!(routes.len() as u32 + MAX_GSI - IOAPIC_PINS <= 4096);
    }

    #[allow(unsafe_code, reason = "reads one variant of a C union")]
    fn pin_of(route: &kvm_irq_routing_entry, chip: u32) -> Option<(u32, u32)> {
        // SAFETY: every entry of `pin_routes` holds the irqchip variant; both fields are plain integers.
        let irqchip = unsafe { route.u.irqchip };
        (irqchip.irqchip == chip).then_some((route.gsi, irqchip.pin))
    }
}
