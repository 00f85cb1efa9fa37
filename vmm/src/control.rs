//! Running, pausing and stopping every vCPU of a machine together.
//!
//! vCPU threads pass a checkpoint before each entry into the guest. Whoever wants something of the whole
//! machine (a guest that powers off, a signal, a device that died) leaves one [`Request`]; from that moment
//! no vCPU enters the guest again until the main thread has dealt with it.

use std::{
    sync::{
        Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use strait_devices::ports::MachineControl;
use strait_resources::failure::Failure;
use vmm_sys_util::{
    eventfd::{EFD_NONBLOCK, EventFd},
    signal::{Killable, SIGRTMIN, register_signal_handler},
};

/// How often a vCPU that is held says so.
const HOLD_TICK: Duration = Duration::from_millis(100);
/// A guest does not mind less.
const UNNOTICED: Duration = Duration::from_secs(1);

/// What somebody wants of the whole machine. The first one counts.
#[derive(Debug)]
pub(crate) enum Request {
    /// The guest powered off.
    PowerOff,
    /// The guest rebooted.
    Reset,
    /// The user or the system wants strait to end.
    Quit,
    /// The guest or a device cannot go on.
    Crash(Box<Failure>),
}

/// What a vCPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Enter the guest.
    Run,
    /// Back to the state after power-on, then enter the guest.
    Reset,
    /// End the thread.
    Stop,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Goal {
    Run,
    Pause,
    Stop,
}

struct State {
    goal: Goal,
    /// Counts resets, so that each vCPU sees each one once.
    resets: u64,
    /// vCPUs that have not seen the last reset.
    unseen: usize,
    paused: usize,
    request: Option<Request>,
}

/// Shared by the vCPU threads, the devices and the main thread.
pub(crate) struct Control {
    /// Set while vCPUs must look at `state`; spares them the lock on every exit.
    attention: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    event: EventFd,
    stalls: AtomicU64,
}

impl Control {
    /// Paused: nothing runs before [`Control::resume`].
    pub(crate) fn new() -> std::io::Result<Self> {
        let state = State { goal: Goal::Pause, resets: 0, unseen: 0, paused: 0, request: None };
        Ok(Self {
            attention: AtomicBool::new(true),
            state: Mutex::new(state),
            changed: Condvar::new(),
            event: EventFd::new(EFD_NONBLOCK)?,
            stalls: AtomicU64::new(0),
        })
    }

    /// Readable while a request waits.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Leaves a request and keeps every vCPU out of the guest. Later requests are dropped until the first
    /// one is taken, but a crash or quit outranks a reset.
    pub(crate) fn request(&self, request: Request) {
        let mut state = self.lock();
        let outranks = matches!(
            (&state.request, &request),
            (None, _) | (Some(Request::Reset), Request::Quit | Request::Crash(_))
        );
        if outranks {
            state.request = Some(request);
        }
        if state.goal == Goal::Run {
            state.goal = Goal::Pause;
        }
        self.attention.store(true, Ordering::Release);
        // An eventfd write fails only when its counter is full, and then it is readable already.
        let _ = self.event.write(1);
    }

    /// The request that waits, if any.
    pub(crate) fn take_request(&self) -> Option<Request> {
        let _ = self.event.read();
        self.lock().request.take()
    }

    /// Called by a vCPU thread before it enters the guest; waits while the machine is paused. `resets` is
    /// the vCPU's own count of the resets it has seen.
    pub(crate) fn checkpoint(&self, resets: &mut u64) -> Next {
        if !self.attention.load(Ordering::Acquire) {
            return Next::Run;
        }
        let mut state = self.wait_out_pause(self.lock());
        match state.goal {
            Goal::Stop => Next::Stop,
            _ if state.resets != *resets => {
                *resets = state.resets;
                state.unseen = state.unseen.saturating_sub(1);
                self.attention.store(state.unseen != 0, Ordering::Release);
                Next::Reset
            }
            _ => Next::Run,
        }
    }

    /// Counts the calling vCPU thread among those that stand still for as long as the machine is paused.
    fn wait_out_pause<'a>(&'a self, mut state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
        if state.goal == Goal::Pause {
            state.paused += 1;
            self.changed.notify_all();
            state = self
                .changed
                .wait_while(state, |s| s.goal == Goal::Pause)
                .expect("no panic while held");
            state.paused -= 1;
        }
        state
    }

    /// Keeps the calling vCPU thread, which is amid an exit, until `ready`: `true`. The machine may pause and go on
    /// meanwhile; `false` when it stops or is reset, and the exit must come to nothing. `tick` is called now and then,
    /// with no lock held.
    pub(crate) fn hold(&self, ready: impl Fn() -> bool, mut tick: impl FnMut()) -> bool {
        let resets = self.lock().resets;
        let began = Instant::now();
        let passed = loop {
            tick();
            let state = self.wait_out_pause(self.lock());
            if state.goal == Goal::Stop || state.resets != resets {
                break false;
            }
            if ready() {
                break true;
            }
            drop(self.changed.wait_timeout(state, HOLD_TICK).expect("no panic while held"));
        };
        if began.elapsed() > UNNOTICED {
            self.stalls.fetch_add(1, Ordering::Relaxed);
        }
        passed
    }

    /// Something that [`Control::hold`] waits for may have come.
    pub(crate) fn nudge(&self) {
        // Under the lock, so that it cannot come between a look and the wait; and for the event loop.
        let _state = self.lock();
        self.changed.notify_all();
        let _ = self.event.write(1);
    }

    /// How often a vCPU was kept so long that the guest's watchdogs may wonder.
    pub(crate) fn stalls(&self) -> u64 {
        self.stalls.load(Ordering::Relaxed)
    }

    /// Brings every vCPU thread out of the guest and waits until all stand at their checkpoint.
    pub(crate) fn pause(&self, threads: &[JoinHandle<()>]) {
        let mut state = self.lock();
        state.goal = Goal::Pause;
        self.attention.store(true, Ordering::Release);
        let alive =
            |threads: &[JoinHandle<()>]| threads.iter().filter(|t| !t.is_finished()).count();
        while state.paused < alive(threads) {
            kick(threads);
            // A signal that comes between the checkpoint and KVM_RUN is lost; the next one is not.
            (state, _) = self
                .changed
                .wait_timeout(state, Duration::from_millis(1))
                .expect("no panic while held");
        }
    }

    /// Lets the vCPUs run again.
    pub(crate) fn resume(&self) {
        self.go(self.lock());
    }

    /// Lets the machine's vCPUs, this many, run again from the state after power-on.
    pub(crate) fn resume_reset(&self, vcpus: usize) {
        let mut state = self.lock();
        state.resets += 1;
        state.unseen = vcpus;
        self.go(state);
    }

    fn go(&self, mut state: MutexGuard<'_, State>) {
        // A request that came in between is served first; its own handling resumes.
        if state.request.is_none() {
            state.goal = Goal::Run;
            self.attention.store(state.unseen != 0, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// Ends every vCPU thread and waits for them.
    pub(crate) fn stop(&self, threads: Vec<JoinHandle<()>>) {
        self.lock().goal = Goal::Stop;
        self.attention.store(true, Ordering::Release);
        self.changed.notify_all();
        for thread in threads {
            while !thread.is_finished() {
                kick(std::slice::from_ref(&thread));
                std::thread::sleep(Duration::from_micros(200));
            }
            // A vCPU thread that panicked has printed why.
            let _ = thread.join();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no panic while held")
    }
}

impl MachineControl for Control {
    fn power_off(&self) {
        self.request(Request::PowerOff);
    }

    fn reset(&self) {
        self.request(Request::Reset);
    }
}

fn kick(threads: &[JoinHandle<()>]) {
    for thread in threads.iter().filter(|thread| !thread.is_finished()) {
        // Fails only for a thread that has just ended.
        let _ = thread.kill(SIGRTMIN());
    }
}

/// Makes the kick signal interrupt KVM_RUN instead of ending the process. Once, before any vCPU thread.
pub(crate) fn install_kick_handler() -> std::io::Result<()> {
    extern "C" fn interrupt(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {}
    register_signal_handler(SIGRTMIN(), interrupt)
        .map_err(|error| std::io::Error::from_raw_os_error(error.errno()))
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, thread};

    use super::*;

    fn spin(control: &Arc<Control>) -> (JoinHandle<()>, Arc<Mutex<Vec<Next>>>) {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let (control, log) = (Arc::clone(control), Arc::clone(&seen));
        let thread = thread::spawn(move || {
            let mut resets = 0;
            loop {
                let next = control.checkpoint(&mut resets);
                if next != Next::Run {
                    log.lock().unwrap().push(next);
                }
                if next == Next::Stop {
                    return;
                }
                thread::yield_now();
            }
        });
        (thread, seen)
    }

    #[test]
    fn reset_reaches_every_vcpu_exactly_once() {
        install_kick_handler().unwrap();
        let control = Arc::new(Control::new().unwrap());
        let (threads, seen): (Vec<_>, Vec<_>) = (0..3).map(|_| spin(&control)).unzip();
        control.resume();
        control.request(Request::Reset);
        control.pause(&threads);
        assert!(matches!(control.take_request(), Some(Request::Reset)));
        control.resume_reset(3);
        while seen.iter().any(|log| log.lock().unwrap().is_empty()) {
            thread::yield_now();
        }
        control.pause(&threads);
        control.resume();
        control.stop(threads);
        for log in seen {
            assert_eq!(*log.lock().unwrap(), [Next::Reset, Next::Stop]);
        }
    }

    #[test]
    fn held_vcpu_outlives_a_pause_and_comes_to_nothing_in_a_reset() {
        install_kick_handler().unwrap();
        let control = Arc::new(Control::new().unwrap());
        let held = |control: &Arc<Control>, log: &Arc<Mutex<Vec<bool>>>| {
            let (control, log) = (Arc::clone(control), Arc::clone(log));
            thread::spawn(move || {
                let mut resets = 0;
                while control.checkpoint(&mut resets) != Next::Stop {
                    let passed = control.hold(|| false, || {});
                    log.lock().unwrap().push(passed);
                }
            })
        };
        let log = Arc::default();
        let threads = [held(&control, &log)];
        control.resume();
        control.pause(&threads);
        control.resume();
        thread::sleep(Duration::from_millis(20));
        assert!(log.lock().unwrap().is_empty());
        control.pause(&threads);
        control.resume_reset(1);
        while log.lock().unwrap().is_empty() {
            thread::yield_now();
        }
        control.stop(threads.into());
        assert!(log.lock().unwrap().iter().all(|passed| !passed));
    }

    #[test]
    fn crash_outranks_reset_but_not_power_off() {
        let control = Control::new().unwrap();
        control.request(Request::Reset);
        control.request(Request::Quit);
        assert!(matches!(control.take_request(), Some(Request::Quit)));
        control.request(Request::PowerOff);
        control.request(Request::Reset);
        assert!(matches!(control.take_request(), Some(Request::PowerOff)));
        assert!(control.take_request().is_none());
    }
}
