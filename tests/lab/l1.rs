//! L1, the emulated host: booted once, then given one job after the other.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use crate::{
    fetch::{Kernel, Tools},
    files,
    hosts::{Clock, Host},
    initramfs::Initramfs,
    paths::Paths,
    progress::Progress,
    qemu::{CONSOLE, Machine, Purpose, Qemu},
};

/// What L1 needs to mount L0's file system, and what a host of ours has.
const MODULES: &[&str] = &[
    "9pnet_virtio",
    "9p",
    "virtio_pci",
    "overlay",
    "irqbypass",
    "vfio",
    "vfio_iommu_type1",
    "vfio-pci",
    "kvm",
    "kvm-amd",
    "nvme",
];

/// TCG's TSC is L0's, the same on every CPU and never stopping, but it does not say so. Left alone, L1 reads the HPET
/// instead: a device, for which its CPUs queue up under load until timer interrupts do nothing but wait for the time.
/// And on a busy machine the ticks by which it checks at boot that interrupts arrive come too late.
const L1_CLOCK: &str = "tsc=reliable no_timer_check";

/// No guest runs on L1's first CPU. QEMU keeps whether a CPU is within a guest's page tables and whether it takes interrupts
/// (GIF) as bits of `hflags2`. Each FXRSTOR, XRSTOR and FLDENV, on whatever CPU, clears the IGNNE bit in the `hflags2` of the
/// first CPU (`cpu_clear_ignne`), which is no atomic step. Where every CPU has a thread of its own, it puts other bits back
/// to what they were before a VMRUN or #VMEXIT: a guest goes on in its host's page tables and shuts down, or the host goes on
/// in the guest's and its kernel breaks, or the CPU never takes an interrupt again. Seen in QEMU 7.2.22 with both bits
/// written down at each VMRUN and #VMEXIT. A third CPU that runs no guest leaves nothing to put back, and costs nothing while
/// idle.
const NO_GUESTS_ON_FIRST: &str = "isolcpus=0";

/// L1 shows every few seconds that it lives; silent for so long, it hangs.
const LIFE: Duration = Duration::from_secs(60);

/// What L1 has besides: scripts load it by `load NAME`, when a device needs a host driver to be taken from.
const LATER: &[&str] = &["e1000e", "e1000", "virtio_gpu", "crc32c_generic", "ext4"];

/// Everything a boot of L1 is made from.
#[derive(Clone, Copy)]
pub(crate) struct Ingredients<'a> {
    /// Where things lie.
    pub paths: &'a Paths,
    /// QEMU and busybox.
    pub tools: &'a Tools,
    /// The stock kernel: L1's and L2's.
    pub kernel: &'a Kernel,
    /// The agent, static.
    pub agent: &'a Path,
    /// strait; absent when another monitor is being tried.
    pub strait: Option<&'a Path>,
}

/// A booted L1.
pub(crate) struct L1 {
    qemu: Qemu,
    run: PathBuf,
    /// How much of the console belongs to jobs that are over.
    console_seen: usize,
    /// How long it may be silent.
    life: Duration,
}

/// How a job ended.
#[derive(Debug)]
pub(crate) struct JobEnd {
    /// The script's exit status; 137 when its time was over.
    pub status: i32,
    /// What L1's kernel said on the console meanwhile.
    pub console: String,
}

impl L1 {
    /// Boots this host.
    pub(crate) fn boot(with: Ingredients<'_>, host: &Host, purpose: Purpose) -> Result<Self> {
        let run = with.paths.boot(host.name);
        files::fresh_directory(&run)?;
        fs::create_dir_all(run.join("jobs"))?;
        fs::create_dir_all(run.join("bin"))?;
        for (name, text) in
            [("loop.sh", include_str!("l1/loop.sh")), ("lib.sh", include_str!("l1/lib.sh"))]
        {
            fs::write(run.join(name), text)?;
        }
        fs::copy(with.agent, run.join("bin/agent")).context("cannot copy the agent")?;
        if let Some(strait) = with.strait {
            fs::copy(strait, run.join("bin/strait")).context("cannot copy strait")?;
        }
        let initramfs = image(with)?;
        let mut progress = Progress::start(format!("booting L1, the {} host", host.name));
        let mut qemu = Qemu::start(&Machine {
            qemu: &with.tools.qemu,
            kernel: &with.kernel.bzimage,
            initramfs: &initramfs,
            append: format!(
                "console=ttyS0 {} {L1_CLOCK}{} reboot=t panic=-1 quiet loglevel=5",
                host.kernel_arguments(),
                if host.clock == Clock::Threads {
                    format!(" {NO_GUESTS_ON_FIRST}")
                } else {
                    String::new()
                }
            ),
            memory_mib: host.memory_mib,
            devices: host.qemu_arguments(&run)?,
            run: &run,
            clock: host.clock,
            purpose,
        })?;
        let end = Instant::now()
            + Duration::from_secs(if host.clock == Clock::Threads { 180 } else { 400 });
        loop {
            match qemu.line(Duration::from_millis(250))? {
                Some(line) if line == "ready" => break,
                _ if Instant::now() > end => {
                    bail!("L1 does not come up: see {}", run.join(CONSOLE).display())
                }
                _ => progress.tick(""),
            }
        }
        // Where a clock counts instructions, seconds there are minutes here.
        let life = if host.clock == Clock::Instructions { LIFE * 10 } else { LIFE };
        Ok(Self { qemu, run, console_seen: 0, life })
    }

    /// The directory of this boot: L1's `/lab`.
    pub(crate) fn run(&self) -> &Path {
        &self.run
    }

    /// L0's QEMU process.
    pub(crate) fn pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Runs `jobs/NAME/job.sh` of the share in L1; what it leaves comes back to the same directory.
    pub(crate) fn job(&mut self, name: &str, limit: Duration) -> Result<JobEnd> {
        self.qemu.say(&format!("job {name} {}", limit.as_secs()))?;
        let mut progress = Progress::start(name);
        // L1 itself ends a job that takes too long; if it cannot, L1 hangs.
        let end = Instant::now() + limit + Duration::from_secs(45);
        let alive = self.run.join(format!("jobs/{name}/alive"));
        let mut life = (String::new(), Instant::now());
        let status = loop {
            let line = self.qemu.line(Duration::from_millis(250))?;
            let words: Vec<&str> = line.as_deref().unwrap_or_default().split(' ').collect();
            match words[..] {
                ["done", job, status] if job == name => break status.parse().unwrap_or(-1),
                ["signal", "screendump", device, file] => {
                    let file = format!("jobs/{name}/{file}");
                    self.qemu.screendump(device, &file)?;
                    fs::write(self.run.join(format!("jobs/{name}/ack")), "")?;
                }
                _ if Instant::now() > end => bail!("L1 hangs: the job does not end"),
                _ => progress.tick(""),
            }
            let sign = files::text(&alive);
            if sign != life.0 {
                life = (sign, Instant::now());
            }
            if life.1.elapsed() > self.life {
                bail!("L1 hangs: no sign of life for {} s", self.life.as_secs());
            }
        };
        Ok(JobEnd { status, console: self.console() })
    }

    /// What the console has said since the last call.
    pub(crate) fn console(&mut self) -> String {
        let text = files::text(&self.run.join(CONSOLE));
        let new = text.get(self.console_seen..).unwrap_or_default().to_owned();
        self.console_seen = text.len();
        new
    }

    /// A shell in L1 on this terminal, until the user leaves it.
    pub(crate) fn shell(mut self, rows: u16, columns: u16) -> Result<()> {
        self.qemu.say(&format!("shell {rows} {columns}"))?;
        while !self.qemu.line(Duration::from_secs(1))?.is_some_and(|line| line.starts_with("done"))
        {
        }
        self.qemu.say("off")?;
        self.qemu.wait(Duration::from_secs(30))
    }
}

/// L1's initramfs: busybox, modules, init.
fn image(with: Ingredients<'_>) -> Result<PathBuf> {
    let path = with.paths.images().join(format!("l1-{}.cpio", with.kernel.package));
    let mut names = MODULES.to_vec();
    // A module of its own up to Linux 6.1.
    names.extend(["vfio_virqfd"].iter().filter(|name| with.kernel.modules.has(name)));
    let mut image = Initramfs::new();
    add_modules(&mut image, with.kernel, &names)?;
    add_later(&mut image, with.kernel)?;
    image.file("bin/busybox", &files::read(&with.tools.busybox)?);
    image.file("init", include_bytes!("l1/init.sh"));
    image.write(&path)?;
    Ok(path)
}

/// Puts modules and the order to load them in into an image.
pub(crate) fn add_modules(image: &mut Initramfs, kernel: &Kernel, names: &[&str]) -> Result<()> {
    let mut order = String::new();
    for (name, content) in kernel.modules.with_dependencies(names)? {
        image.file(&format!("modules/{name}.ko"), &content);
        order.push_str(&name);
        order.push('\n');
    }
    image.file("modules/order", order.as_bytes());
    Ok(())
}

/// Puts each of the other modules into an image with a list of its own of what to load for it.
fn add_later(image: &mut Initramfs, kernel: &Kernel) -> Result<()> {
    let mut there = BTreeSet::new();
    for name in LATER {
        let mut order = String::new();
        for (needed, content) in kernel.modules.with_dependencies(&[name])? {
            if there.insert(needed.clone()) {
                image.file(&format!("later/{needed}.ko"), &content);
            }
            order.push_str(&needed);
            order.push('\n');
        }
        image.file(&format!("later/{name}.order"), order.as_bytes());
    }
    Ok(())
}
