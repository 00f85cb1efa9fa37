//! The rules of the plan, over every kind of request.

use proptest::{prelude::*, sample::select};
use strait_resources::{
    bar::{BarIndex, BarKind, BarSpec},
    bdf::Bdf,
    range::AddressRange,
};

use super::*;
use crate::layout::{CHIPSET_START, ECAM_BASE, LOW_RAM_MAX};

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
        prop_oneof![4 => any_ports(0..=4), 1 => any_ports(0..=64)],
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
}

#[test]
fn gpu_gets_its_bars_where_a_driver_expects_them() {
    let gpu = [bar(0, N32, 16 * MIB), bar(1, P64, 32 * GIB), bar(3, P64, 32 * MIB)];
    let sound = FunctionRequest { number: 1, host: host(0, 1), bars: vec![bar(0, N32, 16384)] };
    let mut slot =
        port(0, &[&gpu[..], &[bar(5, BarKind::Io, 128), bar(6, BarKind::Rom, MIB / 2)]].concat());
    slot.functions.push(sound);
    let request = request(16 * GIB, vec![slot]);

    let plan = request.solve().unwrap();

    check(&request, &plan);
    assert_eq!(plan.ram, [range(0, LOW_RAM_MAX - 1), range(4 * GIB, 18 * GIB - 1)]);
    let port = &plan.ports[0];
    assert_eq!((port.at.to_string(), port.bus), ("0000:00:01.0".into(), 1));
    assert_eq!(port.io, Some(range(0x1000, 0x1fff)));
    assert_eq!(port.memory, Some(range(0x8000_0000, 0x8000_0000 + 17 * MIB - 1)));
    assert_eq!(port.prefetchable, Some(range(32 * GIB, 64 * GIB + 32 * MIB - 1)));
    assert_eq!(plan.mmio64, port.prefetchable);
    assert_eq!(plan.ecam.len(), 2 * MIB);
    assert!(all_bars(&plan).all(|(_, bar)| bar.dma_reachable || bar.spec.kind == BarKind::Io));
}

#[test]
fn small_64_bit_bar_without_prefetch_stays_below_4_gib() {
    let plan = request(GIB, vec![port(0, &[bar(0, N64, 16384)])]).solve().unwrap();
    assert_eq!(first_bar(&plan, 0).spec.kind, N64);
    assert_eq!(plan.mmio64, None);
}

#[test]
fn large_64_bit_bar_without_prefetch_goes_up_and_the_small_one_stays() {
    let ports = vec![port(0, &[bar(0, N64, 8 * GIB)]), port(1, &[bar(0, N64, 16384)])];
    let request = request(GIB, ports);
    let plan = request.solve().unwrap();

    check(&request, &plan);
    assert_eq!((first_bar(&plan, 0).spec.kind, first_bar(&plan, 1).spec.kind), (P64, N64));
    assert_eq!(first_bar(&plan, 0).at.first(), 8 * GIB);
}

#[test]
fn low_ram_gives_way_to_alignment_too() {
    let ports = (0..2).map(|i| port(i, &[bar(0, N32, GIB)])).collect();
    let request = request(4 * GIB, ports);
    let plan = request.solve().unwrap();

    check(&request, &plan);
    // From 3 GiB on there are 512 MiB only, so the second one needs what was RAM.
    assert_eq!(plan.ram[0], range(0, GIB - 1));
}

#[test]
fn two_gib_32_bit_bar_has_no_aligned_place_and_is_refused() {
    let error = request(GIB, vec![port(0, &[bar(0, N32, 2 * GIB)])]).solve().unwrap_err();
    assert_eq!(error.code().id, "E1202");
}

#[test]
fn many_32_bit_bars_shrink_low_ram_no_further_than_needed() {
    let ports = (0..9).map(|i| port(i, &[bar(0, N32, 256 * MIB)])).collect();
    let request = request(4 * GIB, ports);
    let plan = request.solve().unwrap();

    check(&request, &plan);
    assert_eq!(plan.ram[0], range(0, 5 * 256 * MIB - 1));
}

#[test]
fn thirteen_256_mib_32_bit_bars_are_refused_with_a_table() {
    let ports = (0..13).map(|i| port(i, &[bar(0, N32, 256 * MIB)])).collect();
    let error = request(4 * GIB, ports).solve().unwrap_err();

    assert_eq!(error.code().id, "E1202");
    assert_eq!(
        error.to_string(),
        "32-bit BARs do not fit: they need 3328 MiB in windows aligned to 256 MiB; the largest free piece is 3 GiB"
    );
    assert_eq!(error.table().len(), 14);
}

#[test]
fn bar_outside_a_narrow_iommu_is_placed_but_not_for_peers() {
    let mut request = request(2 * GIB, vec![port(0, &[bar(0, P64, 512 * GIB), bar(2, P64, MIB)])]);
    request.iova = vec![range(0, (1 << 39) - 1)];
    let plan = request.solve().unwrap();

    check(&request, &plan);
    assert_eq!(first_bar(&plan, 0).at.first(), 512 * GIB);
    assert!(!first_bar(&plan, 0).dma_reachable);
}

#[test]
fn small_bars_stay_in_reach_of_a_narrow_iommu_beside_a_large_one() {
    let ports = vec![port(0, &[bar(0, P64, 512 * GIB)]), port(1, &[bar(0, P64, MIB)])];
    let mut request = request(2 * GIB, ports);
    request.iova = vec![range(0, (1 << 39) - 1)];
    let plan = request.solve().unwrap();

    check(&request, &plan);
    assert!(!first_bar(&plan, 0).dma_reachable && first_bar(&plan, 1).dma_reachable);
}

#[test]
fn window_goes_around_hypertransport_in_one_piece() {
    let (first, last) = crate::layout::AMD_HYPERTRANSPORT;
    let ports = (0..4).map(|i| port(i, &[bar(0, P64, 256 * GIB)])).collect();
    let mut request = request(8 * GIB, ports);
    request.reserved.push(range(first, last));
    let plan = request.solve().unwrap();

    check(&request, &plan);
    assert_eq!(plan.mmio64, Some(range(1024 * GIB, 2048 * GIB - 1)));
    assert!(plan.holes.iter().any(|hole| hole.why == "AMD HyperTransport"));
}

#[test]
fn bars_beyond_the_cpu_are_refused_with_a_table() {
    let mut request = request(2 * GIB, vec![port(0, &[bar(1, P64, 512 * GIB)])]);
    request.physical_bits = 39;
    let failure = request.solve().unwrap_err().into_failure();

    assert_eq!(failure.code.id, "E1201");
    assert_eq!(
        failure.details,
        [
            "0000:01:00.0  BAR 1    512 GiB  64-bit prefetchable",
            "  508 GiB free at 0x100000000-0x7fffffffff"
        ]
    );
}

#[test]
fn windows_of_the_users_size_are_honoured_or_refused() {
    let mut asked = request(4 * GIB, vec![port(0, &[bar(0, N32, MIB), bar(1, P64, GIB)])]);
    (asked.mmio32, asked.mmio64) = (Some(3 * GIB), Some(64 * GIB));
    let plan = asked.solve().unwrap();
    check(&asked, &plan);
    assert_eq!(plan.ram[0].len(), 512 * MIB);

    for (mmio32, mmio64, code) in [
        (Some(3 * GIB + MIB), None, "E1202"),
        (Some(MIB / 2), None, "E1202"),
        (None, Some(0), "E1201"),
        (None, Some(512 * MIB), "E1201"),
        (None, Some(1 << 46), "E1201"),
    ] {
        (asked.mmio32, asked.mmio64) = (mmio32, mmio64);
        assert_eq!(asked.solve().unwrap_err().code().id, code, "{mmio32:?} {mmio64:?}");
    }
}

#[test]
fn io_windows_run_out_after_fifteen_ports_without_harm() {
    let ports = (0..17).map(|i| port(i, &[bar(0, BarKind::Io, 32), bar(1, N32, 4096)])).collect();
    let request = request(GIB, ports);
    let plan = request.solve().unwrap();

    check(&request, &plan);
    let hosts: Vec<_> = plan.unassigned.iter().map(|(host, _)| *host).collect();
    assert_eq!(hosts, [host(15, 0), host(16, 0)]);
}

#[test]
fn oversized_io_bar_costs_only_itself() {
    let slot = port(0, &[bar(0, BarKind::Io, 1 << 20), bar(1, BarKind::Io, 64)]);
    let plan = request(GIB, vec![slot]).solve().unwrap();
    assert_eq!(plan.unassigned, [(host(0, 0), bar(0, BarKind::Io, 1 << 20))]);
    assert_eq!(first_bar(&plan, 0).at, range(0x1000, 0x103f));
}

#[test]
fn buses_asked_for_are_kept_and_the_others_go_around() {
    let mut ports: Vec<_> = (0..3).map(|i| port(i, &[])).collect();
    ports[2].bus = Some(1);
    let plan = request(GIB, ports.clone()).solve().unwrap();
    assert_eq!(plan.ports.iter().map(|p| p.bus).collect::<Vec<_>>(), [2, 3, 1]);

    ports[0].bus = Some(1);
    let error = request(GIB, ports).solve().unwrap_err();
    assert_eq!(error.to_string(), "guest bus 01 is asked for twice: by vfio0 and by vfio2");
}

#[test]
fn ports_fill_the_devices_before_the_functions() {
    let ports: Vec<_> = (0..64).map(|i| port(i, &[])).collect();
    let plan = request(GIB, ports.clone()).solve().unwrap();
    let at = |index: usize| plan.ports[index].at.to_string();
    assert_eq!(
        (at(28), at(29), at(63)),
        ("0000:00:1d.0".into(), "0000:00:01.1".into(), "0000:00:06.2".into())
    );

    let many: Vec<_> =
        (0..233).map(|i| PortRequest { id: i.to_string(), ..ports[0].clone() }).collect();
    assert_eq!(request(GIB, many).solve().unwrap_err().code().id, "E1208");
}

#[test]
fn port_without_function_0_is_refused() {
    let mut slot = port(0, &[]);
    slot.functions[0].number = 3;
    assert_eq!(request(GIB, vec![slot]).solve().unwrap_err().code().id, "E2005");
}

#[test]
fn e820_tells_ram_the_legacy_hole_and_what_is_reserved() {
    let mut request = request(4 * GIB, vec![]);
    request.reserved.push(range(0x7c00_0000, 0x7fff_ffff));
    let map = request.solve().unwrap().e820();
    use E820Kind::{Ram, Reserved};
    assert_eq!(
        map,
        [
            (range(0, 0x9_fbff), Ram),
            (range(0x9_fc00, 0xf_ffff), Reserved),
            (range(0x10_0000, 0x7bff_ffff), Ram),
            (range(0x7c00_0000, 0x7fff_ffff), Reserved),
            (range(0xe000_0000, 0xe00f_ffff), Reserved),
            (range(0xfc00_0000, 0xffff_ffff), Reserved),
            (range(4 * GIB, 0x1_83ff_ffff), Ram),
        ]
    );
}

#[test]
fn picture_names_every_bar_with_both_its_addresses() {
    let slot = port(0, &[bar(0, N32, 16 * MIB), bar(1, P64, 32 * GIB), bar(5, BarKind::Io, 128)]);
    let picture =
        request(4 * GIB, vec![slot, port(1, &[bar(0, N64, 16384)])]).solve().unwrap().picture(80);

    assert!(
        picture.contains("0x8_0000_0000 │     · BAR 1 of 01:00.0 (host 0000:01:00.0), 64-bit"),
        "{picture}"
    );
    assert!(picture.contains("BAR 0 of 02:00.0 (host 0000:02:00.0), 64-bit"), "{picture}");
    assert!(picture.contains("0x1000-0x107f  · BAR 5 of 01:00.0"), "{picture}");
    let boxed: Vec<usize> = picture
        .lines()
        .filter(|line| line.ends_with(['│', '┤', '┐', '┘']))
        .map(|line| line.chars().count())
        .collect();
    assert!(boxed.len() > 20 && boxed.iter().all(|&width| width == boxed[0]), "{picture}");
}

#[test]
fn largest_request_is_solved_in_no_time() {
    let bars = [bar(0, N32, 4096), bar(1, N64, 65536), bar(2, P64, GIB), bar(3, BarKind::Io, 32)];
    let function =
        |port, number| FunctionRequest { number, host: host(port, number), bars: bars.to_vec() };
    let ports = (0..64).map(|i| PortRequest {
        id: i.to_string(),
        bus: None,
        functions: (0..8).map(|number| function(i, number)).collect(),
    });
    let request = request(64 * GIB, ports.collect());
    let start = std::time::Instant::now();
    let plan = request.solve().unwrap();
    // Milliseconds in fact; a second leaves room for a slow machine and still catches a cubic search.
    assert!(start.elapsed().as_secs() < 1);
    check(&request, &plan);
}
