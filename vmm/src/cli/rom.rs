//! `strait rom`, word for word.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::OutputArgs;

const ROM_EXAMPLES: &str = "\
Examples:
  strait rom dump 3b:00.0
  strait rom check card.rom 3b:00.0";

const DUMP_EXAMPLES: &str = "\
The device is asked, so no guest may have it at the time; what is switched on for that is switched
off again. The display that the host booted with often has nothing left to read.

Examples:
  strait rom dump 3b:00.0
  strait rom dump 3b:00.0 --output card.rom";

const CHECK_EXAMPLES: &str = "\
With a device the answer is what strait run --vfio DEVICE,rom=FILE would say.

Examples:
  strait rom check card.rom
  strait rom check card.rom 3b:00.0 --json";

/// Expansion ROMs.
#[derive(Debug, Args)]
#[command(after_help = ROM_EXAMPLES)]
pub(crate) struct RomArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: RomCommand,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum RomCommand {
    /// Read a device's expansion ROM into a file, or say why there is nothing to read.
    Dump(RomDumpArgs),
    /// Say what is in a ROM file, and whether it fits a device.
    Check(RomCheckArgs),
}

/// `strait rom dump`.
#[derive(Debug, Args)]
#[command(after_help = DUMP_EXAMPLES)]
pub(crate) struct RomDumpArgs {
    /// One function, as strait devices show takes it.
    #[arg(value_name = "DEVICE")]
    pub(crate) device: String,
    /// Where to, - for standard output [default: the address and .rom, 0000-3b-00.0.rom].
    #[arg(short, long, value_name = "FILE")]
    pub(crate) output: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) answer: OutputArgs,
}

/// `strait rom check`.
#[derive(Debug, Args)]
#[command(after_help = CHECK_EXAMPLES)]
pub(crate) struct RomCheckArgs {
    /// A ROM, as strait rom dump and other tools write it.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// The function that is to wear it.
    #[arg(value_name = "DEVICE")]
    pub(crate) device: Option<String>,
    #[command(flatten)]
    pub(crate) answer: OutputArgs,
}
