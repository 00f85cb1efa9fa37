//! What is on record about hardware that does not come back from a reset. Data: the checks of `doctor` and of a run ask
//! the same table. Each row has been read at its source; one without such a source stays out.

use super::{check::Warning, pci::HostFunction};
use crate::{codes, failure::Failure};

/// Trouble that others had with this very hardware.
#[derive(Debug, PartialEq, Eq)]
pub struct Trouble {
    vendor: u16,
    /// First and last device ID, as pci.ids has them.
    devices: (u16, u16),
    /// What happens.
    pub what: &'static str,
    /// What helps.
    pub fix: &'static str,
    /// Who says so.
    pub source: &'static str,
}

const VENDOR_RESET: &str = "load the vendor-reset module and say --vfio ...,reset=device_specific";

/// Which cards the module is for, and their IDs: its README.md and src/device-db.h.
const VENDOR_RESET_README: &str = "https://github.com/gnif/vendor-reset#supported-devices";

const TROUBLES: &[Trouble] = &[
    Trouble {
        vendor: 0x1002,
        devices: (0x6860, 0x687f),
        what: "AMD Vega 10 often does not come back from a reset: it works for one guest a boot",
        fix: VENDOR_RESET,
        source: "https://github.com/gnif/vendor-reset/issues/35",
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x66a0, 0x66af),
        what: "AMD Vega 20 often does not come back from a reset: it works for one guest a boot",
        fix: VENDOR_RESET,
        source: "https://github.com/gnif/vendor-reset/issues/35",
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x7310, 0x7362),
        what: "AMD Navi 1x often does not come back from a reset: it works for one guest a boot",
        fix: VENDOR_RESET,
        source: VENDOR_RESET_README,
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x67c0, 0x67ff),
        what: "AMD Polaris 10 and 11 may not come back from a reset",
        fix: VENDOR_RESET,
        source: VENDOR_RESET_README,
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x6980, 0x699f),
        what: "AMD Polaris 12 may not come back from a reset",
        fix: VENDOR_RESET,
        source: VENDOR_RESET_README,
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x738c, 0x738c),
        what: "an AMD MI100 may not come back from a reset",
        fix: VENDOR_RESET,
        source: VENDOR_RESET_README,
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x7550, 0x7590),
        what: "AMD RX 9000 cards may not come back from a reset, and vendor-reset has nothing for them",
        fix: "let the host sleep for a second between two guests: rtcwake -m mem -s 2",
        source: "https://github.com/urbanyl/GPU-Passthrough-for-KVM-QEMU-on-Linux/issues/4",
    },
    // The report has 740f for it, which pci.ids gives to the MI210; the MI300X is 74a1 there.
    Trouble {
        vendor: 0x1002,
        devices: (0x74a1, 0x74a1),
        what: "an AMD MI300X as a whole can be dead after a reset until the host reboots",
        fix: "pass one of its virtual functions instead",
        source: "https://github.com/amd/MxGPU-Virtualization/issues/25",
    },
    Trouble {
        vendor: 0x1002,
        devices: (0x75a3, 0x75a3),
        what: "an AMD MI355X as a whole can be dead after a reset until the host reboots",
        fix: "pass one of its virtual functions instead",
        source: "https://github.com/amd/MxGPU-Virtualization/issues/25",
    },
    // An RTX 5070 Ti here; the reporter's later guest, which shut down in order, gave it back.
    Trouble {
        vendor: 0x10de,
        devices: (0x2c00, 0x2c7f),
        what: "NVIDIA's GB203 (RTX 5070 Ti, 5080) has hung after a guest's end, up to the whole host",
        fix: "keep the host's NVIDIA driver off it (strait bind --persist), and end guests by a shutdown",
        source: "https://github.com/NVIDIA/open-gpu-kernel-modules/issues/853",
    },
    Trouble {
        vendor: 0x10de,
        devices: (0x2b80, 0x2bff),
        what: "NVIDIA's GB202 (RTX 5090, RTX PRO 6000) has not come back from a reset after days of work",
        fix: "keep the host's NVIDIA driver off it (strait bind --persist); only a reboot brings it back",
        source: "https://www.guiahardware.es/rtx-5090-y-rtx-6000-pro-el-bug-de-reset-en-virtualizacion-que-congela-las-vms",
    },
];

/// What is on record about this function. Sound and USB functions of a card have IDs of their own, so the ranges hold
/// displays and accelerators only; virtual functions are reset otherwise.
pub fn on_record(function: &HostFunction) -> Option<&'static Trouble> {
    let is_card = function.class.is_display() || function.class.base() == 0x12;
    if !is_card || function.physical_function.is_some() {
        return None;
    }
    TROUBLES.iter().find(|trouble| {
        let (first, last) = trouble.devices;
        trouble.vendor == function.vendor && (first..=last).contains(&function.device)
    })
}

/// The same as a run says it.
pub fn warning(function: &HostFunction) -> Option<Warning> {
    let trouble = on_record(function)?;
    let cause = format!("{}: {}", function.bdf, trouble.what);
    let failure = Failure::new(&codes::E1403, cause, trouble.fix);
    Some(failure.detail(format!("on record: {}", trouble.source)))
}

// Provenance: IDs from the reports that the table names, the functions by hand; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::{
        fixture::{Function, Tree},
        pci,
    };

    fn navi(class: u32) -> HostFunction {
        let tree = Tree::new();
        tree.function(&Function { id: (0x1002, 0x731f), class, ..Function::default() });
        pci::find(&tree.sysroot(), "0000:00:02.0".parse().unwrap()).unwrap().unwrap()
    }

    #[test]
    fn p1_warning_names_the_card_the_way_out_and_the_source() {
        let warning = warning(&navi(0x03_0000)).unwrap();
        assert_eq!((warning.code.id, warning.code.exit), ("E1403", 0));
        assert!(warning.cause.starts_with("0000:00:02.0: AMD Navi"), "{}", warning.cause);
        assert!(warning.fix.contains("vendor-reset"), "{}", warning.fix);
        assert!(warning.details[0].contains("https://"), "{:?}", warning.details);
    }

    #[test]
    fn sound_function_with_an_id_in_the_range_is_not_on_record() {
        assert_eq!(on_record(&navi(0x04_0300)), None);
    }

    #[test]
    fn ranges_are_in_order_and_do_not_overlap() {
        for (n, one) in TROUBLES.iter().enumerate() {
            assert!(one.devices.0 <= one.devices.1, "{}", one.what);
            for other in &TROUBLES[n + 1..] {
                let apart = one.devices.1 < other.devices.0 || other.devices.1 < one.devices.0;
                assert!(one.vendor != other.vendor || apart, "{} / {}", one.what, other.what);
            }
        }
    }
}
