//! The rules of the plan, over every kind of request; `cases` has the examples.

mod cases;

use proptest::{prelude::*, sample::select};
use strait_resources::{
    bar::{BarIndex, BarKind, BarSpec},
    bdf::Bdf,
    range::AddressRange,
};

use super::*;
use crate::layout::{CHIPSET_START, ECAM_BASE};

const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;
const P64: BarKind = BarKind::Memory64 { prefetchable: true };
const N64: BarKind = BarKind::Memory64 { prefetchable: false };
const N32: BarKind = BarKind::Memory32 { prefetchable: false };

fn range(first: u64, last: u64) -> AddressRange {
    AddressRange::inclusive(first, last).unwrap()
}

fn bar(index: u8, kind: BarKind, size: u64) -> BarSpec {
    BarSpec { index: BarIndex::new(index).unwrap(), kind, size }
}

fn host(port: usize, function: u8) -> Bdf {
    Bdf::new(0, u8::try_from(port + 1).unwrap(), 0, function).unwrap()
}

/// A port with one function.
fn port(index: usize, bars: &[BarSpec]) -> PortRequest {
    let function = FunctionRequest { number: 0, host: host(index, 0), bars: bars.to_vec() };
    PortRequest { id: format!("vfio{index}"), bus: None, functions: vec![function] }
}

fn request(ram: u64, ports: Vec<PortRequest>) -> PlanRequest {
    PlanRequest {
        ram,
        physical_bits: 46,
        iova: vec![range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << 46) - 1)],
        reserved: vec![range(0xfee0_0000, 0xfeef_ffff)],
        ports,
        mmio32: None,
        mmio64: None,
    }
}

fn all_bars(plan: &Plan) -> impl Iterator<Item = (&PortPlan, &BarPlan)> {
    plan.ports.iter().flat_map(|port| {
        port.functions.iter().flat_map(move |f| f.bars.iter().map(move |bar| (port, bar)))
    })
}

fn first_bar(plan: &Plan, port: usize) -> BarPlan {
    plan.ports[port].functions[0].bars[0]
}

/// Everything that must hold for any plan.
fn check(request: &PlanRequest, plan: &Plan) {
    let cpu = range(0, (1 << request.physical_bits) - 1);
    assert_eq!(plan.ram.iter().map(|r| r.len()).sum::<u64>(), request.ram);
    assert_eq!(plan.ram[0].first(), 0);
    for ram in &plan.ram {
        assert!(ram.first().is_multiple_of(2 * MIB) && ram.len().is_multiple_of(2 * MIB));
        assert!(request.reserved.iter().all(|hole| !hole.overlaps(*ram)), "{ram}");
        // Ranges that touch are one range to an IOMMU.
        let outside: Vec<_> = ram.subtract_all(request.iova.iter().copied());
        assert!(
            request.iova.is_empty() || outside.is_empty(),
            "{ram} beyond the IOMMU: {outside:?}"
        );
    }

    let mut used: Vec<AddressRange> = plan.ram.clone();
    used.push(plan.ecam);
    used.extend(plan.holes.iter().map(|hole| hole.range));
    assert!(used.iter().any(|r| r.encloses(range(CHIPSET_START, 0xffff_ffff))));
    // Pages, because two BARs in one page could not be mapped apart.
    let memory = all_bars(plan).filter(|(_, bar)| bar.spec.kind.is_memory());
    used.extend(
        memory.map(|(_, bar)| AddressRange::new(bar.at.first(), bar.at.len().max(4096)).unwrap()),
    );
    disjoint(used.clone());
    for range in used {
        assert!(cpu.encloses(range), "{range} beyond {} bits", request.physical_bits);
    }

    for (port, bar) in all_bars(plan) {
        let (window, outer) = match bar.spec.kind {
            BarKind::Io => (port.io, Some(plan.io)),
            P64 => (port.prefetchable, plan.mmio64),
            _ => (port.memory, Some(plan.mmio32)),
        };
        assert!(window.unwrap().encloses(bar.at), "{bar:?} outside {window:?}");
        assert!(outer.unwrap().encloses(window.unwrap()));
        assert_eq!(bar.at.len(), bar.spec.size);
        assert!(bar.at.first().is_multiple_of(bar.spec.size));
        let reach =
            request.iova.is_empty() || bar.at.subtract_all(request.iova.iter().copied()).is_empty();
        assert_eq!(bar.dma_reachable, reach && bar.spec.kind.is_memory(), "{bar:?}");
    }
    let granular = |r: &AddressRange, g| r.first().is_multiple_of(g) && r.len().is_multiple_of(g);
    let windows = |of: fn(&PortPlan) -> Option<AddressRange>| -> Vec<AddressRange> {
        plan.ports.iter().filter_map(of).collect()
    };
    let memory = [windows(|p| p.memory), windows(|p| p.prefetchable)].concat();
    assert!(memory.iter().all(|r| granular(r, MIB)));
    assert!(windows(|p| p.io).iter().all(|r| granular(r, 4096)));
    disjoint(windows(|p| p.io));
    disjoint([memory, plan.holes.iter().map(|hole| hole.range).collect()].concat());
    if let Some(mmio64) = plan.mmio64 {
        assert!(mmio64.first() > plan.ram.last().unwrap().last());
        disjoint(plan.holes.iter().map(|hole| hole.range).chain([mmio64]).collect());
        assert!(request.mmio64.is_none_or(|asked| asked == mmio64.len()));
    }
    assert!(request.mmio32.is_none_or(|asked| asked == plan.mmio32.len()));
    assert_eq!(plan.mmio32.last(), ECAM_BASE - 1);

    let given = all_bars(plan).count() + plan.unassigned.len();
    let wanted: usize = request.ports.iter().flat_map(|p| &p.functions).map(|f| f.bars.len()).sum();
    assert_eq!(given, wanted);
    assert!(plan.unassigned.iter().all(|(_, spec)| spec.kind == BarKind::Io));

    let mut places: Vec<Bdf> = plan.ports.iter().map(|port| port.at).collect();
    places.sort();
    places.dedup();
    assert_eq!(places.len(), request.ports.len());
    for port in &plan.ports {
        assert_eq!(plan.port_of_bus(port.bus), Some(port));
        assert!((1..=29).contains(&port.at.device()));
        assert!(plan.ecam.len() > u64::from(port.bus) << 20);
    }
    disjoint(plan.e820().into_iter().map(|(range, _)| range).collect());
    assert!(!plan.picture(80).is_empty());
}

fn disjoint(mut ranges: Vec<AddressRange>) {
    ranges.sort();
    for pair in ranges.windows(2) {
        assert!(!pair[0].overlaps(pair[1]), "{} and {} overlap", pair[0], pair[1]);
    }
}

fn any_bar() -> impl Strategy<Value = BarSpec> {
    let kind = select(vec![
        BarKind::Io,
        N32,
        BarKind::Memory32 { prefetchable: true },
        N64,
        P64,
        P64,
        BarKind::Rom,
    ]);
    // Small ones mostly, as on real machines; a few up to 512 GiB.
    let bits = prop_oneof![8 => 4..=20_u32, 2 => 4..=32_u32, 1 => 4..=39_u32];
    (0..=6_u8, kind, bits).prop_map(|(index, kind, bits)| bar(index, kind, 1 << bits))
}

fn any_ports(count: std::ops::RangeInclusive<usize>) -> impl Strategy<Value = Vec<PortRequest>> {
    let function = prop::collection::vec(any_bar(), 0..=6);
    let functions = prop::collection::vec(function, 1..=8);
    prop::collection::vec(functions, count).prop_map(|ports| {
        let of_port = |(index, functions): (usize, Vec<Vec<BarSpec>>)| PortRequest {
            id: format!("vfio{index}"),
            bus: None,
            functions: (0..)
                .zip(functions)
                .map(|(number, bars)| FunctionRequest { number, host: host(index, number), bars })
                .collect(),
        };
        ports.into_iter().enumerate().map(of_port).collect()
    })
}

fn any_range() -> impl Strategy<Value = AddressRange> {
    // Exponents rather than addresses, or nothing would ever be below 1 TiB.
    (0..57_u32, any::<u64>(), 0..40_u32).prop_map(|(bits, noise, len)| {
        AddressRange::new((1 << bits) | (noise & ((1 << bits) - 1)), 1 << len).unwrap()
    })
}

fn any_request() -> impl Strategy<Value = PlanRequest> {
    let iova = prop_oneof![
        Just(vec![]),
        (39..=57_u32)
            .prop_map(|bits| vec![range(0, 0xfedf_ffff), range(0xfef0_0000, (1 << bits) - 1)]),
        prop::collection::vec(any_range(), 0..4).prop_map(|mut more| {
            more.push(range(0, 0xfedf_ffff));
            more
        }),
    ];
    let ram = prop_oneof![32..=8192_u64, 32..=(2_u64 << 20)];
    (
        ram,
        36..=57_u8,
        iova,
        prop::collection::vec(any_range(), 0..4),
        prop_oneof![9 => any_ports(0..=4), 1 => any_ports(0..=64)],
        prop::option::weighted(0.1, 0..=4096_u64),
        prop::option::weighted(0.1, 0..=(1_u64 << 20)),
    )
        .prop_map(|(ram, physical_bits, iova, reserved, ports, mmio32, mmio64)| PlanRequest {
            ram: ram * 2 * MIB,
            physical_bits,
            iova,
            reserved,
            ports,
            mmio32: mmio32.map(|size| size * MIB),
            mmio64: mmio64.map(|size| size * MIB),
        })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn any_request_gets_a_sound_plan_or_a_reason(request in any_request()) {
        match request.solve() {
            Ok(plan) => {
                check(&request, &plan);
                prop_assert_eq!(Ok(plan), request.solve());
            }
            Err(error) => {
                prop_assert_eq!(Err(error.clone()), request.solve());
                prop_assert!(error.code().id != "E9001", "{}", error);
                prop_assert!(!error.into_failure().fix.is_empty());
            }
        }
    }

    #[test]
    fn nonsense_is_refused_without_a_panic(
        mut request in any_request(),
        ram in any::<u64>(),
        physical_bits in any::<u8>(),
        size in any::<u64>(),
        bus in any::<Option<u8>>(),
        reserved in any::<[(u64, u64); 3]>(),
    ) {
        request.ram = ram;
        request.physical_bits = physical_bits;
        request.mmio64 = Some(size);
        request.reserved = reserved.iter().filter_map(|r| AddressRange::new(r.0, r.1)).collect();
        request.iova.extend(AddressRange::new(size, ram));
        for port in &mut request.ports {
            port.bus = bus;
            for spec in port.functions.iter_mut().flat_map(|f| &mut f.bars) {
                spec.size = spec.size.wrapping_mul(size);
            }
        }
        if let Ok(plan) = request.solve() {
            check(&request, &plan);
        }
    }

    /// With alignment and page rounding counted twice over, 256 MiB are a sixth of the window there is.
    #[test]
    fn modest_needs_are_always_met(ports in any_ports(0..=8), ram in 32..=(1_u64 << 16)) {
        let mut ports = ports;
        for spec in ports.iter_mut().flat_map(|p| &mut p.functions).flat_map(|f| &mut f.bars) {
            spec.size = if spec.kind == P64 { spec.size } else { spec.size.min(MIB / 2) };
        }
        let mut request = request(ram * 2 * MIB, ports);
        request.physical_bits = 52;
        request.iova = vec![];
        let plan = request.solve();
        prop_assert!(plan.is_ok(), "{:?}", plan);
        check(&request, &plan.unwrap());
    }

    /// Natural alignment wastes less than what it aligns, a window's granularity less than 1 MiB, the window's own
    /// alignment less than the largest BAR.
    #[test]
    fn prefetchable_bars_with_twice_their_room_are_always_placed(
        ports in prop_oneof![9 => any_ports(0..=4), 1 => any_ports(0..=64)],
        ram in 32..=(1_u64 << 16),
        physical_bits in 39..=52_u8,
    ) {
        let mut ports = ports;
        for function in ports.iter_mut().flat_map(|p| &mut p.functions) {
            function.bars.retain(|spec| spec.kind == P64);
        }
        let sizes = ports.iter().flat_map(|p| &p.functions).flat_map(|f| f.bars.iter().map(|b| b.size.max(4096)));
        let need = sizes.clone().sum::<u64>() * 2 + sizes.max().unwrap_or(0) + 128 * MIB;
        let mut request = request(ram * 2 * MIB, ports);
        (request.physical_bits, request.iova) = (physical_bits, vec![]);
        let room = (1 << physical_bits) - 4 * GIB - request.ram;
        let plan = request.solve();
        prop_assert!(plan.is_ok() || need > room, "{:?}", plan);
        if let Ok(plan) = plan {
            check(&request, &plan);
        }
    }
}
