//! RAM that is pinned while the guest boots: what a device gets that wants it at once, and ends amid it.
//!
//! 8 GiB take this host twice as long as the guest takes to its first step, so that the wait is a real one.

use crate::{
    hosts::HostKind,
    outcome::{Outcome, Run},
    scenario::{Ending, Scenario, Vm},
};

/// What strait says, with -v, when a vCPU has to wait for RAM, and when it goes on.
const WAITS: &str = "its vCPU waits until all of guest RAM is mapped";
const GOES_ON: &str = "the vCPU goes on after";
const ENDED: &str = "the wait ended with the machine";
/// When all of RAM is mapped.
const COMPLETE: &str = "is pinned and mapped for DMA";

/// A guest of 8 GiB whose RAM is pinned behind its boot.
fn vm(name: &str, steps: &str) -> Vm {
    Vm::new(name, steps).memory_mib(8192).memory_keys("pin=behind").flags("-v").device("edu0")
}

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "behind-dma-at-once",
            HostKind::Big,
            "a device that masters the bus before RAM is mapped waits for it, and other CPUs do not",
        )
        .limit(300)
        .strait_only()
        // No driver but the agent's: Linux has one lock for all of configuration space, and who wants it waits, too.
        .vm(vm("a", "edu-master,0;edu,0").cpus(2))
        .reports("a", "edu.dma", "both ways")
        .check(|outcome| {
            let run = outcome.vm("a")?;
            in_order(run, &[WAITS, COMPLETE, GOES_ON])?;
            let naps = run.number("edu.naps")?;
            let message = || format!("the other CPU got {naps} naps of 10 ms in seconds of waiting");
            if naps >= 50.0 { Ok(()) } else { Err(message()) }
        })
        .check(no_fault),
        Scenario::new(
            "behind-ends",
            HostKind::Big,
            "power-off, reboot, SIGTERM and SIGKILL while RAM is being pinned; the next run works",
        )
        .limit(400)
        .strait_only()
        .vm(vm("off", ""))
        .vm(vm("reboot", "edu-master-reboot,0").cpus(2).ends(Ending::Whatever))
        .vm(vm("term", "edu,0").ends(Ending::Whatever))
        .vm(vm("kill", "edu,0").ends(Ending::Whatever))
        .vm(Vm::new("next", "edu,0").device("edu0"))
        .script(ENDS)
        .check(|outcome| {
            let off = outcome.vm("off")?;
            if off.errors.contains(COMPLETE) {
                return Err("RAM was mapped before the guest powered off".to_owned());
            }
            in_order(outcome.vm("reboot")?, &[WAITS, ENDED, WAITS])?;
            for (name, status) in [("reboot", 0), ("term", 0), ("kill", 137)] {
                let run = outcome.vm(name)?;
                if run.status != Some(status) {
                    return Err(format!("{name}: exit status {:?}, not {status}", run.status));
                }
                if run.errors.contains(COMPLETE) {
                    return Err(format!("{name}: RAM was mapped before the end"));
                }
            }
            in_order(outcome.vm("term")?, &[WAITS, ENDED])
        })
        .check(no_fault),
    ]
}

/// `reboot` waits a second time, in its second life; then it has shown enough.
const ENDS: &str = r#"bind {all}
waits() { grep -c 'its vCPU waits' $J/$1.err 2>/dev/null; }
# until_waits NAME COUNT
until_waits() {
    local left=600
    until [ "$(waits $1)" = $2 ]; do
        left=$((left - 1))
        [ $left -gt 0 ] || { echo "FAIL: $1 never waited $2 times"; return 1; }
        [ ! -e $J/$1.rc ] || { echo "FAIL: $1 ended early"; return 1; }
        usleep 100000
    done
}
vm_off
vm_reboot &
until_waits reboot 2
kill $(cat $J/reboot.pid)
wait
vm_term &
until_waits term 1
kill $(cat $J/term.pid)
wait
vm_kill &
until_waits kill 1
kill -9 $(cat $J/kill.pid)
wait
vm_next
"#;

/// Strait's messages hold these lines, one after the other.
fn in_order(run: &Run, lines: &[&str]) -> Result<(), String> {
    let mut rest = run.errors.as_str();
    for line in lines {
        let Some((_, after)) = rest.split_once(line) else {
            return Err(format!("strait does not say '{line}' where it should: {}", run.errors));
        };
        rest = after;
    }
    Ok(())
}

/// The host's IOMMU refused no device anything.
fn no_fault(outcome: &Outcome) -> Result<(), String> {
    let log = outcome.text("l1-dmesg.txt");
    let fault = log.lines().find(|line| line.contains("DMAR:") && line.contains("fault"));
    fault.map_or(Ok(()), |line| Err(format!("an IOMMU fault in L1: {line}")))
}
