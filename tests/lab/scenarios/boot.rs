//! Machines without a passed device: boot, end, and what strait says without starting one.

use std::{fs, process::Command};

use crate::{
    files,
    hosts::HostKind,
    outcome::Outcome,
    scenario::{Ending, Scenario, Vm},
};

/// Millions: 15 when this was set, of which the program's own are 1; the host's kernel has the others.
const INSTRUCTIONS_ALLOWED: f64 = 25.0;

/// On this host an instruction is a nanosecond of CPU time. The first start brings the program into the page cache.
const COUNT_INSTRUCTIONS: &str = r#"
agent tiny-kernel /run/lab/tiny || exit 91
start() { agent stopwatch $J/$1 until "LAB up=" -- strait run --kernel /run/lab/tiny --memory 64M; }
start first && start second && start third || echo "FAIL: not timed"
for run in second third; do
    grep '^cpu ' $J/$run.times | cut -d' ' -f2
done | sort -n | head -n 1 >$J/seconds
echo "LAB figure.cpu=$(cat $J/seconds) s, a nanosecond an instruction, for a machine's start and end"
"#;

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("boot", HostKind::Main, "a stock vmlinux boots to init and powers off")
            .vm(Vm::new("a", "cpu;memory;pci;irqs"))
            .reports("a", "cpu.count", "1")
            .real(),
        Scenario::new("boot-bzimage", HostKind::Main, "the stock bzImage itself boots")
            .limit(420)
            .vm(Vm::new("a", "cpu;memory;pci").bzimage())
            .real(),
        Scenario::new(
            "boot-bzimage-64",
            HostKind::Main,
            "the stock bzImage, entered at its own 64-bit entry, unpacks itself and boots",
        )
        .strait_only()
        .limit(420)
        .vm(Vm::new("a", "cpu;memory;pci").bzimage().flags("--boot bzimage"))
        .real(),
        Scenario::new("boot-two-cpus", HostKind::Main, "two CPUs with the host's topology")
            .vm(Vm::new("a", "cpu;irqs").cpus(2))
            .reports("a", "cpu.count", "2")
            .real(),
        Scenario::new("boot-4-cpus-3g", HostKind::Main, "four CPUs, and RAM on both sides of 4 GiB")
            .limit(180)
            .vm(Vm::new("a", "cpu;memory").cpus(4).memory_mib(2560))
            .reports("a", "cpu.count", "4")
            .strait_check(|outcome| {
                let highest = outcome.vm("a")?.report("memory.highest")?.to_owned();
                let above = u64::from_str_radix(highest.trim_start_matches("0x"), 16)
                    .is_ok_and(|highest| highest > 1 << 32);
                if above { Ok(()) } else { Err(format!("RAM ends at {highest}, below 4 GiB")) }
            }),
        Scenario::new("acpi-tables", HostKind::Main, "iasl takes the guest's ACPI tables apart, and back")
            .limit(300)
            .vm(Vm::new("a", "acpi").cpus(2))
            .check(tables_are_clean),
        Scenario::new("triple-fault", HostKind::Main, "a triple fault ends strait with 8 and says where")
            .strait_only()
            .vm(Vm::new("a", "reboot").cmdline("reboot=t").ends(Ending::Status(8)))
            .check(|outcome| {
                let said = &outcome.vm("a")?.errors;
                let wanted = ["error[E8001]", "fix:"];
                let rip = said.to_lowercase().contains("rip");
                let all = wanted.iter().all(|word| said.contains(word)) && rip;
                if all { Ok(()) } else { Err(format!("stderr lacks code, fix or RIP: {said}")) }
            })
            .real(),
        Scenario::new("dry-run", HostKind::Main, "--dry-run prints the machine and touches nothing")
            .strait_only()
            .script(
                "bind $nvme0 $bar32g\n\
                 bindings >$J/before\n\
                 run_vm a strait run --kernel $VMLINUX --memory 1G --vfio $nvme0 --vfio $bar32g --dry-run\n\
                 bindings >$J/after\n\
                 cmp $J/before $J/after || echo FAIL: the bindings changed\n",
            )
            .check(|outcome| {
                let run = outcome.vm("a")?;
                let missing: Vec<_> = ["0000:00:04.0", "0000:00:0a.0", "PCI:1:0:0", "32 GiB"]
                    .into_iter()
                    .filter(|word| !run.serial.contains(word))
                    .collect();
                match run.status {
                    Some(0) if missing.is_empty() => Ok(()),
                    Some(0) => Err(format!("the plan does not say {missing:?}")),
                    status => Err(format!("exit status {status:?}: {}", run.errors)),
                }
            }),
        Scenario::new(
            "start-instructions",
            HostKind::Counted,
            "to start a machine and to end it the host executes 25 million instructions for strait at most",
        )
        .strait_only()
        .script(COUNT_INSTRUCTIONS)
        .check(|outcome| {
            let counted = outcome.text("seconds");
            let seconds: f64 =
                counted.trim().parse().map_err(|_| format!("seconds: {counted}"))?;
            let millions = seconds * 1e3;
            // A start that took next to none was not seen.
            if (1.0..=INSTRUCTIONS_ALLOWED).contains(&millions) {
                Ok(())
            } else {
                Err(format!("{millions} million instructions, {INSTRUCTIONS_ALLOWED} allowed"))
            }
        }),
        Scenario::new("explain", HostKind::Main, "strait explain says more about a code")
            .strait_only()
            .script("run_vm a strait explain E1103\n")
            .check(|outcome| {
                let run = outcome.vm("a")?;
                let good = run.status == Some(0)
                    && run.serial.contains("IOMMU group")
                    && run.serial.lines().count() > 3;
                if good { Ok(()) } else { Err(format!("{:?}: {}", run.status, run.serial)) }
            })
            .real(),
    ]
}

/// Writes the dumped tables to files and lets iasl judge.
pub(super) fn tables_are_clean(outcome: &Outcome) -> Result<(), String> {
    let iasl = files::program("iasl").ok_or("iasl is missing")?;
    let run = outcome.vm("a")?;
    let directory = outcome.job.join("acpi");
    files::fresh_directory(&directory).map_err(|error| error.to_string())?;
    let names: Vec<&str> =
        run.all("acpi.table").filter_map(|line| line.split(' ').next()).collect();
    if !["DSDT", "APIC", "FACP", "MCFG"].iter().all(|name| names.contains(name)) {
        return Err(format!("the guest has only the tables {names:?}"));
    }
    for name in names {
        let key = format!("acpi.{name}");
        let hex: String = run.all(&key).collect();
        let bytes: Option<Vec<u8>> = (0..hex.len() / 2)
            .map(|n| u8::from_str_radix(hex.get(2 * n..2 * n + 2)?, 16).ok())
            .collect();
        let file = format!("{name}.aml");
        let bytes = bytes.ok_or_else(|| format!("{name} came garbled"))?;
        fs::write(directory.join(&file), bytes).map_err(|error| error.to_string())?;
        let ask = |arguments: &[&str]| -> Result<String, String> {
            let output = Command::new(&iasl).current_dir(&directory).args(arguments).output();
            let output = output.map_err(|error| format!("iasl: {error}"))?;
            let text = [output.stdout, output.stderr].concat();
            let text = String::from_utf8_lossy(&text).into_owned();
            if output.status.success() { Ok(text) } else { Err(format!("{name}: {text}")) }
        };
        let said = ask(&["-d", &file])?;
        if let Some(bad) = said.lines().find(|line| {
            line.contains("Error") || line.contains("Warning") || line.contains("nvalid")
        }) {
            return Err(format!("{name}: iasl -d says {bad}"));
        }
        if name == "DSDT" || name.starts_with("SSDT") {
            let said = ask(&["-p", &format!("{name}-again"), &format!("{name}.dsl")])?;
            let verdict = said.lines().find(|line| line.contains("Errors")).unwrap_or_default();
            if !verdict.contains(" 0 Errors") {
                return Err(format!("{name} does not compile again: {verdict}"));
            }
        }
    }
    Ok(())
}
