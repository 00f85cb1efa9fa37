//! What a guest must not write in the device, whatever VFIO shows of it.

use super::*;
use crate::pci::regs::{extended::aer, vpd};

/// AER, a capability of this identifier at 0x150, LTR; and the same as VFIO shows it, with the middle one out of the
/// list and its registers as they are in the device.
fn hidden_by_vfio(id: u16) -> (Vec<u8>, Vec<u8>) {
    let list = |middle| [(0x100, extended::AER, middle), (0x150, id, 0x200)];
    let host = config(&[], &[&list(0x150)[..], &[(0x200, extended::LTR, 0)]].concat());
    let shown = config(&[], &[&list(0x200)[..], &[(0x200, extended::LTR, 0)]].concat());
    (shown, host)
}

#[test]
fn every_hide_rule_fires_for_a_capability_that_vfio_takes_out_of_the_list() {
    for (id, why) in HIDDEN_EXTENDED {
        let (shown, host) = hidden_by_vfio(id);
        let policy = Policy::new(&shown, &host, &ALL);
        assert!(policy.rules().iter().any(|rule| (rule.at, rule.why) == (0x150, why)), "{id:#x}");
        assert_eq!((constant32(&policy, 0x150), constant32(&policy, 0x154)), (0, 0), "{id:#x}");
        let aer = extended_header::new(extended::AER, 1, 0x200);
        assert_eq!(constant32(&policy, 0x100), aer);
    }
}

#[test]
fn every_hide_rule_fires_for_a_capability_that_vfio_shows() {
    for (id, _) in HIDDEN_EXTENDED {
        let (_, host) = hidden_by_vfio(id);
        let policy = new(&host, &ALL);
        assert_eq!((constant32(&policy, 0x150), constant32(&policy, 0x154)), (0, 0), "{id:#x}");
    }
}

#[test]
fn capability_without_a_rule_of_ours_that_vfio_hides_is_hidden_too() {
    let (shown, host) = hidden_by_vfio(0x7777);
    let policy = Policy::new(&shown, &host, &Presentation { raw_config: true, ..ALL });
    assert_eq!(constant32(&policy, 0x154), 0);
}

/// A CXL device before Linux 6.4: designated vendor-specific capabilities only, all of them out of the list.
#[test]
fn hidden_head_of_an_empty_list_is_blank_with_its_registers() {
    let mut host = config(&[], &[(0x100, extended::DVSEC, 0x138), (0x138, extended::DVSEC, 0)]);
    host[0x104..0x108].copy_from_slice(&0x0381_1e98_u32.to_le_bytes());
    let mut shown = host.clone();
    shown[0x100..0x104].fill(0);
    let policy = Policy::new(&shown, &host, &ALL);
    for at in (0x100..0x138).step_by(4) {
        assert_eq!(constant32(&policy, at), 0, "{at:#x}");
    }
}

#[test]
fn hidden_head_that_leads_on_keeps_its_registers_hidden() {
    let host = config(&[], &[(0x100, extended::DOE, 0x140), (0x140, extended::AER, 0)]);
    let mut shown = host.clone();
    shown[0x100..0x104]
        .copy_from_slice(&extended_header::new(extended::NULL, 0, 0x140).to_le_bytes());
    let policy = Policy::new(&shown, &host, &ALL);
    assert_eq!(constant32(&policy, 0x100), extended_header::new(extended::NULL, 0, 0x140));
    assert_eq!(constant32(&policy, 0x104), 0);
}

/// An EHCI controller: the debug port is out of VFIO's list; the register by which the firmware gives the controller
/// up lies in no list, right behind it.
#[test]
fn conventional_capability_that_vfio_hides_is_closed_and_the_gap_behind_it_open() {
    let both: [(u8, u8, &[u8]); 2] =
        [(capability::PM, 0x50, &[3, 0]), (capability::DEBUG_PORT, 0x58, &[0xa0, 0x20])];
    let (host, mut shown) = (config(&both, &[]), config(&both[..1], &[]));
    shown[0x58..0x5c].copy_from_slice(&host[0x58..0x5c]);
    let policy = Policy::new(&shown, &host, &ALL);
    assert_eq!(constant32(&policy, 0x58), 0);
    assert_eq!(source(&policy, 0x68), Source::Hardware);
}

#[test]
fn capability_of_the_hosts_outranks_what_vfio_shows_at_its_place() {
    let host = config(&[(capability::DEBUG_PORT, 0x50, &[])], &[(0x100, extended::SRIOV, 0)]);
    let shown = config(&[(capability::VENDOR, 0x50, &[8])], &[(0x100, extended::VENDOR, 0)]);
    let policy = Policy::new(&shown, &host, &Presentation { raw_config: true, ..ALL });
    assert_eq!(
        (source(&policy, 0x53), source(&policy, 0x108)),
        (Source::Constant, Source::Constant)
    );
    // What is left is a null capability.
    assert_eq!(walk(&policy), [0]);
}

/// Slot registers are 16 bytes, of which only 8 are left.
#[test]
fn registers_that_a_neighbour_cuts_off_are_not_written() {
    let list: [(u8, u8, &[u8]); 2] =
        [(capability::PCIE, 0x80, &[2, 0]), (capability::PM, 0x9c, &[3, 0])];
    let policy = new(&config(&list, &[]), &ALL);
    assert_eq!(
        (source(&policy, 0x94), source(&policy, 0x9b)),
        (Source::ReadOnly, Source::ReadOnly)
    );
}

#[test]
fn bytes_of_no_capability_are_read_only_from_0x100_on_unless_asked_for() {
    let config = config(&[], &[(0x100, extended::AER, 0x200), (0x200, extended::VENDOR, 0)]);
    let policy = new(&config, &ALL);
    let raw = new(&config, &Presentation { raw_config: true, ..ALL });
    for (at, closed, open) in [
        (0x58, Source::Hardware, Source::Hardware),
        (0x148, Source::ReadOnly, Source::Hardware),
        (0x204, Source::ReadOnly, Source::Hardware),
        (0x70f, Source::ReadOnly, Source::Hardware),
        (0x100 + aer::UNCORRECTABLE_STATUS, Source::ReadOnly, Source::ReadOnly),
    ] {
        assert_eq!((source(&policy, at), source(&raw, at)), (closed, open), "{at:#x}");
    }
}

#[test]
fn errors_masks_and_severity_are_the_guests_in_a_copy() {
    let policy = new(&config(&[], &[(0x140, extended::AER, 0)]), &ALL);
    // Not in the list: 0x100 is empty.
    assert_eq!(source(&policy, 0x148), Source::ReadOnly);
    let policy = new(&config(&[], &[(0x100, extended::AER, 0)]), &ALL);
    for (register, expected) in [
        (aer::UNCORRECTABLE_STATUS, Source::ReadOnly),
        (aer::UNCORRECTABLE_MASK, Source::Shadow),
        (aer::UNCORRECTABLE_SEVERITY, Source::Shadow),
        (aer::CORRECTABLE_STATUS, Source::ReadOnly),
        (aer::CORRECTABLE_MASK, Source::Shadow),
        (aer::CONTROL, Source::Shadow),
        (aer::LOG, Source::ReadOnly),
    ] {
        assert_eq!(source(&policy, 0x100 + register), expected, "{register:#x}");
    }
    assert_eq!(policy.writable(0x100 + aer::CONTROL), 0x40);
    assert_eq!(policy.writable(0x100 + aer::CONTROL + 1), 0x05);
    assert_eq!(policy.writable(0x100 + aer::UNCORRECTABLE_SEVERITY + 3), 0xff);
}

#[test]
fn vital_product_data_self_test_and_link_are_not_written() {
    let list: [(u8, u8, &[u8]); 2] =
        [(capability::VPD, 0x50, &[]), (capability::PCIE, 0x80, &[2, 0])];
    let policy = new(&config(&list, &[]), &ALL);
    assert_eq!(policy.landmarks().vpd, Some(0x50));
    for (at, expected) in [
        (regs::BIST, Source::Constant),
        (0x50 + vpd::ADDRESS, Source::Ours(Register::Vpd)),
        (0x50 + vpd::DATA + 3, Source::Ours(Register::Vpd)),
        (0x80 + 0x10, Source::ReadOnly),
        (0x80 + 0x30, Source::ReadOnly),
    ] {
        assert_eq!(source(&policy, at), expected, "{at:#x}");
    }
}

#[test]
fn features_that_take_the_port_above_are_shown_only_where_the_host_has_them_on() {
    // LTR, 10-bit tags as a requester, OBFF by message; completion timeouts and AtomicOps of its own.
    let capabilities = 1_u32 << 11 | 1 << 17 | 1 << 18 | 1 << 4 | 1 << 8;
    let shown = |control: u16| {
        let list: [(u8, u8, &[u8]); 1] = [(capability::PCIE, 0x80, &[2, 0])];
        let mut config = config(&list, &[]);
        config[0xa4..0xa8].copy_from_slice(&capabilities.to_le_bytes());
        config[0xa8..0xaa].copy_from_slice(&control.to_le_bytes());
        constant32(&new(&config, &ALL), 0xa4)
    };
    assert_eq!(shown(0), 1 << 4 | 1 << 8);
    assert_eq!(shown(1 << 10 | 1 << 12), 1 << 11 | 1 << 17 | 1 << 4 | 1 << 8);
}
