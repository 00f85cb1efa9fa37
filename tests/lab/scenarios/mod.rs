//! Every scenario, by topic.

mod bad_input;
mod bars;
mod behind;
mod bench;
mod binding;
mod boot;
mod chest;
mod doctor;
mod edu;
mod emulator;
mod framebuffer;
pub(crate) mod gpu;
mod hiding;
mod hostile;
mod hosts;
mod net;
mod nvme;
mod owners;
mod pins;
mod reset;
mod smbios;

use crate::{
    hosts::HostKind,
    scenario::{Scenario, Vm},
};

/// All scenarios of the emulated hosts.
pub(crate) fn all() -> Vec<Scenario> {
    let mut all = Vec::new();
    all.extend(boot::scenarios());
    all.extend(bench::scenarios());
    all.extend(hiding::scenarios());
    all.extend(nvme::scenarios());
    all.extend(gpu::scenarios());
    all.extend(edu::scenarios());
    all.extend(emulator::scenarios());
    all.extend(net::scenarios());
    all.extend(pins::scenarios());
    all.extend(smbios::scenarios());
    all.extend(bars::scenarios());
    all.extend(hostile::scenarios());
    all.extend(chest::scenarios());
    all.extend(hosts::scenarios());
    all.extend(binding::scenarios());
    all.extend(owners::scenarios());
    all.extend(reset::scenarios());
    all.extend(framebuffer::scenarios());
    all.extend(behind::scenarios());
    all.extend(bad_input::scenarios());
    all.extend(doctor::scenarios());
    all
}

/// Those that run with a real device of this machine: what does not depend on what the device is, and a walk
/// over its BARs.
pub(crate) fn real() -> Vec<Scenario> {
    let mut real: Vec<Scenario> = all().into_iter().filter(|scenario| scenario.real).collect();
    for scenario in &mut real {
        scenario.host = HostKind::Here;
    }
    real.push(
        Scenario::new("real-device", HostKind::Here, "the guest sees the device as the host does")
            .script(
                "bind {all}\n\
                 head -6 $PCI/$device/resource >$J/resource\n\
                 vm_a\n",
            )
            .vm(Vm::new("a", "pci;cpu;memory;irqs").device("device").memory_mib(1024))
            .check(|outcome| {
                let seen = outcome.vm("a")?;
                let sizes = host_bar_sizes(&outcome.text("resource"));
                let wanted: Vec<String> = sizes.iter().map(|size| format!("+{size:#x}")).collect();
                let found = seen.all("pci").any(|line| wanted.iter().all(|w| line.contains(w)));
                let message = || format!("no function of the guest has BARs of {wanted:?}");
                if found { Ok(()) } else { Err(message()) }
            }),
    );
    real
}

/// The sizes in a `resource` file of sysfs.
fn host_bar_sizes(resource: &str) -> Vec<u64> {
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let lines = resource.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let (start, end) = (number(words.next()?)?, number(words.next()?)?);
        (end > 0).then(|| end - start + 1)
    });
    lines.collect()
}
