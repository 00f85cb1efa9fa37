//! The command line: syntax only. What the words mean is `config`'s question.

mod bench;
mod bind;
mod generate;
mod host;
mod inspect;
mod report;
mod rom;
mod run;

use std::{ffi::OsString, path::PathBuf};

pub(crate) use bench::{BenchArgs, BenchCommand, BenchCompareArgs, BenchGuestArgs};
pub(crate) use bind::{BindArgs, ChangeArgs, PsArgs, UnbindArgs};
use clap::{
    ArgAction, Args, CommandFactory as _, Parser, Subcommand,
    error::{ContextKind, ContextValue, Error, ErrorKind},
};
pub(crate) use generate::{CompletionsArgs, ManArgs, Shell};
pub(crate) use host::{DeviceClass, DevicesArgs, DevicesCommand, DoctorArgs, ShowArgs};
pub(crate) use inspect::InspectArgs;
pub(crate) use report::ReportArgs;
pub(crate) use rom::{RomArgs, RomCheckArgs, RomCommand, RomDumpArgs};
pub(crate) use run::RunArgs;
use strait_resources::{bdf::BdfSelector, codes, failure::Failure, nearest::nearest};

const EXAMPLES: &str = "\
Examples:
  strait run --kernel vmlinuz --initramfs initrd.img --vfio 3b:00 --memory 16G --cpus 8
  strait explain E1103";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  strait explain E1103
  strait explain --json";

/// A KVM monitor that hands whole PCI devices to a guest.
#[derive(Debug, Parser)]
#[command(name = "strait", version, max_term_width = 100, after_help = EXAMPLES)]
#[command(subcommand_required = true, arg_required_else_help = false)]
pub(crate) struct Cli {
    /// Say more: -v what is done, -vv every detail.
    #[arg(short, long, global = true, action = ArgAction::Count, display_order = 900)]
    pub(crate) verbose: u8,
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The command that must be quick, alone: its words are understood in half the time that it takes to make the parser of
/// all commands.
#[derive(Debug, Parser)]
#[command(name = "strait", version, subcommand_required = true)]
struct Quick {
    #[arg(short, long, global = true, action = ArgAction::Count)]
    verbose: u8,
    #[command(subcommand)]
    command: QuickCommand,
}

#[derive(Debug, Subcommand)]
enum QuickCommand {
    Run(Box<RunArgs>),
}

impl Cli {
    /// The words of the command line. Whatever is wrong with them, or asked about them, is the whole parser's to say.
    pub(crate) fn of(words: &[OsString]) -> Result<Self, Error> {
        if words.get(1).is_some_and(|word| word == "run")
            && let Ok(Quick { verbose, command: QuickCommand::Run(args) }) =
                Quick::try_parse_from(words)
        {
            return Ok(Self { verbose, command: Command::Run(args) });
        }
        Self::try_parse_from(words)
    }
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Start a guest and stay until it ends.
    Run(Box<RunArgs>),
    /// Show the host's PCI devices and which of them a guest can have.
    Devices(DevicesArgs),
    /// Say what stands between this host and a guest with its devices.
    #[command(visible_alias = "check")]
    Doctor(DoctorArgs),
    /// Take devices from the host's drivers for guests; back with unbind.
    Bind(BindArgs),
    /// Give devices back to the host's drivers.
    Unbind(UnbindArgs),
    /// Show which guest has which device.
    Ps(PsArgs),
    /// Say how the devices of a running guest are, and why one does not work.
    Inspect(InspectArgs),
    /// Pack what a bug report needs, without what tells whose host it is.
    Report(ReportArgs),
    /// Read a device's expansion ROM, or see what is in a file with one.
    Rom(RomArgs),
    /// Measure what a passed device costs, against the host and other monitors.
    Bench(BenchArgs),
    /// Tell more about an error or a warning.
    Explain(ExplainArgs),
    /// Print a script that completes strait's words in a shell.
    Completions(CompletionsArgs),
    /// Print or write manual pages.
    Man(ManArgs),
    /// Writes to files of the kernel's, for a strait that must not hang in one.
    #[command(hide = true)]
    WriteAttributes,
    /// Gives back what the process on standard input has taken, when it is gone.
    #[command(hide = true)]
    GiveBack,
    /// The work of a bench: a guest's init, or a child on the host.
    #[command(hide = true)]
    BenchGuest(BenchGuestArgs),
}

/// How a command that looks at the host answers.
#[derive(Debug, Args)]
pub(crate) struct OutputArgs {
    /// For programs: one JSON object, as docs/json.md describes it.
    #[arg(long)]
    pub(crate) json: bool,
    /// Look at the host laid out in this directory.
    #[arg(long, value_name = "DIR", hide = true, default_value = "/")]
    pub(crate) sysroot: PathBuf,
}

/// `strait explain`, word for word.
#[derive(Debug, Args)]
#[command(after_help = EXPLAIN_EXAMPLES)]
pub(crate) struct ExplainArgs {
    /// A code, as error[E1103] shows it; without one, all are listed.
    pub(crate) code: Option<String>,
    /// Print docs/errors.md.
    #[arg(long, hide = true, conflicts_with = "code")]
    pub(crate) markdown: bool,
    /// For programs: one JSON object, as docs/json.md describes it; a refusal too.
    #[arg(long, conflicts_with = "markdown")]
    pub(crate) json: bool,
}

/// For words that are not understood: do they ask a command that refuses in JSON for an answer to a program?
pub(crate) fn wants_json(words: &[OsString]) -> bool {
    let has = |word: &str| words.iter().any(|given| given == word);
    let is_flag = |word: &str| word.starts_with('-');
    let mut given = words.iter().skip(1).filter_map(|word| word.to_str());
    has("--json")
        && match given.find(|word| !is_flag(word)) {
            Some("run") => has("--dry-run"),
            Some(command) => ["bind", "unbind", "explain"].contains(&command),
            None => false,
        }
}

/// What the parser refuses, in our words.
pub(crate) fn misuse(error: &Error) -> Failure {
    let said = |kind: ContextKind| match error.get(kind) {
        Some(ContextValue::String(text)) => Some(text.clone()),
        Some(ContextValue::Strings(texts)) => Some(texts.join(", ")),
        _ => None,
    };
    let what = said(ContextKind::InvalidArg).unwrap_or_default();
    let (cause, fix) = match error.kind() {
        ErrorKind::UnknownArgument => {
            let flag = what.starts_with('-');
            let owners = owners(&what);
            let kind = if flag { "flag" } else { "argument" };
            let place = if owners.is_empty() { "" } else { " here" };
            let cause = format!("there is no {kind} '{what}'{place}");
            let fix = match said(ContextKind::SuggestedArg).or_else(|| near_flag(&what)) {
                // A flag of another command, or one that stands before its command.
                _ if !owners.is_empty() => Some(format!(
                    "put it behind its command: strait {} {what}",
                    owners.join(" or ")
                )),
                Some(near) => Some(format!("did you mean {near}?")),
                None if what.parse::<BdfSelector>().is_ok() => {
                    Some(format!("did you mean --vfio {what}?"))
                }
                None => None,
            };
            (cause, fix)
        }
        ErrorKind::InvalidSubcommand => {
            let what = said(ContextKind::InvalidSubcommand).unwrap_or_default();
            let near = said(ContextKind::SuggestedSubcommand).or_else(|| near_command(&what));
            let fix = near.map(|near| format!("did you mean strait {near}?"));
            (format!("there is no command '{what}'"), fix)
        }
        ErrorKind::MissingSubcommand => ("no command was given".to_owned(), None),
        ErrorKind::MissingRequiredArgument => (format!("{what} is missing"), None),
        ErrorKind::InvalidValue if said(ContextKind::InvalidValue).is_none_or(|v| v.is_empty()) => {
            (format!("{what} lacks its value"), None)
        }
        ErrorKind::TooManyValues => {
            let value = said(ContextKind::InvalidValue).unwrap_or_default();
            (format!("{what} takes no value, but has '{value}'"), None)
        }
        ErrorKind::ArgumentConflict => {
            let prior = said(ContextKind::PriorArg);
            match (said(ContextKind::InvalidSubcommand), prior) {
                (Some(command), Some(prior)) => (
                    format!("{prior} does not go before {command}"),
                    Some(format!(
                        "leave it out; or put it behind {command}, if strait COMMAND {command} --help has it"
                    )),
                ),
                (_, Some(prior)) if prior != what => (
                    format!("{what} and {prior} exclude each other"),
                    Some("keep one of them".to_owned()),
                ),
                _ => (format!("{what} comes twice"), Some("keep one of them".to_owned())),
            }
        }
        _ => {
            let text = error.to_string();
            let line = text.lines().next().unwrap_or_default();
            (line.trim_start_matches("error: ").to_owned(), None)
        }
    };
    let fix = fix.unwrap_or_else(|| {
        "strait --help, or strait COMMAND --help, tells what there is".to_owned()
    });
    Failure::new(&codes::E2001, cause, fix)
}

/// The commands that have this very flag, the first three: `devices`.
fn owners(flag: &str) -> Vec<String> {
    let Some(name) = flag.strip_prefix("--") else { return Vec::new() };
    let cli = Cli::command();
    let has = |command: &&clap::Command| {
        command.get_arguments().any(|argument| argument.get_long() == Some(name))
    };
    cli.get_subcommands().filter(has).map(|c| c.get_name().to_owned()).take(3).collect()
}

/// The parser's own suggestions miss swapped letters in short words.
fn near_command(wanted: &str) -> Option<String> {
    let cli = Cli::command();
    let shown = cli.get_subcommands().filter(|command| !command.is_hide_set());
    nearest(wanted, shown.map(|command| command.get_name())).map(str::to_owned)
}

fn near_flag(wanted: &str) -> Option<String> {
    let cli = Cli::command();
    let flags = cli.get_subcommands().flat_map(|command| command.get_arguments());
    let names: Vec<String> =
        flags.filter_map(|flag| flag.get_long()).map(|name| format!("--{name}")).collect();
    nearest(wanted, names.iter().map(String::as_str)).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refused(line: &str) -> Failure {
        let error = Cli::try_parse_from(line.split_whitespace()).unwrap_err();
        assert!(error.use_stderr(), "{line}: {error}");
        misuse(&error)
    }

    #[test]
    fn definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn misuse_says_which_word_and_what_instead() {
        for (line, cause, fix) in [
            ("strait", "no command was given", "strait --help"),
            ("strait rnu", "there is no command 'rnu'", "strait run?"),
            ("strait --verson", "there is no flag '--verson'", "--version?"),
            ("strait run", "--kernel <FILE> is missing", "--help"),
            (
                "strait run --kernel k --vfo 3b:00",
                "there is no flag '--vfo'",
                "did you mean --vfio?",
            ),
            ("strait run --kernal k", "there is no flag '--kernal'", "did you mean --kernel?"),
            ("strait run --kernel k --cups 2", "there is no flag '--cups'", "did you mean --cpus?"),
            ("strait frobnicate", "there is no command 'frobnicate'", "--help"),
            ("strait run --kernel k --frobnicate", "there is no flag '--frobnicate'", "--help"),
            (
                "strait run --kernel k 3b:00.0",
                "no argument '3b:00.0'",
                "did you mean --vfio 3b:00.0?",
            ),
            ("strait run --kernel", "--kernel <FILE> lacks its value", "--help"),
            ("strait run --kernel k --cpus", "--cpus <N> lacks its value", "--help"),
            ("strait run --kernel k --kernel l", "--kernel <FILE> comes twice", "keep one"),
            (
                "strait run --kernel k --dry-run=yes",
                "--dry-run takes no value, but has 'yes'",
                "--help",
            ),
            ("strait explain E1001 --markdown", "exclude each other", "keep one"),
            (
                "strait devices --class gpu show 3b:00.0",
                "--class <KIND> does not go before show",
                "leave it out",
            ),
            (
                "strait --sysroot d devices",
                "there is no flag '--sysroot' here",
                "behind its command: strait run or devices",
            ),
            ("strait ps --cpus 2", "there is no flag '--cpus' here", "strait run --cpus"),
        ] {
            let failure = refused(line);
            assert_eq!((failure.code.id, failure.code.exit), ("E2001", 2), "{line}");
            assert!(failure.cause.contains(cause), "{line}: {}", failure.cause);
            assert!(failure.fix.contains(fix), "{line}: {}", failure.fix);
        }
    }

    #[test]
    fn json_is_wanted_where_a_refusal_is_an_answer() {
        let wants =
            |line: &str| wants_json(&line.split(' ').map(OsString::from).collect::<Vec<_>>());
        for line in [
            "strait run --dry-run --json --vfo 3b:00",
            "strait -v bind --json --persit",
            "strait unbind --json",
            "strait explain --json E1 E2",
        ] {
            assert!(wants(line), "{line}");
        }
        for line in
            ["strait run --json", "strait bind --jsn", "strait ps --json bind", "strait --json"]
        {
            assert!(!wants(line), "{line}");
        }
    }

    #[test]
    fn quick_parser_understands_the_same() {
        for line in [
            "strait run --kernel k",
            "strait run -v --kernel k --vfio 3b:00.0,expect=10de:1e07 --memory 16G --cpus 8 -v",
            "strait run --kernel k --hide --dry-run",
            "strait run --kernel",
            "strait run --help",
            "strait run --version",
            "strait -v run --kernel k",
            "strait devices --json",
        ] {
            let words: Vec<OsString> = line.split(' ').map(OsString::from).collect();
            let said = |cli: Result<Cli, Error>| match cli {
                Ok(cli) => format!("{cli:?}"),
                Err(error) => error.to_string(),
            };
            assert_eq!(said(Cli::of(&words)), said(Cli::try_parse_from(&words)), "{line}");
        }
    }

    #[test]
    fn help_of_every_command_ends_with_two_examples_that_parse() {
        let mut cli = Cli::command();
        cli.build();
        let mut left = vec![cli];
        while let Some(mut command) = left.pop() {
            left.extend(
                command
                    .get_subcommands()
                    .filter(|c| c.get_name() != "help" && !c.is_hide_set())
                    .cloned(),
            );
            let help = command.render_long_help().to_string();
            let (_, after) = help.split_once("Examples:\n").expect("no examples");
            let examples: Vec<_> =
                after.lines().take_while(|line| line.starts_with("  ")).collect();
            assert_eq!(examples.len(), 2, "{help}");
            assert!(help.trim_end().ends_with(examples[1]), "{help}");
            for example in examples {
                Cli::try_parse_from(example.split_whitespace()).expect(example);
            }
        }
    }

    #[test]
    fn help_fits_a_hundred_columns() {
        let mut cli = Cli::command().term_width(100);
        cli.build();
        let mut left = vec![cli];
        while let Some(mut command) = left.pop() {
            left.extend(command.get_subcommands().cloned());
            for line in command.render_long_help().to_string().lines() {
                assert!(line.chars().count() <= 100, "{line}");
            }
        }
    }

    #[test]
    fn initrd_is_another_name_of_initramfs() {
        let cli = Cli::try_parse_from("strait run --kernel k --initrd i".split(' ')).unwrap();
        let Command::Run(args) = cli.command else { panic!("not run") };
        assert_eq!(args.initramfs, Some("i".into()));
    }
}
