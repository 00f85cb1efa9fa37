//! The steps that give one function to vfio-pci, and those that put it back from any state between.

use std::{fmt::Write as _, time::Duration};

use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        iommu::GROUPS,
        pci::{self, is_vfio_driver},
        sysroot::Sysroot,
    },
    journal::{
        Attribute, Before, D3cold, Entry, PowerControl, Screen, VFIO, Write, driver_override,
    },
};

use super::{
    methods, screen,
    write::{WriteError, Writer},
};

const DRIVERS: &str = "/sys/bus/pci/drivers";

/// udev gives the group's node its owner and mode some time after the kernel made it.
const NODE_LIMIT: Duration = Duration::from_secs(5);
const NODE_PAUSE: Duration = Duration::from_millis(20);

/// What is written to give a function to vfio-pci. Awake before it changes hands, and awake while it is ours: a card in
/// D3cold reads as all ones. vfio-pci allows it to sleep again when it gets it, so the first line is also the last.
/// `driver_override` comes before the unbind, so that no other driver comes in between.
fn steps(entry: &Entry, before: &Before) -> Vec<Write> {
    let bdf = entry.bdf;
    let on = || Write::new(Attribute::PowerControl(bdf), PowerControl::On.word());
    let awake = || before.power_control.iter().map(|_| on());
    let mut steps: Vec<Write> = awake().collect();
    if before.d3cold_allowed.is_some() {
        steps.push(Write::new(Attribute::D3coldAllowed(bdf), D3cold::Forbidden.word()));
    }
    steps.push(Write::new(Attribute::DriverOverride(bdf), VFIO));
    if before.driver.is_some() {
        steps.push(Write::new(Attribute::Unbind(bdf), bdf.to_string()));
    }
    steps.push(Write::new(Attribute::Probe, bdf.to_string()));
    steps.extend(awake());
    steps
}

/// The same as lines for a shell.
pub(crate) fn commands(entry: &Entry) -> String {
    let mut lines = String::new();
    let released = entry.screen.iter().flat_map(Screen::release);
    let switched = entry.before.iter().flat_map(|before| steps(entry, before));
    for Write { to, value } in released.chain(switched) {
        let _ = writeln!(lines, "  echo {value} > {to}");
    }
    lines
}

/// Sees to it that there is a vfio-pci driver.
pub(super) fn load_driver(sysroot: &Sysroot, writer: &dyn Writer) -> Result<(), Failure> {
    let driver = format!("{DRIVERS}/{VFIO}");
    if sysroot.exists(&driver) {
        return Ok(());
    }
    let loaded = writer.load(VFIO);
    if sysroot.exists(&driver) {
        return Ok(());
    }
    let fix = "install the kernel's modules package, then: modprobe vfio-pci";
    let failure = Failure::new(&codes::E1004, "the driver vfio-pci is not loaded", fix);
    Err(match loaded {
        Ok(()) => failure,
        Err(error) => failure.source(error),
    })
}

/// Does all that is to be done for a function.
pub(super) fn take(sysroot: &Sysroot, writer: &dyn Writer, entry: &Entry) -> Result<(), Trouble> {
    if let Some(screen) = &entry.screen {
        screen::release(screen, sysroot, writer, entry.bdf)?;
    }
    if let Some(before) = &entry.before {
        give_to_vfio(sysroot, writer, entry, before)?;
    }
    entry.methods.as_ref().map_or(Ok(()), |wanted| methods::set(wanted, writer, entry.bdf))
}

/// Gives a function to vfio-pci and looks whether it got there.
fn give_to_vfio(
    sysroot: &Sysroot,
    writer: &dyn Writer,
    entry: &Entry,
    before: &Before,
) -> Result<(), Trouble> {
    let bdf = entry.bdf;
    for step in steps(entry, before) {
        writer.write(&step).map_err(|error| Trouble::of(bdf, before.driver.as_deref(), error))?;
    }
    let driver = driver(sysroot, bdf)?;
    if driver.as_deref() != Some(VFIO) {
        let now = driver.as_deref().unwrap_or("no driver");
        let cause = format!("{bdf} was given to vfio-pci, but has {now}");
        let says = driver_override(sysroot, bdf)?.unwrap_or_default();
        let fix = "look into: dmesg | tail; and end what else sets driver_override (driverctl, udev rules)";
        let failure = Failure::new(&codes::E1105, cause, fix);
        return Err(Trouble::Failed(failure.detail(format!("driver_override is '{says}' now"))));
    }
    if let Some(group) = entry.group {
        wait_for_node(sysroot, writer, &format!("/dev/vfio/{group}"))?;
    }
    Ok(())
}

fn wait_for_node(sysroot: &Sysroot, writer: &dyn Writer, path: &str) -> Result<(), Failure> {
    let mut left = NODE_LIMIT;
    while !sysroot.exists(path) {
        if left.is_zero() {
            let cause = format!("{path} does not appear, although vfio-pci has the device");
            let fix = "outside of a container: udevadm trigger; inside, pass the node in";
            return Err(Failure::new(&codes::E1004, cause, fix));
        }
        writer.pause(NODE_PAUSE);
        left = left.saturating_sub(NODE_PAUSE);
    }
    Ok(())
}

/// The first part of [`give_back`]: vfio-pci lets go of a function, and nobody else gets it yet. Is it without a driver?
pub(super) fn let_go(
    sysroot: &Sysroot,
    writer: &dyn Writer,
    entry: &Entry,
) -> Result<bool, Trouble> {
    let Some(before) = &entry.before else { return Ok(false) };
    let bdf = entry.bdf;
    let current = driver(sysroot, bdf)?;
    let write = |write: &Write| {
        let error = |error| Trouble::of(bdf, current.as_deref(), error);
        writer.write(write).map_err(error)
    };
    let native = before.driver.as_deref();
    let ours = current.as_deref().is_some_and(is_vfio_driver) && current.as_deref() != native;
    if ours {
        write(&Write::new(Attribute::Unbind(bdf), bdf.to_string()))?;
    }
    let set = driver_override(sysroot, bdf)?.filter(|text| text == VFIO);
    if set.is_some() && before.driver_override.as_deref() != Some(VFIO) {
        write(&before.override_again(bdf))?;
    }
    Ok(ours || current.is_none())
}

/// Does the kernel let devices of this group reach all of its memory once its drivers have them?
pub(super) fn is_open(sysroot: &Sysroot, group: u32) -> Result<bool, Failure> {
    let kind = sysroot.read_if_present(&Attribute::GroupType(group).to_string())?;
    Ok(kind.as_deref() == Some("identity"))
}

/// Does a driver of the host have a function of this group?
fn is_on_host(sysroot: &Sysroot, group: u32) -> Result<bool, Failure> {
    for member in sysroot.list_if_present(&format!("{GROUPS}/{group}/devices"))? {
        let Ok(bdf) = member.parse() else { continue };
        if driver(sysroot, bdf)?.is_some_and(|driver| !is_vfio_driver(&driver)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// [`Entry::confinement`], while the function has no driver. A kernel that does not do it (before 5.11, or for a group of
/// several) is a warning: the function goes back all the same.
fn confine(
    sysroot: &Sysroot,
    writer: &dyn Writer,
    entry: &Entry,
) -> Result<Option<Failure>, Trouble> {
    let (Some(group), Some(confinement)) = (entry.group, entry.confinement()) else {
        return Ok(None);
    };
    // A group with a function on a driver of the host is none that a guest had: VFIO gives it to nobody.
    if !is_open(sysroot, group)? || is_on_host(sysroot, group)? {
        return Ok(None);
    }
    match writer.write(&confinement) {
        Ok(()) => Ok(None),
        Err(stuck @ WriteError::Stuck { .. }) => Err(Trouble::of(entry.bdf, None, stuck)),
        Err(refused) => {
            let cause = format!(
                "{} goes back to the host untranslated: what a guest left in it reaches all memory",
                entry.bdf
            );
            let fix = "boot the host without iommu=pt, where guests are not trusted";
            Ok(Some(Failure::new(&codes::E1128, cause, fix).source(refused)))
        }
    }
}

/// Puts a function back, whatever of the way it has gone: [`take`] may have ended between any two steps. A driver that
/// somebody else put there in the meantime stays. There may be a warning.
pub(super) fn give_back(
    sysroot: &Sysroot,
    writer: &dyn Writer,
    entry: &Entry,
) -> Result<Option<Failure>, Trouble> {
    let Some(before) = &entry.before else { return Ok(None) };
    let bdf = entry.bdf;
    if !sysroot.exists(&pci::path(bdf, "vendor")) {
        log::warn!("{bdf} is not there any more: nothing to give back");
        return Ok(None);
    }
    let free = let_go(sysroot, writer, entry)?;
    let warning = if free { confine(sysroot, writer, entry)? } else { None };
    let write = |write: &Write| writer.write(write).map_err(|error| Trouble::of(bdf, None, error));
    let native = before.driver.as_deref();
    if free && (native.is_some() || before.any_driver) {
        write(&Write::new(Attribute::Probe, bdf.to_string()))?;
        if let Some(bind) = before.bind(bdf)
            && driver(sysroot, bdf)?.is_none()
            && sysroot.exists(&bind.to.to_string())
        {
            write(&bind)?;
        }
    }
    for switch in before.power(bdf) {
        write(&switch)?;
    }
    let now = driver(sysroot, bdf)?;
    if now.as_deref() == native || before.any_driver {
        return Ok(warning);
    }
    let name = |driver: Option<&str>| driver.unwrap_or("no driver").to_owned();
    let cause = format!("{bdf} has {} now, not {} as before", name(now.as_deref()), name(native));
    let fix = format!("look into: dmesg | tail; then: strait unbind {bdf}");
    Err(Trouble::Failed(Failure::new(&codes::E1115, cause, fix)))
}

/// The driver that has a function.
pub(super) fn driver(sysroot: &Sysroot, bdf: Bdf) -> Result<Option<String>, Failure> {
    Ok(sysroot.link_name(&pci::path(bdf, "driver"))?)
}

/// Why a function is not where it should be.
pub(super) enum Trouble {
    /// It failed.
    Failed(Failure),
    /// A child hangs in it, and whoever has the device's lock next will hang as well.
    Stuck {
        /// What to say.
        failure: Failure,
        /// Process ID.
        child: u32,
    },
}

impl Trouble {
    pub(super) fn of(bdf: Bdf, driver: Option<&str>, error: WriteError) -> Self {
        match error {
            WriteError::Stuck { child, ref path } => {
                let driver = driver.unwrap_or("the new driver");
                let cause = format!(
                    "{driver} does not let go of {bdf}: a write to {path} does not come back"
                );
                let fix = format!(
                    "see what it waits for: cat /proc/{child}/stack; end what uses the device, or reboot"
                );
                let failure = Failure::new(&codes::E1112, cause, fix).detail(format!(
                    "process {child} waits in the kernel and is left behind; nothing can end it"
                ));
                Self::Stuck { failure, child }
            }
            refused @ WriteError::Refused { .. } => {
                let cause = format!("{bdf} does not change its driver");
                let fix = "look into: dmesg | tail; in a container, sysfs must be writable";
                Self::Failed(Failure::new(&codes::E1105, cause, fix).source(refused))
            }
        }
    }

    /// What to tell the user.
    pub(super) fn into_failure(self) -> Failure {
        match self {
            Self::Failed(failure) | Self::Stuck { failure, .. } => failure,
        }
    }
}

impl<F: Into<Failure>> From<F> for Trouble {
    fn from(failure: F) -> Self {
        Self::Failed(failure.into())
    }
}
