//! Whoever waits for guest RAM: the vCPU that lets a device master the bus, and the user.

use std::{
    io::{self, IsTerminal},
    sync::{Arc, Weak},
    time::{Duration, Instant},
};

use strait_devices::ports::BusMasterGate;

use super::{Pinned, Pinning, Work};
use crate::{control::Control, report};

/// A wait that is over by then shows no progress.
const QUIET: Duration = Duration::from_millis(300);

/// Passes bus mastering on once RAM is mapped.
pub(crate) struct Gate {
    control: Arc<Control>,
    /// `None`: there is nothing to wait for.
    pinned: Option<Arc<Pinned>>,
    /// Whom to hurry.
    work: Weak<Work>,
}

impl Gate {
    /// Opens when `pinning` is done.
    pub(crate) fn new(control: &Arc<Control>, pinning: Option<&Pinning>) -> Self {
        Self {
            control: Arc::clone(control),
            pinned: pinning.map(|pinning| Arc::clone(pinning.pinned())),
            work: pinning.map(|pinning| Arc::downgrade(&pinning.work)).unwrap_or_default(),
        }
    }
}

impl BusMasterGate for Gate {
    fn pass(&self) -> bool {
        let Some(pinned) = self.pinned.as_ref().filter(|pinned| !pinned.is_complete()) else {
            return true;
        };
        if let Some(work) = self.work.upgrade() {
            work.hurry();
        }
        let percent = pinned.percent();
        log::info!(
            "a driver in the guest enables bus mastering: its vCPU waits until all of guest RAM is \
             mapped, {percent} % are"
        );
        let mut progress = Progress::new("the guest waits for its memory");
        let passed = self.control.hold(|| pinned.is_complete(), || progress.show(pinned));
        progress.end();
        let seconds = progress.began.elapsed().as_secs_f64();
        match passed {
            true => log::info!("the vCPU goes on after {seconds:.2} s"),
            false => log::info!("the wait ended with the machine after {seconds:.2} s"),
        }
        passed
    }

    fn is_open(&self) -> bool {
        self.pinned.as_ref().is_none_or(|pinned| pinned.is_complete())
    }
}

/// One line on a terminal that says how far it is.
pub(crate) struct Progress {
    what: &'static str,
    began: Instant,
    shown: bool,
    terminal: bool,
}

impl Progress {
    /// Shown only if it takes a while.
    pub(crate) fn new(what: &'static str) -> Self {
        let terminal = io::stderr().is_terminal();
        Self { what, began: Instant::now(), shown: false, terminal }
    }

    /// How far it is now.
    pub(crate) fn show(&mut self, pinned: &Pinned) {
        if !self.terminal || self.began.elapsed() < QUIET {
            return;
        }
        self.shown = true;
        let (percent, mib) = (pinned.percent(), pinned.total >> 20);
        report::progress(&format!("\r{}: {percent:3} % of {mib} MiB", self.what));
    }

    /// Takes the line away.
    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.shown) {
            report::progress("\r\x1b[K");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::{super::TICK, *};
    use crate::{control::Request, vcpu::install_kick_handler};

    fn gate(total: u64) -> (Arc<Control>, Arc<Pinned>, Gate) {
        install_kick_handler().unwrap();
        let control = Arc::new(Control::new().unwrap());
        control.resume();
        let pinned = Arc::new(Pinned::new(total));
        let gate = Gate {
            control: Arc::clone(&control),
            pinned: Some(Arc::clone(&pinned)),
            work: Weak::new(),
        };
        (control, pinned, gate)
    }

    #[test]
    fn gate_opens_with_the_mapping_and_not_with_the_last_byte() {
        let (control, pinned, gate) = gate(20);
        thread::scope(|scope| {
            let held = scope.spawn(|| gate.pass());
            assert!(!pinned.add(19) && pinned.add(1));
            control.nudge();
            thread::sleep(3 * TICK);
            assert!(!held.is_finished() && !gate.is_open());
            pinned.complete();
            control.nudge();
            assert!(held.join().unwrap());
        });
        assert!(gate.is_open() && gate.pass());
    }

    #[test]
    fn gate_of_a_machine_that_ends_lets_nobody_through() {
        let (control, _, gate) = gate(1);
        thread::scope(|scope| {
            let held = scope.spawn(|| gate.pass());
            thread::sleep(TICK);
            control.request(Request::Quit);
            control.stop(Vec::new());
            assert!(!held.join().unwrap());
        });
    }

    #[test]
    fn gate_without_dma_is_open() {
        let control = Arc::new(Control::new().unwrap());
        let gate = Gate::new(&control, None);
        assert!(gate.is_open() && gate.pass());
    }
}
