//! What a guest's CPU may have only where KVM was loaded so: nested virtualization, performance counters.

use crate::{codes, failure::Failure, host::sysroot::Sysroot};

/// Where KVM's modules say what they were loaded with; those of the other vendor are absent.
const NESTED: [(&str, &str); 2] = [
    ("kvm_intel", "/sys/module/kvm_intel/parameters/nested"),
    ("kvm_amd", "/sys/module/kvm_amd/parameters/nested"),
];
/// Of module `kvm` since Linux 5.18. KVM itself sets it to `N` on a host without counters.
const PMU: &str = "/sys/module/kvm/parameters/enable_pmu";

/// Refuses (E1005) a guest that shall have virtual machines of its own where KVM does not give that.
pub fn nested(sysroot: &Sysroot) -> Result<(), Failure> {
    for (module, path) in NESTED {
        if is_off(sysroot, path)? {
            let cause = format!(
                "--cpu nested=on: this host's KVM gives guests no virtualization of their own ({module} has nested off)"
            );
            let fix = format!(
                "stop all guests, then: modprobe -r {module} && modprobe {module} nested=1; or leave nested=on out"
            );
            return Err(Failure::new(&codes::E1005, cause, fix)
                .detail(format!("for every boot: options {module} nested=1 in /etc/modprobe.d")));
        }
    }
    Ok(())
}

/// Refuses (E1005) a guest that shall have performance counters where KVM does not give any.
pub fn pmu(sysroot: &Sysroot) -> Result<(), Failure> {
    if is_off(sysroot, PMU)? {
        let cause = "--cpu pmu=on: this host's KVM gives guests no performance counters (kvm.enable_pmu is off)";
        let fix = "leave pmu=on out, or load module kvm with enable_pmu=1; a host without counters cannot give any";
        return Err(Failure::new(&codes::E1005, cause, fix));
    }
    Ok(())
}

/// A boolean of a module that is there and off: `N`, or `0` where it is a number.
fn is_off(sysroot: &Sysroot, path: &str) -> Result<bool, Failure> {
    let value = sysroot.read_if_present(path)?;
    Ok(value.is_some_and(|value| matches!(value.trim(), "N" | "0")))
}

// Provenance: parameters of KVM's modules by Documentation/virt/kvm; no dump of a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    #[test]
    fn nested_is_refused_where_the_module_of_either_vendor_has_it_off() {
        for (module, path) in NESTED {
            for (value, taken) in [("Y\n", true), ("1\n", true), ("N\n", false), ("0\n", false)] {
                let tree = Tree::new();
                tree.file(path, value);
                let answer = nested(&tree.sysroot());
                assert_eq!(answer.is_ok(), taken, "{module} {value}");
                if let Err(failure) = answer {
                    assert_eq!(failure.code.id, "E1005");
                    assert!(failure.fix.contains(&format!("modprobe {module} nested=1")));
                }
            }
        }
        assert!(nested(&Tree::new().sysroot()).is_ok(), "a KVM that is built in may not tell");
    }

    #[test]
    fn pmu_is_refused_where_kvm_has_none_to_give() {
        let tree = Tree::new();
        assert!(pmu(&tree.sysroot()).is_ok());
        tree.file(PMU, "Y\n");
        assert!(pmu(&tree.sysroot()).is_ok());
        tree.file(PMU, "N\n");
        assert_eq!(pmu(&tree.sysroot()).unwrap_err().code.id, "E1005");
    }
}
