//! LPC bridge at 00:1f.0: an ICH9's, with what firmware and operating systems read: where the power management block
//! and the root complex registers are (Intel ICH9 datasheet, chapter 13), and the registers that route PCI interrupt
//! lines to the 8259s. It decodes nothing itself.

use std::sync::Arc;

use crate::{
    pci::{config::ConfigSpace, function::ConfigAccess, regs},
    ports::{LineRouter, PCI_LINES},
};

const ID: (u16, u16) = (0x8086, 0x2918);
const PMBASE: u16 = 0x40;
const ACPI_CONTROL: u16 = 0x44;
const ACPI_ENABLE: u16 = 1 << 7;
/// PIRQ[n]_ROUT: A to D, then E to H.
const ROUTING: [u16; PCI_LINES] = [0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6a, 0x6b];
/// The line raises no ISA interrupt.
const ROUTING_OFF: u8 = 1 << 7;
const ROUTING_IRQ: u8 = 0x0f;
/// Interrupts of the timer, the keyboard, the second 8259, the clock and the coprocessor: reserved values.
const RESERVED_IRQS: [u8; 5] = [0, 1, 2, 8, 13];
const RCBA: u16 = 0xf0;

/// Where things are, and what firmware would have set.
#[derive(Clone, Copy, Debug)]
pub(super) struct LpcParts {
    /// The PM block's first port.
    pub(super) power: u16,
    /// Address of the root complex registers.
    pub(super) root_complex: u32,
    /// The ISA interrupt that each PCI line raises after power-on.
    pub(super) lines: [u8; PCI_LINES],
}

/// The function at 00:1f.0.
pub(super) struct Lpc {
    config: ConfigSpace,
    parts: LpcParts,
    router: Arc<dyn LineRouter>,
}

impl Lpc {
    /// As after power-on; `router` knows the lines of `parts` already.
    pub(super) fn new(parts: LpcParts, router: Arc<dyn LineRouter>) -> Self {
        Self { config: registers(&parts), parts, router }
    }

    /// The value, right-aligned.
    pub(super) fn config_read(&self, at: ConfigAccess) -> u32 {
        self.config.read(at)
    }

    /// What the guest may not write vanishes.
    pub(super) fn config_write(&mut self, at: ConfigAccess, value: u32) {
        let before = self.routes();
        self.config.write(at, value);
        if self.routes() != before {
            self.router.route(self.routes());
        }
    }

    /// As after power-on.
    pub(super) fn reset(&mut self) {
        self.config = registers(&self.parts);
        self.router.route(self.routes());
    }

    /// The ISA interrupt of each line.
    fn routes(&self) -> [Option<u8>; PCI_LINES] {
        ROUTING.map(|at| {
            let value = self.config.get8(at);
            let irq = value & ROUTING_IRQ;
            (value & ROUTING_OFF == 0 && !RESERVED_IRQS.contains(&irq)).then_some(irq)
        })
    }
}

fn registers(parts: &LpcParts) -> ConfigSpace {
    let mut config = ConfigSpace::new(ID, regs::CLASS_ISA_BRIDGE, regs::HEADER_TYPE_0);
    config.allow16(regs::COMMAND, 0x0107);
    config.set32(PMBASE, u32::from(parts.power) | 1);
    config.set16(ACPI_CONTROL, ACPI_ENABLE);
    config.allow16(ACPI_CONTROL, 0x87);
    for (at, irq) in ROUTING.into_iter().zip(parts.lines) {
        config.set8(at, irq);
    }
    config.allow32(ROUTING[0], 0x8f8f_8f8f);
    config.allow32(ROUTING[4], 0x8f8f_8f8f);
    config.set32(RCBA, parts.root_complex | 1);
    config
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::*;

    #[derive(Default)]
    struct Router(Mutex<Vec<[Option<u8>; PCI_LINES]>>);

    impl LineRouter for Router {
        fn route(&self, irqs: [Option<u8>; PCI_LINES]) {
            self.0.lock().unwrap().push(irqs);
        }
    }

    impl Router {
        fn told(&self) -> Vec<[Option<u8>; PCI_LINES]> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    const LINES: [u8; PCI_LINES] = [10, 11, 5, 12, 14, 15, 6, 3];

    fn bridge() -> (Lpc, Arc<Router>) {
        let router = Arc::new(Router::default());
        let parts = LpcParts { power: 0x600, root_complex: 0xfed1_c000, lines: LINES };
        (Lpc::new(parts, Arc::clone(&router) as _), router)
    }

    fn write(lpc: &mut Lpc, offset: u16, len: u8, value: u32) {
        lpc.config_write(ConfigAccess::new(offset, len).unwrap(), value);
    }

    fn read(lpc: &Lpc, offset: u16) -> u32 {
        lpc.config_read(ConfigAccess::new(offset, 4).unwrap())
    }

    #[test]
    fn lines_are_routed_as_firmware_left_them_and_told_only_when_they_change() {
        let (mut lpc, router) = bridge();
        assert_eq!((read(&lpc, 0x60), read(&lpc, 0x68)), (0x0c05_0b0a, 0x0306_0f0e));
        write(&mut lpc, 0x60, 1, 10);
        write(&mut lpc, 0x44, 1, 0x80);
        assert!(router.told().is_empty(), "nothing changed");
        lpc.reset();
        assert_eq!(router.told(), [LINES.map(Some)]);
    }

    #[test]
    fn line_goes_where_the_guest_routes_it() {
        let (mut lpc, router) = bridge();
        write(&mut lpc, 0x61, 1, 0x85);
        let mut expected = LINES.map(Some);
        expected[1] = None;
        assert_eq!(router.told(), [expected], "bit 7 is off");
        write(&mut lpc, 0x68, 4, 0x7f7f_7f79);
        expected[4..].copy_from_slice(&[Some(9), Some(15), Some(15), Some(15)]);
        assert_eq!(router.told(), [expected], "bits 6 to 4 do not exist");
        assert_eq!(read(&lpc, 0x68), 0x0f0f_0f09);
    }

    #[test]
    fn reserved_interrupts_are_none() {
        let (mut lpc, router) = bridge();
        for irq in RESERVED_IRQS {
            write(&mut lpc, 0x60, 1, 7);
            write(&mut lpc, 0x60, 1, irq.into());
            assert_eq!(router.told().last().map(|routes| routes[0]), Some(None), "{irq}");
        }
    }
}
