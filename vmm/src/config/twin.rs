//! The TOML twin of the command line: every flag of `strait run` is a key, and flags that take keys are tables.
//!
//! A file becomes the words of a command line, which are read like any others, and a command line becomes a file the
//! same way back: so the two cannot drift apart. What stands on the command line wins over the file; devices add up.

mod print;

use std::{ffi::OsString, fs, ops::Range, path::Path};

use clap::{
    Arg, ArgAction, ArgMatches, Command, CommandFactory as _, FromArgMatches as _,
    parser::ValueSource,
};
pub(crate) use print::print;
use strait_resources::{codes, failure::Failure, nearest::nearest};
use toml::{
    Spanned,
    de::{DeTable, DeValue},
};

use super::{RunConfig, bad_value, files, list};
use crate::cli::{Cli, RunArgs, misuse};

/// Flags whose value is a list of keys.
const LISTS: [&str; 4] = ["memory", "cpu", "vfio", "smbios"];
/// Those of them whose keys count one by one: the command line's before the file's.
const SINGLE_KEYS: [&str; 2] = ["cpu", "smbios"];
/// These make no machine.
const NO_KEYS: [&str; 6] = ["config", "print-config", "json", "sysroot", "help", "verbose"];

/// A word of a command line, and which flag it is for.
type Word = (String, String);

/// What a file alone asks for.
pub(crate) fn load(path: &Path) -> Result<RunArgs, Failure> {
    let mut config = OsString::from("--config=");
    config.push(path);
    Ok(merged(path, &["strait".into(), "run".into(), config])?.0)
}

/// What a command line asks for together with the file that it names.
pub(crate) fn merged(path: &Path, line: &[OsString]) -> Result<(RunArgs, ArgMatches), Failure> {
    files::readable("--config", path)?;
    let text = fs::read_to_string(path).map_err(|error| {
        let cause = format!("--config {}: this file cannot be read", path.display());
        Failure::new(&codes::E2101, cause, "it must be text in UTF-8").source(error)
    })?;
    let words = read(&path.display().to_string(), &text)?;
    let given = parsed(line)?;
    let words = words.into_iter().filter(|word| !is_given(&given, word));
    // The file's come first: its devices are those that stay the same.
    let run = line.iter().position(|word| word == "run").map_or(line.len(), |at| at + 1);
    let (before, after) = line.split_at(run);
    let all: Vec<OsString> = before
        .iter()
        .cloned()
        .chain(words.map(|(_, word)| word.into()))
        .chain(after.iter().cloned())
        .collect();
    let matches = parsed(&all)?;
    Ok((typed(&matches)?, matches))
}

/// What a text that [`print`] has written asks for.
pub(crate) fn understood(text: &str) -> Result<RunArgs, Failure> {
    let words = read("the guest's configuration", text)?.into_iter().map(|(_, word)| word);
    let line: Vec<OsString> =
        ["strait".to_owned(), "run".to_owned()].into_iter().chain(words).map(Into::into).collect();
    read_line(&line)
}

/// What words alone ask for.
pub(crate) fn read_line(line: &[OsString]) -> Result<RunArgs, Failure> {
    typed(&parsed(line)?)
}

/// The words of `strait run`, taken apart.
pub(crate) fn parsed(line: &[OsString]) -> Result<ArgMatches, Failure> {
    let mut matches = Cli::command().try_get_matches_from(line).map_err(|error| misuse(&error))?;
    let (_, run) = matches.remove_subcommand().unwrap_or_default();
    Ok(run)
}

fn typed(matches: &ArgMatches) -> Result<RunArgs, Failure> {
    RunArgs::from_arg_matches(matches).map_err(|error| misuse(&error))
}

/// Does the command line say the same, so that the file's word does not count?
fn is_given(given: &ArgMatches, (flag, word): &Word) -> bool {
    let command = run_command();
    let Some(arg) = find(&command, flag) else { return false };
    let id = arg.get_id().as_str();
    if given.value_source(id) != Some(ValueSource::CommandLine) {
        return false;
    }
    match arg.get_action() {
        // Keys of one flag: each counts by itself.
        ArgAction::Append if SINGLE_KEYS.contains(&flag.as_str()) => {
            let key = |text: &str| text.split('=').next().unwrap_or_default().to_owned();
            let ours = key(word.trim_start_matches(&format!("--{flag}=")));
            let texts = given.get_many::<String>(id).into_iter().flatten();
            texts.flat_map(|text| list::split(text)).any(|part| key(&part) == ours)
        }
        ArgAction::Append => false,
        _ => true,
    }
}

fn run_command() -> Command {
    let mut cli = Cli::command();
    cli.build();
    cli.find_subcommand("run").cloned().unwrap_or_default()
}

/// The flags that a file may have as keys.
fn flags(command: &Command) -> impl Iterator<Item = &Arg> {
    let is_key = |arg: &&Arg| arg.get_long().is_some_and(|name| !NO_KEYS.contains(&name));
    command.get_arguments().filter(is_key).filter(|arg| !arg.is_global_set())
}

fn find<'a>(command: &'a Command, name: &str) -> Option<&'a Arg> {
    flags(command).find(|arg| {
        let mut names =
            arg.get_long().into_iter().chain(arg.get_all_aliases().into_iter().flatten());
        names.any(|known| known == name)
    })
}

/// The words that a file stands for. Refuses what cannot be meant, with its line.
fn read(file: &str, text: &str) -> Result<Vec<Word>, Failure> {
    let at = |offset: usize| {
        let before = text.get(..offset).unwrap_or_default();
        format!("{file}, line {}", before.matches('\n').count() + 1)
    };
    let table = DeTable::parse(text).map_err(|error| {
        let place = at(error.span().map_or(0, |span| span.start));
        let cause = format!("{place}: this is no TOML: {}", error.message());
        bad_value(cause, "a key, =, and a value in quotes: kernel = \"vmlinuz\"")
    })?;
    let reader = Reader { command: run_command(), at: &at };
    let mut entries: Vec<_> = table.into_inner().into_iter().collect();
    entries.sort_by_key(|(key, _)| key.span().start);
    let mut words = Vec::new();
    for (key, value) in &entries {
        words.extend(reader.entry(key, value)?);
    }
    Ok(words)
}

struct Reader<'a> {
    command: Command,
    /// `vm.toml, line 3`.
    at: &'a dyn Fn(usize) -> String,
}

impl Reader<'_> {
    fn place(&self, span: &Range<usize>) -> String {
        (self.at)(span.start)
    }

    /// One key of the top, or one table.
    fn entry(
        &self,
        key: &Spanned<impl AsRef<str>>,
        value: &Spanned<DeValue<'_>>,
    ) -> Result<Vec<Word>, Failure> {
        let (name, place) = (key.get_ref().as_ref(), self.place(&key.span()));
        let wanted = name.replace('_', "-");
        let Some(flag) = find(&self.command, &wanted) else {
            let names: Vec<&str> = flags(&self.command).filter_map(Arg::get_long).collect();
            return Err(unknown(&place, name, &wanted, &names));
        };
        let flag_name = flag.get_long().unwrap_or_default();
        let takes_value = flag.get_action().takes_values();
        let many = matches!(flag.get_action(), ArgAction::Append);
        let word = |text: &str| (flag_name.to_owned(), format!("--{flag_name}={text}"));
        let mut words = Vec::new();
        match value.get_ref() {
            DeValue::Boolean(on) if !takes_value => {
                words.extend(on.then(|| (flag_name.to_owned(), format!("--{flag_name}"))));
            }
            _ if !takes_value => {
                let cause = format!("{place}: {name} is switched on or off");
                return Err(bad_value(cause, format!("write {name} = true, or leave it out")));
            }
            DeValue::Array(items) if many => {
                for item in items {
                    let place = self.place(&item.span());
                    let more = match item.get_ref() {
                        DeValue::Table(table) => self.table(flag_name, &place, table)?,
                        other => vec![word(&scalar(other, name, &place)?)],
                    };
                    self.check(&more, &place)?;
                    words.extend(more);
                }
                return Ok(words);
            }
            DeValue::Table(table) => words = self.table(flag_name, &place, table)?,
            other => words.push(word(&scalar(other, name, &place)?)),
        }
        self.check(&words, &place)?;
        Ok(words)
    }

    /// `[memory]`, `[cpu]`, or one of `[[vfio]]`.
    fn table(&self, flag: &str, place: &str, table: &DeTable<'_>) -> Result<Vec<Word>, Failure> {
        if !LISTS.contains(&flag) {
            let cause = format!("{place}: {flag} is no table");
            return Err(bad_value(cause, format!("write {flag} = \"...\" above the first table")));
        }
        let mut entries: Vec<_> = table.iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let (mut words, mut parts) = (Vec::new(), Vec::new());
        for (key, value) in entries {
            let (name, place) = (key.get_ref().replace('_', "-"), self.place(&key.span()));
            let value = scalar(value.get_ref(), &name, &place)?;
            match (flag, name.as_str()) {
                ("cpu", "count") => words.push(("cpus".to_owned(), format!("--cpus={value}"))),
                _ if SINGLE_KEYS.contains(&flag) => {
                    words.push((
                        flag.to_owned(),
                        format!("--{flag}={name}={}", value.replace(',', ",,")),
                    ));
                }
                _ => parts.push(format!("{name}={}", value.replace(',', ",,"))),
            }
        }
        if !parts.is_empty() {
            words.push((flag.to_owned(), format!("--{flag}={}", parts.join(","))));
        }
        Ok(words)
    }

    /// Words that mean nothing are refused here, where their place is known.
    fn check(&self, words: &[Word], place: &str) -> Result<(), Failure> {
        let line = ["strait", "run", "--kernel=vmlinuz"].into_iter();
        let has_kernel = words.iter().any(|(flag, _)| flag == "kernel");
        let line = line.take(if has_kernel { 2 } else { 3 });
        let line: Vec<OsString> =
            line.chain(words.iter().map(|(_, word)| word.as_str())).map(OsString::from).collect();
        let meaning = parsed(&line).and_then(|matches| RunConfig::meaning(typed(&matches)?));
        meaning.map(drop).map_err(|failure| failure.detail(format!("in {place}")))
    }
}

/// A value as a word has it.
fn scalar(value: &DeValue<'_>, name: &str, place: &str) -> Result<String, Failure> {
    match value {
        DeValue::String(text) => Ok(text.to_string()),
        DeValue::Integer(number) if number.radix() == 10 => Ok(number.as_str().to_owned()),
        DeValue::Boolean(on) => Ok(if *on { "on" } else { "off" }.to_owned()),
        _ => {
            let cause = format!("{place}: {name} has a value of a kind that it cannot take");
            Err(bad_value(cause, format!("write it as text: {name} = \"...\"")))
        }
    }
}

fn unknown(place: &str, name: &str, wanted: &str, names: &[&str]) -> Failure {
    let fix = match nearest(wanted, names.iter().copied()) {
        Some(near) => format!("did you mean {near}?"),
        None => format!("the keys are the flags of strait run: {}", names.join(", ")),
    };
    Failure::new(&codes::E2002, format!("{place}: there is no key '{name}'"), fix)
}

#[cfg(test)]
mod tests;
