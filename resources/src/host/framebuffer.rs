//! The picture that the firmware left and the host's kernel goes on drawing: which driver does it, on whose BAR, and
//! which text consoles it carries.
//!
//! Such a driver (efifb, vesafb, simplefb, simpledrm) belongs to no PCI device: the kernel makes a platform device of
//! what the firmware says (drivers/firmware/sysfb.c), and only /proc/iomem shows in whose BAR it lies. As long as it
//! does, VFIO cannot map that BAR. vgacon draws through the legacy VGA window and holds no BAR.

use super::{
    holders::DeviceNode,
    sysroot::{SysError, Sysroot},
};
use crate::bdf::Bdf;

/// The drivers for it, and what each writes into /proc/iomem; `BOOTFB` is the platform device itself.
const DRIVERS: [(&str, &[&str]); 3] = [
    ("efi-framebuffer", &["efifb", "efidrm"]),
    ("vesa-framebuffer", &["vesafb", "vesadrm"]),
    ("simple-framebuffer", &["BOOTFB", "simplefb", "simple-framebuffer", "simpledrm"]),
];

const PLATFORM: &str = "/sys/bus/platform";
const CONSOLES: &str = "/sys/class/vtconsole";

/// A framebuffer of the host that lies in a BAR.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Framebuffer {
    /// What /proc/iomem calls it: `vesafb`.
    pub name: String,
    /// Its addresses as they are there; zeros without root.
    pub range: String,
    /// Who draws; `None` when no driver can be told to stop.
    pub driver: Option<Driver>,
    /// Text consoles on it that have no other picture: `vtcon1`.
    pub consoles: Vec<String>,
}

/// A platform device with its driver.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Driver {
    /// `vesa-framebuffer`.
    pub name: String,
    /// `vesa-framebuffer.0`.
    pub device: String,
}

impl Driver {
    /// Where the driver takes and lets go of devices: `bind`, `unbind`.
    pub fn attribute(&self, attribute: &str) -> String {
        format!("{PLATFORM}/drivers/{}/{attribute}", self.name)
    }

    /// Where the device is, when it is there.
    pub fn device_path(&self) -> String {
        format!("{PLATFORM}/devices/{}", self.device)
    }

    /// Does it draw now?
    pub fn is_bound(&self, sysroot: &Sysroot) -> Result<bool, SysError> {
        let driver = sysroot.link_name(&format!("{}/driver", self.device_path()))?;
        Ok(driver.as_deref() == Some(self.name.as_str()))
    }

    /// The nodes in /dev that programs draw on it with.
    pub fn nodes(&self, sysroot: &Sysroot) -> Result<Vec<DeviceNode>, SysError> {
        let mut nodes = Vec::new();
        for (class, directory) in [("graphics", "/dev"), ("drm", "/dev/dri")] {
            let at = format!("{}/{class}", self.device_path());
            for name in sysroot.list_if_present(&at)? {
                let number = sysroot.read_if_present(&format!("{at}/{name}/dev"))?;
                let number = number.map(|number| format!("c{number}"));
                nodes.push(DeviceNode { path: format!("{directory}/{name}"), number });
            }
        }
        Ok(nodes)
    }
}

/// Where a text console says and is told whether it draws: `1` or `0`.
pub fn console_switch(console: &str) -> String {
    format!("{CONSOLES}/{console}/bind")
}

/// The host's framebuffer in a BAR of this function.
pub fn on(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<Framebuffer>, SysError> {
    let map = sysroot.read_if_present("/proc/iomem")?.unwrap_or_default();
    let Some((range, name)) = in_a_bar(&map, &bdf.to_string()) else { return Ok(None) };
    let driver = driver(sysroot, name)?;
    let (name, range) = (name.to_owned(), range.to_owned());
    Ok(Some(Framebuffer { name, range, driver, consoles: consoles(sysroot)? }))
}

/// Addresses and name of the framebuffer that /proc/iomem shows inside of a BAR. Without root every address reads as 0,
/// but the names and their nesting are there.
fn in_a_bar<'a>(map: &'a str, bdf: &str) -> Option<(&'a str, &'a str)> {
    let mut inside = None;
    for line in map.lines() {
        let depth = line.len() - line.trim_start().len();
        let Some((range, name)) = line.trim_start().split_once(" : ") else { continue };
        if inside.is_some_and(|outer| depth <= outer) {
            inside = None;
        }
        if name == bdf {
            inside = Some(depth);
        } else if inside.is_some() && driver_of(name).is_some() {
            return Some((range, name));
        }
    }
    None
}

fn driver_of(name: &str) -> Option<&'static str> {
    let draws = |names: &[&str]| names.iter().any(|known| name.contains(known));
    DRIVERS.iter().find(|(_, names)| draws(names)).map(|(driver, _)| *driver)
}

/// There is one firmware framebuffer on a PC, so the driver's only device is it.
fn driver(sysroot: &Sysroot, name: &str) -> Result<Option<Driver>, SysError> {
    let Some(driver) = driver_of(name) else { return Ok(None) };
    let entries = sysroot.list_if_present(&format!("{PLATFORM}/drivers/{driver}"))?;
    let device = entries.into_iter().find(|entry| entry.starts_with(&format!("{driver}.")));
    Ok(device.map(|device| Driver { name: driver.to_owned(), device }))
}

/// The console "(M) frame buffer device" is one for all framebuffers: while another draws, the kernel moves it there.
fn consoles(sysroot: &Sysroot) -> Result<Vec<String>, SysError> {
    let framebuffers = sysroot.read_if_present("/proc/fb")?.unwrap_or_default();
    if framebuffers.lines().count() > 1 {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for console in sysroot.list_if_present(CONSOLES)? {
        let name = sysroot.read_if_present(&format!("{CONSOLES}/{console}/name"))?;
        let bound = sysroot.read_if_present(&console_switch(&console))?;
        if name.unwrap_or_default().contains("frame buffer") && bound.as_deref() == Some("1") {
            found.push(console);
        }
    }
    Ok(found)
}

// Provenance: names of drivers and framebuffers from drivers/video/fbdev and drivers/gpu/drm/tiny,
// addresses made up; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    /// A machine whose firmware left a picture on the card at 3b:00.0; `name` draws on it.
    fn tree(name: &str, driver: &str) -> Tree {
        let tree = Tree::two_cards();
        tree.framebuffer("0000:3b:00.0", name, driver);
        tree
    }

    fn on_card(tree: &Tree, bdf: &str) -> Option<Framebuffer> {
        on(&tree.sysroot(), bdf.parse().unwrap()).unwrap()
    }

    #[test]
    fn framebuffer_is_found_with_its_driver_and_console() {
        for (name, driver) in [
            ("efifb", "efi-framebuffer"),
            ("vesafb", "vesa-framebuffer"),
            ("simplefb", "simple-framebuffer"),
            ("simpledrm", "simple-framebuffer"),
            ("BOOTFB", "simple-framebuffer"),
        ] {
            let found = on_card(&tree(name, driver), "0000:3b:00.0").unwrap();
            assert_eq!(
                (found.name.as_str(), found.consoles.as_slice()),
                (name, &["vtcon1".to_owned()][..])
            );
            let found = found.driver.unwrap();
            assert_eq!(
                found.attribute("unbind"),
                format!("/sys/bus/platform/drivers/{driver}/unbind")
            );
            assert_eq!(found.device, format!("{driver}.0"));
        }
    }

    #[test]
    fn framebuffer_on_one_card_is_not_on_its_twin() {
        assert_eq!(on_card(&tree("efifb", "efi-framebuffer"), "0000:d8:00.0"), None);
    }

    #[test]
    fn framebuffer_without_a_driver_is_told_so() {
        let tree = tree("BOOTFB", "simple-framebuffer");
        tree.remove("/sys/bus/platform/drivers/simple-framebuffer/simple-framebuffer.0");
        assert_eq!(on_card(&tree, "0000:3b:00.0").unwrap().driver, None);
    }

    #[test]
    fn console_with_another_framebuffer_to_draw_on_stays() {
        let tree = tree("efifb", "efi-framebuffer");
        tree.file("/proc/fb", "0 EFI VGA\n1 i915drmfb\n");
        assert!(on_card(&tree, "0000:3b:00.0").unwrap().consoles.is_empty());
    }

    #[test]
    fn nodes_are_those_of_the_platform_device() {
        let tree = tree("simpledrm", "simple-framebuffer");
        for node in ["graphics/fb0", "drm/card0"] {
            tree.directory(&format!("/sys/devices/platform/simple-framebuffer.0/{node}"));
        }
        let driver = on_card(&tree, "0000:3b:00.0").unwrap().driver.unwrap();
        let nodes = driver.nodes(&tree.sysroot()).unwrap();
        let paths: Vec<&str> = nodes.iter().map(|node| node.path.as_str()).collect();
        assert_eq!(paths, ["/dev/fb0", "/dev/dri/card0"]);
        assert!(driver.is_bound(&tree.sysroot()).unwrap());
    }
}
