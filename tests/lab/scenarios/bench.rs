//! `strait bench` as a user runs it: host, strait and QEMU, a workload, the report in both forms, and the comparison of two.

use serde_json::Value;

use crate::{
    bench::facts::figures,
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
];

/// Exits to strait from start to power-off: what a change must not silently raise. A tenth above what was measured last.
/// The instructions to the guest's first are told, not judged: on a host whose clock counts them, a wait for the kernel
/// (an RCU grace period when KVM takes a memory slot) counts as well, and 43 to 290 million were seen of one strait.
const EXITS_MOST: f64 = 2500.0;

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
        .script(SCRIPT)
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
            "bench-counts",
            HostKind::Counted,
            "the exits of a boot with reads stay what they were; instructions are told",
        )
        .limit(900)
        .strait_only()
        .vm(Vm::new("a", "nvme-bench,0,200").device("nvme0").modules(&["nvme"]))
        .script(COUNTS)
        .check(|outcome| {
            let of = |name: &str, figure: &str| {
                let text = |suffix: &str| outcome.text(&format!("{name}.{suffix}"));
                let all = figures(&text("times"), &text("exits"), 512);
                all.get(figure).copied().ok_or_else(|| format!("{name}: no {figure}"))
            };
            let exits = of("a", "exits")?;
            // A counter that counts nothing is no proof.
            if !(20.0..=EXITS_MOST).contains(&exits) {
                return Err(format!("{exits} exits, 20 to {EXITS_MOST} expected"));
            }
            for name in ["tiny1", "tiny2", "tiny3"] {
                of(name, "entry-instructions")?;
            }
            Ok(())
        }),
    ]
}

/// The stopwatch takes the place of the plain start; what it counts ends in the log.
const COUNTS: &str = r#"bind {all}
run_vm() {
    local n=$1
    shift
    echo "$*" >$J/$n.command
    agent stopwatch $J/$n $watch -- "$@" || echo "FAIL: $n was not timed"
}
watch=exits
vm_a
agent tiny-kernel /run/lab/tiny
watch="trace until LAB"
for n in tiny1 tiny2 tiny3; do run_vm $n strait run --kernel /run/lab/tiny --memory 64M; done
for n in a tiny1 tiny2 tiny3; do
    awk '$1 == "user" { s += $2 } $1 == "begin" { b = $2 } $1 == "entry" { e = $2 - b }
        END { if (s) print "LAB figure.exits=" s; if (e) printf "LAB figure.entry=%.1f M instr.\n", e * 1000 }' \
        $J/$n.times $(ls $J/$n.exits 2>/dev/null)
done
"#;

const SCRIPT: &str = r#"give_back $nvme0
mkdir -p /run/lab/unpacked && (cd /run/lab/unpacked && cpio -id <$INITRAMFS_a) 2>/dev/null
run_vm bench strait bench --vfio $nvme0 --against qemu --runs 2 --memory 512M --kernel $VMLINUX \
    --modules-dir /run/lab/unpacked/modules --output $J/out --workload "/run/lab/bin/busybox echo speed: 42 MB/s"
cp $J/out/report.html $J/out/report.json $J/
for log in $J/out/work/*.log; do cp $log $J/work-$(basename $log); done
[ "$(driver $nvme0)" = nvme ] || echo "FAIL: the disk is on $(driver $nvme0) afterwards"
[ -z "$(ls /run/strait/journal 2>/dev/null)" ] || echo "FAIL: a journal was left"
run_vm compare strait bench compare $J/report.json $J/report.json
"#;

fn report_is_complete(outcome: &Outcome) -> Result<(), String> {
    let run = outcome.vm("bench")?;
    if run.status != Some(0) {
        return Err(format!("exit status {:?}: {}", run.status, run.errors));
    }
    let report: Value =
        serde_json::from_str(&outcome.text("report.json")).map_err(|error| error.to_string())?;
    let median = |id: &str, who: &str| -> Option<f64> {
        let row = report["rows"].as_array()?.iter().find(|row| row["id"] == id)?;
        row["results"][who]["median"].as_f64()
    };
    for (ids, whose) in
        [(OF_ALL, &["strait", "qemu", "host"][..]), (OF_GUESTS, &["strait", "qemu"])]
    {
        for (id, who) in ids.iter().flat_map(|id| whose.iter().map(move |who| (id, who))) {
            median(id, who).ok_or_else(|| format!("no {id} of {who}: {}", run.errors))?;
        }
    }
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
