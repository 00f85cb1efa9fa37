//! A guest that attacks its monitor through everything it was given.

use crate::{
    hosts::HostKind,
    outcome::Outcome,
    scenario::{Ending, Scenario, Vm},
};

/// Lines that strait may write on behalf of a guest that makes thousands of senseless accesses.
const LINES_ALLOWED: usize = 50;

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "hostile",
            HostKind::Main,
            "thousands of random accesses to config space, ports and device memory; strait and the devices live on",
        )
        .strait_only()
        .limit(240)
        .vm(Vm::new("a", "hostile,7,4000")
            .cpus(2)
            .device("bar16m")
            .slot("slot0")
            .cmdline("iomem=relaxed")
            .ends(Ending::Whatever))
        .vm(Vm::new("b", "edu,0;ivshmem,16,{nonce}").device("bar16m").slot("slot0"))
        .script("bind {all}\nvm_a\ncat /proc/uptime\nvm_b\n")
        .reports("b", "edu.dma", "both ways")
        .check(strait_lives),
    ]
}

/// The attacker was let finish, and strait ended in order, in few words.
fn strait_lives(outcome: &Outcome) -> Result<(), String> {
    let run = outcome.vm("a")?;
    if run.errors.contains("panicked") {
        return Err(format!("strait panicked: {}", run.errors));
    }
    if run.status != Some(0) {
        return Err(format!("exit status {:?}: {}", run.status, run.errors));
    }
    if run.report("hostile").is_err() {
        return Err("the guest's attacks did not come to their end".to_owned());
    }
    match run.errors.lines().count() {
        lines if lines > LINES_ALLOWED => Err(format!("{lines} lines on stderr")),
        _ => Ok(()),
    }
}
