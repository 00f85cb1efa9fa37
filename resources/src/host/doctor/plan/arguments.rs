//! The lines that add a kernel argument or take one out, for the place where this host keeps them. A file is edited
//! only where the running kernel was started from it; where that is not sure, the plan says it in words.

use super::{
    super::{
        super::sysroot::{SysError, Sysroot},
        boot::{
            self, LOADER_ENTRIES,
            loader::{self, Loader, UkiMaker},
            system::{self, Keeper, System},
        },
    },
    REBOOT, is_grubs,
};

const CMDLINE: &str = "/etc/kernel/cmdline";
const GRUB: &str = "/etc/default/grub";

#[derive(Clone, Copy)]
enum Edit<'a> {
    Add(&'a str),
    Remove(&'a str),
}

/// sed's command that takes a word out of a line.
fn cut(word: &str) -> String {
    format!("s/ ?\\b{word}\\b//")
}

/// Lines that add `arguments`, of which `first` may be asked for somewhere already.
pub(super) fn add(
    sysroot: &Sysroot,
    system: &System,
    first: &str,
    arguments: &str,
) -> Result<Vec<String>, SysError> {
    let place = Place { sysroot, system };
    let asked = boot::requested(sysroot, first)?;
    let in_grubs = asked.as_deref().map(is_grubs);
    let is_asked_here = match (system.keeper, system.loader) {
        (Keeper::Files | Keeper::Transactional, Loader::Grub) => in_grubs == Some(true),
        (Keeper::Files | Keeper::Unraid, loader) => {
            loader != Loader::Unknown && in_grubs == Some(false)
        }
        _ => false,
    };
    let lines = match is_asked_here {
        // It is there, and was not made to count.
        true => Some(place.refresh()?),
        false => place.edit(Edit::Add(arguments))?,
    };
    Ok(finished(lines, Edit::Add(arguments), system, is_asked_here))
}

/// Lines that take `argument` out.
pub(super) fn remove(
    sysroot: &Sysroot,
    system: &System,
    argument: &str,
) -> Result<Vec<String>, SysError> {
    let edit = Edit::Remove(argument);
    let lines = Place { sysroot, system }.edit(edit)?;
    Ok(finished(lines, edit, system, false))
}

/// Without a line that changes something there is nothing to reboot for.
fn finished(
    lines: Option<Vec<String>>,
    edit: Edit<'_>,
    system: &System,
    is_asked: bool,
) -> Vec<String> {
    let mut lines = lines.unwrap_or_else(|| in_words(edit, system));
    if is_asked || lines.iter().any(|line| !line.starts_with('#')) {
        lines.push(REBOOT.to_owned());
    }
    lines
}

fn in_words(edit: Edit<'_>, system: &System) -> Vec<String> {
    let what = match edit {
        Edit::Add(words) => format!("add {words} to the kernel command line"),
        Edit::Remove(word) => format!("take {word} out of the kernel command line"),
    };
    let mut lines = vec![format!(
        "# this system keeps its configuration elsewhere: {what} the way that system does"
    )];
    match system.keeper {
        Keeper::Nixos => {
            lines = vec![format!(
                "# in the NixOS configuration, then nixos-rebuild boot: {}",
                match edit {
                    Edit::Add(words) => {
                        let quoted: Vec<String> =
                            words.split(' ').map(|word| format!("\"{word}\"")).collect();
                        format!("boot.kernelParams = [ {} ];", quoted.join(" "))
                    }
                    Edit::Remove(word) => format!("take \"{word}\" out of boot.kernelParams"),
                }
            )];
        }
        Keeper::Elsewhere(name, "") => lines.push(format!("# (this is {name})")),
        Keeper::Elsewhere(name, kept) => lines.push(format!("# (this is {name}: {kept})")),
        _ => match system.loader {
            Loader::Unknown => {}
            Loader::ZfsBootMenu => lines.push(
                "# (ZFSBootMenu: property org.zfsbootmenu:commandline of the boot environment)"
                    .to_owned(),
            ),
            loader => lines.push(format!("# ({} started the running kernel)", loader.name())),
        },
    }
    lines
}

struct Place<'a> {
    sysroot: &'a Sysroot,
    system: &'a System,
}

impl Place<'_> {
    fn has(&self, path: &str) -> bool {
        self.sysroot.exists(path)
    }

    /// `None`: only words are sure.
    fn edit(&self, edit: Edit<'_>) -> Result<Option<Vec<String>>, SysError> {
        match self.system.keeper {
            Keeper::RpmOstree => Ok(Some(rpm_ostree(edit))),
            Keeper::Nixos | Keeper::Elsewhere(..) => Ok(None),
            Keeper::Unraid => self.edit_syslinux(edit),
            Keeper::Transactional => match self.system.loader {
                Loader::Grub if self.has(GRUB) && !boot::is_sdbootutil(self.sysroot) => {
                    Ok(Some([vec![self.grub_line(edit)?], self.refresh()?].concat()))
                }
                _ => Ok(None),
            },
            Keeper::Files => self.edit_files(edit),
        }
    }

    fn edit_files(&self, edit: Edit<'_>) -> Result<Option<Vec<String>>, SysError> {
        if self.has("/usr/bin/clr-boot-manager") {
            return Ok(Some(clr_boot_manager(edit)));
        }
        if boot::is_sdbootutil(self.sysroot)
            && matches!(self.system.loader, Loader::Grub | Loader::SystemdBoot)
            && self.entries()?.iter().any(|entry| entry.is_booted)
        {
            return self.edit_line(edit, CMDLINE, "1 ");
        }
        let grubby = ["/usr/sbin/grubby", "/usr/bin/grubby"].iter().any(|path| self.has(path));
        match self.system.loader {
            Loader::Grub | Loader::SystemdBoot if grubby => Ok(Some(vec![match edit {
                Edit::Add(words) => format!("grubby --update-kernel=ALL --args=\"{words}\""),
                Edit::Remove(word) => {
                    format!("grubby --update-kernel=ALL --remove-args=\"{word}\"")
                }
            }])),
            Loader::Grub => self.edit_grub(edit),
            Loader::SystemdBoot => self.edit_systemd_boot(edit),
            Loader::Uki => self.edit_uki(edit),
            Loader::Refind => self.edit_refind(edit),
            Loader::Syslinux => self.edit_syslinux(edit),
            Loader::Limine => self.edit_limine(edit),
            Loader::ZfsBootMenu | Loader::Unknown => Ok(None),
        }
    }

    /// What makes an edited file count at the next boot.
    fn refresh(&self) -> Result<Vec<String>, SysError> {
        let lines: Vec<String> = match (self.system.keeper, self.system.loader) {
            (Keeper::Transactional, Loader::Grub) => {
                vec!["transactional-update --continue grub.cfg".to_owned()]
            }
            (Keeper::Unraid, _) => Vec::new(),
            (_, Loader::Grub | Loader::SystemdBoot) if boot::is_sdbootutil(self.sysroot) => {
                vec!["sdbootutil update-all-entries".to_owned()]
            }
            (_, Loader::Grub) => {
                let mut lines: Vec<String> =
                    boot::update_grub(self.sysroot, self.system.family).into_iter().collect();
                if system::is_proxmox_boot(self.sysroot) {
                    lines.push("proxmox-boot-tool refresh".to_owned());
                }
                lines
            }
            (_, Loader::SystemdBoot) if system::is_proxmox_boot(self.sysroot) => {
                vec!["proxmox-boot-tool refresh".to_owned()]
            }
            (_, Loader::SystemdBoot) => {
                let made = self.entries()?.iter().any(|entry| entry.is_booted && entry.is_made);
                if made { vec![self.kernel_install()?] } else { Vec::new() }
            }
            (_, Loader::Uki) => self.rebuild_uki()?.into_iter().collect(),
            _ => Vec::new(),
        };
        Ok(lines)
    }

    fn kernel_install(&self) -> Result<String, SysError> {
        let kernel = super::super::super::kernels::installed(self.sysroot)?.kernel;
        let kernel = kernel.unwrap_or_else(|| "/lib/modules/$(uname -r)/vmlinuz".to_owned());
        Ok(format!("kernel-install add \"$(uname -r)\" \"{kernel}\""))
    }

    /// An edit of those lines of a file that sed's `address` picks; `None` where the file would not last.
    fn edit_line(
        &self,
        edit: Edit<'_>,
        file: &str,
        address: &str,
    ) -> Result<Option<Vec<String>>, SysError> {
        if !self.has(file) || !system::lasts(self.sysroot, file)? {
            return Ok(None);
        }
        let line = match edit {
            Edit::Add(words) => format!("s/$/ {words}/"),
            Edit::Remove(word) => cut(word),
        };
        let mut lines = vec![format!("sed -Ei '{address}{line}' {file}")];
        lines.extend(self.refresh()?);
        Ok(Some(lines))
    }

    fn edit_grub(&self, edit: Edit<'_>) -> Result<Option<Vec<String>>, SysError> {
        let refresh = self.refresh()?;
        if refresh.is_empty() || !self.has(GRUB) || !system::lasts(self.sysroot, "/boot")? {
            return Ok(None);
        }
        Ok(Some([vec![self.grub_line(edit)?], refresh].concat()))
    }

    fn grub_line(&self, edit: Edit<'_>) -> Result<String, SysError> {
        Ok(match edit {
            Edit::Add(words) => {
                let text = self.sysroot.read_if_present(GRUB)?.unwrap_or_default();
                if text.lines().any(|line| line.starts_with("GRUB_CMDLINE_LINUX=\"")) {
                    format!("sed -Ei 's/^(GRUB_CMDLINE_LINUX=\"[^\"]*)\"/\\1 {words}\"/' {GRUB}")
                } else {
                    // The file is a shell script, whatever else it has.
                    format!("echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {words}\"' >> {GRUB}")
                }
            }
            Edit::Remove(word) => {
                let place = boot::requested(self.sysroot, word)?.filter(|place| is_grubs(place));
                format!("sed -Ei '{}' {}", cut(word), place.as_deref().unwrap_or(GRUB))
            }
        })
    }

    fn edit_systemd_boot(&self, edit: Edit<'_>) -> Result<Option<Vec<String>>, SysError> {
        if system::is_proxmox_boot(self.sysroot) {
            return self.edit_line(edit, CMDLINE, "1 ");
        }
        let entries = self.entries()?;
        let booted: Vec<&Entry> = entries.iter().filter(|entry| entry.is_booted).collect();
        if booted.is_empty() {
            return Ok(None);
        }
        if self.has("/usr/bin/kernelstub") {
            return Ok(Some(match edit {
                Edit::Add(words) => vec![format!("kernelstub -a \"{words}\"")],
                Edit::Remove(word) => vec![format!("kernelstub -d \"{word}\"")],
            }));
        }
        if booted.iter().any(|entry| entry.is_made) {
            return self.edit_line(edit, CMDLINE, "1 ");
        }
        let mut lines = Vec::new();
        for entry in booted {
            let Some(more) = self.edit_line(edit, &entry.file, "/^options/ ")? else {
                return Ok(None);
            };
            lines.extend(more);
        }
        Ok(Some(lines))
    }

    fn edit_uki(&self, edit: Edit<'_>) -> Result<Option<Vec<String>>, SysError> {
        // An image whose arguments come from elsewhere would not change.
        if self.rebuild_uki()?.is_none() || !self.was_started_by(CMDLINE, |line| Some(line))? {
            return Ok(None);
        }
        self.edit_line(edit, CMDLINE, "1 ")
    }

    fn rebuild_uki(&self) -> Result<Option<String>, SysError> {
        Ok(match loader::uki_maker(self.sysroot)? {
            Some(UkiMaker::Mkinitcpio) => {
                let mut has_own = false;
                for name in self.sysroot.list_if_present("/etc/mkinitcpio.d")? {
                    let file = format!("/etc/mkinitcpio.d/{name}");
                    let text = self.sysroot.read_if_present(&file)?.unwrap_or_default();
                    let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
                    has_own |= lines.into_iter().any(|line| line.contains("cmdline"));
                }
                (!has_own).then(|| "mkinitcpio -P".to_owned())
            }
            Some(UkiMaker::KernelInstall) => Some(self.kernel_install()?),
            Some(UkiMaker::Dracut) | None => None,
        })
    }

    fn edit_refind(&self, edit: Edit<'_>) -> Result<Option<Vec<String>>, SysError> {
        const FILE: &str = "/boot/refind_linux.conf";
        // A line is "name of the entry" "its arguments".
        if !self.was_started_by(FILE, |line| line.split('"').nth(3))?
            || !system::lasts(self.sysroot, FILE)?
        {
            return Ok(None);
        }
        let line = match edit {
            Edit::Add(words) => {
                format!("s/^([[:space:]]*\"[^\"]*\"[[:space:]]+\"[^\"]*)\"/\\1 {words}\"/")
            }
            Edit::Remove(word) => cut(word),
        };
        Ok(Some(vec![format!("sed -Ei '{line}' {FILE}")]))
    }

    /// The lines `append` of SYSLINUX's configuration, those with an initramfs where there is one.
    fn edit_syslinux(&self, edit: Edit<'_>) -> Result<Option<Vec<String>>, SysError> {
        const UPDATE: &str = "/etc/update-extlinux.conf";
        if self.system.keeper == Keeper::Files && self.has(UPDATE) {
            let line = match edit {
                Edit::Add(words) => format!("s/^(default_kernel_opts=\"[^\"]*)\"/\\1 {words}\"/"),
                Edit::Remove(word) => format!("/^default_kernel_opts=/ {}", cut(word)),
            };
            return Ok(Some(vec![
                format!("sed -Ei '{line}' {UPDATE}"),
                "update-extlinux".to_owned(),
            ]));
        }
        // Debian's u-boot-update writes the file anew.
        if self.has("/etc/default/u-boot") {
            return Ok(None);
        }
        let append = |line: &str| -> Option<usize> {
            let (word, _) = line.split_once(char::is_whitespace)?;
            word.eq_ignore_ascii_case("append").then_some(word.len())
        };
        for file in loader::files(self.sysroot, Loader::Syslinux) {
            if self.was_started_by(&file, |line| line.get(append(line)?..))? {
                let text = self.sysroot.read_if_present(&file)?.unwrap_or_default();
                let has_initrd = text.lines().any(|line| line.contains("initrd="));
                let more = if has_initrd { ".*initrd=" } else { "" };
                let address = format!("/^[[:space:]]*append[[:space:]]{more}/I ");
                return self.edit_line(edit, &file, &address);
            }
        }
        Ok(None)
    }

    fn edit_limine(&self, edit: Edit<'_>) -> Result<Option<Vec<String>>, SysError> {
        const FILE: &str = "/etc/default/limine";
        let tool = ["limine-update", "limine-mkinitcpio"]
            .into_iter()
            .find(|tool| self.has(&format!("/usr/bin/{tool}")));
        Ok(match (tool, edit) {
            (Some(tool), Edit::Add(words)) if self.has(FILE) => Some(vec![
                format!("echo 'KERNEL_CMDLINE[default]+=\" {words}\"' >> {FILE}"),
                tool.to_owned(),
            ]),
            (Some(tool), Edit::Remove(word)) if self.has(FILE) => {
                Some(vec![format!("sed -Ei '{}' {FILE}", cut(word)), tool.to_owned()])
            }
            _ => None,
        })
    }

    /// Has a line of this file arguments with which the running kernel was started?
    fn was_started_by(
        &self,
        file: &str,
        arguments: impl Fn(&str) -> Option<&str>,
    ) -> Result<bool, SysError> {
        let Ok(Some(text)) = self.sysroot.read_if_present(file) else { return Ok(false) };
        let cmdline = self.sysroot.read_if_present("/proc/cmdline")?.unwrap_or_default();
        let lines = text.lines().map(str::trim).filter(|line| !line.starts_with('#'));
        Ok(lines.filter_map(arguments).any(|options| is_among(options, &cmdline)))
    }

    /// The entries of the Boot Loader Specification.
    fn entries(&self) -> Result<Vec<Entry>, SysError> {
        let selected = loader::selected_entry(self.sysroot)?;
        let release = self.sysroot.read_if_present("/proc/sys/kernel/osrelease")?;
        let mut tokens = Vec::new();
        for file in ["/etc/kernel/entry-token", "/etc/machine-id"] {
            tokens.extend(self.sysroot.read_if_present(file)?.filter(|token| !token.is_empty()));
        }
        let mut found = Vec::new();
        for directory in LOADER_ENTRIES {
            for name in self.sysroot.list_if_present(directory)? {
                let Some(stem) = name.strip_suffix(".conf") else { continue };
                let file = format!("{directory}/{name}");
                let is_booted = match &selected {
                    Some(selected) => *selected == name,
                    None => self.was_started_by(&file, |line| line.strip_prefix("options"))?,
                };
                // kernel-install and sdbootutil call an entry by the machine and the kernel's release.
                let is_made = release.as_deref().is_some_and(|release| stem.contains(release))
                    && (self.has(CMDLINE)
                        || tokens.iter().any(|token| stem.contains(token.trim())));
                found.push(Entry { file, is_booted, is_made });
            }
        }
        Ok(found)
    }
}

struct Entry {
    file: String,
    /// The running kernel was started by it.
    is_booted: bool,
    /// A program writes it anew for every kernel.
    is_made: bool,
}

/// Are all of these arguments among those of the running kernel? What the plan itself may have added is left out, because
/// it need not be in force yet.
fn is_among(options: &str, cmdline: &str) -> bool {
    let ours = ["intel_iommu=", "amd_iommu=", "iommu="];
    let mut words = options.split_whitespace().peekable();
    words.peek().is_some()
        && words
            .filter(|word| !ours.iter().any(|own| word.starts_with(own)))
            .all(|word| cmdline.split_whitespace().any(|own| own == word))
}

fn rpm_ostree(edit: Edit<'_>) -> Vec<String> {
    let arguments: Vec<String> = match edit {
        Edit::Add(words) => {
            words.split(' ').map(|word| format!("--append-if-missing={word}")).collect()
        }
        Edit::Remove(word) => vec![format!("--delete-if-present={word}")],
    };
    vec![format!("rpm-ostree kargs {}", arguments.join(" "))]
}

/// Clear Linux and Solus.
fn clr_boot_manager(edit: Edit<'_>) -> Vec<String> {
    let (directory, words) = match edit {
        Edit::Add(words) => ("cmdline.d", words),
        Edit::Remove(word) => ("cmdline-removal.d", word),
    };
    vec![
        format!("mkdir -p /etc/kernel/{directory}"),
        format!("echo '{words}' > /etc/kernel/{directory}/strait.conf"),
        "clr-boot-manager update".to_owned(),
    ]
}
