//! Secrets that are told by their form alone: MAC and IP addresses, UUIDs, serial numbers behind their names.
//!
//! A number of four parts may be an address or a version. It stays only where a version is meant, by the words
//! around it, and never from a range that private networks use; in doubt it goes. PCI addresses have neither enough
//! groups nor an empty one to be anything else.

use std::net::{Ipv4Addr, Ipv6Addr};

use super::{IP, MAC, SERIAL, UUID};

/// One find: where it begins, how long it is, what it is.
pub(super) type Find = (usize, usize, &'static str);

/// Every secret, in order; no two overlap.
pub(super) fn finds(text: &str) -> Vec<Find> {
    let mut found = Vec::new();
    let mut at = 0;
    while at < text.len() {
        match find_at(text, at) {
            Some((skip, len, kind)) => {
                found.push((at + skip, len, kind));
                at += skip + len;
            }
            None => at += 1,
        }
    }
    found
}

/// What begins here, behind how many bytes of its name, and how long it is.
fn find_at(text: &str, at: usize) -> Option<Find> {
    let bytes = text.as_bytes();
    let rest = bytes.get(at..)?;
    let before = at.checked_sub(1).and_then(|before| bytes.get(before)).copied();
    let first = *rest.first()?;
    if first.is_ascii_digit() {
        // A letter may stand right before it: "v1.2.3.4".
        if let Some(len) = ipv4(bytes, at) {
            return Some((0, len, IP));
        }
    }
    if before.is_some_and(|byte| byte.is_ascii_alphanumeric()) {
        return None;
    }
    if first.is_ascii_hexdigit() || first == b':' {
        if let Some(len) = uuid(rest) {
            return Some((0, len, UUID));
        }
        if let Some(len) = mac(rest) {
            return Some((0, len, MAC));
        }
        if let Some(len) = ipv6(rest) {
            return Some((0, len, IP));
        }
    }
    if let Some(len) =
        after_name(rest, b"enx", |byte| byte.is_ascii_hexdigit()).filter(|n| *n == 12)
    {
        return Some((3, len, MAC));
    }
    // As udev and the kernel write the names of disks that a maker gave for good.
    for name in ["eui.", "naa.", "wwn-0x"] {
        let len = after_name(rest, name.as_bytes(), |byte| byte.is_ascii_hexdigit());
        if let Some(len) = len.filter(|len| *len >= 8) {
            return Some((name.len(), len, SERIAL));
        }
    }
    serial(rest).map(|(skip, len)| (skip, len, SERIAL))
}

/// How many bytes of such a kind stand behind a name.
fn after_name(rest: &[u8], name: &[u8], is: impl Fn(u8) -> bool) -> Option<usize> {
    let (head, tail) = rest.split_at_checked(name.len())?;
    head.eq_ignore_ascii_case(name).then(|| tail.iter().take_while(|byte| is(**byte)).count())
}

/// The end of a word: no letter and no digit follows.
fn ends(rest: &[u8], len: usize) -> bool {
    rest.get(len).is_none_or(|byte| !byte.is_ascii_alphanumeric())
}

fn hex_run(rest: &[u8]) -> usize {
    rest.iter().take_while(|byte| byte.is_ascii_hexdigit()).count()
}

/// 8-4-4-4-12, or all 32 digits in one, as machine-id has them.
fn uuid(rest: &[u8]) -> Option<usize> {
    const GROUPS: [usize; 5] = [8, 4, 4, 4, 12];
    if hex_run(rest) == 32 && ends(rest, 32) {
        return Some(32);
    }
    let mut at = 0;
    for (position, group) in GROUPS.into_iter().enumerate() {
        if position > 0 {
            (*rest.get(at)? == b'-').then_some(())?;
            at += 1;
        }
        (hex_run(rest.get(at..)?) == group).then_some(())?;
        at += group;
    }
    ends(rest, at).then_some(at)
}

/// Six pairs or more (EUI-64, InfiniBand), with `:` or `-` between them, or three groups of four with dots.
fn mac(rest: &[u8]) -> Option<usize> {
    let grouped = |size: usize, by: u8| {
        let (mut at, mut groups) = (0, 0);
        while hex_run(rest.get(at..).unwrap_or_default()) == size {
            groups += 1;
            at += size;
            if rest.get(at) != Some(&by) {
                break;
            }
            at += 1;
        }
        // A separator behind the last group is not its own.
        let len = if at > 0 && rest.get(at - 1) == Some(&by) { at - 1 } else { at };
        (groups, len)
    };
    for by in [b':', b'-'] {
        let (groups, len) = grouped(2, by);
        if groups >= 6 && ends(rest, len) {
            return Some(len);
        }
    }
    let (groups, len) = grouped(4, b'.');
    (groups == 3 && ends(rest, len)).then_some(len)
}

/// The longest address that ends with a word.
fn ipv6(rest: &[u8]) -> Option<usize> {
    const LONGEST: usize = "ffff:ffff:ffff:ffff:ffff:ffff:255.255.255.255".len();
    let part = |byte: &&u8| byte.is_ascii_hexdigit() || b":.".contains(byte);
    let run = rest.iter().take(LONGEST + 1).take_while(part).count();
    (3..=run).rev().filter(|len| ends(rest, *len)).find(|len| {
        let text = rest.get(..*len).and_then(|bytes| std::str::from_utf8(bytes).ok());
        text.is_some_and(|text| text.parse::<Ipv6Addr>().is_ok())
    })
}

/// Four numbers that are an address and no version.
fn ipv4(bytes: &[u8], at: usize) -> Option<usize> {
    let (before, rest) = bytes.split_at_checked(at)?;
    let longer = matches!(before, [.., b'0'..=b'9'] | [.., b'0'..=b'9', b'.']);
    let run = rest.iter().take_while(|byte| byte.is_ascii_digit() || **byte == b'.').count();
    let text = std::str::from_utf8(rest.get(..run)?).ok()?;
    // A sentence may end behind it.
    let text = text.trim_end_matches('.');
    // This takes no leading zeros, which versions have and addresses do not.
    let address: Ipv4Addr = text.parse().ok().filter(|_| !longer)?;
    let [first, second, ..] = address.octets();
    let after = rest.get(text.len()..).unwrap_or_default();
    let private = address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || first == 100 && (64..128).contains(&second);
    // 0.1.2.3 is nobody's address.
    let version = first == 0 || !private && is_version(before, after);
    (!version).then_some(text.len())
}

/// Do the words around a number of four parts make a version of it?
fn is_version(before: &[u8], after: &[u8]) -> bool {
    const NAMES: &[&str] = &[
        "abi",
        "bios",
        "build",
        "driver",
        "firmware",
        "fw",
        "microcode",
        "module",
        "release",
        "rev",
        "revision",
        "vbios",
        "ver",
        "version",
    ];
    /// Before a dash: what packages and files of passthrough hosts are called.
    const PACKAGES: &[&str] = &[
        "amdgpu", "dkms", "edk", "grub", "kernel", "libvirt", "linux", "mesa", "nvidia", "ovmf",
        "qemu", "seabios", "vgpu",
    ];
    match after {
        // 1.2.3.4-5, 1.2.3.4rc1, 1.2.3.4~git
        [b'a'..=b'z' | b'A'..=b'Z' | b'~' | b'+', ..] => return true,
        [b'-', tail @ ..] => {
            let digits = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
            if digits > 0 && tail.get(digits) != Some(&b'.') {
                return true;
            }
        }
        _ => {}
    }
    let word = |text: &[u8]| -> String {
        let letters = text.iter().rev().take_while(|byte| byte.is_ascii_alphabetic());
        let mut word: Vec<u8> = letters.map(u8::to_ascii_lowercase).collect();
        word.reverse();
        String::from_utf8(word).unwrap_or_default()
    };
    match before {
        [head @ .., b'v' | b'V' | b'r' | b'R'] => {
            head.last().is_none_or(|byte| !byte.is_ascii_alphabetic())
        }
        [head @ .., b'-'] => {
            let name = word(head);
            NAMES.iter().chain(PACKAGES).any(|known| *known == name)
        }
        _ => {
            let space = |byte: &&u8| b" :=\"(,".contains(byte);
            let end = before.len() - before.iter().rev().take_while(space).count();
            let (head, gap) = before.split_at(end);
            !gap.is_empty() && NAMES.contains(&word(head).as_str())
        }
    }
}

/// `SerialNumber: X`, `serial=X`: where the value begins, and its length. Words that are no serial number have no digit.
fn serial(rest: &[u8]) -> Option<(usize, usize)> {
    const NAMES: &[&str] =
        &["serial number", "serialnumber", "serial no", "serial", "iserial", "s/n"];
    let name = NAMES.iter().find(|name| {
        after_name(rest, name.as_bytes(), |byte| b" \t".contains(&byte))
            .and_then(|gap| rest.get(name.len() + gap))
            .is_some_and(|byte| b":=".contains(byte))
    })?;
    let gap = rest.get(name.len()..)?.iter().take_while(|byte| b" \t:=\"'".contains(byte)).count();
    let start = name.len() + gap;
    let part = |byte: &&u8| byte.is_ascii_alphanumeric() || b"-_".contains(byte);
    let value: Vec<u8> = rest.get(start..)?.iter().take_while(part).copied().collect();
    (value.len() >= 4 && value.iter().any(u8::is_ascii_digit)).then_some((start, value.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kinds(text: &str) -> Vec<(&str, &'static str)> {
        finds(text).into_iter().map(|(at, len, kind)| (&text[at..at + len], kind)).collect()
    }

    #[test]
    fn r92_addresses_are_found_in_whatever_stands_around_them() {
        for (text, address) in [
            ("10.0.0.1", "10.0.0.1"),
            ("10.0.0.1:8006", "10.0.0.1"),
            ("10.0.0.1-10.0.0.9", "10.0.0.1"),
            ("ip=192.168.1.7::192.168.1.1:255.255.255.0", "192.168.1.7"),
            ("driver version 192.168.1.7", "192.168.1.7"),
            ("server-8.8.8.8", "8.8.8.8"),
            ("from 8.8.8.8.", "8.8.8.8"),
            ("nfsroot=8.8.8.8:/srv", "8.8.8.8"),
            ("[fe80::1%eth0]:22", "fe80::1"),
            ("addr:2001:db8:0:1:2:3:4:5:", "2001:db8:0:1:2:3:4:5"),
            ("::ffff:10.0.0.1", "::ffff:10.0.0.1"),
        ] {
            assert_eq!(kinds(text).first(), Some(&(address, IP)), "{text}");
        }
    }

    #[test]
    fn r92_versions_and_pci_addresses_stay() {
        for text in [
            "NVIDIA driver 535.183.1.2",
            "libvirt 1.2.3.4-5",
            "version: 8.2.2.1",
            "v8.2.2.1 r4.3.2.1",
            "nvidia-8.2.2.1",
            "90.02.4D.00.B1",
            "31.0.15.4575",
            "98.02.2.01",
            "1.2.3.4.5",
            "1.2.3.4~rc1",
            "0.7.0.2",
            "0000:3b:00.0 0000:3b:00 3b:00.0 [10de:1e07] pci:v000010DEd00001E07",
            "12:34:56 2026-11-21T12:34:56",
            "std::io::Error, a std::fmt",
            "0x380000000000-0x38000fffffff",
            "--serial stdio, serial=none",
        ] {
            assert_eq!(kinds(text), [], "{text}");
        }
    }

    #[test]
    fn r92_names_given_by_makers_are_found() {
        for (text, secret, kind) in [
            ("eth0-52:54:00:12:34:56,", "52:54:00:12:34:56", MAC),
            ("52-54-00-FF-FE-12-34-56", "52-54-00-FF-FE-12-34-56", MAC),
            ("5254.0012.3456", "5254.0012.3456", MAC),
            ("enx525400123456: renamed", "525400123456", MAC),
            (
                "GPU-f0c1aa8d-6225-5b67-2db5-689775dda8b5",
                "f0c1aa8d-6225-5b67-2db5-689775dda8b5",
                UUID,
            ),
            ("0123456789abcdef0123456789abcdef", "0123456789abcdef0123456789abcdef", UUID),
            ("nvme-eui.0025385b01234567-part1", "0025385b01234567", SERIAL),
            ("wwn-0x5000c500a1b2c3d4", "5000c500a1b2c3d4", SERIAL),
            ("usb 1-1: SerialNumber: 4C530001", "4C530001", SERIAL),
            ("drive0,serial=S4EWNX0R,x", "S4EWNX0R", SERIAL),
        ] {
            assert_eq!(kinds(text), [(secret, kind)], "{text}");
        }
    }
}
