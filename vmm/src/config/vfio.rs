//! `--vfio`: which device, and how the guest sees it.

use strait_resources::{
    bdf::BdfSelector,
    codes,
    failure::Failure,
    host::{
        check,
        reset::{CHOICES, Choice},
    },
    selector::{self, Selector},
};

use super::{After, Identity, Managed, RomChoice, VfioConfig, bad_value, choice, list::List};

const KEYS: [&str; 16] = [
    "id",
    "guest-address",
    "rom",
    "expect",
    "managed",
    "reset",
    "raw-config",
    "after",
    "trust-guest",
    "vendor-id",
    "device-id",
    "sub-vendor-id",
    "sub-device-id",
    "host",
    "sysfs",
    "slot",
];
const MANAGED_CHOICES: &[(&str, Managed)] =
    &[("auto", Managed::Auto), ("yes", Managed::Yes), ("no", Managed::No)];
const AFTER_CHOICES: &[(&str, After)] = &[("host", After::Host), ("vfio", After::Vfio)];
const SWITCH: &[(&str, bool)] = &[("off", false), ("on", true)];
const ID_MAX: usize = 32;

/// Every `--vfio` of the command line, none in another's way.
pub(super) fn parse_all(texts: &[String]) -> Result<Vec<VfioConfig>, Failure> {
    let devices = texts.iter().map(|text| parse(text)).collect::<Result<Vec<_>, _>>()?;
    for (position, device) in devices.iter().enumerate() {
        for (before, earlier) in devices[..position].iter().enumerate() {
            refuse_same_function(earlier, device)?;
            refuse_same_name((before, earlier), (position, device))?;
            refuse_same_guest_address(earlier, device)?;
        }
    }
    refuse_bus_without_function_0(&devices)?;
    Ok(devices)
}

/// A device as every command takes it (`3b:00.0`, `3b:00`, `10de:1e07`, `/sys/...`; `slot=3`), then keys.
fn parse(text: &str) -> Result<VfioConfig, Failure> {
    let list = List::parse("--vfio", text, &KEYS)?;
    let mut selector = list.word.as_deref().map(device).transpose()?;
    let (mut id, mut expect, mut rom) = (None, None, RomChoice::default());
    let (mut guest_bus, mut guest_function) = (None, None);
    let (mut reset, mut raw_config) = (Choice::default(), false);
    let (mut managed, mut after, mut trust_guest) = (Managed::default(), After::default(), false);
    let mut identity = Identity::default();
    for (key, value) in list.pairs {
        match key {
            "host" | "sysfs" | "slot" if selector.is_some() => {
                let cause = format!("--vfio {text}: one device is named, then another");
                return Err(bad_value(cause, "a --vfio for each device"));
            }
            "host" | "sysfs" => selector = Some(device(&value)?),
            "slot" => selector = Some(Selector::Slot(value)),
            "id" => id = Some(name(value)?),
            "managed" => managed = choice("--vfio managed=", Some(&value), MANAGED_CHOICES)?,
            "reset" => reset = choice("--vfio reset=", Some(&value), CHOICES)?,
            "after" => after = choice("--vfio after=", Some(&value), AFTER_CHOICES)?,
            "trust-guest" => trust_guest = choice("--vfio trust-guest=", Some(&value), SWITCH)?,
            "raw-config" => raw_config = choice("--vfio raw-config=", Some(&value), SWITCH)?,
            "expect" => expect = Some(ids(&value)?),
            "vendor-id" => identity.vendor = Some(vendor_id(key, &value)?),
            "device-id" => identity.device = Some(one_id(key, &value)?),
            "sub-vendor-id" => identity.subsystem_vendor = Some(vendor_id(key, &value)?),
            "sub-device-id" => identity.subsystem = Some(one_id(key, &value)?),
            "rom" => {
                rom = match value.as_str() {
                    "on" => RomChoice::On,
                    "off" => RomChoice::Off,
                    _ => RomChoice::File(value.into()),
                }
            }
            _ => {
                let (bus, function) = guest_address(&value)?;
                (guest_bus, guest_function) = (Some(bus), function);
            }
        }
    }
    let Some(selector) = selector else {
        let cause = format!("--vfio {text} names no device");
        return Err(bad_value(cause, "its address comes first: --vfio 3b:00.0,..."));
    };
    if let (true, Some(function)) = (selector.is_slot(), guest_function) {
        let cause =
            format!("--vfio {text}: every function of {selector} cannot be function {function}");
        let fix = "leave the function out of guest-address=: in a whole slot each keeps its number";
        return Err(Failure::new(&codes::E2005, cause, fix));
    }
    Ok(VfioConfig {
        selector,
        id,
        guest_bus,
        guest_function,
        rom,
        expect,
        managed,
        reset,
        raw_config,
        after,
        trust_guest,
        identity,
    })
}

/// As every command takes it, and the flag with it.
fn device(word: &str) -> Result<Selector, Failure> {
    check::selector(word).map_err(|mut failure| {
        failure.cause = format!("--vfio: {}", failure.cause);
        failure
    })
}

fn name(text: String) -> Result<String, Failure> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if text.len() <= ID_MAX && text.bytes().all(allowed) {
        return Ok(text);
    }
    let cause = format!("--vfio: '{text}' is no id");
    Err(bad_value(cause, format!("at most {ID_MAX} letters, digits, '.', '_' and '-'")))
}

fn ids(text: &str) -> Result<(u16, u16), Failure> {
    selector::ids(text).ok_or_else(|| {
        let cause = format!("--vfio: expect={text} is no vendor:device");
        bad_value(cause, "four hexadecimal digits each, as lspci -n shows them: expect=10de:1e07")
    })
}

/// `1e07` or `0x1e07`: what lspci and sysfs print.
fn one_id(key: &str, text: &str) -> Result<u16, Failure> {
    let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")).unwrap_or(text);
    let is_id =
        (1..=4).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_id.then(|| u16::from_str_radix(digits, 16).ok()).flatten().ok_or_else(|| {
        let cause = format!("--vfio: {key}={text} is no ID");
        bad_value(cause, format!("up to four hexadecimal digits, as {key}=1e07 or {key}=0x1e07"))
    })
}

/// The same, but no vendor is 0 or ffff: with these a function is absent (PCI Local Bus 3.0, 6.1).
fn vendor_id(key: &str, text: &str) -> Result<u16, Failure> {
    match one_id(key, text)? {
        0 | 0xffff => {
            let cause = format!("--vfio: {key}={text}: no vendor has this ID");
            Err(bad_value(cause, "lspci -nn shows vendors' IDs, as 10de"))
        }
        id => Ok(id),
    }
}

/// `BB:00` or `BB:00.F`. Behind a root port there is only device 0 (PCIe Base 5.0, 7.3.1).
fn guest_address(text: &str) -> Result<(u8, Option<u8>), Failure> {
    let refuse = |why: &str, fix: &str| {
        let cause = format!("--vfio: guest-address={text}: {why}");
        Err(Failure::new(&codes::E2005, cause, fix))
    };
    let (bdf, function) = match text.parse() {
        Ok(BdfSelector::Function(bdf)) => (bdf, Some(bdf.function())),
        Ok(BdfSelector::Slot(bdf)) => (bdf, None),
        Err(_) => {
            let cause = format!("--vfio: guest-address={text} is no PCI address");
            return Err(bad_value(
                cause,
                "write bus and device, guest-address=05:00, or 05:00.1 with a function",
            ));
        }
    };
    if bdf.segment() != 0 {
        return refuse("the guest has one PCI segment", "leave the segment out");
    }
    if bdf.bus() == 0 {
        return refuse("bus 0 is the machine's own", "pick a bus from 01 to ff");
    }
    if bdf.device() != 0 {
        return refuse("behind a root port there is only device 00", "write BB:00 or BB:00.F");
    }
    Ok((bdf.bus(), function))
}

fn refuse_same_function(earlier: &VfioConfig, device: &VfioConfig) -> Result<(), Failure> {
    if !earlier.selector.overlaps(&device.selector) {
        return Ok(());
    }
    let cause = if earlier.selector == device.selector {
        format!("{} is given by two --vfio", device.selector)
    } else {
        format!("{} and {} share a function", earlier.selector, device.selector)
    };
    Err(Failure::new(
        &codes::E2004,
        cause,
        "a function has one place in the guest: keep one of them",
    ))
}

fn refuse_same_name(
    (before, earlier): (usize, &VfioConfig),
    (position, device): (usize, &VfioConfig),
) -> Result<(), Failure> {
    let name = |position: usize, device: &VfioConfig| {
        device.id.clone().unwrap_or_else(|| format!("vfio{position}"))
    };
    let id = name(position, device);
    if name(before, earlier) != id {
        return Ok(());
    }
    let cause = format!("{} and {} are both called '{id}'", earlier.selector, device.selector);
    Err(Failure::new(&codes::E2004, cause, "give one of them another id="))
}

/// What is certain before the host is seen: two functions at one explicit place, or a whole slot that shares a bus.
fn refuse_same_guest_address(earlier: &VfioConfig, device: &VfioConfig) -> Result<(), Failure> {
    let (Some(bus), true) = (device.guest_bus, earlier.guest_bus == device.guest_bus) else {
        return Ok(());
    };
    let slot = |device: &VfioConfig| device.selector.is_slot();
    let place = match (earlier.guest_function, device.guest_function) {
        (Some(a), Some(b)) if a == b => format!("{bus:02x}:00.{a}"),
        _ if slot(earlier) || slot(device) => format!("{bus:02x}:00"),
        _ => return Ok(()),
    };
    let cause =
        format!("{} and {} both want guest address {place}", earlier.selector, device.selector);
    let fix = "give one of them another bus, or leave guest-address= out";
    Err(Failure::new(&codes::E2005, cause, fix))
}

/// No system looks at a device further when its function 0 is absent (PCI Local Bus 3.0, 3.2.2.3.4).
fn refuse_bus_without_function_0(devices: &[VfioConfig]) -> Result<(), Failure> {
    for device in devices {
        let (Some(bus), Some(_)) = (device.guest_bus, device.guest_function) else { continue };
        let mut on_bus = devices.iter().filter(|other| other.guest_bus == Some(bus));
        // One that leaves its function open may still take number 0.
        if on_bus.all(|other| other.guest_function.is_some_and(|function| function != 0)) {
            let cause = format!(
                "guest bus {bus:02x} gets no function 0, so the guest would find nothing there"
            );
            let fix = format!("give one of its functions guest-address={bus:02x}:00.0");
            return Err(Failure::new(&codes::E2005, cause, fix));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(texts: &[&str]) -> Result<Vec<VfioConfig>, Failure> {
        parse_all(&texts.iter().map(|&text| text.to_owned()).collect::<Vec<_>>())
    }

    fn one(text: &str) -> VfioConfig {
        all(&[text]).unwrap().remove(0)
    }

    #[test]
    fn parse_every_way_to_name_a_device() {
        let function = "0000:3b:00.0".parse().unwrap();
        for text in [
            "0000:3b:00.0",
            "3b:00.0",
            "host=3b:00.0",
            "/sys/bus/pci/devices/0000:3b:00.0",
            "/sys/bus/pci/devices/0000:3b:00.0/",
            "/sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0",
            "sysfs=/sys/bus/pci/devices/0000:3b:00.0",
            "id=x,host=0000:3b:00.0",
        ] {
            assert_eq!(
                one(text).selector,
                Selector::Address(BdfSelector::Function(function)),
                "{text}"
            );
        }
        for text in ["slot=PCIe 3,id=x", "10de:1e07"] {
            let words = text.split(',').next().unwrap();
            assert_eq!(one(text).selector.to_string(), words);
        }
        for text in ["3b:00", "0000:3b:00", "host=3b:00"] {
            assert_eq!(
                one(text).selector,
                Selector::Address(BdfSelector::Slot(function)),
                "{text}"
            );
        }
    }

    #[test]
    fn parse_without_keys_leaves_everything_open() {
        let bare = VfioConfig {
            selector: "3b:00.0".parse().unwrap(),
            id: None,
            guest_bus: None,
            guest_function: None,
            rom: RomChoice::On,
            expect: None,
            managed: Managed::Auto,
            reset: Choice::Auto,
            raw_config: false,
            after: After::Host,
            trust_guest: false,
            identity: Identity::default(),
        };
        assert_eq!(one("3b:00.0"), bare);
    }

    #[test]
    fn parse_every_key() {
        let full = one("3b:00.1,id=gpu0,guest-address=05:00.0,rom=/roms/a,,b.rom,expect=10DE:1e07");
        assert_eq!(full.id.as_deref(), Some("gpu0"));
        assert_eq!((full.guest_bus, full.guest_function), (Some(5), Some(0)));
        assert_eq!(full.rom, RomChoice::File("/roms/a,b.rom".into()));
        assert_eq!(full.expect, Some((0x10de, 0x1e07)));
        assert_eq!(one("3b:00,rom=off,guest-address=0000:ff:00").guest_bus, Some(0xff));
        assert_eq!(one("3b:00,managed=no").managed, Managed::No);
        assert_eq!(one("3b:00,managed=yes").managed, Managed::Yes);
        assert_eq!(one("3b:00,reset=none").reset, Choice::Off);
        assert_eq!(one("3b:00,reset=flr").reset, Choice::Only("flr"));
        assert_eq!(one("3b:00,rom=off").rom, RomChoice::Off);
        assert_eq!(one("3b:00,after=vfio").after, After::Vfio);
        assert_eq!(one("3b:00,after=host").after, After::Host);
        assert!(one("3b:00,trust-guest=on").trust_guest && !one("3b:00").trust_guest);
        assert!(one("3b:00,raw-config=on").raw_config && !one("3b:00,raw-config=off").raw_config);
        assert_eq!(one("3b:00,rom=on").rom, RomChoice::On);
        assert_eq!(one("3b:00,rom=./on").rom, RomChoice::File("./on".into()));
    }

    #[test]
    fn r46_ids_are_hexadecimal_with_or_without_a_prefix() {
        let given =
            one("3b:00.0,vendor-id=0x10de,device-id=1E07,sub-vendor-id=1043,sub-device-id=0x1");
        assert_eq!(
            given.identity,
            Identity {
                vendor: Some(0x10de),
                device: Some(0x1e07),
                subsystem_vendor: Some(0x1043),
                subsystem: Some(0x0001),
            }
        );
    }

    #[test]
    fn parse_refusals_name_the_word() {
        for (text, code, says) in [
            ("", "E2003", "no key=value"),
            ("id=x", "E2003", "names no device"),
            ("3b", "E2003", "'3b' is no PCI device"),
            ("gpu", "E2003", "strait devices"),
            ("slot=2,host=3b:00", "E2003", "then another"),
            ("slot=2,guest-address=05:00.0", "E2005", "each keeps its number"),
            ("3b:00.8", "E2003", "'3b:00.8'"),
            ("3b:00.0,host=3c:00.0", "E2003", "one device is named, then another"),
            ("host=3b:00.0,sysfs=/sys/bus/pci/devices/0000:3b:00.0", "E2003", "then another"),
            ("/sys/class/drm/card0", "E2003", "no PCI device in sysfs"),
            ("/dev/vfio/0000:3b:00.0", "E2003", "no PCI device in sysfs"),
            ("/sys/bus/pci/devices/0000:3b:00", "E2003", "no PCI device in sysfs"),
            ("3b:00.0,expect=10de", "E2003", "vendor:device"),
            ("3b:00.0,expect=10de:1e7", "E2003", "four hexadecimal digits"),
            ("3b:00.0,expect=+0de:1e07", "E2003", "vendor:device"),
            ("3b:00.0,device-id=0x12345", "E2003", "device-id=0x12345 is no ID"),
            ("3b:00.0,sub-device-id=x", "E2003", "hexadecimal"),
            ("3b:00.0,vendor-id=0xffff", "E2003", "no vendor has this ID"),
            ("3b:00.0,sub-vendor-id=0", "E2003", "no vendor has this ID"),
            ("3b:00.0,id=a b", "E2003", "'a b' is no id"),
            ("3b:00.0,id=0123456789012345678901234567890123", "E2003", "at most 32"),
            ("3b:00.0,guest-address=5", "E2003", "is no PCI address"),
            ("3b:00.0,guest-address=00:00", "E2005", "bus 0"),
            ("3b:00.0,guest-address=05:01", "E2005", "only device 00"),
            ("3b:00.0,guest-address=0001:05:00", "E2005", "one PCI segment"),
            ("3b:00.0,guest-address=05:00.1", "E2005", "guest-address=05:00.0"),
            ("3b:00,guest-address=05:00.0", "E2005", "each keeps its number"),
            ("3b:00.0,guest-addr=05:00", "E2002", "did you mean guest-address=?"),
            ("3b:00.0,managed=maybe", "E2003", "auto, yes"),
            ("3b:00.0,reset=hard", "E2003", "auto, none, flr"),
            ("3b:00.0,after=none", "E2003", "host, vfio"),
            ("3b:00.0,trust-guest=1", "E2003", "off, on"),
            ("3b:00.0,raw-config=yes", "E2003", "off, on"),
            ("3b:00.0,romfile=x", "E2002", "rom"),
        ] {
            let failure = all(&[text]).unwrap_err();
            assert_eq!(failure.code.id, code, "{text}: {}", failure.cause);
            let told = format!("{} {}", failure.cause, failure.fix);
            assert!(told.contains(says), "{text}: {told}");
        }
    }

    #[test]
    fn devices_in_each_others_way_are_refused() {
        for (texts, code, says) in [
            (&["3b:00.0", "0000:3b:00.0,id=b"][..], "E2004", "0000:3b:00.0 is given by two --vfio"),
            (&["3b:00", "3b:00.1"], "E2004", "0000:3b:00 and 0000:3b:00.1 share a function"),
            (&["3b:00.1", "3b:00"], "E2004", "share a function"),
            (&["3b:00", "3b:00"], "E2004", "two --vfio"),
            (&["3b:00.0,id=a", "3c:00.0,id=a"], "E2004", "both called 'a'"),
            (&["3b:00.0,id=vfio1", "3c:00.0"], "E2004", "both called 'vfio1'"),
            (
                &["3b:00.0,guest-address=05:00.0", "3c:00.0,guest-address=05:00.0"],
                "E2005",
                "both want guest address 05:00.0",
            ),
            (
                &["3b:00,guest-address=05:00", "3c:00,guest-address=05:00"],
                "E2005",
                "both want guest address 05:00",
            ),
            (
                &["3b:00.0,guest-address=05:00.2", "3b:00.1,guest-address=05:00.1"],
                "E2005",
                "guest bus 05 gets no function 0",
            ),
        ] {
            let failure = all(texts).unwrap_err();
            assert_eq!(failure.code.id, code, "{texts:?}: {}", failure.cause);
            assert!(failure.cause.contains(says), "{texts:?}: {}", failure.cause);
        }
    }

    #[test]
    fn devices_side_by_side_are_taken_in_order() {
        for texts in [
            &["3b:00.0", "3b:00.1", "0001:3b:00.0"][..],
            &["3b:00", "3c:00"],
            &["3b:00.0,guest-address=05:00", "3b:00.1,guest-address=05:00"],
            &["3b:00.0,guest-address=05:00.1", "3b:00.1,guest-address=05:00.0"],
            &["3b:00.0,guest-address=05:00.1", "3c:00.0,guest-address=05:00"],
            &["3b:00.0,id=vfio0", "3c:00.0,id=vfio7"],
        ] {
            let devices = all(texts).unwrap();
            assert_eq!(devices.len(), texts.len());
            assert_eq!(devices[0].selector, one(texts[0].split(',').next().unwrap()).selector);
        }
    }
}
