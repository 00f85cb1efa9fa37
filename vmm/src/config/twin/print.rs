//! A command line as a file.

use std::fmt::Write as _;

use clap::{Arg, ArgAction, ArgMatches};
use toml::Value;

use super::{LISTS, flags, list, run_command};

/// The key of the word that a list begins with.
const FIRST: [(&str, &str); 2] = [("memory", "size"), ("vfio", "host")];

/// Every flag with its value, defaults too, as a file that means the same. `cmdline` is what the kernel gets: its
/// default depends on other flags.
pub(crate) fn print(matches: &ArgMatches, cmdline: &str) -> String {
    let command = run_command();
    let (mut top, mut tables) = (String::new(), String::new());
    for arg in flags(&command) {
        let name = arg.get_long().unwrap_or_default();
        let values = values(arg, matches);
        if name == "cmdline" {
            let _ = writeln!(top, "cmdline = {}", quoted(cmdline));
        } else if name == "cpus" {
            // With [cpu].
        } else if LISTS.contains(&name) {
            list_tables(&mut tables, name, &values, matches);
        } else if !arg.get_action().takes_values() {
            if matches.get_flag(arg.get_id().as_str()) {
                let _ = writeln!(top, "{name} = true");
            }
        } else if matches!(arg.get_action(), ArgAction::Append) {
            if !values.is_empty() {
                let items: Vec<String> = values.iter().map(|value| quoted(value)).collect();
                let _ = writeln!(top, "{name} = [{}]", items.join(", "));
            }
        } else if let Some(value) = values.first() {
            let _ = writeln!(top, "{name} = {}", quoted(value));
        }
    }
    top + &tables
}

fn values(arg: &Arg, matches: &ArgMatches) -> Vec<String> {
    let raw = matches.get_raw(arg.get_id().as_str()).into_iter().flatten();
    raw.map(|value| value.to_string_lossy().into_owned()).collect()
}

/// `[memory]` and `[cpu]` once, `[[vfio]]` and `[[smbios]]` for each.
fn list_tables(text: &mut String, name: &str, values: &[String], matches: &ArgMatches) {
    let first = FIRST.iter().find(|(flag, _)| *flag == name).map_or("", |(_, key)| *key);
    match name {
        "cpu" => {
            let count = matches.get_raw("cpus").into_iter().flatten().next();
            let count = count.unwrap_or_default().to_string_lossy();
            let _ = write!(text, "\n[cpu]\ncount = {count}\n");
            values.iter().for_each(|value| keys(text, value, first));
        }
        "vfio" | "smbios" => {
            for value in values {
                let _ = write!(text, "\n[[{name}]]\n");
                keys(text, value, first);
            }
        }
        _ => {
            let _ = write!(text, "\n[{name}]\n");
            values.iter().for_each(|value| keys(text, value, first));
        }
    }
}

fn keys(text: &mut String, value: &str, first: &str) {
    for part in list::split(value) {
        let _ = match part.split_once('=') {
            Some((key, value)) if !key.contains('/') => {
                writeln!(text, "{key} = {}", quoted(value))
            }
            _ => writeln!(text, "{first} = {}", quoted(&part)),
        };
    }
}

fn quoted(text: &str) -> String {
    Value::String(text.to_owned()).to_string()
}
