//! What VFIO refuses, as a user needs to hear it.

use std::io;

use strait_resources::{
    bdf::Bdf,
    codes::{self, Code},
    failure::Failure,
    range::AddressRange,
};
use vfio_ioctls::VfioError;

/// Why VFIO did not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum DmaError {
    /// /dev/vfio/vfio.
    #[error("the VFIO container cannot be opened")]
    Container(#[source] VfioError),
    /// The function has no IOMMU group in sysfs.
    #[error("{bdf} has no IOMMU group")]
    NoGroup {
        /// Which function.
        bdf: Bdf,
        /// Of reading the link.
        #[source]
        source: io::Error,
    },
    /// A group or device.
    #[error("{bdf} cannot be opened through VFIO")]
    Open {
        /// Which function.
        bdf: Bdf,
        /// Its IOMMU group.
        group: u32,
        /// What vfio-ioctls says.
        #[source]
        source: VfioError,
    },
    /// A device that opened but does not answer.
    #[error("{bdf} does not say what it has")]
    Query {
        /// Which function.
        bdf: Bdf,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
    /// Guest RAM.
    #[error("guest RAM at {range} cannot be mapped for DMA")]
    Map {
        /// Where.
        range: AddressRange,
        /// The kernel's error.
        #[source]
        source: io::Error,
    },
}

impl DmaError {
    /// As a refusal with its code and what to do.
    pub fn into_failure(self) -> Failure {
        let (code, fix) = match &self {
            Self::Container(source) => container(source),
            Self::NoGroup { .. } => (
                &codes::E1109,
                "try another slot, or switch the IOMMU on in the firmware".to_owned(),
            ),
            Self::Open { bdf, group, source } => open(*bdf, *group, source),
            Self::Query { .. } => (&codes::E1110, dmesg()),
            Self::Map { source, .. } => map(source),
        };
        let failure = Failure::new(code, self.to_string(), fix);
        match self {
            Self::Container(source) | Self::Open { source, .. } => failure.source(source),
            Self::NoGroup { source, .. }
            | Self::Query { source, .. }
            | Self::Map { source, .. } => failure.source(source),
        }
    }
}

type Advice = (&'static Code, String);

fn container(error: &VfioError) -> Advice {
    match error {
        VfioError::OpenContainer(error) if is_forbidden(error) => {
            (&codes::E1003, "give your user the nodes under /dev/vfio, or run as root".to_owned())
        }
        VfioError::OpenContainer(_) => {
            (&codes::E1004, "load the modules: modprobe vfio-pci".to_owned())
        }
        _ => (&codes::E1004, "load the modules: modprobe vfio_iommu_type1".to_owned()),
    }
}

fn open(bdf: Bdf, group: u32, error: &VfioError) -> Advice {
    let held = || (&codes::E1107, format!("find who holds it: sudo fuser -v /dev/vfio/{group}"));
    match error {
        VfioError::OpenGroup(error, _) if is_forbidden(error) => {
            (&codes::E1003, format!("give your user /dev/vfio/{group}, or run as root"))
        }
        VfioError::OpenGroup(error, _) => match error.raw_os_error() {
            Some(libc::EBUSY) => held(),
            // The node appears with the first function of the group on a VFIO driver.
            Some(libc::ENOENT) => {
                (&codes::E1102, format!("bind {bdf} to vfio-pci: strait explain E1102"))
            }
            _ => (&codes::E1110, dmesg()),
        },
        VfioError::GroupViable => (
            &codes::E1103,
            "bind every function of its IOMMU group to vfio-pci, or unbind it from its driver"
                .to_owned(),
        ),
        // vfio_iommu_type1 takes no group whose interrupts could be forged.
        VfioError::ContainerSetIOMMU(error) if error.errno() == libc::EPERM => (
            &codes::E1006,
            "switch interrupt remapping on in the firmware setup (VT-d, AMD-Vi)".to_owned(),
        ),
        VfioError::GroupGetDeviceFD(error) if error.errno() == libc::EBUSY => held(),
        _ => (&codes::E1110, dmesg()),
    }
}

fn map(error: &io::Error) -> Advice {
    match error.raw_os_error() {
        Some(libc::ENOMEM | libc::EDQUOT) => {
            (&codes::E1306, "raise the locked-memory limit: ulimit -l unlimited".to_owned())
        }
        Some(libc::ENOSPC) => (
            &codes::E1303,
            "raise vfio_iommu_type1's dma_entry_limit, or use fewer memory ranges".to_owned(),
        ),
        // The plan's ranges are page-aligned, so the kernel means the address.
        Some(libc::EINVAL) => (
            &codes::E1302,
            "compare with /sys/kernel/iommu_groups/*/reserved_regions; give the guest less memory"
                .to_owned(),
        ),
        _ => (&codes::E1303, dmesg()),
    }
}

fn is_forbidden(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
}

fn dmesg() -> String {
    "look at the host's kernel log (dmesg) for vfio-pci and IOMMU messages".to_owned()
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::errno::Error as SysError;

    use super::*;

    fn code(error: DmaError) -> &'static str {
        error.into_failure().code.id
    }

    fn opening(source: VfioError) -> DmaError {
        DmaError::Open { bdf: "3b:00.0".parse().unwrap(), group: 12, source }
    }

    fn group(errno: i32) -> DmaError {
        opening(VfioError::OpenGroup(io::Error::from_raw_os_error(errno), "12".to_owned()))
    }

    fn mapping(errno: i32) -> DmaError {
        let range = AddressRange::new(0, 0x1000).unwrap();
        DmaError::Map { range, source: io::Error::from_raw_os_error(errno) }
    }

    #[test]
    fn group_refusals_tell_busy_forbidden_and_absent_apart() {
        assert_eq!(code(group(libc::EBUSY)), "E1107");
        assert_eq!(code(group(libc::EACCES)), "E1003");
        assert_eq!(code(group(libc::ENOENT)), "E1102");
        assert_eq!(code(opening(VfioError::GroupViable)), "E1103");
        assert_eq!(code(opening(VfioError::GroupGetDeviceFD(SysError::new(libc::EIO)))), "E1110");
    }

    #[test]
    fn group_busy_names_its_node_in_the_fix() {
        assert!(group(libc::EBUSY).into_failure().fix.ends_with("/dev/vfio/12"));
    }

    #[test]
    fn iommu_forbidden_is_missing_interrupt_remapping() {
        let error = VfioError::ContainerSetIOMMU(SysError::new(libc::EPERM));
        assert_eq!(code(opening(error)), "E1006");
    }

    #[test]
    fn mapping_refusals_tell_limit_address_and_entries_apart() {
        assert_eq!(code(mapping(libc::ENOMEM)), "E1306");
        assert_eq!(code(mapping(libc::EINVAL)), "E1302");
        assert_eq!(code(mapping(libc::ENOSPC)), "E1303");
        assert_eq!(code(mapping(libc::EFAULT)), "E1303");
    }

    #[test]
    fn failure_keeps_what_the_kernel_said() {
        let source = mapping(libc::ENOSPC).into_failure().source.unwrap();
        assert!(source.to_string().contains("os error 28"), "{source}");
    }
}
