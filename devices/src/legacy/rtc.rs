//! CMOS real-time clock (Motorola MC146818): the host's time in UTC, and the bytes of memory behind it. The guest
//! cannot set the clock: what it writes to the time vanishes.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use strait_resources::civil::Civil;
use vm_device::{
    DevicePio,
    bus::{PioAddress, PioAddressOffset},
};

use crate::legacy::LegacyDevice;

const INDEX: PioAddressOffset = 0;
const DATA: PioAddressOffset = 1;

const SECONDS: u8 = 0x00;
const MINUTES: u8 = 0x02;
const HOURS: u8 = 0x04;
const WEEKDAY: u8 = 0x06;
const DAY: u8 = 0x07;
const MONTH: u8 = 0x08;
const YEAR: u8 = 0x09;
const STATUS_A: u8 = 0x0a;
const STATUS_B: u8 = 0x0b;
const STATUS_C: u8 = 0x0c;
const STATUS_D: u8 = 0x0d;
const CENTURY: u8 = 0x32;
/// Extended memory above 16 MiB in units of 64 KiB, and above 4 GiB likewise: what firmware reads without an E820.
const ABOVE_16M: usize = 0x34;
const ABOVE_4G: usize = 0x5b;

/// The divider for 32.768 kHz, 1024 Hz periodic.
const A_DIVIDER: u8 = 0x26;
const A_UPDATING: u8 = 1 << 7;
/// The update takes the last part of each second (MC146818, table 6).
const UPDATE: Duration = Duration::from_micros(244);
const B_24_HOURS: u8 = 1 << 1;
const B_BINARY: u8 = 1 << 2;
const D_VALID: u8 = 1 << 7;

/// Ports 0x70 and 0x71.
pub struct Rtc {
    state: Mutex<State>,
    power_on: State,
    now: fn() -> Duration,
}

#[derive(Clone)]
#[cfg_attr(test, derive(Debug, PartialEq, Eq))]
struct State {
    index: u8,
    memory: [u8; 128],
}

impl Rtc {
    /// RAM sizes in bytes, below and above 4 GiB.
    pub fn new(low_ram: u64, high_ram: u64) -> Self {
        Self::with_clock(low_ram, high_ram, || {
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
        })
    }

    fn with_clock(low_ram: u64, high_ram: u64, now: fn() -> Duration) -> Self {
        let mut memory = [0; 128];
        memory[usize::from(STATUS_B)] = B_24_HOURS;
        // Two and three bytes: what does not fit is shown as the largest that does, not as its remainder.
        let chunks = |bytes: u64, most: u64| (bytes >> 16).min(most).to_le_bytes();
        memory[ABOVE_16M..ABOVE_16M + 2]
            .copy_from_slice(&chunks(low_ram.saturating_sub(16 << 20), 0xffff)[..2]);
        memory[ABOVE_4G..ABOVE_4G + 3].copy_from_slice(&chunks(high_ram, 0xff_ffff)[..3]);
        let power_on = State { index: 0, memory };
        Self { state: Mutex::new(power_on.clone()), power_on, now }
    }

    fn read(&self, state: &State) -> u8 {
        let stored = state.memory[usize::from(state.index & 0x7f)];
        let now = (self.now)();
        let time = Civil::new(now.as_secs());
        let status_b = state.memory[usize::from(STATUS_B)];
        let value = match state.index & 0x7f {
            SECONDS => time.second,
            MINUTES => time.minute,
            HOURS => return hours(time.hour, status_b),
            WEEKDAY => time.weekday,
            DAY => time.day,
            MONTH => time.month,
            YEAR => (time.year % 100) as u8,
            CENTURY => (time.year / 100) as u8,
            STATUS_A => {
                let left = Duration::from_secs(1)
                    .saturating_sub(Duration::from_nanos(now.subsec_nanos().into()));
                return A_DIVIDER | if left <= UPDATE { A_UPDATING } else { 0 };
            }
            STATUS_C => return 0,
            STATUS_D => return D_VALID,
            _ => return stored,
        };
        encode(value, status_b)
    }
}

fn encode(value: u8, status_b: u8) -> u8 {
    if status_b & B_BINARY != 0 { value } else { ((value / 10) << 4) | (value % 10) }
}

/// In 12-hour mode bit 7 says afternoon.
fn hours(hour: u8, status_b: u8) -> u8 {
    if status_b & B_24_HOURS != 0 {
        return encode(hour, status_b);
    }
    let afternoon = if hour >= 12 { 0x80 } else { 0 };
    let hour = if hour.is_multiple_of(12) { 12 } else { hour % 12 };
    encode(hour, status_b) | afternoon
}

impl LegacyDevice for Rtc {
    /// The memory too, which a battery would keep: it holds what firmware writes at each start, and there is no firmware
    /// that would correct what a guest has left.
    fn reset(&self) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = self.power_on.clone();
    }
}

impl DevicePio for Rtc {
    fn pio_read(&self, _: PioAddress, offset: PioAddressOffset, data: &mut [u8]) {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if let [byte] = data {
            *byte = if offset == DATA { self.read(&state) } else { 0xff };
        }
    }

    fn pio_write(&self, _: PioAddress, offset: PioAddressOffset, data: &[u8]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        match (offset, data) {
            // Bit 7 masks NMIs, of which there are none.
            (INDEX, [index]) => state.index = *index,
            (DATA, [byte]) => {
                let index = state.index & 0x7f;
                if index == STATUS_B || index > STATUS_D && index != CENTURY {
                    state.memory[usize::from(index)] = *byte;
                }
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(rtc: &Rtc, index: u8) -> u8 {
        let mut data = [0u8];
        rtc.pio_write(PioAddress(0x70), INDEX, &[index]);
        rtc.pio_read(PioAddress(0x70), DATA, &mut data);
        data[0]
    }

    #[test]
    fn time_is_bcd_in_24_hours_until_the_guest_asks_otherwise() {
        let rtc = Rtc::with_clock(0, 0, || Duration::from_secs(13 * 3600 + 45 * 60 + 59));
        assert_eq!(
            (read(&rtc, HOURS), read(&rtc, MINUTES), read(&rtc, SECONDS)),
            (0x13, 0x45, 0x59)
        );
        assert_eq!((read(&rtc, YEAR), read(&rtc, CENTURY)), (0x70, 0x19));
        rtc.pio_write(PioAddress(0x70), INDEX, &[STATUS_B]);
        rtc.pio_write(PioAddress(0x70), DATA, &[B_BINARY]);
        assert_eq!((read(&rtc, HOURS), read(&rtc, MINUTES)), (0x81, 45));
    }

    #[test]
    fn reset_leaves_nothing_of_what_the_guest_wrote() {
        let rtc = Rtc::with_clock(2 << 30, 0, || Duration::from_secs(13 * 3600));
        for index in 0..=0x7f {
            rtc.pio_write(PioAddress(0x70), INDEX, &[index]);
            rtc.pio_write(PioAddress(0x70), DATA, &[0x5a]);
        }
        assert_ne!(*rtc.state.lock().unwrap(), rtc.power_on);
        rtc.reset();
        assert_eq!(*rtc.state.lock().unwrap(), rtc.power_on);
        assert_eq!((read(&rtc, HOURS), read(&rtc, 0x35)), (0x13, 0x7f));
    }

    #[test]
    fn update_is_announced_at_the_end_of_a_second_only() {
        let calm = Rtc::with_clock(0, 0, || Duration::from_millis(500));
        let ending = Rtc::with_clock(0, 0, || Duration::from_nanos(999_900_000));
        assert_eq!(read(&calm, STATUS_A) & A_UPDATING, 0);
        assert_eq!(read(&ending, STATUS_A) & A_UPDATING, A_UPDATING);
    }

    #[test]
    fn memory_sizes_are_where_firmware_looks() {
        let rtc = Rtc::new(2 << 30, 6 << 30);
        assert_eq!([read(&rtc, 0x34), read(&rtc, 0x35)], [0x00, 0x7f]);
        assert_eq!([read(&rtc, 0x5b), read(&rtc, 0x5c), read(&rtc, 0x5d)], [0x00, 0x80, 0x01]);
    }

    #[test]
    fn ram_above_a_tebibyte_is_shown_as_the_most_there_is_room_for() {
        let rtc = Rtc::with_clock(0, 1 << 40, || Duration::ZERO);
        assert_eq!([read(&rtc, 0x5b), read(&rtc, 0x5c), read(&rtc, 0x5d)], [0xff; 3]);
    }

    #[test]
    fn memory_keeps_what_is_written_and_time_does_not() {
        let rtc = Rtc::with_clock(0, 0, || Duration::ZERO);
        for (index, kept) in [(0x0f, 0x5a), (0x40, 0x5a), (0x00, 0x00), (0x0d, D_VALID)] {
            rtc.pio_write(PioAddress(0x70), INDEX, &[index]);
            rtc.pio_write(PioAddress(0x70), DATA, &[0x5a]);
            assert_eq!(read(&rtc, index), kept, "{index:#x}");
        }
    }
}
