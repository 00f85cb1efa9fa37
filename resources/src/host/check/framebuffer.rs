//! Does the host draw on the device? VFIO cannot map a BAR that a framebuffer of the host holds.

use super::{
    super::{
        framebuffer::{self, Framebuffer},
        holders::holders,
        pci::HostFunction,
        sysroot::Sysroot,
    },
    advice,
};
use crate::{codes, failure::Failure};

const BOOT_WITHOUT: &str = "boot the host with initcall_blacklist=sysfb_init";

/// Nothing of the host draws into a BAR (E1205).
pub(in super::super) fn none(sysroot: &Sysroot, function: &HostFunction) -> Result<(), Failure> {
    framebuffer::on(sysroot, function.bdf)?.map_or(Ok(()), |found| Err(refusal(function, &found)))
}

/// The framebuffer that has to let go of this function, if there is one and `allowed` says that it may. Refuses (E1205)
/// without leave, and one that no driver can be told to let go of; also (E1106) one that programs draw on, because its
/// driver keeps the BAR until the last of them is gone.
pub(super) fn to_release(
    sysroot: &Sysroot,
    function: &HostFunction,
    allowed: bool,
) -> Result<Option<Framebuffer>, Failure> {
    let Some(found) = framebuffer::on(sysroot, function.bdf)? else { return Ok(None) };
    let Some(driver) = found.driver.as_ref().filter(|_| allowed) else {
        return Err(refusal(function, &found));
    };
    let programs = holders(sysroot, &driver.nodes(sysroot)?)?.found;
    if programs.is_empty() {
        return Ok(Some(found));
    }
    let cause = format!(
        "programs draw on the host's framebuffer {} in a BAR of {}, so it would not let go",
        found.name, function.bdf
    );
    let ends: Vec<advice::Program<'_>> =
        programs.iter().map(|holder| (holder.pid, holder.name.as_str())).collect();
    let fix = format!("end them first: {}", advice::end(sysroot, &ends)?);
    let failure = Failure::new(&codes::E1106, cause, fix);
    Err(programs.iter().fold(failure, |failure, holder| {
        failure.detail(format!("{} (pid {}): {}", holder.name, holder.pid, holder.node))
    }))
}

fn refusal(function: &HostFunction, found: &Framebuffer) -> Failure {
    let cause = format!(
        "the host's framebuffer {} lies in a BAR of {} ({})",
        found.name, function.bdf, found.range
    );
    let fix = match found.driver {
        Some(_) => format!(
            "say --release-fb: strait takes it away first, and the host's picture stops; or {BOOT_WITHOUT}"
        ),
        None => format!("no driver can be told to let go of it: {BOOT_WITHOUT}"),
    };
    Failure::new(&codes::E1205, cause, fix)
}
