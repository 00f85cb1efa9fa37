use std::{
    sync::atomic::AtomicUsize,
    thread::{self, JoinHandle},
};

use super::*;
use crate::vcpu::install_kick_handler;

fn control() -> Arc<Control> {
    install_kick_handler().unwrap();
    Arc::new(Control::new().unwrap())
}

/// A thread that does what a vCPU's does, with `each` for what it does between two checkpoints.
fn vcpu(
    control: &Arc<Control>,
    mut each: impl FnMut(Next) + Send + 'static,
) -> (JoinHandle<()>, Arc<Mutex<Vec<Next>>>) {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let (mut seat, log) = (control.seat(), Arc::clone(&seen));
    let thread = thread::spawn(move || {
        loop {
            let next = if seat.is_wanted() { seat.checkpoint() } else { Next::Run };
            if next != Next::Run {
                log.lock().unwrap().push(next);
            }
            if next == Next::Stop {
                return;
            }
            each(next);
            thread::yield_now();
        }
    });
    (thread, seen)
}

#[test]
fn reset_reaches_every_vcpu_exactly_once() {
    let control = control();
    let (threads, seen): (Vec<_>, Vec<_>) = (0..3).map(|_| vcpu(&control, |_| {})).unzip();
    control.resume();
    control.request(Request::Reset);
    assert!(matches!(control.take_request(), Some(Request::Reset)));
    control.pause_to_reset(&threads);
    control.reset_vcpus();
    control.resume();
    control.pause(&threads);
    control.resume();
    control.stop(threads);
    for log in seen {
        assert_eq!(*log.lock().unwrap(), [Next::Reset, Next::Stop]);
    }
}

#[test]
fn no_vcpu_runs_after_a_reset_before_all_are_reset() {
    const VCPUS: usize = 4;
    let control = control();
    let (reset, early) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let one = |index: usize| {
        let (reset, early) = (Arc::clone(&reset), Arc::clone(&early));
        let mut rounds = 0;
        vcpu(&control, move |next| match next {
            Next::Reset => {
                // The last one takes longest.
                thread::sleep(Duration::from_micros(200 * index as u64));
                rounds += 1;
                reset.fetch_add(1, Ordering::SeqCst);
            }
            _ if reset.load(Ordering::SeqCst) < VCPUS * rounds => {
                early.fetch_add(1, Ordering::SeqCst);
            }
            _ => {}
        })
    };
    let (threads, _): (Vec<_>, Vec<_>) = (0..VCPUS).map(one).unzip();
    control.resume();
    for round in 1..=200 {
        control.pause_to_reset(&threads);
        control.reset_vcpus();
        assert_eq!(reset.load(Ordering::SeqCst), VCPUS * round);
        control.resume();
    }
    control.stop(threads);
    assert_eq!(early.load(Ordering::SeqCst), 0);
}

#[test]
fn held_vcpu_outlives_a_pause_and_comes_to_nothing_in_a_reset() {
    let control = control();
    let (log, holds) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicUsize::new(0)));
    let (hold, held, begun) = (Arc::clone(&control), Arc::clone(&log), Arc::clone(&holds));
    let (thread, _) = vcpu(&control, move |next| {
        if next == Next::Run {
            let tick = || {
                begun.fetch_add(1, Ordering::SeqCst);
            };
            let passed = hold.hold(|| false, tick);
            held.lock().unwrap().push(passed);
        }
    });
    let threads = [thread];
    control.resume();
    while holds.load(Ordering::SeqCst) == 0 {
        thread::yield_now();
    }
    control.pause(&threads);
    control.resume();
    control.pause(&threads);
    assert!(log.lock().unwrap().is_empty());
    control.reset_vcpus();
    assert_eq!(*log.lock().unwrap(), [false]);
    control.resume();
    control.stop(threads.into());
    assert!(log.lock().unwrap().iter().all(|passed| !passed));
}

#[test]
fn end_goes_before_a_reset_and_the_first_end_counts() {
    let control = Control::new().unwrap();
    control.request(Request::Reset);
    control.request(Request::PowerOff);
    control.request(Request::Quit);
    assert!(matches!(control.take_request(), Some(Request::PowerOff)));
    assert!(matches!(control.take_request(), Some(Request::Reset)));
    assert!(control.take_request().is_none());
}

#[test]
fn reset_that_several_vcpus_ask_for_is_one_reset() {
    let control = control();
    control.request(Request::Reset);
    assert!(matches!(control.take_request(), Some(Request::Reset)));
    control.request(Request::Reset);
    control.request(Request::Reset);
    control.pause_to_reset(&[]);
    control.reset_vcpus();
    assert!(control.take_request().is_none());
}

#[test]
fn vcpu_whose_thread_begins_late_is_waited_for() {
    let control = control();
    let mut seat = control.seat();
    let thread = thread::spawn(move || {
        thread::sleep(Duration::from_millis(20));
        while seat.checkpoint() != Next::Stop {}
    });
    let threads = [thread];
    control.pause(&threads);
    assert_eq!(control.lock().paused, 1);
    control.stop(threads.into());
}
