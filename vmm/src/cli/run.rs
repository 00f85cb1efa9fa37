//! `strait run`, word for word.

use std::path::PathBuf;

use clap::Args;

const RUN_EXAMPLES: &str = "\
Sizes are a number and K, M, G or T, in powers of 1024. A comma inside a value is written twice.
On a terminal, Ctrl-A x ends the guest and Ctrl-A Ctrl-A sends it one Ctrl-A. What comes from a pipe, a
file or a socket instead reaches the guest byte for byte; SIGTERM ends it there. Modes that a guest's
output has set in the terminal (colours, alternate screen, mouse) are reset when it is over.
A file for --config has these flags as its keys; --memory and --cpu are tables, and each --vfio is a
[[vfio]] with host=. --print-config writes such a file.

Examples:
  strait run --kernel vmlinuz --initramfs initrd.img --vfio 3b:00,id=gpu --memory 16G --cpus 8
  strait run --config vm.toml --vfio 0000:3b:00.0,expect=10de:1e07,rom=off --dry-run";

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
    ///   after=host|vfio         who has it when the guest is over, where strait took it from
    ///                           a driver: that driver, or vfio-pci until strait unbind
    ///   trust-guest=off|on      the driver may have it back although nothing resets it: what
    ///                           the guest left is still in it
    ///   reset=auto|none|METHOD  how it is reset: METHOD is one of the kernel's for it
    ///                           (flr, pm, bus, device_specific, ...), none is not at all
    ///   raw-config=off|on       the guest may write what lies in extended configuration
    ///                           space outside of capabilities or is a vendor's own
    #[arg(long, value_name = "SPEC", verbatim_doc_comment)]
    pub(crate) vfio: Vec<String>,
    /// The display that the host's console is on may be taken too.
    #[arg(long)]
    pub(crate) allow_boot_vga: bool,
    /// A framebuffer of the host's that draws on a device (efifb, vesafb, simplefb, simpledrm) lets go of it first.
    #[arg(long)]
    pub(crate) release_fb: bool,
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
    ///   nested=off|on           virtual machines of the guest's own (VMX, SVM) [default: off]
    ///   pmu=off|on              performance counters [default: off]
    ///   core-sched=on|off       no other program runs on a core while a vCPU does, where
    ///                           the host has SMT and core scheduling (Linux 5.14); costs
    ///                           others the core's second thread meanwhile [default: on]
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
    /// What the guest reads of itself in SMBIOS (dmidecode); repeat it for more:
    ///   uuid=UUID               its number [default: one that stays the same from start to
    ///                           start, made of the host's machine ID and the devices]
    ///   manufacturer= product= version= serial= sku= family= asset=
    ///                           texts of 64 characters at most
    ///   oem=TEXT                an OEM string (type 11), each with a --smbios of its own
    #[arg(long, value_name = "KEY=VALUE,...", verbatim_doc_comment)]
    pub(crate) smbios: Vec<String>,
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
    /// With --dry-run, for programs: one JSON object, as docs/json.md describes it; a refusal too.
    #[arg(long, requires = "dry_run")]
    pub(crate) json: bool,
    /// With --dry-run: look at the host laid out in this directory.
    #[arg(long, value_name = "DIR", hide = true, default_value = "/", requires = "dry_run")]
    pub(crate) sysroot: PathBuf,
    /// The machine as a TOML file; what the command line says counts before it.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Print the machine as such a file, defaults too, and touch nothing.
    #[arg(long)]
    pub(crate) print_config: bool,
}
