//! What begins before a device is opened, because it takes as long as the device's reset and needs nothing but to know
//! where RAM lies: RAM is faulted in, and the kernel is read into it.
//!
//! Where RAM lies follows from what the host says of itself. VFIO, asked later, may know more of the IOMMU; then all of
//! this is given up and begun again.

use std::{
    io,
    sync::Arc,
    thread::{self, JoinHandle},
};

use strait_arch::boot::{self, BootError, BootRequest, Loaded};
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

/// A kernel and what goes with it, being read by a thread.
pub(crate) struct Loading(JoinHandle<Result<Loaded, BootError>>);

impl Ahead {
    /// Begins. `behind`: pinning gives way to the guest.
    pub(crate) fn start(
        config: &RunConfig,
        ranges: &[AddressRange],
        behind: bool,
        control: &Arc<Control>,
    ) -> Result<Self, Failure> {
        let no_thread = internal("starting a thread");
        let ram = GuestRam::new(ranges, config.memory.pages)?;
        let loading = Loading::start(&ram, &config.kernel, ranges).map_err(&no_thread)?;
        let pinning = match config.vfio.is_empty() {
            true => None,
            false => Some(Pinning::start(&ram, control, behind).map_err(&no_thread)?),
        };
        Ok(Self { ram, pinning, loading })
    }

    /// Gives RAM back, so that there is room for another.
    pub(crate) fn give_up(self) {
        drop(self.pinning);
        // The next one meets the same file.
        drop(self.loading.0.join());
    }
}

impl Loading {
    fn start(ram: &Arc<GuestRam>, kernel: &Kernel, ranges: &[AddressRange]) -> io::Result<Self> {
        let (ram, kernel, ranges) = (Arc::clone(ram), kernel.clone(), ranges.to_vec());
        let thread = thread::Builder::new().name("load".to_owned()).stack_size(STACK);
        let load = move || {
            let began = phases::now();
            let loaded = load(&ram, &kernel, &ranges, true);
            phases::done_beside("kernel loaded", began);
            loaded
        };
        thread.spawn(load).map(Self)
    }

    /// Waits for the end of it.
    pub(crate) fn finish(self) -> Result<Loaded, Failure> {
        let loaded = self.0.join().map_err(|_| {
            internal("loading the kernel")(io::Error::other("the thread panicked, see above"))
        })?;
        loaded.map_err(|error| error.into_failure())
    }
}

/// Kernel, initramfs and command line into RAM at `ranges`; `fresh`: no guest has run in it.
pub(crate) fn load(
    ram: &GuestRam,
    kernel: &Kernel,
    ranges: &[AddressRange],
    fresh: bool,
) -> Result<Loaded, BootError> {
    let request = BootRequest {
        kernel: &kernel.path,
        initramfs: kernel.initramfs.as_deref(),
        cmdline: &kernel.cmdline,
        ram: ranges,
        fresh,
        mode: kernel.boot,
    };
    boot::load(ram.memory(), &request)
}
