//! The plan as a person reads it.

use std::fmt::Write as _;

use strait_resources::{bar::BarKind, bdf::Bdf, range::AddressRange};

use super::{Plan, PortPlan, error::in_words};

/// The form Xorg's `BusID` wants, in decimal: `PCI:1:0:0`. A segment other than 0 goes behind the bus: `PCI:1@1:0:0`.
pub fn xorg_bus_id(bdf: Bdf) -> String {
    let (bus, device, function) = (bdf.bus(), bdf.device(), bdf.function());
    match bdf.segment() {
        0 => format!("PCI:{bus}:{device}:{function}"),
        segment => format!("PCI:{bus}@{segment}:{device}:{function}"),
    }
}

/// Exact where that is short, else rounded down to a tenth: `1.5 GiB`, `3328 MiB`, `947.9 GiB`.
pub(super) fn human(bytes: u64) -> String {
    const UNITS: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    let largest = (0..UNITS.len()).rev().find(|&unit| bytes >> (10 * unit) > 0).unwrap_or(0);
    let tenths = |unit: usize| (u128::from(bytes) * 10, 10 * unit);
    let exact = (0..=largest).rev().find(|&unit| {
        let (tenths, shift) = tenths(unit);
        tenths.trailing_zeros() as usize >= shift && tenths >> shift < 100_000
    });
    let unit = exact.unwrap_or(largest);
    let (tenths, shift) = tenths(unit);
    match (tenths >> shift, exact) {
        (count, Some(_)) if count % 10 == 0 => format!("{} {}", count / 10, UNITS[unit]),
        (count, _) => format!("{}.{} {}", count / 10, count % 10, UNITS[unit]),
    }
}

/// A 64-bit address in groups of four digits: `0x8_0000_0000`.
fn grouped(address: u64) -> String {
    let digits = format!("{address:x}");
    let mut text = String::from("0x");
    for (position, digit) in digits.chars().enumerate() {
        if position > 0 && (digits.len() - position).is_multiple_of(4) {
            text.push('_');
        }
        text.push(digit);
    }
    text
}

/// One stretch of the address space with the lines that tell about it, highest address first.
struct Band {
    range: AddressRange,
    title: String,
    inside: Vec<Row>,
}

/// One of a port's windows.
type OfPort = fn(&PortPlan) -> Option<AddressRange>;

/// A line inside a band.
struct Row {
    /// Its first address, where it has one.
    at: Option<u64>,
    text: String,
    size: Option<u64>,
}

impl Plan {
    /// The address map from top to bottom, then the I/O ports. Each rule carries the first address of what is above
    /// it. `width` is that of the terminal in columns; what cannot be said in it makes the picture wider.
    pub fn picture(&self, width: usize) -> String {
        let bands = self.bands();
        let lines: Vec<&Row> = bands.iter().flat_map(|band| &band.inside).collect();
        let gutter = bands
            .iter()
            .flat_map(|band| [band.range.first(), band.range.last().saturating_add(1)])
            .map(|address| grouped(address).len())
            .max()
            .unwrap_or(0);
        let widest = bands
            .iter()
            .map(|band| (&band.title, Some(band.range.len())))
            .chain(lines.iter().map(|row| (&row.text, row.size)))
            .map(|(text, size)| text.chars().count() + 2 + size.map_or(0, |s| human(s).len()))
            .max()
            .unwrap_or(0);
        let inner = widest.max(width.saturating_sub(gutter + 5));
        let mut out = String::new();
        let rule = |out: &mut String, address: u64, ends: (char, char)| {
            let line = "─".repeat(inner + 2);
            let _ = writeln!(out, "{:>gutter$} {}{line}{}", grouped(address), ends.0, ends.1);
        };
        let row = |out: &mut String, at: Option<u64>, text: &str, size: Option<u64>| {
            let (at, size) =
                (at.map(grouped).unwrap_or_default(), size.map(human).unwrap_or_default());
            let room = inner.saturating_sub(size.len());
            let _ = writeln!(out, "{at:>gutter$} │ {text:<room$}{size} │");
        };
        if let Some(top) = bands.first() {
            rule(&mut out, top.range.last().saturating_add(1), ('┌', '┐'));
        }
        for (position, band) in bands.iter().enumerate() {
            row(&mut out, None, &band.title, Some(band.range.len()));
            for line in &band.inside {
                row(&mut out, line.at, &line.text, line.size);
            }
            let last = position + 1 == bands.len();
            rule(&mut out, band.range.first(), if last { ('└', '┘') } else { ('├', '┤') });
        }
        self.io_lines(&mut out);
        out
    }

    /// Everything from the last address to 0, the free stretches included.
    fn bands(&self) -> Vec<Band> {
        let band = |range, title: String, inside| Band { range, title, inside };
        let legacy = Row {
            at: Some(0xa_0000),
            text: "  legacy hole: ACPI and SMBIOS tables".to_owned(),
            size: Some(0x6_0000),
        };
        let mut used: Vec<Band> = Vec::new();
        let mut legacy = Some(legacy);
        for range in &self.ram {
            let inside =
                if range.first() == 0 { legacy.take().into_iter().collect() } else { vec![] };
            used.push(band(*range, "RAM".to_owned(), inside));
        }
        let buses = self.ecam.len() >> 20;
        used.push(band(
            self.ecam,
            format!("ECAM, buses 00 to {:02x}", buses.saturating_sub(1)),
            vec![],
        ));
        for hole in &self.holes {
            used.push(band(hole.range, hole.why.to_owned(), vec![]));
        }
        let windows: [(_, _, OfPort); 2] = [
            (Some(self.mmio32), "32-bit window", |port| port.memory),
            (self.mmio64, "64-bit window", |port| port.prefetchable),
        ];
        for (window, title, of_port) in windows {
            let Some(window) = window else { continue };
            // Holes are bands of their own: the window goes on below them.
            let holes = self.holes.iter().map(|hole| hole.range);
            for piece in window.subtract_all(holes) {
                used.push(band(piece, title.to_owned(), self.window_rows(piece, of_port)));
            }
        }
        used.sort_by_key(|band| band.range);
        let mut all: Vec<Band> = Vec::new();
        let mut next = 0_u64;
        let end = 1_u64.checked_shl(u32::from(self.physical_bits)).unwrap_or(u64::MAX);
        for band in used {
            all.extend(free(next, band.range.first(), "free"));
            next = band.range.last().saturating_add(1);
            all.push(band);
        }
        all.extend(free(next, end, "free, up to the end of the CPU's address bits"));
        all.reverse();
        all
    }

    fn window_rows(&self, piece: AddressRange, of_port: OfPort) -> Vec<Row> {
        let mut ports: Vec<_> = self
            .ports
            .iter()
            .filter_map(|port| Some((of_port(port)?, port)))
            .filter(|(window, _)| piece.encloses(*window))
            .collect();
        ports.sort_by_key(|(window, _)| std::cmp::Reverse(*window));
        let mut rows = Vec::new();
        for (window, port) in ports {
            rows.push(Row {
                at: None,
                text: format!("  {} behind {}, bus {:02x}", port.id, short(port.at), port.bus),
                size: Some(window.len()),
            });
            let mut bars: Vec<_> = port
                .functions
                .iter()
                .flat_map(|function| function.bars.iter().map(move |bar| (function, bar)))
                .filter(|(_, bar)| bar.spec.kind.is_memory() && window.encloses(bar.at))
                .collect();
            bars.sort_by_key(|(_, bar)| std::cmp::Reverse(bar.at));
            rows.extend(bars.into_iter().map(|(function, bar)| {
                let kind = match bar.spec.kind {
                    BarKind::Rom => String::new(),
                    kind => format!(", {}", in_words(kind)),
                };
                let peers = if bar.dma_reachable { "" } else { ", no peer reaches it" };
                Row {
                    at: Some(bar.at.first()),
                    text: format!(
                        "    · {} of {} (host {}){kind}{peers}",
                        bar.spec.index,
                        short(function.at),
                        function.host,
                    ),
                    size: Some(bar.spec.size),
                }
            }));
        }
        rows
    }

    fn io_lines(&self, out: &mut String) {
        for port in &self.ports {
            let Some(window) = port.io else { continue };
            let _ = writeln!(
                out,
                "I/O ports {:#06x}-{:#06x}  {} behind {}, bus {:02x}",
                window.first(),
                window.last(),
                port.id,
                short(port.at),
                port.bus
            );
            for function in &port.functions {
                for bar in function.bars.iter().filter(|bar| !bar.spec.kind.is_memory()) {
                    let _ = writeln!(
                        out,
                        "          {:#06x}-{:#06x}  · {} of {} (host {})",
                        bar.at.first(),
                        bar.at.last(),
                        bar.spec.index,
                        short(function.at),
                        function.host
                    );
                }
            }
        }
        for (host, spec) in &self.unassigned {
            let _ = writeln!(
                out,
                "I/O ports ran out: {} of {host} ({}) gets none",
                spec.index,
                human(spec.size)
            );
        }
    }
}

/// A stretch with nothing in it, unless it is empty.
fn free(first: u64, end: u64, title: &str) -> Option<Band> {
    let range = AddressRange::inclusive(first, end.checked_sub(1)?)?;
    Some(Band { range, title: title.to_owned(), inside: Vec::new() })
}

/// A guest address without its segment, which is always 0.
fn short(bdf: Bdf) -> String {
    format!("{:02x}:{:02x}.{:x}", bdf.bus(), bdf.device(), bdf.function())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn human_sizes_are_exact_where_that_is_short() {
        for (bytes, text) in [
            (0, "0 B"),
            (16, "16 B"),
            (4096, "4 KiB"),
            (1536 << 20, "1.5 GiB"),
            (3328 << 20, "3328 MiB"),
            (32 << 30, "32 GiB"),
            ((32 << 30) + (16 << 20), "32.0 GiB"),
            ((2 << 40) - (32 << 30), "2016 GiB"),
            (u64::MAX, "15.9 EiB"),
        ] {
            assert_eq!(human(bytes), text);
        }
    }

    #[test]
    fn addresses_are_grouped_by_four_digits() {
        assert_eq!(grouped(0), "0x0");
        assert_eq!(grouped(0x8_0000_0000), "0x8_0000_0000");
        assert_eq!(grouped(u64::MAX), "0xffff_ffff_ffff_ffff");
    }

    #[test]
    fn xorg_bus_id_is_decimal() {
        assert_eq!(xorg_bus_id(Bdf::new(0, 0x3b, 0x1f, 3).unwrap()), "PCI:59:31:3");
        assert_eq!(xorg_bus_id(Bdf::new(2, 1, 0, 0).unwrap()), "PCI:1@2:0:0");
    }
}
