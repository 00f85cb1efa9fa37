//! Interrupts into the guest: GSI routes and irqfds (Documentation/virt/kvm/api.rst, 4.52 and 4.75).
//!
//! A GSI is a line number inside KVM. The first 24 are the pins of PIC and I/O APIC, and a PCI line's also raises the
//! PIC's pin that the guest has routed it to; each message-signalled vector in use takes one of its own above them. Order matters: a route comes before its irqfd and goes
//! after it, or an edge is lost (and on AMD hosts with posted interrupts the host's kernel crashed).

use std::{
    collections::BTreeMap,
    io,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
};

use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KvmIrqRouting, kvm_irq_routing_entry,
};
use kvm_ioctls::VmFd;
use strait_arch::layout;
use strait_devices::ports::{IrqLine, LineRouter, MsiMessage, MsiRouter, MsiVector, PCI_LINES};
use strait_resources::window::IdPool;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

/// Pins of the I/O APIC.
const IOAPIC_PINS: u32 = 24;
/// `KVM_MAX_IRQ_ROUTES`; the pins take 38 entries of it, the PCI lines at the PIC 8.
const MAX_GSI: u32 = 4096 - 48;

/// What KVM does with interrupts.
trait Controller: Send + Sync {
    /// Replaces all routes.
    fn route(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()>;
    /// Signals of `event` come in on `gsi`.
    fn connect(&self, event: &EventFd, gsi: u32) -> io::Result<()>;
    /// Undoes `connect`.
    fn disconnect(&self, event: &EventFd, gsi: u32) -> io::Result<()>;
}

impl Controller for VmFd {
    fn route(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
        let routing =
            KvmIrqRouting::from_entries(entries).map_err(|e| io::Error::other(format!("{e:?}")))?;
        self.set_gsi_routing(&routing).map_err(errno)
    }

    fn connect(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.register_irqfd(event, gsi).map_err(errno)
    }

    fn disconnect(&self, event: &EventFd, gsi: u32) -> io::Result<()> {
        self.unregister_irqfd(event, gsi).map_err(errno)
    }
}

/// All routes of one VM.
pub(crate) struct Routes {
    vm: Arc<dyn Controller>,
    gsis: IdPool,
    table: Mutex<Table>,
    /// The ISA interrupt that each PCI line raises too, a byte for each; 0: none. Written under `table`.
    lines: AtomicU64,
}

/// The routes of vectors. KVM takes the whole table at once, so what is announced waits for the first connection.
#[derive(Default)]
struct Table {
    /// What each GSI of a connected or announced vector injects.
    messages: BTreeMap<u32, MsiMessage>,
    /// KVM does not have all of `messages` and the PCI lines yet. It may have more: nothing signals these.
    changed: bool,
}

impl Table {
    /// What the GSI injected before.
    fn put(&mut self, gsi: u32, message: MsiMessage) -> Option<MsiMessage> {
        let before = self.messages.insert(gsi, message);
        self.changed |= before != Some(message);
        before
    }
}

impl Routes {
    /// Routes for the pins only, PCI lines as after power-on.
    pub(crate) fn new(vm: &Arc<VmFd>) -> io::Result<Arc<Self>> {
        Self::over(Arc::clone(vm) as Arc<dyn Controller>)
    }

    fn over(vm: Arc<dyn Controller>) -> io::Result<Arc<Self>> {
        let gsis = IdPool::new(IOAPIC_PINS, MAX_GSI);
        let lines = AtomicU64::new(u64::from_le_bytes(layout::PCI_IRQS));
        let table = Mutex::new(Table { changed: true, ..Table::default() });
        let routes = Self { vm, gsis, table, lines };
        routes.commit(&mut routes.lock())?;
        Ok(Arc::new(routes))
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("no panic while held")
    }

    /// Gives KVM the table, if it has another.
    fn commit(&self, table: &mut Table) -> io::Result<()> {
        if !table.changed {
            return Ok(());
        }
        let mut entries = pin_routes(self.lines.load(Ordering::Relaxed).to_le_bytes());
        entries.extend(table.messages.iter().map(|(gsi, message)| msi_route(*gsi, *message)));
        self.vm.route(&entries)?;
        table.changed = false;
        Ok(())
    }
}

impl LineRouter for Routes {
    fn route(&self, irqs: [Option<u8>; PCI_LINES]) {
        let mut table = self.lock();
        let lines = u64::from_le_bytes(irqs.map(|irq| irq.unwrap_or(0)));
        if self.lines.swap(lines, Ordering::Relaxed) == lines {
            return;
        }
        // The table has room for them, so that KVM has no reason to refuse: a guest must not fill the log with it.
        table.changed = true;
        if let Err(error) = self.commit(&mut table) {
            log::debug!("PCI lines stay where they were: {error}");
        }
    }
}

/// GSI 0..=15 reach PIC and I/O APIC, the PCI lines' 16..=23 the I/O APIC and the PIC's pin in `lines`; the timer's GSI 0
/// is on I/O APIC pin 2, as the MADT says. KVM tells the end of an interrupt at a pin to the GSI that comes last here
/// with it: a PCI line, which needs it to be raised again, before an ISA device, which does not.
fn pin_routes(lines: [u8; PCI_LINES]) -> Vec<kvm_irq_routing_entry> {
    let at_pic = |gsi: u32, irq: u32| match irq {
        0..8 => pin_route(gsi, KVM_IRQCHIP_PIC_MASTER, irq),
        _ => pin_route(gsi, KVM_IRQCHIP_PIC_SLAVE, irq - 8),
    };
    let isa = (0..16).filter(|gsi| *gsi != 2).map(|gsi| at_pic(gsi, gsi));
    let lines = (layout::PCI_GSI_BASE..).zip(lines).filter(|(_, irq)| *irq != 0);
    let pci = lines.map(|(gsi, irq)| at_pic(gsi, irq.into()));
    let ioapic = (0..IOAPIC_PINS).filter(|gsi| *gsi != 2).map(|gsi| match gsi {
        0 => pin_route(0, KVM_IRQCHIP_IOAPIC, 2),
        _ => pin_route(gsi, KVM_IRQCHIP_IOAPIC, gsi),
    });
    isa.chain(pci).chain(ioapic).collect()
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
        let eventfd = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
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

    fn announce(&mut self, message: MsiMessage) {
        self.routes.lock().put(self.gsi, message);
    }

    fn connect(&mut self, message: MsiMessage) -> io::Result<()> {
        if self.connected == Some(message) {
            return Ok(());
        }
        let mut table = self.routes.lock();
        table.put(self.gsi, message);
        let routed = self.routes.commit(&mut table);
        if routed.is_err() {
            self.restore(&mut table);
            return routed;
        }
        if self.connected.is_none()
            && let Err(error) = self.routes.vm.connect(&self.eventfd, self.gsi)
        {
            self.restore(&mut table);
            return Err(error);
        }
        self.connected = Some(message);
        Ok(())
    }

    fn disconnect(&mut self) {
        // Also what was announced and came to nothing.
        if self.connected.take().is_none() {
            self.routes.lock().messages.remove(&self.gsi);
            return;
        }
        if let Err(error) = self.routes.vm.disconnect(&self.eventfd, self.gsi) {
            log::warn!("irqfd of GSI {} stays: {error}", self.gsi);
        }
        // The route stays in KVM until the next commit: nothing signals it any more, and taking it out
        // alone would cost a table update for each masked vector.
        self.routes.lock().messages.remove(&self.gsi);
    }
}

impl Vector {
    /// Back to what the vector is connected to, after a connection that failed.
    fn restore(&self, table: &mut Table) {
        match self.connected {
            Some(before) => drop(table.put(self.gsi, before)),
            // KVM may have the route: nothing signals it.
            None => drop(table.messages.remove(&self.gsi)),
        }
    }
}

impl Drop for Vector {
    fn drop(&mut self) {
        self.disconnect();
        self.routes.gsis.free(self.gsi);
    }
}

/// One PCI interrupt line, level-triggered.
pub(crate) struct KvmIrqLine {
    vm: Arc<VmFd>,
    gsi: u32,
}

impl KvmIrqLine {
    /// The line of a GSI from 16 to 23.
    pub(crate) fn new(vm: &Arc<VmFd>, gsi: u32) -> Self {
        Self { vm: Arc::clone(vm), gsi }
    }
}

impl IrqLine for KvmIrqLine {
    fn irq(&self) -> u8 {
        let line =
            self.gsi.checked_sub(layout::PCI_GSI_BASE).and_then(|line| usize::try_from(line).ok());
        line.and_then(|line| layout::PCI_IRQS.get(line)).copied().unwrap_or(0)
    }

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
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};

    use super::*;

    /// Counts updates of the table, and remembers how many routes the last one had.
    #[derive(Default)]
    struct Counting {
        updates: AtomicUsize,
        routes: AtomicUsize,
        refuses_irqfds: AtomicBool,
    }

    impl Controller for Counting {
        fn route(&self, entries: &[kvm_irq_routing_entry]) -> io::Result<()> {
            self.updates.fetch_add(1, Relaxed);
            self.routes.store(entries.len() - pin_routes(layout::PCI_IRQS).len(), Relaxed);
            Ok(())
        }
        fn connect(&self, _: &EventFd, _: u32) -> io::Result<()> {
            match self.refuses_irqfds.load(Relaxed) {
                true => Err(io::ErrorKind::OutOfMemory.into()),
                false => Ok(()),
            }
        }
        fn disconnect(&self, _: &EventFd, _: u32) -> io::Result<()> {
            Ok(())
        }
    }

    fn message(data: u32) -> MsiMessage {
        MsiMessage { address: 0xfee0_0000, data }
    }

    #[test]
    fn announced_vectors_are_routed_by_one_update() {
        let kvm = Arc::new(Counting::default());
        let router = KvmMsiRouter(Routes::over(Arc::clone(&kvm) as _).unwrap());
        let mut vectors: Vec<_> = (0..512).map(|_| router.vector().unwrap()).collect();
        for round in 1..3 {
            (0..).zip(&mut vectors).for_each(|(n, vector)| vector.announce(message(n)));
            (0..).zip(&mut vectors).for_each(|(n, vector)| vector.connect(message(n)).unwrap());
            assert_eq!(kvm.updates.load(Relaxed), 1 + round);
            assert_eq!(kvm.routes.load(Relaxed), 512);
            vectors.iter_mut().for_each(|vector| vector.disconnect());
        }
    }

    #[test]
    fn guest_that_reboots_1000_times_leaves_no_gsi_and_no_route() {
        let kvm = Arc::new(Counting::default());
        let routes = Routes::over(Arc::clone(&kvm) as _).unwrap();
        let router = KvmMsiRouter(Arc::clone(&routes));
        let mut free = Vec::new();
        for boot in 1..=1000 {
            let mut vectors: Vec<_> = (0..32).map(|_| router.vector().unwrap()).collect();
            (0..).zip(&mut vectors).for_each(|(n, vector)| vector.connect(message(n)).unwrap());
            drop(vectors);
            if [10, 1000].contains(&boot) {
                let next = routes.gsis.allocate().unwrap();
                assert!(routes.gsis.free(next));
                free.push((next, routes.lock().messages.len()));
            }
        }
        assert_eq!(free, [(IOAPIC_PINS, 0); 2]);
    }

    #[test]
    fn vector_whose_irqfd_is_refused_leaves_no_route() {
        let kvm = Arc::new(Counting::default());
        let routes = Routes::over(Arc::clone(&kvm) as _).unwrap();
        let router = KvmMsiRouter(Arc::clone(&routes));
        let (mut refused, mut other) = (router.vector().unwrap(), router.vector().unwrap());
        kvm.refuses_irqfds.store(true, Relaxed);
        assert!(refused.connect(message(1)).is_err());
        assert!(routes.lock().messages.is_empty());
        kvm.refuses_irqfds.store(false, Relaxed);
        other.connect(message(2)).unwrap();
        assert_eq!(kvm.routes.load(Relaxed), 1);
    }

    #[test]
    fn pin_routes_reach_every_pin_and_move_the_timer_to_pin_2() {
        let routes = pin_routes([0; PCI_LINES]);
        let ioapic: Vec<(u32, u32)> =
            routes.iter().filter_map(|route| pin_of(route, KVM_IRQCHIP_IOAPIC)).collect();
        assert!(ioapic.contains(&(0, 2)));
        assert_eq!(ioapic.iter().filter(|(_, pin)| *pin == 2).count(), 1);
        assert!((16..24).all(|gsi| ioapic.contains(&(gsi, gsi))));
        let pic: Vec<_> = routes.iter().filter_map(|r| pin_of(r, KVM_IRQCHIP_PIC_SLAVE)).collect();
        assert_eq!(pic.first(), Some(&(8, 0)));
        assert!(routes.len() as u32 + MAX_GSI - IOAPIC_PINS <= 4096);
    }

    #[test]
    fn pci_lines_reach_the_pic_where_the_guest_has_routed_them() {
        let mut lines = layout::PCI_IRQS;
        (lines[0], lines[1]) = (4, 0);
        let routes = pin_routes(lines);
        let at = |chip| -> Vec<(u32, u32)> {
            routes.iter().filter_map(|route| pin_of(route, chip)).collect()
        };
        let (master, slave) = (at(KVM_IRQCHIP_PIC_MASTER), at(KVM_IRQCHIP_PIC_SLAVE));
        // ICH9's PIRQA at IRQ 4, where the serial port is too, and comes first; PIRQB nowhere; PIRQD at IRQ 12.
        let fours: Vec<u32> =
            master.iter().filter(|(_, pin)| *pin == 4).map(|(gsi, _)| *gsi).collect();
        assert_eq!(fours, [4, 16]);
        assert!(slave.contains(&(19, 4)));
        assert!(master.iter().chain(&slave).all(|(gsi, _)| *gsi != 17));
        // The I/O APIC's pins do not depend on it.
        assert!((16..24).all(|gsi| at(KVM_IRQCHIP_IOAPIC).contains(&(gsi, gsi))));
        let all = pin_routes(layout::PCI_IRQS).len();
        assert_eq!(all as u32, 4096 - MAX_GSI - 2, "38 pins and 8 lines in the room for 48");
    }

    #[test]
    fn power_on_lines_have_interrupts_of_their_own() {
        let mut irqs = layout::PCI_IRQS.to_vec();
        irqs.sort_unstable();
        irqs.dedup();
        assert_eq!(irqs.len(), PCI_LINES);
        let taken = [layout::SERIAL_IRQ, layout::SCI_IRQ, 0, 1, 2, 8, 13];
        assert!(irqs.iter().all(|irq| !taken.contains(&u32::from(*irq)) && *irq < 16));
    }

    #[allow(unsafe_code, reason = "reads one variant of a C union")]
    fn pin_of(route: &kvm_irq_routing_entry, chip: u32) -> Option<(u32, u32)> {
        // SAFETY: every entry of `pin_routes` holds the irqchip variant; both fields are plain integers.
        let irqchip = unsafe { route.u.irqchip };
        (irqchip.irqchip == chip).then_some((route.gsi, irqchip.pin))
    }
}
