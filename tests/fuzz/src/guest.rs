//! What a guest does to its devices: accesses of any width to anywhere, while devices interrupt and fail.

mod machine;
mod step;

use std::thread;

use self::{
    machine::Machine,
    step::{Step, steps},
};

/// CPUs of the guest.
const CPUS: usize = 4;
/// Steps of all of them together between two resets of the machine.
const ROUND: usize = 256;

/// One CPU: what must hold is looked at after each access.
pub(crate) fn bus(bytes: &[u8]) {
    let machine = Machine::new();
    for step in steps(bytes) {
        if step.is_reset() {
            machine.reset();
        } else {
            step.take(&machine);
            machine.check();
        }
    }
    machine.end();
}

/// Four CPUs at once, which all stop for a reset of the machine: that they come to an end is most of what must hold.
pub(crate) fn threads(bytes: &[u8]) {
    let machine = Machine::new();
    let all: Vec<Step<'_>> = steps(bytes).collect();
    for round in all.chunks(ROUND) {
        thread::scope(|scope| {
            for cpu in 0..CPUS {
                let machine = &machine;
                let own = round.iter().skip(cpu).step_by(CPUS);
                scope.spawn(move || own.for_each(|step| step.take(machine)));
            }
        });
        machine.check();
        machine.reset();
    }
    machine.end();
}
