//! `strait doctor`: every check of the host and of the devices named, worst first.

mod json;
mod machine;
mod next;

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use anstyle::Style;
use serde_json::Value;
use strait_devices::vfio::dma::iova_ranges_of;
use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        check,
        doctor::{self, Finding, Level, Plan},
        pci::HostFunction,
        sysroot::Sysroot,
    },
    range::AddressRange,
};

use machine::Machine;

use super::report::to_value;

use crate::{
    cli::DoctorArgs,
    report::{self, ERROR, GOOD, QUIET, STRONG, WARNING, wrapped},
    vm,
};

/// `FAIL` and a gap.
const LEVEL: usize = 6;
/// `fix:` and a gap.
const FIX: usize = 5;

/// Looks and tells. The exit status is that of the first failure.
pub(crate) fn run(args: &DoctorArgs, verbose: u8) -> Result<u8, Failure> {
    let sysroot = Sysroot::at(&args.output.sysroot);
    let machine = args.config.as_deref().map(Machine::read).transpose()?;
    let mut selectors =
        args.devices.iter().map(|word| check::selector(word)).collect::<Result<Vec<_>, _>>()?;
    selectors.extend(machine.iter().flat_map(Machine::devices));
    let slots = check::resolve(&sysroot, &selectors)?;
    let chosen: Vec<HostFunction> = slots.into_iter().flat_map(|slot| slot.functions).collect();
    let mut findings = doctor::examine(&sysroot, &chosen)?;
    if let Some(machine) = &machine {
        machine.examine(&sysroot, &mut findings);
    }
    if args.output.sysroot == Path::new("/") {
        kvm_capabilities(&mut findings);
        add(&mut findings, vfio_ranges(&chosen));
    }
    let fits = match &machine {
        Some(machine) => machine.fits(&sysroot),
        None => machine::fits(&sysroot, &chosen),
    };
    add(&mut findings, fits);
    let plan = match args.fix_plan {
        true => Some(doctor::fix_plan(&sysroot, &chosen)?),
        false => None,
    };
    let status = doctor::exit_status(&findings);
    let config = args.config.as_deref();
    let next = next::next(&sysroot, &chosen, &findings, config)?;
    if args.output.json {
        report::json(&json::answer(&findings, &next, plan.as_ref(), status))?;
    } else if let Some(plan) = &plan {
        report::out(&script(plan))?;
    } else {
        let columns = report::columns();
        let mut text = render(&findings, columns, verbose > 0);
        text.push_str(&next::render(&next, columns));
        report::out(&text)?;
    }
    Ok(status)
}

/// For an archive: what `strait doctor --json` answers for these devices.
pub(super) fn answer(sysroot: &Sysroot, chosen: &[HostFunction]) -> Result<Value, Failure> {
    let findings = doctor::examine(sysroot, chosen)?;
    let status = doctor::exit_status(&findings);
    let next = next::next(sysroot, chosen, &findings, None)?;
    to_value(&json::answer(&findings, &next, None, status))
}

/// What only an open /dev/kvm tells; a directory has none.
fn kvm_capabilities(findings: &mut Vec<Finding>) {
    let found = match vm::Host::open() {
        Ok(host) => passed(KVM, "/dev/kvm", host.summary()),
        Err(failure) if failure.code == &codes::E1005 => refused(KVM, "/dev/kvm", failure),
        // That it does not open at all, the check before has said.
        Err(_) => return,
    };
    add(findings, vec![found]);
}

/// What only VFIO tells, of groups that are on it and that nobody has: what it really lets devices address, where sysfs
/// knows the widths of registers. No device is opened for that.
fn vfio_ranges(chosen: &[HostFunction]) -> Vec<Finding> {
    let on_vfio = chosen.iter().filter(|function| function.is_on_vfio());
    let groups: BTreeSet<u32> = on_vfio.filter_map(|function| function.group).collect();
    let ranges = groups.into_iter().filter_map(|group| match iova_ranges_of(group) {
        Ok(ranges) => addressable(group, &ranges),
        // In use, or not viable: other checks say so.
        Err(error) => {
            log::info!("VFIO does not tell what group {group} can address: {error}");
            None
        }
    });
    ranges.collect()
}

fn addressable(group: u32, ranges: &[AddressRange]) -> Option<Finding> {
    let list: Vec<String> = ranges.iter().map(AddressRange::to_string).collect();
    let fact = format!("VFIO lets devices of group {group} address {}", list.join(", "));
    (!list.is_empty()).then(|| passed(WIDTH, "VFIO_IOMMU_GET_INFO", fact))
}

const WIDTH: (u8, &str) = (8, "IOMMU width");
const KVM: (u8, &str) = (2, "KVM");

/// First among those as bad.
fn add(findings: &mut Vec<Finding>, mut found: Vec<Finding>) {
    found.append(findings);
    found.sort_by_key(|finding| finding.level);
    *findings = found;
}

/// As it should be, as only this crate can tell.
fn passed((check, name): (u8, &'static str), source: &'static str, fact: String) -> Finding {
    let (fix, details) = (String::new(), Vec::new());
    let (level, device, code) = (Level::Pass, None, None);
    Finding { check, name, source, level, device, fact, fix, details, code }
}

/// A refusal that only this crate can make.
fn refused((check, name): (u8, &'static str), source: &'static str, failure: Failure) -> Finding {
    let Failure { code, cause: fact, fix, details, .. } = failure;
    let (level, device) = (Level::Fail, None);
    Finding { check, name, source, level, device, fact, fix, details, code: Some(code) }
}

fn render(findings: &[Finding], columns: usize, all: bool) -> String {
    let mut text = String::new();
    let shown = findings.iter().filter(|finding| all || finding.level != Level::Pass);
    for alike in shown.collect::<Vec<_>>().chunk_by(|one, two| says_the_same(one, two)) {
        let [finding, ..] = alike else { continue };
        let style = style(finding.level);
        // Refusals of a run name the device themselves.
        let bdfs: Vec<Bdf> = alike.iter().filter_map(|finding| finding.device).collect();
        let device = report::addresses(&bdfs);
        let is_named = device.is_empty() || finding.fact.contains(&device);
        let device = if is_named { String::new() } else { format!("{device} ") };
        let code = finding.code.map_or_else(String::new, |code| format!(" ({})", code.id));
        let fact = format!("{device}{}: {}{code}", finding.name, finding.fact);
        let room = columns.saturating_sub(LEVEL);
        for (position, line) in wrapped(&fact, room).iter().enumerate() {
            let level = if position == 0 { finding.level.name() } else { "" };
            let _ = writeln!(text, "{style}{level:4}{style:#}  {line}");
        }
        if finding.level < Level::Info {
            for detail in &finding.details {
                // A way to what would be lost may be long; a command stays one line.
                let lines = match detail.contains(" -> ") {
                    true => wrapped(detail, room.saturating_sub(2)),
                    false => vec![report::plain(detail).into_owned()],
                };
                for line in lines {
                    let _ = writeln!(text, "        {QUIET}{line}{QUIET:#}");
                }
            }
        }
        let lines = wrapped(&finding.fix, room.saturating_sub(FIX));
        for (position, line) in lines.iter().enumerate() {
            let word = if position == 0 { "fix:" } else { "" };
            let _ = writeln!(text, "      {QUIET}{word:4}{QUIET:#} {line}");
        }
    }
    let count = |level| findings.iter().filter(|finding| finding.level == level).count();
    let parts: Vec<String> = [Level::Fail, Level::Warn, Level::Skip, Level::Info, Level::Pass]
        .into_iter()
        .map(|level| format!("{} {}", count(level), level.name()))
        .collect();
    let _ = writeln!(text, "{STRONG}{}{STRONG:#}", parts.join(", "));
    text
}

/// Of several functions, in the same words.
fn says_the_same(one: &Finding, two: &Finding) -> bool {
    one.device.is_some()
        && two.device.is_some()
        && (one.check, one.level, &one.fact, &one.fix, &one.details)
            == (two.check, two.level, &two.fact, &two.fix, &two.details)
}

const fn style(level: Level) -> Style {
    match level {
        Level::Fail => ERROR,
        Level::Warn => WARNING,
        Level::Pass => GOOD,
        Level::Skip | Level::Info => QUIET,
    }
}

/// A script for a root shell, to be read first.
fn script(plan: &Plan) -> String {
    let mut text = format!("# {}\n", plan.system);
    if plan.steps.is_empty() {
        text.push_str("# nothing to do\n");
    }
    for step in &plan.steps {
        let _ = writeln!(text, "\n# {}", step.title);
        for line in &step.lines {
            let _ = writeln!(text, "{line}");
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_that_vfio_grants_are_listed_and_none_is_no_finding() {
        let range = |first, last| AddressRange::inclusive(first, last).unwrap();
        let ranges = [range(0, 0xfedf_ffff), range(0xfef0_0000, 0x7f_ffff_ffff)];
        let found = addressable(31, &ranges).unwrap();
        assert_eq!((found.check, found.level), (8, Level::Pass));
        assert_eq!(
            found.fact,
            "VFIO lets devices of group 31 address 0x0-0xfedfffff, 0xfef00000-0x7fffffffff"
        );
        assert!(addressable(31, &[]).is_none());
    }
}
