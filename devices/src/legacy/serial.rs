//! COM1: vm-superio's 16550, with somewhere to wait for what is typed faster than the guest reads.
//!
//! What is typed is never dropped: [`Serial::input`] takes what there is room for, and wakes whoever types when
//! there is room again. It reaches the guest in bursts with pauses between them: a guest that takes a byte as fast as it
//! is offered never leaves its interrupt handler, and what that handler puts aside overflows before a program reads it.
//! A pause is as long as the guest took for the burst, so that half of its time is left for the program.

use std::{
    collections::VecDeque,
    io::{self, Write},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use vm_device::{
    DevicePio,
    bus::{PioAddress, PioAddressOffset},
};
use vm_superio::{Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

use crate::legacy::LegacyDevice;

/// Bytes that a guest may leave unread before whoever types has to wait. Much, because a command to strait is found only
/// in what was taken: whoever pastes a file at a guest that hangs can still end it.
const MAX_WAITING: usize = 4 << 20;
/// Memory, in bytes, that is kept while nothing waits.
const KEPT: usize = 4096;
/// Bytes of a burst: a quarter of what Linux keeps for a program that reads a terminal.
const BURST: usize = 1024;
/// Shortest pause between two bursts.
const SHORTEST_PAUSE: Duration = Duration::from_micros(100);
/// Longest pause: a guest that took minutes to its first read is not slow.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

/// Offsets of registers (TL16C550C data sheet, table 1).
const DATA: u8 = 0;
const INTERRUPT_ENABLE: u8 = 1;
const INTERRUPT_ID: u8 = 2;
const LINE_CONTROL: u8 = 3;
const LINE_STATUS: u8 = 5;
/// Interrupt enable: received data.
const ENABLE_RECEIVED: u8 = 1;
/// Interrupt identification: received data, with the FIFOs on.
const RECEIVED: u8 = 0xc4;
/// Line control: the first two registers are the divisor.
const DIVISOR: u8 = 0x80;
/// Line status: data ready.
const READY: u8 = 1;

/// The interrupt, as vm-superio wants it.
struct Interrupt(Arc<EventFd>);

impl Trigger for Interrupt {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

type Uart = vm_superio::Serial<Interrupt, NoEvents, Box<dyn Write + Send>>;

/// Tells whoever types to call [`Serial::attend`] or [`Serial::input`] again. Called by the guest's CPU.
pub type Wake = Box<dyn Fn() + Send + Sync>;

/// The port.
pub struct Serial {
    /// Nothing else is locked while it is held, and `output` of [`Serial::new`] must not wait for anybody.
    state: Mutex<State>,
    wake: Wake,
}

struct State {
    uart: Uart,
    interrupt: Arc<EventFd>,
    waiting: VecDeque<u8>,
    /// The guest's interrupt enable register.
    enabled: u8,
    /// Somebody has more than there was room for.
    refused: bool,
    /// Bytes of the burst that are not in the FIFO yet.
    left: usize,
    began: Instant,
    /// No burst begins before.
    pause_until: Option<Instant>,
}

impl Serial {
    /// `interrupt` is signalled for IRQ 4. `output` gets what the guest writes, and must never block: the guest's CPU
    /// waits for it.
    pub fn new(interrupt: EventFd, output: Box<dyn Write + Send>, wake: Wake) -> Self {
        let interrupt = Arc::new(interrupt);
        let state = State {
            uart: Uart::new(Interrupt(Arc::clone(&interrupt)), output),
            interrupt,
            waiting: VecDeque::new(),
            enabled: 0,
            refused: false,
            left: BURST,
            began: Instant::now(),
            pause_until: None,
        };
        Self { state: Mutex::new(state), wake }
    }

    /// Types `bytes` at the guest. How many of them there was room for; `wake` comes when there is more.
    pub fn input(&self, bytes: &[u8]) -> usize {
        let mut state = self.lock();
        let taken = bytes.len().min(MAX_WAITING.saturating_sub(state.waiting.len()));
        state.waiting.extend(&bytes[..taken]);
        state.refused = taken < bytes.len();
        state.feed();
        taken
    }

    /// Goes on with what waits. When to call again: after this time, or, with `None`, when `wake` comes.
    pub fn attend(&self) -> Option<Duration> {
        let mut state = self.lock();
        state.feed();
        let until = state.pause_until.filter(|_| !state.waiting.is_empty())?;
        Some(until.saturating_duration_since(Instant::now()).max(SHORTEST_PAUSE))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl LegacyDevice for Serial {
    /// What was typed and is not in the FIFO yet stays.
    fn reset(&self) {
        let mut state = self.lock();
        let output = std::mem::replace(state.uart.writer_mut(), Box::new(io::sink()));
        state.uart = Uart::new(Interrupt(Arc::clone(&state.interrupt)), output);
        state.enabled = 0;
        state.feed();
    }
}

impl State {
    fn is_ready(&mut self) -> bool {
        self.uart.read(LINE_STATUS) & READY != 0
    }

    fn is_divisor_shown(&mut self) -> bool {
        self.uart.read(LINE_CONTROL) & DIVISOR != 0
    }

    /// Fills an empty FIFO, unless the guest has a pause.
    fn feed(&mut self) {
        if self.waiting.is_empty() || self.is_ready() {
            return;
        }
        let now = Instant::now();
        if self.pause_until.is_some_and(|until| now < until) {
            return;
        }
        self.pause_until = None;
        if self.left == BURST {
            self.began = now;
        }
        let take = self.uart.fifo_capacity().min(self.waiting.len()).min(self.left);
        let bytes: Vec<u8> = self.waiting.iter().take(take).copied().collect();
        // Refused in loopback mode: what is typed then waits on.
        let Ok(taken) = self.uart.enqueue_raw_bytes(&bytes) else { return };
        self.waiting.drain(..taken.min(take));
        self.left = self.left.saturating_sub(taken);
        if self.waiting.is_empty() {
            self.left = BURST;
            self.waiting.shrink_to(KEPT);
        }
    }

    /// The guest took a byte. Has whoever types something to do?
    fn taken(&mut self) -> bool {
        if self.is_ready() {
            return false;
        }
        if self.left == 0 {
            self.left = BURST;
            let took = self.began.elapsed().clamp(SHORTEST_PAUSE, LONGEST_PAUSE);
            self.pause_until = Instant::now().checked_add(took);
        }
        self.feed();
        let room = self.refused && self.waiting.len() <= MAX_WAITING / 2;
        self.refused &= !room;
        room || (self.pause_until.is_some() && !self.waiting.is_empty())
    }

    /// vm-superio forgets that there is data with the first byte that is read, or when it has told once; the interrupt of
    /// a real port stays until the FIFO is empty, and a handler that stops half-way relies on that.
    fn interrupt_id(&mut self) -> u8 {
        if self.enabled & ENABLE_RECEIVED != 0 && self.is_ready() {
            RECEIVED
        } else {
            self.uart.read(INTERRUPT_ID)
        }
    }

    /// As above, in the other direction: vm-superio does not interrupt again for data that it has told of before.
    fn enable(&mut self, value: u8) {
        if self.is_divisor_shown() {
            return;
        }
        let newly = value & !self.enabled & ENABLE_RECEIVED != 0;
        self.enabled = value;
        if newly && self.is_ready() {
            let _ = self.uart.read(INTERRUPT_ID);
        }
    }
}

impl DevicePio for Serial {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else { return };
        let mut state = self.lock();
        // A guest that polls need not wait for another thread when its pause is over.
        state.feed();
        let mut wake = false;
        *byte = match offset {
            INTERRUPT_ID => state.interrupt_id(),
            DATA => {
                let value = state.uart.read(DATA);
                wake = state.taken();
                value
            }
            _ => state.uart.read(offset),
        };
        drop(state);
        if wake {
            (self.wake)();
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let (Ok(offset), [byte]) = (u8::try_from(offset), data) else { return };
        let mut state = self.lock();
        if offset == INTERRUPT_ENABLE {
            state.enable(*byte);
        }
        // What cannot be written is lost; a guest must not stop for its console.
        let _ = state.uart.write(offset, *byte);
        // It may have left loopback mode, in which typed bytes wait.
        state.feed();
    }
}

#[cfg(test)]
mod tests;
