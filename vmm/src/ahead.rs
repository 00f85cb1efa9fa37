//! What begins before a device is opened, because it takes as long as the device's reset and needs nothing but to know
//! where RAM lies: RAM is faulted in, and the kernel is read into it.
//!
//! Where RAM lies follows from what the host says of itself. VFIO, asked later, may know more of the IOMMU; then all of
//! this is given up and begun again.

use std::{
    io,
    sync::{Arc, Mutex, PoisonError},
    thread::{self, JoinHandle},
};

use strait_arch::boot::{self, BootError, BootFiles, BootRequest, Loaded};
use strait_resources::{failure::Failure, range::AddressRange};

use crate::{
    builder::internal,
    config::{Kernel, RunConfig},
    control::Control,
    memory::GuestRam,
    phases,
    pinning::Pinning,
};

/// What loading takes: decompressors want some.
const STACK: usize = 1 << 20;

/// RAM, on its way.
pub(crate) struct Ahead {
    pub(crate) ram: Arc<GuestRam>,
    /// `None` without passed devices: then the guest faults in what it uses.
    pub(crate) pinning: Option<Pinning>,
    pub(crate) loading: Loading,
}

/// A kernel and what goes with it, being read by a thread. Files may take any time: whoever waits looks at
/// [`Loading::is_done`], and at other things too. Dropping this lets the thread be; RAM lasts as long as it does.
pub(crate) struct Loading {
    outcome: Outcome,
    thread: JoinHandle<()>,
}

type Outcome = Arc<Mutex<Option<Result<Loaded, BootError>>>>;

impl Ahead {
    /// Begins. `behind`: pinning gives way to the guest.
    pub(crate) fn start(
        config: &RunConfig,
        files: &Arc<BootFiles>,
        ranges: &[AddressRange],
        behind: bool,
        control: &Arc<Control>,
    ) -> Result<Self, Failure> {
        let no_thread = internal("starting a thread");
        let ram = GuestRam::new(ranges, config.memory.pages)?;
        let loading = Loading::start(&ram, (files, &config.kernel), ranges, true, control)
            .map_err(&no_thread)?;
        let pinning = match config.vfio.is_empty() {
            true => None,
            false => Some(Pinning::start(&ram, control, behind).map_err(&no_thread)?),
        };
        Ok(Self { ram, pinning, loading })
    }

    /// Gives RAM back, so that there is room for another. Once [`Loading::is_done`]: its failures are met again with the
    /// same file.
    pub(crate) fn give_up(self) {
        drop(self);
    }
}

impl Loading {
    /// Begins. `fresh`: no guest has run in `ram`. `control` is nudged at the end.
    pub(crate) fn start(
        ram: &Arc<GuestRam>,
        (files, kernel): (&Arc<BootFiles>, &Kernel),
        ranges: &[AddressRange],
        fresh: bool,
        control: &Arc<Control>,
    ) -> io::Result<Self> {
        let (ram, files) = (Arc::clone(ram), Arc::clone(files));
        let (kernel, ranges) = (kernel.clone(), ranges.to_vec());
        let (outcome, control) = (Outcome::default(), Arc::clone(control));
        let thread = thread::Builder::new().name("load".to_owned()).stack_size(STACK);
        let told = Arc::clone(&outcome);
        let load = move || {
            let began = phases::now();
            let loaded = load(&ram, &files, &kernel, &ranges, fresh);
            phases::done_beside("kernel loaded", began);
            // RAM may be given back as soon as it is known that nobody writes into it.
            drop(ram);
            *told.lock().unwrap_or_else(PoisonError::into_inner) = Some(loaded);
            control.nudge();
        };
        let thread = thread.spawn(load)?;
        Ok(Self { outcome, thread })
    }

    /// Has it come to its end?
    pub(crate) fn is_done(&self) -> bool {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner).is_some()
            || self.thread.is_finished()
    }

    /// What came of it; waits for the end of it.
    pub(crate) fn finish(self) -> Result<Loaded, Failure> {
        let joined = self.thread.join();
        let loaded = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        let (Ok(()), Some(loaded)) = (joined, loaded) else {
            let panicked = io::Error::other("the thread panicked, see above");
            return Err(internal("loading the kernel")(panicked));
        };
        loaded.map_err(|error| error.into_failure())
    }
}

/// Kernel, initramfs and command line into RAM at `ranges`; `fresh`: no guest has run in it.
fn load(
    ram: &GuestRam,
    files: &BootFiles,
    kernel: &Kernel,
    ranges: &[AddressRange],
    fresh: bool,
) -> Result<Loaded, BootError> {
    let request =
        BootRequest { files, cmdline: &kernel.cmdline, ram: ranges, fresh, mode: kernel.boot };
    boot::load(ram.memory(), &request)
}
