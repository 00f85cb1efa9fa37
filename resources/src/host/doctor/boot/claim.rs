//! Who gives a device to vfio-pci at boot: options of the module, rules of udev, overrides of driverctl.

use std::time::Duration;

use super::{
    super::{
        super::{
            kernels,
            pci::HostFunction,
            sysroot::{SysError, Sysroot},
        },
        Answer, Host, Outcome,
    },
    modprobe::{self, Identity},
    system::{Initramfs, Keeper, System},
    udev,
};

/// Something that would give the device to vfio-pci.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Claim {
    /// A file, or /proc/cmdline.
    place: String,
    kind: Kind,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Kind {
    /// `ids=` of the module.
    Ids,
    /// A rule of udev.
    Rule,
    /// driverctl or Unraid set `driver_override` themselves.
    Override,
    /// An `install` line runs a program in place of loading the module: this one.
    Program(String),
    /// `ids=` in a file, but the module is built into the kernel and sees the kernel's arguments only.
    BuiltIn,
    /// `ids=` there, but this place says `ids=` later, and the later list counts alone.
    Replaced(String),
}

const CMDLINE: &str = "/proc/cmdline";

/// 41: who takes the device at boot, and does the initramfs know.
pub(crate) fn claim(host: &Host<'_>, function: &HostFunction) -> Answer {
    let system = System::read(host.sysroot)?;
    let Some(claim) = claims(host.sysroot, function)?.into_iter().next() else {
        let mut outcome = Outcome::info("no rule gives it to vfio-pci at boot");
        outcome.fix = "strait doctor --fix-plan prints the files for that".to_owned();
        return Ok(vec![outcome]);
    };
    let place = &claim.place;
    let is_on_vfio = function.is_on_vfio();
    match &claim.kind {
        Kind::BuiltIn => return Ok(vec![built_in(place, function)]),
        Kind::Replaced(by) => return Ok(vec![replaced(place, by, is_on_vfio)]),
        Kind::Program(program) if is_on_vfio => {
            return Ok(vec![Outcome::pass(format!("{place} runs {program} for vfio-pci at boot"))]);
        }
        Kind::Program(program) => {
            let fact = format!("{place} runs {program} for vfio-pci at boot, which may name it");
            return Ok(vec![Outcome::info(fact)]);
        }
        Kind::Ids | Kind::Rule | Kind::Override => {}
    }
    let mut found = Vec::new();
    if is_on_vfio {
        found.push(Outcome::pass(format!("{place} gives it to vfio-pci at boot")));
    } else {
        found.push(other_driver(host.sysroot, &system, function, &claim)?);
    }
    found.extend(older_image(host.sysroot, &system, &claim)?);
    Ok(found)
}

fn built_in(place: &str, function: &HostFunction) -> Outcome {
    let fact = format!(
        "{place} has no effect: options of a built-in module count on the kernel command line only"
    );
    let fix = format!(
        "vfio-pci is built into this kernel: add vfio-pci.ids={} to the kernel's arguments",
        function.id()
    );
    Outcome::warn(fact, fix)
}

/// A device that is on vfio-pci all the same was given to it otherwise, and nothing is wrong with that.
fn replaced(place: &str, by: &str, is_on_vfio: bool) -> Outcome {
    let fact =
        format!("{place} gives it to vfio-pci, but the later ids= in {by} replaces that list");
    let fix = "put all IDs into one ids= list";
    match is_on_vfio {
        true => Outcome { fix: fix.to_owned(), ..Outcome::info(fact) },
        false => Outcome::warn(fact, fix),
    }
}

fn other_driver(
    sysroot: &Sysroot,
    system: &System,
    function: &HostFunction,
    claim: &Claim,
) -> Result<Outcome, SysError> {
    let place = &claim.place;
    let rebuild = system.rebuild();
    let Some(driver) = function.driver.as_deref() else {
        return Ok(Outcome::warn(
            format!("{place} gives it to vfio-pci at boot, and yet nobody has it"),
            format!(
                "load vfio-pci at boot (a line vfio-pci in /etc/modules-load.d), {rebuild}, then reboot"
            ),
        ));
    };
    let mut outcome = Outcome::warn(
        format!("{place} gives it to vfio-pci at boot, and yet {driver} has it"),
        format!("{driver} came first, mostly from the initramfs: {rebuild}, then reboot"),
    );
    let is_early = waits_for_vfio(sysroot, driver)? || in_initramfs(sysroot, system.initramfs)?;
    if system.keeper == Keeper::Files && claim.kind == Kind::Ids && !is_early {
        outcome = outcome.detail(format!(
            "so that vfio-pci comes first: softdep {driver} pre: vfio-pci in /etc/modprobe.d"
        ));
    }
    Ok(outcome)
}

/// Does modprobe load vfio-pci before this driver, or this driver never?
fn waits_for_vfio(sysroot: &Sysroot, driver: &str) -> Result<bool, SysError> {
    let is_driver = |name: &str| name.replace('-', "_") == driver.replace('-', "_");
    Ok(modprobe::read(sysroot)?.iter().any(|line| {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["softdep" | "weakdep", name, rest @ ..] if is_driver(name) => {
                // `post:` ends the list of what comes before.
                let before = rest.iter().take_while(|word| **word != "post:");
                before.copied().any(modprobe::is_vfio_pci)
            }
            ["install", name, rest @ ..] if is_driver(name) => rest.iter().any(|word| {
                modprobe::is_vfio_pci(word.trim_end_matches(';'))
                    || word.ends_with("/true")
                    || word.ends_with("/false")
            }),
            ["blacklist", name] => is_driver(name),
            _ => false,
        }
    }))
}

/// Is vfio-pci among the modules that the initramfs loads by its configuration?
fn in_initramfs(sysroot: &Sysroot, tool: Initramfs) -> Result<bool, SysError> {
    let mut files = match tool {
        Initramfs::Tools => vec![INITRAMFS_MODULES.to_owned()],
        Initramfs::Mkinitcpio => vec!["/etc/mkinitcpio.conf".to_owned()],
        Initramfs::Dracut => vec!["/etc/dracut.conf".to_owned()],
        Initramfs::Booster => vec!["/etc/booster.yaml".to_owned()],
        Initramfs::Mkinitfs | Initramfs::Unknown => Vec::new(),
    };
    let more = match tool {
        Initramfs::Mkinitcpio => "/etc/mkinitcpio.conf.d",
        Initramfs::Dracut => "/etc/dracut.conf.d",
        _ => "",
    };
    if !more.is_empty() {
        for name in sysroot.list_if_present(more)? {
            files.push(format!("{more}/{name}"));
        }
    }
    for file in files {
        let text = sysroot.read_if_present(&file)?.unwrap_or_default();
        let names = modprobe::lines(&text).iter().any(|line| {
            line.split(|c: char| c.is_whitespace() || "\"'()=,".contains(c))
                .any(modprobe::is_vfio_pci)
        });
        if names {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A file that the initramfs should hold, and that is newer. FAT, on which some boot partitions are, keeps times to two
/// seconds.
fn older_image(
    sysroot: &Sysroot,
    system: &System,
    claim: &Claim,
) -> Result<Option<Outcome>, SysError> {
    const COARSE: Duration = Duration::from_secs(2);
    let is_inside = match claim.kind {
        Kind::Ids => claim.place != CMDLINE,
        Kind::Rule => true,
        _ => false,
    };
    if !is_inside || system.keeper != Keeper::Files {
        return Ok(None);
    }
    let Some(image) = kernels::installed(sysroot)?.initramfs else { return Ok(None) };
    let (Some(built), Some(written)) = (sysroot.modified(&image)?, sysroot.modified(&claim.place)?)
    else {
        return Ok(None);
    };
    let is_older = written.duration_since(built).is_ok_and(|behind| behind >= COARSE);
    Ok(is_older
        .then(|| Outcome::warn(format!("{image} is older than {}", claim.place), system.rebuild())))
}

const INITRAMFS_MODULES: &str = "/etc/initramfs-tools/modules";

/// The claims on a function, those that count first.
fn claims(sysroot: &Sysroot, function: &HostFunction) -> Result<Vec<Claim>, SysError> {
    let mut found = overrides(sysroot, function)?;
    for file in modprobe::files(sysroot, "udev/rules.d", ".rules")? {
        let text = sysroot.read_if_present(&file)?.unwrap_or_default();
        if udev::gives(&text, function) {
            found.push(Claim { place: file, kind: Kind::Rule });
        }
    }
    found.extend(by_ids(sysroot, function)?);
    let is_void = |claim: &Claim| matches!(claim.kind, Kind::BuiltIn | Kind::Replaced(_));
    found.sort_by_key(is_void);
    Ok(found)
}

/// Files of tools that write `driver_override`.
fn overrides(sysroot: &Sysroot, function: &HostFunction) -> Result<Vec<Claim>, SysError> {
    let mut found = Vec::new();
    let bdf = function.bdf.to_string();
    for name in [format!("pci-{bdf}"), bdf.clone()] {
        let place = format!("/etc/driverctl.d/{name}");
        let driver = sysroot.read_if_present(&place)?;
        if driver.as_deref().map(str::trim).is_some_and(modprobe::is_vfio_pci) {
            found.push(Claim { place, kind: Kind::Override });
        }
    }
    // Unraid: BIND=0000:01:00.0|10de:1c82 0000:01:00.1|10de:0fb9
    const UNRAID: &str = "/boot/config/vfio-pci.cfg";
    let unraid = sysroot.read_if_present(UNRAID).unwrap_or_default().unwrap_or_default();
    let bound = unraid.lines().filter_map(|line| line.trim().strip_prefix("BIND="));
    let names = bound.flat_map(str::split_whitespace).any(|entry| {
        let address = entry.trim_matches('"').split('|').next().unwrap_or_default();
        address.parse().is_ok_and(|bound: crate::bdf::Bdf| bound == function.bdf)
    });
    if names {
        found.push(Claim { place: UNRAID.to_owned(), kind: Kind::Override });
    }
    Ok(found)
}

/// By lists of IDs, of which the last in modprobe's order counts, and programs that are run instead.
fn by_ids(sysroot: &Sysroot, function: &HostFunction) -> Result<Vec<Claim>, SysError> {
    let identity = Identity {
        vendor: function.vendor,
        device: function.device,
        subsystem_vendor: function.subsystem_vendor,
        subsystem_device: function.subsystem_device,
        class: function.class.0,
    };
    let mut lists: Vec<(String, String)> = Vec::new();
    let mut found = Vec::new();
    for line in modprobe::read(sysroot)? {
        let words: Vec<&str> = line.words.iter().map(String::as_str).collect();
        match words.as_slice() {
            ["options", module, options @ ..] if modprobe::is_vfio_pci(module) => {
                let ids = modprobe::ids(options.iter().copied());
                lists.extend(ids.map(|ids| (line.file.clone(), ids)));
            }
            ["install", module, program @ ..] if modprobe::is_vfio_pci(module) => {
                // `install vfio-pci /sbin/modprobe --ignore-install vfio-pci ids=...`
                let ids = modprobe::ids(program.iter().copied());
                match (ids, program.first()) {
                    (Some(ids), _) => lists.push((line.file.clone(), ids)),
                    (None, Some(program)) => {
                        let kind = Kind::Program((*program).to_owned());
                        found.push(Claim { place: line.file.clone(), kind });
                    }
                    (None, None) => {}
                }
            }
            _ => {}
        }
    }
    // A line of initramfs-tools is a module and its options.
    let text = sysroot.read_if_present(INITRAMFS_MODULES)?.unwrap_or_default();
    for line in modprobe::lines(&text) {
        let mut words = line.split_whitespace();
        if words.next().is_some_and(modprobe::is_vfio_pci) {
            let ids = modprobe::ids(words);
            lists.extend(ids.map(|ids| (INITRAMFS_MODULES.to_owned(), ids)));
        }
    }
    let is_built_in = is_built_in(sysroot)?;
    let cmdline = sysroot.read_if_present(CMDLINE)?.unwrap_or_default();
    let by_kernel = modprobe::ids_of_cmdline(&cmdline);
    let kernels = by_kernel.map(|ids| (CMDLINE.to_owned(), ids));
    if is_built_in {
        let named = lists.iter().filter(|(_, ids)| modprobe::names(ids, identity));
        found.extend(named.map(|(place, _)| Claim { place: place.clone(), kind: Kind::BuiltIn }));
        lists.clear();
    }
    lists.extend(kernels);
    let Some((last, _)) = lists.last().cloned() else { return Ok(found) };
    let count = lists.len();
    for (index, (place, ids)) in lists.into_iter().enumerate() {
        if modprobe::names(&ids, identity) {
            let kind = if index + 1 == count { Kind::Ids } else { Kind::Replaced(last.clone()) };
            found.push(Claim { place, kind });
        }
    }
    Ok(found)
}

/// Is vfio-pci part of the running kernel's image?
fn is_built_in(sysroot: &Sysroot) -> Result<bool, SysError> {
    let Some(release) = sysroot.read_if_present("/proc/sys/kernel/osrelease")? else {
        return Ok(false);
    };
    for root in
        ["/lib/modules", "/usr/lib/modules", "/run/booted-system/kernel-modules/lib/modules"]
    {
        let text = sysroot.read_if_present(&format!("{root}/{release}/modules.builtin"))?;
        let has = |line: &str| {
            let name = line.rsplit('/').next().unwrap_or_default();
            name.split_once(".ko").is_some_and(|(name, _)| modprobe::is_vfio_pci(name))
        };
        if text.is_some_and(|text| text.lines().map(str::trim).any(has)) {
            return Ok(true);
        }
    }
    Ok(false)
}
