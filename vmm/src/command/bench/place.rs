//! Where a bench takes its files from and puts them to; and the few facts of the host that a reader of the results wants.

use std::{
    env, fs,
    io::{self, IsTerminal as _, Write as _},
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use strait_arch::boot;
use strait_resources::{civil::Civil, codes, failure::Failure, host::pci::HostFunction};

use super::{
    OPERATIONS, RATE_MS,
    guest::{Device, Network, Task},
    image::Image,
    modules::{self, Modules},
    monitor::{self, Guest},
};
use crate::cli::BenchArgs;

/// Files of one bench.
pub(super) struct Place {
    /// Where the report and the consoles go.
    pub(super) output: PathBuf,
    /// What the guests boot.
    pub(super) kernel: PathBuf,
    /// The device's driver as a module, which the guest loads.
    module: Option<String>,
    modules: Option<PathBuf>,
    quiet: bool,
}

impl Place {
    /// Finds kernel and modules; nothing is written.
    pub(super) fn find(args: &BenchArgs, function: &HostFunction) -> Result<Self, Failure> {
        let release = text("/proc/sys/kernel/osrelease");
        let kernel = match &args.kernel {
            Some(kernel) => kernel.clone(),
            None => monitor::kernel_of(&release).ok_or_else(|| {
                let cause = format!("the kernel of this host, {release}, is not in /boot");
                Failure::new(
                    &codes::E2101,
                    cause,
                    "name it, or another Linux kernel: --kernel FILE",
                )
            })?,
        };
        let usual = PathBuf::from(format!("/lib/modules/{release}"));
        let modules = args.modules_dir.clone().or_else(|| usual.is_dir().then_some(usual));
        if let Some(directory) = &modules
            && !directory.is_dir()
        {
            let cause = format!("--modules-dir {} is no directory", directory.display());
            return Err(Failure::new(
                &codes::E2101,
                cause,
                "name the directory of the guest kernel's modules",
            ));
        }
        let sysfs = PathBuf::from(format!("/sys/bus/pci/devices/{}", function.bdf));
        // A controller on vfio-pci has lost its own driver; for disks everybody knows which that is.
        let own = if function.is_on_vfio() { None } else { modules::of_driver(&sysfs) };
        let module = own.or_else(|| (function.class.0 >> 8 == 0x0108).then(|| "nvme".to_owned()));
        let output = args.output.clone().unwrap_or_else(|| {
            PathBuf::from(format!("strait-bench-{}", function.bdf.to_string().replace(':', "-")))
        });
        Ok(Self { output, kernel, module, modules, quiet: args.json })
    }

    /// Where the guest's files are made.
    pub(super) fn scratch(&self) -> PathBuf {
        self.output.join("work")
    }

    /// Makes the guest's initramfs and both tasks.
    pub(super) fn prepare(
        &self,
        function: &HostFunction,
        workload: Option<&str>,
        network: Option<Network>,
        guest: &Guest,
    ) -> Result<(), Failure> {
        let mode = boot::BootMode::Auto;
        boot::BootFiles::open(&guest.kernel, None)
            .and_then(|files| boot::check(&files, &guest.cmdline, mode, guest.memory_mib << 20))
            .map_err(|error| error.into_failure())?;
        let scratch = self.scratch();
        fs::create_dir_all(&scratch).map_err(|error| cannot_write(&scratch, error))?;
        let failed = |what: &'static str| {
            move |error: io::Error| {
                let fix = "strait bench puts itself, its libraries and the driver's modules into the guest";
                Failure::new(
                    &codes::E2101,
                    format!("{what} cannot be put into the guest's initramfs"),
                    fix,
                )
                .source(error)
            }
        };
        let mut image = Image::new().map_err(failed("a directory"))?;
        let exe = env::current_exe().map_err(failed("strait"))?;
        image.program(&exe, "strait").map_err(failed("strait"))?;
        let mut files = Vec::new();
        if let Some((name, directory)) = self.module.as_ref().zip(self.modules.as_ref()) {
            let modules = Modules::scan(directory).map_err(failed("the driver's module"))?;
            for (name, content) in
                modules.with_dependencies(name).map_err(failed("the driver's module"))?
            {
                let file = format!("/modules/{name}.ko");
                image.file(&file, &content).map_err(failed("the driver's module"))?;
                files.push(file);
            }
        }
        if let Some(program) = workload.and_then(|command| command.split_whitespace().next()) {
            let path = find_program(program).ok_or_else(|| {
                let cause = format!("--workload: there is no program '{program}'");
                Failure::new(&codes::E2101, cause, "name a program that is on PATH, or its file")
            })?;
            let to = path.display().to_string();
            image.program(&path, &to).map_err(failed("the workload's program"))?;
        }
        let task = |device: Device, modules: Vec<String>| Task {
            device,
            modules,
            operations: OPERATIONS,
            rate_ms: RATE_MS,
            workload: workload.map(str::to_owned),
            network,
        };
        let json = |task: &Task| {
            serde_json::to_vec(task).map_err(|error| failed("the task")(error.into()))
        };
        let in_guest = json(&task(Device::Ids(function.vendor, function.device), files))?;
        image.file("task.json", &in_guest).map_err(failed("the task"))?;
        image.write(&guest.initramfs).map_err(|error| cannot_write(&guest.initramfs, error))?;
        let host = scratch.join("host.json");
        let on_host = json(&task(Device::Address(function.bdf.to_string()), Vec::new()))?;
        fs::write(&host, on_host).map_err(|error| cannot_write(&host, error))
    }

    /// One line about what runs now, rewritten on a terminal.
    pub(super) fn progress(&self, round: u32, rounds: u32, name: &str) {
        if self.quiet {
            return;
        }
        let bar: String = (0..rounds).map(|n| if n < round { '#' } else { '.' }).collect();
        let line = format!("[{bar}] round {} of {rounds}: {name}", round + 1);
        let mut stderr = io::stderr();
        // Nobody sees it when that fails.
        let _ = match stderr.is_terminal() {
            true => write!(stderr, "\r\x1b[K{line}"),
            false => writeln!(stderr, "{line}"),
        };
        let _ = stderr.flush();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if !self.quiet && io::stderr().is_terminal() {
            let _ = write!(io::stderr(), "\r\x1b[K");
        }
    }
}

/// E2101 for a file of ours.
pub(super) fn cannot_write(path: &Path, error: io::Error) -> Failure {
    let cause = format!("{} cannot be written", path.display());
    Failure::new(&codes::E2101, cause, "name a directory that is yours: --output DIR").source(error)
}

fn find_program(name: &str) -> Option<PathBuf> {
    if name.contains('/') {
        return Some(PathBuf::from(name))
            .filter(|path| path.is_file())
            .and_then(|path| path.canonicalize().ok());
    }
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path)
        .map(|directory| directory.join(name))
        .find(|candidate| candidate.is_file())
}

/// A small file of the kernel's; empty when it has none.
pub(super) fn text(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default().trim().to_owned()
}

/// The first model name in /proc/cpuinfo.
pub(super) fn cpu_model() -> String {
    let info = text("/proc/cpuinfo");
    let line = info.lines().find_map(|line| line.strip_prefix("model name"));
    line.and_then(|line| line.split_once(':'))
        .map_or_else(String::new, |(_, name)| name.trim().to_owned())
}

/// Now, in UTC.
pub(super) fn date() -> String {
    let seconds = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    Civil::new(seconds).to_string()
}
