//! Which functions the user means, and whether they are the ones expected.

use std::collections::BTreeSet;

use super::super::{
    pci::{self, HostFunction},
    sysroot::Sysroot,
};
use crate::{
    bdf::{Bdf, BdfSelector},
    codes,
    failure::Failure,
    names::Names,
    nearest::{nearest, ranked},
    selector::{self, Selector, SelectorError},
};

/// The functions that one selector chose of a host slot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The address that the user named, or that the name means.
    pub selector: BdfSelector,
    /// By ascending function number; one at least.
    pub functions: Vec<HostFunction>,
}

/// One slot per selector, in the same order. Refuses what is not there (E1101), IDs that several devices have (E2003),
/// and a function that is named twice (E2004), also by itself and by its slot.
pub fn resolve(sysroot: &Sysroot, selectors: &[Selector]) -> Result<Vec<Slot>, Failure> {
    let existing = pci::addresses(sysroot)?;
    let mut slots: Vec<Slot> = Vec::new();
    for selector in selectors {
        let selector = match selector {
            Selector::Address(address) => *address,
            Selector::Slot(name) => named_slot(sysroot, name)?,
            Selector::Ids { vendor, device } => by_ids(sysroot, *vendor, *device)?,
        };
        let functions = choose(sysroot, &existing, selector)?;
        if functions.is_empty() {
            return Err(unknown(sysroot, &existing, selector));
        }
        for function in &functions {
            let holds = |slot: &&Slot| slot.functions.iter().any(|f| f.bdf == function.bdf);
            if let Some(earlier) = slots.iter().find(holds) {
                return Err(twice(function.bdf, earlier.selector, selector));
            }
        }
        slots.push(Slot { selector, functions });
    }
    Ok(slots)
}

/// The functions that words of a command line name, in every form of a [`Selector`]. Refuses like [`resolve`].
pub fn select(sysroot: &Sysroot, words: &[String]) -> Result<Vec<HostFunction>, Failure> {
    let selectors: Vec<Selector> =
        words.iter().map(|word| selector(word)).collect::<Result<_, _>>()?;
    Ok(resolve(sysroot, &selectors)?.into_iter().flat_map(|slot| slot.functions).collect())
}

/// One word, read; no host is asked yet.
pub fn selector(word: &str) -> Result<Selector, Failure> {
    word.parse().map_err(|error: SelectorError| {
        let fix = match error {
            SelectorError::Word(_) => selector::FORMS,
            SelectorError::Path(_) => "such a path looks like /sys/bus/pci/devices/0000:3b:00.0",
        };
        Failure::new(&codes::E2003, error.to_string(), fix)
    })
}

fn by_ids(sysroot: &Sysroot, vendor: u16, device: u16) -> Result<BdfSelector, Failure> {
    let all = pci::scan(sysroot)?;
    let same: Vec<&HostFunction> =
        all.iter().filter(|f| (f.vendor, f.device) == (vendor, device)).collect();
    let wanted = format!("{vendor:04x}:{device:04x}");
    match same.as_slice() {
        [only] => Ok(BdfSelector::Function(only.bdf)),
        [] => {
            let known: BTreeSet<String> = all.iter().map(HostFunction::id).collect();
            let fix = match nearest(&wanted, known.iter().map(String::as_str)) {
                Some(near) => format!("did you mean {near}? strait devices lists what there is"),
                None => "strait devices lists what there is".to_owned(),
            };
            let cause = format!("there is no PCI device with the IDs {wanted}");
            Err(Failure::new(&codes::E1101, cause, fix))
        }
        several => {
            let cause = format!("{} devices have the IDs {wanted}", several.len());
            let fix = "name one of them by its address or its slot";
            let (names, slots) = (Names::load(sysroot), pci::physical_slots(sysroot)?);
            Err(several.iter().fold(Failure::new(&codes::E2003, cause, fix), |failure, f| {
                let slot = f.bdf.with_function(0).and_then(|bdf| slots.get(&bdf));
                let slot = slot.map_or_else(String::new, |slot| format!(", slot={slot}"));
                failure.detail(format!("{} {}{slot}", f.bdf, names.function(f)))
            }))
        }
    }
}

fn named_slot(sysroot: &Sysroot, name: &str) -> Result<BdfSelector, Failure> {
    let slots = pci::physical_slots(sysroot)?;
    if let Some((bdf, _)) = slots.iter().find(|(_, slot)| *slot == name) {
        return Ok(BdfSelector::Slot(*bdf));
    }
    let known: Vec<&str> = slots.values().map(String::as_str).collect();
    let fix = match known.as_slice() {
        [] => "this machine's firmware names no slots: use the address".to_owned(),
        _ => format!("the slots are: {}", known.join(", ")),
    };
    Err(Failure::new(&codes::E1101, format!("there is no slot named '{name}'"), fix))
}

fn choose(
    sysroot: &Sysroot,
    existing: &[Bdf],
    selector: BdfSelector,
) -> Result<Vec<HostFunction>, Failure> {
    let wanted = |bdf: &&Bdf| match selector {
        BdfSelector::Function(function) => **bdf == function,
        BdfSelector::Slot(slot) => bdf.same_slot(slot),
    };
    let mut functions = Vec::new();
    for bdf in existing.iter().filter(wanted) {
        functions.extend(pci::find(sysroot, *bdf)?);
    }
    // Virtual functions can share the slot of their physical function; they are devices of their own.
    if matches!(selector, BdfSelector::Slot(_))
        && functions.iter().any(|function| function.physical_function.is_none())
    {
        functions.retain(|function| function.physical_function.is_none());
    }
    Ok(functions)
}

fn unknown(sysroot: &Sysroot, existing: &[Bdf], selector: BdfSelector) -> Failure {
    /// Enough to find a typo, few enough to read.
    const SHOWN: usize = 3;
    let cause = format!("there is no PCI device at {selector}");
    if existing.is_empty() {
        let cause = format!("{cause}; {} lists none at all", pci::DEVICES);
        return Failure::new(&codes::E1101, cause, "run strait where the host's sysfs is visible");
    }
    // Of addresses that are typed equally wrong, the one that is close by.
    let (BdfSelector::Function(wanted) | BdfSelector::Slot(wanted)) = selector;
    let mut existing = existing.to_vec();
    existing.sort_by_key(|bdf| place(*bdf).abs_diff(place(wanted)));
    let written: Vec<String> = existing.iter().map(Bdf::to_string).collect();
    let nearest = ranked(&selector.to_string(), written.iter().map(String::as_str), SHOWN);
    let fix = match nearest.first() {
        Some(first) => format!("did you mean {first}? strait devices lists every address"),
        None => "strait devices lists every address".to_owned(),
    };
    let names = Names::load(sysroot);
    nearest.iter().fold(Failure::new(&codes::E1101, cause, fix), |failure, address| {
        // A function that cannot be read is still worth its address.
        let function = address.parse().ok().and_then(|bdf| pci::find(sysroot, bdf).ok().flatten());
        let name = function.map(|function| names.function(&function)).unwrap_or_default();
        failure.detail(format!("there is {address} {name}").trim_end())
    })
}

/// Where an address is among all, as the hardware numbers them.
fn place(bdf: Bdf) -> u64 {
    u64::from(bdf.segment()) << 16
        | u64::from(bdf.bus()) << 8
        | u64::from(bdf.device()) << 3
        | u64::from(bdf.function())
}

fn twice(bdf: Bdf, earlier: BdfSelector, later: BdfSelector) -> Failure {
    let cause = if earlier == later {
        format!("{later} is named twice")
    } else {
        format!("{bdf} is named twice: by {earlier} and by {later}")
    };
    Failure::new(
        &codes::E2004,
        cause,
        "name every function once; 3b:00 means all functions of the slot",
    )
}

/// Is this the card the user expects? Refuses with E1010 and says where the expected one is now.
pub fn expect(
    sysroot: &Sysroot,
    function: &HostFunction,
    vendor: u16,
    device: u16,
) -> Result<(), Failure> {
    if (function.vendor, function.device) == (vendor, device) {
        return Ok(());
    }
    let names = Names::load(sysroot);
    let cause = format!(
        "{} is {}, and {vendor:04x}:{device:04x} was expected",
        function.bdf,
        names.function(function)
    );
    let same = pci::scan(sysroot)?
        .into_iter()
        .filter(|other| (other.vendor, other.device) == (vendor, device));
    let found: Vec<HostFunction> = same.collect();
    let fix = match found.as_slice() {
        [] => "check that the card is in the machine; no function has the expected IDs".to_owned(),
        [only] => format!("use {}, or correct expect=", only.bdf),
        _ => "use one of the addresses above, or correct expect=".to_owned(),
    };
    Err(found.iter().fold(Failure::new(&codes::E1010, cause, fix), |failure, other| {
        failure.detail(format!("{vendor:04x}:{device:04x} is at {}", other.bdf))
    }))
}

// Provenance: the two-card server of the fixture module; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    fn resolved(tree: &Tree, selectors: &[&str]) -> Result<Vec<Slot>, Failure> {
        let selectors: Vec<_> = selectors.iter().map(|text| text.parse().unwrap()).collect();
        resolve(&tree.sysroot(), &selectors)
    }

    fn functions(slot: &Slot) -> Vec<u8> {
        slot.functions.iter().map(|function| function.bdf.function()).collect()
    }

    #[test]
    fn r20_select_takes_every_form_and_ids_only_when_one_device_has_them() {
        let tree = Tree::two_cards();
        let select = |word: &str| select(&tree.sysroot(), &[word.to_owned()]);
        let addresses = |word: &str| {
            select(word).unwrap().iter().map(|f| f.bdf.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(addresses("1a03:2000"), ["0000:03:00.0"]);
        let twins = select("10de:1e07").unwrap_err();
        assert_eq!((twins.code.id, twins.details.len()), ("E2003", 2));
        assert_eq!(
            twins.details[1],
            "0000:d8:00.0 NVIDIA TU102 GeForce RTX 2080 Ti Rev. A [10de:1e07]"
        );
        let typo = select("10de:1e08").unwrap_err();
        assert_eq!(typo.code.id, "E1101");
        assert!(typo.fix.contains("10de:1e07"), "{}", typo.fix);
        assert_eq!(select("banana").unwrap_err().code.id, "E2003");
        tree.file("/sys/bus/pci/slots/7/address", "0000:d8:00\n");
        assert_eq!(addresses("slot=7").len(), 4);
        assert!(select("slot=8").unwrap_err().fix.contains('7'));
        let told = select("10de:1e07").unwrap_err().details;
        assert_eq!(
            told[1],
            "0000:d8:00.0 NVIDIA TU102 GeForce RTX 2080 Ti Rev. A [10de:1e07], slot=7"
        );
        assert_eq!(addresses("/sys/bus/pci/devices/0000:3b:00.2"), ["0000:3b:00.2"]);
        assert_eq!(select("/sys/class/drm/card0").unwrap_err().code.id, "E2003");
        let both = ["slot=7", "d8:00.1"].map(str::to_owned);
        assert_eq!(super::select(&tree.sysroot(), &both).unwrap_err().code.id, "E2004");
    }

    #[test]
    fn r27_resolve_slot_takes_all_four_functions_of_that_card_only() {
        let slots = resolved(&Tree::two_cards(), &["3b:00", "d8:00.0"]).unwrap();
        assert_eq!(functions(&slots[0]), [0, 1, 2, 3]);
        assert_eq!(functions(&slots[1]), [0]);
        assert!(slots[0].functions.iter().all(|function| function.bdf.bus() == 0x3b));
    }

    #[test]
    fn resolve_slot_leaves_virtual_functions_beside_their_physical_one_out() {
        let tree = Tree::two_cards();
        tree.link("/sys/bus/pci/devices/0000:3b:00.3/physfn", "../0000:3b:00.0");
        assert_eq!(functions(&resolved(&tree, &["3b:00"]).unwrap()[0]), [0, 1, 2]);
        assert_eq!(functions(&resolved(&tree, &["3b:00.3"]).unwrap()[0]), [3]);
    }

    #[test]
    fn r20_resolve_unknown_address_suggests_the_nearest_with_its_name() {
        let failure = resolved(&Tree::two_cards(), &["3c:00.0"]).unwrap_err();
        assert_eq!(failure.code.id, "E1101");
        assert!(failure.cause.contains("0000:3c:00.0"), "{}", failure.cause);
        assert!(failure.fix.contains("did you mean 0000:3b:00.0?"), "{}", failure.fix);
        let line = "there is 0000:3b:00.0 NVIDIA TU102 GeForce RTX 2080 Ti Rev. A [10de:1e07]";
        assert!(failure.details.iter().any(|detail| detail == line), "{:?}", failure.details);
    }

    #[test]
    fn resolve_on_a_host_without_pci_says_so() {
        let failure = resolved(&Tree::new(), &["3b:00"]).unwrap_err();
        assert_eq!(failure.code.id, "E1101");
        assert!(failure.cause.contains("none at all"));
    }

    #[test]
    fn resolve_twice_is_refused_also_through_the_slot() {
        for selectors in [["3b:00.1", "3b:00.1"], ["3b:00", "3b:00"], ["3b:00.1", "3b:00"]] {
            let failure = resolved(&Tree::two_cards(), &selectors).unwrap_err();
            assert_eq!(failure.code.id, "E2004", "{selectors:?}");
            assert!(failure.cause.contains("named twice"));
        }
        resolved(&Tree::two_cards(), &["3b:00.0", "3b:00.1"]).unwrap();
    }

    #[test]
    fn r21_expect_says_both_ids_and_where_the_expected_cards_are() {
        let tree = Tree::two_cards();
        let slot = resolved(&tree, &["03:00.0"]).unwrap().remove(0);
        expect(&tree.sysroot(), &slot.functions[0], 0x1a03, 0x2000).unwrap();
        let failure = expect(&tree.sysroot(), &slot.functions[0], 0x10de, 0x1e07).unwrap_err();
        assert_eq!(failure.code.id, "E1010");
        assert!(failure.cause.contains("1a03:2000") && failure.cause.contains("10de:1e07"));
        assert_eq!(
            failure.details,
            ["10de:1e07 is at 0000:3b:00.0", "10de:1e07 is at 0000:d8:00.0"]
        );
    }

    #[test]
    fn expect_absent_card_says_that_it_is_nowhere() {
        let tree = Tree::two_cards();
        let slot = resolved(&tree, &["03:00.0"]).unwrap().remove(0);
        let failure = expect(&tree.sysroot(), &slot.functions[0], 0x1002, 0x73bf).unwrap_err();
        assert!(failure.details.is_empty() && failure.fix.contains("no function has"));
    }
}
