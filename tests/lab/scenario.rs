//! What a scenario is: a host, guests with what they do inside, a script in L1, and what must be true afterwards.

use crate::{hosts::HostKind, outcome::Outcome};

/// A judgement over what came out: why it is wrong, if it is.
pub(crate) type Judge = Box<dyn Fn(&Outcome) -> Result<(), String>>;

/// One scenario.
pub(crate) struct Scenario {
    /// Unique, also the directory of its logs.
    pub name: String,
    /// One line: what is shown.
    pub about: String,
    /// Where it runs.
    pub host: HostKind,
    /// The monitors that can do it.
    pub strait_only: bool,
    /// May it run on a real device as well? Then its device is called `device`.
    pub real: bool,
    /// Seconds after which it has failed.
    pub limit: u32,
    /// Takes so long that it runs only when its whole name is given.
    pub nightly: bool,
    /// The guests.
    pub vms: Vec<Vm>,
    /// The script in L1. Empty: bind every passed device, run every guest to its end, one after the other.
    pub script: String,
    /// What must be true.
    pub checks: Vec<Judge>,
    /// What must be true of strait, and need not be of another monitor.
    pub strait_checks: Vec<Judge>,
}

impl Scenario {
    /// A scenario without guests and checks.
    pub(crate) fn new(name: impl Into<String>, host: HostKind, about: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            about: about.into(),
            host,
            strait_only: false,
            real: false,
            limit: 240,
            nightly: false,
            vms: Vec::new(),
            script: String::new(),
            checks: Vec::new(),
            strait_checks: Vec::new(),
        }
    }

    /// With a guest.
    pub(crate) fn vm(mut self, vm: Vm) -> Self {
        self.vms.push(vm);
        self
    }

    /// With a script of its own. It may call `vm_NAME` for every guest, and everything in lib.sh.
    pub(crate) fn script(mut self, script: impl Into<String>) -> Self {
        self.script = script.into();
        self
    }

    /// Only strait can do this.
    pub(crate) fn strait_only(mut self) -> Self {
        self.strait_only = true;
        self
    }

    /// Needs longer or shorter than usual.
    pub(crate) fn limit(mut self, seconds: u32) -> Self {
        self.limit = seconds;
        self
    }

    /// Runs only when its whole name is given.
    pub(crate) fn nightly(mut self) -> Self {
        self.nightly = true;
        self
    }

    /// The same on a real device.
    pub(crate) fn real(mut self) -> Self {
        self.real = true;
        self
    }

    /// A guest must have reported this value (the last one counts).
    pub(crate) fn reports(self, vm: &str, key: &str, value: &str) -> Self {
        let (vm, key, value) = (vm.to_owned(), key.to_owned(), value.to_owned());
        self.check(move |outcome| {
            let got = outcome.vm(&vm)?.report(&key)?;
            if got == value { Ok(()) } else { Err(format!("{vm}: {key} is {got}, not {value}")) }
        })
    }

    /// Any other judgement.
    pub(crate) fn check(
        mut self,
        judge: impl Fn(&Outcome) -> Result<(), String> + 'static,
    ) -> Self {
        self.checks.push(Box::new(judge));
        self
    }

    /// A judgement that only strait must stand.
    pub(crate) fn strait_check(
        mut self,
        judge: impl Fn(&Outcome) -> Result<(), String> + 'static,
    ) -> Self {
        self.strait_checks.push(Box::new(judge));
        self
    }
}

/// A passed device.
#[derive(Clone, Debug)]
pub(crate) struct Passed {
    /// Its name in the host, or a whole slot.
    pub device: String,
    /// All functions of its slot?
    pub slot: bool,
    /// More keys of strait's `--vfio`: `rom=off`.
    pub keys: String,
}

/// The kernel a guest is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum GuestKernel {
    /// The ELF file.
    Vmlinux,
    /// As distributed.
    BzImage,
}

/// How a guest's run must end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ending {
    /// All steps done, power-off, status 0.
    Done,
    /// This exit status; the steps are not looked at.
    Status(i32),
    /// Not judged: the script kills it.
    Whatever,
}

/// One guest.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    /// Its name in scripts and logs.
    pub name: String,
    /// What it gets.
    pub devices: Vec<Passed>,
    /// Virtual CPUs.
    pub cpus: u32,
    /// MiB of memory.
    pub memory_mib: u64,
    /// More keys of strait's `--memory`.
    pub memory_keys: String,
    /// Kernel modules its initramfs has and loads.
    pub modules: Vec<&'static str>,
    /// Does its initramfs have busybox?
    pub busybox: bool,
    /// The agent's steps, separated by `;`. `{nonce}` is a word that differs in every run of the lab.
    pub steps: String,
    /// More words for its kernel.
    pub cmdline: String,
    /// More flags for strait.
    pub flags: Vec<String>,
    /// The same for QEMU's `-cpu host`.
    pub qemu_cpu: String,
    /// Which kernel file.
    pub kernel: GuestKernel,
    /// How it must end.
    pub ending: Ending,
    /// May its kernel log complain? Then nothing is said about it.
    pub complaints_allowed: bool,
}

impl Vm {
    /// A guest with one CPU and 512 MiB that does these steps.
    pub(crate) fn new(name: &str, steps: &str) -> Self {
        Self {
            name: name.to_owned(),
            devices: Vec::new(),
            cpus: 1,
            memory_mib: 512,
            memory_keys: String::new(),
            modules: Vec::new(),
            busybox: false,
            steps: steps.to_owned(),
            cmdline: String::new(),
            flags: Vec::new(),
            qemu_cpu: String::new(),
            kernel: GuestKernel::Vmlinux,
            ending: Ending::Done,
            complaints_allowed: false,
        }
    }

    /// With this device.
    pub(crate) fn device(self, name: &str) -> Self {
        self.device_with(name, "")
    }

    /// With this device and keys for `--vfio`.
    pub(crate) fn device_with(mut self, name: &str, keys: &str) -> Self {
        self.devices.push(Passed { device: name.to_owned(), slot: false, keys: keys.to_owned() });
        self
    }

    /// With every function of the slot that this device is in.
    pub(crate) fn slot(mut self, name: &str) -> Self {
        self.devices.push(Passed { device: name.to_owned(), slot: true, keys: String::new() });
        self
    }

    /// With these modules.
    pub(crate) fn modules(mut self, names: &[&'static str]) -> Self {
        self.modules.extend_from_slice(names);
        self
    }

    /// With busybox.
    pub(crate) fn busybox(mut self) -> Self {
        self.busybox = true;
        self
    }

    /// With so many CPUs.
    pub(crate) fn cpus(mut self, count: u32) -> Self {
        self.cpus = count;
        self
    }

    /// With so much memory.
    pub(crate) fn memory_mib(mut self, size: u64) -> Self {
        self.memory_mib = size;
        self
    }

    /// With keys for `--memory`: `pin=eager`.
    pub(crate) fn memory_keys(mut self, keys: &str) -> Self {
        self.memory_keys = format!(",{keys}");
        self
    }

    /// With more on the kernel's command line.
    pub(crate) fn cmdline(mut self, words: &str) -> Self {
        self.cmdline = words.to_owned();
        self
    }

    /// With more flags for strait.
    pub(crate) fn flags(mut self, words: &str) -> Self {
        self.flags.extend(words.split_whitespace().map(str::to_owned));
        self
    }

    /// With QEMU's words for the same, after `-cpu host`.
    pub(crate) fn qemu_cpu(mut self, words: &str) -> Self {
        self.qemu_cpu = words.to_owned();
        self
    }

    /// With the distributed bzImage.
    pub(crate) fn bzimage(mut self) -> Self {
        self.kernel = GuestKernel::BzImage;
        self
    }

    /// Ends otherwise than by a clean power-off.
    pub(crate) fn ends(mut self, ending: Ending) -> Self {
        self.ending = ending;
        self
    }

    /// Its kernel log is no part of what is shown.
    pub(crate) fn complaints_allowed(mut self) -> Self {
        self.complaints_allowed = true;
        self
    }
}
