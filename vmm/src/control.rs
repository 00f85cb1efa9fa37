//! Running, pausing, resetting and stopping every vCPU of a machine together.
//!
//! Each vCPU's thread has a [`Seat`] and passes a checkpoint before each entry into the guest. Whoever wants something of
//! the whole machine (a guest that powers off, a signal, a device that died) leaves a [`Request`]; from that moment no
//! vCPU enters the guest again until the main thread has dealt with it.
//!
//! `attention` is true whenever the goal is another than to run. That a vCPU which runs the guest sees it is the kick's
//! business: [`crate::vcpu::kick`].

use std::{
    sync::{
        Arc, Condvar, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use strait_devices::ports::MachineControl;
use strait_resources::failure::Failure;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::vcpu::kick;

/// How often a vCPU that is held says so.
const HOLD_TICK: Duration = Duration::from_millis(100);
/// Pauses shorter than this are not reported to the guest's watchdogs.
const UNNOTICED: Duration = Duration::from_secs(1);

/// What somebody wants of the whole machine.
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

/// Requests that wait. What ends the machine goes before a reset, whichever came first; of several ends the first counts,
/// and several resets are one. So however often a guest asks, this does not grow.
#[derive(Default)]
struct Requests {
    end: Option<Request>,
    reset: bool,
}

impl Requests {
    fn add(&mut self, request: Request) {
        match request {
            Request::Reset => self.reset = true,
            Request::PowerOff | Request::Quit | Request::Crash(_) => {
                self.end.get_or_insert(request);
            }
        }
    }

    fn take(&mut self) -> Option<Request> {
        let end = self.end.take();
        end.or_else(|| std::mem::take(&mut self.reset).then_some(Request::Reset))
    }

    fn is_empty(&self) -> bool {
        self.end.is_none() && !self.reset
    }
}

/// What a vCPU does next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Enter the guest.
    Run,
    /// Back to the state after power-on, then to the checkpoint again.
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
    /// vCPU threads.
    seats: usize,
    /// Threads that stand still: at their checkpoint, or amid an access that is held.
    paused: usize,
    /// Counts resets, so that each vCPU carries out each one once.
    resets: u64,
    /// vCPUs that are not back in the state after power-on since the last reset.
    unreset: usize,
    requests: Requests,
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

/// A vCPU thread's place in the machine. Dropping it takes the thread out.
pub(crate) struct Seat {
    control: Arc<Control>,
    /// Resets that the vCPU has begun.
    resets: u64,
    /// It has not said yet that it carried the last one out.
    resetting: bool,
}

impl Control {
    /// Paused: nothing runs before [`Control::resume`].
    pub(crate) fn new() -> std::io::Result<Self> {
        let state = State {
            goal: Goal::Pause,
            seats: 0,
            paused: 0,
            resets: 0,
            unreset: 0,
            requests: Requests::default(),
        };
        Ok(Self {
            attention: AtomicBool::new(true),
            state: Mutex::new(state),
            changed: Condvar::new(),
            event: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            stalls: AtomicU64::new(0),
        })
    }

    /// A place for one more vCPU thread. The machine waits for the thread from now on, so that one which starts late is not
    /// left out.
    pub(crate) fn seat(self: &Arc<Self>) -> Seat {
        let mut state = self.lock();
        state.seats += 1;
        Seat { control: Arc::clone(self), resets: state.resets, resetting: false }
    }

    /// Readable while a request waits.
    pub(crate) fn event(&self) -> &EventFd {
        &self.event
    }

    /// Leaves a request and keeps every vCPU out of the guest.
    pub(crate) fn request(&self, request: Request) {
        let mut state = self.lock();
        state.requests.add(request);
        if state.goal == Goal::Run {
            state.goal = Goal::Pause;
        }
        self.attention.store(true, Ordering::Release);
        // An eventfd write fails only when its counter is full, and then it is readable already.
        let _ = self.event.write(1);
    }

    /// The most urgent request that waits, if any.
    pub(crate) fn take_request(&self) -> Option<Request> {
        let _ = self.event.read();
        self.lock().requests.take()
    }

    /// Counts the calling vCPU thread among those that stand still for as long as the machine is paused and no vCPU that has
    /// begun `resets` resets is asked for a further one.
    fn wait_out_pause<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        resets: u64,
    ) -> MutexGuard<'a, State> {
        let waits = |state: &State| state.goal == Goal::Pause && state.resets == resets;
        if waits(&state) {
            state.paused += 1;
            self.changed.notify_all();
            state = self.changed.wait_while(state, |s| waits(s)).expect("no panic while held");
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
            let state = self.wait_out_pause(self.lock(), resets);
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

    /// Brings every vCPU out of the guest, each by one kick, and waits until all stand still. None is then amid an
    /// instruction, except where an access is held: that comes to nothing if the machine is reset.
    pub(crate) fn pause(&self, threads: &[JoinHandle<()>]) {
        let mut state = self.lock();
        state.goal = Goal::Pause;
        self.attention.store(true, Ordering::Release);
        // Those that hold an access count themselves.
        self.changed.notify_all();
        kick(threads);
        let running = |state: &mut State| state.paused < state.seats;
        drop(self.changed.wait_while(state, running).expect("no panic while held"));
    }

    /// Pauses the machine to reset it. Resets that are asked for until all vCPUs stand still are this one.
    pub(crate) fn pause_to_reset(&self, threads: &[JoinHandle<()>]) {
        self.pause(threads);
        self.lock().requests.reset = false;
    }

    /// Lets the vCPUs run again, unless a request came in between: that is served first, and its own handling resumes.
    pub(crate) fn resume(&self) {
        let mut state = self.lock();
        if state.requests.is_empty() && state.goal == Goal::Pause {
            state.goal = Goal::Run;
            self.attention.store(false, Ordering::Release);
        }
        self.changed.notify_all();
    }

    /// Puts every vCPU back into the state after power-on and waits until all are: no vCPU may run, and send another one
    /// interrupts, while that one is half in its old state. The machine is paused, and stays so.
    pub(crate) fn reset_vcpus(&self) {
        let mut state = self.lock();
        state.resets += 1;
        state.unreset = state.seats;
        self.changed.notify_all();
        let waits = |state: &mut State| state.unreset > 0;
        drop(self.changed.wait_while(state, waits).expect("no panic while held"));
    }

    /// Ends every vCPU thread and waits for them.
    pub(crate) fn stop(&self, threads: Vec<JoinHandle<()>>) {
        self.lock().goal = Goal::Stop;
        self.attention.store(true, Ordering::Release);
        self.changed.notify_all();
        kick(&threads);
        for thread in threads {
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

impl Seat {
    /// Must the vCPU go to its checkpoint? Looked at before each entry into the guest, and so without a lock.
    pub(crate) fn is_wanted(&self) -> bool {
        self.control.attention.load(Ordering::Acquire)
    }

    /// Has a reset been asked for since the vCPU last stood at its checkpoint? Only while its access was held.
    pub(crate) fn is_reset(&self) -> bool {
        self.control.lock().resets != self.resets
    }

    /// What the vCPU, which is between two instructions, does next; waits while the machine is paused.
    pub(crate) fn checkpoint(&mut self) -> Next {
        let control = &*self.control;
        let mut state = control.lock();
        if std::mem::take(&mut self.resetting) {
            state.unreset = state.unreset.saturating_sub(1);
            control.changed.notify_all();
        }
        let state = control.wait_out_pause(state, self.resets);
        if state.goal == Goal::Stop {
            return Next::Stop;
        }
        if state.resets != self.resets {
            self.resets = state.resets;
            self.resetting = true;
            return Next::Reset;
        }
        Next::Run
    }

    /// For a vCPU that cannot go on: stands at its checkpoint until the machine ends.
    pub(crate) fn wait_for_stop(&mut self) {
        while self.checkpoint() != Next::Stop {
            // It may be asked to run before the main thread has taken the request that ends the machine.
            std::thread::yield_now();
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.control.lock();
        state.seats -= 1;
        if state.resets != self.resets || self.resetting {
            state.unreset = state.unreset.saturating_sub(1);
        }
        self.control.changed.notify_all();
    }
}

#[cfg(test)]
#[path = "control_tests.rs"]
mod tests;
