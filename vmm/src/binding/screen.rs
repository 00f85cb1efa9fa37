//! The framebuffer with which the host draws on a device: it lets go before vfio-pci gets the device, and draws again
//! when the host has the device back, where the kernel still knows it.

use serde::{Deserialize, Serialize};
use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        framebuffer::{self, Driver, Framebuffer, console_switch},
        sysroot::Sysroot,
    },
};

use super::{
    switch::{Step, Trouble},
    write::{SLOW, WriteError, Writer},
};

/// One framebuffer, as it is journalled before it is touched.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Screen {
    /// As /proc/iomem calls it: `vesafb`.
    pub(crate) name: String,
    driver: String,
    device: String,
    /// Text consoles that draw there and nowhere else.
    consoles: Vec<String>,
}

impl Screen {
    /// `None` without a driver that could be told; the checks refuse that one.
    pub(super) fn of(found: &Framebuffer) -> Option<Self> {
        let Driver { name: driver, device } = found.driver.clone()?;
        let (name, consoles) = (found.name.clone(), found.consoles.clone());
        Some(Self { name, driver, device, consoles })
    }

    /// What is written to make it let go. Consoles first: older kernels keep a framebuffer that one draws on.
    pub(super) fn steps(&self) -> Vec<Step> {
        let consoles =
            self.consoles.iter().map(|console| Step::new(console_switch(console), "0", SLOW));
        let unbind = Step::new(self.platform().attribute("unbind"), &self.device, SLOW);
        consoles.chain([unbind]).collect()
    }

    /// Makes it let go of the device, and looks whether it has.
    pub(super) fn release(
        &self,
        sysroot: &Sysroot,
        writer: &dyn Writer,
        bdf: Bdf,
    ) -> Result<(), Trouble> {
        for Step { path, value, limit } in self.steps() {
            writer.write(&path, &value, limit).map_err(|error| self.kept(bdf, error))?;
        }
        let Some(still) = framebuffer::on(sysroot, bdf)? else { return Ok(()) };
        let cause =
            format!("{} was told to let go of {bdf}, and {} is still there", self.name, still.name);
        let fix = "boot the host with initcall_blacklist=sysfb_init";
        let failure = Failure::new(&codes::E1205, cause, fix);
        Err(failure.detail(format!("/proc/iomem has it at {}", still.range)).into())
    }

    /// Draws again. What the kernel does not allow is a warning (E1117) and is not tried again: nothing of it will be
    /// different the next time.
    pub(super) fn restore(
        &self,
        sysroot: &Sysroot,
        writer: &dyn Writer,
        bdf: Bdf,
    ) -> Result<Option<Failure>, Trouble> {
        let platform = self.platform();
        if !sysroot.exists(&platform.device_path()) {
            let why = format!("the kernel has removed {} for good", self.device);
            return Ok(Some(
                self.gone(&why, "the card's own driver makes a console of its own, or reboot"),
            ));
        }
        let mut steps = Vec::new();
        if !platform.is_bound(sysroot)? {
            steps.push(Step::new(platform.attribute("bind"), &self.device, SLOW));
        }
        steps.extend(
            self.consoles.iter().map(|console| Step::new(console_switch(console), "1", SLOW)),
        );
        for Step { path, value, limit } in steps {
            // A console that has taken its picture by itself says 1; one that has gone with it is back only then.
            if sysroot.read_if_present(&path).ok().flatten().as_deref() == Some("1") {
                continue;
            }
            match writer.write(&path, &value, limit) {
                Ok(()) => {}
                Err(error @ WriteError::Stuck { .. }) => return Err(self.kept(bdf, error)),
                Err(error) => {
                    let why = format!("{path} does not take {value}");
                    let fix = "look into: dmesg | tail; the picture is back after a reboot";
                    return Ok(Some(self.gone(&why, fix).source(error)));
                }
            }
        }
        Ok(None)
    }

    fn platform(&self) -> Driver {
        Driver { name: self.driver.clone(), device: self.device.clone() }
    }

    fn gone(&self, why: &str, fix: &str) -> Failure {
        let cause = format!("the host's framebuffer {} does not come back: {why}", self.name);
        Failure::new(&codes::E1117, cause, fix)
    }

    fn kept(&self, bdf: Bdf, error: WriteError) -> Trouble {
        match error {
            stuck @ WriteError::Stuck { .. } => Trouble::of(bdf, Some(&self.name), stuck),
            refused @ WriteError::Refused { .. } => {
                let cause =
                    format!("the host's framebuffer {} does not let go of {bdf}", self.name);
                let fix =
                    "look into: dmesg | tail; or boot the host with initcall_blacklist=sysfb_init";
                Failure::new(&codes::E1205, cause, fix).source(refused).into()
            }
        }
    }
}
