//! `strait bench` as a user runs it: host, strait and QEMU, a workload, the report in both forms, and the comparison of two.

use serde_json::Value;

use crate::{
    hosts::HostKind,
    outcome::Outcome,
    scenario::{Ending, Scenario, Vm},
};

/// What the report must have of strait, QEMU and the host.
const OF_ALL: &[&str] = &[
    "nvme.qd1.median",
    "nvme.qd1.p999",
    "nvme.iops.16",
    "nvme.throughput",
    "irq.rate",
    "workload.speed",
];
/// What it must have of strait and QEMU.
const OF_GUESTS: &[&str] = &[
    "start.init",
    "start.first",
    "memory.beyond",
    "exits.total",
    "exits.per-operation",
    "mmio.read.0",
    "irq.delivery.median",
];

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "bench",
            HostKind::Main,
            "strait bench measures a disk on the host, in strait and in QEMU",
        )
        .limit(900)
        .strait_only()
        // Never started: its initramfs has the driver's modules, which the kernel package has without an index.
        .vm(Vm::new("a", "").modules(&["nvme"]).ends(Ending::Whatever))
        .script(script("nvme0", "nvme", 2, WORKLOAD) + COMPARE)
        .check(report_is_complete)
        .check(|outcome| {
            let run = outcome.vm("compare")?;
            let same = run.serial.lines().filter(|line| line.ends_with("same")).count();
            let right = run.status == Some(0) && same > 10 && !run.serial.contains("worse");
            if right {
                Ok(())
            } else {
                Err(format!("{:?}: {}{}", run.status, run.serial, run.errors))
            }
        }),
        Scenario::new(
            "bench-nic",
            HostKind::Main,
            "strait bench measures a NIC on the host, in strait and in QEMU, with a neighbour that answers",
        )
        .limit(600)
        .strait_only()
        .vm(Vm::new("a", "").modules(&["e1000e"]).ends(Ending::Whatever))
        .script(format!("load e1000e\n{}", script("nic", "e1000e", 1, PEER)))
        .check(|outcome| {
            let (report, errors) = report_of(outcome)?;
            has_all(&report, OF_NICS, &["strait", "qemu", "host"], &errors)
        }),
    ]
}

/// What there must be of a NIC.
const OF_NICS: &[&str] =
    &["net.rtt.median", "net.rtt.p99", "net.rtt.rate", "net.echo.32", "net.sent"];

fn report_of(outcome: &Outcome) -> Result<(Value, String), String> {
    let run = outcome.vm("bench")?;
    if run.status != Some(0) {
        return Err(format!("exit status {:?}: {}", run.status, run.errors));
    }
    let report = serde_json::from_str(&outcome.text("report.json"));
    Ok((report.map_err(|error| error.to_string())?, run.errors.clone()))
}

fn median(report: &Value, id: &str, who: &str) -> Option<f64> {
    let row = report["rows"].as_array()?.iter().find(|row| row["id"] == id)?;
    row["results"][who]["median"].as_f64()
}

/// Refuses a report that lacks one of these rows for one of these.
fn has_all(report: &Value, ids: &[&str], whose: &[&str], errors: &str) -> Result<(), String> {
    for (id, who) in ids.iter().flat_map(|id| whose.iter().map(move |who| (id, who))) {
        median(report, id, who).ok_or_else(|| format!("no {id} of {who}: {errors}"))?;
    }
    Ok(())
}

/// Runs `strait bench` for this device of L1's, which must be back on its driver after it, and keeps what came out.
fn script(device: &str, driver: &str, runs: u32, more: &str) -> String {
    format!(
        r#"give_back ${device}
mkdir -p /run/lab/unpacked && (cd /run/lab/unpacked && cpio -id <$INITRAMFS_a) 2>/dev/null
run_vm bench strait bench --vfio ${device} --against qemu --runs {runs} --memory 512M --kernel $VMLINUX \
    --modules-dir /run/lab/unpacked/modules --output $J/out {more}
cp $J/out/report.html $J/out/report.json $J/
for log in $J/out/work/*.log; do cp $log $J/work-$(basename $log); done
[ "$(driver ${device})" = {driver} ] || echo "FAIL: {device} is on $(driver ${device}) afterwards"
"#
    )
}

/// A program of the user's for [`script`].
const WORKLOAD: &str = r#"--workload "/run/lab/bin/busybox echo speed: 42 MB/s""#;
const PEER: &str = "--peer 10.0.2.2,address=10.0.2.15/24";
/// After [`script`].
const COMPARE: &str = r#"[ -z "$(ls /run/strait/journal 2>/dev/null)" ] || echo "FAIL: a journal was left"
run_vm compare strait bench compare $J/report.json $J/report.json
"#;

fn report_is_complete(outcome: &Outcome) -> Result<(), String> {
    let (report, errors) = report_of(outcome)?;
    let median = |id: &str, who: &str| median(&report, id, who);
    has_all(&report, OF_ALL, &["strait", "qemu", "host"], &errors)?;
    has_all(&report, OF_GUESTS, &["strait", "qemu"], &errors)?;
    // Counts and sizes do not depend on how busy the machine is.
    for id in ["memory.beyond", "exits.total"] {
        let (ours, theirs) =
            (median(id, "strait").unwrap_or(f64::MAX), median(id, "qemu").unwrap_or(0.0));
        if ours > theirs / 2.0 {
            return Err(format!("{id}: strait {ours}, QEMU {theirs}"));
        }
    }
    let steps = report["contenders"][0]["start"].as_array().map_or(0, Vec::len);
    let latency = report["contenders"][0]["latency"].as_array().map_or(0, Vec::len);
    if steps < 8 || latency < 10 {
        return Err(format!("{steps} steps of the start and {latency} points of latency"));
    }
    let html = outcome.text("report.html");
    if html.matches("<svg").count() == 3 && html.trim_end().ends_with("</html>") {
        Ok(())
    } else {
        Err("report.html lacks a plot or its end".to_owned())
    }
}
