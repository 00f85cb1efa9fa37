//! `strait devices` and `strait doctor`, word for word.

use std::path::PathBuf;

use clap::{Args, Subcommand, ValueEnum};

use super::OutputArgs;

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
