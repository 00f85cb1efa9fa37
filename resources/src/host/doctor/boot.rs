//! How this machine boots: loader, distribution, initramfs; what was asked for there and what came of it.

use super::{
    super::{
        kernels,
        pci::HostFunction,
        sysroot::{SysError, Sysroot},
    },
    Answer, Host, Outcome,
};

/// Who starts the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loader {
    Grub,
    SystemdBoot,
    Limine,
    Unknown,
}

/// Distributions, by how they are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Family {
    Debian,
    Fedora,
    Suse,
    Arch,
    Other,
}

/// Who makes the initramfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Initramfs {
    /// initramfs-tools.
    Tools,
    Dracut,
    Mkinitcpio,
    Unknown,
}

impl Loader {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Grub => "GRUB",
            Self::SystemdBoot => "systemd-boot",
            Self::Limine => "Limine",
            Self::Unknown => "unknown boot loader",
        }
    }
}

impl Initramfs {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Self::Tools => "initramfs-tools",
            Self::Dracut => "dracut",
            Self::Mkinitcpio => "mkinitcpio",
            Self::Unknown => "unknown initramfs tool",
        }
    }
}

const LOADER_ENTRIES: [&str; 3] =
    ["/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries"];

/// What the loader said of itself, else what it left in the kernel's arguments, else whose files are there.
pub(super) fn loader_of(sysroot: &Sysroot) -> Result<Loader, SysError> {
    const INFO: &str = "/sys/firmware/efi/efivars/LoaderInfo-4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
    if sysroot.exists(INFO) {
        // Four bytes of attributes, then UTF-16.
        let bytes = sysroot.read_bytes(INFO)?;
        let text: String = bytes
            .get(4..)
            .unwrap_or_default()
            .iter()
            .filter(|byte| **byte != 0)
            .map(|b| char::from(*b))
            .collect();
        for (word, loader) in [
            ("systemd-boot", Loader::SystemdBoot),
            ("GRUB", Loader::Grub),
            ("Limine", Loader::Limine),
        ] {
            if text.contains(word) {
                return Ok(loader);
            }
        }
    }
    let cmdline = sysroot.read_if_present("/proc/cmdline")?.unwrap_or_default();
    if cmdline.split_whitespace().any(|word| word.starts_with("BOOT_IMAGE=")) {
        return Ok(Loader::Grub);
    }
    if cmdline.split_whitespace().any(|word| word.starts_with("initrd=\\")) {
        return Ok(Loader::SystemdBoot);
    }
    let has = |path: &str| sysroot.exists(path);
    Ok(
        if ["/boot", "/efi", "/boot/efi"].iter().any(|at| has(&format!("{at}/loader/loader.conf")))
        {
            Loader::SystemdBoot
        } else if has("/boot/limine.conf") || has("/boot/limine/limine.conf") {
            Loader::Limine
        } else if has("/etc/default/grub") {
            Loader::Grub
        } else {
            Loader::Unknown
        },
    )
}

/// The distribution's own name, and its kind.
pub(super) fn distribution(sysroot: &Sysroot) -> Result<(String, Family), SysError> {
    let text = sysroot.read_if_present("/etc/os-release")?.unwrap_or_default();
    let value = |key: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
        line.unwrap_or_default().trim_matches('"').to_owned()
    };
    let words = format!("{} {}", value("ID"), value("ID_LIKE"));
    let family = words.split_whitespace().find_map(|word| match word {
        "debian" | "ubuntu" => Some(Family::Debian),
        "fedora" | "rhel" | "centos" => Some(Family::Fedora),
        "suse" | "opensuse" | "opensuse-tumbleweed" | "opensuse-leap" | "sles" => {
            Some(Family::Suse)
        }
        "arch" => Some(Family::Arch),
        _ => None,
    });
    let name = value("PRETTY_NAME");
    let name = if name.is_empty() { "unknown distribution".to_owned() } else { name };
    Ok((name, family.unwrap_or(Family::Other)))
}

pub(super) fn initramfs_of(sysroot: &Sysroot) -> Initramfs {
    let has = |path: &str| sysroot.exists(path);
    if has("/etc/mkinitcpio.conf") {
        Initramfs::Mkinitcpio
    } else if has("/usr/sbin/update-initramfs") || has("/etc/initramfs-tools") {
        Initramfs::Tools
    } else if has("/usr/bin/dracut") || has("/usr/sbin/dracut") || has("/etc/dracut.conf") {
        Initramfs::Dracut
    } else {
        Initramfs::Unknown
    }
}

/// Proxmox VE keeps its own copies of kernels and arguments.
pub(super) fn is_proxmox_boot(sysroot: &Sysroot) -> bool {
    sysroot.exists("/etc/kernel/proxmox-boot-uuids")
}

/// The commands after which GRUB's file is in force at the next boot.
pub(super) const fn update_grub(family: Family) -> &'static str {
    match family {
        Family::Debian => "update-grub",
        Family::Fedora | Family::Suse => "grub2-mkconfig -o /boot/grub2/grub.cfg",
        Family::Arch | Family::Other => "grub-mkconfig -o /boot/grub/grub.cfg",
    }
}

/// The first configuration file that asks for this kernel argument.
pub(super) fn requested(sysroot: &Sysroot, argument: &str) -> Result<Option<String>, SysError> {
    let mut files = vec!["/etc/default/grub".to_owned()];
    for name in sysroot.list_if_present("/etc/default/grub.d")? {
        files.push(format!("/etc/default/grub.d/{name}"));
    }
    files.extend(
        ["/etc/kernel/cmdline", "/etc/default/limine", "/boot/limine.conf"].map(str::to_owned),
    );
    for entries in LOADER_ENTRIES {
        for name in sysroot.list_if_present(entries)? {
            files.push(format!("{entries}/{name}"));
        }
    }
    for file in files {
        // A /boot that only root may read is no place to be sure of.
        let Ok(Some(text)) = sysroot.read_if_present(&file) else { continue };
        let asks = text.lines().filter(|line| !line.trim_start().starts_with('#')).any(|line| {
            line.split(|c: char| c.is_whitespace() || "\"'".contains(c))
                .any(|word| word == argument || word.ends_with(&format!("={argument}")))
        });
        if asks {
            return Ok(Some(file));
        }
    }
    Ok(None)
}

/// What to do about an argument that is in a file and not in force.
pub(super) fn not_applied(sysroot: &Sysroot, place: &str) -> Result<String, SysError> {
    let loader = loader_of(sysroot)?;
    let (_, family) = distribution(sysroot)?;
    let is_grubs = place.starts_with("/etc/default/grub");
    Ok(match loader {
        Loader::SystemdBoot if is_grubs => {
            let entry = if is_proxmox_boot(sysroot) || sysroot.exists("/etc/kernel/cmdline") {
                "/etc/kernel/cmdline"
            } else {
                "the options line of its entry"
            };
            format!(
                "systemd-boot started this kernel and does not read {place}: put it into {entry}"
            )
        }
        Loader::Limine if is_grubs => {
            format!(
                "Limine started this kernel and does not read {place}: put it into its own file"
            )
        }
        Loader::Grub if place == "/etc/kernel/cmdline" => {
            format!(
                "GRUB started this kernel and does not read {place}: put it into /etc/default/grub"
            )
        }
        Loader::Grub if is_grubs => format!("{}, then reboot", update_grub(family)),
        _ if is_proxmox_boot(sysroot) => "proxmox-boot-tool refresh, then reboot".to_owned(),
        _ => "reboot; if that does not help, another entry was started".to_owned(),
    })
}

/// 42: which loader, and whether it did what its file says.
pub(super) fn loader(host: &Host<'_>) -> Answer {
    let loader = loader_of(host.sysroot)?;
    let (name, _) = distribution(host.sysroot)?;
    let initramfs = initramfs_of(host.sysroot);
    let fact = format!("{name}, started by {}, with {}", loader.name(), initramfs.name());
    let mut found = vec![Outcome::info(fact)];
    let cmdline = host.cmdline()?;
    for argument in ["intel_iommu=on", "iommu=pt", "amd_iommu=on"] {
        if cmdline.split_whitespace().any(|word| word == argument) {
            continue;
        }
        if let Some(place) = requested(host.sysroot, argument)? {
            found.push(Outcome::warn(
                format!("{argument} is asked for in {place}, but absent from /proc/cmdline"),
                not_applied(host.sysroot, &place)?,
            ));
        }
    }
    Ok(found)
}

/// 41: who takes the device at boot, and does the initramfs know.
pub(super) fn claim(host: &Host<'_>, function: &HostFunction) -> Answer {
    let Some(file) = claimed_in(host.sysroot, function)? else {
        let fact = "no rule gives it to vfio-pci at boot";
        let mut outcome = Outcome::info(fact);
        outcome.fix = "strait doctor --fix-plan prints the files for that".to_owned();
        return Ok(vec![outcome]);
    };
    let mut found = Vec::new();
    if function.is_on_vfio() {
        found.push(Outcome::pass(format!("{file} gives it to vfio-pci at boot")));
    } else {
        let driver = function.driver.as_deref().unwrap_or("nobody");
        let tool = rebuild(initramfs_of(host.sysroot));
        found.push(Outcome::warn(
            format!("{file} gives it to vfio-pci at boot, and yet {driver} has it"),
            format!("{driver} came first, mostly from the initramfs: {tool}, then reboot"),
        ));
    }
    if let Some(image) = kernels::installed(host.sysroot)?.initramfs {
        let (image_time, file_time) =
            (host.sysroot.modified(&image)?, host.sysroot.modified(&file)?);
        if image_time < file_time {
            found.push(Outcome::warn(
                format!("{image} is older than {file}"),
                rebuild(initramfs_of(host.sysroot)),
            ));
        }
    }
    Ok(found)
}

/// The command that makes the initramfs anew.
pub(super) const fn rebuild(tool: Initramfs) -> &'static str {
    match tool {
        Initramfs::Tools => "update-initramfs -u",
        Initramfs::Dracut => "dracut -f",
        Initramfs::Mkinitcpio => "mkinitcpio -P",
        Initramfs::Unknown => "rebuild the initramfs",
    }
}

/// Where modprobe and udev look, the administrator's first.
const CLAIMS: [&str; 6] = [
    "/etc/modprobe.d",
    "/etc/udev/rules.d",
    "/run/modprobe.d",
    "/run/udev/rules.d",
    "/usr/lib/modprobe.d",
    "/usr/lib/udev/rules.d",
];

fn claimed_in(sysroot: &Sysroot, function: &HostFunction) -> Result<Option<String>, SysError> {
    let (id, bdf) = (function.id(), function.bdf.to_string());
    for directory in CLAIMS {
        for name in sysroot.list_if_present(directory)? {
            let file = format!("{directory}/{name}");
            let text = sysroot.read_if_present(&file)?.unwrap_or_default();
            let claims = text
                .lines()
                .filter(|line| !line.trim_start().starts_with('#'))
                .map(str::to_lowercase)
                .any(|line| {
                    let is_vfio = line.contains("vfio-pci") || line.contains("vfio_pci");
                    is_vfio && (line.contains(&bdf) || line.contains("ids=") && line.contains(&id))
                });
            if claims {
                return Ok(Some(file));
            }
        }
    }
    let cmdline = sysroot.read_if_present("/proc/cmdline")?.unwrap_or_default();
    let ids = cmdline.split_whitespace().find(|word| word.starts_with("vfio-pci.ids="));
    Ok(ids.filter(|ids| ids.contains(&id)).map(|_| "/proc/cmdline".to_owned()))
}

/// 48: what to look for an update of.
pub(super) fn firmware(host: &Host<'_>) -> Answer {
    let text = |name: &str| host.text(&format!("/sys/class/dmi/id/{name}"));
    let (Some(version), Some(date)) = (text("bios_version")?, text("bios_date")?) else {
        return Ok(vec![Outcome::skip("the firmware does not tell its version", "")]);
    };
    let board = text("board_name")?.unwrap_or_else(|| "unknown board".to_owned());
    Ok(vec![Outcome::info(format!("{board}, firmware {version} of {date}"))])
}
