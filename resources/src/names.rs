//! Names for vendors, devices and classes: from the system's pci.ids, else from a short table of our own, else numbers.

use std::{collections::HashMap, sync::Arc};

use crate::host::{
    pci::{Class, HostFunction},
    sysroot::Sysroot,
};

/// Where distributions keep the database.
const FILES: [&str; 3] =
    ["/usr/share/misc/pci.ids", "/usr/share/hwdata/pci.ids", "/var/lib/pciutils/pci.ids"];

/// For hosts without that file, and for what it does not have.
const BUNDLED: &str = include_str!("names/bundled.ids");

/// The database.
#[derive(Clone, Debug, Default)]
pub struct Names {
    vendors: Arc<HashMap<u16, Vendor>>,
}

#[derive(Clone, Debug)]
struct Vendor {
    name: String,
    devices: HashMap<u16, String>,
}

impl Vendor {
    fn named(name: &str) -> Self {
        Self { name: name.to_owned(), devices: HashMap::new() }
    }
}

impl Names {
    /// The system's database over the bundled one. No command fails for want of a name: a file that cannot be read is
    /// as none. It is read once for a host, and answered again and again.
    pub fn load(sysroot: &Sysroot) -> Self {
        sysroot.names().clone()
    }

    pub(crate) fn read(sysroot: &Sysroot) -> Self {
        let mut vendors = parse(BUNDLED);
        let system = FILES.iter().find_map(|file| sysroot.read(file).ok());
        for (id, vendor) in system.map_or_else(HashMap::new, |text| parse(&text)) {
            let known = vendors.entry(id).or_insert_with(|| Vendor::named(&vendor.name));
            known.name = vendor.name;
            known.devices.extend(vendor.devices);
        }
        Self { vendors: Arc::new(vendors) }
    }

    /// `NVIDIA Corporation`.
    pub fn vendor(&self, vendor: u16) -> Option<&str> {
        self.vendors.get(&vendor).map(|vendor| vendor.name.as_str())
    }

    /// `TU102 [GeForce RTX 2080 Ti]`.
    pub fn device(&self, vendor: u16, device: u16) -> Option<&str> {
        self.vendors.get(&vendor)?.devices.get(&device).map(String::as_str)
    }

    /// One phrase for a function: `NVIDIA Corporation TU102 [10de:1e07]`, or `VGA controller [10de:1e07]`.
    pub fn function(&self, function: &HostFunction) -> String {
        let id = function.id();
        match (self.vendor(function.vendor), self.device(function.vendor, function.device)) {
            (Some(vendor), Some(device)) => format!("{vendor} {device} [{id}]"),
            (Some(vendor), None) => format!("{vendor} {} [{id}]", class(function.class)),
            _ => format!("{} [{id}]", class(function.class)),
        }
    }
}

/// Reads the format of pci.ids: "vvvv  Vendor", "<tab>dddd  Device", deeper lines are subsystems, and at
/// the first "C" line the classes begin. Lines that are none of these are skipped.
fn parse(text: &str) -> HashMap<u16, Vendor> {
    let mut vendors: HashMap<u16, Vendor> = HashMap::new();
    let mut current = None;
    for line in text.lines().take_while(|line| !line.starts_with("C ")) {
        if line.starts_with("\t\t") {
            continue;
        }
        if let Some((id, name)) = line.strip_prefix('\t').and_then(entry) {
            if let Some(vendor) = current.and_then(|vendor| vendors.get_mut(&vendor)) {
                vendor.devices.insert(id, name.to_owned());
            }
        } else if let Some((id, name)) = entry(line) {
            vendors.insert(id, Vendor::named(name));
            current = Some(id);
        }
    }
    vendors
}

/// "10de  NVIDIA Corporation".
fn entry(line: &str) -> Option<(u16, &str)> {
    let (id, name) = line.split_once("  ")?;
    let is_id = id.len() == 4 && id.bytes().all(|digit| digit.is_ascii_hexdigit());
    is_id.then(|| Some((u16::from_str_radix(id, 16).ok()?, name.trim())))?
}

/// What kind of function (PCI Code and ID Assignment 1.15), as far as it matters here; else its number.
pub fn class(class: Class) -> String {
    let known = match (class.base(), class.sub(), class.interface()) {
        (0x01, 0x01, _) => "IDE controller",
        (0x01, 0x04, _) => "RAID controller",
        (0x01, 0x06, _) => "SATA controller",
        (0x01, 0x07, _) => "SAS controller",
        (0x01, 0x08, _) => "NVMe controller",
        (0x01, ..) => "storage controller",
        (0x02, 0x00, _) => "Ethernet controller",
        (0x02, 0x07, _) => "InfiniBand controller",
        (0x02, ..) => "network controller",
        (0x03, 0x00, _) => "VGA controller",
        (0x03, 0x02, _) => "3D controller",
        (0x03, ..) => "display controller",
        (0x04, 0x03, _) => "audio device",
        (0x04, ..) => "multimedia device",
        (0x05, ..) => "memory controller",
        (0x06, 0x00, _) => "host bridge",
        (0x06, 0x01, _) => "ISA bridge",
        (0x06, 0x04, _) => "PCI bridge",
        (0x06, 0x80, _) => "other bridge",
        (0x06, ..) => "bridge",
        (0x07, 0x00, _) => "serial port",
        (0x07, ..) => "communication controller",
        (0x08, ..) => "system peripheral",
        (0x09, ..) => "input device",
        (0x0b, ..) => "processor",
        (0x0c, 0x03, 0x30) => "USB controller (xHCI)",
        (0x0c, 0x03, 0x40) => "USB4 controller",
        (0x0c, 0x03, _) => "USB controller",
        (0x0c, 0x05, _) => "SMBus",
        (0x0c, ..) => "serial bus controller",
        (0x0d, ..) => "wireless controller",
        (0x10, ..) => "encryption controller",
        (0x11, ..) => "signal processing controller",
        (0x12, ..) => "accelerator",
        (0x00 | 0xff, ..) => "device without class",
        _ => return format!("class {class}"),
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{fixture::Tree, pci};

    const IDS: &str = "# A comment\n\n10de  NVIDIA Corporation\n\t10f7  TU102 High Definition Audio Controller\n\
        \t1e07  TU102 [GeForce RTX 2080 Ti Rev. A]\n\t\t1458 37a9  GV-N208TAORUS\n8086  Intel Corporation\n\
        C 03  Display controller\n\t00  VGA compatible controller\n";

    fn gpu(tree: &Tree) -> HostFunction {
        pci::find(&tree.sysroot(), "3b:00.0".parse().unwrap()).unwrap().unwrap()
    }

    #[test]
    fn names_come_from_the_systems_database() {
        let tree = Tree::two_cards();
        tree.file("/usr/share/hwdata/pci.ids", IDS);
        let names = Names::load(&tree.sysroot());
        assert_eq!(names.vendor(0x8086), Some("Intel Corporation"));
        assert_eq!(names.device(0x10de, 0x1458), None);
        assert_eq!(
            names.function(&gpu(&tree)),
            "NVIDIA Corporation TU102 [GeForce RTX 2080 Ti Rev. A] [10de:1e07]"
        );
    }

    #[test]
    fn names_without_a_database_are_the_bundled_ones_and_then_class_and_numbers() {
        let tree = Tree::two_cards();
        let names = Names::load(&tree.sysroot());
        let mut card = gpu(&tree);
        assert_eq!(names.function(&card), "NVIDIA TU102 GeForce RTX 2080 Ti Rev. A [10de:1e07]");
        card.device = 0xfffe;
        assert_eq!(names.function(&card), "NVIDIA VGA controller [10de:fffe]");
        card.vendor = 0xfffe;
        assert_eq!(names.function(&card), "VGA controller [fffe:fffe]");
        assert_eq!(class(Class(0x42_0001)), "class 420001");
    }

    #[test]
    fn names_of_the_system_go_before_bundled_ones_that_it_lacks() {
        let tree = Tree::new();
        tree.file("/usr/share/misc/pci.ids", "10de  NVIDIA Corporation\n\t1e07  Another\n");
        let names = Names::load(&tree.sysroot());
        assert_eq!(names.vendor(0x10de), Some("NVIDIA Corporation"));
        assert_eq!(names.device(0x10de, 0x1e07), Some("Another"));
        assert_eq!(names.device(0x10de, 0x1db4), Some("GV100 Tesla V100 PCIe 16GB"));
        assert_eq!(names.vendor(0x1002), Some("AMD"));
    }

    #[test]
    fn names_are_read_once_for_a_host() {
        let tree = Tree::two_cards();
        tree.file("/usr/share/hwdata/pci.ids", IDS);
        let sysroot = tree.sysroot();
        let first = Names::load(&sysroot).function(&gpu(&tree));
        tree.remove("/usr/share/hwdata/pci.ids");
        assert_eq!(Names::load(&sysroot.clone()).function(&gpu(&tree)), first);
        assert_ne!(Names::load(&tree.sysroot()).function(&gpu(&tree)), first);
    }

    #[test]
    fn bundled_names_are_short_and_every_line_is_read() {
        let vendors = parse(BUNDLED);
        let devices: usize = vendors.values().map(|vendor| vendor.devices.len()).sum();
        let lines = BUNDLED.lines().filter(|line| !line.starts_with('#')).count();
        assert_eq!(vendors.len() + devices, lines);
        assert!(BUNDLED.lines().all(|line| line.starts_with('#') || line.len() <= 50));
    }

    #[test]
    fn names_of_classes_are_not_taken_for_devices() {
        let vendors = parse(IDS);
        assert!(!vendors[&0x8086].devices.contains_key(&0));
        assert_eq!(vendors.len(), 2);
    }
}
