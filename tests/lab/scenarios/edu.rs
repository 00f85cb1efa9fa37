//! QEMU's educational device: a DMA engine, MSI, INTx, and DMA to another device.

use crate::{
    hosts::HostKind,
    scenario::{Scenario, Vm},
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "edu-dma",
            HostKind::Main,
            "registers, arithmetic, DMA from and to guest RAM",
        )
        .vm(Vm::new("a", "edu,0").device("edu1"))
        .reports("a", "edu.dma", "both ways"),
        Scenario::new(
            "edu-msi",
            HostKind::Main,
            "MSI to the CPU that the guest names, and masked MSI",
        )
        .vm(Vm::new("a", "edu-msi,0,0;edu-msi,0,1").device("edu1").cpus(2))
        .reports("a", "edu.msi", "10 on cpu 1"),
        Scenario::new(
            "edu-intx",
            HostKind::Main,
            "INTx with pci=nomsi: twenty level interrupts, none lost",
        )
        .vm(Vm::new("a", "edu-intx,0")
            .device("edu1")
            .modules(&["uio_pci_generic"])
            .cmdline("pci=nomsi"))
        .reports("a", "edu.intx", "20"),
        Scenario::new(
            "edu-reset",
            HostKind::Main,
            "a reset asked for by the guest reaches the device",
        )
        .vm(Vm::new("a", "reset,1b36:0010,0;nvme-verify,0,{nonce}/6")
            .device("nvme0")
            .modules(&["nvme"])
            .complaints_allowed())
        .reports("a", "reset", "done"),
        Scenario::new(
            "edu-p2p",
            HostKind::Main,
            "with --p2p on, one device writes into another's BAR",
        )
        .vm(Vm::new("a", "edu-p2p,0,16").device("edu1").device("bar16m").flags("--p2p on"))
        .reports("a", "edu.p2p", "both ways"),
        Scenario::new("edu-p2p-32g", HostKind::Main, "the same into a BAR of 32 GiB")
            .limit(240)
            .strait_only()
            // Under TCG mapping 32 GiB of BAR in the IOMMU takes the host long enough for the guest's
            // watchdog to complain of the vCPU that waits for it.
            .vm(Vm::new("a", "edu-p2p,0,32768")
                .device("edu1")
                .device("bar32g")
                .flags("--p2p on")
                .complaints_allowed())
            .reports("a", "edu.p2p", "both ways"),
    ]
}
