//! `strait ps`: who owns which device.

use std::fmt::Write as _;

use serde::Serialize;
use strait_resources::{
    failure::Failure,
    host::sysroot::Sysroot,
    journal::{Entry, Journal, Kind},
};

use crate::{
    binding::{self, View},
    cli::PsArgs,
    report,
};

/// What `--json` answers.
#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    owners: Vec<Owner>,
}

/// One owner, as `--json` shows it.
#[derive(Serialize)]
struct Owner {
    /// Process ID; `null` for `strait bind`, which is over.
    pid: Option<u32>,
    /// `running`, `bound`, or `dead`: killed, and its devices still to be given back.
    state: &'static str,
    command: Vec<String>,
    devices: Vec<Device>,
}

#[derive(Serialize)]
struct Device {
    bdf: String,
    group: Option<u32>,
    /// The driver that it goes back to; `null`: it stays on VFIO, or had none.
    driver_before: Option<String>,
    /// Only `strait unbind` gives it back: `strait bind` took it, or it was passed with `after=vfio`.
    stays: bool,
    /// The host's framebuffer that had to let go of it.
    framebuffer: Option<String>,
}

/// Prints it.
pub(crate) fn run(args: &PsArgs) -> Result<u8, Failure> {
    let (found, others) = View::at(Sysroot::at(&args.output.sysroot)).owners()?;
    report::warnings(&others);
    let owners: Vec<Owner> = found
        .into_iter()
        .filter_map(|binding::Owner { journal, lives }| owner(journal, lives))
        .collect();
    match args.output.json {
        true => report::json(&Answer { schema: "strait.ps/1", owners })?,
        false => report::out(&table(&owners))?,
    }
    Ok(0)
}

/// `None` for what a dead strait only used: it has let go.
fn owner(journal: Journal, lives: bool) -> Option<Owner> {
    let (state, pid) = match journal.kind {
        Kind::Bind if journal.settled => ("bound", None),
        _ if lives => ("running", Some(journal.process.pid)),
        _ => ("dead", Some(journal.process.pid)),
    };
    let bound = state == "bound";
    let device = |entry: Entry| Device {
        bdf: entry.bdf.to_string(),
        group: entry.group,
        driver_before: entry.before.and_then(|before| before.driver).map(String::from),
        stays: bound || entry.stays,
        framebuffer: entry.screen.map(|screen| screen.name.into()),
    };
    let entries = journal.functions.into_iter();
    let entries = entries.filter(|entry| state != "dead" || entry.is_taken());
    let devices: Vec<Device> = entries.map(device).collect();
    let nothing = state == "dead" && devices.is_empty();
    (!nothing).then_some(Owner { pid, state, command: journal.command, devices })
}

fn table(owners: &[Owner]) -> String {
    if owners.is_empty() {
        return "no strait runs, and none has taken a device\n".to_owned();
    }
    let mut text = String::new();
    for Owner { pid, state, command, devices } in owners {
        let pid = pid.map_or_else(|| "-".to_owned(), |pid| pid.to_string());
        let _ = writeln!(text, "{pid:>7}  {state:<7}  {}", report::plain(&command.join(" ")));
        for device in devices {
            let back = match &device.driver_before {
                Some(driver) if device.stays && *state != "bound" => {
                    format!("  stays on vfio-pci, strait unbind gives it back to {driver}")
                }
                Some(driver) => format!("  goes back to {driver}"),
                None => String::new(),
            };
            let group = device.group.map_or_else(String::new, |group| format!("  group {group}"));
            let _ = writeln!(text, "                    {}{group}{back}", device.bdf);
            if let Some(screen) = &device.framebuffer {
                let _ = writeln!(
                    text,
                    "                      the host's framebuffer {screen} had to let go"
                );
            }
        }
    }
    if owners.iter().any(|owner| owner.state == "dead") {
        text.push_str("strait run, bind and unbind give back what a dead one has.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn journal(kind: &str, settled: bool, before: &str) -> Journal {
        let text = format!(
            r#"{{"schema": "strait.journal/2", "process": {{"pid": 42, "start": 1}}, "pid_namespace": null,
            "boot": "b", "command": ["strait", "x"], "kind": "{kind}", "settled": {settled}, "functions": [
            {{"bdf": "0000:3b:00.0", "group": 31, "along": false, "before": {before}, "screen": null,
            "methods": null, "stuck": null}}]}}"#
        );
        Journal::parse(text.as_bytes()).unwrap()
    }

    const NOUVEAU: &str = r#"{"driver": "nouveau", "driver_override": null, "power_control": "auto",
        "d3cold_allowed": null, "any_driver": false}"#;

    #[test]
    fn table_shows_who_has_what_and_where_it_goes() {
        let running = owner(journal("run", false, NOUVEAU), true).unwrap();
        let bound = owner(journal("bind", true, NOUVEAU), false).unwrap();
        assert_eq!(
            table(&[running, bound]),
            "     42  running  strait x\n\
             \x20                   0000:3b:00.0  group 31  goes back to nouveau\n\
             \x20     -  bound    strait x\n\
             \x20                   0000:3b:00.0  group 31  goes back to nouveau\n"
        );
    }

    #[test]
    fn table_and_json_show_what_stays_on_vfio() {
        let mut journal = journal("run", false, NOUVEAU);
        journal.functions[0].stays = true;
        let running = owner(journal, true).unwrap();
        assert_eq!(serde_json::to_value(&running).unwrap()["devices"][0]["stays"], true);
        let says = "  stays on vfio-pci, strait unbind gives it back to nouveau\n";
        assert!(table(&[running]).ends_with(says));
    }

    #[test]
    fn table_and_json_show_a_framebuffer_that_had_to_let_go() {
        let text = serde_json::to_string(&journal("run", false, "null")).unwrap();
        let screen = r#""screen":{"name":"vesafb","driver":"vesa-framebuffer","device":"vesa-framebuffer.0",
            "consoles":["vtcon1"]}"#;
        let with_screen = text.replace(r#""screen":null"#, screen);
        let dead = owner(serde_json::from_str(&with_screen).unwrap(), false).unwrap();
        assert_eq!(serde_json::to_value(&dead).unwrap()["devices"][0]["framebuffer"], "vesafb");
        assert!(table(&[dead]).contains("the host's framebuffer vesafb had to let go"));
    }

    #[test]
    fn dead_owner_is_shown_only_when_something_is_to_be_given_back() {
        assert!(owner(journal("run", false, "null"), false).is_none());
        let dead = owner(journal("run", false, NOUVEAU), false).unwrap();
        assert!(table(&[dead]).contains("dead"));
    }
}
