//! Every code strait can refuse or warn with, in one table.

/// One entry of the table.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// `E1102`.
    pub id: &'static str,
    /// The process's exit status; 0 for a warning.
    pub exit: u8,
    /// A few words.
    pub title: &'static str,
    /// What `strait explain` says: causes, how to look, what to do. Several lines.
    pub explain: &'static str,
}

/// The long texts are files beside this one, `codes/E1001.txt`, as they are shown.
macro_rules! codes {
    ($($id:ident $exit:literal $title:literal)*) => {
        $(#[doc = $title] pub static $id: Code = Code {
            id: stringify!($id),
            exit: $exit,
            title: $title,
            explain: include_str!(concat!("codes/", stringify!($id), ".txt")),
        };)*
        /// All of them, ascending.
        pub static CODES: &[&Code] = &[$(&$id),*];
    };
}

codes! {
    E1001 3 "no IOMMU"
    E1002 3 "/dev/kvm is missing or unusable"
    E1003 3 "no permission on a device node"
    E1004 3 "VFIO is missing"
    E1005 3 "KVM lacks a capability"
    E1006 3 "no interrupt remapping"
    E1007 3 "the host's state cannot be read"
    E1008 3 "not an x86-64 Linux host"
    E1010 4 "another device than expected"
    E1101 4 "no such device"
    E1102 4 "the device is held by a host driver"
    E1103 4 "the IOMMU group is not viable"
    E1104 4 "the host needs the device"
    E1105 4 "the device did not change its driver"
    E1106 4 "programs hold the device"
    E1107 4 "the device is in use by another process"
    E1108 4 "this kind of function cannot be passed through"
    E1109 4 "the device has no IOMMU group"
    E1110 4 "VFIO refused the device"
    E1111 0 "a part of the device stays on the host"
    E1112 4 "a driver does not let go"
    E1113 0 "programs lose the device"
    E1114 4 "the device belongs to another strait"
    E1115 0 "a device did not go back to its driver"
    E1116 4 "the device's ROM cannot be read"
    E1117 0 "the host's framebuffer does not come back"
    E1118 0 "the host's console goes dark"
    E1119 4 "a guest has a part of the device"
    E1120 0 "the device's virtual functions go"
    E1121 0 "the host's only keyboard goes"
    E1124 4 "the device is behind a controller that does its DMA"
    E1125 4 "a file that root acts on is not root's alone"
    E1126 0 "a journal is left alone"
    E1127 4 "a driver of the host would get a device that nothing resets"
    E1128 0 "the host is not kept apart from a device of guests"
    E1201 5 "64-bit BARs do not fit"
    E1202 5 "32-bit BARs do not fit"
    E1203 5 "a BAR cannot be mapped"
    E1204 5 "the host has no address for a BAR"
    E1205 5 "the host draws on the device"
    E1208 5 "too many devices"
    E1301 6 "not enough memory"
    E1302 6 "guest RAM is outside what the IOMMU can address"
    E1303 6 "mapping guest RAM for DMA failed"
    E1305 0 "device-to-device DMA is off"
    E1306 6 "the locked-memory limit is too small"
    E1307 6 "not enough huge pages"
    E1309 6 "the firmware keeps the device's memory mapped"
    E1310 6 "too few open files for the devices' interrupts"
    E1401 7 "the device did not come back from a reset"
    E1403 0 "trouble with this device is on record"
    E1404 7 "the device has no such reset"
    E1405 0 "a device cannot be reset"
    E2001 2 "unknown or misused flag"
    E2002 2 "unknown key"
    E2003 2 "bad value"
    E2004 2 "a device is named twice"
    E2005 2 "a guest address is taken or impossible"
    E2101 2 "a file cannot be read"
    E2102 2 "not a kernel"
    E2103 2 "the kernel does not fit into guest RAM"
    E2104 2 "the initramfs does not fit into guest RAM"
    E2105 2 "the kernel command line is too long"
    E2106 2 "a ROM file is not usable"
    E2107 0 "a ROM file names another device, and may fit"
    E2108 2 "an ACPI table is not usable"
    E2110 2 "no such running guest"
    E2151 2 "not a result of strait bench"
    E2152 2 "a monitor to compare with is not installed"
    E8001 8 "the guest died of a triple fault"
    E8002 8 "KVM could not continue the guest"
    E8003 8 "a passed device was lost"
    E8004 0 "the guest's console is incomplete"
    E8005 8 "the guest cannot start again"
    E8051 8 "a run of strait bench did not end"
    E9001 9 "internal error"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_unique_and_ascending() {
        assert!(CODES.windows(2).all(|pair| pair[0].id < pair[1].id));
    }

    #[test]
    fn exit_status_is_that_of_the_class() {
        for code in CODES {
            let class = match &code.id[..3] {
                // A card that moved is a matter of the device, though its number is among the host's.
                _ if code.id == "E1010" => 4,
                "E10" => 3,
                "E11" => 4,
                "E12" => 5,
                "E13" => 6,
                "E14" => 7,
                "E20" | "E21" => 2,
                "E80" => 8,
                "E90" => 9,
                other => panic!("{other} is no class"),
            };
            assert!(code.exit == class || code.exit == 0, "{} exits with {}", code.id, code.exit);
        }
    }

    #[test]
    fn explanations_say_something_and_fit_a_terminal() {
        for code in CODES {
            let lines: Vec<_> = code.explain.lines().collect();
            assert!((4..=20).contains(&lines.len()), "{}: {} lines", code.id, lines.len());
            for line in lines {
                assert!(line.chars().count() <= 110, "{}: too long: {line}", code.id);
                assert_eq!(line.trim_end(), line, "{}", code.id);
            }
        }
    }

    #[test]
    fn explanations_refer_to_codes_that_exist() {
        for code in CODES {
            for word in code.explain.split(|c: char| !c.is_ascii_alphanumeric()) {
                let digits = word.strip_prefix('E').unwrap_or("");
                if digits.len() == 4 && digits.bytes().all(|b| b.is_ascii_digit()) {
                    assert!(CODES.iter().any(|known| known.id == word), "{} of {}", word, code.id);
                }
            }
        }
    }
}
