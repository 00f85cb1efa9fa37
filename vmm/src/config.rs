//! What a machine shall be: meaning, after `cli` took care of the syntax.
//!
//! Strings die here. A [`RunConfig`] says nothing impossible by itself; what the host thinks of it is another
//! question, asked later (`strait_resources::host::check`). The types know nothing of the command line, so that a
//! configuration file can fill them too. The only thing touched is the files named: a missing kernel is told
//! before the host is looked at.

mod acpi;
mod cpu;
pub(crate) mod files;
mod list;
mod memory;
mod size;
mod smbios;
pub(crate) mod twin;
mod vfio;

#[cfg(test)]
mod tests;

use std::{
    num::NonZeroU8,
    path::{Path, PathBuf},
};

use strait_arch::{acpi::TableName, cpuid::CpuTopology};
pub(crate) use strait_arch::{boot::BootMode, cpuid::Hide};
pub(crate) use strait_devices::vfio::attach::Identity;
use strait_resources::{codes, failure::Failure, host::reset::Choice, selector::Selector};

use crate::cli::RunArgs;

/// The kernel's command line when the user gives none and there is a serial port: the console where the user looks.
const DEFAULT_CMDLINE: &str = "console=ttyS0";

/// One machine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct RunConfig {
    /// What boots.
    pub(crate) kernel: Kernel,
    /// Virtual CPUs.
    pub(crate) cpu: Cpu,
    /// Guest RAM.
    pub(crate) memory: Memory,
    /// Passed devices, in command-line order. No function is in two of them, no two have the same name, no two
    /// the same guest address.
    pub(crate) vfio: Vec<VfioConfig>,
    /// May passed devices reach each other's BARs by DMA?
    pub(crate) p2p: P2p,
    /// Where the guest's COM1 goes.
    pub(crate) serial: Serial,
    /// ACPI tables that the guest finds beside the machine's own; no two of one name.
    pub(crate) acpi: Vec<AcpiTable>,
    /// What the guest reads of its maker, its model and its number.
    pub(crate) smbios: Smbios,
    /// Exact size of the 32-bit MMIO window in bytes, a multiple of 1 MiB below 4 GiB; `None`: as large as needed.
    pub(crate) mmio32: Option<u64>,
    /// Exact size of the 64-bit MMIO window in bytes, a multiple of 1 MiB; `None`: as large as needed.
    pub(crate) mmio64: Option<u64>,
    /// The display that the host's console is on may be taken.
    pub(crate) allow_boot_vga: bool,
    /// Framebuffers of the host's that draw on passed devices let go of them.
    pub(crate) release_fb: bool,
    /// Print the machine instead of running it.
    pub(crate) dry_run: bool,
}

/// What boots, and how.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Kernel {
    /// A bzImage or an ELF vmlinux; was a readable file when looked at.
    pub(crate) path: PathBuf,
    /// Likewise.
    pub(crate) initramfs: Option<PathBuf>,
    /// Without the terminating NUL, and without one inside.
    pub(crate) cmdline: String,
    /// Which entry point.
    pub(crate) boot: BootMode,
}

/// Virtual CPUs. `threads_per_core * cores_per_package` divides `count`, and every APIC id is 254 at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Cpu {
    /// How many, 1..=255.
    pub(crate) count: NonZeroU8,
    /// Hardware threads a core has; 1 unless asked otherwise.
    pub(crate) threads_per_core: NonZeroU8,
    /// Cores a package has; all of them unless asked otherwise.
    pub(crate) cores_per_package: NonZeroU8,
    /// How much of the hypervisor the guest sees.
    pub(crate) hide: Hide,
    /// Vendor signature of CPUID leaf 0x4000_0000: printable ASCII, padded with NUL. Not with [`Hide::All`].
    pub(crate) hv_vendor: Option<[u8; 12]>,
    /// Who waits when a vCPU has nothing to do.
    pub(crate) idle: Idle,
    /// May the guest have virtual machines of its own?
    pub(crate) nested: bool,
    /// Does the guest get performance counters?
    pub(crate) pmu: bool,
    /// Are other programs kept off a core while a vCPU runs on it, where the host can do that?
    pub(crate) core_sched: bool,
}

/// Who waits when a vCPU has nothing to do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Idle {
    /// KVM: the host's CPU is free for others.
    #[default]
    Halt,
    /// The host's CPU, in the guest: it wakes without an exit, and the host sees it busy.
    Native,
}

impl Cpu {
    /// How the CPUs are arranged.
    pub(crate) fn topology(&self) -> CpuTopology {
        CpuTopology {
            threads_per_core: self.threads_per_core.get().into(),
            cores_per_package: self.cores_per_package.get().into(),
        }
    }
}

/// Guest RAM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Memory {
    /// Bytes: 16 MiB at least, a multiple of 2 MiB, and of `pages`.
    pub(crate) size: u64,
    /// What it is made of on the host.
    pub(crate) pages: Pages,
    /// When it is given to passed devices.
    pub(crate) pin: Pin,
}

/// When guest RAM is pinned and mapped for passed devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pin {
    /// Behind the guest's boot where the host has memory enough, else before it.
    #[default]
    Auto,
    /// Before the guest starts.
    Eager,
    /// While it boots.
    Behind,
}

/// What guest RAM is made of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Pages {
    /// Anonymous memory, transparent huge pages where the kernel has them.
    #[default]
    Default,
    /// 2 MiB pages from the host's pool.
    Huge2M,
    /// 1 GiB pages from the host's pool.
    Huge1G,
}

impl Pages {
    /// What the size of the memory must be a multiple of, in bytes.
    pub(crate) const fn granule(self) -> u64 {
        match self {
            Self::Default | Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }
}

/// One ACPI table, whole and of a kind that a machine takes from others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct AcpiTable {
    /// Where it is from; `None`: made here.
    pub(crate) path: Option<PathBuf>,
    /// The names in its header.
    pub(crate) name: TableName,
    /// With its header.
    pub(crate) bytes: Vec<u8>,
}

/// What the guest reads of itself in SMBIOS, where the user says it: texts of 1 to 64 printable ASCII characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Smbios {
    /// The machine's number, in the order in which it is written.
    pub(crate) uuid: Option<[u8; 16]>,
    /// Who made it.
    pub(crate) manufacturer: Option<String>,
    /// The model.
    pub(crate) product: Option<String>,
    /// Of the model.
    pub(crate) version: Option<String>,
    /// Which one of them it is.
    pub(crate) serial: Option<String>,
    /// The model's configuration.
    pub(crate) sku: Option<String>,
    /// Models that belong together.
    pub(crate) family: Option<String>,
    /// The owner's number.
    pub(crate) asset: Option<String>,
    /// Free texts, longer ones too.
    pub(crate) oem: Vec<String>,
}

/// One `--vfio`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct VfioConfig {
    /// One function or a whole slot of the host, by whatever name.
    pub(crate) selector: Selector,
    /// The user's name for it: 1 to 32 letters, digits, `.`, `_`, `-`. Without one, the device at position `n` of
    /// the command line is `vfio{n}`, and no other device has that name.
    pub(crate) id: Option<String>,
    /// Guest bus, 1..=255.
    pub(crate) guest_bus: Option<u8>,
    /// Guest function number, 0..=7; only with a `guest_bus` and only for a single host function.
    pub(crate) guest_function: Option<u8>,
    /// Which expansion ROM the guest sees.
    pub(crate) rom: RomChoice,
    /// Vendor and device ID that must be found at the address.
    pub(crate) expect: Option<(u16, u16)>,
    /// May it be taken from the driver that the host has on it?
    pub(crate) managed: Managed,
    /// How the device, with a whole slot each of its functions, is brought back to a known state.
    pub(crate) reset: Choice,
    /// The guest writes registers of configuration space from 0x100 on that belong to no capability, and those of
    /// vendors' own capabilities there.
    pub(crate) raw_config: bool,
    /// Who has it when the guest is over, where strait took it from a driver.
    pub(crate) after: After,
    /// A driver of the host may get the device as its guest left it, where nothing resets it.
    pub(crate) trust_guest: bool,
    /// IDs that the guest sees instead of the device's; with a whole slot, on its first function.
    pub(crate) identity: Identity,
}

/// Who binds a device to vfio-pci.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Managed {
    /// strait when it may, that is, as root; else the user.
    #[default]
    Auto,
    /// strait, which also gives it back.
    Yes,
    /// The user: a device on another driver is refused.
    No,
}

/// Who has a device after its guest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum After {
    /// The driver of the host that it was taken from.
    #[default]
    Host,
    /// vfio-pci, until `strait unbind`.
    Vfio,
}

impl After {
    /// Its word in the value of the key.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Host => "host",
            Self::Vfio => "vfio",
        }
    }
}

/// Which expansion ROM the guest sees.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum RomChoice {
    /// The device's, if it has one.
    #[default]
    On,
    /// None: no ROM BAR.
    Off,
    /// This file's content; was a readable file when looked at.
    File(PathBuf),
}

/// DMA between passed devices.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum P2p {
    /// When there are two or more devices.
    #[default]
    Auto,
    /// Always: with one device too.
    On,
    /// Never.
    Off,
}

/// Where the guest's COM1 goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Serial {
    /// Standard input and output.
    #[default]
    Stdio,
    /// Nowhere.
    None,
    /// Output to a file, created or truncated; no input.
    File(PathBuf),
    /// A Unix socket, created here, for one peer at a time.
    Socket(PathBuf),
}

/// Bytes of RAM for a guest of `strait bench`, in pages that every monitor has.
pub(crate) fn memory_size(text: &str) -> Result<u64, Failure> {
    let memory = memory::parse(text)?;
    match memory.pages {
        Pages::Default => Ok(memory.size),
        _ => Err(bad_value(
            format!("--memory {text}: huge pages are not for a comparison"),
            "leave them out",
        )),
    }
}

impl TryFrom<RunArgs> for RunConfig {
    type Error = Failure;

    fn try_from(args: RunArgs) -> Result<Self, Failure> {
        let config = Self::meaning(args)?;
        config.check_files()?;
        Ok(config)
    }
}

impl RunConfig {
    /// What the words mean, without a look at the files they name.
    pub(crate) fn meaning(args: RunArgs) -> Result<Self, Failure> {
        let Some(kernel) = args.kernel else {
            let cause = "--kernel <FILE> is missing";
            return Err(Failure::new(
                &codes::E2001,
                cause,
                "strait run --help tells what there is",
            ));
        };
        let serial = match args.serial {
            Some(text) => serial(&text)?,
            None => Serial::default(),
        };
        let cmdline = args.cmdline.unwrap_or_else(|| match serial {
            Serial::None => String::new(),
            _ => DEFAULT_CMDLINE.to_owned(),
        });
        let boot = choice("--boot", args.boot.as_deref(), BOOT_MODES)?;
        Ok(Self {
            cpu: cpu::parse(&args.cpus, &args.cpu)?,
            memory: memory::parse(&args.memory)?,
            vfio: vfio::parse_all(&args.vfio)?,
            p2p: choice("--p2p", args.p2p.as_deref(), P2P_CHOICES)?,
            serial,
            acpi: acpi::parse(&args.acpi_table, args.fake_battery)?,
            smbios: smbios::parse(&args.smbios)?,
            mmio32: args
                .mmio32
                .map(|text| memory::window("--mmio32", &text, 1 << 32))
                .transpose()?,
            mmio64: args
                .mmio64
                .map(|text| memory::window("--mmio64", &text, 1 << 57))
                .transpose()?,
            allow_boot_vga: args.allow_boot_vga,
            release_fb: args.release_fb,
            dry_run: args.dry_run,
            kernel: Kernel { path: kernel, initramfs: args.initramfs, cmdline, boot },
        })
    }

    /// Last, because it leaves the command line: every file that is named can be read.
    pub(crate) fn check_files(&self) -> Result<(), Failure> {
        files::readable("--kernel", &self.kernel.path)?;
        if let Some(initramfs) = &self.kernel.initramfs {
            files::readable("--initramfs", initramfs)?;
        }
        for rom in self.roms() {
            files::readable("--vfio rom=", rom)?;
        }
        files::writable(&self.serial)?;
        Ok(())
    }

    /// The ROM files it names.
    pub(crate) fn roms(&self) -> impl Iterator<Item = &Path> {
        self.vfio.iter().filter_map(|device| match &device.rom {
            RomChoice::File(rom) => Some(rom.as_path()),
            RomChoice::On | RomChoice::Off => None,
        })
    }
}

const BOOT_MODES: &[(&str, BootMode)] =
    &[("auto", BootMode::Auto), ("pvh", BootMode::Pvh), ("bzimage", BootMode::BzImage)];
const P2P_CHOICES: &[(&str, P2p)] = &[("auto", P2p::Auto), ("on", P2p::On), ("off", P2p::Off)];

/// One word of a few; the first one when the user says nothing.
fn choice<T: Copy + Default>(
    what: &str,
    text: Option<&str>,
    among: &[(&str, T)],
) -> Result<T, Failure> {
    let Some(text) = text else { return Ok(T::default()) };
    let names: Vec<&str> = among.iter().map(|(name, _)| *name).collect();
    match among.iter().find(|(name, _)| *name == text) {
        Some((_, value)) => Ok(*value),
        None => {
            let fix = format!("one of: {}", names.join(", "));
            Err(bad_value(format!("'{text}' is no value of {what}"), fix))
        }
    }
}

fn serial(text: &str) -> Result<Serial, Failure> {
    let wrong = |cause: String| {
        bad_value(cause, "write --serial stdio, none, file=PATH or socket=PATH".to_owned())
    };
    match text.split_once('=') {
        None if text == "stdio" => Ok(Serial::Stdio),
        None if text == "none" => Ok(Serial::None),
        Some(("file" | "socket", "")) => Err(wrong(format!("--serial {text} lacks its path"))),
        Some(("file", path)) => Ok(Serial::File(path.into())),
        Some(("socket", path)) => Ok(Serial::Socket(path.into())),
        _ => Err(wrong(format!("'{text}' is no value of --serial"))),
    }
}

/// E2003.
fn bad_value(cause: String, fix: impl Into<String>) -> Failure {
    Failure::new(&codes::E2003, cause, fix)
}
