use strait_resources::host::{fixture::Tree, pci};

use super::*;
use crate::inspect::guest::{Activity, Bar};

/// The GPU of a fixture in a guest where all is well.
fn case() -> (Guest, DeviceFacts) {
    let tree = Tree::two_cards();
    let bdf = "3b:00.0".parse().unwrap();
    let device = Device {
        id: "gpu".into(),
        host: bdf,
        guest: "01:00.0".parse().unwrap(),
        rom: Rom::Device,
        shown_as: None,
        bars: vec![Bar {
            index: Some(0),
            kind: "memory32".into(),
            size: 16 << 20,
            address: 0x8000_0000,
            decoded: true,
            direct: 16 << 20,
        }],
        memory_decode: true,
        bus_master: true,
        interrupts: Interrupts::Msi,
        vectors: 1,
        vectors_connected: 1,
        resets: 1,
        failed_resets: 0,
        rom_read: false,
        lost: false,
        dead_reads: 0,
        activity: Activity::default(),
        errors_before: None,
    };
    let guest = Guest {
        version: String::new(),
        pid: 1,
        command: vec![],
        config: None,
        seconds: 0,
        cpus: 1,
        memory: 0,
        kvm_visible: false,
        hypervisor_visible: true,
        fake_battery: false,
        p2p: false,
        devices: vec![device.clone()],
    };
    let facts = DeviceFacts {
        device,
        host: pci::find(&tree.sysroot(), bdf).unwrap(),
        delivered: Some(7),
        posted: false,
        faults: Some(vec![]),
        per_second: Some(0),
        errors: Some(aer::Counters::default()),
        error_status: None,
        error_log: Some(vec![]),
        left_behind: vec![],
        notebook: Some(false),
    };
    (guest, facts)
}

fn state(guest: &Guest, facts: &DeviceFacts, word: &str) -> Seen {
    let judged = verdict(guest, facts);
    let found = judged.causes.iter().find(|cause| cause.what.contains(word));
    found.unwrap_or_else(|| panic!("no cause has {word}: {judged:#?}")).seen
}

#[test]
fn r87_nothing_is_seen_where_all_is_well_and_every_cause_is_judged() {
    let (guest, facts) = case();
    let judged = verdict(&guest, &facts);
    assert_eq!(
        (judged.healthy, judged.text.as_str()),
        (true, "healthy: MSI with 1 vector, 7 interrupts so far")
    );
    assert_eq!(judged.causes.len(), PLAIN.len() + CODE_43.len());
    let seen = judged.causes.iter().filter(|cause| cause.seen == Seen::Yes).count();
    assert_eq!(seen, 0, "{judged:#?}");
}

#[test]
fn r87_gravest_cause_is_the_verdict_and_comes_first() {
    let (guest, mut facts) = case();
    facts.device.failed_resets = 1;
    facts.device.bus_master = false;
    facts.device.lost = true;
    let judged = verdict(&guest, &facts);
    assert_eq!(judged.text, "the device did not come back from its last reset");
    assert_eq!(judged.causes[0].what, judged.text);
    assert_eq!(judged.causes[1].what, "1 of 2 resets failed");
    facts.host = None;
    assert_eq!(verdict(&guest, &facts).text, "the device has left the host");
}

#[test]
fn r87_errors_of_pci_express_count_by_how_grave_they_are() {
    let (guest, mut facts) = case();
    let some = |name: &str, count| vec![(name.to_owned(), count)];
    let counted = |facts: &mut DeviceFacts| facts.errors.get_or_insert_default().clone();
    assert_eq!(state(&guest, &facts, "errors of PCI Express (AER)"), Seen::No);
    facts.errors = Some(aer::Counters { correctable: some("BadTLP", 12), ..counted(&mut facts) });
    assert_eq!(state(&guest, &facts, "PCI Express: 12 BadTLP"), Seen::Unknown);
    assert!(verdict(&guest, &facts).healthy);
    facts.errors = Some(aer::Counters { nonfatal: some("CmpltTO", 1), ..counted(&mut facts) });
    assert_eq!(verdict(&guest, &facts).text, "PCI Express lost transactions: 1 CmpltTO");
    facts.errors = Some(aer::Counters { fatal: some("SDES", 1), ..counted(&mut facts) });
    assert_eq!(verdict(&guest, &facts).text, "PCI Express broke down: 1 SDES");
    facts.errors = None;
    assert_eq!(state(&guest, &facts, "errors of PCI Express (AER)"), Seen::No);
    facts.error_log = Some(vec!["{1}[Hardware Error]: x".into()]);
    assert_eq!(state(&guest, &facts, "the last: {1}[Hardware Error]"), Seen::Yes);
}

#[test]
fn r87_device_that_went_silent_is_told() {
    let (guest, mut facts) = case();
    facts.device.dead_reads = 2;
    assert!(verdict(&guest, &facts).text.contains("silent: 2 of the guest's"));
}

#[test]
fn r87_posted_interrupts_leave_it_open() {
    let (guest, mut facts) = case();
    facts.delivered = Some(0);
    assert_eq!(state(&guest, &facts, "not one interrupt came"), Seen::Yes);
    facts.posted = true;
    assert_eq!(state(&guest, &facts, "posted ones are not counted"), Seen::Unknown);
}

#[test]
fn r87_code_43_causes_go_by_what_is_known_of_host_and_guest() {
    let (mut guest, mut facts) = case();
    facts.notebook = Some(true);
    assert_eq!(state(&guest, &facts, "no battery"), Seen::Yes);
    guest.fake_battery = true;
    assert_eq!(state(&guest, &facts, "without a battery"), Seen::No);
    guest.kvm_visible = true;
    assert_eq!(state(&guest, &facts, "before 465"), Seen::Yes);
    facts.device.rom = Rom::None;
    assert_eq!(state(&guest, &facts, "sees no expansion ROM"), Seen::Yes);
    facts.faults = None;
    assert_eq!(state(&guest, &facts, "IOMMU faults"), Seen::Unknown);
    facts.device.shown_as = Some("10de:1e04".into());
    assert_eq!(state(&guest, &facts, "as 10de:1e04"), Seen::Yes);
}

#[test]
fn r87_hidden_hypervisor_is_a_cause_for_intels_virtual_functions() {
    let (mut guest, mut facts) = case();
    guest.hypervisor_visible = false;
    let host = facts.host.as_mut().unwrap();
    (host.vendor, host.physical_function) = (INTEL, Some("00:02.0".parse().unwrap()));
    assert_eq!(state(&guest, &facts, "Intel's driver for virtual functions"), Seen::Yes);
}

#[test]
fn r87_sound_function_has_no_causes_of_displays() {
    let (guest, mut facts) = case();
    facts.host.as_mut().unwrap().class = pci::Class(0x04_0300);
    assert_eq!(verdict(&guest, &facts).causes.len(), PLAIN.len());
}
