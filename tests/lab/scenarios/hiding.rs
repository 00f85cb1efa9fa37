//! Hiding the hypervisor: seen by CPUID and by what systemd-detect-virt looks at, inside the guest.

use crate::{
    hosts::HostKind,
    outcome::Outcome,
    scenario::{Ending, Scenario, Vm},
};

fn leaf_lacks(outcome: &Outcome, word: &str) -> Result<(), String> {
    for key in ["cpu.leaf-40000000", "cpu.leaf-40000100"] {
        let leaf = outcome.vm("a")?.report(key)?;
        if leaf.contains(word) {
            return Err(format!("{key} still says {leaf}"));
        }
    }
    Ok(())
}

/// The clock is the TSC, and nothing else is read to check it: no exits for it, neither now nor when a check fails. The
/// scenario says nothing of the frequency: a guest that had to measure it would fail here, with every monitor, because under
/// TCG one reading of a timer takes longer than the kernel tolerates between two.
fn clock_is_the_tsc(outcome: &Outcome) -> Result<(), String> {
    let vm = outcome.vm("a")?;
    let clock = vm.report("cpu.clocksource")?;
    if !clock.starts_with("tsc") {
        return Err(format!("the guest's clock is {clock}"));
    }
    match vm.all("cpu.clock-log").find(|line| line.contains("watchdog") || line.contains("-wd")) {
        Some(line) => Err(format!("the guest checks its TSC: {line}")),
        None => Ok(()),
    }
}

/// Linux names a CPU without a name by its family and model, in one word.
fn cpu_has_a_name(outcome: &Outcome) -> Result<(), String> {
    let name = outcome.vm("a")?.report("cpu.model-name")?;
    if name.contains(' ') { Ok(()) } else { Err(format!("the CPU's name is '{name}'")) }
}

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("hide-nothing", HostKind::Main, "by default the guest knows it is on KVM")
            .vm(Vm::new("a", "cpu"))
            .reports("a", "cpu.hypervisor-bit", "1")
            .check(|outcome| {
                let leaf = outcome.vm("a")?.report("cpu.leaf-40000000")?;
                if leaf.contains("KVMKVMKVM") { Ok(()) } else { Err(leaf.to_owned()) }
            })
            .check(cpu_has_a_name)
            .strait_check(|outcome| {
                let vm = outcome.vm("a")?;
                let given = ["vmx", "svm", "arch_perfmon"]
                    .into_iter()
                    .filter(|flag| vm.report(&format!("cpu.flag-{flag}")) != Ok("false"));
                match given.collect::<Vec<_>>().as_slice() {
                    [] => Ok(()),
                    flags => Err(format!("nobody asked for {flags:?}, and the guest has it")),
                }
            })
            .real(),
        Scenario::new(
            "nested",
            HostKind::Main,
            "nested=on: the guest's CPU has SVM; pmu=on is refused where KVM has no counters",
        )
        .strait_only()
        .vm(Vm::new("a", "cpu").cpus(2).flags("--cpu nested=on"))
        .vm(Vm::new("b", "").flags("--cpu pmu=on").ends(Ending::Status(3)))
        .script("vm_a\n[ $(cat /sys/module/kvm/parameters/enable_pmu) = N ] || echo FAIL: L1 has counters\nvm_b\n")
        .reports("a", "cpu.flag-svm", "true")
        .check(|outcome| {
            let said = &outcome.vm("b")?.errors;
            let clear = said.contains("error[E1005]") && said.contains("performance counters");
            if clear { Ok(()) } else { Err(format!("pmu=on without counters: {said}")) }
        }),
        Scenario::new("hide-kvm", HostKind::Main, "hide=kvm: no KVM leaf")
            .vm(Vm::new("a", "sleep,5;cpu").flags("--cpu hide=kvm").qemu_cpu(",kvm=off"))
            .check(|outcome| leaf_lacks(outcome, "KVM"))
            .reports("a", "cpu.hypervisor-bit", "1")
            .strait_check(clock_is_the_tsc)
            .real(),
        Scenario::new(
            "hide-all",
            HostKind::Main,
            "hide=all: nothing says that this is a virtual machine",
        )
        .vm(Vm::new("a", "sleep,5;cpu").flags("--cpu hide=all").qemu_cpu(",kvm=off,-hypervisor"))
        .check(|outcome| leaf_lacks(outcome, "KVM"))
        .reports("a", "cpu.hypervisor-bit", "0")
        .strait_check(clock_is_the_tsc)
        .strait_check(|outcome| {
            let said = outcome.vm("a")?.report("cpu.detect-virt")?;
            if said == "none" { Ok(()) } else { Err(format!("detected: {said}")) }
        })
        .check(cpu_has_a_name)
        .real(),
        Scenario::new("hv-vendor", HostKind::Main, "hv-vendor= shows in CPUID")
            .vm(Vm::new("a", "cpu")
                .flags("--cpu hv-vendor=LabVendor012")
                .qemu_cpu(",hv-vendor-id=LabVendor012,hv-relaxed"))
            .check(|outcome| {
                let leaf = outcome.vm("a")?.report("cpu.leaf-40000000")?;
                if leaf.contains("\"LabVendor012\"") { Ok(()) } else { Err(leaf.to_owned()) }
            })
            .real(),
    ]
}
