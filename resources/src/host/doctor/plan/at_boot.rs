//! The files that give devices to vfio-pci at every boot, for the way in which this host keeps files.

use std::fmt::Write as _;

use super::{
    super::{
        super::{
            pci::{self, HostFunction},
            sysroot::{SysError, Sysroot},
        },
        boot::{
            loader::{self, Loader, UkiMaker},
            system::{self, Initramfs, Keeper, System},
        },
    },
    Step,
};

const RULES: &str = "/etc/udev/rules.d/10-strait.rules";
const MODULES: &str = "/etc/modules-load.d/strait.conf";
const SOFTDEPS: &str = "/etc/modprobe.d/strait.conf";
const DRACUT: &str = "/etc/dracut.conf.d/10-strait.conf";
const INIT_TOP: &str = "/etc/initramfs-tools/scripts/init-top/strait";

/// The step, for a host that keeps its configuration as `system` says.
pub(super) fn step(
    sysroot: &Sysroot,
    system: &System,
    functions: &[&HostFunction],
) -> Result<Option<Step>, SysError> {
    if functions.is_empty() {
        return Ok(None);
    }
    let lines = match system.keeper {
        Keeper::Files => on_files(sysroot, system, functions)?,
        Keeper::Transactional => transactional(system, functions),
        Keeper::RpmOstree => rpm_ostree(functions),
        Keeper::Nixos => nixos(functions),
        Keeper::Unraid => unraid(sysroot, functions),
        Keeper::Elsewhere(..) => in_words(functions),
    };
    let title = "Give the devices to vfio-pci at every boot".to_owned();
    Ok(Some(Step { title, lines }))
}

fn addresses(functions: &[&HostFunction]) -> String {
    let all: Vec<String> = functions.iter().map(|function| function.bdf.to_string()).collect();
    all.join(" ")
}

/// Each pair of IDs once.
fn ids(functions: &[&HostFunction]) -> String {
    let mut all: Vec<String> = functions.iter().map(|function| function.id()).collect();
    all.sort_unstable();
    all.dedup();
    all.join(",")
}

fn rule(function: &HostFunction) -> String {
    format!(
        "ACTION==\"add\", SUBSYSTEM==\"pci\", KERNEL==\"{}\", ATTR{{driver_override}}=\"vfio-pci\"",
        function.bdf
    )
}

fn in_words(functions: &[&HostFunction]) -> Vec<String> {
    vec![
        format!(
            "# this system keeps its configuration elsewhere: let vfio-pci have {} at boot the way that system does",
            addresses(functions)
        ),
        format!(
            "# (mostly vfio-pci.ids={} on the kernel command line; other cards with these IDs go with them)",
            ids(functions)
        ),
    ]
}

/// Files that udev and modprobe read on every distribution.
fn common(functions: &[&HostFunction]) -> Vec<String> {
    let mut lines = vec![format!("cat > {RULES} << 'END'")];
    lines.extend(functions.iter().map(|function| rule(function)));
    lines.push("END".to_owned());
    lines.push(format!("echo vfio-pci > {MODULES}"));
    let drivers = drivers(functions);
    if !drivers.is_empty() {
        let mut softdeps = String::from("printf '%s\\n'");
        for driver in drivers {
            let _ = write!(softdeps, " 'softdep {driver} pre: vfio-pci'");
        }
        lines.push(format!("{softdeps} > {SOFTDEPS}"));
    }
    lines
}

/// Whose place vfio-pci is to take, each once.
fn drivers<'a>(functions: &[&'a HostFunction]) -> Vec<&'a str> {
    let mut drivers: Vec<&str> = functions
        .iter()
        .filter(|function| !function.is_on_vfio())
        .filter_map(|function| function.driver.as_deref())
        .collect();
    drivers.sort_unstable();
    drivers.dedup();
    drivers
}

fn on_files(
    sysroot: &Sysroot,
    system: &System,
    functions: &[&HostFunction],
) -> Result<Vec<String>, SysError> {
    let mut lines = common(functions);
    lines.extend(match system.initramfs {
        // Its udev hook takes no rules of /etc along, so a script does what the rule would.
        Initramfs::Tools => init_top(functions),
        Initramfs::Dracut => vec![dracut()],
        Initramfs::Mkinitcpio => vec![
            "grep -q vfio-pci /etc/mkinitcpio.conf || sed -Ei 's/^MODULES=\\(/MODULES=(vfio-pci /' /etc/mkinitcpio.conf".to_owned(),
            format!("grep -q 10-strait /etc/mkinitcpio.conf || sed -Ei 's|^FILES=\\(|FILES=({RULES} |' /etc/mkinitcpio.conf"),
        ],
        Initramfs::Booster => {
            vec!["# put vfio_pci into modules_force_load of /etc/booster.yaml".to_owned()]
        }
        Initramfs::Mkinitfs | Initramfs::Unknown => {
            vec![format!("# put vfio-pci and {RULES} into the initramfs, if there is one")]
        }
    });
    let is_in_image = system.loader == Loader::Uki;
    lines.extend(match (system.initramfs, is_in_image) {
        (Initramfs::Mkinitfs | Initramfs::Unknown, false) => None,
        _ if !system::lasts(sysroot, "/boot")? => {
            Some("# /boot is read-only: rebuild the initramfs the way this system does".to_owned())
        }
        // The initramfs is a part of the image, and mkinitcpio makes that.
        (Initramfs::Mkinitcpio, true)
            if loader::uki_maker(sysroot)? == Some(UkiMaker::Mkinitcpio) =>
        {
            Some(system::rebuild(system.initramfs).to_owned())
        }
        (_, true) => {
            Some("# build the unified kernel image anew the way this system does".to_owned())
        }
        (tool, false) => Some(system::rebuild(tool).to_owned()),
    });
    lines.push(format!(
        "# undo: rm -f {RULES} {MODULES} {SOFTDEPS}{}, then rebuild the initramfs",
        match system.initramfs {
            Initramfs::Tools => format!(" {INIT_TOP}"),
            Initramfs::Dracut => format!(" {DRACUT}"),
            _ => String::new(),
        }
    ));
    Ok(lines)
}

fn dracut() -> String {
    format!(
        "printf '%s\\n' 'add_drivers+=\" vfio-pci \"' 'install_items+=\" {RULES} \"' > {DRACUT}"
    )
}

fn transactional(system: &System, functions: &[&HostFunction]) -> Vec<String> {
    let mut lines = common(functions);
    if system.initramfs == Initramfs::Dracut {
        lines.push(dracut());
    }
    lines.push("transactional-update --continue initrd".to_owned());
    lines.push(format!(
        "# undo: rm -f {RULES} {MODULES} {SOFTDEPS} {DRACUT}, then transactional-update initrd"
    ));
    lines
}

/// /etc is a deployment's own and may be written; the initramfs is made by rpm-ostree, never into /usr or /boot.
fn rpm_ostree(functions: &[&HostFunction]) -> Vec<String> {
    let mut lines = common(functions);
    lines.push(format!(
        "rpm-ostree initramfs --enable --arg=--add-drivers --arg=vfio-pci --arg=--install --arg={RULES}"
    ));
    lines.push(format!(
        "# undo: rm -f {RULES} {MODULES} {SOFTDEPS}; rpm-ostree initramfs --disable"
    ));
    lines
}

fn nixos(functions: &[&HostFunction]) -> Vec<String> {
    let mut lines = vec!["# in the NixOS configuration, then nixos-rebuild boot:".to_owned()];
    lines.push("#   boot.initrd.kernelModules = [ \"vfio_pci\" ];".to_owned());
    let softdeps: Vec<String> =
        drivers(functions).iter().map(|driver| format!("softdep {driver} pre: vfio-pci")).collect();
    if !softdeps.is_empty() {
        lines.push("#   boot.extraModprobeConfig = ''".to_owned());
        lines.extend(softdeps.iter().map(|line| format!("#     {line}")));
        lines.push("#   '';".to_owned());
    }
    for option in ["services.udev.extraRules", "boot.initrd.services.udev.rules"] {
        lines.push(format!("#   {option} = ''"));
        lines.extend(functions.iter().map(|function| format!("#     {}", rule(function))));
        lines.push("#   '';".to_owned());
    }
    lines
}

/// Unraid binds what its own file lists, before drivers are loaded.
fn unraid(sysroot: &Sysroot, functions: &[&HostFunction]) -> Vec<String> {
    const FILE: &str = "/boot/config/vfio-pci.cfg";
    let entries: Vec<String> =
        functions.iter().map(|function| format!("{}|{}", function.bdf, function.id())).collect();
    let entries = entries.join(" ");
    let text = sysroot.read_if_present(FILE).unwrap_or_default().unwrap_or_default();
    vec![match text.trim() {
        "" => format!("echo 'BIND={entries}' > {FILE}"),
        text if text.starts_with("BIND=") => format!("sed -Ei '/^BIND=/ s/$/ {entries}/' {FILE}"),
        _ => format!("# add to BIND= in {FILE}: {entries}"),
    }]
}

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
