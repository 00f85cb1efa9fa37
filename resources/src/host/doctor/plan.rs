//! `--fix-plan`: the exact lines for this distribution and boot loader. Printed, never run.

mod arguments;
mod at_boot;

use super::{
    super::{
        check::{self, Allowed},
        cpu::Vendor,
        driver,
        iommu::{self, State, WhyOff},
        needs::Needs,
        pci::HostFunction,
        sysroot::{SysError, Sysroot},
    },
    boot::system::System,
};

/// What would mend this host.
#[derive(Debug)]
pub struct Plan {
    /// `Debian GNU/Linux 12, GRUB, initramfs-tools`.
    pub system: String,
    /// In order; empty when nothing is to be done.
    pub steps: Vec<Step>,
}

/// One thing to do.
#[derive(Debug)]
pub struct Step {
    /// What for.
    pub title: String,
    /// Lines for a root shell; those that begin with `#` are for the reader.
    pub lines: Vec<String>,
}

/// Makes the plan for these devices.
pub fn fix_plan(sysroot: &Sysroot, chosen: &[HostFunction]) -> Result<Plan, SysError> {
    let host = System::read(sysroot)?;
    let system = Boot { sysroot, system: &host };
    let mut steps = Vec::new();
    // Pasted as a whole, nothing behind a reboot would run: it comes last.
    let iommu = system.iommu()?.map(|mut step| {
        let before = step.lines.len();
        step.lines.retain(|line| line != REBOOT);
        (before != step.lines.len(), step)
    });
    let (off, reboots) = (iommu.is_some(), iommu.as_ref().is_some_and(|(reboots, _)| *reboots));
    steps.extend(iommu.map(|(_, step)| step));
    let (mut takeable, needs) = (Vec::new(), Needs::new(sysroot));
    for function in chosen.iter().filter(|function| !function.is_bridge()) {
        if let Some(vmd) = function.behind {
            let lines = vec![
                format!("# {} cannot be passed without {vmd}, which it is behind", function.bdf),
                format!(
                    "# strait doctor {vmd} --fix-plan; or switch VMD off in the firmware setup"
                ),
            ];
            steps.push(Step { title: format!("Pass {vmd} in its place"), lines });
            continue;
        }
        match lost_without(&needs, function) {
            Some(step) => steps.push(step),
            None => takeable.push(function),
        }
    }
    // Without an IOMMU vfio-pci takes nothing yet.
    if !off {
        steps.extend(bind_now(&takeable));
    }
    steps.extend(at_boot::step(sysroot, &host, &takeable)?);
    if reboots {
        let title = "Start with all of that".to_owned();
        steps.push(Step { title, lines: vec![REBOOT.to_owned()] });
    }
    let system = format!("{}, {}, {}", host.name, host.loader.name(), host.initramfs.name());
    Ok(Plan { system, steps })
}

const REBOOT: &str = "reboot";

fn is_grubs(place: &str) -> bool {
    place.starts_with("/etc/default/grub")
}

struct Boot<'a> {
    sysroot: &'a Sysroot,
    system: &'a System,
}

impl Boot<'_> {
    fn iommu(&self) -> Result<Option<Step>, SysError> {
        let State::Off(why) = iommu::state(self.sysroot)? else { return Ok(None) };
        let vendor = iommu::vendor(self.sysroot)?;
        let option = match vendor {
            Vendor::Amd => "IOMMU (also called AMD-Vi)",
            _ => "VT-d (Intel VT for Directed I/O)",
        };
        let (title, lines) = match why {
            WhyOff::Firmware => (
                "Switch the IOMMU on".to_owned(),
                vec![format!("# in the firmware setup: {option}, then run strait doctor again")],
            ),
            WhyOff::Guest => (
                "Give this guest an IOMMU".to_owned(),
                vec![
                    "# on the outer host; QEMU: -device intel-iommu,intremap=on,caching-mode=on"
                        .to_owned(),
                ],
            ),
            WhyOff::ArgumentMissing => (
                "Ask the kernel to use the IOMMU".to_owned(),
                arguments::add(self.sysroot, self.system, "intel_iommu=on", "intel_iommu=on")?,
            ),
            WhyOff::ArgumentOff(argument) => (
                format!("Take {argument} out"),
                arguments::remove(self.sysroot, self.system, &argument)?,
            ),
            WhyOff::Refused => (
                "Find out why the kernel does not use the IOMMU".to_owned(),
                vec!["dmesg | grep -e DMAR -e AMD-Vi -e IOMMU".to_owned()],
            ),
        };
        Ok(Some(Step { title, lines }))
    }
}

/// A device that the host needs is not to be taken by a line that was copied, and neither is one that a run would not
/// take. Without a group only the device itself is looked at.
fn lost_without(needs: &Needs<'_>, function: &HostFunction) -> Option<Step> {
    if function.is_on_vfio() {
        return None;
    }
    let one = std::slice::from_ref(function);
    let refusal = match function.group {
        Some(_) => check::bindable_of(needs, one, &Allowed::default()).err(),
        None => check::expendable(needs, function, false, &Allowed::default()).err(),
    };
    let refusal = refusal?;
    let title = format!("Free {} from the host first", function.bdf);
    let lines = [&refusal.cause].into_iter().chain(&refusal.details).chain([&refusal.fix]);
    Some(Step { title, lines: lines.map(|line| format!("# {line}")).collect() })
}

/// Until the next boot.
fn bind_now(functions: &[&HostFunction]) -> Option<Step> {
    let mut lines: Vec<String> = Vec::new();
    for function in functions.iter().filter(|function| !function.is_on_vfio()) {
        for line in driver::bind_commands(function.bdf, function.driver.as_deref()) {
            if !lines.contains(&line) {
                lines.push(line);
            }
        }
    }
    let title = "Give the devices to vfio-pci now".to_owned();
    (!lines.is_empty()).then_some(Step { title, lines })
}
