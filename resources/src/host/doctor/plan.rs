//! `--fix-plan`: the exact lines for this distribution and boot loader. Printed, never run.

use std::fmt::Write as _;

use super::{
    super::{
        cpu::Vendor,
        driver,
        iommu::{self, State, WhyOff},
        pci::{self, HostFunction},
        sysroot::{SysError, Sysroot},
    },
    boot::{self, Family, Initramfs, Loader},
};

/// What would mend this host.
#[derive(Debug)]
pub struct Plan {
    /// `Debian GNU/Linux 12, GRUB, initramfs-tools`.
    pub system: String,
    /// In order; empty when nothing is to be done.
    pub steps: Vec<Step>,
}

/// One thing to do.
#[derive(Debug)]
pub struct Step {
    /// What for.
    pub title: String,
    /// Lines for a root shell; those that begin with `#` are for the reader.
    pub lines: Vec<String>,
}

/// Makes the plan for these devices.
pub fn fix_plan(sysroot: &Sysroot, chosen: &[HostFunction]) -> Result<Plan, SysError> {
    let (name, family) = boot::distribution(sysroot)?;
    let (loader, initramfs) = (boot::loader_of(sysroot)?, boot::initramfs_of(sysroot));
    let system = Boot { sysroot, family, loader, initramfs };
    let mut steps = Vec::new();
    // Pasted as a whole, nothing behind a reboot would run: it comes last.
    let iommu = system.iommu()?.map(|mut step| {
        let before = step.lines.len();
        step.lines.retain(|line| line != REBOOT);
        (before != step.lines.len(), step)
    });
    let (off, reboots) = (iommu.is_some(), iommu.as_ref().is_some_and(|(reboots, _)| *reboots));
    steps.extend(iommu.map(|(_, step)| step));
    let mut takeable = Vec::new();
    for function in chosen.iter().filter(|function| !function.is_bridge()) {
        if let Some(vmd) = function.behind {
            let lines = vec![
                format!("# {} cannot be passed without {vmd}, which it is behind", function.bdf),
                format!(
                    "# strait doctor {vmd} --fix-plan; or switch VMD off in the firmware setup"
                ),
            ];
            steps.push(Step { title: format!("Pass {vmd} in its place"), lines });
            continue;
        }
        match system.lost_without(function)? {
            Some(step) => steps.push(step),
            None => takeable.push(function),
        }
    }
    // Without an IOMMU vfio-pci takes nothing yet.
    if !off {
        steps.extend(bind_now(&takeable));
    }
    steps.extend(system.bind_at_boot(&takeable)?);
    if reboots {
        let title = "Start with all of that".to_owned();
        steps.push(Step { title, lines: vec![REBOOT.to_owned()] });
    }
    let system = format!("{name}, {}, {}", loader.name(), initramfs.name());
    Ok(Plan { system, steps })
}

const CMDLINE: &str = "/etc/kernel/cmdline";
const REBOOT: &str = "reboot";

enum Edit<'a> {
    Add(&'a str),
    Remove(&'a str),
}

fn is_grubs(place: &str) -> bool {
    place.starts_with("/etc/default/grub")
}

/// sed's command that takes a word out of a line.
fn cut(word: &str) -> String {
    format!("s/ ?\\b{word}\\b//")
}

struct Boot<'a> {
    sysroot: &'a Sysroot,
    family: Family,
    loader: Loader,
    initramfs: Initramfs,
}

impl Boot<'_> {
    fn iommu(&self) -> Result<Option<Step>, SysError> {
        let State::Off(why) = iommu::state(self.sysroot)? else { return Ok(None) };
        let vendor = iommu::vendor(self.sysroot)?;
        let option = match vendor {
            Vendor::Amd => "IOMMU (also called AMD-Vi)",
            _ => "VT-d (Intel VT for Directed I/O)",
        };
        let (title, lines) = match why {
            WhyOff::Firmware => (
                "Switch the IOMMU on".to_owned(),
                vec![format!("# in the firmware setup: {option}, then run strait doctor again")],
            ),
            WhyOff::Guest => (
                "Give this guest an IOMMU".to_owned(),
                vec![
                    "# on the outer host; QEMU: -device intel-iommu,intremap=on,caching-mode=on"
                        .to_owned(),
                ],
            ),
            WhyOff::ArgumentMissing => (
                "Ask the kernel to use the IOMMU".to_owned(),
                self.add_argument("intel_iommu=on", "intel_iommu=on iommu=pt")?,
            ),
            WhyOff::ArgumentOff(argument) => {
                (format!("Take {argument} out"), self.remove_argument(&argument)?)
            }
            WhyOff::Refused => (
                "Find out why the kernel does not use the IOMMU".to_owned(),
                vec!["dmesg | grep -e DMAR -e AMD-Vi -e IOMMU".to_owned()],
            ),
        };
        Ok(Some(Step { title, lines }))
    }

    fn add_argument(&self, first: &str, arguments: &str) -> Result<Vec<String>, SysError> {
        let asked = boot::requested(self.sysroot, first)?;
        let in_grubs = asked.as_deref().map(is_grubs);
        let is_asked_here = match self.loader {
            Loader::Grub => in_grubs == Some(true),
            _ => in_grubs == Some(false),
        };
        let mut lines = if is_asked_here {
            // It is there, and was not made to count.
            self.refresh()
        } else {
            self.edit(&Edit::Add(arguments))?
        };
        lines.push(REBOOT.to_owned());
        Ok(lines)
    }

    fn remove_argument(&self, argument: &str) -> Result<Vec<String>, SysError> {
        let mut lines = self.edit(&Edit::Remove(argument))?;
        lines.push(REBOOT.to_owned());
        Ok(lines)
    }

    /// What makes an edited file count at the next boot.
    fn refresh(&self) -> Vec<String> {
        let line = match self.loader {
            Loader::Grub => boot::update_grub(self.family),
            Loader::SystemdBoot if boot::is_proxmox_boot(self.sysroot) => {
                "proxmox-boot-tool refresh"
            }
            Loader::SystemdBoot if self.sysroot.exists(CMDLINE) => {
                "kernel-install add \"$(uname -r)\" \"/lib/modules/$(uname -r)/vmlinuz\""
            }
            _ => return Vec::new(),
        };
        vec![line.to_owned()]
    }

    fn edit(&self, edit: &Edit<'_>) -> Result<Vec<String>, SysError> {
        if self.loader != Loader::Limine && self.sysroot.exists("/usr/sbin/grubby") {
            return Ok(vec![match edit {
                Edit::Add(words) => format!("grubby --update-kernel=ALL --args=\"{words}\""),
                Edit::Remove(word) => {
                    format!("grubby --update-kernel=ALL --remove-args=\"{word}\"")
                }
            }]);
        }
        let line = match edit {
            Edit::Add(words) => format!("s/$/ {words}/"),
            Edit::Remove(word) => cut(word),
        };
        let mut lines = match self.loader {
            Loader::Grub => vec![self.edit_grub(edit)?],
            Loader::SystemdBoot
                if boot::is_proxmox_boot(self.sysroot) || self.sysroot.exists(CMDLINE) =>
            {
                vec![format!("sed -Ei '1 {line}' {CMDLINE}")]
            }
            Loader::SystemdBoot => {
                vec![format!("sed -Ei '/^options/ {line}' /boot/loader/entries/*.conf")]
            }
            Loader::Limine | Loader::Unknown => vec![match edit {
                Edit::Add(words) => {
                    format!("# add to the kernel arguments of the boot loader: {words}")
                }
                Edit::Remove(word) => {
                    format!("# take out of the kernel arguments of the boot loader: {word}")
                }
            }],
        };
        lines.extend(self.refresh());
        Ok(lines)
    }

    fn edit_grub(&self, edit: &Edit<'_>) -> Result<String, SysError> {
        const FILE: &str = "/etc/default/grub";
        Ok(match edit {
            Edit::Add(words) => {
                let text = self.sysroot.read_if_present(FILE)?.unwrap_or_default();
                if text.lines().any(|line| line.starts_with("GRUB_CMDLINE_LINUX=\"")) {
                    format!("sed -Ei 's/^(GRUB_CMDLINE_LINUX=\"[^\"]*)\"/\\1 {words}\"/' {FILE}")
                } else {
                    // The file is a shell script, whatever else it has.
                    format!("echo 'GRUB_CMDLINE_LINUX=\"$GRUB_CMDLINE_LINUX {words}\"' >> {FILE}")
                }
            }
            Edit::Remove(word) => {
                let place = boot::requested(self.sysroot, word)?.filter(|place| is_grubs(place));
                format!("sed -Ei '{}' {}", cut(word), place.as_deref().unwrap_or(FILE))
            }
        })
    }

    /// A device that the host needs is not to be taken by a line that was copied.
    fn lost_without(&self, function: &HostFunction) -> Result<Option<Step>, SysError> {
        if function.is_on_vfio() {
            return Ok(None);
        }
        let uses = driver::uses(self.sysroot, function)?;
        if uses.is_empty() {
            return Ok(None);
        }
        let title = format!("Free {} from the host first", function.bdf);
        Ok(Some(Step { title, lines: uses.iter().map(|used| format!("# {used}")).collect() }))
    }

    fn bind_at_boot(&self, functions: &[&HostFunction]) -> Result<Option<Step>, SysError> {
        const RULES: &str = "/etc/udev/rules.d/10-strait.rules";
        if functions.is_empty() {
            return Ok(None);
        }
        let mut lines = vec![format!("cat > {RULES} << 'END'")];
        for function in functions {
            lines.push(format!(
                "ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"{}\", ATTR{{driver_override}}=\"vfio-pci\"",
                function.bdf
            ));
        }
        lines.push("END".to_owned());
        lines.push("echo vfio-pci > /etc/modules-load.d/strait.conf".to_owned());
        let mut drivers: Vec<&str> = functions
            .iter()
            .filter(|function| !function.is_on_vfio())
            .filter_map(|function| function.driver.as_deref())
            .collect();
        drivers.sort_unstable();
        drivers.dedup();
        if !drivers.is_empty() {
            let mut softdeps = String::from("printf '%s\\n'");
            for driver in drivers {
                let _ = write!(softdeps, " 'softdep {driver} pre: vfio-pci'");
            }
            lines.push(softdeps + " > /etc/modprobe.d/strait.conf");
        }
        lines.extend(match self.initramfs {
            // Its udev hook takes no rules of /etc along, so a script does what the rule would.
            Initramfs::Tools => init_top(functions),
            Initramfs::Dracut => vec![format!(
                "printf '%s\\n' 'add_drivers+=\" vfio-pci \"' 'install_items+=\" {RULES} \"' > /etc/dracut.conf.d/10-strait.conf"
            )],
            Initramfs::Mkinitcpio => vec![
                "grep -q vfio-pci /etc/mkinitcpio.conf || sed -Ei 's/^MODULES=\\(/MODULES=(vfio-pci /' /etc/mkinitcpio.conf".to_owned(),
                format!("grep -q 10-strait /etc/mkinitcpio.conf || sed -Ei 's|^FILES=\\(|FILES=({RULES} |' /etc/mkinitcpio.conf"),
            ],
            Initramfs::Unknown => {
                vec![format!("# put vfio-pci and {RULES} into the initramfs, if there is one")]
            }
        });
        if self.initramfs != Initramfs::Unknown {
            lines.push(boot::rebuild(self.initramfs).to_owned());
        }
        lines.push(format!(
            "# undo: rm -f {RULES} /etc/modules-load.d/strait.conf /etc/modprobe.d/strait.conf{}, then rebuild the initramfs",
            match self.initramfs {
                Initramfs::Tools => format!(" {INIT_TOP}"),
                Initramfs::Dracut => " /etc/dracut.conf.d/10-strait.conf".to_owned(),
                Initramfs::Mkinitcpio | Initramfs::Unknown => String::new(),
            }
        ));
        let title = "Give the devices to vfio-pci at every boot".to_owned();
        Ok(Some(Step { title, lines }))
    }
}

const INIT_TOP: &str = "/etc/initramfs-tools/scripts/init-top/strait";

fn init_top(functions: &[&HostFunction]) -> Vec<String> {
    let mut lines = vec![
        "grep -qx vfio-pci /etc/initramfs-tools/modules || echo vfio-pci >> /etc/initramfs-tools/modules".to_owned(),
        format!("cat > {INIT_TOP} << 'END'"),
        "#!/bin/sh".to_owned(),
        "[ \"$1\" = prereqs ] && exit 0".to_owned(),
    ];
    for function in functions {
        let path = pci::path(function.bdf, "driver_override");
        lines.push(format!("[ ! -e {path} ] || echo vfio-pci > {path}"));
    }
    lines.extend(["END".to_owned(), format!("chmod +x {INIT_TOP}")]);
    lines
}

/// Until the next boot.
fn bind_now(functions: &[&HostFunction]) -> Option<Step> {
    let mut lines: Vec<String> = Vec::new();
    for function in functions.iter().filter(|function| !function.is_on_vfio()) {
        for line in driver::bind_commands(function.bdf, function.driver.as_deref()) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    let title = "Give the devices to vfio-pci now".to_owned();
    (!lines.is_empty()).then_some(Step { title, lines })
}
