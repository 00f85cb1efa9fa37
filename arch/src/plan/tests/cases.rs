//! One example for each rule.

use super::*;
use crate::layout::LOW_RAM_MAX;

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
