//! The driver of a device: how a function goes to vfio-pci by hand.

use super::pci;
use crate::bdf::Bdf;

/// The lines that give a function to vfio-pci: no other function with the same IDs is touched, and nothing
/// has to be undone in a configuration file.
pub fn bind_commands(bdf: Bdf, driver: Option<&str>) -> Vec<String> {
    let mut lines = vec![
        "modprobe vfio-pci".to_owned(),
        format!("echo vfio-pci > {}", pci::path(bdf, "driver_override")),
    ];
    if driver.is_some() {
        lines.push(format!("echo {bdf} > {}", pci::path(bdf, "driver/unbind")));
    }
    lines.push(format!("echo {bdf} > /sys/bus/pci/drivers_probe"));
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bind_commands_unbind_only_what_is_bound() {
        let bdf = "0000:3b:00.0".parse().unwrap();
        assert_eq!(bind_commands(bdf, Some("nouveau")).len(), 4);
        let free = bind_commands(bdf, None);
        assert!(free.iter().all(|line| !line.contains("unbind")), "{free:?}");
    }
}
