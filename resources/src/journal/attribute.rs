//! The files of sysfs that taking a function and giving it back write to: all of them, and no other can be named.

use std::{fmt, str::FromStr};

use super::{
    screen::Platform,
    words::{Word, WordError},
};
use crate::{
    bdf::Bdf,
    host::{iommu::GROUPS, pci::DEVICES},
};

const BUS: &str = "/sys/bus/pci";
const PLATFORM_DRIVERS: &str = "/sys/bus/platform/drivers";
const CONSOLES: &str = "/sys/class/vtconsole";

/// One such file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Attribute {
    /// `driver_override` of a function.
    DriverOverride(Bdf),
    /// `unbind` of the driver that a function has.
    Unbind(Bdf),
    /// `power/control` of a function.
    PowerControl(Bdf),
    /// `d3cold_allowed` of a function.
    D3coldAllowed(Bdf),
    /// `reset_method` of a function.
    ResetMethod(Bdf),
    /// `drivers_probe` of the PCI bus.
    Probe,
    /// `bind` of a PCI driver.
    Bind(Word),
    /// `type` of an IOMMU group.
    GroupType(u32),
    /// `bind` of a driver of the firmware's framebuffer.
    ScreenBind(Platform),
    /// `unbind` of the same.
    ScreenUnbind(Platform),
    /// `bind` of a text console.
    Console(Word),
}

impl Attribute {
    /// May a write to it wait for a driver, and not only for a lock?
    pub const fn waits_for_a_driver(&self) -> bool {
        match self {
            Self::DriverOverride(_)
            | Self::PowerControl(_)
            | Self::D3coldAllowed(_)
            | Self::ResetMethod(_) => false,
            Self::Unbind(_)
            | Self::Probe
            | Self::Bind(_)
            | Self::GroupType(_)
            | Self::ScreenBind(_)
            | Self::ScreenUnbind(_)
            | Self::Console(_) => true,
        }
    }
}

impl fmt::Display for Attribute {
    /// Its path.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DriverOverride(bdf) => write!(f, "{DEVICES}/{bdf}/driver_override"),
            Self::Unbind(bdf) => write!(f, "{DEVICES}/{bdf}/driver/unbind"),
            Self::PowerControl(bdf) => write!(f, "{DEVICES}/{bdf}/power/control"),
            Self::D3coldAllowed(bdf) => write!(f, "{DEVICES}/{bdf}/d3cold_allowed"),
            Self::ResetMethod(bdf) => write!(f, "{DEVICES}/{bdf}/reset_method"),
            Self::Probe => write!(f, "{BUS}/drivers_probe"),
            Self::Bind(driver) => write!(f, "{BUS}/drivers/{driver}/bind"),
            Self::GroupType(group) => write!(f, "{GROUPS}/{group}/type"),
            Self::ScreenBind(driver) => write!(f, "{PLATFORM_DRIVERS}/{}/bind", driver.word()),
            Self::ScreenUnbind(driver) => write!(f, "{PLATFORM_DRIVERS}/{}/unbind", driver.word()),
            Self::Console(console) => write!(f, "{CONSOLES}/{console}/bind"),
        }
    }
}

impl FromStr for Attribute {
    type Err = WordError;

    /// From its path, written as [`Attribute`] prints it and not in any other way.
    fn from_str(path: &str) -> Result<Self, WordError> {
        let other = || WordError::new(path, "file that strait writes to");
        let found = read(path).ok_or_else(other)?;
        match found.to_string() == path {
            true => Ok(found),
            false => Err(other()),
        }
    }
}

fn read(path: &str) -> Option<Attribute> {
    let below = |parent: &str| path.strip_prefix(parent)?.strip_prefix('/');
    if let Some((bdf, attribute)) = below(DEVICES).and_then(|rest| rest.split_once('/')) {
        let bdf: Bdf = bdf.parse().ok()?;
        return match attribute {
            "driver_override" => Some(Attribute::DriverOverride(bdf)),
            "driver/unbind" => Some(Attribute::Unbind(bdf)),
            "power/control" => Some(Attribute::PowerControl(bdf)),
            "d3cold_allowed" => Some(Attribute::D3coldAllowed(bdf)),
            "reset_method" => Some(Attribute::ResetMethod(bdf)),
            _ => None,
        };
    }
    if let Some((driver, attribute)) = below(PLATFORM_DRIVERS).and_then(|rest| rest.split_once('/'))
    {
        let driver = Platform::new(driver).ok()?;
        return match attribute {
            "bind" => Some(Attribute::ScreenBind(driver)),
            "unbind" => Some(Attribute::ScreenUnbind(driver)),
            _ => None,
        };
    }
    if let Some(rest) = below(BUS) {
        if rest == "drivers_probe" {
            return Some(Attribute::Probe);
        }
        let driver = rest.strip_prefix("drivers/")?.strip_suffix("/bind")?;
        return Word::new(driver).ok().map(Attribute::Bind);
    }
    if let Some(rest) = below(GROUPS) {
        return rest.strip_suffix("/type")?.parse().ok().map(Attribute::GroupType);
    }
    let console = below(CONSOLES)?.strip_suffix("/bind")?;
    Word::new(console).ok().map(Attribute::Console)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn every_attribute_is_read_back_from_its_path() {
        let bdf: Bdf = "0000:3b:00.0".parse().unwrap();
        let word = |text| Word::new(text).unwrap();
        for (attribute, path) in [
            (Attribute::DriverOverride(bdf), "/sys/bus/pci/devices/0000:3b:00.0/driver_override"),
            (Attribute::Unbind(bdf), "/sys/bus/pci/devices/0000:3b:00.0/driver/unbind"),
            (Attribute::PowerControl(bdf), "/sys/bus/pci/devices/0000:3b:00.0/power/control"),
            (Attribute::D3coldAllowed(bdf), "/sys/bus/pci/devices/0000:3b:00.0/d3cold_allowed"),
            (Attribute::ResetMethod(bdf), "/sys/bus/pci/devices/0000:3b:00.0/reset_method"),
            (Attribute::Probe, "/sys/bus/pci/drivers_probe"),
            (Attribute::Bind(word("budget dvb")), "/sys/bus/pci/drivers/budget dvb/bind"),
            (Attribute::GroupType(31), "/sys/kernel/iommu_groups/31/type"),
            (
                Attribute::ScreenBind(Platform::Efi),
                "/sys/bus/platform/drivers/efi-framebuffer/bind",
            ),
            (
                Attribute::ScreenUnbind(Platform::Vesa),
                "/sys/bus/platform/drivers/vesa-framebuffer/unbind",
            ),
            (Attribute::Console(word("vtcon1")), "/sys/class/vtconsole/vtcon1/bind"),
        ] {
            assert_eq!(attribute.to_string(), path);
            assert_eq!(path.parse(), Ok(attribute));
        }
    }

    #[test]
    fn other_files_are_none_of_them() {
        for path in [
            "",
            "/etc/passwd",
            "/sys/bus/pci/devices/0000:3b:00.0/remove",
            "/sys/bus/pci/devices/3b:00.0/driver_override",
            "/sys/bus/pci/devices/0000:3b:00.0/../0000:3b:00.0/driver_override",
            "/sys/bus/pci/devices/../../../../etc/driver_override",
            "/sys/bus/pci/drivers/../../../../tmp/evil/bind",
            "/sys/bus/pci/drivers/nvme/new_id",
            "/sys/bus/platform/drivers/../../../tmp/evil/bind",
            "/sys/bus/platform/drivers/serial8250/unbind",
            "/sys/class/vtconsole/../../../tmp/evil/bind",
            "/sys/kernel/iommu_groups/+1/type",
            "/sys/kernel/iommu_groups/01/type",
        ] {
            assert!(path.parse::<Attribute>().is_err(), "{path} was taken");
        }
    }

    proptest! {
        #[test]
        fn what_is_read_prints_as_it_was(path in "/sys/(bus|class|kernel)/[a-z/.: _0-9-]{0,60}") {
            if let Ok(attribute) = path.parse::<Attribute>() {
                prop_assert_eq!(attribute.to_string(), path);
            }
        }
    }
}
