//! How this machine boots: loader, distribution, initramfs; what was asked for there and what came of it.

pub(super) mod claim;
pub(super) mod loader;
mod modprobe;
pub(super) mod system;
mod udev;

use self::{
    loader::Loader,
    system::{Family, Keeper, System},
};
use super::{
    super::sysroot::{SysError, Sysroot},
    Answer, Host, Outcome,
};

/// Where entries of the Boot Loader Specification lie.
pub(super) const LOADER_ENTRIES: [&str; 3] =
    ["/boot/loader/entries", "/efi/loader/entries", "/boot/efi/loader/entries"];

/// The command after which GRUB's file is in force at the next boot: the distribution's own, else by the program and
/// the file that are there. `None` where neither is known.
pub(super) fn update_grub(sysroot: &Sysroot, family: Family) -> Option<String> {
    let any = |paths: &[&str]| paths.iter().any(|path| sysroot.exists(path));
    if family == Family::Debian || any(&["/usr/sbin/update-grub", "/usr/bin/update-grub"]) {
        return Some("update-grub".to_owned());
    }
    let is_2 = matches!(family, Family::Fedora | Family::Suse)
        || any(&["/usr/sbin/grub2-mkconfig", "/usr/bin/grub2-mkconfig"]);
    let is_known = is_2
        || family == Family::Arch
        || any(&["/usr/sbin/grub-mkconfig", "/usr/bin/grub-mkconfig", "/boot/grub/grub.cfg"]);
    let (command, usual) = match is_2 {
        true => ("grub2-mkconfig", "/boot/grub2/grub.cfg"),
        false => ("grub-mkconfig", "/boot/grub/grub.cfg"),
    };
    let there = loader::files(sysroot, Loader::Grub);
    let file = match there.as_slice() {
        [only] => only.as_str(),
        _ => usual,
    };
    is_known.then(|| format!("{command} -o {file}"))
}

/// The first configuration file that asks for this kernel argument.
pub(super) fn requested(sysroot: &Sysroot, argument: &str) -> Result<Option<String>, SysError> {
    let mut files = vec!["/etc/default/grub".to_owned()];
    for name in sysroot.list_if_present("/etc/default/grub.d")? {
        files.push(format!("/etc/default/grub.d/{name}"));
    }
    files.extend(["/etc/kernel/cmdline", "/etc/default/limine"].map(str::to_owned));
    for loader in [Loader::Limine, Loader::Refind, Loader::Syslinux] {
        files.extend(loader::files(sysroot, loader));
    }
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
    let system = System::read(sysroot)?;
    let is_grubs = place.starts_with("/etc/default/grub");
    let loader = system.loader.name();
    match system.keeper {
        Keeper::RpmOstree if is_grubs => {
            let fix = "put it there with rpm-ostree kargs --append-if-missing=";
            return Ok(format!("rpm-ostree does not read {place}: {fix}"));
        }
        Keeper::Nixos if is_grubs || place == "/etc/kernel/cmdline" => {
            return Ok(format!("NixOS does not read {place}: put it into boot.kernelParams"));
        }
        Keeper::Unraid | Keeper::Elsewhere(..) if is_grubs || place.starts_with("/etc/") => {
            return Ok(format!(
                "this system does not start with {place}: it keeps its configuration elsewhere"
            ));
        }
        _ => {}
    }
    Ok(match system.loader {
        Loader::SystemdBoot if is_grubs => {
            let entry = if system::is_proxmox_boot(sysroot) || sysroot.exists("/etc/kernel/cmdline")
            {
                "/etc/kernel/cmdline"
            } else {
                "the options line of its entry"
            };
            format!("{loader} started this kernel and does not read {place}: put it into {entry}")
        }
        Loader::Uki if is_grubs => format!(
            "{loader} was started, and {place} is not read for it: put it into /etc/kernel/cmdline and build the image anew"
        ),
        Loader::Refind | Loader::Syslinux | Loader::Limine | Loader::ZfsBootMenu if is_grubs => {
            format!(
                "{loader} started this kernel and does not read {place}: put it into its own file"
            )
        }
        Loader::Grub if place == "/etc/kernel/cmdline" && !is_sdbootutil(sysroot) => {
            format!(
                "GRUB started this kernel and does not read {place}: put it into /etc/default/grub"
            )
        }
        Loader::Grub if is_grubs && system.keeper == Keeper::Transactional => {
            "transactional-update grub.cfg, then reboot".to_owned()
        }
        Loader::Grub if is_grubs => match update_grub(sysroot, system.family) {
            Some(command) => format!("{command}, then reboot"),
            None => "make GRUB's configuration anew, then reboot".to_owned(),
        },
        Loader::Unknown if is_grubs => format!(
            "it is not known which boot loader started this kernel, and only GRUB reads {place}"
        ),
        Loader::Uki => "build the unified kernel image anew, then reboot".to_owned(),
        _ if system::is_proxmox_boot(sysroot) => {
            "proxmox-boot-tool refresh, then reboot".to_owned()
        }
        _ => "reboot; if that does not help, another entry was started".to_owned(),
    })
}

/// openSUSE's tool, which writes entries for systemd-boot and for GRUB from /etc/kernel/cmdline.
pub(super) fn is_sdbootutil(sysroot: &Sysroot) -> bool {
    sysroot.exists("/usr/bin/sdbootutil") && sysroot.exists("/etc/kernel/cmdline")
}

/// 42: which loader, and whether it did what its file says.
pub(super) fn loader(host: &Host<'_>) -> Answer {
    let system = System::read(host.sysroot)?;
    let kept = match system.keeper {
        Keeper::Elsewhere(name, _) => format!(" ({name})"),
        _ => String::new(),
    };
    let fact = format!(
        "{}{kept}, started by {}, with {}",
        system.name,
        system.loader.name(),
        system.initramfs.name()
    );
    let mut found = vec![Outcome::info(fact)];
    let cmdline = host.cmdline()?;
    for argument in ["intel_iommu=on", "iommu=pt", "amd_iommu=on", "pci=noats"] {
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

/// 48: what to look for an update of.
pub(super) fn firmware(host: &Host<'_>) -> Answer {
    let text = |name: &str| host.text(&format!("/sys/class/dmi/id/{name}"));
    let (Some(version), Some(date)) = (text("bios_version")?, text("bios_date")?) else {
        return Ok(vec![Outcome::skip("the firmware does not tell its version", "")]);
    };
    let board = text("board_name")?.unwrap_or_else(|| "unknown board".to_owned());
    Ok(vec![Outcome::info(format!("{board}, firmware {version} of {date}"))])
}
