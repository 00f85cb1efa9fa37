//! The legacy devices, and what is typed at the serial port.

use std::{
    collections::VecDeque,
    io,
    sync::{Arc, Mutex, PoisonError},
};

use strait_devices::{
    legacy::{LegacyDevice, acpi_pm, acpi_pm::AcpiPm, i8042::I8042, rtc::Rtc, serial::Serial},
    ports::MachineControl,
};
use vm_device::{DevicePio as _, bus::PioAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const SERIAL: PioAddress = PioAddress(0x3f8);
/// Offsets of its registers: data, line control, modem control, line status.
const DATA: u16 = 0;
const LINE_CONTROL: u16 = 3;
const MODEM_CONTROL: u16 = 4;
const LINE_STATUS: u16 = 5;
/// Bytes that the port keeps for a guest that does not read.
const WAITING_MAX: usize = 4 << 20;
/// And in its FIFO.
const FIFO: usize = 64;

struct Nobody;

impl MachineControl for Nobody {
    fn power_off(&self) {}
    fn reset(&self) {}
}

/// What the guest writes.
#[derive(Clone, Default)]
struct Output(Arc<Mutex<Vec<u8>>>);

impl io::Write for Output {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(data);
        Ok(data.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Accesses of any width to every register. A step has three bytes: what, offset, value.
pub(crate) fn registers(bytes: &[u8]) {
    let interrupt = EventFd::new(EFD_NONBLOCK).expect("a descriptor");
    let serial = Serial::new(interrupt, Box::new(io::sink()), Box::new(|| {}));
    let devices: [(u16, u16, Box<dyn LegacyDevice>); 5] = [
        (0x3f8, 8, Box::new(serial)),
        (0x70, 2, Box::new(Rtc::new(1 << 31, 1 << 40))),
        (0x60, 1, Box::new(I8042::new(Arc::new(Nobody)))),
        (0x64, 1, Box::new(I8042::new(Arc::new(Nobody)))),
        (0x600, acpi_pm::SIZE as u16, Box::new(AcpiPm::new(Arc::new(Nobody)))),
    ];
    for step in bytes.chunks_exact(3) {
        let (base, size, device) = &devices[usize::from(step[0] & 7) % devices.len()];
        let offset = u16::from(step[1]) % size;
        let len = [1, 1, 1, 2, 4, 8, 3, 1][usize::from(step[0] >> 3 & 7)];
        // The bus lets nothing through that leaves the device.
        let len = len.min(usize::from(size - offset));
        let mut data = [step[2]; 8];
        match step[0] >> 6 {
            0 => device.pio_read(PioAddress(*base), offset, &mut data[..len]),
            1 | 2 => device.pio_write(PioAddress(*base), offset, &data[..len]),
            _ => device.reset(),
        }
    }
}

/// What is typed comes out in order and whole, whatever else the guest does with the port, and what it writes goes out;
/// in loopback mode and with the divisor shown the data register is not the port's.
pub(crate) fn serial(bytes: &[u8]) {
    let interrupt = EventFd::new(EFD_NONBLOCK).expect("a descriptor");
    let output = Output::default();
    let port = Serial::new(interrupt, Box::new(output.clone()), Box::new(|| {}));
    let (mut typed, mut written) = (VecDeque::new(), Vec::new());
    let (mut divisor, mut loops) = (false, false);
    for step in bytes.chunks_exact(2) {
        let [kind, value] = [step[0], step[1]];
        let write = |offset: u16| port.pio_write(SERIAL, offset, &[value]);
        match kind & 15 {
            0..=3 => {
                let paste = vec![value; usize::from(kind >> 4) * 37];
                let taken = port.input(&paste);
                typed.extend(&paste[..taken]);
                assert!(typed.len() <= WAITING_MAX + FIFO);
            }
            4..=8 => read_typed(&port, &mut typed, usize::from(value), divisor || loops),
            9 if !loops => {
                write(DATA);
                if !divisor {
                    written.push(value);
                }
            }
            10 => {
                write(LINE_CONTROL);
                divisor = value & 0x80 != 0;
            }
            // Loopback brings the guest's own bytes into the FIFO: only while nothing was typed.
            11 if typed.is_empty() => {
                write(MODEM_CONTROL);
                loops = value & 0x10 != 0;
            }
            12 => drop(port.attend()),
            13 => write(u16::from(kind >> 4 & 1) + 1),
            _ => {}
        }
    }
    let seen = output.0.lock().unwrap_or_else(PoisonError::into_inner);
    assert_eq!(*seen, written);
}

/// The guest's driver: while the line status says so, a byte is there.
fn read_typed(port: &Serial, typed: &mut VecDeque<u8>, most: usize, is_other: bool) {
    let read = |offset| {
        let mut byte = [0];
        port.pio_read(SERIAL, offset, &mut byte);
        byte[0]
    };
    for _ in 0..most {
        if is_other || read(LINE_STATUS) & 1 == 0 {
            return;
        }
        assert_eq!(Some(read(DATA)), typed.pop_front());
    }
}
