//! CPU and KVM.

use super::{
    super::{
        check, cpu,
        smt::{self, CoreScheduling},
    },
    Answer, Host, Outcome,
};

/// 1: Linux on x86-64, perhaps itself a guest.
pub(super) fn system(host: &Host<'_>) -> Answer {
    let Some(cpu) = cpu::cpu(host.sysroot)? else {
        return Ok(vec![Outcome::of(check::kvm(host.sysroot), "x86-64")]);
    };
    let kernel = host.text("/proc/sys/kernel/osrelease")?;
    let release = kernel.clone().unwrap_or_default();
    let model = cpu.model.clone().unwrap_or_else(|| "unknown CPU".to_owned());
    let kernel = kernel.map_or_else(|| "x86-64".to_owned(), |kernel| format!("Linux {kernel}"));
    let mut found = vec![Outcome::pass(format!("{kernel} on {} x {model}", cpu.online))];
    let trouble = KERNELS.iter().find(|(version, ..)| is_version(&release, version));
    if let Some((version, what, source)) = trouble {
        let fact = format!("Linux {version} is known for trouble: {what}");
        let outcome = Outcome::warn(fact, "boot another kernel, best the newest of its series");
        found.push(outcome.detail(format!("on record: {source}")));
    }
    if cpu.is_guest() {
        found.push(Outcome::info("this host is itself a guest: nested virtualization"));
    }
    Ok(found)
}

/// Kernels with which passed devices went wrong for others: version, what, who says so. One without a report that can be
/// read stays out.
const KERNELS: &[(&str, &str, &str)] = &[
    // 6.12.22 and 6.14.1 were good; a GTX 1080 with zen and lts builds, seen by several.
    ("6.12.23", LOST_RESETS, ZEN_380),
    ("6.14.2", LOST_RESETS, ZEN_380),
];
const LOST_RESETS: &str = "GPUs did not come back when their guest rebooted or ended";
const ZEN_380: &str = "https://github.com/zen-kernel/zen-kernel/issues/380";

/// Is a release, `6.14.2-arch1-1`, of this version?
fn is_version(release: &str, version: &str) -> bool {
    let number =
        release.split(|c: char| !c.is_ascii_digit() && c != '.').next().unwrap_or_default();
    number.trim_end_matches('.') == version
}

/// 2: the firmware lets the CPU virtualize, and /dev/kvm opens.
pub(super) fn kvm(host: &Host<'_>) -> Answer {
    if cpu::cpu(host.sysroot)?.is_none() {
        return Ok(Vec::new());
    }
    Ok(vec![Outcome::of(check::kvm(host.sysroot), "/dev/kvm is there and opens")])
}

/// 3: what makes KVM fast.
pub(super) fn kvm_features(host: &Host<'_>) -> Answer {
    let is = |module: &str, parameter: &str| {
        let value = host.text(&format!("/sys/module/{module}/parameters/{parameter}"));
        value.map(|value| value.map(|value| matches!(value.as_str(), "Y" | "1")))
    };
    let mut found = Vec::new();
    for (module, tables, interrupts, names) in [
        ("kvm_intel", "ept", "enable_apicv", ("EPT", "APICv")),
        ("kvm_amd", "npt", "avic", ("NPT", "AVIC")),
    ] {
        match is(module, tables)? {
            Some(true) => found.push(Outcome::pass(format!("{} is on", names.0))),
            Some(false) => found.push(Outcome::warn(
                format!("{} is off: every guest is slow", names.0),
                format!("remove {tables}=0 from {module}'s options, or use a CPU with it"),
            )),
            None => continue,
        }
        if is(module, interrupts)? == Some(false) {
            let fact = format!("{} is off: interrupts of devices cost an exit each", names.1);
            found.push(Outcome::info(fact));
        }
    }
    if is("kvm", "ignore_msrs")? == Some(true) {
        found.push(Outcome::info("kvm.ignore_msrs is on: strait does not need it"));
    }
    if found.is_empty() {
        found.push(Outcome::skip("neither kvm_intel nor kvm_amd shows parameters", ""));
    }
    Ok(found)
}

/// 9: what the guest's addresses can be.
pub(super) fn address_width(host: &Host<'_>) -> Answer {
    let bits = cpu::cpu(host.sysroot)?.and_then(|cpu| cpu.physical_bits);
    Ok(vec![match bits {
        Some(bits) => {
            Outcome::info(format!("the CPU has {bits} physical-address bits, and so has a guest"))
        }
        None => Outcome::skip("/proc/cpuinfo does not tell the physical-address bits", ""),
    }])
}

/// 39: what there is to pin to.
pub(super) fn layout(host: &Host<'_>) -> Answer {
    let Some(topology) = cpu::topology(host.sysroot)? else {
        return Ok(vec![Outcome::skip("/sys shows no CPU topology", "")]);
    };
    let mut found = vec![Outcome::info(format!(
        "{}: {}, {}, {} each",
        count(topology.threads, "CPU"),
        count(topology.packages, "package"),
        count(topology.cores, "core"),
        count(topology.threads_per_core(), "thread")
    ))];
    match smt::core_scheduling(host.sysroot)? {
        CoreScheduling::Unneeded => {}
        CoreScheduling::Possible => found.push(Outcome::info(
            "a core runs two threads: no other program runs there while a vCPU does, if the kernel has core scheduling",
        )),
        CoreScheduling::TooOld => found.push(Outcome::info(
            "a core runs two threads, and this kernel, older than 5.14, lets other programs run there beside a vCPU",
        )),
    }
    if let Some(small) = host.text("/sys/devices/cpu_atom/cpus")? {
        found.push(Outcome::info(format!("efficiency cores among them: CPUs {small}")));
    }
    for (file, word) in
        [("isolated", "isolated from the scheduler"), ("nohz_full", "without a tick")]
    {
        let list = host.text(&format!("/sys/devices/system/cpu/{file}"))?;
        // An empty list is a line end, or "(null)" on some kernels.
        if let Some(list) = list.filter(|list| list.starts_with(|c: char| c.is_ascii_digit())) {
            found.push(Outcome::info(format!("CPUs {list} are {word}")));
        }
    }
    if let Some(governor) = host.text("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")? {
        found.push(Outcome::info(format!("the frequency governor is {governor}")));
    }
    Ok(found)
}

/// `1 core`, `2 cores`.
fn count(number: u32, word: &str) -> String {
    format!("{number} {word}{}", if number == 1 { "" } else { "s" })
}

/// 40: the guest's clock is the host's TSC.
pub(super) fn tsc(host: &Host<'_>) -> Answer {
    let source = host.text("/sys/devices/system/clocksource/clocksource0/current_clocksource")?;
    let Some(cpu) = cpu::cpu(host.sysroot)? else { return Ok(Vec::new()) };
    Ok(vec![match source.as_deref() {
        None => Outcome::skip("the kernel does not show its clock source", ""),
        Some("tsc") if cpu.has("nonstop_tsc") => Outcome::pass("the TSC is stable and never stops"),
        Some("tsc") if cpu::tsc_is_vouched_for(host.sysroot)? => {
            Outcome::pass("the TSC is the clock, and tsc=reliable vouches for it")
        }
        // A guest's clock source is the outer hypervisor's.
        Some(other) if cpu.is_guest() => Outcome::info(format!("the clock source is {other}")),
        Some("tsc") => Outcome::info("the TSC is the clock, but stops in deep sleep states"),
        Some(other) => Outcome::warn(
            format!("the kernel does not trust the TSC: its clock source is {other}"),
            "look into: dmesg | grep -i tsc; a firmware update often mends it",
        ),
    }])
}
