//! The PCI Express link of a card: how fast, how wide, and whose registers tell.
//!
//! Some cards have a switch inside, and the link between slot and card is that of the switch's upstream port. The links
//! behind it are wires in a chip. Where they are none at all, as in Intel's Arc, their registers hold what a register that
//! nobody filled in holds: 2.5 GT/s, one lane. Where they are real, as between the switch and the two processors of a
//! double card, the narrowest link of the way counts.

use super::{Attributes, Bdf, SysError, Sysroot, addresses_below, path, upstream};

/// A link, as the kernel words it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Whose: the function itself, its physical function, or a port of the switch on the way to it.
    pub at: Bdf,
    /// `2.5 GT/s PCIe`; cards lower it when idle.
    pub speed: String,
    /// Lanes in use; 0 when the link is down.
    pub width: u32,
    /// The most that the card can.
    pub max_speed: String,
    /// The most lanes that the card can.
    pub max_width: u32,
    /// The most that the port at the other end can: the slot.
    pub port: Option<Port>,
}

/// What a port can.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    /// `8.0 GT/s PCIe`.
    pub max_speed: String,
    /// Lanes.
    pub max_width: u32,
}

impl Link {
    /// Slower or narrower than the card can. Normal for an idle graphics card, which speeds up under load; a
    /// narrower link under load is a matter of the slot.
    pub fn is_reduced(&self) -> bool {
        rate(&self.speed) != rate(&self.max_speed) || self.width != self.max_width
    }

    /// The generation of PCI Express and the lanes that card and slot reach together under load; `None` when the kernel
    /// names a speed that this version does not know.
    pub fn reachable(&self) -> Option<(u8, u8)> {
        /// Tenths of GT/s, by generation.
        const RATES: [u32; 6] = [25, 50, 80, 160, 320, 640];
        let known = RATES.iter().position(|known| *known == self.max_rate())?;
        let lanes = u8::try_from(self.max_lanes()).ok().filter(|lanes| (1..=32).contains(lanes))?;
        Some((u8::try_from(known + 1).ok()?, lanes))
    }

    /// The most that both ends can, in tenths of GT/s; 0 when that is unknown.
    pub fn max_rate(&self) -> u32 {
        let card = rate(&self.max_speed).unwrap_or(0);
        let port = self.port.as_ref().and_then(|port| rate(&port.max_speed));
        port.map_or(card, |port| card.min(port))
    }

    /// The most lanes that both ends can.
    pub fn max_lanes(&self) -> u32 {
        self.port.as_ref().map_or(self.max_width, |port| self.max_width.min(port.max_width))
    }

    /// Bytes a second, as far as they can be compared: idle cards turn the speed down and keep the lanes.
    fn throughput(&self) -> u32 {
        self.max_rate().saturating_mul(self.width.min(self.max_width))
    }

    /// What link registers hold that say nothing: the least that PCI Express has.
    fn says_nothing(&self) -> bool {
        rate(&self.max_speed) == Some(25) && self.max_width == 1
    }
}

/// "8.0 GT/s PCIe", or "8 GT/s" of kernels before 5.7, in tenths of GT/s.
pub fn rate(speed: &str) -> Option<u32> {
    let (number, unit) = speed.split_once(' ')?;
    let (whole, tenth) = number.split_once('.').unwrap_or((number, "0"));
    if !unit.starts_with("GT/s") || tenth.len() != 1 {
        return None;
    }
    whole.parse::<u32>().ok()?.checked_mul(10)?.checked_add(tenth.parse().ok()?)
}

/// The link by which the host reaches `bdf`; for a bridge its own.
pub(super) fn of_card(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<Link>, SysError> {
    let own = at(sysroot, bdf)?;
    let above = upstream(sysroot, bdf)?;
    let vendor = |bdf: Bdf| sysroot.read_if_present(&path(bdf, "vendor"));
    let is_port = |bdf: Bdf| -> Result<bool, SysError> {
        let class = sysroot.read_if_present(&path(bdf, "class"))?;
        Ok(class.is_some_and(|class| class.starts_with("0x0604")))
    };
    // Without a switch on the way, and for a port, it is plain.
    if above.len() < 3 || is_port(bdf)? {
        return Ok(own);
    }
    let mine = vendor(bdf)?;
    let mut links: Vec<Link> = own.clone().into_iter().collect();
    // From the card up: port by port, each pair the lower and the upper port of a switch. The first is the root port.
    let ports: Vec<Bdf> = above.iter().skip(1).rev().copied().collect();
    for pair in ports.chunks_exact(2) {
        let &[_, upper] = pair else { break };
        let Some(link) = at(sysroot, upper)? else { continue };
        let silent = links.iter().any(Link::says_nothing);
        if silent && vendor(upper)? == mine && is_one_card(sysroot, upper, mine.as_deref())? {
            links.retain(|link| !link.says_nothing());
        }
        links.push(link);
    }
    // Of equals the one that is nearest to the function.
    Ok(links.into_iter().min_by_key(Link::throughput).or(own))
}

/// Are all functions behind this port from this vendor, as on a card with a switch inside?
fn is_one_card(sysroot: &Sysroot, port: Bdf, vendor: Option<&str>) -> Result<bool, SysError> {
    for below in addresses_below(sysroot, port)? {
        if sysroot.read_if_present(&path(below, "vendor"))?.as_deref() != vendor {
            return Ok(false);
        }
    }
    Ok(true)
}

/// What the registers of one function say, with those of the port above it.
fn at(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<Link>, SysError> {
    let of = Attributes { sysroot, bdf };
    let Some(most) = most(&of)? else { return Ok(None) };
    let Some(speed) = of.text("current_link_speed")? else { return Ok(None) };
    let width = lanes(of.text("current_link_width")?);
    let port = match upstream(sysroot, bdf)?.last() {
        Some(port) => self::most(&Attributes { sysroot, bdf: *port })?,
        None => None,
    };
    let Port { max_speed, max_width } = most;
    Ok(Some(Link { at: bdf, speed, width, max_speed, max_width, port }))
}

/// The most that a function can; `None` without a link. One that is no PCI Express function, or is part of the processor,
/// has the files too; they say "Unknown" and 0 or 255 lanes.
fn most(of: &Attributes<'_>) -> Result<Option<Port>, SysError> {
    let Some(max_speed) = of.text("max_link_speed")? else { return Ok(None) };
    let max_width = lanes(of.text("max_link_width")?);
    let known = !max_speed.starts_with("Unknown") && (1..=32).contains(&max_width);
    Ok(known.then_some(Port { max_speed, max_width }))
}

fn lanes(text: Option<String>) -> u32 {
    text.and_then(|text| text.parse().ok()).unwrap_or(0)
}

// Provenance: topology and links of the cards that the tests name, by public lspci listings; no
// dump of a whole host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{
        fixture::{Function, Tree},
        pci,
    };

    /// (current speed, current width, max speed, max width) of a function.
    fn link(tree: &Tree, bdf: &str, now: (&str, u32), most: (&str, u32)) {
        for (name, value) in [
            ("current_link_speed", now.0.to_owned()),
            ("current_link_width", now.1.to_string()),
            ("max_link_speed", most.0.to_owned()),
            ("max_link_width", most.1.to_string()),
        ] {
            tree.file(&format!("/sys/bus/pci/devices/{bdf}/{name}"), format!("{value}\n"));
        }
    }

    fn add(tree: &Tree, bdf: &str, vendor: u16, class: u32, under: &[&str]) {
        let header_type = u8::from(class == PORT);
        let id = (vendor, 0x56a0);
        tree.function(&Function { bdf, id, class, header_type, under, ..Function::default() });
    }

    const PORT: u32 = 0x06_0400;
    const VGA: u32 = 0x03_0000;
    const AUDIO: u32 = 0x04_0300;
    const ROOT: &str = "0000:00:01.1";
    const UPPER: &str = "0000:01:00.0";
    const LOWER: &str = "0000:02:01.0";
    const CARD: &str = "0000:03:00.0";

    /// A processor behind a switch: root port, upper and lower port of the switch, by these vendors.
    fn switched(switch: u16, card: u16) -> Tree {
        let tree = Tree::new();
        add(&tree, ROOT, 0x1022, PORT, &[]);
        add(&tree, UPPER, switch, PORT, &[ROOT]);
        add(&tree, LOWER, switch, PORT, &[ROOT, UPPER]);
        add(&tree, "0000:02:04.0", switch, PORT, &[ROOT, UPPER]);
        add(&tree, CARD, card, VGA, &[ROOT, UPPER, LOWER]);
        add(&tree, "0000:04:00.0", card, AUDIO, &[ROOT, UPPER, "0000:02:04.0"]);
        tree
    }

    fn found(tree: &Tree, bdf: &str) -> Link {
        let function = pci::find(&tree.sysroot(), bdf.parse().unwrap()).unwrap().unwrap();
        function.link.unwrap()
    }

    fn words(link: &Link) -> (String, String) {
        (link.at.to_string(), format!("{} x{}", link.speed, link.width))
    }

    /// What lspci shows of an Arc A770: all but the card's upper port say 2.5 GT/s, one lane.
    #[test]
    fn of_card_with_a_switch_inside_is_that_of_its_upper_port() {
        let tree = switched(0x8086, 0x8086);
        let nothing = ("2.5 GT/s PCIe", 1);
        for inside in [LOWER, "0000:02:04.0", CARD, "0000:04:00.0"] {
            link(&tree, inside, nothing, nothing);
        }
        link(&tree, UPPER, ("2.5 GT/s PCIe", 16), ("16.0 GT/s PCIe", 16));
        link(&tree, ROOT, ("2.5 GT/s PCIe", 16), ("32.0 GT/s PCIe", 16));
        for function in [CARD, "0000:04:00.0"] {
            let link = found(&tree, function);
            assert_eq!(words(&link), (UPPER.to_owned(), "2.5 GT/s PCIe x16".to_owned()));
            assert_eq!(link.reachable(), Some((4, 16)));
            assert!(link.is_reduced());
        }
        // The slot decides what is reached.
        link(&tree, ROOT, ("8.0 GT/s PCIe", 8), ("8.0 GT/s PCIe", 8));
        assert_eq!(found(&tree, CARD).reachable(), Some((3, 8)));
        // Ports have their own.
        assert_eq!(found(&tree, LOWER).at.to_string(), LOWER);
    }

    /// A Navi card: the links inside are told as the widest there are, whatever the slot gives.
    #[test]
    fn of_card_whose_inner_links_are_wide_is_what_the_slot_gives() {
        let tree = switched(0x1002, 0x1002);
        for inside in [LOWER, CARD] {
            link(&tree, inside, ("16.0 GT/s PCIe", 16), ("16.0 GT/s PCIe", 16));
        }
        link(&tree, UPPER, ("8.0 GT/s PCIe", 4), ("16.0 GT/s PCIe", 16));
        let link = found(&tree, CARD);
        assert_eq!(words(&link), (UPPER.to_owned(), "8.0 GT/s PCIe x4".to_owned()));
    }

    /// A PLX switch, on a double card or a board, has real links behind it.
    #[test]
    fn of_card_behind_a_switch_of_another_maker_is_the_narrowest_on_the_way() {
        let tree = switched(0x10b5, 0x10de);
        link(&tree, UPPER, ("8.0 GT/s PCIe", 16), ("8.0 GT/s PCIe", 16));
        for below in [LOWER, CARD] {
            link(&tree, below, ("8.0 GT/s PCIe", 16), ("8.0 GT/s PCIe", 16));
        }
        assert_eq!(found(&tree, CARD).at.to_string(), CARD);
        link(&tree, UPPER, ("8.0 GT/s PCIe", 8), ("8.0 GT/s PCIe", 16));
        assert_eq!(found(&tree, CARD).at.to_string(), UPPER);
        // A card of one lane behind it is one of one lane.
        link(&tree, CARD, ("2.5 GT/s PCIe", 1), ("2.5 GT/s PCIe", 1));
        assert_eq!(found(&tree, CARD).at.to_string(), CARD);
    }

    #[test]
    fn of_card_of_one_lane_behind_a_dock_with_other_makers_devices_is_its_own() {
        let tree = switched(0x8086, 0x8086);
        link(&tree, UPPER, ("8.0 GT/s PCIe", 4), ("8.0 GT/s PCIe", 4));
        link(&tree, CARD, ("2.5 GT/s PCIe", 1), ("2.5 GT/s PCIe", 1));
        tree.file("/sys/bus/pci/devices/0000:04:00.0/vendor", "0x1b73\n");
        assert_eq!(found(&tree, CARD).at.to_string(), CARD);
    }

    #[test]
    fn rate_reads_what_kernels_of_all_ages_print() {
        let rates = ["2.5 GT/s", "8 GT/s", "5.0 GT/s PCIe", "64.0 GT/s PCIe"].map(rate);
        assert_eq!(rates, [Some(25), Some(80), Some(50), Some(640)]);
        assert_eq!(["Unknown", "Unknown speed", "", "8.0", "133 MHz PCIX"].map(rate), [None; 5]);
        let tree = Tree::new();
        tree.function(&Function::default());
        link(&tree, "0000:00:02.0", ("8 GT/s", 16), ("8.0 GT/s PCIe", 16));
        let link_of = found(&tree, "0000:00:02.0");
        assert!(!link_of.is_reduced());
        link(&tree, "0000:00:02.0", ("Unknown speed", 0), ("Unknown speed", 0));
        let none = pci::find(&tree.sysroot(), "00:02.0".parse().unwrap()).unwrap().unwrap();
        assert_eq!(none.link, None);
    }
}
