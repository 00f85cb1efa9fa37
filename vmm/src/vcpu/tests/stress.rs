//! Pauses of a machine whose vCPUs run, as fast as they can come.

use std::sync::mpsc;

use super::*;

/// What each vCPU has done.
const DONE: [u32; 2] = [0x20_00, 0x20_40];
/// No pause takes so long.
const STUCK: Duration = Duration::from_secs(60);

/// Counts; between two counts runs without an exit for a while, then reads memory and a port that are not there.
fn busy(count: u32) -> Code {
    // mov ecx,200; pause; loop back; mov eax,[ABSENT]; mov dx,0x2000; in eax,dx
    let body = Code::default()
        .increment(count)
        .with(&[0xb9], 200)
        .raw(&[0xf3, 0x90, 0xe2, 0xfc])
        .with(&[0xa1], ABSENT)
        .raw(&[0x66, 0xba, 0x00, 0x20, 0xed]);
    Code::default().forever(&body)
}

/// Only counts: nothing but a kick brings this one out.
fn spinning(count: u32) -> Code {
    Code::default().forever(&Code::default().increment(count))
}

/// Pauses and resumes so often; each pause must hold every vCPU, and no kick may be lost.
fn pause_and_resume(rounds: u32, guest: fn(u32) -> Code) {
    let Some(mut tiny) = Tiny::new() else { return };
    tiny.write(BOOT_CODE, &Code::default().start_others().raw(&guest(DONE[0]).0));
    tiny.write(OTHER_CODE, &Code::from_real_mode().raw(&guest(DONE[1]).0));
    let (threads, _) = tiny.start(|_, _| ());
    tiny.control.resume();
    DONE.iter().for_each(|count| tiny.wait_for(*count, 1));
    let (tell, told) = mpsc::channel();
    let work = thread::spawn(move || {
        for round in 0..rounds {
            if round % 5 == 0 {
                // One that nobody asked for. Not beside the pauses: it would bring out whom they have lost.
                kick(&threads);
            }
            tiny.control.pause(&threads);
            let before = DONE.map(|count| tiny.read(count));
            if round % 64 == 0 {
                thread::sleep(Duration::from_millis(1));
            }
            assert_eq!(DONE.map(|count| tiny.read(count)), before, "a vCPU ran on: {round}");
            tiny.control.resume();
            // The next pause meets each at another place between its checkpoint and the guest.
            for _ in 0..u64::from(round) * 7 % 4001 {
                std::hint::spin_loop();
            }
            tell.send(()).unwrap();
        }
        // They run on after all of that.
        for count in DONE {
            let more = tiny.read(count).wrapping_add(100);
            tiny.wait_for(count, more);
        }
        tiny.control.stop(threads);
        tiny
    });
    for round in 0..rounds {
        match told.recv_timeout(STUCK) {
            Ok(()) => {}
            Err(mpsc::RecvTimeoutError::Timeout) => {
                panic!("pause {round} does not come to its end")
            }
            Err(mpsc::RecvTimeoutError::Disconnected) => break,
        }
    }
    assert!(work.join().is_ok(), "see above");
}

/// Rounds in a test that every run makes, and in one that takes minutes.
const FEW: u32 = 10_000;
const MANY: u32 = 100_000;

#[test]
fn pauses_hold_vcpus_that_leave_the_guest_all_the_time() {
    pause_and_resume(FEW, busy);
}

#[test]
fn pauses_hold_vcpus_that_never_leave_the_guest_by_themselves() {
    pause_and_resume(FEW, spinning);
}

#[test]
#[ignore = "takes minutes: cargo test -p strait --bin strait nightly -- --ignored"]
fn nightly_pauses_of_running_vcpus() {
    pause_and_resume(MANY, busy);
    pause_and_resume(MANY, spinning);
}
