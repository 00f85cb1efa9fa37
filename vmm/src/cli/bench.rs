//! `strait bench`, word for word.

use std::path::PathBuf;

use clap::{Args, Subcommand};

const BENCH_EXAMPLES: &str = "\
The same work on the host and in a guest of each monitor, in turns: start-up step by step, memory
beyond the guest's RAM, exits, interrupts, BARs, for NVMe disks latency, reads a second and MiB/s, for
NICs round trips and packets a second. Disks are only read; NICs send echoes to the peer. The guest is strait itself on this host's kernel. The device goes to vfio-pci for the
guests and back. DIR gets report.html, with plots, and report.json.

Examples:
  strait bench --vfio 3b:00.0 --against qemu --runs 5
  strait bench --vfio 41:00.0 --peer 192.168.7.1,address=192.168.7.2/24";

const BENCH_COMPARE_EXAMPLES: &str = "\
A figure is better or worse only when the runs of both lie apart.

Examples:
  strait bench compare before/report.json after/report.json
  strait bench compare a.json b.json --json";

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
    /// For a NIC: who answers echoes, and the address to use, the host's own one.
    #[arg(long, value_name = "ADDRESS,address=OWN/PREFIX")]
    pub(crate) peer: Option<String>,
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
