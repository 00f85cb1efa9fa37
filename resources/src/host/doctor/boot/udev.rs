//! udev's rules (udev(7)), as far as one gives a device to vfio-pci.

use super::{super::super::pci::HostFunction, modprobe};

/// One `KEY{attribute}OP"value"` of a rule.
struct Token<'a> {
    key: &'a str,
    operator: &'a str,
    value: &'a str,
}

/// Does one of the rules in this file give the function to vfio-pci?
pub(super) fn gives(text: &str, function: &HostFunction) -> bool {
    modprobe::lines(text).iter().any(|line| rule_gives(&tokens(line), function))
}

fn tokens(line: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = line;
    while let Some((before, behind)) = rest.split_once('"') {
        let Some((value, after)) = behind.split_once('"') else { break };
        let before = before.trim_start_matches([',', ' ', '\t']).trim_end();
        let key = before.trim_end_matches(['=', '!', '+', '-', ':']);
        let operator = before.get(key.len()..).unwrap_or_default();
        tokens.push(Token { key: key.trim_end(), operator, value });
        rest = after;
    }
    tokens
}

fn rule_gives(tokens: &[Token<'_>], function: &HostFunction) -> bool {
    let is_condition = |token: &&Token<'_>| matches!(token.operator, "==" | "!=");
    let bdf = function.bdf.to_string();
    let mut is_named = false;
    for Token { key, operator, value } in tokens.iter().filter(is_condition) {
        let Some(own) = property(function, key) else { continue };
        let holds = value.split('|').any(|pattern| {
            let (pattern, own) = (pattern.to_lowercase(), own.to_lowercase());
            matches(pattern.as_bytes(), own.as_bytes())
        });
        if holds != (*operator == "==") {
            return false;
        }
        is_named |= holds && !matches!(*key, "SUBSYSTEM" | "SUBSYSTEMS" | "DRIVER");
    }
    tokens.iter().filter(|token| !is_condition(token)).any(|token| {
        let value = token.value.replace('_', "-");
        value.contains("vfio-pci") && (is_named || value.contains(&bdf))
    })
}

/// What udev compares, as sysfs writes it.
fn property(function: &HostFunction, key: &str) -> Option<String> {
    Some(match key {
        "KERNEL" | "KERNELS" | "ENV{PCI_SLOT_NAME}" => function.bdf.to_string(),
        "SUBSYSTEM" | "SUBSYSTEMS" => "pci".to_owned(),
        "ATTR{vendor}" | "ATTRS{vendor}" => format!("0x{:04x}", function.vendor),
        "ATTR{device}" | "ATTRS{device}" => format!("0x{:04x}", function.device),
        "ATTR{subsystem_vendor}" => format!("0x{:04x}", function.subsystem_vendor),
        "ATTR{subsystem_device}" => format!("0x{:04x}", function.subsystem_device),
        "ATTR{class}" => format!("0x{:06x}", function.class.0),
        "ENV{PCI_ID}" => function.id(),
        "ENV{PCI_SUBSYS_ID}" => {
            format!("{:04x}:{:04x}", function.subsystem_vendor, function.subsystem_device)
        }
        _ => return None,
    })
}

/// Shell pattern: `*`, `?`, `[abc]`, `[!abc]`, `[a-c]`.
fn matches(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), None) => matches(rest, text),
        (Some((b'*', rest)), Some((_, behind))) => matches(rest, text) || matches(pattern, behind),
        (Some((b'?', rest)), Some((_, behind))) => matches(rest, behind),
        (Some((b'[', rest)), Some((own, behind))) => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else { return false };
            let (set, rest) = (rest.get(..end).unwrap_or_default(), rest.get(end + 1..));
            is_in_set(set, *own) && matches(rest.unwrap_or_default(), behind)
        }
        (Some((wanted, rest)), Some((own, behind))) => wanted == own && matches(rest, behind),
        (None, Some(_)) | (Some(_), None) => false,
    }
}

fn is_in_set(set: &[u8], own: u8) -> bool {
    let (set, is_other) = match set.split_first() {
        Some((b'!' | b'^', rest)) => (rest, true),
        _ => (set, false),
    };
    let in_range = set.windows(3).any(|w| matches!(w, [a, b'-', z] if (*a..=*z).contains(&own)));
    (set.contains(&own) || in_range) != is_other
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{fixture::Tree, pci};

    /// 10de:1e07 at 0000:3b:00.0, a display.
    fn card() -> HostFunction {
        pci::find(&Tree::two_cards().sysroot(), "3b:00.0".parse().unwrap()).unwrap().unwrap()
    }

    #[test]
    fn rule_gives_what_it_names_by_address_or_ids() {
        for yes in [
            r#"KERNEL=="0000:3b:00.0", ATTR{driver_override}="vfio-pci""#,
            r#"ACTION=="add", SUBSYSTEM=="pci", KERNEL=="0000:3b:00.[0-3]", ATTR{driver_override}="vfio-pci""#,
            r#"KERNEL=="0000:01:00.0|0000:3b:00.*", RUN+="/bin/sh -c 'echo vfio_pci > /sys%p/driver_override'""#,
            r#"ATTR{vendor}=="0x10DE", ATTR{device}=="0x1e07", ATTR{driver_override}="vfio-pci""#,
            r#"ACTION=="add", RUN+="/usr/bin/driverctl set-override 0000:3b:00.0 vfio-pci""#,
            "SUBSYSTEM==\"pci\", \\\n  KERNEL==\"0000:3b:00.0\", ATTR{driver_override}=\"vfio-pci\"",
        ] {
            assert!(gives(yes, &card()), "{yes}");
        }
        for no in [
            r#"KERNEL=="0000:d8:00.0", ATTR{driver_override}="vfio-pci""#,
            r#"KERNEL=="0000:3b:00.0", ATTR{driver_override}="nvidia""#,
            r#"KERNEL!="0000:3b:00.0", ATTR{vendor}=="0x10de", ATTR{driver_override}="vfio-pci""#,
            r#"# KERNEL=="0000:3b:00.0", ATTR{driver_override}="vfio-pci""#,
            r#"SUBSYSTEM=="vfio", DRIVER=="vfio-pci", KERNEL=="0000:3b:00.0", GROUP="kvm""#,
            r#"ATTR{vendor}=="0x10de", ATTR{device}=="0x10f7", ATTR{driver_override}="vfio-pci""#,
        ] {
            assert!(!gives(no, &card()), "{no}");
        }
    }
}
