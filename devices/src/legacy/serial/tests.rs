use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK};

use super::*;

const MODEM_CONTROL: u16 = 4;
const LOOPBACK: u8 = 0x10;
/// Interrupt identification: no interrupt.
const NONE: u8 = 1;

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

fn eventfd() -> (EventFd, EventFd) {
    let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).unwrap();
    (event.try_clone().unwrap(), event)
}

fn serial() -> (Serial, Output, EventFd, EventFd) {
    let ((interrupt, event), (wake, woken), output) = (eventfd(), eventfd(), Output::default());
    let wake = Box::new(move || wake.write(1).unwrap());
    (Serial::new(interrupt, Box::new(output.clone()), wake), output, event, woken)
}

fn read(serial: &Serial, offset: u8) -> u8 {
    let mut data = [0u8];
    serial.pio_read(PioAddress(0x3f8), offset.into(), &mut data);
    data[0]
}

fn write(serial: &Serial, offset: u8, value: u8) {
    serial.pio_write(PioAddress(0x3f8), offset.into(), &[value]);
}

/// Reads until there is no more, as the kernel's driver does, `most` bytes at most.
fn drain(serial: &Serial, most: usize) -> Vec<u8> {
    let mut got = Vec::new();
    while got.len() < most && read(serial, LINE_STATUS) & READY == READY {
        got.push(read(serial, DATA));
    }
    got
}

#[test]
fn written_bytes_come_out() {
    let (serial, output, ..) = serial();
    b"hello".iter().for_each(|byte| write(&serial, DATA, *byte));
    assert_eq!(*output.0.lock().unwrap(), b"hello");
}

#[test]
fn input_longer_than_the_fifo_arrives_whole_and_in_order() {
    let (serial, _, event, _) = serial();
    write(&serial, INTERRUPT_ENABLE, ENABLE_RECEIVED);
    let typed: Vec<u8> = (0..200).collect();
    assert_eq!(serial.input(&typed), 200);
    assert!(event.read().is_ok(), "an interrupt");
    assert_eq!(drain(&serial, 1000), typed);
}

#[test]
fn what_is_typed_in_loopback_mode_arrives_when_it_ends() {
    let (serial, _, event, _) = serial();
    write(&serial, INTERRUPT_ENABLE, ENABLE_RECEIVED);
    serial.pio_write(PioAddress(0x3f8), MODEM_CONTROL, &[LOOPBACK]);
    serial.input(b"x");
    assert!(event.read().is_err(), "the line is cut");
    serial.pio_write(PioAddress(0x3f8), MODEM_CONTROL, &[0]);
    assert!(event.read().is_ok(), "an interrupt, for a guest that waits for one");
    assert_eq!(read(&serial, DATA), b'x');
}

#[test]
fn guest_that_never_reads_makes_whoever_types_wait() {
    let (serial, _, _, woken) = serial();
    let typed: Vec<u8> = (0..MAX_WAITING + 1000).map(|n| (n / 7) as u8).collect();
    let mut taken = serial.input(&typed);
    // A FIFO is filled beside what waits.
    taken += serial.input(&typed[taken..]);
    assert_eq!(serial.input(&typed[taken..]), 0);
    assert!(taken < typed.len() && serial.lock().waiting.len() <= MAX_WAITING);
    assert!(woken.read().is_err());
    let mut got = Vec::new();
    while got.len() < typed.len() {
        got.extend(drain(&serial, typed.len()));
        // A pause, or room.
        if woken.read().is_ok() {
            taken += serial.input(&typed[taken..]);
        }
    }
    assert!(got == typed, "every byte, in order");
    assert_eq!(serial.lock().waiting.capacity() / KEPT, 1, "the memory is given back");
}

/// Linux reads 256 bytes in one go, and goes on for as long as the port says that there is more.
#[test]
fn handler_that_stops_half_way_is_told_that_there_is_more() {
    for len in [257, 300, 319, 320, 1023] {
        let (serial, ..) = serial();
        write(&serial, INTERRUPT_ENABLE, ENABLE_RECEIVED);
        let typed: Vec<u8> = (0..len).map(|n| n as u8).collect();
        serial.input(&typed);
        let mut got = Vec::new();
        while read(&serial, INTERRUPT_ID) & NONE == 0 {
            got.extend(drain(&serial, 256));
        }
        assert_eq!(got, typed, "{len}");
    }
}

/// As a driver does that holds its console's lock, or whose program does not keep up.
#[test]
fn data_that_came_before_its_interrupt_was_enabled_again_interrupts() {
    let (serial, _, event, _) = serial();
    write(&serial, INTERRUPT_ENABLE, ENABLE_RECEIVED);
    serial.input(b"xy");
    assert!(event.read().is_ok());
    write(&serial, INTERRUPT_ENABLE, 0);
    assert!(event.read().is_err());
    write(&serial, INTERRUPT_ENABLE, ENABLE_RECEIVED);
    assert!(event.read().is_ok(), "an interrupt");
    assert_eq!(drain(&serial, 10), b"xy");
}

#[test]
fn guest_has_a_pause_after_a_burst_and_is_interrupted_after_it() {
    let (serial, _, event, woken) = serial();
    write(&serial, INTERRUPT_ENABLE, ENABLE_RECEIVED);
    serial.input(&[b'x'; BURST + 1]);
    // Longer than the guest takes for a burst here.
    serial.lock().began -= LONGEST_PAUSE;
    assert_eq!(drain(&serial, BURST).len(), BURST);
    assert!(woken.read().is_ok(), "whoever types has to see to the rest");
    while event.read().is_ok() {}
    while let Some(pause) = serial.attend() {
        assert!(pause <= LONGEST_PAUSE);
        std::thread::sleep(pause);
    }
    assert!(event.read().is_ok(), "an interrupt");
    assert_eq!(drain(&serial, 10), b"x");
}

#[test]
fn reset_port_keeps_its_output_and_what_is_typed() {
    let (serial, output, event, _) = serial();
    write(&serial, INTERRUPT_ENABLE, ENABLE_RECEIVED);
    write(&serial, LINE_CONTROL, DIVISOR);
    serial.reset();
    assert_eq!((read(&serial, INTERRUPT_ENABLE), read(&serial, LINE_CONTROL) & DIVISOR), (0, 0));
    serial.input(b"z");
    assert!(event.read().is_err(), "interrupts are off");
    write(&serial, DATA, b'o');
    assert_eq!(
        (drain(&serial, 10), output.0.lock().unwrap().clone()),
        (b"z".to_vec(), b"o".to_vec())
    );
}
