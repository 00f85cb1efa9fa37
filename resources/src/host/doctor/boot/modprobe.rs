//! modprobe's configuration (modprobe.d(5)) and kernel arguments, as far as they say who gets a device.

use std::collections::BTreeMap;

use super::super::super::sysroot::{SysError, Sysroot};

/// One line that is no comment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) file: String,
    pub(super) words: Vec<String>,
}

/// Where both modprobe and udev look, the administrator's files first. A file hides those of the same name in the
/// directories behind its own.
const DIRECTORIES: [&str; 5] = ["/etc", "/run", "/usr/local/lib", "/usr/lib", "/lib"];

/// The files of all of these directories that count, by name, which is the order in which they are read.
pub(super) fn files(
    sysroot: &Sysroot,
    directory: &str,
    suffix: &str,
) -> Result<Vec<String>, SysError> {
    let mut by_name = BTreeMap::new();
    for root in DIRECTORIES {
        let directory = format!("{root}/{directory}");
        for name in sysroot.list_if_present(&directory)? {
            if name.ends_with(suffix) {
                by_name.entry(name.clone()).or_insert_with(|| format!("{directory}/{name}"));
            }
        }
    }
    Ok(by_name.into_values().collect())
}

/// The lines of a file: one that ends in a backslash goes on in the next, and comments are whole lines.
pub(super) fn lines(text: &str) -> Vec<String> {
    text.replace("\\\n", " ")
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
        .map(str::to_owned)
        .collect()
}

/// All lines in the order in which modprobe reads them.
pub(super) fn read(sysroot: &Sysroot) -> Result<Vec<Line>, SysError> {
    let mut all = Vec::new();
    for file in files(sysroot, "modprobe.d", ".conf")? {
        // A link to /dev/null hides the distribution's file.
        let text = sysroot.read_if_present(&file)?.unwrap_or_default();
        all.extend(lines(&text).iter().map(|line| {
            let words = line.split_whitespace().map(str::to_owned).collect();
            Line { file: file.clone(), words }
        }));
    }
    Ok(all)
}

/// Dashes and underscores are the same in the name of a module and of a parameter.
pub(super) fn is_vfio_pci(module: &str) -> bool {
    module.replace('-', "_") == "vfio_pci"
}

/// The value of `ids=` among a module's options, the last one: the kernel overwrites earlier ones.
pub(super) fn ids<'a>(options: impl Iterator<Item = &'a str>) -> Option<String> {
    options
        .filter_map(|word| word.trim_matches('"').strip_prefix("ids="))
        .last()
        .map(|value| value.replace('"', ""))
}

/// The value of `vfio-pci.ids=` among the kernel's arguments, with the kernel's rules: quotes keep spaces together,
/// what follows `--` is for init, the last one counts.
pub(super) fn ids_of_cmdline(cmdline: &str) -> Option<String> {
    let mut found = None;
    for word in words_of_cmdline(cmdline) {
        let Some((name, value)) = word.split_once('=') else { continue };
        if name.replace('-', "_") == "vfio_pci.ids" {
            found = Some(value.to_owned());
        }
    }
    found
}

fn words_of_cmdline(cmdline: &str) -> Vec<String> {
    let (mut words, mut word, mut quoted) = (Vec::new(), String::new(), false);
    for c in cmdline.chars() {
        match c {
            '"' => quoted = !quoted,
            c if c.is_whitespace() && !quoted => words.push(std::mem::take(&mut word)),
            c => word.push(c),
        }
    }
    words.push(word);
    words.retain(|word| !word.is_empty());
    let end = words.iter().position(|word| word == "--").unwrap_or(words.len());
    words.truncate(end);
    words
}

/// What a list of IDs is compared with.
#[derive(Clone, Copy, Debug)]
pub(super) struct Identity {
    pub(super) vendor: u16,
    pub(super) device: u16,
    pub(super) subsystem_vendor: u16,
    pub(super) subsystem_device: u16,
    /// 24 bits.
    pub(super) class: u32,
}

/// Does vfio-pci's `ids=` name this device? `vendor:device[:subvendor[:subdevice[:class[:class_mask]]]]`, hexadecimal,
/// several with commas (vfio_pci.c); all ones stand for "any", and the class counts where the mask has bits.
pub(super) fn names(list: &str, identity: Identity) -> bool {
    const ANY: u32 = u32::MAX;
    list.split(',').any(|entry| {
        let fields: Vec<Option<u32>> = entry
            .split(':')
            .map(|field| {
                let field = field.trim();
                let digits = field.strip_prefix("0x").or(field.strip_prefix("0X"));
                u32::from_str_radix(digits.unwrap_or(field), 16).ok()
            })
            .collect();
        let (Some(Some(vendor)), Some(Some(device))) = (fields.first(), fields.get(1)) else {
            return false;
        };
        // The kernel stops reading at the first field that is no number.
        let field = |at: usize, other: u32| fields.get(at).copied().flatten().unwrap_or(other);
        let is = |wanted: u32, own: u16| wanted == ANY || wanted == u32::from(own);
        let (class, mask) = (field(4, 0), field(5, 0));
        is(*vendor, identity.vendor)
            && is(*device, identity.device)
            && is(field(2, ANY), identity.subsystem_vendor)
            && is(field(3, ANY), identity.subsystem_device)
            && (class ^ identity.class) & mask == 0
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const CARD: Identity = Identity {
        vendor: 0x10de,
        device: 0x1c82,
        subsystem_vendor: 0x1458,
        subsystem_device: 0x3764,
        class: 0x03_0000,
    };

    #[test]
    fn ids_are_hexadecimal_in_any_case_with_optional_subsystem_and_class() {
        for yes in [
            "10de:1c82",
            "10DE:1C82",
            "0x10de:0x1C82",
            "8086:1234,10de:1c82",
            "10de:1c82:1458:3764",
            "10de:1c82:ffffffff:ffffffff",
            "10de:ffffffff:ffffffff:ffffffff:030000:ffffff",
        ] {
            assert!(names(yes, CARD), "{yes}");
        }
        for no in [
            "",
            "10de",
            "10de:0fb9",
            "110de:1c82",
            "10de:1c82:1043",
            "10de:1c82:1458:3765",
            "10de:1c82:ffffffff:ffffffff:040300:ffffff",
        ] {
            assert!(!names(no, CARD), "{no}");
        }
    }

    #[test]
    fn kernel_argument_is_found_in_every_spelling() {
        for yes in [
            "quiet vfio-pci.ids=10de:1c82 ro",
            "vfio_pci.ids=10de:1c82",
            "\"vfio-pci.ids=10de:1c82\"",
            "vfio-pci.ids=\"10de:1c82\"",
            "vfio-pci.ids=8086:1 vfio_pci.ids=10de:1c82",
        ] {
            assert_eq!(ids_of_cmdline(yes).as_deref(), Some("10de:1c82"), "{yes}");
        }
        for no in ["quiet", "xvfio-pci.ids=10de:1c82", "quiet -- vfio-pci.ids=10de:1c82"] {
            assert_eq!(ids_of_cmdline(no), None, "{no}");
        }
    }

    #[test]
    fn last_ids_option_counts() {
        let options = ["disable_vga=1", "ids=1:2", "\"ids=3:4\""];
        assert_eq!(ids(options.into_iter()).as_deref(), Some("3:4"));
    }
}
