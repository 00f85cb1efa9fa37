//! The command line: syntax only. What the words mean is `config`'s question.

mod generate;
mod inspect;
mod report;
mod rom;

use std::path::PathBuf;

use clap::{
    ArgAction, Args, CommandFactory as _, Parser, Subcommand, ValueEnum,
    error::{ContextKind, ContextValue, Error, ErrorKind},
};
pub(crate) use generate::{CompletionsArgs, ManArgs, Shell};
pub(crate) use inspect::InspectArgs;
pub(crate) use report::ReportArgs;
pub(crate) use rom::{RomArgs, RomCheckArgs, RomCommand, RomDumpArgs};
use strait_resources::{bdf::BdfSelector, codes, failure::Failure, nearest::nearest};

const EXAMPLES: &str = "\
Examples:
  strait run --kernel vmlinuz --initramfs initrd.img --vfio 3b:00 --memory 16G --cpus 8
  strait explain E1103";

const RUN_EXAMPLES: &str = "\
Sizes are a number and K, M, G or T, in powers of 1024. A comma inside a value is written twice.
On a terminal, Ctrl-A x ends the guest and Ctrl-A Ctrl-A sends it one Ctrl-A.
A file for --config has these flags as its keys; --memory and --cpu are tables, and each --vfio is a
[[vfio]] with host=. --print-config writes such a file.

Examples:
  strait run --kernel vmlinuz --initramfs initrd.img --vfio 3b:00,id=gpu --memory 16G --cpus 8
  strait run --config vm.toml --vfio 0000:3b:00.0,expect=10de:1e07,rom=off --dry-run";

const BIND_EXAMPLES: &str = "\
Examples:
  strait bind 3b:00
  strait bind 3b:00.0 3b:00.1 --persist";

const UNBIND_EXAMPLES: &str = "\
Examples:
  strait unbind 3b:00
  strait unbind 3b:00.0 --dry-run";

const PS_EXAMPLES: &str = "\
Examples:
  strait ps
  strait ps --json";

const BENCH_EXAMPLES: &str = "\
The same work on the host and in a guest of each monitor, in turns: start-up step by step, memory
beyond the guest's RAM, exits, BARs, and for NVMe disks latency, reads a second and MiB/s. Disks are
only read. The guest is strait itself on this host's kernel. The device goes to vfio-pci for the
guests and back. DIR gets report.html, with plots, and report.json.

Examples:
  strait bench --vfio 3b:00.0 --against qemu --runs 5
  strait bench compare before/report.json after/report.json";

const BENCH_COMPARE_EXAMPLES: &str = "\
A figure is better or worse only when the runs of both lie apart.

Examples:
  strait bench compare before/report.json after/report.json
  strait bench compare a.json b.json --json";

const EXPLAIN_EXAMPLES: &str = "\
Examples:
  strait explain E1103
  strait explain";

const DEVICES_EXAMPLES: &str = "\
A device is assignable when a guest can have it now, and after binding when vfio-pci has to have it, or
others of its IOMMU group, first. Everything is read, nothing is changed. Root sees more: serial
numbers, capabilities, processes of other users.

Examples:
  strait devices --class gpu --assignable
  strait devices show 3b:00.0";

const SHOW_EXAMPLES: &str = "\
DEVICE is an address, 3b:00.0, or 3b:00 for every function of the slot, slot=NAME as the firmware
numbers the board, IDs, 10de:1e07, that one device alone has, or a path in /sys.

Examples:
  strait devices show 3b:00
  strait devices show 10de:1e07 --json";

const DOCTOR_EXAMPLES: &str = "\
FAIL is what a run would refuse, with the same code; WARN is what would hurt; SKIP could not be looked
at, mostly for want of root. -v shows what is in order, too. The exit status is that of the first FAIL, 0
without one. Everything is read, nothing is changed.

Examples:
  strait doctor 3b:00 --fix-plan
  strait doctor --config vm.toml";

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
    /// The work of a bench: a guest's init, or a child on the host.
    #[command(hide = true)]
    BenchGuest(BenchGuestArgs),
}

/// `strait run`, word for word.
#[derive(Clone, Debug, Args)]
#[command(after_help = RUN_EXAMPLES)]
pub(crate) struct RunArgs {
    /// A Linux kernel: a bzImage (vmlinuz) or an ELF vmlinux.
    #[arg(long, value_name = "FILE", required_unless_present = "config")]
    pub(crate) kernel: Option<PathBuf>,
    /// An initial RAM file system. Also --initrd.
    #[arg(long, alias = "initrd", value_name = "FILE")]
    pub(crate) initramfs: Option<PathBuf>,
    /// The kernel's command line [default: console=ttyS0, or nothing with --serial none].
    #[arg(long, value_name = "TEXT")]
    pub(crate) cmdline: Option<String>,
    /// Virtual CPUs, 1 to 255.
    #[arg(long, value_name = "N", default_value = "1")]
    pub(crate) cpus: String,
    /// Guest RAM, and behind its size, with commas:
    ///   hugepages=2M|1G         from the host's pool of huge pages
    ///   pin=auto|eager|behind   when it is pinned for passed devices: before the guest
    ///                           starts, or behind its boot, where the first driver to
    ///                           enable bus mastering waits for the rest [default: auto,
    ///                           that is behind where the host has memory to spare]
    #[arg(long, value_name = "SIZE[,KEY=VALUE]", default_value = "512M", verbatim_doc_comment)]
    pub(crate) memory: String,
    /// A PCI device for the guest; repeat it for more.
    ///
    /// SPEC is an address, 3b:00.0 for one function or 3b:00 for every function of
    /// the slot; slot=NAME as the board calls it; IDs, 10de:1e07, that one device
    /// alone has; or a path in /sys. Behind it may come, with commas:
    ///   id=NAME                 what strait calls it
    ///   guest-address=BB:00[.F] its place in the guest
    ///   rom=on|off|FILE         its expansion ROM
    ///   expect=VVVV:DDDD        refuse another device than this
    ///   vendor-id= device-id= sub-vendor-id= sub-device-id=
    ///                           IDs for the guest instead of the device's
    ///   managed=auto|yes|no     take it from the host's driver, if the host can do
    ///                           without it, and give it back; auto: as root
    #[arg(long, value_name = "SPEC", verbatim_doc_comment)]
    pub(crate) vfio: Vec<String>,
    /// The display that the host's console is on may be taken too.
    #[arg(long)]
    pub(crate) allow_boot_vga: bool,
    /// DMA between passed devices; auto: when there are two or more.
    #[arg(long, value_name = "auto|on|off", default_value = "auto")]
    pub(crate) p2p: Option<String>,
    /// How the guest sees its CPUs.
    ///
    ///   hide=kvm|all            hide KVM's CPUID leaf; the hypervisor bit too
    ///   hv-vendor=XXXXXXXXXXXX  vendor of the hypervisor leaf
    ///   threads=N               threads per core
    ///   cores=N                 cores per package
    ///   idle=halt|native        where an idle vCPU waits: in the host, or in the guest,
    ///                           which wakes faster and keeps the host's CPU to itself
    #[arg(long, value_name = "KEY=VALUE,...", verbatim_doc_comment)]
    pub(crate) cpu: Vec<String>,
    /// Where the first serial port goes: stdio, none, file=PATH or socket=PATH.
    #[arg(long, value_name = "WHERE", default_value = "stdio")]
    pub(crate) serial: Option<String>,
    /// An ACPI table for the guest beside the machine's own, an SSDT for instance; repeat it for more.
    #[arg(long, value_name = "FILE")]
    pub(crate) acpi_table: Vec<PathBuf>,
    /// The guest sees a battery, full and on mains: some notebook GPUs' drivers want one.
    #[arg(long)]
    pub(crate) fake_battery: bool,
    /// Exact size of the 32-bit window for BARs [default: as needed].
    #[arg(long, value_name = "SIZE")]
    pub(crate) mmio32: Option<String>,
    /// Exact size of the 64-bit window for BARs [default: as needed].
    #[arg(long, value_name = "SIZE")]
    pub(crate) mmio64: Option<String>,
    /// Which entry point of the kernel to use.
    #[arg(long, value_name = "auto|pvh|bzimage", default_value = "auto")]
    pub(crate) boot: Option<String>,
    /// Print the machine and touch nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// The machine as a TOML file; what the command line says counts before it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the machine as such a file, defaults too, and touch nothing.
    #[arg(long)]
    pub(crate) print_config: bool,
}

/// `strait devices`, word for word.
#[derive(Debug, Args)]
#[command(after_help = DEVICES_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct DevicesArgs {
    /// One device in full, or all of them in a list.
    #[command(subcommand)]
    pub(crate) command: Option<DevicesCommand>,
    /// Only those that a guest can have, now or after binding.
    #[arg(long)]
    pub(crate) assignable: bool,
    /// Only this vendor's.
    #[arg(long, value_name = "VVVV", value_parser = vendor_id)]
    pub(crate) vendor: Option<u16>,
    /// Only this kind.
    #[arg(long, value_name = "KIND")]
    pub(crate) class: Option<DeviceClass>,
    /// By IOMMU group: what goes to a guest together.
    #[arg(long, conflicts_with = "tree")]
    pub(crate) group: bool,
    /// By bus: what is behind which port.
    #[arg(long)]
    pub(crate) tree: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// One device in full.
#[derive(Debug, Subcommand)]
pub(crate) enum DevicesCommand {
    /// All that is known of a device.
    Show(ShowArgs),
}

/// `strait devices show`, word for word.
#[derive(Debug, Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub(crate) struct ShowArgs {
    /// Which.
    #[arg(required = true, value_name = "DEVICE")]
    pub(crate) devices: Vec<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}

/// `strait doctor`, word for word.
#[derive(Debug, Args)]
#[command(after_help = DOCTOR_EXAMPLES)]
pub(crate) struct DoctorArgs {
    /// The devices for the guest, as strait devices show takes them; without one, the host alone.
    #[arg(value_name = "DEVICE")]
    pub(crate) devices: Vec<String>,
    /// A machine as strait run --config takes it: its files, its memory and its devices.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the lines that mend this host, for its distribution and boot loader.
    #[arg(long)]
    pub(crate) fix_plan: bool,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
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

/// Kinds of device that people look for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum DeviceClass {
    /// Displays and compute accelerators.
    Gpu,
    /// Network controllers.
    Nic,
    /// NVMe disks.
    Nvme,
    /// USB controllers.
    Usb,
}

/// `10de`, also `0x10de`.
fn vendor_id(text: &str) -> Result<u16, String> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let is_id = digits.len() == 4 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_id
        .then(|| u16::from_str_radix(digits, 16).ok())
        .flatten()
        .ok_or_else(|| "a vendor is four hexadecimal digits, as 10de".to_owned())
}

/// `strait bind`, word for word.
#[derive(Debug, Args)]
#[command(after_help = BIND_EXAMPLES)]
pub(crate) struct BindArgs {
    /// Functions (3b:00.0) or whole slots (3b:00, slot=NAME), or IDs. What shares an IOMMU group comes along.
    #[arg(value_name = "DEVICE", required = true)]
    pub(crate) functions: Vec<String>,
    /// Say what would be done and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// At every boot too: writes a udev rule for each function.
    #[arg(long)]
    pub(crate) persist: bool,
    /// The display that the host's console is on may go.
    #[arg(long)]
    pub(crate) allow_boot_vga: bool,
}

/// `strait unbind`, word for word.
#[derive(Debug, Args)]
#[command(after_help = UNBIND_EXAMPLES)]
pub(crate) struct UnbindArgs {
    /// Functions (3b:00.0) or whole slots (3b:00, slot=NAME), or IDs.
    #[arg(value_name = "DEVICE", required = true)]
    pub(crate) functions: Vec<String>,
    /// Say what would be done and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
}

/// `strait ps`, word for word.
#[derive(Debug, Args)]
#[command(after_help = PS_EXAMPLES)]
pub(crate) struct PsArgs {
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// `strait bench`, word for word.
#[derive(Debug, Args)]
#[command(after_help = BENCH_EXAMPLES, args_conflicts_with_subcommands = true)]
pub(crate) struct BenchArgs {
    /// Compare two results instead.
    #[command(subcommand)]
    pub(crate) command: Option<BenchCommand>,
    /// The function to measure, as strait devices show takes it.
    #[arg(long, value_name = "DEVICE")]
    pub(crate) vfio: Option<String>,
    /// Other monitors of this host: qemu, cloud-hypervisor.
    #[arg(long, value_name = "NAME,...", value_delimiter = ',')]
    pub(crate) against: Vec<String>,
    /// How many runs of each are counted, 1 to 100.
    #[arg(long, value_name = "N", default_value = "5", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub(crate) runs: u32,
    /// The guests' RAM.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub(crate) memory: String,
    /// Also run this program on both sides; lines NAME: NUMBER UNIT of its output become rows.
    #[arg(long, value_name = "COMMAND")]
    pub(crate) workload: Option<String>,
    /// The guests' kernel [default: this host's].
    #[arg(long, value_name = "FILE")]
    pub(crate) kernel: Option<PathBuf>,
    /// The modules of that kernel [default: those of this host's].
    #[arg(long, value_name = "DIR")]
    pub(crate) modules_dir: Option<PathBuf>,
    /// Where the report goes [default: strait-bench-DEVICE].
    #[arg(long, value_name = "DIR")]
    pub(crate) output: Option<PathBuf>,
    /// For programs: the report on standard output.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to do with results.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Tell what changed between two results.
    Compare(BenchCompareArgs),
}

/// `strait bench compare`, word for word.
#[derive(Debug, Args)]
#[command(after_help = BENCH_COMPARE_EXAMPLES)]
pub(crate) struct BenchCompareArgs {
    /// A report.json.
    pub(crate) before: PathBuf,
    /// Another.
    pub(crate) after: PathBuf,
    /// For programs.
    #[arg(long)]
    pub(crate) json: bool,
}

/// What to measure, as a file.
#[derive(Debug, Args)]
pub(crate) struct BenchGuestArgs {
    /// Which file.
    pub(crate) task: PathBuf,
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
            let cause = format!("there is no {} '{what}'", if flag { "flag" } else { "argument" });
            let fix = match said(ContextKind::SuggestedArg).or_else(|| near_flag(&what)) {
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
            let cause = match said(ContextKind::PriorArg) {
                Some(prior) if prior != what => format!("{what} and {prior} exclude each other"),
                _ => format!("{what} comes twice"),
            };
            (cause, Some("keep one of them".to_owned()))
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
        ] {
            let failure = refused(line);
            assert_eq!((failure.code.id, failure.code.exit), ("E2001", 2), "{line}");
            assert!(failure.cause.contains(cause), "{line}: {}", failure.cause);
            assert!(failure.fix.contains(fix), "{line}: {}", failure.fix);
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
