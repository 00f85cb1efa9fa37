//! The search for a plan: bus numbers, then RAM, the 32-bit window, the 64-bit window and the I/O ports.
//!
//! Two things give way when the 32-bit window is too small, in this order: 64-bit BARs that are not prefetchable move
//! above 4 GiB, the largest size first; then low RAM shrinks. The first combination that works is the plan.

use std::collections::{BTreeMap, BTreeSet};

use strait_resources::{
    bar::{BarKind, BarSpec},
    bdf::Bdf,
    range::{AddressRange, align_down, align_up},
};

use super::{
    BarPlan, FunctionPlan, Hole, Plan, PlanError, PlanRequest, PortPlan,
    error::{MMIO32, MMIO64, Need, Shortage},
    pack::{
        Block, IO_WINDOW, Item, MEMORY_WINDOW, Space, blocks, hull, intersect, normalise, shrink,
    },
    ram::{CHUNK, Reach},
};
use crate::layout::{
    AMD_HYPERTRANSPORT, CHIPSET_START, ECAM_BASE, IO_WINDOW_END, IO_WINDOW_START, LOW_RAM_MAX,
};

/// Low RAM never shrinks below this: a kernel, an initramfs and a firmware have room there.
const LOW_RAM_MIN: u64 = 512 << 20;
const LOW_RAM_STEP: u64 = 128 << 20;
const FOUR_GIB: u64 = 1 << 32;
/// Root ports live on devices 1..=29 of bus 0: 0 is the host bridge, 30 stays free, 31 is the LPC bridge.
const PORT_DEVICES: usize = 29;
const MAX_PORTS: usize = PORT_DEVICES * 8;

impl PlanRequest {
    /// The plan, or who stands in its way. Pure, total and deterministic.
    ///
    /// # Errors
    /// See [`PlanError`].
    pub fn solve(&self) -> Result<Plan, PlanError> {
        self.check()?;
        let buses = self.buses()?;
        let iova = normalise(&self.iova);
        let reserved = normalise(&self.reserved);
        let reach = Reach::new(self.physical_bits, &iova, &reserved)?;
        let search = Search { request: self, items: self.items(), iova, reserved };
        let found = search.run(&reach)?;
        Ok(search.assemble(&buses, found))
    }

    /// What the types do not say.
    fn check(&self) -> Result<(), PlanError> {
        if self.ram == 0 || !self.ram.is_multiple_of(CHUNK) {
            let what = format!("{} bytes of RAM, not a multiple of 2 MiB", self.ram);
            return Err(PlanError::Malformed { what });
        }
        for (function, bar) in self
            .ports
            .iter()
            .flat_map(|p| &p.functions)
            .flat_map(|f| f.bars.iter().map(move |b| (f, b)))
        {
            if !bar.size.is_power_of_two() {
                let what = format!("{} {} of {} bytes", function.host, bar.index, bar.size);
                return Err(PlanError::Malformed { what });
            }
        }
        for port in &self.ports {
            let numbers: BTreeSet<u8> = port.functions.iter().map(|f| f.number).collect();
            let why = if numbers.len() != port.functions.len() {
                "two of its functions have one number"
            } else if numbers.last().is_some_and(|&last| last > 7) {
                "function numbers end at 7"
            } else if !numbers.is_empty() && !numbers.contains(&0) {
                "no function 0, without which a guest sees none of the others"
            } else {
                continue;
            };
            return Err(PlanError::Address { id: port.id.clone(), why });
        }
        let odd = |bytes: u64| bytes == 0 || !bytes.is_multiple_of(MEMORY_WINDOW);
        let refuse = |option, asked, why| Err(PlanError::WindowSize { option, asked, why });
        match (self.mmio32, self.mmio64) {
            (Some(asked), _) if odd(asked) => refuse(MMIO32, asked, "windows come in whole MiB"),
            (_, Some(asked)) if odd(asked) => refuse(MMIO64, asked, "windows come in whole MiB"),
            (Some(asked), _) if asked > ECAM_BASE - LOW_RAM_MIN => {
                refuse(MMIO32, asked, "3 GiB at most, below them is RAM, above them the chipset")
            }
            _ => Ok(()),
        }
    }

    /// A secondary bus for each port: the one asked for, else the lowest free.
    fn buses(&self) -> Result<Vec<u8>, PlanError> {
        if self.ports.len() > MAX_PORTS {
            return Err(PlanError::TooManyPorts { count: self.ports.len(), limit: MAX_PORTS });
        }
        let mut taken: BTreeMap<u8, &str> = BTreeMap::new();
        for port in &self.ports {
            match port.bus {
                Some(0) => {
                    let why = "bus 00 is the host bridge's";
                    return Err(PlanError::Address { id: port.id.clone(), why });
                }
                Some(bus) => {
                    if let Some(first) = taken.insert(bus, &port.id) {
                        let (first, second) = (first.to_owned(), port.id.clone());
                        return Err(PlanError::BusTaken { bus, first, second });
                    }
                }
                None => {}
            }
        }
        let mut free = (1..=u8::MAX).filter(|bus| !taken.contains_key(bus));
        // MAX_PORTS is below 255, so `free` lasts.
        let bus = |asked: Option<u8>| asked.or_else(|| free.next());
        Ok(self.ports.iter().map(|port| port.bus).filter_map(bus).collect())
    }

    fn items(&self) -> Vec<Item> {
        let mut items = Vec::new();
        for (port, p) in self.ports.iter().enumerate() {
            for (function, f) in p.functions.iter().enumerate() {
                for (bar, &spec) in f.bars.iter().enumerate() {
                    items.push(Item { port, function, bar, host: f.host, spec });
                }
            }
        }
        items
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Home {
    Io,
    Low,
    High,
}

/// Where a BAR goes when 64-bit ones that are not prefetchable move up from `threshold` bytes on.
fn home(spec: BarSpec, threshold: u64) -> Home {
    match spec.kind {
        BarKind::Io => Home::Io,
        BarKind::Memory32 { .. } | BarKind::Rom => Home::Low,
        BarKind::Memory64 { prefetchable: true } => Home::High,
        BarKind::Memory64 { prefetchable: false } if spec.size >= threshold => Home::High,
        BarKind::Memory64 { prefetchable: false } => Home::Low,
    }
}

struct Search<'a> {
    request: &'a PlanRequest,
    items: Vec<Item>,
    /// Normalised.
    iova: Vec<AddressRange>,
    /// Normalised.
    reserved: Vec<AddressRange>,
}

/// Blocks and their windows, in the same order.
struct Placed {
    blocks: Vec<Block>,
    windows: Vec<AddressRange>,
}

impl Placed {
    fn iter(&self) -> impl Iterator<Item = (&Block, AddressRange)> {
        self.blocks.iter().zip(self.windows.iter().copied())
    }
}

struct Found {
    ram: Vec<AddressRange>,
    mmio32: AddressRange,
    low: Placed,
    mmio64: Option<AddressRange>,
    high: Placed,
}

impl Search<'_> {
    fn run(&self, reach: &Reach) -> Result<Found, PlanError> {
        let mut error = None;
        for (low_limit, mmio32) in self.low_limits() {
            let ram = match reach.place(self.request.ram, low_limit) {
                Ok(ram) => ram,
                // With less low RAM even more of it would have to be above 4 GiB.
                Err(ram) => return Err(error.unwrap_or(ram)),
            };
            let room = self.free(mmio32);
            for threshold in self.thresholds() {
                let Some(low) = self.place_low(threshold, &room) else { continue };
                match self.place_high(threshold, &ram) {
                    Ok((mmio64, high)) => return Ok(Found { ram, mmio32, low, mmio64, high }),
                    // The first is the one to tell: the room above RAM only shrinks from here.
                    Err(_) if matches!(error, Some(PlanError::Mmio64(_))) => {}
                    Err(shortage) => error = Some(PlanError::Mmio64(Box::new(shortage))),
                }
                // Moving more BARs up would only need more of what is short.
                break;
            }
            if !matches!(error, Some(PlanError::Mmio64(_))) {
                let mut shortage = self.shortage(Home::Low, 0);
                shortage.room = room;
                shortage.asked = self.request.mmio32;
                error = Some(PlanError::Mmio32(Box::new(shortage)));
            }
        }
        Err(error
            .unwrap_or_else(|| PlanError::Malformed { what: "no window below 4 GiB".to_owned() }))
    }

    /// Ends of low RAM with their 32-bit windows, in order of preference.
    fn low_limits(&self) -> Vec<(u64, AddressRange)> {
        let starts: Vec<u64> = match self.request.mmio32 {
            Some(asked) => vec![ECAM_BASE.saturating_sub(asked)],
            None => (0..=(LOW_RAM_MAX - LOW_RAM_MIN) / LOW_RAM_STEP)
                .map(|step| LOW_RAM_MAX - step * LOW_RAM_STEP)
                .collect(),
        };
        starts
            .into_iter()
            .filter_map(|start| {
                let window = AddressRange::inclusive(start, ECAM_BASE - 1)?;
                Some((align_down(start.min(LOW_RAM_MAX), CHUNK), window))
            })
            .collect()
    }

    /// Sizes from which on 64-bit BARs that are not prefetchable move up: first none, then one size more each time.
    fn thresholds(&self) -> Vec<u64> {
        let sizes: BTreeSet<u64> = self
            .items
            .iter()
            .filter(|item| item.spec.kind == BarKind::Memory64 { prefetchable: false })
            .map(|item| item.spec.size)
            .collect();
        [u64::MAX].into_iter().chain(sizes.into_iter().rev()).collect()
    }

    fn at_home(&self, wanted: Home, threshold: u64) -> Vec<Item> {
        let there = |item: &&Item| home(item.spec, threshold) == wanted;
        self.items.iter().filter(there).copied().collect()
    }

    /// What of `range` windows can use, in pieces of a window's granularity.
    fn free(&self, range: AddressRange) -> Vec<AddressRange> {
        range
            .subtract_all(self.reserved.iter().copied())
            .into_iter()
            .filter_map(|piece| shrink(piece, MEMORY_WINDOW))
            .collect()
    }

    fn reachable(&self, range: AddressRange) -> bool {
        self.iova.is_empty() || self.iova.iter().any(|iova| iova.encloses(range))
    }

    fn space(&self, free: Vec<AddressRange>) -> Space {
        let preferred = if self.iova.is_empty() { free.clone() } else { self.iova.clone() };
        Space::new(free, &preferred)
    }

    fn place_low(&self, threshold: u64, room: &[AddressRange]) -> Option<Placed> {
        let blocks = blocks(&self.at_home(Home::Low, threshold), MEMORY_WINDOW)?;
        let windows = self.space(room.to_vec()).take_all(&blocks)?;
        Some(Placed { blocks, windows })
    }

    /// The window that holds every prefetchable one, and those. Wholly in the IOMMU's reach if that can be.
    fn place_high(
        &self,
        threshold: u64,
        ram: &[AddressRange],
    ) -> Result<(Option<AddressRange>, Placed), Shortage> {
        let asked = self.request.mmio64;
        let ram_end = ram.last().map_or(0, |range| range.last());
        let room = (1_u64 << self.request.physical_bits)
            .checked_sub(1)
            .and_then(|last| AddressRange::inclusive((ram_end + 1).max(FOUR_GIB), last))
            .map_or_else(Vec::new, |above| self.free(above));
        let reached: Vec<_> = if self.iova.is_empty() {
            room.clone()
        } else {
            let reached = intersect(&room, &self.iova);
            reached.into_iter().filter_map(|piece| shrink(piece, MEMORY_WINDOW)).collect()
        };
        let blocks = blocks(&self.at_home(Home::High, threshold), MEMORY_WINDOW);
        if let Some(blocks) = blocks {
            if blocks.is_empty() && asked.is_none() {
                return Ok((None, Placed { blocks, windows: Vec::new() }));
            }
            let align = blocks.first().map_or(MEMORY_WINDOW, |block| block.align);
            // Aligned to the largest BAR nothing is wasted inside; where the IOMMU ends within the window, starting
            // low matters more, so that the small BARs at least are in its reach.
            let starts = reached
                .iter()
                .flat_map(|piece| [(piece, align), (piece, MEMORY_WINDOW)])
                .chain(room.iter().flat_map(|piece| [(piece, MEMORY_WINDOW), (piece, align)]));
            for (piece, align) in starts {
                if let Some((window, windows)) = self.place_in(*piece, align, &blocks) {
                    return Ok((Some(window), Placed { blocks, windows }));
                }
            }
        }
        let mut shortage = self.shortage(Home::High, threshold);
        // The user's number is to blame only when it is smaller than what is needed.
        shortage.asked = asked.filter(|&asked| asked < shortage.needed);
        shortage.needed = shortage.needed.max(asked.unwrap_or(0));
        shortage.room = room;
        Err(shortage)
    }

    /// Every block in one window that starts at the first multiple of `align` in `piece`.
    fn place_in(
        &self,
        piece: AddressRange,
        align: u64,
        blocks: &[Block],
    ) -> Option<(AddressRange, Vec<AddressRange>)> {
        let first = align_up(piece.first(), align)?;
        let region = match self.request.mmio64 {
            Some(asked) => AddressRange::new(first, asked)?,
            None => AddressRange::inclusive(first, piece.last())?,
        };
        if !piece.encloses(region) {
            return None;
        }
        let windows = self.space(vec![region]).take_all(blocks)?;
        let used = windows.iter().copied().reduce(hull);
        let window = if self.request.mmio64.is_some() { Some(region) } else { used };
        Some((window?, windows))
    }

    fn shortage(&self, wanted: Home, threshold: u64) -> Shortage {
        let items = self.at_home(wanted, threshold);
        let needs = items.iter().map(|item| Need { host: item.host, spec: item.spec }).collect();
        let mut shortage = Shortage::new(needs);
        match blocks(&items, MEMORY_WINDOW) {
            Some(blocks) => {
                shortage.needed = blocks.iter().fold(0, |sum: u64, b| sum.saturating_add(b.size));
                shortage.align = blocks.first().map_or(MEMORY_WINDOW, |block| block.align);
            }
            None => (shortage.needed, shortage.align) = (u64::MAX, 1 << 63),
        }
        shortage
    }

    /// I/O windows in port order; a port whose I/O BARs do not all fit loses its largest first.
    fn place_io(&self) -> (Placed, Vec<Item>) {
        let mut space = Space::new(
            AddressRange::inclusive(IO_WINDOW_START, IO_WINDOW_END).into_iter().collect(),
            &[],
        );
        let mut placed = Placed { blocks: Vec::new(), windows: Vec::new() };
        let mut left_out = Vec::new();
        for of_port in self.at_home(Home::Io, 0).chunk_by(|a, b| a.port == b.port) {
            let mut items = of_port.to_vec();
            items
                .sort_by_key(|item| (item.spec.size, std::cmp::Reverse((item.function, item.bar))));
            while !items.is_empty() {
                let block = blocks(&items, IO_WINDOW).and_then(|mut blocks| blocks.pop());
                let window = block.as_ref().and_then(|block| space.take(block.size, block.align));
                if let (Some(block), Some(window)) = (block, window) {
                    placed.blocks.push(block);
                    placed.windows.push(window);
                    break;
                }
                left_out.extend(items.pop());
            }
        }
        left_out.sort_by_key(|item| (item.port, item.function, item.bar));
        (placed, left_out)
    }

    fn assemble(&self, buses: &[u8], found: Found) -> Plan {
        let highest_bus = buses.iter().copied().max().unwrap_or(0);
        let ecam = fixed(ECAM_BASE, ECAM_BASE + (u64::from(highest_bus) << 20) + 0xf_ffff);
        let (io, left_out) = self.place_io();
        let mut homes = BTreeMap::new();
        for (block, window) in found.low.iter().chain(found.high.iter()).chain(io.iter()) {
            homes.extend(block.bars(window).map(|(item, at)| {
                ((item.port, item.function, item.bar), self.bar_plan(item.spec, at))
            }));
        }
        let mut ports: Vec<PortPlan> = Vec::with_capacity(self.request.ports.len());
        for (index, (port, &bus)) in self.request.ports.iter().zip(buses).enumerate() {
            let window = |placed: &Placed| {
                placed.iter().find(|(block, _)| block.port == index).map(|(_, window)| window)
            };
            let functions = port.functions.iter().enumerate().filter_map(|(position, function)| {
                let bars = homes
                    .range((index, position, 0)..=(index, position, usize::MAX))
                    .map(|(_, &bar)| bar)
                    .collect();
                let at = Bdf::new(0, bus, 0, function.number)?;
                Some(FunctionPlan { at, host: function.host, bars })
            });
            let Some(at) = port_address(index) else { continue };
            ports.push(PortPlan {
                id: port.id.clone(),
                at,
                bus,
                io: window(&io),
                memory: window(&found.low),
                prefetchable: window(&found.high),
                functions: functions.collect(),
            });
        }
        Plan {
            physical_bits: self.request.physical_bits,
            ram: found.ram,
            ecam,
            io: fixed(IO_WINDOW_START, IO_WINDOW_END),
            mmio32: found.mmio32,
            mmio64: found.mmio64,
            ports,
            holes: self.holes(ecam),
            unassigned: left_out.into_iter().map(|item| (item.host, item.spec)).collect(),
        }
    }

    fn bar_plan(&self, mut spec: BarSpec, at: AddressRange) -> BarPlan {
        if matches!(spec.kind, BarKind::Memory64 { .. }) && at.first() >= FOUR_GIB {
            spec.kind = BarKind::Memory64 { prefetchable: true };
        }
        BarPlan { spec, at, dma_reachable: spec.kind.is_memory() && self.reachable(at) }
    }

    /// The chipset and whatever is reserved elsewhere. ECAM and the chipset are no RAM and no BAR anyway, so what the
    /// host reserves there (the MSI doorbell at 0xFEE00000) is no hole of its own.
    fn holes(&self, ecam: AddressRange) -> Vec<Hole> {
        let chipset = fixed(CHIPSET_START, FOUR_GIB - 1);
        let cpu = fixed(0, (1 << self.request.physical_bits) - 1);
        let (first, last) = AMD_HYPERTRANSPORT;
        let hypertransport = fixed(first, last);
        let mut holes: Vec<_> = self
            .reserved
            .iter()
            .filter_map(|range| range.intersect(cpu))
            .flat_map(|range| range.subtract_all([ecam, chipset]))
            .map(|range| Hole {
                range,
                why: if range.encloses(hypertransport) {
                    "AMD HyperTransport"
                } else {
                    "reserved by the host's IOMMU"
                },
            })
            .collect();
        holes.push(Hole { range: chipset, why: "chipset, interrupt controllers, firmware" });
        holes.sort_by_key(|hole| hole.range);
        holes
    }
}

/// Devices 1 to 29 one port each, then their function 1, and so on; `None` past the last.
fn port_address(index: usize) -> Option<Bdf> {
    let device = u8::try_from(index % PORT_DEVICES + 1).ok()?;
    let function = u8::try_from(index / PORT_DEVICES).ok()?;
    Bdf::new(0, 0, device, function)
}

/// A range of constants.
fn fixed(first: u64, last: u64) -> AddressRange {
    AddressRange::inclusive(first.min(last), last).unwrap_or_else(|| unreachable!())
}
