//! Is this host ready: KVM, IOMMU, VFIO.

use super::{
    super::{
        cpu::{self, Cpu, Vendor},
        iommu::{self, State, WhyOff},
        sysroot::Sysroot,
    },
    nodes::{self, Refused},
};
use crate::{codes, failure::Failure};

/// What every run with passed devices needs.
pub fn host(sysroot: &Sysroot) -> Result<(), Failure> {
    kvm(sysroot)?;
    vfio(sysroot)
}

/// What every run needs: an x86-64 CPU and a usable /dev/kvm.
pub fn kvm(sysroot: &Sysroot) -> Result<(), Failure> {
    const KVM: &str = "/dev/kvm";
    let Some(cpu) = cpu::first_cpu(sysroot)? else {
        let cause = "this is not an x86-64 Linux host";
        return Err(Failure::new(&codes::E1008, cause, "run strait on an x86-64 Linux host"));
    };
    if !sysroot.exists(KVM) {
        return Err(no_kvm(&cpu));
    }
    match nodes::open(sysroot, KVM) {
        Ok(()) => Ok(()),
        Err(Refused::Permission(error)) => {
            let fix = "usermod -aG kvm $USER, then log in again";
            Err(nodes::no_permission(sysroot, KVM, fix, error)?)
        }
        Err(Refused::Busy(error) | Refused::Broken(error)) => {
            let cause = "/dev/kvm is there, but cannot be opened";
            let fix =
                "stop other hypervisors (VirtualBox, VMware) and look into: dmesg | grep -i kvm";
            Err(Failure::new(&codes::E1002, cause, fix).source(error))
        }
    }
}

fn no_kvm(cpu: &Cpu) -> Failure {
    let (cause, fix) = match (cpu.can_virtualize(), cpu.is_guest(), cpu.vendor) {
        (true, _, Vendor::Amd) => ("there is no /dev/kvm; the CPU is able", "modprobe kvm_amd"),
        (true, ..) => ("there is no /dev/kvm; the CPU is able", "modprobe kvm_intel"),
        (false, true, _) => (
            "there is no /dev/kvm: this host is itself a guest, without nested virtualization",
            "enable nested virtualization on the outer host: kvm_intel.nested=1 or kvm_amd.nested=1, and its CPU passed through",
        ),
        (false, false, Vendor::Amd) => (
            "there is no /dev/kvm: the firmware has AMD-V switched off",
            "switch on SVM Mode in the firmware setup (CPU configuration), then power cycle",
        ),
        (false, false, _) => (
            "there is no /dev/kvm: the firmware has VT-x switched off",
            "switch on Intel Virtualization Technology (VMX) in the firmware setup, then power cycle",
        ),
    };
    Failure::new(&codes::E1002, cause, fix)
}

/// What passing a device needs beside KVM: an IOMMU with interrupt remapping, and VFIO.
pub fn vfio(sysroot: &Sysroot) -> Result<(), Failure> {
    iommu(sysroot)?;
    interrupt_remapping(sysroot)?;
    container(sysroot)
}

/// There are IOMMU groups.
pub(in super::super) fn iommu(sysroot: &Sysroot) -> Result<(), Failure> {
    match iommu::state(sysroot)? {
        State::On => Ok(()),
        State::Off(why) => {
            let unsafe_mode = iommu::has_only_unsafe_groups(sysroot)?;
            Err(no_iommu(&why, iommu::vendor(sysroot)?, unsafe_mode))
        }
    }
}

/// A device's interrupts go to its own guest, or somebody accepted that they do not.
pub(in super::super) fn interrupt_remapping(sysroot: &Sysroot) -> Result<(), Failure> {
    let lacks = iommu::has_interrupt_remapping(sysroot)? == Some(false);
    if lacks && !iommu::allows_unsafe_interrupts(sysroot)? {
        return Err(no_interrupt_remapping());
    }
    Ok(())
}

/// What the IOMMU does not keep devices of guests from, accepted by whoever set this host up: said at every run (E1128).
pub fn exposed(sysroot: &Sysroot) -> Result<Vec<super::Warning>, Failure> {
    let accepted = iommu::has_interrupt_remapping(sysroot)? == Some(false)
        && iommu::allows_unsafe_interrupts(sysroot)?;
    let cause = "the guest can raise any interrupt of the host: there is no interrupt remapping, \
                 and allow_unsafe_interrupts=1 accepts that";
    let fix =
        "only for guests that are trusted as the host is; else a host with interrupt remapping";
    Ok(accepted.then(|| Failure::new(&codes::E1128, cause, fix)).into_iter().collect())
}

/// The node that every VFIO user opens first is there and opens.
pub(in super::super) fn container(sysroot: &Sysroot) -> Result<(), Failure> {
    const CONTAINER: &str = "/dev/vfio/vfio";
    if !sysroot.exists(CONTAINER) {
        return Err(no_vfio(sysroot));
    }
    match nodes::open(sysroot, CONTAINER) {
        Ok(()) => Ok(()),
        Err(Refused::Permission(error)) => {
            Err(nodes::no_permission(sysroot, CONTAINER, "chmod 0666 /dev/vfio/vfio", error)?)
        }
        // The node is static; without the module behind it an open fails.
        Err(Refused::Busy(error) | Refused::Broken(error)) => Err(no_vfio(sysroot).source(error)),
    }
}

fn no_vfio(sysroot: &Sysroot) -> Failure {
    if sysroot.exists("/dev/iommu") {
        let cause = "/dev/vfio/vfio is not usable: this kernel has only iommufd";
        let fix = "use a kernel with CONFIG_VFIO_GROUP=y and CONFIG_VFIO_CONTAINER=y";
        return Failure::new(&codes::E1004, cause, fix);
    }
    let cause = "/dev/vfio/vfio is not usable: the VFIO modules are not loaded";
    Failure::new(&codes::E1004, cause, "modprobe vfio-pci")
}

fn no_interrupt_remapping() -> Failure {
    let cause = "this platform cannot remap interrupts, so VFIO refuses every device";
    let fix = "update the firmware and remove intremap=off from the kernel arguments";
    Failure::new(&codes::E1006, cause, fix)
        .detail("without it a guest can send any interrupt to the host")
        .detail("to accept that risk: modprobe vfio_iommu_type1 allow_unsafe_interrupts=1")
}

fn no_iommu(why: &WhyOff, vendor: Vendor, unsafe_mode: bool) -> Failure {
    let (option, log) = match vendor {
        Vendor::Amd => ("IOMMU (also called AMD-Vi)", "AMD-Vi"),
        Vendor::Intel | Vendor::Other => ("VT-d (Intel VT for Directed I/O)", "DMAR"),
    };
    let no_groups = match unsafe_mode {
        false => "no IOMMU: /sys/kernel/iommu_groups is empty",
        true => {
            "no IOMMU: every group is of VFIO's no-IOMMU mode, which isolates nothing and is not used"
        }
    };
    let (cause, fix) = match why {
        WhyOff::Firmware => (
            format!("{no_groups}, and the firmware describes none (no ACPI table DMAR or IVRS)"),
            format!("switch on {option} in the firmware setup"),
        ),
        WhyOff::Guest => (
            format!("{no_groups}; this host is itself a guest without a virtual IOMMU"),
            "give this guest one on the outer host (QEMU: -device intel-iommu,intremap=on)"
                .to_owned(),
        ),
        WhyOff::ArgumentMissing => (
            format!(
                "{no_groups}; the firmware has one (ACPI table DMAR), but /proc/cmdline lacks intel_iommu=on"
            ),
            "add intel_iommu=on to the kernel arguments and reboot".to_owned(),
        ),
        WhyOff::ArgumentOff(argument) => (
            format!("{no_groups}: the kernel argument {argument} switches it off"),
            format!("remove {argument} from the kernel arguments and reboot"),
        ),
        WhyOff::Refused => (
            format!("{no_groups}, although firmware and kernel arguments are right"),
            format!("see what the kernel says: dmesg | grep -e {log} -e IOMMU"),
        ),
    };
    let failure = Failure::new(&codes::E1001, cause, fix);
    if !unsafe_mode {
        return failure;
    }
    failure
        .detail("a device in no-IOMMU mode reads and writes all of the host's memory")
        .detail("to end that mode: echo N > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode")
}

// Provenance: the two-card server of the fixture module with one thing changed; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    /// A good host with one thing changed.
    fn refused(change: impl FnOnce(&Tree)) -> Failure {
        let tree = Tree::two_cards();
        change(&tree);
        host(&tree.sysroot()).unwrap_err()
    }

    #[test]
    fn host_of_the_guides_passes() {
        host(&Tree::two_cards().sysroot()).unwrap();
    }

    #[test]
    fn host_of_another_architecture_is_e1008() {
        let failure = refused(|tree| tree.file("/proc/cpuinfo", "CPU implementer : 0x41\n"));
        assert_eq!(failure.code.id, "E1008");
    }

    #[test]
    fn host_without_kvm_module_names_the_module() {
        let failure = refused(|tree| tree.remove("/dev/kvm"));
        assert_eq!((failure.code.id, failure.fix.as_str()), ("E1002", "modprobe kvm_intel"));
    }

    #[test]
    fn host_with_virtualization_locked_names_the_firmware_option_of_its_maker() {
        let failure = refused(|tree| {
            tree.remove("/dev/kvm");
            tree.file("/proc/cpuinfo", "vendor_id : AuthenticAMD\nflags : lm\n");
        });
        assert!(failure.fix.contains("SVM Mode"), "{}", failure.fix);
    }

    #[test]
    fn host_with_iommu_off_in_the_firmware_says_firmware() {
        let failure = refused(|tree| {
            tree.remove("/sys/kernel/iommu_groups");
            tree.remove("/sys/firmware/acpi/tables/DMAR");
        });
        assert_eq!(failure.code.id, "E1001");
        assert!(
            failure.fix.contains("VT-d") && failure.fix.contains("firmware"),
            "{}",
            failure.fix
        );
    }

    #[test]
    fn host_in_vfios_no_iommu_mode_has_none_and_says_that_the_mode_is_not_used() {
        let failure = refused(|tree| {
            for group in [12, 31, 94] {
                tree.file(&format!("/sys/kernel/iommu_groups/{group}/name"), "vfio-noiommu\n");
            }
            tree.file("/proc/cmdline", "quiet\n");
        });
        assert_eq!(failure.code.id, "E1001");
        assert!(failure.cause.contains("no-IOMMU mode"), "{}", failure.cause);
        assert!(failure.cause.contains("intel_iommu=on"), "{}", failure.cause);
        assert!(failure.details[1].contains("enable_unsafe_noiommu_mode"), "{:?}", failure.details);
    }

    #[test]
    fn host_with_iommu_argument_missing_says_the_argument() {
        let failure = refused(|tree| {
            tree.remove("/sys/kernel/iommu_groups");
            tree.file("/proc/cmdline", "quiet\n");
        });
        assert_eq!(failure.code.id, "E1001");
        assert!(failure.fix.contains("intel_iommu=on"), "{}", failure.fix);
    }

    #[test]
    fn host_with_iommu_switched_off_names_the_argument() {
        let failure = refused(|tree| {
            tree.remove("/sys/kernel/iommu_groups");
            tree.file("/proc/cmdline", "intel_iommu=off\n");
        });
        assert!(failure.fix.contains("remove intel_iommu=off"), "{}", failure.fix);
    }

    #[test]
    fn host_without_vfio_says_modprobe() {
        let failure = refused(|tree| tree.remove("/dev/vfio/vfio"));
        assert_eq!((failure.code.id, failure.fix.as_str()), ("E1004", "modprobe vfio-pci"));
    }

    #[test]
    fn host_with_iommufd_only_says_so() {
        let failure = refused(|tree| {
            tree.remove("/dev/vfio/vfio");
            tree.file("/dev/iommu", "");
        });
        assert!(failure.cause.contains("iommufd"), "{}", failure.cause);
    }

    #[test]
    fn host_without_interrupt_remapping_is_refused_unless_the_risk_was_accepted() {
        let tree = Tree::two_cards();
        tree.file("/sys/class/iommu/dmar0/intel-iommu/ecap", "0\n");
        assert_eq!(host(&tree.sysroot()).unwrap_err().code.id, "E1006");
        tree.file("/sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
        host(&tree.sysroot()).unwrap();
    }

    #[test]
    fn unreadable_state_is_a_failure_of_its_own() {
        let failure = refused(|tree| {
            tree.remove("/proc/cpuinfo");
            tree.directory("/proc/cpuinfo");
        });
        assert_eq!(failure.code.id, "E1007");
        assert!(failure.cause.contains("/proc/cpuinfo"), "{}", failure.cause);
    }
}
