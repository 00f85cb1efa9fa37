//! May these functions be taken from the host's drivers? Nothing is changed here; everything that speaks against it
//! is found before the first write.

use std::collections::BTreeSet;

use super::{
    super::{
        framebuffer::{self, Framebuffer},
        iommu,
        needs::Needs,
        pci::{self, HostFunction},
        sysroot::Sysroot,
    },
    Warning, assignable, needed,
    nodes::who_has,
};
use crate::{bdf::Bdf, codes, failure::Failure};

/// What the user allows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    /// The display that the host's console is on may go.
    pub boot_vga: bool,
    /// The framebuffer that the host draws on a device with may go.
    pub release_fb: bool,
}

/// One function to take from its driver, from a framebuffer of the host's, or from both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taking {
    /// What it is. On VFIO already only when it has a framebuffer.
    pub function: HostFunction,
    /// The host draws into one of its BARs with this.
    pub framebuffer: Option<Framebuffer>,
    /// Not asked for: it shares an IOMMU group with one that was.
    pub along: bool,
}

/// What is to be taken, and what the user should know.
#[derive(Debug, Default)]
pub struct Bindable {
    /// By ascending address; empty when all are on VFIO already.
    pub take: Vec<Taking>,
    /// Worth a line.
    pub warnings: Vec<Warning>,
}

impl Bindable {
    /// Is this function among those to take?
    pub fn takes(&self, bdf: Bdf) -> bool {
        self.take.iter().any(|taking| taking.function.bdf == bdf)
    }
}

/// Finds what has to be taken so that `functions` can be passed: those of them that are not on VFIO, and members of
/// their groups that the host uses; also those in whose BARs the host draws. Refuses when the host needs one of them (E1104 for one that was asked for, E1103
/// for a group member, and for one that nobody can take), when a process holds one (E1106), when a guest has a part of
/// one (E1119), when the host draws in one of its BARs and that is not allowed to end (E1205), or when a virtual machine
/// has the group (E1107).
pub fn bindable(
    sysroot: &Sysroot,
    functions: &[HostFunction],
    allowed: &Allowed,
) -> Result<Bindable, Failure> {
    bindable_of(&Needs::new(sysroot), functions, allowed)
}

/// The same, by a graph that is read once for several questions.
pub fn bindable_of(
    needs: &Needs<'_>,
    functions: &[HostFunction],
    allowed: &Allowed,
) -> Result<Bindable, Failure> {
    let sysroot = needs.sysroot();
    // One that is on VFIO already and can never be passed is not "nothing to do".
    for function in functions {
        assignable::kind(sysroot, function)?;
    }
    let taking = |function: &HostFunction, along| {
        let function = function.clone();
        Taking { function, framebuffer: None, along }
    };
    let mut take = Vec::new();
    for function in functions {
        if !function.is_on_vfio() || framebuffer::on(sysroot, function.bdf)?.is_some() {
            take.push(taking(function, false));
        }
    }
    let groups: BTreeSet<u32> = functions.iter().filter_map(|function| function.group).collect();
    for group in &groups {
        for member in iommu::members(sysroot, *group)? {
            let asked = functions.iter().any(|function| function.bdf == member.bdf);
            if !asked && assignable::is_foreign(&member) {
                take.push(taking(&member, true));
            }
        }
    }
    take.sort_by_key(|taking| taking.function.bdf);
    if take.is_empty() {
        return Ok(Bindable::default());
    }
    for taking in &take {
        match taking.along {
            true => assignable::takeable_member(needs, &taking.function, functions)?,
            false => assignable::kind(sysroot, &taking.function)?,
        }
    }
    for group in &groups {
        assignable::reserved(sysroot, *group, functions)?;
    }
    let mut warnings = Vec::new();
    for taking in &mut take {
        let Taking { function, along, .. } = &*taking;
        warnings.extend(needed::expendable(needs, function, *along, allowed)?);
        taking.framebuffer =
            super::framebuffer::to_release(sysroot, &taking.function, allowed.release_fb)?;
    }
    warnings.extend(dark_console(sysroot, &take)?);
    for group in &groups {
        let in_group = |function: &&HostFunction| function.group == Some(*group);
        let Some(first) = functions.iter().find(in_group) else { continue };
        let holders = who_has(sysroot, *group)?;
        assignable::free(sysroot, first.bdf, *group, &holders.found)?;
    }
    Ok(Bindable { take, warnings })
}

/// Nobody uses the groups of these functions (E1107): the unbind of vfio-pci waits for the last one who does, for ever.
pub fn unused(sysroot: &Sysroot, functions: &[HostFunction]) -> Result<(), Failure> {
    for function in functions.iter().filter(|function| function.is_on_vfio()) {
        let Some(group) = function.group else { continue };
        let holders = who_has(sysroot, group)?;
        assignable::free(sysroot, function.bdf, group, &holders.found)?;
    }
    Ok(())
}

/// The display that the host keeps when these are `gone`; one with a driver counts before one without.
pub(in crate::host) fn display_left(
    all: &[HostFunction],
    gone: impl Fn(&HostFunction) -> bool,
) -> Option<&HostFunction> {
    let stays = |function: &&HostFunction| {
        function.class.is_display() && !function.is_on_vfio() && !gone(function)
    };
    all.iter().rev().filter(stays).max_by_key(|function| function.driver.is_some())
}

/// The display of the host's console may go, and none is left that shows it (E1118).
fn dark_console(sysroot: &Sysroot, take: &[Taking]) -> Result<Option<Warning>, Failure> {
    let Some(boot) = take.iter().find(|taking| taking.function.boot_vga == Some(true)) else {
        return Ok(None);
    };
    let all = pci::scan(sysroot)?;
    let taken = |function: &HostFunction| take.iter().any(|t| t.function.bdf == function.bdf);
    let left = display_left(&all, taken);
    if left.is_some_and(|function| function.driver.is_some()) {
        return Ok(None);
    }
    let cause = format!("the host has no display but {}: its console goes dark", boot.function.bdf);
    let fix = "log in by network or serial console before the guest starts";
    let warning = Failure::new(&codes::E1118, cause, fix);
    Ok(Some(match left {
        Some(other) => warning.detail(format!("{} could show it, but has no driver", other.bdf)),
        None => warning,
    }))
}

// Provenance: a card of two functions by hand, in the form of sysfs-bus-pci; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{
        fixture::{Function, Tree},
        pci,
    };

    const GPU: &str = "0000:02:00.0";
    const AUDIO: &str = "0000:02:00.1";

    /// A card of two functions in one group, both on host drivers.
    fn card() -> Tree {
        let tree = Tree::new();
        tree.host_basics();
        for (bdf, driver) in [(GPU, "nouveau"), (AUDIO, "snd_hda_intel")] {
            let (driver, group) = (Some(driver), Some(7));
            tree.function(&Function { bdf, driver, group, ..Function::default() });
        }
        tree
    }

    fn ask(tree: &Tree, allowed: &Allowed) -> Result<Bindable, Failure> {
        let sysroot = tree.sysroot();
        let gpu = pci::find(&sysroot, GPU.parse().unwrap()).unwrap().unwrap();
        bindable(&sysroot, &[gpu], allowed)
    }

    fn refused(tree: &Tree) -> Failure {
        ask(tree, &Allowed::default()).unwrap_err()
    }

    #[test]
    fn r23_bindable_takes_group_members_along() {
        let found = ask(&card(), &Allowed::default()).unwrap();
        let what: Vec<_> =
            found.take.iter().map(|t| (t.function.bdf.to_string(), t.along)).collect();
        assert_eq!(what, [(GPU.to_owned(), false), (AUDIO.to_owned(), true)]);
        assert!(found.warnings.is_empty());
    }

    #[test]
    fn bindable_finds_nothing_to_take_when_all_are_on_vfio() {
        let tree = Tree::two_cards();
        let gpu = pci::find(&tree.sysroot(), "0000:3b:00.0".parse().unwrap()).unwrap().unwrap();
        assert!(bindable(&tree.sysroot(), &[gpu], &Allowed::default()).unwrap().take.is_empty());
    }

    #[test]
    fn r33_bindable_refuses_the_console_unless_allowed() {
        let tree = card();
        tree.file(&format!("/sys/bus/pci/devices/{GPU}/boot_vga"), "1\n");
        let failure = refused(&tree);
        assert_eq!(failure.code.id, "E1104");
        assert!(failure.fix.contains("--allow-boot-vga"), "{}", failure.fix);
        assert!(ask(&tree, &Allowed { boot_vga: true, ..Allowed::default() }).is_ok());
    }

    #[test]
    fn r33_bindable_warns_of_a_console_that_no_other_display_shows() {
        let tree = card();
        let allowed = Allowed { boot_vga: true, ..Allowed::default() };
        assert!(ask(&tree, &allowed).unwrap().warnings.is_empty());
        tree.file(&format!("/sys/bus/pci/devices/{GPU}/boot_vga"), "1\n");
        let warnings = || ask(&tree, &allowed).unwrap().warnings;
        let [warning] = &warnings()[..] else { panic!("{:?}", warnings()) };
        assert_eq!((warning.code.id, warning.code.exit), ("E1118", 0));
        assert!(warning.cause.contains(GPU) && warning.details.is_empty(), "{warning:?}");
        let other = |bdf, driver| {
            let class = 0x03_0000;
            tree.function(&Function { bdf, class, driver, group: Some(9), ..Function::default() });
        };
        other("0000:05:00.0", None);
        assert_eq!(warnings()[0].details, ["0000:05:00.0 could show it, but has no driver"]);
        other("0000:06:00.0", Some("ast"));
        assert!(warnings().is_empty());
    }

    #[test]
    fn r29_bindable_refuses_a_group_with_a_mounted_disk() {
        let tree = card();
        tree.file(&format!("/sys/bus/pci/devices/{AUDIO}/block/sda/dev"), "8:0\n");
        tree.link("/sys/block/sda", &format!("../bus/pci/devices/{AUDIO}/block/sda"));
        tree.file("/proc/self/mountinfo", "25 1 8:0 / /srv rw - ext4 /dev/sda rw\n");
        let failure = refused(&tree);
        assert_eq!(failure.code.id, "E1103");
        assert!(failure.cause.contains("mounted on /srv"), "{}", failure.cause);
        assert!(failure.cause.contains(AUDIO), "{}", failure.cause);
    }

    #[test]
    fn r32_bindable_refuses_and_lists_who_holds_a_node() {
        let tree = card();
        let uevent = format!("/sys/bus/pci/devices/{GPU}/drm/card0/uevent");
        tree.file(&uevent, "DEVNAME=dri/card0\n");
        tree.file(&uevent.replace("uevent", "dev"), "226:0\n");
        tree.link("/proc/812/fd/5", "/dev/dri/card0");
        tree.file("/proc/812/comm", "Xorg\n");
        let failure = refused(&tree);
        assert_eq!(failure.code.id, "E1106");
        assert_eq!(failure.details, ["Xorg (pid 812): /dev/dri/card0"]);
        assert!(failure.fix.contains("systemctl stop display-manager"), "{}", failure.fix);
    }

    #[test]
    fn bindable_warns_of_a_sound_server_and_goes_on() {
        let tree = card();
        let uevent = format!("/sys/bus/pci/devices/{AUDIO}/sound/card1/controlC1/uevent");
        tree.file(&uevent, "DEVNAME=snd/controlC1\n");
        tree.file(&uevent.replace("uevent", "dev"), "116:2\n");
        tree.link("/proc/900/fd/5", "/dev/snd/controlC1");
        tree.file("/proc/900/comm", "pipewire\n");
        let found = ask(&tree, &Allowed::default()).unwrap();
        let [warning] = found.warnings.as_slice() else { panic!("{:?}", found.warnings) };
        assert_eq!((warning.code.id, warning.code.exit), ("E1113", 0));
        assert_eq!(warning.details, ["pipewire (pid 900): /dev/snd/controlC1"]);
    }

    #[test]
    fn r32_unused_names_who_keeps_vfio_from_letting_go() {
        let tree = Tree::two_cards();
        let gpu = pci::find(&tree.sysroot(), "0000:3b:00.0".parse().unwrap()).unwrap().unwrap();
        assert!(unused(&tree.sysroot(), std::slice::from_ref(&gpu)).is_ok());
        tree.link("/proc/900/fd/5", "/dev/vfio/31");
        tree.file("/proc/900/comm", "qemu\n");
        let failure = unused(&tree.sysroot(), &[gpu]).unwrap_err();
        assert_eq!(failure.code.id, "E1107");
        assert!(failure.fix.contains("900"), "{}", failure.fix);
    }

    #[test]
    fn bindable_refuses_a_group_that_a_machine_has_open() {
        let tree = card();
        tree.link("/proc/900/fd/5", "/dev/vfio/7");
        tree.file("/proc/900/comm", "qemu\n");
        assert_eq!(refused(&tree).code.id, "E1107");
    }

    #[test]
    fn bindable_framebuffer_goes_only_when_allowed_and_nobody_draws_on_it() {
        let tree = card();
        tree.framebuffer(GPU, "vesafb", "vesa-framebuffer");
        let refused = ask(&tree, &Allowed::default()).unwrap_err();
        assert_eq!(refused.code.id, "E1205");
        assert!(refused.fix.contains("--release-fb"), "{}", refused.fix);
        let allowed = Allowed { release_fb: true, ..Allowed::default() };
        let take = ask(&tree, &allowed).unwrap().take;
        let released: Vec<_> =
            take.iter().map(|taking| taking.framebuffer.as_ref().map(|fb| &fb.name[..])).collect();
        assert_eq!(released, [Some("vesafb"), None]);
        tree.directory("/sys/devices/platform/vesa-framebuffer.0/graphics/fb0");
        tree.file("/proc/812/comm", "Xorg\n");
        tree.link("/proc/812/fd/9", "/dev/fb0");
        let held = ask(&tree, &allowed).unwrap_err();
        assert_eq!((held.code.id, &held.details[0][..]), ("E1106", "Xorg (pid 812): /dev/fb0"));
    }

    #[test]
    fn bindable_framebuffer_of_no_driver_is_refused_even_when_allowed() {
        let tree = card();
        tree.framebuffer(GPU, "BOOTFB", "simple-framebuffer");
        tree.remove("/sys/bus/platform/drivers/simple-framebuffer/simple-framebuffer.0");
        let allowed = Allowed { release_fb: true, ..Allowed::default() };
        let refused = ask(&tree, &allowed).unwrap_err();
        assert_eq!(refused.code.id, "E1205");
        assert!(refused.fix.contains("initcall_blacklist=sysfb_init"), "{}", refused.fix);
        assert!(!refused.fix.contains("--release-fb"), "{}", refused.fix);
    }

    #[test]
    fn bindable_function_on_vfio_with_a_framebuffer_is_still_to_do() {
        let tree = Tree::two_cards();
        tree.framebuffer("0000:3b:00.0", "efifb", "efi-framebuffer");
        let find = |bdf: &str| pci::find(&tree.sysroot(), bdf.parse().unwrap()).unwrap().unwrap();
        let allowed = Allowed { release_fb: true, ..Allowed::default() };
        let take = bindable(&tree.sysroot(), &[find("0000:3b:00.0")], &allowed).unwrap().take;
        assert!(take.len() == 1 && take[0].framebuffer.is_some(), "{take:?}");
        let other = bindable(&tree.sysroot(), &[find("0000:d8:00.0")], &allowed).unwrap();
        assert!(other.take.is_empty());
        let refused = assignable::assignable(&tree.sysroot(), &[find("0000:3b:00.0")]).unwrap_err();
        assert_eq!(refused.code.id, "E1205");
    }

    #[test]
    fn bindable_boot_display_with_a_framebuffer_names_both_flags_at_once() {
        let tree = card();
        tree.framebuffer(GPU, "efifb", "efi-framebuffer");
        tree.file(&format!("/sys/bus/pci/devices/{GPU}/boot_vga"), "1\n");
        let failure = ask(&tree, &Allowed::default()).unwrap_err();
        assert!(failure.fix.contains("--allow-boot-vga --release-fb"), "{}", failure.fix);
    }
}
