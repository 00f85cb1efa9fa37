mod closed;
mod denied;

use proptest::prelude::*;

use super::{extended::HIDDEN_EXTENDED, *};
use crate::pci::{
    caps,
    regs::{af, capability, extended, extended_header},
};

const ALL: Presentation = Presentation {
    identity: Identity { vendor: None, device: None, subsystem_vendor: None, subsystem: None },
    multifunction: false,
    intx: true,
    msi: true,
    msix: true,
    reset: true,
    raw_config: false,
    atomics: false,
};

/// The table of a device of which VFIO shows everything.
fn new(config: &[u8], shown: &Presentation) -> Policy {
    Policy::new(config, config, shown)
}

/// A header with these capabilities (offset, bytes after the header), in list order.
fn config(capabilities: &[(u8, u8, &[u8])], extended: &[(u16, u16, u16)]) -> Vec<u8> {
    let mut config = vec![0; 4096];
    config[..4].copy_from_slice(&[0xde, 0x10, 0x34, 0x12]);
    config[usize::from(regs::STATUS)] = regs::STATUS_CAPABILITIES as u8;
    config[usize::from(regs::INTERRUPT_PIN)] = 1;
    let mut link = usize::from(regs::CAPABILITIES_POINTER);
    for &(id, offset, body) in capabilities {
        config[link] = offset;
        let at = usize::from(offset);
        config[at] = id;
        config[at + 2..][..body.len()].copy_from_slice(body);
        link = at + 1;
    }
    for &(at, id, next) in extended {
        let header = extended_header::new(id, 1, next).to_le_bytes();
        config[usize::from(at)..][..4].copy_from_slice(&header);
        config[usize::from(at) + 4] = 0x77;
    }
    config
}

fn source(policy: &Policy, offset: u16) -> Source {
    policy.runs(ConfigAccess::new(offset, 1).unwrap()).next().unwrap().source
}

fn constant32(policy: &Policy, offset: u16) -> u32 {
    u32::from_le_bytes([0, 1, 2, 3].map(|byte| {
        assert_eq!(source(policy, offset + byte), Source::Constant, "{:#x}", offset + byte);
        policy.constant(offset + byte)
    }))
}

/// The capability list as the guest walks it.
fn walk(policy: &Policy) -> Vec<u8> {
    let mut at = policy.constant(regs::CAPABILITIES_POINTER);
    let mut ids = Vec::new();
    while at != 0 {
        ids.push(policy.constant(at.into()));
        at = policy.constant(u16::from(at) + 1);
    }
    ids
}

#[test]
fn header_has_an_owner_for_every_byte() {
    let policy = new(&config(&[], &[]), &ALL);
    for (offset, expected) in [
        (regs::VENDOR_ID, Source::Constant),
        (regs::COMMAND + 1, Source::Ours(Register::Command)),
        (regs::STATUS, Source::Hardware),
        (regs::BASE_CLASS, Source::Constant),
        (regs::HEADER_TYPE, Source::Constant),
        (regs::BAR0, Source::Ours(Register::Bars)),
        (0x27, Source::Ours(Register::Bars)),
        (regs::ROM_BAR, Source::Ours(Register::Bars)),
        (regs::INTERRUPT_LINE, Source::Ours(Register::InterruptLine)),
        (regs::INTERRUPT_PIN, Source::Constant),
        (regs::HEADER_SIZE, Source::Hardware),
    ] {
        assert_eq!(source(&policy, offset), expected, "{offset:#x}");
    }
}

#[test]
fn identity_multifunction_and_pin_are_shown_as_decided() {
    let shown = Presentation {
        identity: Identity { device: Some(0xabcd), subsystem: Some(0x1), ..Identity::default() },
        multifunction: true,
        intx: false,
        ..ALL
    };
    let policy = new(&config(&[], &[]), &shown);
    assert_eq!(constant32(&policy, 0), 0xabcd_10de);
    assert_eq!(policy.constant(regs::SUBSYSTEM_ID), 1);
    assert_eq!(policy.constant(regs::HEADER_TYPE), 0x80);
    assert_eq!(policy.constant(regs::INTERRUPT_PIN), 0);
}

#[test]
fn host_multifunction_bit_does_not_leak() {
    let mut config = config(&[], &[]);
    config[usize::from(regs::HEADER_TYPE)] = 0x80;
    assert_eq!(new(&config, &ALL).constant(regs::HEADER_TYPE), 0);
}

#[test]
fn access_is_cut_where_the_owner_changes() {
    let policy = new(&config(&[], &[]), &ALL);
    let runs: Vec<_> = policy.runs(ConfigAccess::new(regs::COMMAND, 4).unwrap()).collect();
    assert_eq!(
        runs,
        [
            Run { source: Source::Ours(Register::Command), offset: 4, len: 2 },
            Run { source: Source::Hardware, offset: 6, len: 2 },
        ]
    );
}

#[test]
fn capabilities_that_cannot_be_served_leave_the_list() {
    let list: [(u8, u8, &[u8]); 4] = [
        (capability::ENHANCED_ALLOCATION, 0x40, &[1, 2]),
        (capability::PM, 0x50, &[3, 0]),
        (capability::MSI, 0x60, &[0x80, 0]),
        (capability::PCIE, 0x80, &[2, 0]),
    ];
    let shown = Presentation { msi: false, ..ALL };
    let policy = new(&config(&list, &[]), &shown);
    assert_eq!(walk(&policy), [capability::PM, capability::PCIE]);
    assert_eq!(constant32(&policy, 0x60), 0);
    assert_eq!(policy.landmarks().msi, None);
}

#[test]
fn second_copy_of_an_owned_capability_is_hidden() {
    let list: [(u8, u8, &[u8]); 2] = [(capability::MSI, 0x50, &[]), (capability::MSI, 0x70, &[])];
    let policy = new(&config(&list, &[]), &ALL);
    assert_eq!(walk(&policy), [capability::MSI]);
    assert_eq!(policy.landmarks().msi, Some(0x50));
}

#[test]
fn msi_cut_off_by_its_neighbour_is_hidden() {
    let list: [(u8, u8, &[u8]); 2] =
        [(capability::MSI, 0x50, &[0x80, 0]), (capability::VPD, 0x58, &[])];
    assert_eq!(walk(&new(&config(&list, &[]), &ALL)), [capability::VPD]);
}

#[test]
fn owned_registers_of_capabilities_are_found() {
    let flr = &[2, 0, 0, 0, 0, 0x10];
    let list: [(u8, u8, &[u8]); 5] = [
        (capability::PM, 0x40, &[3, 0]),
        (capability::MSI, 0x50, &[0x80, 0]),
        (capability::MSIX, 0x60, &[]),
        (capability::PCIE, 0x80, flr),
        (capability::ADVANCED_FEATURES, 0xc0, &[6, af::CAPABILITIES_FLR]),
    ];
    let policy = new(&config(&list, &[]), &ALL);
    assert_eq!(
        policy.landmarks(),
        Landmarks {
            msi: Some(0x50),
            msix: Some(0x60),
            power: Some(0x44),
            device_control: Some(0x88),
            device_control_2: Some(0xa8),
            flr: true,
            vpd: None,
            advanced: Some(0xc4),
        }
    );
    for (offset, expected) in [
        (0x42, Source::Constant),
        (0x44, Source::Ours(Register::Power)),
        (0x47, Source::Hardware),
        (0x5d, Source::Ours(Register::Msi)),
        (0x62, Source::Ours(Register::Msix)),
        (0x64, Source::Constant),
        (0x84, Source::Constant),
        (0x88, Source::Ours(Register::DeviceControl)),
        (0x8a, Source::ReadOnly),
        (0x92, Source::ReadOnly),
        (0xa9, Source::Ours(Register::DeviceControl2)),
        (0xaa, Source::ReadOnly),
        (0xc4, Source::Ours(Register::AdvancedFeatures)),
        (0xc5, Source::Hardware),
    ] {
        assert_eq!(source(&policy, offset), expected, "{offset:#x}");
    }
}

#[test]
fn reset_that_vfio_lacks_is_not_shown_and_still_kept_from_the_kernel() {
    let list: [(u8, u8, &[u8]); 2] = [
        (capability::PCIE, 0x80, &[2, 0, 0x21, 0, 0, 0x10]),
        (capability::ADVANCED_FEATURES, 0xc0, &[6, 3]),
    ];
    let policy = new(&config(&list, &[]), &Presentation { reset: false, ..ALL });
    assert_eq!(constant32(&policy, 0x84), 0x21);
    assert_eq!(policy.constant(0xc3), af::CAPABILITIES_TP);
    assert_eq!(source(&policy, 0x89), Source::Ours(Register::DeviceControl));
    assert_eq!(source(&policy, 0xc4), Source::Ours(Register::AdvancedFeatures));
    let policy = new(&config(&list, &[]), &ALL);
    assert_eq!((constant32(&policy, 0x84), policy.constant(0xc3)), (0x1000_0021, 3));
}

#[test]
fn integrated_endpoint_becomes_an_endpoint_with_a_link() {
    let list: [(u8, u8, &[u8]); 1] = [(capability::PCIE, 0x80, &[0x92, 0])];
    let policy = new(&config(&list, &[]), &ALL);
    assert_eq!(constant32(&policy, 0x80) >> 16, 0x0002);
    assert_eq!(constant32(&policy, 0x8c), 0x11);
    assert_eq!(constant32(&policy, 0x90), 0x11_0000);
}

#[test]
fn hidden_extended_capabilities_are_skipped_and_blank() {
    let list = [
        (0x100, extended::AER, 0x150),
        (0x150, extended::SRIOV, 0x200),
        (0x200, extended::ARI, 0x300),
        (0x300, extended::SERIAL_NUMBER, 0),
    ];
    let policy = new(&config(&[], &list), &ALL);
    assert_eq!(constant32(&policy, 0x100), extended_header::new(extended::AER, 1, 0x300));
    assert_eq!(constant32(&policy, 0x300), extended_header::new(extended::SERIAL_NUMBER, 1, 0));
    assert_eq!((constant32(&policy, 0x150), constant32(&policy, 0x154)), (0, 0));
    assert_eq!(source(&policy, 0x104), Source::ReadOnly);
    assert_eq!(constant32(&policy, 0x304), 0x77);
}

#[test]
fn hidden_head_becomes_a_null_capability_that_leads_on() {
    let list = [(0x100, extended::REBAR, 0x140), (0x140, extended::LTR, 0)];
    let policy = new(&config(&[], &list), &ALL);
    assert_eq!(constant32(&policy, 0x100), extended_header::new(extended::NULL, 1, 0x140));
    assert_eq!(constant32(&policy, 0x104), 0);
}

#[test]
fn list_with_everything_hidden_is_empty() {
    let policy = new(&config(&[], &[(0x100, extended::SRIOV, 0)]), &ALL);
    assert_eq!(constant32(&policy, 0x100), 0);
}

#[test]
fn space_that_the_device_lacks_reads_as_ones() {
    let policy = Policy::new(&config(&[], &[])[..256], &[], &ALL);
    assert_eq!(constant32(&policy, 0x100), u32::MAX);
    assert_eq!(constant32(&policy, 0xffc), u32::MAX);
}

proptest! {
    #[test]
    fn any_configuration_gives_lists_that_end(
        mut config in proptest::collection::vec(any::<u8>(), 64..=4200),
        pointer: u8,
    ) {
        config[usize::from(regs::STATUS)] |= regs::STATUS_CAPABILITIES as u8;
        config[usize::from(regs::CAPABILITIES_POINTER)] = pointer;
        let policy = new(&config, &ALL);
        let image: Vec<u8> = (0..4096).map(|offset| policy.constant(offset)).collect();
        let mut at = policy.constant(regs::CAPABILITIES_POINTER);
        for _ in 0..regs::MAX_CAPABILITIES {
            at = if at == 0 { 0 } else { image[usize::from(at) + 1] };
        }
        prop_assert_eq!(at, 0);
        for found in caps::extended_capabilities(&image) {
            prop_assert!(HIDDEN_EXTENDED.iter().all(|&(id, _)| id != found.id));
        }
    }
}
