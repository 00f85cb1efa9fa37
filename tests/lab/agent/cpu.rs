//! The CPU as the guest sees it: what hiding changes, and what must not change with it.

use anyhow::Result;

use crate::{
    raw::{cpuid, kernel_log},
    read, report,
};

fn text(words: &[u32]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes).trim_end_matches('\0').to_owned()
}

/// Step `cpu`.
pub(crate) fn show() -> Result<()> {
    let [_, b, c, d] = cpuid(0, 0);
    report("cpu.vendor", text(&[b, d, c]));
    let hypervisor = cpuid(1, 0)[2] >> 31;
    report("cpu.hypervisor-bit", hypervisor);
    // The bit is what permits to look at the leaves; without it they may hold anything.
    for leaf in [0x4000_0000u32, 0x4000_0100] {
        let [max, b, c, d] = cpuid(leaf, 0);
        let printable = text(&[b, c, d]).chars().all(|c| c.is_ascii_graphic());
        let vendor = if printable { text(&[b, c, d]) } else { String::new() };
        report(&format!("cpu.leaf-{leaf:08x}"), format!("{max:#x} \"{vendor}\""));
    }
    report("cpu.physical-bits", cpuid(0x8000_0008, 0)[0] & 0xff);
    report("cpu.detect-virt", detect_virt(hypervisor == 1));
    let clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource";
    report("cpu.clocksource", read(clock)?);
    let log = kernel_log();
    for line in log.lines().filter(|line| line.contains("tsc:") || line.contains("clocksource:")) {
        report("cpu.clock-log", line);
    }
    let info = read("/proc/cpuinfo")?;
    let count = |key: &str| info.lines().filter(|line| line.starts_with(key)).count();
    report("cpu.count", count("processor"));
    let field = |key: &str| {
        let line = info.lines().find(|line| line.starts_with(key))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    };
    for key in ["model name", "siblings", "cpu cores"] {
        let name = format!("cpu.{}", key.replace(' ', "-"));
        report(&name, field(key).unwrap_or_default());
    }
    let flags = field("flags").unwrap_or_default();
    for flag in ["pdpe1gb", "x2apic", "hypervisor", "constant_tsc", "vmx", "svm", "arch_perfmon"] {
        report(&format!("cpu.flag-{flag}"), flags.split(' ').any(|known| known == flag));
    }
    Ok(())
}

/// What systemd-detect-virt looks at for virtual machines, in its order: DMI strings, then CPUID.
fn detect_virt(hypervisor: bool) -> String {
    const DMI: &[(&str, &str)] = &[
        ("KVM", "kvm"),
        ("QEMU", "qemu"),
        ("VMware", "vmware"),
        ("innotek GmbH", "oracle"),
        ("VirtualBox", "oracle"),
        ("Xen", "xen"),
        ("Bochs", "bochs"),
        ("Parallels", "parallels"),
        ("Hyper-V", "microsoft"),
        ("strait", "strait"),
    ];
    const LEAF: &[(&str, &str)] =
        &[("KVMKVMKVM", "kvm"), ("Microsoft Hv", "microsoft"), ("VMwareVMware", "vmware")];
    for file in ["product_name", "sys_vendor", "board_vendor", "bios_vendor", "product_version"] {
        let value = read(&format!("/sys/class/dmi/id/{file}")).unwrap_or_default();
        if let Some((_, name)) = DMI.iter().find(|(start, _)| value.starts_with(start)) {
            return format!("{name} (by DMI {file})");
        }
    }
    if !hypervisor {
        return "none".to_owned();
    }
    let [_, b, c, d] = cpuid(0x4000_0000, 0);
    let vendor = text(&[b, c, d]);
    let known = LEAF.iter().find(|(text, _)| *text == vendor);
    known.map_or_else(|| "vm-other".to_owned(), |(_, name)| (*name).to_owned())
}
