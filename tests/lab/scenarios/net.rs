//! A network card: echoes from L0's gateway, by MSI-X and by INTx, with the interrupts moved between CPUs.

use crate::{
    hosts::HostKind,
    scenario::{Scenario, Vm},
};

fn guest(steps: &str) -> Vm {
    Vm::new("a", steps).device("nic").modules(&["e1000e"]).busybox()
}

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("nic-msix", HostKind::Main, "a NIC pings L0's gateway by MSI-X")
            .vm(guest("ping,MSI;pci;irqs"))
            .reports("a", "net.ping", "all"),
        Scenario::new("nic-intx", HostKind::Main, "the same NIC by INTx")
            .vm(guest("ping,IO-APIC;pci;irqs").cmdline("pci=nomsi"))
            .reports("a", "net.ping", "all"),
        Scenario::new(
            "irq-affinity",
            HostKind::Main,
            "the NIC's interrupts follow their affinity over two CPUs",
        )
        .limit(180)
        .vm(guest("ping,MSI;irq-move,eth0;irqs").cpus(2))
        .reports("a", "irq-move.result", "followed"),
    ]
}
