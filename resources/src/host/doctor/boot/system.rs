//! What kind of system this host is: its distribution, who keeps its configuration, who makes its initramfs.

use super::{
    super::super::sysroot::{SysError, Sysroot},
    loader::{self, Loader},
};

/// Distributions, by how they are set up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Family {
    Debian,
    Fedora,
    Suse,
    Arch,
    Other,
}

/// Who keeps the configuration of this host, that is, where a change has to be made to survive a reboot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Keeper {
    /// The files in /etc and /boot.
    Files,
    /// rpm-ostree: /usr and the boot loader's entries belong to its deployments.
    RpmOstree,
    /// NixOS: /etc and /boot are generated from configuration.nix.
    Nixos,
    /// Unraid: / is in memory, and the boot medium is mounted on /boot.
    Unraid,
    /// transactional-update: / is a read-only snapshot, and a change makes another one.
    Transactional,
    /// Another system that generates its files, or loses them. Its name, and where its kernel arguments are kept (empty
    /// where that is not known).
    Elsewhere(&'static str, &'static str),
}

/// Who makes the initramfs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Initramfs {
    /// initramfs-tools.
    Tools,
    Dracut,
    Mkinitcpio,
    Booster,
    /// Alpine's.
    Mkinitfs,
    Unknown,
}

/// All of it.
#[derive(Clone, Debug)]
pub(crate) struct System {
    /// The distribution's name of itself.
    pub(crate) name: String,
    pub(crate) family: Family,
    pub(crate) keeper: Keeper,
    pub(crate) loader: Loader,
    pub(crate) initramfs: Initramfs,
}

impl Initramfs {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Tools => "initramfs-tools",
            Self::Dracut => "dracut",
            Self::Mkinitcpio => "mkinitcpio",
            Self::Booster => "booster",
            Self::Mkinitfs => "mkinitfs",
            Self::Unknown => "unknown initramfs tool",
        }
    }
}

impl System {
    pub(crate) fn read(sysroot: &Sysroot) -> Result<Self, SysError> {
        let text = sysroot.read_if_present("/etc/os-release")?;
        let text = match text {
            Some(text) => text,
            None => sysroot.read_if_present("/usr/lib/os-release")?.unwrap_or_default(),
        };
        let value = |key: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='));
            line.unwrap_or_default().trim_matches(['"', '\'']).to_owned()
        };
        let ids = format!("{} {}", value("ID"), value("ID_LIKE")).to_lowercase();
        let ids: Vec<&str> = ids.split_whitespace().collect();
        let family = ids.iter().find_map(|word| match *word {
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
        let id = value("ID").to_lowercase();
        Ok(Self {
            name,
            family: family.unwrap_or(Family::Other),
            keeper: keeper_of(sysroot, &id)?,
            loader: loader::loader_of(sysroot)?,
            initramfs: initramfs_of(sysroot),
        })
    }

    /// What makes the initramfs anew, for the eyes of a reader.
    pub(crate) const fn rebuild(&self) -> &'static str {
        match self.keeper {
            Keeper::RpmOstree => "rpm-ostree initramfs --enable (or --disable and --enable again)",
            Keeper::Nixos => "nixos-rebuild boot",
            Keeper::Transactional => "transactional-update initrd",
            Keeper::Unraid | Keeper::Elsewhere(..) => {
                "rebuild the initramfs the way this system does"
            }
            Keeper::Files => rebuild(self.initramfs),
        }
    }
}

/// The command that makes the initramfs anew on a system that keeps its configuration in files.
pub(crate) const fn rebuild(tool: Initramfs) -> &'static str {
    match tool {
        Initramfs::Tools => "update-initramfs -u",
        Initramfs::Dracut => "dracut -f",
        Initramfs::Mkinitcpio => "mkinitcpio -P",
        Initramfs::Booster => "/usr/lib/booster/regenerate_images",
        Initramfs::Mkinitfs => "mkinitfs",
        Initramfs::Unknown => "rebuild the initramfs",
    }
}

/// Systems whose root file system is an image, by their ID in os-release.
const IMAGES: [(&str, &str, &str); 13] = [
    ("guix", "Guix System", "kernel-arguments of the operating-system declaration"),
    ("ubuntu-core", "Ubuntu Core", "the gadget snap"),
    ("steamos", "SteamOS", ""),
    ("vanilla", "Vanilla OS", ""),
    ("flatcar", "Flatcar", "/usr/share/oem/grub.cfg"),
    ("cos", "Container-Optimized OS", ""),
    ("talos", "Talos Linux", "machine.install.extraKernelArgs"),
    ("bottlerocket", "Bottlerocket", "settings.boot.kernel-parameters"),
    ("hassos", "Home Assistant OS", ""),
    ("haos", "Home Assistant OS", ""),
    ("xenenterprise", "XenServer", "xen-cmdline --set-dom0"),
    ("xcp-ng", "XCP-ng", "xen-cmdline --set-dom0"),
    ("kairos", "Kairos", ""),
];

/// The strongest sign first: what a running system shows of itself, then its name, then where its root lies.
fn keeper_of(sysroot: &Sysroot, id: &str) -> Result<Keeper, SysError> {
    let has = |path: &str| sysroot.exists(path);
    let cmdline = sysroot.read_if_present("/proc/cmdline")?.unwrap_or_default();
    let asks = |start: &str| cmdline.split_whitespace().any(|word| word.starts_with(start));
    if is_container(sysroot)? {
        let kept = "the kernel is that of the host around it";
        return Ok(Keeper::Elsewhere("a container", kept));
    }
    let release = sysroot.read_if_present("/proc/sys/kernel/osrelease")?.unwrap_or_default();
    if release.to_lowercase().contains("microsoft") {
        return Ok(Keeper::Elsewhere("WSL", "kernelCommandLine in .wslconfig"));
    }
    if has("/run/ostree-booted") || asks("ostree=") {
        return Ok(match has("/usr/bin/rpm-ostree") {
            true => Keeper::RpmOstree,
            false => Keeper::Elsewhere("an ostree system", "its deployments and image"),
        });
    }
    if id == "nixos" || has("/etc/NIXOS") || asks("init=/nix/store/") {
        return Ok(Keeper::Nixos);
    }
    if asks("gnu.system=") || asks("gnu.load=") {
        return Ok(Keeper::Elsewhere(IMAGES[0].1, IMAGES[0].2));
    }
    if id == "unraid-os" || has("/etc/unraid-version") {
        return Ok(Keeper::Unraid);
    }
    if let Some((_, name, kept)) = IMAGES.iter().find(|(image, ..)| *image == id) {
        return Ok(Keeper::Elsewhere(name, kept));
    }
    if asks("snapd_recovery_mode=") {
        return Ok(Keeper::Elsewhere("a system whose kernel is a snap", ""));
    }
    if has("/usr/bin/midclt") {
        let kept = "kernel_extra_options of system.advanced (midclt)";
        return Ok(Keeper::Elsewhere("TrueNAS", kept));
    }
    if has("/usr/sbin/transactional-update") && !lasts(sysroot, "/")? {
        return Ok(Keeper::Transactional);
    }
    if has("/usr/sbin/transactional-update")
        && ["microos", "sle-micro", "sl-micro", "leap-micro", "aeon", "kalpa"]
            .iter()
            .any(|name| id.contains(name))
    {
        return Ok(Keeper::Transactional);
    }
    let is_live = ["boot=live", "boot=casper", "rd.live.image", "archisobasedir=", "alpine_dev="];
    if is_live.iter().any(|word| asks(word)) {
        return Ok(Keeper::Elsewhere("a live system", "the medium that it starts from"));
    }
    Ok(match lasts(sysroot, "/etc")? {
        true => Keeper::Files,
        false => Keeper::Elsewhere("a system whose /etc is read-only or in memory", ""),
    })
}

/// What container managers leave for the programs inside.
fn is_container(sysroot: &Sysroot) -> Result<bool, SysError> {
    const SIGNS: [&str; 4] = [
        "/run/.containerenv",
        "/.dockerenv",
        "/run/systemd/container",
        "/run/host/container-manager",
    ];
    if SIGNS.iter().any(|path| sysroot.exists(path)) {
        return Ok(true);
    }
    // Only root may read the environment of process 1.
    let environment = sysroot.read_bytes("/proc/1/environ").unwrap_or_default();
    Ok(environment.split(|byte| *byte == 0).any(|variable| variable.starts_with(b"container=")))
}

/// Would a file that is written there be there after a reboot? Not on a file system that is mounted read-only, lies in
/// memory, or is a layer over an image. Yes where /proc/self/mountinfo says nothing about it.
pub(crate) fn lasts(sysroot: &Sysroot, path: &str) -> Result<bool, SysError> {
    const PASSING: [&str; 10] = [
        "tmpfs",
        "ramfs",
        "rootfs",
        "overlay",
        "overlayfs",
        "aufs",
        "squashfs",
        "erofs",
        "iso9660",
        "cramfs",
    ];
    let mounts = sysroot.read_if_present("/proc/self/mountinfo")?.unwrap_or_default();
    // Fields by proc_pid_mountinfo(5): the fifth is the mount point, the sixth its options; behind a lone dash the file
    // system's type, its source and its own options.
    let covers = |point: &str| {
        point == "/"
            || path.strip_prefix(point).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let mut best: Option<(usize, bool)> = None;
    for line in mounts.lines() {
        let fields: Vec<&str> = line.split(' ').collect();
        let Some(dash) = fields.iter().position(|field| *field == "-") else { continue };
        let (Some(point), Some(options), Some(kind)) =
            (fields.get(4), fields.get(5), fields.get(dash + 1))
        else {
            continue;
        };
        // Of several on one point the last one is on top.
        if covers(point) && best.is_none_or(|(len, _)| point.len() >= len) {
            let is_read_only = |options: &str| options.split(',').any(|option| option == "ro");
            let own = fields.get(dash + 3).copied().unwrap_or_default();
            let passes = PASSING.contains(kind) || is_read_only(options) || is_read_only(own);
            best = Some((point.len(), !passes));
        }
    }
    Ok(best.is_none_or(|(_, lasts)| lasts))
}

/// The tool whose program is there, else whose configuration; nobody where two are left.
fn initramfs_of(sysroot: &Sysroot) -> Initramfs {
    let any = |paths: &[&str]| paths.iter().any(|path| sysroot.exists(path));
    // Debian's dracut brings an update-initramfs of its own; mkinitramfs is initramfs-tools' alone.
    let programs = [
        (Initramfs::Mkinitcpio, any(&["/usr/bin/mkinitcpio"])),
        (Initramfs::Tools, any(&["/usr/sbin/mkinitramfs", "/usr/bin/mkinitramfs"])),
        (Initramfs::Dracut, any(&["/usr/bin/dracut", "/usr/sbin/dracut"])),
        (Initramfs::Booster, any(&["/usr/bin/booster"])),
        (Initramfs::Mkinitfs, any(&["/sbin/mkinitfs", "/usr/sbin/mkinitfs"])),
    ];
    let files = [
        (Initramfs::Mkinitcpio, any(&["/etc/mkinitcpio.conf"])),
        (Initramfs::Tools, any(&["/usr/sbin/update-initramfs", "/etc/initramfs-tools"])),
        (Initramfs::Dracut, any(&["/etc/dracut.conf", "/etc/dracut.conf.d"])),
        (Initramfs::Booster, any(&["/etc/booster.yaml"])),
        (Initramfs::Mkinitfs, any(&["/etc/mkinitfs"])),
    ];
    for signs in [programs, files] {
        let mut found = signs.iter().filter(|(_, there)| *there).map(|(tool, _)| *tool);
        match (found.next(), found.next()) {
            (Some(tool), None) => return tool,
            (Some(_), Some(_)) => return Initramfs::Unknown,
            (None, _) => {}
        }
    }
    Initramfs::Unknown
}

/// Proxmox VE keeps its own copies of kernels and arguments.
pub(crate) fn is_proxmox_boot(sysroot: &Sysroot) -> bool {
    sysroot.exists("/etc/kernel/proxmox-boot-uuids")
}
