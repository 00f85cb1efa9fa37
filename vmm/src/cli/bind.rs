//! `strait bind`, `unbind` and `ps`, word for word.

use std::path::PathBuf;

use clap::Args;

use super::OutputArgs;

const BIND_EXAMPLES: &str = "\
Examples:
  strait bind 3b:00 --allow-boot-vga --release-fb
  strait bind 3b:00.0 3b:00.1 --persist --json";

const UNBIND_EXAMPLES: &str = "\
Examples:
  strait unbind 3b:00
  strait unbind 3b:00.0 --dry-run";

const PS_EXAMPLES: &str = "\
Examples:
  strait ps
  strait ps --json";

/// `strait bind`, word for word.
#[derive(Debug, Args)]
#[command(after_help = BIND_EXAMPLES)]
pub(crate) struct BindArgs {
    /// Functions (3b:00.0) or whole slots (3b:00, slot=NAME), or IDs. What shares an IOMMU group comes along.
    #[arg(value_name = "DEVICE", required = true)]
    pub(crate) functions: Vec<String>,
    /// At every boot too: writes a udev rule for each function.
    #[arg(long)]
    pub(crate) persist: bool,
    /// The display that the host's console is on may go.
    #[arg(long)]
    pub(crate) allow_boot_vga: bool,
    /// A framebuffer of the host's that draws on a device (efifb, vesafb, simplefb, simpledrm) lets go of it.
    #[arg(long)]
    pub(crate) release_fb: bool,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

/// `strait unbind`, word for word.
#[derive(Debug, Args)]
#[command(after_help = UNBIND_EXAMPLES)]
pub(crate) struct UnbindArgs {
    /// Functions (3b:00.0) or whole slots (3b:00, slot=NAME), or IDs.
    #[arg(value_name = "DEVICE", required = true)]
    pub(crate) functions: Vec<String>,
    #[command(flatten)]
    pub(crate) change: ChangeArgs,
}

/// How a command that changes drivers goes about it.
#[derive(Debug, Args)]
pub(crate) struct ChangeArgs {
    /// Say what would be done and do nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// For programs: one JSON object, as docs/json.md describes it; a refusal too.
    #[arg(long)]
    pub(crate) json: bool,
    /// With --dry-run: look at the host laid out in this directory.
    #[arg(long, value_name = "DIR", hide = true, default_value = "/", requires = "dry_run")]
    pub(crate) sysroot: PathBuf,
}

/// `strait ps`, word for word.
#[derive(Debug, Args)]
#[command(after_help = PS_EXAMPLES)]
pub(crate) struct PsArgs {
    #[command(flatten)]
    pub(crate) output: OutputArgs,
}
