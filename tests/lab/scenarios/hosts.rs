//! Other hosts: a narrow IOMMU, an AMD one, many devices, much memory.

use crate::{
    hosts::HostKind,
    scenario::{Scenario, Vm},
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "iommu-39-bit",
            HostKind::Narrow,
            "disk and DMA with an IOMMU narrower than the CPU",
        )
        .vm(Vm::new("a", "nvme-verify,0,{nonce}/1;edu,0;pci")
            .device("nvme0")
            .device("edu0")
            .modules(&["nvme"])),
        Scenario::new(
            "config-hidden",
            HostKind::Narrow,
            "registers of capabilities that VFIO hides are not written by a guest",
        )
        .strait_only()
        .vm(Vm::new("a", "config-hidden,8086,0d93,10c").device("cxl").complaints_allowed())
        .script(HIDDEN_SCRIPT)
        .reports("a", "config-hidden.list", "00000000")
        .reports("a", "config-hidden.register", "00")
        .check(|outcome| {
            let (hidden, before, after) =
                (outcome.text("hidden"), outcome.text("before"), outcome.text("after"));
            // A host that shows the capability would prove nothing.
            if hidden.trim() == "0" || before.trim().is_empty() {
                return Err("VFIO hides no capability of this device".to_owned());
            }
            if before == after { Ok(()) } else { Err(format!("{before} became {after}")) }
        }),
        Scenario::new("iommu-39-bit-256g", HostKind::Narrow, "a BAR of 256 GiB below 39 bits")
            .limit(240)
            .strait_only()
            .vm(Vm::new("a", "ivshmem,262144,{nonce};edu,0;pci").device("bar256g").device("edu0")),
        Scenario::new("amd-iommu", HostKind::Amd, "disk, DMA and MSI on a host with an AMD IOMMU")
            .vm(Vm::new("a", "nvme-verify,0,{nonce}/1;edu,0;edu-msi,0,0;pci")
                .device("nvme0")
                .device("edu0")
                .modules(&["nvme"])),
        many(),
        Scenario::new("memory-8g", HostKind::Big, "a guest of 8 GiB with a disk")
            .limit(300)
            .vm(Vm::new("a", "memory;nvme-verify,0,{nonce}/1")
                .device("nvme0")
                .modules(&["nvme"])
                .memory_mib(8192))
            .check(|outcome| {
                let guest = outcome.vm("a")?;
                let mib = guest.number("memory.mib")?;
                if mib > 7800.0 { Ok(()) } else { Err(format!("the guest has {mib} MiB")) }
            }),
    ]
}

fn many() -> Scenario {
    let mut vm = Vm::new("a", "edu-all,33;edu,32;edu-msi,32,0");
    for n in 0..33 {
        vm = vm.device(&format!("edu{n}"));
    }
    Scenario::new("devices-33", HostKind::Many, "thirty-three devices at once")
        .limit(300)
        .vm(vm)
        .reports("a", "edu.alive", "33")
}

/// The control register of a CXL device's first capability (CXL 2.0, 8.1.3.2), as the host reads it.
const HIDDEN_SCRIPT: &str = r#"bind {all}
register() { dd if=$PCI/$cxl/config bs=1 skip=268 count=2 2>/dev/null | od -An -tx2; }
dd if=$PCI/$cxl/config bs=1 skip=256 count=2 2>/dev/null | od -An -tx2 | grep -c 0023 >$J/hidden
register >$J/before
vm_a
register >$J/after
echo "LAB figure.control=$(cat $J/before) before the guest,$(cat $J/after) after"
"#;
