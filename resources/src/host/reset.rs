//! How a function is brought back to a known state, found before a guest starts: alone, with its whole bus, or not.

use std::{collections::BTreeSet, fmt};

use super::{
    check::Warning,
    pci::{self, HostFunction},
    sysroot::{SysError, Sysroot},
};
use crate::{bdf::Bdf, codes, failure::Failure};

/// The kernel's word for a reset of the bus, which it offers for a function that is alone there.
const BUS: &str = "bus";

/// What the user wants of it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// Whatever is best.
    #[default]
    Auto,
    /// Nothing: for a device that does not come back from one.
    Off,
    /// This method of the kernel's, by its name in `reset_method`, and no other.
    Only(&'static str),
}

/// Every choice by its name.
pub const CHOICES: &[(&str, Choice)] = &[
    ("auto", Choice::Auto),
    ("none", Choice::Off),
    ("flr", Choice::Only("flr")),
    ("af_flr", Choice::Only("af_flr")),
    ("pm", Choice::Only("pm")),
    (BUS, Choice::Only(BUS)),
    ("acpi", Choice::Only("acpi")),
    (DEVICE_SPECIFIC, Choice::Only(DEVICE_SPECIFIC)),
];

/// Not in the list before it is asked for: a module that is loaded later may bring it.
const DEVICE_SPECIFIC: &str = "device_specific";

/// The way back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Way {
    /// The kernel resets it alone, by these methods, best first. It names them since Linux 5.15; before, there are none.
    Alone(Vec<String>),
    /// With everything on its bus, and all of that is the guest's.
    Bus(Vec<Bdf>),
    /// A reset of its bus would hit these too, and they stay on the host.
    Shared(Vec<Neighbour>),
    /// It sits on a root bus, which nothing resets.
    None,
    /// The user wants none.
    Off,
}

/// A function that a reset would hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its address.
    pub bdf: Bdf,
    /// Its IOMMU group.
    pub group: Option<u32>,
    /// Its driver.
    pub driver: Option<String>,
}

/// How `function` is reset when `passed`, itself among them, go to one guest.
pub fn way(
    sysroot: &Sysroot,
    function: &HostFunction,
    passed: &[HostFunction],
) -> Result<Way, SysError> {
    let neighbours = neighbours(sysroot, function.bdf)?;
    // The list is made when the kernel finds the function, which may be before it finds its neighbours.
    let shares = neighbours.as_ref().is_some_and(|others| !others.is_empty());
    let works = |method: &&String| *method != BUS || !shares;
    let methods: Vec<String> = function.reset_methods.iter().filter(works).cloned().collect();
    let unnamed = function.reset_methods.is_empty()
        && !sysroot.exists(&pci::path(function.bdf, "reset_method"))
        && sysroot.exists(&pci::path(function.bdf, "reset"));
    if !methods.is_empty() || unnamed {
        return Ok(Way::Alone(methods));
    }
    let Some(neighbours) = neighbours else { return Ok(Way::None) };
    // Who has a group has all of it: its other members do nothing for the host.
    let groups: BTreeSet<u32> = passed.iter().filter_map(|other| other.group).collect();
    let stays = |other: &&Neighbour| {
        let is_passed = passed.iter().any(|function| function.bdf == other.bdf);
        !is_passed && other.group.is_none_or(|group| !groups.contains(&group))
    };
    let staying: Vec<Neighbour> = neighbours.iter().filter(stays).cloned().collect();
    Ok(match staying.is_empty() {
        true => Way::Bus(neighbours.into_iter().map(|other| other.bdf).collect()),
        false => Way::Shared(staying),
    })
}

/// The way that was chosen, and what has to be in `reset_method` for it, when that differs from what is there. Refuses
/// (E1404) what the function does not have.
pub fn chosen(
    sysroot: &Sysroot,
    function: &HostFunction,
    passed: &[HostFunction],
    choice: Choice,
) -> Result<(Way, Option<String>), Failure> {
    if choice == Choice::Auto {
        return Ok((way(sysroot, function, passed)?, None));
    }
    if !sysroot.exists(&pci::path(function.bdf, "reset_method")) {
        let cause = format!("this kernel lets nobody choose how {} is reset", function.bdf);
        return Err(Failure::new(
            &codes::E1404,
            cause,
            "leave reset= out, or use Linux 5.15 or later",
        ));
    }
    let has = |name: &str| function.reset_methods.iter().any(|method| method == name);
    let (way, list) = match choice {
        Choice::Only(BUS) => {
            // As if it had no other.
            let only_bus = function.reset_methods.iter().filter(|method| *method == BUS).cloned();
            let bare = HostFunction { reset_methods: only_bus.collect(), ..function.clone() };
            let way = way(sysroot, &bare, passed)?;
            if let Some(warning) = warning(function.bdf, &way) {
                let cause = format!("reset=bus: {}", warning.cause);
                return Err(Failure::new(&codes::E1404, cause, warning.fix));
            }
            let list = if matches!(way, Way::Alone(_)) { BUS } else { "" };
            (way, list)
        }
        Choice::Only(method) if has(method) || method == DEVICE_SPECIFIC => {
            (Way::Alone(vec![method.to_owned()]), method)
        }
        Choice::Only(method) => {
            let cause = format!("{} cannot be reset by {method}", function.bdf);
            let fix = match function.reset_methods.as_slice() {
                [] => "the kernel has no reset for it alone: reset=bus, reset=none or nothing"
                    .to_owned(),
                methods => format!("the kernel offers: {}", methods.join(", ")),
            };
            return Err(Failure::new(&codes::E1404, cause, fix));
        }
        Choice::Auto | Choice::Off => (Way::Off, ""),
    };
    let differs = function.reset_methods.join(" ") != list;
    Ok((way, differs.then(|| list.to_owned())))
}

/// Every other function below the bridge that this one is behind; `None` on a root bus. Bridges among them hand the reset
/// on and lose nothing.
fn neighbours(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<Vec<Neighbour>>, SysError> {
    let Some(bridge) = pci::upstream(sysroot, bdf)?.pop() else { return Ok(None) };
    let mut found = Vec::new();
    for other in pci::addresses(sysroot)? {
        if other == bdf || !pci::upstream(sysroot, other)?.contains(&bridge) {
            continue;
        }
        found.extend(
            pci::find(sysroot, other)?
                .filter(|function| !function.is_bridge())
                .map(|HostFunction { bdf, group, driver, .. }| Neighbour { bdf, group, driver }),
        );
    }
    Ok(Some(found))
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Alone(methods) if methods.is_empty() => {
                f.write_str("the kernel does not tell how")
            }
            Self::Alone(methods) => f.write_str(&methods.join(", then ")),
            Self::Bus(others) if others.is_empty() => f.write_str("its bus, where it is alone"),
            Self::Bus(others) => {
                let others: Vec<String> = others.iter().map(Bdf::to_string).collect();
                write!(f, "its bus, with {}", others.join(", "))
            }
            Self::Shared(others) => {
                write!(f, "none: a reset of its bus would also hit {}", list(others))
            }
            Self::None => f.write_str("none that the kernel knows"),
            Self::Off => f.write_str("none, as reset=none asks"),
        }
    }
}

/// What the user should know before the guest starts.
pub fn warning(bdf: Bdf, way: &Way) -> Option<Warning> {
    let keeps = format!("{bdf} keeps its state over guest reboots");
    let (cause, fix) = match way {
        Way::Alone(_) | Way::Bus(_) | Way::Off => return None,
        Way::Shared(others) => (
            format!("{keeps}: a reset of its bus would also hit {}", list(others)),
            "pass those as well, or move the card to a slot of its own",
        ),
        Way::None => (
            format!(
                "{keeps}: it has no function reset, and no bridge above it that resets its bus"
            ),
            "nothing, if its driver in the guest can do without; else another slot",
        ),
    };
    Some(Failure::new(&codes::E1405, cause, fix))
}

/// Refuses (E1127) to give a function back to the driver that has it now when nothing resets it after the guest. One without
/// a driver goes back to none, and one that is on VFIO stays there.
pub fn given_back(function: &HostFunction, way: &Way) -> Result<(), Failure> {
    let keeps = matches!(way, Way::Shared(_) | Way::None | Way::Off);
    let Some(driver) = function.driver.as_deref().filter(|_| keeps && !function.is_on_vfio())
    else {
        return Ok(());
    };
    let bdf = function.bdf;
    let cause =
        format!("{driver} would get {bdf} back as the guest leaves it: nothing resets it ({way})");
    let fix = "say after=vfio: it stays on vfio-pci; or trust-guest=on for a guest that is trusted";
    Err(Failure::new(&codes::E1127, cause, fix))
}

fn list(others: &[Neighbour]) -> String {
    let name = |other: &Neighbour| {
        let driver = other.driver.as_deref().unwrap_or("no driver");
        match other.group {
            Some(group) => format!("{} (group {group}, {driver})", other.bdf),
            None => format!("{} ({driver})", other.bdf),
        }
    };
    others.iter().map(name).collect::<Vec<_>>().join(", ")
}

// Provenance: methods by pci_reset_fn_methods in drivers/pci/pci.c, topologies made up; no dump of
// a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::{Function, Tree};

    const CARD: &str = "0000:01:01.0";
    const NIC: &str = "0000:01:02.0";

    /// Two functions behind a bridge, each in a group of its own.
    fn pair(methods: &str) -> Tree {
        let tree = Tree::new();
        let bridge = Function { bdf: "0000:00:10.0", class: 0x06_0400, ..Function::default() };
        tree.function(&Function { header_type: 1, ..bridge });
        let under = &["0000:00:10.0"];
        for (bdf, driver, group) in [(CARD, "vfio-pci", 5), (NIC, "e1000", 6)] {
            let (driver, group) = (Some(driver), Some(group));
            tree.function(&Function { bdf, driver, group, under, ..Function::default() });
        }
        tree.file(&pci::path(CARD.parse().unwrap(), "reset_method"), methods);
        tree
    }

    fn find(tree: &Tree, bdf: &str) -> HostFunction {
        pci::find(&tree.sysroot(), bdf.parse().unwrap()).unwrap().unwrap()
    }

    fn way_of(tree: &Tree, passed: &[&str]) -> Way {
        let passed: Vec<HostFunction> = passed.iter().map(|bdf| find(tree, bdf)).collect();
        way(&tree.sysroot(), &passed[0], &passed).unwrap()
    }

    #[test]
    fn methods_of_its_own_come_first_in_the_kernels_order() {
        let way = way_of(&pair("flr pm\n"), &[CARD]);
        assert_eq!(way.to_string(), "flr, then pm");
        assert!(warning(CARD.parse().unwrap(), &way).is_none());
    }

    #[test]
    fn p1_bus_method_that_is_stale_is_not_believed() {
        let way = way_of(&pair("bus\n"), &[CARD]);
        assert!(matches!(way, Way::Shared(_)), "{way:?}");
    }

    #[test]
    fn p24_bus_shared_with_the_host_names_group_and_driver() {
        let way = way_of(&pair("\n"), &[CARD]);
        let warning = warning(CARD.parse().unwrap(), &way).unwrap();
        assert_eq!((warning.code.id, warning.code.exit), ("E1405", 0));
        assert!(
            warning.cause.ends_with("also hit 0000:01:02.0 (group 6, e1000)"),
            "{}",
            warning.cause
        );
    }

    #[test]
    fn bus_that_is_all_the_guests_is_reset_as_a_whole() {
        let way = way_of(&pair("\n"), &[CARD, NIC]);
        assert_eq!(way.to_string(), "its bus, with 0000:01:02.0");
    }

    #[test]
    fn bus_with_another_member_of_the_group_is_the_guests_too() {
        let tree = pair("\n");
        tree.remove("/sys/bus/pci/devices/0000:01:02.0/iommu_group");
        tree.link(
            "/sys/bus/pci/devices/0000:01:02.0/iommu_group",
            "../../../kernel/iommu_groups/5",
        );
        assert_eq!(way_of(&tree, &[CARD]), Way::Bus(vec![NIC.parse().unwrap()]));
    }

    #[test]
    fn function_on_a_root_bus_has_no_bus_to_reset() {
        let tree = Tree::new();
        tree.function(&Function { group: Some(7), ..Function::default() });
        let way = way_of(&tree, &["0000:00:02.0"]);
        assert_eq!(way, Way::None);
        assert!(warning("0000:00:02.0".parse().unwrap(), &way).is_some());
    }

    #[test]
    fn kernel_without_names_of_methods_is_believed_that_there_is_one() {
        let tree = Tree::new();
        tree.function(&Function::default());
        tree.file("/sys/bus/pci/devices/0000:00:02.0/reset", "");
        assert_eq!(way_of(&tree, &["0000:00:02.0"]), Way::Alone(Vec::new()));
    }

    #[test]
    fn driver_of_the_host_gets_back_only_what_is_reset() {
        let given = |tree: &Tree, bdf: &str, way: &Way| given_back(&find(tree, bdf), way);
        let tree = pair("\n");
        let shared = way_of(&tree, &[NIC]);
        for way in [shared, Way::None, Way::Off] {
            let refused = given(&tree, NIC, &way).unwrap_err();
            assert_eq!((refused.code.id, refused.code.exit), ("E1127", 4));
            assert!(refused.cause.starts_with("e1000 would get 0000:01:02.0 back"), "{way}");
            // It is on VFIO: no driver gets it.
            assert!(given(&tree, CARD, &way).is_ok(), "{way}");
        }
        for way in [Way::Alone(vec!["flr".to_owned()]), way_of(&tree, &[NIC, CARD])] {
            assert!(given(&tree, NIC, &way).is_ok(), "{way}");
        }
        tree.remove("/sys/bus/pci/devices/0000:01:02.0/driver");
        assert!(given(&tree, NIC, &Way::None).is_ok());
    }

    fn choose(
        tree: &Tree,
        passed: &[&str],
        choice: Choice,
    ) -> Result<(Way, Option<String>), Failure> {
        let passed: Vec<HostFunction> = passed.iter().map(|bdf| find(tree, bdf)).collect();
        chosen(&tree.sysroot(), &passed[0], &passed, choice)
    }

    #[test]
    fn p1_chosen_method_becomes_the_whole_list_and_only_when_it_is_not() {
        let list = |text: &str| Some(text.to_owned());
        let tree = pair("flr pm\n");
        let (way, change) = choose(&tree, &[CARD], Choice::Only("pm")).unwrap();
        assert_eq!((way.to_string(), change), ("pm".to_owned(), list("pm")));
        let (way, change) = choose(&tree, &[CARD], Choice::Off).unwrap();
        assert_eq!((&way, change), (&Way::Off, list("")));
        assert!(warning(CARD.parse().unwrap(), &way).is_none());
        let (_, change) = choose(&tree, &[CARD], Choice::Only(DEVICE_SPECIFIC)).unwrap();
        assert_eq!(change, list(DEVICE_SPECIFIC));
        assert_eq!(choose(&tree, &[CARD], Choice::Auto).unwrap().1, None);
        assert_eq!(choose(&pair("pm\n"), &[CARD], Choice::Only("pm")).unwrap().1, None);
    }

    #[test]
    fn p1_chosen_bus_is_reset_as_a_whole_or_refused() {
        let tree = pair("flr\n");
        let (way, change) = choose(&tree, &[CARD, NIC], Choice::Only(BUS)).unwrap();
        assert_eq!((way, change), (Way::Bus(vec![NIC.parse().unwrap()]), Some(String::new())));
        let shared = choose(&tree, &[CARD], Choice::Only(BUS)).unwrap_err();
        assert_eq!(shared.code.id, "E1404");
        assert!(shared.cause.contains("also hit 0000:01:02.0"), "{}", shared.cause);
    }

    #[test]
    fn p1_chosen_method_that_the_function_lacks_is_refused_with_those_it_has() {
        let refused = choose(&pair("pm bus\n"), &[CARD], Choice::Only("flr")).unwrap_err();
        assert_eq!((refused.code.id, &refused.fix[..]), ("E1404", "the kernel offers: pm, bus"));
        let old = Tree::new();
        old.function(&Function::default());
        let refused = choose(&old, &["0000:00:02.0"], Choice::Off).unwrap_err();
        assert!(refused.fix.contains("5.15"), "{}", refused.fix);
    }
}
