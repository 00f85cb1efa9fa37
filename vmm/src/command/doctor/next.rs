//! What to type next: from this host to a running guest, in commands that work as they are printed.

use std::{collections::BTreeSet, fmt::Write as _, path::Path};

use strait_resources::{
    bdf::{Bdf, BdfSelector},
    failure::Failure,
    host::{
        check::{self, Allowed},
        doctor::{self, Finding, Level},
        inventory::{self, Entry, Verdict},
        kernels::{self, Installed},
        memory,
        needs::Needs,
        pci::HostFunction,
        reset,
        sysroot::Sysroot,
    },
    names::Names,
};

use crate::report::{QUIET, STRONG, plain, wrapped};

/// The way on.
#[derive(Debug, Default)]
pub(super) struct Next {
    /// What it is about; empty when there is nothing to say.
    heading: String,
    /// What follows the commands.
    after: String,
    /// In order.
    pub(super) steps: Vec<Step>,
}

/// One command.
#[derive(Debug)]
pub(super) struct Step {
    /// What it does.
    what: String,
    /// For a root shell, one line.
    pub(super) command: String,
}

impl Next {
    fn step(&mut self, what: impl Into<String>, command: String) {
        self.steps.push(Step { what: what.into(), command });
    }
}

/// What follows from the findings about `chosen`, or about the host alone.
pub(super) fn next(
    sysroot: &Sysroot,
    chosen: &[HostFunction],
    findings: &[Finding],
    config: Option<&Path>,
) -> Result<Next, Failure> {
    let entries = inventory::inventory(sysroot)?;
    let chosen: Vec<&Entry> = chosen
        .iter()
        .filter_map(|function| entries.iter().find(|entry| entry.function.bdf == function.bdf))
        .collect();
    let mut failed = findings.iter().filter(|finding| finding.level == Level::Fail);
    // The command line that is printed has the word for it; a file has not.
    let by_word =
        |finding: &Finding| config.is_none() && finding.code.is_some_and(|code| code.id == "E1127");
    if failed.any(|finding| !by_word(finding) && !ends_by_binding(finding, &chosen)) {
        return mend(sysroot, &chosen);
    }
    if let Some(path) = config {
        let mut next = Next { heading: "as root".to_owned(), ..Next::default() };
        let command = format!("strait run --config {}", path.display());
        next.step("start the machine; Ctrl-A x ends it", command);
        return Ok(next);
    }
    let needs = Needs::new(sysroot);
    if let Some(failure) = refused(&needs, &chosen) {
        return Ok(first(&failure));
    }
    let mut next = Next::default();
    let looked_at = !chosen.is_empty();
    let devices = if chosen.is_empty() {
        let devices = match candidate(sysroot, &needs, &entries)? {
            Candidate::Devices(devices) => devices,
            Candidate::Refused(failure) => return Ok(first(&failure)),
            Candidate::None => {
                next.heading = "The host is ready, and has no device that a guest could have; \
                                strait devices tells why."
                    .to_owned();
                return Ok(next);
            }
        };
        let name = Names::load(sysroot).function(&devices[0].function);
        next.heading = format!("as root, for example with {name} at {}", short(&devices));
        devices
    } else {
        next.heading = "as root".to_owned();
        chosen
    };
    start(sysroot, &devices, looked_at, &mut next)?;
    Ok(next)
}

/// Is it only that a host driver has a device that `strait bind` would take?
fn ends_by_binding(finding: &Finding, chosen: &[&Entry]) -> bool {
    let binds = chosen.iter().all(|entry| !matches!(entry.verdict, Verdict::No(_)));
    binds && finding.code.is_some_and(|code| ["E1102", "E1103"].contains(&code.id))
}

/// What stands between the device and a guest.
fn first(failure: &Failure) -> Next {
    let Failure { code, cause, fix, .. } = failure;
    let heading = format!("Before a guest can have it: {cause} ({}); {fix}.", code.id);
    Next { heading, ..Next::default() }
}

fn mend(sysroot: &Sysroot, chosen: &[&Entry]) -> Result<Next, Failure> {
    let functions: Vec<HostFunction> = chosen.iter().map(|entry| entry.function.clone()).collect();
    if doctor::fix_plan(sysroot, &functions)?.steps.is_empty() {
        return Ok(Next::default());
    }
    let mut words = vec!["strait doctor".to_owned()];
    words.extend(chosen.iter().map(|entry| entry.function.bdf.to_string()));
    words.push("--fix-plan".to_owned());
    let mut next = Next { heading: "mend what failed".to_owned(), ..Next::default() };
    next.step("the lines for this system, printed and not run", words.join(" "));
    Ok(next)
}

/// Look, plan, run: a run takes the devices from their drivers and gives them back.
fn start(
    sysroot: &Sysroot,
    devices: &[&Entry],
    looked_at: bool,
    next: &mut Next,
) -> Result<(), Failure> {
    let words = short(devices);
    let stays = !are_reset(sysroot, devices)?;
    if !looked_at {
        next.step("look at the device itself", format!("strait doctor {words}"));
    }
    let installed = kernels::installed(sysroot)?;
    let keys = if stays { ",after=vfio" } else { "" };
    let line = run_line(sysroot, &installed, &words, keys)?;
    next.step("look at the machine that it makes; nothing is touched", format!("{line} --dry-run"));
    let with = match &installed {
        Installed { kernel: None, .. } => {
            "start a guest; this host keeps no kernel where it is looked for, put yours in"
        }
        Installed { initramfs: None, .. } => "start a guest with this host's kernel",
        _ => "start a guest with this host's kernel and initramfs",
    };
    next.step(format!("{with}; Ctrl-A x ends it"), line);
    if let Some(from) = drivers(devices) {
        next.after = match stays {
            false => format!(
                "The guest has the device for as long as it runs; then it is back with {from}."
            ),
            true => format!(
                "Nothing resets the device, so it stays on vfio-pci afterwards: strait unbind {words} gives it back to {from}."
            ),
        };
    }
    Ok(())
}

/// Does nothing that the guest leaves in them meet a driver of the host?
fn are_reset(sysroot: &Sysroot, devices: &[&Entry]) -> Result<bool, Failure> {
    let functions: Vec<HostFunction> = devices.iter().map(|entry| entry.function.clone()).collect();
    for function in &functions {
        let way = reset::way(sysroot, function, &functions)?;
        if reset::given_back(function, &way).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Whose the devices are now; `None` when VFIO has them, or nobody.
fn drivers(devices: &[&Entry]) -> Option<String> {
    let drivers: BTreeSet<&str> = devices
        .iter()
        .filter(|entry| !matches!(entry.verdict, Verdict::Assignable))
        .filter_map(|entry| entry.function.driver.as_deref())
        .collect();
    match drivers.into_iter().collect::<Vec<_>>().as_slice() {
        [] => None,
        [one] => Some((*one).to_owned()),
        _ => Some("its drivers".to_owned()),
    }
}

/// The device that people pass most: a card for graphics or computing, then a disk, a NIC, sound; then anything. Only
/// one that `strait bind` would take too, and before all others one that goes back to its driver without a word (E1127):
/// its commands are the shortest.
fn candidate<'a>(
    sysroot: &Sysroot,
    needs: &Needs<'_>,
    entries: &'a [Entry],
) -> Result<Candidate<'a>, Failure> {
    let mut able: Vec<&Entry> = entries
        .iter()
        .filter(|entry| !matches!(entry.verdict, Verdict::No(_)) && !is_bridge(entry))
        .collect();
    able.sort_by_key(|entry| rank(entry));
    let (mut refusal, mut stays) = (None, None);
    for entry in able {
        let devices = with_siblings(entry, entries);
        match refused(needs, &devices) {
            None if are_reset(sysroot, &devices)? => return Ok(Candidate::Devices(devices)),
            None => stays = stays.or(Some(devices)),
            Some(failure) => refusal = refusal.or(Some(failure)),
        }
    }
    if let Some(devices) = stays {
        return Ok(Candidate::Devices(devices));
    }
    // What only programs and guests keep is to be had once they are gone.
    let mut kept: Vec<&Entry> = entries.iter().filter(|entry| is_kept(entry)).collect();
    kept.sort_by_key(|entry| rank(entry));
    let refusal = refusal.or_else(|| refused(needs, kept.get(..1)?));
    Ok(refusal.map_or(Candidate::None, Candidate::Refused))
}

/// Is it only that somebody has it open?
fn is_kept(entry: &Entry) -> bool {
    let open = |failure: &Failure| ["E1106", "E1119"].contains(&failure.code.id);
    matches!(&entry.verdict, Verdict::No(failure) if open(failure)) && !is_bridge(entry)
}

/// A switch between cards is no device to begin with.
fn is_bridge(entry: &Entry) -> bool {
    entry.function.class.base() == 0x06
}

/// Why `strait bind` would not take them.
fn refused(needs: &Needs<'_>, devices: &[&Entry]) -> Option<Failure> {
    let functions: Vec<HostFunction> = devices.iter().map(|entry| entry.function.clone()).collect();
    check::bindable_of(needs, &functions, &Allowed::default()).err()
}

/// What there is to begin with.
enum Candidate<'a> {
    Devices(Vec<&'a Entry>),
    /// Something, if this did not stand in the way.
    Refused(Failure),
    None,
}

fn rank(entry: &Entry) -> u8 {
    let class = entry.function.class;
    match (class.base(), class.sub()) {
        (0x03 | 0x12, _) => 0,
        (0x01, 0x08) => 1,
        (0x02, _) => 2,
        (0x01, _) => 3,
        (0x04, _) => 4,
        // The host's keyboard may hang on it.
        (0x0c, 0x03) => 6,
        _ => 5,
    }
}

/// The card as a whole, if all of it can go.
fn with_siblings<'a>(entry: &'a Entry, entries: &'a [Entry]) -> Vec<&'a Entry> {
    let function = &entry.function;
    let slot: Vec<&Entry> = entries
        .iter()
        .filter(|other| other.function.bdf.same_slot(function.bdf))
        .filter(|other| other.function.physical_function.is_none())
        .collect();
    let can_go = slot.iter().all(|other| {
        !matches!(other.verdict, Verdict::No(_)) && other.function.group == function.group
    });
    if can_go && function.physical_function.is_none() { slot } else { vec![entry] }
}

/// `3b:00` for a whole card, else the functions.
fn short(devices: &[&Entry]) -> String {
    let text = |selector: BdfSelector| {
        let text = selector.to_string();
        text.strip_prefix("0000:").map_or(text.clone(), str::to_owned)
    };
    let bdfs: Vec<Bdf> = devices.iter().map(|entry| entry.function.bdf).collect();
    match bdfs.as_slice() {
        [first, second, ..] if bdfs.iter().all(|bdf| bdf.same_slot(*first)) && first != second => {
            text(BdfSelector::Slot(*first))
        }
        _ => {
            let words: Vec<String> =
                bdfs.iter().map(|bdf| text(BdfSelector::Function(*bdf))).collect();
            words.join(" ")
        }
    }
}

/// A guest with half of what the host has left, so that it starts.
fn memory_word(sysroot: &Sysroot) -> Result<&'static str, Failure> {
    const MIB: u64 = 1 << 20;
    let half = memory::memory(sysroot)?.available / 2;
    let sizes = [(4096, "4G"), (2048, "2G"), (1024, "1G"), (512, "512M")];
    Ok(sizes.iter().find(|(mib, _)| mib * MIB <= half).map_or("256M", |(_, word)| word))
}

fn run_line(
    sysroot: &Sysroot,
    installed: &Installed,
    words: &str,
    keys: &str,
) -> Result<String, Failure> {
    let kernel = installed.kernel.as_deref().unwrap_or("vmlinuz");
    let mut line = format!("strait run --kernel {kernel}");
    if let Some(initramfs) = &installed.initramfs {
        let _ = write!(line, " --initramfs {initramfs}");
    }
    let _ = write!(line, " --memory {}", memory_word(sysroot)?);
    for word in words.split(' ') {
        let _ = write!(line, " --vfio {word}{keys}");
    }
    Ok(line)
}

/// Broken before flags into lines of `room` characters, for a shell that reads on behind a backslash: so a long command
/// stays one that can be copied.
fn continued(command: &str, room: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for (position, part) in command.split(" --").enumerate() {
        let part = if position == 0 { part.to_owned() } else { format!("--{part}") };
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + part.chars().count() <= room => {
                line.push(' ');
                line.push_str(&part);
            }
            _ => lines.push(part),
        }
    }
    lines
}

/// The last lines of the answer.
pub(super) fn render(next: &Next, columns: usize) -> String {
    let mut text = String::new();
    if next.heading.is_empty() {
        return text;
    }
    if next.steps.is_empty() {
        for line in wrapped(&next.heading, columns) {
            let _ = writeln!(text, "{line}");
        }
        return format!("\n{text}");
    }
    let heading = format!("Next, {}:", next.heading);
    for line in wrapped(&heading, columns) {
        let _ = writeln!(text, "{STRONG}{line}{STRONG:#}");
    }
    for Step { what, command } in &next.steps {
        let _ = writeln!(text, "  {QUIET}{}{QUIET:#}", plain(what));
        let lines = continued(&plain(command), columns.saturating_sub(10));
        for (position, line) in lines.iter().enumerate() {
            let indent = if position == 0 { "    " } else { "      " };
            let more = if position + 1 < lines.len() { " \\" } else { "" };
            let _ = writeln!(text, "{indent}{line}{more}");
        }
    }
    for line in wrapped(&next.after, columns) {
        let _ = writeln!(text, "{QUIET}{line}{QUIET:#}");
    }
    format!("\n{text}")
}
