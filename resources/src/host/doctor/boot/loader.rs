//! Which boot loader started the running kernel: by what it said of itself and what it left in the kernel's arguments.
//! Files of a loader are no proof, because several loaders can be installed.

use super::super::super::sysroot::{SysError, Sysroot};

/// Who started the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Loader {
    Grub,
    /// systemd-boot with an entry file.
    SystemdBoot,
    /// A unified kernel image, whoever started it: the arguments are inside.
    Uki,
    Refind,
    /// SYSLINUX and EXTLINUX.
    Syslinux,
    Limine,
    ZfsBootMenu,
    Unknown,
}

impl Loader {
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Grub => "GRUB",
            Self::SystemdBoot => "systemd-boot",
            Self::Uki => "a unified kernel image",
            Self::Refind => "rEFInd",
            Self::Syslinux => "SYSLINUX",
            Self::Limine => "Limine",
            Self::ZfsBootMenu => "ZFSBootMenu",
            Self::Unknown => "unknown boot loader",
        }
    }
}

/// Where an EFI system partition or an extended boot partition is mounted.
pub(crate) const PARTITIONS: [&str; 3] = ["/boot", "/efi", "/boot/efi"];

const SYSLINUX: [&str; 5] = [
    "/boot/syslinux/syslinux.cfg",
    "/boot/syslinux.cfg",
    "/boot/extlinux/extlinux.conf",
    "/boot/extlinux.conf",
    "/boot/EFI/syslinux/syslinux.cfg",
];

/// Configuration files of a loader, those that are there.
pub(crate) fn files(sysroot: &Sysroot, loader: Loader) -> Vec<String> {
    let everywhere = |names: &[&str]| -> Vec<String> {
        let partition = |at: &str| names.iter().map(|name| format!("{at}/{name}")).collect();
        PARTITIONS.iter().flat_map(|at| -> Vec<String> { partition(at) }).collect()
    };
    let candidates = match loader {
        Loader::Grub => vec!["/boot/grub/grub.cfg".to_owned(), "/boot/grub2/grub.cfg".to_owned()],
        Loader::SystemdBoot => everywhere(&["loader/loader.conf"]),
        Loader::Refind => [
            vec!["/boot/refind_linux.conf".to_owned()],
            everywhere(&["EFI/refind/refind.conf", "EFI/BOOT/refind.conf"]),
        ]
        .concat(),
        Loader::Syslinux => SYSLINUX.map(str::to_owned).to_vec(),
        Loader::Limine => everywhere(&[
            "limine.conf",
            "limine/limine.conf",
            "EFI/limine/limine.conf",
            "limine.cfg",
        ]),
        Loader::ZfsBootMenu => [
            vec!["/etc/zfsbootmenu".to_owned()],
            everywhere(&["EFI/ZBM", "EFI/zbm", "EFI/zfsbootmenu"]),
        ]
        .concat(),
        Loader::Uki | Loader::Unknown => Vec::new(),
    };
    candidates.into_iter().filter(|path| sysroot.exists(path)).collect()
}

/// An EFI variable of the Boot Loader Interface, a text; `None` when it is not there.
fn variable(sysroot: &Sysroot, name: &str) -> Result<Option<String>, SysError> {
    const INTERFACE: &str = "4a67b082-0a4c-41cf-b6c7-440b29bb8c4f";
    let path = format!("/sys/firmware/efi/efivars/{name}-{INTERFACE}");
    if !sysroot.exists(&path) {
        return Ok(None);
    }
    // Four bytes of attributes, then UTF-16.
    let bytes = sysroot.read_bytes(&path)?;
    let text = bytes.get(4..).unwrap_or_default().iter().filter(|byte| **byte != 0);
    Ok(Some(text.map(|byte| char::from(*byte)).collect()))
}

/// The entry that systemd-boot started, `arch.conf` or `arch-linux.efi`.
pub(crate) fn selected_entry(sysroot: &Sysroot) -> Result<Option<String>, SysError> {
    variable(sysroot, "LoaderEntrySelected")
}

/// Which loader started the running kernel. `Unknown` where the signs contradict each other or say too little.
pub(crate) fn loader_of(sysroot: &Sysroot) -> Result<Loader, SysError> {
    let has = |loader| !files(sysroot, loader).is_empty();
    let said = variable(sysroot, "LoaderInfo")?.unwrap_or_default();
    let said = [
        ("systemd-boot", Loader::SystemdBoot),
        ("GRUB", Loader::Grub),
        ("Limine", Loader::Limine),
        ("rEFInd", Loader::Refind),
    ]
    .into_iter()
    .find(|(word, _)| said.contains(word))
    .map(|(_, loader)| loader);
    let cmdline = sysroot.read_if_present("/proc/cmdline")?.unwrap_or_default();
    let value = |key: &str| cmdline.split_whitespace().find_map(|word| word.strip_prefix(key));
    let (image, initrd) = (value("BOOT_IMAGE="), value("initrd="));
    let is_grubs = has(Loader::Grub) || sysroot.exists("/etc/default/grub");
    // GRUB always passes BOOT_IMAGE= and never initrd=; SYSLINUX passes both, initrd= when its entry has an INITRD
    // line. A loader that had started GRUB would have left its own name: the last in the chain counts.
    if image.is_some() {
        return Ok(match (initrd, said) {
            (None, Some(loader)) if loader != Loader::Grub && !has(Loader::Grub) => {
                systemd_or(sysroot, loader, initrd)?
            }
            (None, _) if is_grubs && (has(Loader::Grub) || !has(Loader::Syslinux)) => Loader::Grub,
            (_, None) if has(Loader::Syslinux) => Loader::Syslinux,
            _ => Loader::Unknown,
        });
    }
    // It starts kernels by kexec and leaves nothing behind but the name of the root file system.
    if has(Loader::ZfsBootMenu) && value("root=zfs:").or(value("root=ZFS=")).is_some() {
        return Ok(Loader::ZfsBootMenu);
    }
    if let Some(loader) = said {
        // Without BOOT_IMAGE= GRUB has started something that started this kernel.
        return match loader {
            Loader::Grub => Ok(Loader::Unknown),
            loader => systemd_or(sysroot, loader, initrd),
        };
    }
    if variable(sysroot, "StubInfo")?.is_some() {
        return Ok(Loader::Uki);
    }
    let mut installed = [Loader::SystemdBoot, Loader::Refind, Loader::Limine, Loader::Syslinux]
        .into_iter()
        .filter(|loader| has(*loader));
    match (installed.next(), installed.next()) {
        (Some(loader), None) => systemd_or(sysroot, loader, initrd),
        _ => Ok(Loader::Unknown),
    }
}

/// systemd-boot starts entry files and unified kernel images: which was it? Every other loader is itself.
fn systemd_or(sysroot: &Sysroot, loader: Loader, initrd: Option<&str>) -> Result<Loader, SysError> {
    if loader != Loader::SystemdBoot {
        return Ok(loader);
    }
    let selected = selected_entry(sysroot)?.unwrap_or_default();
    if selected.ends_with(".conf") {
        return Ok(Loader::SystemdBoot);
    }
    if selected.ends_with(".efi") || variable(sysroot, "StubInfo")?.is_some() {
        return Ok(Loader::Uki);
    }
    let mut has_entries = false;
    for directory in super::LOADER_ENTRIES {
        has_entries |= !sysroot.list_if_present(directory)?.is_empty();
    }
    Ok(match (has_entries, makes_ukis(sysroot)?) {
        // The argument comes from an entry's initrd line.
        (_, _) if initrd.is_some() => Loader::SystemdBoot,
        (true, true) => Loader::Unknown,
        (false, true) => Loader::Uki,
        (_, false) => Loader::SystemdBoot,
    })
}

/// Does this host make unified kernel images?
fn makes_ukis(sysroot: &Sysroot) -> Result<bool, SysError> {
    for at in PARTITIONS {
        let images = sysroot.list_if_present(&format!("{at}/EFI/Linux")).unwrap_or_default();
        if images.iter().any(|name| name.ends_with(".efi")) {
            return Ok(true);
        }
    }
    Ok(uki_maker(sysroot)?.is_some())
}

/// Who makes unified kernel images on this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UkiMaker {
    Mkinitcpio,
    KernelInstall,
    Dracut,
}

/// By configuration; `None` where nobody is known to.
pub(crate) fn uki_maker(sysroot: &Sysroot) -> Result<Option<UkiMaker>, SysError> {
    let says = |path: &str, wanted: &dyn Fn(&str) -> bool| -> bool {
        let text = sysroot.read_if_present(path).ok().flatten().unwrap_or_default();
        text.lines().map(str::trim).filter(|line| !line.starts_with('#')).any(wanted)
    };
    for name in sysroot.list_if_present("/etc/mkinitcpio.d")? {
        let is_uki =
            |line: &str| line.split_once('=').is_some_and(|(key, _)| key.ends_with("_uki"));
        if says(&format!("/etc/mkinitcpio.d/{name}"), &is_uki) {
            return Ok(Some(UkiMaker::Mkinitcpio));
        }
    }
    if says("/etc/kernel/install.conf", &|line| line.replace(' ', "") == "layout=uki") {
        return Ok(Some(UkiMaker::KernelInstall));
    }
    let mut files = vec!["/etc/dracut.conf".to_owned()];
    for name in sysroot.list_if_present("/etc/dracut.conf.d")? {
        files.push(format!("/etc/dracut.conf.d/{name}"));
    }
    let is_uefi = |line: &str| line.replace(['"', ' '], "").starts_with("uefi=yes");
    Ok(files.iter().any(|file| says(file, &is_uefi)).then_some(UkiMaker::Dracut))
}
