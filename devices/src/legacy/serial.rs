//! COM1: vm-superio's 16550, with somewhere to wait for what is typed faster than the guest reads.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Mutex, PoisonError},
};

use vm_device::{
    DevicePio,
    bus::{PioAddress, PioAddressOffset},
};
use vm_superio::{Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

/// What a guest may leave unread; more is dropped, as a real line would.
const MAX_WAITING: usize = 64 * 1024;

/// The interrupt, as vm-superio wants it.
struct Interrupt(EventFd);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

type Uart = vm_superio::Serial<Interrupt, NoEvents, Box<dyn Write + Send>>;

/// The port.
pub struct Serial {
    state: Mutex<State>,
}

struct State {
    uart: Uart,
    waiting: VecDeque<u8>,
}

impl Serial {
    /// `interrupt` is signalled for IRQ 4; `output` gets what the guest writes.
    pub fn new(interrupt: EventFd, output: Box<dyn Write + Send>) -> Self {
        let uart = Uart::new(Interrupt(interrupt), output);
        Self { state: Mutex::new(State { uart, waiting: VecDeque::new() }) }
    }

    /// Types `bytes` at the guest.
    pub fn input(&self, bytes: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let room = MAX_WAITING - state.waiting.len();
        state.waiting.extend(bytes.iter().take(room));
        state.feed();
    }
}

impl State {
    /// As much as the FIFO takes.
    fn feed(&mut self) {
        let take = self.uart.fifo_capacity().min(self.waiting.len());
        if take == 0 {
            return;
        }
        let bytes: Vec<u8> = self.waiting.iter().take(take).copied().collect();
        // Refused in loopback mode: what is typed then waits on.
        if let Ok(taken) = self.uart.enqueue_raw_bytes(&bytes) {
            self.waiting.drain(..taken.min(take));
        }
    }
}

impl DevicePio for Serial {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            *byte = state.uart.read(offset);
            state.feed();
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let (Ok(offset), [byte]) = (u8::try_from(offset), data) {
            // What cannot be written is lost; a guest must not stop for its console.
            let _ = state.uart.write(offset, *byte);
            // It may have left loopback mode, in which typed bytes wait.
            state.feed();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    #[derive(Clone, Default)]
    struct Output(Arc<Mutex<Vec<u8>>>);

    impl Write for Output {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn serial() -> (Serial, Output, EventFd) {
        let (event, output) = (EventFd::new(EFD_NONBLOCK).unwrap(), Output::default());
        (Serial::new(event.try_clone().unwrap(), Box::new(output.clone())), output, event)
    }

    fn read(serial: &Serial, offset: u16) -> u8 {
        let mut data = [0u8];
        serial.pio_read(PioAddress(0x3f8), offset, &mut data);
        data[0]
    }

    #[test]
    fn written_bytes_come_out() {
        let (serial, output, _) = serial();
        b"hello".iter().for_each(|byte| serial.pio_write(PioAddress(0x3f8), 0, &[*byte]));
        assert_eq!(*output.0.lock().unwrap(), b"hello");
    }

    #[test]
    fn input_longer_than_the_fifo_arrives_whole_and_in_order() {
        let (serial, _, event) = serial();
        serial.pio_write(PioAddress(0x3f8), 1, &[1]);
        let typed: Vec<u8> = (0..200).collect();
        serial.input(&typed);
        assert!(event.read().is_ok(), "an interrupt");
        let mut got = Vec::new();
        while read(&serial, 5) & 1 == 1 {
            got.push(read(&serial, 0));
        }
        assert_eq!(got, typed);
    }

    #[test]
    fn what_is_typed_in_loopback_mode_arrives_when_it_ends() {
        let (serial, _, event) = serial();
        let (interrupt_enable, modem_control) = (1, 4);
        serial.pio_write(PioAddress(0x3f8), interrupt_enable, &[1]);
        serial.pio_write(PioAddress(0x3f8), modem_control, &[0x10]);
        serial.input(b"x");
        assert!(event.read().is_err(), "the line is cut");
        serial.pio_write(PioAddress(0x3f8), modem_control, &[0]);
        assert!(event.read().is_ok(), "an interrupt, for a guest that waits for one");
        assert_eq!(read(&serial, 0), b'x');
    }

    #[test]
    fn guest_that_never_reads_does_not_grow_us() {
        let (serial, ..) = serial();
        (0..100).for_each(|_| serial.input(&[b'x'; 4096]));
        assert!(serial.state.lock().unwrap().waiting.len() <= MAX_WAITING);
    }
}
