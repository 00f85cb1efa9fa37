//! Waiting for devices that come back from a reset.

use std::time::{Duration, Instant};

/// The first of `devices` that is not `alive` within `limit` of now; none when strait `is_to_end` before. `alive` itself
/// waits a moment.
pub(super) fn first_dead<D>(
    mut devices: impl Iterator<Item = D>,
    limit: Duration,
    alive: impl Fn(&D) -> bool,
    is_to_end: impl Fn() -> bool,
) -> Option<D> {
    let end = Instant::now() + limit;
    devices.find(|device| {
        loop {
            if alive(device) || is_to_end() {
                return false;
            }
            if Instant::now() >= end {
                return true;
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    const NEVER: Duration = Duration::from_secs(3600);

    #[test]
    fn device_that_does_not_come_back_is_named() {
        let dead = first_dead(["a", "b", "c"].iter(), Duration::ZERO, |d| **d != "b", || false);
        assert_eq!(dead, Some(&"b"));
        assert_eq!(first_dead(["a"].iter(), Duration::ZERO, |_| true, || false), None);
    }

    #[test]
    fn device_that_comes_back_late_is_waited_for() {
        let looks = Cell::new(0);
        let alive = |_: &&&str| looks.replace(looks.get() + 1) > 5;
        assert_eq!(first_dead(["a"].iter(), NEVER, alive, || false), None);
        assert!(looks.get() > 5);
    }

    #[test]
    fn nobody_waits_for_a_device_when_strait_is_to_end() {
        let looks = Cell::new(0);
        let alive = |_: &&&str| {
            looks.set(looks.get() + 1);
            false
        };
        // The signal comes during the wait for the first one.
        let dead = first_dead(["a", "b"].iter(), NEVER, alive, || looks.get() >= 3);
        assert_eq!((dead, looks.get()), (None, 4));
    }
}
