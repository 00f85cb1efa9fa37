//! `strait inspect`, word for word.

use clap::Args;

use super::OutputArgs;

const EXAMPLES: &str = "\
Counters of the monitor and files of the host's kernel are read; the guest and its devices notice
nothing. Root sees the kernel log too.

Examples:
  strait inspect
  strait inspect 3b:00.0 --json";

/// How the devices of a running guest are.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct InspectArgs {
    /// Which guest: its process ID, as strait ps shows it, or the id or address of one of its devices; not needed
    /// when there is one guest.
    #[arg(value_name = "VM")]
    pub(crate) vm: Option<String>,
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
