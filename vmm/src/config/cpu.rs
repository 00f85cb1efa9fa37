//! `--cpus` and `--cpu`.

use std::num::NonZeroU8;

use strait_arch::cpuid::apic_id;
use strait_resources::failure::Failure;

use super::{Cpu, Hide, Idle, bad_value, choice, list::List};

const IDLE_CHOICES: &[(&str, Idle)] = &[("halt", Idle::Halt), ("native", Idle::Native)];
const HIDE_CHOICES: &[(&str, Hide)] = &[("no", Hide::No), ("kvm", Hide::Kvm), ("all", Hide::All)];

const OFF_OR_ON: &[(&str, bool)] = &[("off", false), ("on", true)];

/// 255 is the broadcast of 8-bit APIC ids (Intel SDM 3A, 11.6.1), and firmware tables name CPUs by such.
const LAST_APIC_ID: u32 = 254;

/// A count, and the `key=value` lists of every `--cpu`; a later one adds to an earlier one.
pub(super) fn parse(count_text: &str, lists: &[String]) -> Result<Cpu, Failure> {
    let count = number("--cpus", count_text)?;
    let (mut threads, mut cores) = (None, None);
    let (mut hide, mut hv_vendor, mut idle) = (Hide::default(), None, Idle::default());
    let (mut nested, mut pmu, mut core_sched) = (false, false, true);
    let text = lists.join(",");
    let keys = ["hide", "hv-vendor", "threads", "cores", "idle", "nested", "pmu", "core-sched"];
    let list = match lists {
        [] => List { word: None, pairs: Vec::new() },
        _ => List::parse("--cpu", &text, &keys)?,
    };
    if let Some(word) = list.word {
        let cause = format!("--cpu {text}: '{word}' is no key=value");
        return Err(bad_value(cause, "the guest sees the host's CPU; to hide KVM: --cpu hide=kvm"));
    }
    for (key, value) in list.pairs {
        match key {
            "hide" => hide = choice("--cpu hide=", Some(&value), HIDE_CHOICES)?,
            "hv-vendor" => hv_vendor = Some(vendor(&value)?),
            "idle" => idle = choice("--cpu idle=", Some(&value), IDLE_CHOICES)?,
            "nested" => nested = choice("--cpu nested=", Some(&value), OFF_OR_ON)?,
            "pmu" => pmu = choice("--cpu pmu=", Some(&value), OFF_OR_ON)?,
            "core-sched" => {
                core_sched = choice("--cpu core-sched=", Some(&value), OFF_OR_ON)?;
            }
            "threads" => threads = Some(number("--cpu threads=", &value)?),
            _ => cores = Some(number("--cpu cores=", &value)?),
        }
    }
    if hide == Hide::All && hv_vendor.is_some() {
        let cause =
            format!("--cpu {text}: hide=all leaves no hypervisor leaf for hv-vendor= to be in");
        return Err(bad_value(cause, "hide=kvm keeps the leaf; or leave hv-vendor= out"));
    }
    let (threads_per_core, cores_per_package) = arrange(count, threads, cores)?;
    let cpu = Cpu {
        count,
        threads_per_core,
        cores_per_package,
        hide,
        hv_vendor,
        idle,
        nested,
        pmu,
        core_sched,
    };
    let last = apic_id(u32::from(count.get()) - 1, cpu.topology());
    if last > LAST_APIC_ID {
        let cause = format!("--cpu {text}: {count} CPUs arranged so need APIC ids up to {last}");
        let fix = format!(
            "{LAST_APIC_ID} is the last; powers of two for cores= and threads= leave no gaps"
        );
        return Err(bad_value(cause, fix));
    }
    Ok(cpu)
}

/// Threads per core and cores per package: what is not said is one thread, and all cores in one package.
fn arrange(
    count: NonZeroU8,
    threads: Option<NonZeroU8>,
    cores: Option<NonZeroU8>,
) -> Result<(NonZeroU8, NonZeroU8), Failure> {
    let threads = threads.unwrap_or(NonZeroU8::MIN);
    let all_cores = NonZeroU8::new(count.get() / threads);
    let whole = |cores: &NonZeroU8| {
        let package = cores.get().checked_mul(threads.get());
        package.is_some_and(|package| count.get().is_multiple_of(package))
    };
    match cores.or(all_cores).filter(whole) {
        Some(cores) => Ok((threads, cores)),
        None => {
            let asked = match cores {
                Some(cores) => format!("packages of {cores} cores with {threads} threads each"),
                None => format!("cores of {threads} threads"),
            };
            let cause = format!("{count} CPUs are no whole number of {asked}");
            Err(bad_value(cause, "--cpus must be a multiple of cores times threads"))
        }
    }
}

fn number(what: &str, text: &str) -> Result<NonZeroU8, Failure> {
    // `parse` alone would take a sign.
    let number = text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten();
    number.ok_or_else(|| {
        bad_value(format!("'{text}' is no value of {what}"), "a number from 1 to 255")
    })
}

/// Twelve bytes fit into EBX, ECX and EDX of the leaf.
fn vendor(text: &str) -> Result<[u8; 12], Failure> {
    let mut signature = [0; 12];
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte));
    match signature.get_mut(..text.len()) {
        Some(room) if printable => room.copy_from_slice(text.as_bytes()),
        _ => {
            let cause = format!("--cpu hv-vendor={text} does not fit into its CPUID leaf");
            return Err(bad_value(cause, "at most 12 printable ASCII characters"));
        }
    }
    Ok(signature)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cpu(count: &str, lists: &[&str]) -> Result<Cpu, Failure> {
        parse(count, &lists.iter().map(|&list| list.to_owned()).collect::<Vec<_>>())
    }

    fn topology(count: &str, list: &[&str]) -> (u8, u8, u8) {
        let cpu = cpu(count, list).unwrap();
        (cpu.count.get(), cpu.cores_per_package.get(), cpu.threads_per_core.get())
    }

    #[test]
    fn parse_topology_defaults_to_one_package_of_single_threaded_cores() {
        assert_eq!(topology("1", &[]), (1, 1, 1));
        assert_eq!(topology("255", &[]), (255, 255, 1));
        assert_eq!(topology("8", &["threads=2"]), (8, 4, 2));
        assert_eq!(topology("8", &["threads=2,cores=2"]), (8, 2, 2));
        assert_eq!(topology("8", &["threads=2", "cores=4"]), (8, 4, 2));
    }

    #[test]
    fn parse_hiding_and_vendor() {
        let asked = cpu("2", &["hide=kvm,hv-vendor=GenuineIntel"]).unwrap();
        assert_eq!((asked.hide, asked.hv_vendor), (Hide::Kvm, Some(*b"GenuineIntel")));
        let asked = cpu("2", &["hv-vendor=a,,b c", "hide=no"]).unwrap();
        assert_eq!((asked.hide, asked.hv_vendor), (Hide::No, Some(*b"a,b c\0\0\0\0\0\0\0")));
        assert_eq!(cpu("2", &["hide=all,idle=native"]).unwrap().hide, Hide::All);
        assert_eq!(cpu("2", &["idle=native"]).unwrap().idle, Idle::Native);
        assert_eq!(cpu("2", &[]).unwrap().idle, Idle::Halt);
        assert_eq!(cpu("2", &[]).unwrap().hv_vendor, None);
    }

    #[test]
    fn parse_what_a_guest_has_only_when_asked_for() {
        let cpu = |lists: &[&str]| cpu("2", lists).map(|cpu| (cpu.nested, cpu.pmu)).unwrap();
        assert_eq!(cpu(&[]), (false, false));
        assert_eq!(cpu(&["nested=on"]), (true, false));
        assert_eq!(cpu(&["pmu=on", "nested=off"]), (false, true));
    }

    #[test]
    fn parse_cores_are_kept_unless_told_otherwise() {
        assert!(cpu("2", &[]).unwrap().core_sched);
        assert!(cpu("2", &["core-sched=on"]).unwrap().core_sched);
        assert!(!cpu("2", &["pmu=on", "core-sched=off"]).unwrap().core_sched);
    }

    #[test]
    fn parse_refusals_name_the_value() {
        for (count, lists, code, says) in [
            ("0", &[][..], "E2003", "from 1 to 255"),
            ("256", &[], "E2003", "'256'"),
            ("+2", &[], "E2003", "'+2'"),
            ("two", &[], "E2003", "'two'"),
            ("", &[], "E2003", "''"),
            ("3", &["threads=2"], "E2003", "3 CPUs are no whole number of cores of 2 threads"),
            ("1", &["threads=2"], "E2003", "1 CPUs are no whole number"),
            ("8", &["cores=3"], "E2003", "packages of 3 cores"),
            ("8", &["cores=200,threads=200"], "E2003", "multiple of cores times threads"),
            ("8", &["threads=0"], "E2003", "--cpu threads="),
            ("8", &["hide=yes"], "E2003", "one of: no, kvm, all"),
            ("8", &["idle=poll"], "E2003", "one of: halt, native"),
            ("8", &["nested=yes"], "E2003", "one of: off, on"),
            ("8", &["core-sched=auto"], "E2003", "one of: off, on"),
            ("8", &["pmu=1"], "E2003", "one of: off, on"),
            ("8", &["hide=kvm", "hide=all"], "E2003", "hide= comes twice"),
            ("8", &["hv-vendor=thirteen_char"], "E2003", "at most 12"),
            ("8", &["hv-vendor=\u{fc}"], "E2003", "printable"),
            ("8", &["hide=all,hv-vendor=x"], "E2003", "hide=kvm keeps the leaf"),
            ("255", &["cores=3"], "E2003", "254 is the last"),
            ("8", &["host"], "E2003", "'host' is no key=value"),
            ("8", &["hv_vendor=x"], "E2002", "did you mean hv-vendor=?"),
        ] {
            let failure = cpu(count, lists).unwrap_err();
            assert_eq!(failure.code.id, code, "{count} {lists:?}");
            let told = format!("{} {}", failure.cause, failure.fix);
            assert!(told.contains(says), "{count} {lists:?}: {told}");
        }
    }
}
