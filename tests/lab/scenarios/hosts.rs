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
