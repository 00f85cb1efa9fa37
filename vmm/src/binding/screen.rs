//! The framebuffer with which the host draws on a device: it lets go before vfio-pci gets the device, and draws again
//! when the host has the device back, where the kernel still knows it.

use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{framebuffer, sysroot::Sysroot},
    journal::Screen,
};

use super::{
    switch::Trouble,
    write::{WriteError, Writer},
};

/// Makes it let go of the device, and looks whether it has.
pub(super) fn release(
    screen: &Screen,
    sysroot: &Sysroot,
    writer: &dyn Writer,
    bdf: Bdf,
) -> Result<(), Trouble> {
    for write in screen.release() {
        writer.write(&write).map_err(|error| kept(screen, bdf, error))?;
    }
    let Some(still) = framebuffer::on(sysroot, bdf)? else { return Ok(()) };
    let cause =
        format!("{} was told to let go of {bdf}, and {} is still there", screen.name, still.name);
    let fix = "boot the host with initcall_blacklist=sysfb_init";
    let failure = Failure::new(&codes::E1205, cause, fix);
    Err(failure.detail(format!("/proc/iomem has it at {}", still.range)).into())
}

/// Draws again. What the kernel does not allow is a warning (E1117) and is not tried again: nothing of it will be
/// different the next time.
pub(super) fn restore(
    screen: &Screen,
    sysroot: &Sysroot,
    writer: &dyn Writer,
    bdf: Bdf,
) -> Result<Option<Failure>, Trouble> {
    let platform = screen.platform();
    if !sysroot.exists(&platform.device_path()) {
        let why = format!("the kernel has removed {} for good", screen.device());
        let fix = "the card's own driver makes a console of its own, or reboot";
        return Ok(Some(gone(screen, &why, fix)));
    }
    let bind = if platform.is_bound(sysroot)? { None } else { Some(screen.bind()) };
    for write in bind.into_iter().chain(screen.switch("1")) {
        let path = write.to.to_string();
        // A console that has taken its picture by itself says 1; one that has gone with it is back only then.
        if sysroot.read_if_present(&path).ok().flatten().as_deref() == Some("1") {
            continue;
        }
        match writer.write(&write) {
            Ok(()) => {}
            Err(error @ WriteError::Stuck { .. }) => return Err(kept(screen, bdf, error)),
            Err(error) => {
                let why = format!("{path} does not take {}", write.value);
                let fix = "look into: dmesg | tail; the picture is back after a reboot";
                return Ok(Some(gone(screen, &why, fix).source(error)));
            }
        }
    }
    Ok(None)
}

fn gone(screen: &Screen, why: &str, fix: &str) -> Failure {
    let cause = format!("the host's framebuffer {} does not come back: {why}", screen.name);
    Failure::new(&codes::E1117, cause, fix)
}

fn kept(screen: &Screen, bdf: Bdf, error: WriteError) -> Trouble {
    match error {
        stuck @ WriteError::Stuck { .. } => Trouble::of(bdf, Some(&screen.name), stuck),
        refused @ WriteError::Refused { .. } => {
            let cause = format!("the host's framebuffer {} does not let go of {bdf}", screen.name);
            let fix =
                "look into: dmesg | tail; or boot the host with initcall_blacklist=sysfb_init";
            Failure::new(&codes::E1205, cause, fix).source(refused).into()
        }
    }
}
