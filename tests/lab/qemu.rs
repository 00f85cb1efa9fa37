//! L0's QEMU: started with pipes to L1's control port, asked for pictures over QMP, killed when dropped.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::{fd::AsRawFd, unix::net::UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::mpsc::{Receiver, RecvTimeoutError, channel},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

use crate::{files, hosts::Clock};

/// L1's kernel console on L0, in the directory of the boot.
pub(crate) const CONSOLE: &str = "l1-console.log";
/// QEMU's own words.
const MESSAGES: &str = "l0-qemu.log";

/// What to start besides the devices.
#[derive(Debug)]
pub(crate) struct Machine<'a> {
    /// The program.
    pub qemu: &'a Path,
    /// L1's kernel.
    pub kernel: &'a Path,
    /// L1's initramfs.
    pub initramfs: &'a Path,
    /// L1's kernel command line.
    pub append: String,
    /// MiB of memory of L1.
    pub memory_mib: u64,
    /// Directory of the boot: QEMU's working directory and L1's writable share.
    pub run: &'a Path,
    /// IOMMU and devices.
    pub devices: Vec<String>,
    /// How its CPUs are run.
    pub clock: Clock,
    /// What it is booted for.
    pub purpose: Purpose,
}

/// What an L1 is booted for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Scenarios: it is there at once.
    Scenarios,
    /// Measuring: L0 gives it all of its memory before it runs. Otherwise whoever is the first to use a page of L1 pays for
    /// two.
    Figures,
    /// Somebody at this terminal, which its third serial port is connected to.
    Terminal,
}

/// A running QEMU.
pub(crate) struct Qemu {
    child: Child,
    control: UnixStream,
    lines: Receiver<String>,
    run: PathBuf,
}

impl Qemu {
    /// Starts it and connects to the control port.
    pub(crate) fn start(machine: &Machine<'_>) -> Result<Self> {
        let run = machine.run;
        let mut arguments: Vec<String> = [
            "-M q35 -cpu max,family=25,model=1,stepping=1",
            match machine.clock {
                Clock::Instructions => "-accel tcg,thread=single -icount shift=0,sleep=off -smp 1",
                Clock::OneThread => "-accel tcg,thread=single -smp 2",
                Clock::Threads => "-accel tcg,thread=multi -smp 3",
            },
            "-display none -nodefaults -no-user-config -no-reboot",
            "-serial file:l1-console.log",
            "-chardev socket,id=control,path=control.sock,server=on,wait=off -serial chardev:control",
            "-qmp unix:qmp.sock,server=on,wait=off",
            "-fsdev local,id=host,path=/,security_model=none,readonly=on,multidevs=remap",
            "-device virtio-9p-pci,fsdev=host,mount_tag=host,bus=pcie.0,addr=02.0",
            "-fsdev local,id=lab,path=.,security_model=none,multidevs=remap",
            "-device virtio-9p-pci,fsdev=lab,mount_tag=lab,bus=pcie.0,addr=03.0",
        ]
        .iter()
        .flat_map(|line| line.split(' '))
        .map(str::to_owned)
        .collect();
        if machine.purpose == Purpose::Terminal {
            arguments.extend(
                ["-chardev", "stdio,id=terminal,signal=off", "-serial", "chardev:terminal"]
                    .map(str::to_owned),
            );
        }
        arguments.extend(["-m".to_owned(), format!("{}M", machine.memory_mib)]);
        if machine.purpose == Purpose::Figures {
            // Not by -mem-prealloc, which would fill large BARs, too.
            let size = machine.memory_mib;
            let ram = format!("memory-backend-ram,id=ram,size={size}M,prealloc=on");
            arguments
                .extend(["-object", &ram, "-machine", "memory-backend=ram"].map(str::to_owned));
        }
        for (option, value) in [
            ("-kernel", machine.kernel.display().to_string()),
            ("-initrd", machine.initramfs.display().to_string()),
            ("-append", machine.append.clone()),
        ] {
            arguments.extend([option.to_owned(), value]);
        }
        arguments.extend(machine.devices.iter().cloned());
        fs::write(run.join("l0-qemu.command"), arguments.join(" "))?;
        let messages = File::create(run.join(MESSAGES))?;
        let mut command = dies_with_us(machine.qemu);
        command.args(&arguments).current_dir(run).stderr(messages);
        if machine.purpose != Purpose::Terminal {
            command.stdin(Stdio::null()).stdout(Stdio::null());
        }
        let mut child = command.spawn().context("cannot start QEMU")?;
        let control = match connect(run, "control.sock", &mut child) {
            Ok(control) => control,
            Err(error) => {
                // Failing to kill what has already ended is no news.
                drop(child.kill());
                drop(child.wait());
                return Err(error.context(files::text(&run.join(MESSAGES))));
            }
        };
        let reader = BufReader::new(control.try_clone()?);
        let (sender, lines) = channel();
        thread::spawn(move || {
            for line in reader.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim().to_owned();
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Ok(Self { child, control, lines, run: run.to_path_buf() })
    }

    /// Says a line to L1's loop.
    pub(crate) fn say(&mut self, line: &str) -> Result<()> {
        self.control.write_all(format!("{line}\n").as_bytes()).context("L1's control port is gone")
    }

    /// The next line from L1's loop; `None` when it took too long.
    pub(crate) fn line(&mut self, wait: Duration) -> Result<Option<String>> {
        match self.lines.recv_timeout(wait) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => bail!(
                "L1 is gone; its last words: {}\n{}",
                last_lines(&self.run.join(CONSOLE), 5),
                last_lines(&self.run.join(MESSAGES), 5)
            ),
        }
    }

    /// QEMU's process, whose memory backends are L0's view of a device's memory.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Saves what the display of this device shows, as PPM; the file is relative to the boot's directory.
    pub(crate) fn screendump(&mut self, device: &str, file: &str) -> Result<()> {
        let mut socket = connect(&self.run, "qmp.sock", &mut self.child)?;
        socket.set_read_timeout(Some(Duration::from_secs(20)))?;
        let mut reader = BufReader::new(socket.try_clone()?);
        let mut ask = |request: &Value| -> Result<Value> {
            socket.write_all(format!("{request}\n").as_bytes())?;
            loop {
                let mut line = String::new();
                ensure!(reader.read_line(&mut line)? > 0, "QMP closed");
                let answer: Value = serde_json::from_str(&line)?;
                if answer.get("error").is_some() {
                    bail!("QMP: {answer}");
                }
                // The greeting and events come in between.
                if answer.get("return").is_some() {
                    return Ok(answer);
                }
            }
        };
        ask(&json!({"execute": "qmp_capabilities"}))?;
        ask(&json!({"execute": "screendump",
            "arguments": {"filename": file, "device": device, "format": "ppm"}}))?;
        Ok(())
    }

    /// Waits until QEMU has ended by itself.
    pub(crate) fn wait(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while Instant::now() < end {
            if self.child.try_wait()?.is_some() {
                return Ok(());
            }
            thread::sleep(Duration::from_millis(50));
        }
        bail!("QEMU did not end")
    }
}

impl Drop for Qemu {
    fn drop(&mut self) {
        // Killing or reaping fails only when it is already gone.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A command that the kernel ends with the lab, however that ends: an orphaned QEMU would keep gigabytes and a CPU.
fn dies_with_us(program: &Path) -> Command {
    match files::program("setpriv") {
        Some(setpriv) => {
            let mut command = Command::new(setpriv);
            command.args(["--pdeathsig", "KILL", "--"]).arg(program);
            command
        }
        None => Command::new(program),
    }
}

/// Connects to a socket in the directory of the boot; through /proc, because the path of a socket is at most 107 bytes
/// long and the repository may lie deep.
fn connect(run: &Path, name: &str, child: &mut Child) -> Result<UnixStream> {
    let directory = File::open(run)?;
    let path = format!("/proc/self/fd/{}/{name}", directory.as_raw_fd());
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(&path) {
            Ok(stream) => return Ok(stream),
            Err(_) if Instant::now() < end => {
                if let Some(status) = child.try_wait()? {
                    bail!("QEMU ended at once: {status}");
                }
                thread::sleep(Duration::from_millis(20));
            }
            Err(error) => return Err(error).with_context(|| format!("cannot connect to {name}")),
        }
    }
}

/// The end of a log, in one line.
fn last_lines(path: &Path, count: usize) -> String {
    let text = files::text(path);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join(" / ")
}
