//! One function in full.

use std::fmt::Write as _;

use strait_resources::{
    bar::BarKind,
    bdf::Bdf,
    host::{
        capabilities::{self, Capability, Kind},
        driver,
        holders::Holders,
        inventory::{Entry, Verdict},
        iommu,
        needs::{Need, Needs},
        pci,
        sysroot::SysError,
    },
    names::{self, Names},
    size::Size,
};

use super::verdict;
use crate::report::{QUIET, STRONG, labelled, plain, wrapped};

/// Room for the first word of a line: the longest is `capabilities`.
const LABEL: usize = 12;

/// What the list leaves out.
pub(super) struct Facts {
    pub(super) entry: Entry,
    pub(super) capabilities: Vec<Capability>,
    /// The only driver that may take it, when one was set.
    pub(super) driver_override: Option<String>,
    /// Its driver keeps its lock: an unbind that hangs.
    pub(super) driver_stuck: bool,
    /// What the host does with it.
    pub(super) uses: Vec<Need>,
    /// Who has its nodes open.
    pub(super) holders: Holders,
    /// The other functions of its slot.
    pub(super) siblings: Vec<Bdf>,
    /// The other members of its group.
    pub(super) group_members: Vec<Bdf>,
}

impl Facts {
    pub(super) fn collect(needs: &Needs<'_>, entry: Entry) -> Result<Self, SysError> {
        let sysroot = needs.sysroot();
        let function = &entry.function;
        let other = |bdf: &Bdf| *bdf != function.bdf;
        let members = match function.group {
            Some(group) => iommu::members(sysroot, group)?,
            None => Vec::new(),
        };
        let (driver_override, driver_stuck) = match pci::driver_override(sysroot, function.bdf) {
            Err(error) if error.is_stuck() => (None, true),
            only => (only?, false),
        };
        let mut uses = needs.of(function)?;
        // Programs have lines of their own.
        uses.retain(|need| need.held().is_none() || need.is_guest_of_part());
        Ok(Self {
            driver_override,
            driver_stuck,
            capabilities: capabilities::walk(&function.config),
            uses,
            holders: needs.holders(function)?,
            siblings: pci::slot_functions(sysroot, function.bdf)?
                .into_iter()
                .filter(other)
                .collect(),
            group_members: members.iter().map(|member| member.bdf).filter(other).collect(),
            entry,
        })
    }
}

/// All of them, one below the other.
pub(super) fn render(shown: &[Facts], names: &Names, columns: usize) -> String {
    let mut text = String::new();
    for facts in shown {
        let gap = if text.is_empty() { "" } else { "\n" };
        let _ = writeln!(
            text,
            "{gap}{STRONG}{}{STRONG:#}  {}",
            facts.entry.function.bdf,
            plain(&names.function(&facts.entry.function))
        );
        let mut page = Page { text: &mut text, columns };
        identity(&mut page, facts, names);
        place(&mut page, facts);
        state(&mut page, facts);
        address_space(&mut page, facts);
        lists(&mut page, facts);
        judgement(&mut page, facts);
    }
    text
}

struct Page<'a> {
    text: &'a mut String,
    columns: usize,
}

impl Page<'_> {
    fn line(&mut self, label: &str, value: &str) {
        labelled(self.text, self.columns, LABEL, label, value);
    }

    /// A value that must stay as it is, to be copied.
    fn exact(&mut self, label: &str, value: &str) {
        let value = plain(value);
        let _ = writeln!(self.text, "  {QUIET}{label:LABEL$}{QUIET:#}  {value}");
    }

    /// The verdict's word in its colour, and what is to be said of it.
    fn verdict(&mut self, (word, style): (&str, anstyle::Style), rest: &str) {
        let room = self.columns.saturating_sub(LABEL + 4);
        for (position, line) in wrapped(&format!("{word}{rest}"), room).iter().enumerate() {
            let label = if position == 0 { "verdict" } else { "" };
            let (word, line) = match line.strip_prefix(word).filter(|_| position == 0) {
                Some(line) => (word, line),
                None => ("", line.as_str()),
            };
            let label = format!("{QUIET}{label:LABEL$}{QUIET:#}");
            let _ = writeln!(self.text, "  {label}  {style}{word}{style:#}{line}");
        }
    }
}

fn identity(page: &mut Page<'_>, facts: &Facts, names: &Names) {
    let function = &facts.entry.function;
    page.line("class", &format!("{} ({})", names::class(function.class), function.class));
    let maker = names.vendor(function.subsystem_vendor);
    let maker = maker.map_or_else(String::new, |maker| format!(", {maker}"));
    page.line(
        "IDs",
        &format!(
            "{}, revision {:02x}, subsystem {:04x}:{:04x}{maker}",
            function.id(),
            function.revision,
            function.subsystem_vendor,
            function.subsystem_device
        ),
    );
    match facts.entry.serial {
        Some(serial) => page.line("serial", &format!("{serial:016x}")),
        None if capabilities::is_visible(&function.config) => {}
        None => page.line("serial", "unknown: only root sees it"),
    }
}

fn place(page: &mut Page<'_>, facts: &Facts) {
    let function = &facts.entry.function;
    let slot = facts.entry.slot.as_ref().map(|slot| format!("slot {slot}"));
    let label = function.label.as_ref().map(|label| format!("\"{label}\""));
    let node = function.numa_node.map(|node| format!("NUMA node {node}"));
    let facts_of: Vec<String> = [slot, label, node].into_iter().flatten().collect();
    if !facts_of.is_empty() {
        page.line("place", &facts_of.join(", "));
    }
    if !facts.entry.path.is_empty() {
        page.line("behind", &list(&facts.entry.path));
    }
    if !facts.siblings.is_empty() {
        page.line("same slot", &list(&facts.siblings));
    }
    if let Some(physical) = function.physical_function {
        page.line("SR-IOV", &format!("a virtual function of {physical}"));
    }
    let group = match function.group {
        Some(group) if facts.group_members.is_empty() => format!("{group}, alone"),
        Some(group) => format!("{group}, with {}", list(&facts.group_members)),
        None => "none: no IOMMU translates for it".to_owned(),
    };
    page.line("IOMMU group", &group);
}

fn state(page: &mut Page<'_>, facts: &Facts) {
    let function = &facts.entry.function;
    let mut driver = function.driver.clone().unwrap_or_else(|| "none".to_owned());
    if facts.driver_stuck {
        driver.push_str(", which does not let go of it: something waits in the kernel");
    }
    if let Some(only) = &facts.driver_override {
        let _ = write!(driver, ", and only {only} may take it");
    }
    page.line("driver", &driver);
    if let Some(link) = &function.link {
        let mut words = format!("{} x{}", link.speed, link.width);
        if link.at != function.bdf {
            let _ = write!(words, " at {}", link.at);
        }
        if link.is_reduced() {
            let _ = write!(words, " of {} x{}", link.max_speed, link.max_width);
            words.push_str(if link.width < link.max_width {
                ": the slot has fewer lanes"
            } else if pci::rate(&link.speed) == Some(link.max_rate()) {
                ": the slot is slower than the card"
            } else {
                " (cards turn their link down when idle)"
            });
        }
        page.line("link", &words);
    }
    if let Some(power) = &function.power_state {
        page.line("power", power);
    }
    let reset = match function.reset_methods.as_slice() {
        [] => "none that the kernel knows".to_owned(),
        methods => methods.join(", then "),
    };
    page.line("reset", &reset);
    if let Some(primary) = function.boot_vga {
        let words =
            if primary { "the firmware's and the console's" } else { "not the primary one" };
        page.line("display", words);
    }
    for used in &facts.uses {
        page.line("in use", &used.to_string());
    }
    for holder in &facts.holders.found {
        page.line("open", &format!("{} by {} (pid {})", holder.node, holder.name, holder.pid));
    }
    if facts.holders.hidden > 0 {
        let note =
            format!("{} processes could not be looked into: only root may", facts.holders.hidden);
        page.line("open", &note);
    }
}

fn address_space(page: &mut Page<'_>, facts: &Facts) {
    let function = &facts.entry.function;
    let width = function.bars.iter().map(|bar| Size(bar.size).to_string().len()).max().unwrap_or(0);
    for bar in &function.bars {
        let size = Size(bar.size).to_string();
        let unassigned =
            if function.unassigned.contains(&bar.index) { ", has no address" } else { "" };
        let words = format!("{size:>width$}  {}{unassigned}", kind(bar.kind));
        page.exact(&bar.index.to_string(), &words);
    }
    let totals = facts.entry.totals;
    let parts: Vec<String> = [
        (totals.memory32, "32-bit"),
        (totals.memory64, "64-bit"),
        (totals.rom, "ROM"),
        (totals.io, "I/O ports"),
    ]
    .into_iter()
    .filter(|(bytes, _)| *bytes > 0)
    .map(|(bytes, kind)| format!("{} {kind}", Size(bytes)))
    .collect();
    if !parts.is_empty() {
        page.line("all BARs", &parts.join(", "));
    }
}

/// How a BAR is called.
pub(super) const fn kind(kind: BarKind) -> &'static str {
    match kind {
        BarKind::Io => "I/O ports",
        BarKind::Memory32 { prefetchable: false } => "32-bit",
        BarKind::Memory32 { prefetchable: true } => "32-bit prefetchable",
        BarKind::Memory64 { prefetchable: false } => "64-bit",
        BarKind::Memory64 { prefetchable: true } => "64-bit prefetchable",
        BarKind::Rom => "ROM",
    }
}

fn lists(page: &mut Page<'_>, facts: &Facts) {
    let config = &facts.entry.function.config;
    if !capabilities::is_visible(config) {
        page.line("capabilities", "unknown: only root sees them");
        return;
    }
    for (position, capability) in facts.capabilities.iter().enumerate() {
        let label = if position == 0 { "capabilities" } else { "" };
        let (digits, prefix) = match capability.kind {
            Kind::Standard => (2, ""),
            Kind::Extended => (4, "extended "),
        };
        let name = capability.name().map_or_else(
            || format!("{prefix}{:0digits$x}, unknown here", capability.id),
            str::to_owned,
        );
        let detail = capability.detail(config);
        let gap = if detail.is_empty() { "" } else { ": " };
        page.line(label, &format!("{:03x} {name}{gap}{detail}", capability.offset));
    }
}

fn judgement(page: &mut Page<'_>, facts: &Facts) {
    let said = verdict(&facts.entry);
    match &facts.entry.verdict {
        Verdict::Assignable => page.verdict(said, ""),
        Verdict::AfterBinding(bind) => {
            page.verdict(said, &format!(" of {}", list(bind)));
            let mut seen = Vec::new();
            for command in bind.iter().flat_map(|bdf| {
                let own = facts.entry.function.driver.as_deref();
                // Others are in the list because a driver has them.
                let driver = if *bdf == facts.entry.function.bdf { own } else { Some("") };
                driver::bind_commands(*bdf, driver)
            }) {
                if !seen.contains(&command) {
                    page.exact(if seen.is_empty() { "as root" } else { "" }, &command);
                    seen.push(command);
                }
            }
        }
        Verdict::No(failure) => {
            let id = failure.code.id;
            page.verdict(said, &format!(": {} ({id})", failure.cause));
            failure.details.iter().for_each(|detail| page.exact("", detail));
            page.line("fix", &failure.fix);
        }
    }
}

fn list(bdfs: &[Bdf]) -> String {
    bdfs.iter().map(Bdf::to_string).collect::<Vec<_>>().join(", ")
}
