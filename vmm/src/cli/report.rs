//! `strait report`, word for word.

use std::path::PathBuf;

use clap::Args;

use super::OutputArgs;

const EXAMPLES: &str = "\
Names of the host and its users, serial numbers, UUIDs, MAC and IP addresses are replaced. Look into
the archive all the same before you send it: nobody knows what else a kernel log holds.

Examples:
  strait report
  strait report 3b:00.0 --output /tmp/report.tar.gz";

/// One archive for a bug report.
#[derive(Debug, Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct ReportArgs {
    /// Which guest, as strait inspect takes it [default: all that run].
    #[arg(value_name = "VM")]
    pub(crate) vm: Option<String>,
    /// Where to, - for standard output [default: strait-report.tar.gz].
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) answer: OutputArgs,
}
