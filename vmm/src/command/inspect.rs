//! `strait inspect`: how the devices of a running guest are, and why one does not work.

mod json;

use std::fmt::Write as _;

use serde_json::Value;
use strait_resources::{
    bdf::BdfSelector, codes, failure::Failure, host::sysroot::Sysroot, names::Names, size::Size,
};

use super::report::to_value;
use crate::{
    cli::InspectArgs,
    inspect::{
        facts::{DeviceFacts, Facts},
        guest::{Activity, Bar, Guest, Rom},
        socket,
        verdict::{Cause, Seen, Verdict, mode, named, verdict},
    },
    report::{self, ERROR, GOOD, QUIET, STRONG, WARNING, labelled, shortened, wrapped},
};

/// Room for the first word of a line: the longest is `interrupts`.
const LABEL: usize = 10;

/// Looks and tells.
pub(crate) fn run(args: &InspectArgs) -> Result<u8, Failure> {
    let sysroot = Sysroot::at(&args.output.sysroot);
    let guest = find(&sysroot, args.vm.as_deref())?;
    let facts = Facts::collect(&sysroot, guest)?;
    let verdicts: Vec<Verdict> =
        facts.devices.iter().map(|device| verdict(&facts.guest, device)).collect();
    if args.output.json {
        report::json(&json::answer(&facts, &verdicts))?;
    } else {
        report::out(&render(&facts, &verdicts, &Names::load(&sysroot), report::columns()))?;
    }
    Ok(0)
}

/// For an archive: what `strait inspect --json` answers.
pub(super) fn answer(sysroot: &Sysroot, guest: Guest) -> Result<Value, Failure> {
    let facts = Facts::collect(sysroot, guest)?;
    let verdicts: Vec<Verdict> =
        facts.devices.iter().map(|device| verdict(&facts.guest, device)).collect();
    to_value(&json::answer(&facts, &verdicts))
}

/// The guest that is meant: by process ID, or by one of its devices; without a word, the only one.
pub(crate) fn find(sysroot: &Sysroot, word: Option<&str>) -> Result<Guest, Failure> {
    let mut guests = Vec::new();
    for process in socket::running(sysroot)? {
        if word.is_none_or(|word| word.parse::<u32>().is_ok_and(|pid| pid != process.pid)) {
            guests.push((process.pid, socket::ask(sysroot, process)));
            continue;
        }
        let guest = socket::ask(sysroot, process);
        match guest {
            Ok(guest) if word.is_some_and(|word| is_meant(&guest, word)) => return Ok(guest),
            other => guests.push((process.pid, other)),
        }
    }
    match (word, guests.len()) {
        (None, 1) => return guests.remove(0).1,
        (None, 0) => {
            let fix = "start one with strait run; strait ps shows who has which device";
            return Err(Failure::new(&codes::E2110, "no guest of strait's runs", fix));
        }
        _ => {}
    }
    let cause = match word {
        None => format!("{} guests run", guests.len()),
        Some(word) => format!("no running guest is {word} or has such a device"),
    };
    let fix = "name one by its process ID, by a device's id=, or by a device's address";
    let mut failure = Failure::new(&codes::E2110, cause, fix);
    for (pid, guest) in &guests {
        failure = failure.detail(match guest {
            Ok(guest) => format!("{pid}  {}", guest.command.join(" ")),
            Err(why) => format!("{pid}  {why}"),
        });
    }
    Err(failure)
}

fn is_meant(guest: &Guest, word: &str) -> bool {
    let device = |device: &crate::inspect::guest::Device| {
        device.id == word
            || match word.parse::<BdfSelector>() {
                Ok(BdfSelector::Function(bdf)) => device.host == bdf,
                Ok(BdfSelector::Slot(bdf)) => device.host.same_slot(bdf),
                Err(_) => false,
            }
    };
    word.parse() == Ok(guest.pid) || guest.devices.iter().any(device)
}

fn render(facts: &Facts, verdicts: &[Verdict], names: &Names, columns: usize) -> String {
    let guest = &facts.guest;
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{STRONG}strait {}{STRONG:#}  {}, {}, for {}",
        guest.pid,
        match guest.cpus {
            1 => "1 CPU".to_owned(),
            cpus => format!("{cpus} CPUs"),
        },
        Size(guest.memory),
        age(guest.seconds)
    );
    if facts.devices.is_empty() {
        text.push_str("  it has no passed devices\n");
    }
    for (device, verdict) in facts.devices.iter().zip(verdicts) {
        let mut page = Page { text: &mut text, columns };
        page.device(device, verdict, names);
    }
    text
}

/// `2 h 5 min`.
fn age(seconds: u64) -> String {
    match seconds {
        0..=119 => format!("{seconds} s"),
        120..=7199 => format!("{} min", seconds / 60),
        _ => format!("{} h {} min", seconds / 3600, seconds / 60 % 60),
    }
}

struct Page<'a> {
    text: &'a mut String,
    columns: usize,
}

impl Page<'_> {
    fn line(&mut self, label: &str, value: &str) {
        labelled(self.text, self.columns, LABEL, label, value);
    }

    fn device(&mut self, facts: &DeviceFacts, verdict: &Verdict, names: &Names) {
        let device = &facts.device;
        let name = facts.host.as_ref().map(|host| names.function(host)).unwrap_or_default();
        let place = format!(
            "{} -> {:02x}:{:02x}.{:x}",
            device.host,
            device.guest.bus(),
            device.guest.device(),
            device.guest.function()
        );
        let room = self.columns.saturating_sub(place.len() + device.id.len() + 4);
        let _ = writeln!(
            self.text,
            "\n{STRONG}{place}{STRONG:#}  {}  {QUIET}{}{QUIET:#}",
            shortened(&name, room),
            device.id
        );
        let style = if verdict.healthy { GOOD } else { ERROR };
        for (position, line) in
            wrapped(&verdict.text, self.columns.saturating_sub(LABEL + 4)).iter().enumerate()
        {
            let label = if position == 0 { "verdict" } else { "" };
            let _ = writeln!(self.text, "  {QUIET}{label:LABEL$}{QUIET:#}  {style}{line}{style:#}");
        }
        self.line("host", &host(facts));
        for bar in &device.bars {
            self.bar(bar);
        }
        let ever = |ever: bool| if ever { "was enabled" } else { "never" };
        self.line(
            "decode",
            &format!(
                "memory {}; bus mastering {}",
                ever(device.memory_decode),
                ever(device.bus_master)
            ),
        );
        self.line("interrupts", &interrupts(facts));
        self.line("activity", &activity(facts));
        self.line("resets", &resets(facts));
        let rom = match (device.rom, device.rom_read) {
            (Rom::None, _) => "none",
            (Rom::Device, true) => "the device's; the guest has read it",
            (Rom::Device, false) => "the device's; the guest has not read it",
            (Rom::File, true) => "from a file; the guest has read it",
            (Rom::File, false) => "from a file; the guest has not read it",
        };
        self.line("ROM", rom);
        let faults = match &facts.faults {
            None => "unknown: the kernel log is for root only".to_owned(),
            Some(faults) if faults.is_empty() => "none since the start".to_owned(),
            Some(faults) => format!("{} since the start, in the kernel log", faults.len()),
        };
        self.line("IOMMU", &format!("faults: {faults}"));
        self.line("AER", &errors(facts));
        self.causes(verdict);
    }

    fn bar(&mut self, bar: &Bar) {
        let label = bar.index.map_or("ROM".to_owned(), |index| format!("BAR {index}"));
        let kind = match bar.kind.as_str() {
            "io" => "I/O ports",
            "memory64" => "64-bit",
            _ => "32-bit",
        };
        let way = match (bar.decoded, bar.direct) {
            (false, _) => "not decoded",
            (true, 0) => "decoded, trapped",
            (true, direct) if direct < bar.size => "decoded, mapped in part",
            (true, _) => "decoded, mapped",
        };
        let size = Size(bar.size).to_string();
        let _ = writeln!(
            self.text,
            "  {QUIET}{label:LABEL$}{QUIET:#}  {:#014x}  {size:>9}  {kind:9}  {way}",
            bar.address
        );
    }

    fn causes(&mut self, verdict: &Verdict) {
        if verdict.causes.iter().all(|cause| cause.seen == Seen::No) {
            return;
        }
        let room = self.columns.saturating_sub(LABEL + 4);
        self.line(
            "causes",
            "of a device that does not work (Windows: Code 43, Code 12), likeliest first:",
        );
        for Cause { seen, what, fix } in &verdict.causes {
            let (word, style) = match seen {
                Seen::Yes => ("SEEN", WARNING),
                Seen::Unknown => ("unknown", STRONG),
                Seen::No => continue,
            };
            for (position, line) in wrapped(what, room).iter().enumerate() {
                let word = if position == 0 { word } else { "" };
                let _ = writeln!(self.text, "  {style}{word:>LABEL$}{style:#}  {line}");
            }
            for line in wrapped(&format!("fix: {fix}"), room.saturating_sub(2)) {
                let _ = writeln!(self.text, "  {:LABEL$}    {QUIET}{line}{QUIET:#}", "");
            }
        }
        let absent: Vec<&str> = verdict
            .causes
            .iter()
            .filter(|cause| cause.seen == Seen::No)
            .map(|cause| cause.what.as_str())
            .collect();
        for (position, line) in wrapped(&absent.join("; "), room).iter().enumerate() {
            let word = if position == 0 { "not seen" } else { "" };
            let _ = writeln!(self.text, "  {word:>LABEL$}  {QUIET}{line}{QUIET:#}");
        }
    }
}

fn host(facts: &DeviceFacts) -> String {
    let Some(host) = &facts.host else { return "it is gone".to_owned() };
    let mut words = vec![match &host.driver {
        Some(driver) => format!("driver {driver}"),
        None => "no driver".to_owned(),
    }];
    words.extend(host.power_state.clone());
    words.extend(host.group.map(|group| format!("IOMMU group {group}")));
    words.extend(host.link.as_ref().map(|link| format!("{} x{}", link.speed, link.width)));
    words.join(", ")
}

fn interrupts(facts: &DeviceFacts) -> String {
    let device = &facts.device;
    let vectors = match device.vectors {
        1 => "1 vector".to_owned(),
        vectors => format!("{vectors} vectors"),
    };
    let counted = match facts.delivered {
        Some(1) => "1 came".to_owned(),
        Some(count) => format!("{count} came"),
        None => "the host counts none".to_owned(),
    };
    let rate = facts.per_second.map(|rate| format!(", {rate} a second now")).unwrap_or_default();
    let posted = if facts.posted { ", posted ones not counted" } else { "" };
    format!("{}, {vectors} connected, {counted}{rate}{posted}", mode(device.interrupts))
}

/// The last first. Mapped BARs and interrupts pass nothing of ours, so a busy device may have been left alone for hours.
fn activity(facts: &DeviceFacts) -> String {
    let Activity { config, bar, interrupts } = facts.device.activity;
    let mut last: Vec<(u64, &str)> =
        [(config, "configuration"), (bar, "trapped BAR"), (interrupts, "interrupts set up")]
            .into_iter()
            .filter_map(|(ago, what)| Some((ago?, what)))
            .collect();
    last.sort_unstable();
    let mut words: Vec<String> =
        last.into_iter().map(|(ago, what)| format!("{what} {} ago", age(ago))).collect();
    if words.is_empty() {
        words.push("none yet".to_owned());
    }
    if facts.device.dead_reads > 0 {
        words.push(format!("{} reads found nobody there", facts.device.dead_reads));
    }
    words.join("; ")
}

fn errors(facts: &DeviceFacts) -> String {
    let counted = facts.errors.as_ref().map(|counted| {
        let kinds = [
            (&counted.fatal, "fatal"),
            (&counted.nonfatal, "not fatal"),
            (&counted.correctable, "correctable"),
        ];
        let some = kinds.into_iter().filter(|(errors, _)| !errors.is_empty());
        some.map(|(errors, kind)| format!("{kind} {}", named(errors))).collect::<Vec<_>>()
    });
    let mut words = vec![match counted.as_deref() {
        None => "the host's kernel counts no errors of this device".to_owned(),
        Some([]) => "no errors since the start".to_owned(),
        Some(kinds) => format!("since the start {}", kinds.join(", ")),
    }];
    if let Some(status) = &facts.error_status {
        let bits = [&status.fatal[..], &status.nonfatal, &status.correctable].concat();
        if !bits.is_empty() {
            words.push(format!("in its registers: {}", bits.join(", ")));
        }
    }
    match facts.error_log.as_deref().map(<[String]>::len) {
        None | Some(0) => {}
        Some(1) => words.push("1 line in the kernel log".to_owned()),
        Some(lines) => words.push(format!("{lines} lines in the kernel log")),
    }
    words.join("; ")
}

fn resets(facts: &DeviceFacts) -> String {
    let (worked, failed) = (facts.device.resets, facts.device.failed_resets);
    match (worked, failed) {
        (0, 0) => "none asked for by the guest".to_owned(),
        (worked, 0) => format!("{worked}, all worked"),
        (worked, failed) => format!("{}, of which {failed} failed", worked + failed),
    }
}
