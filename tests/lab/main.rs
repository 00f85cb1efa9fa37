//! The lab: strait on an emulated host with a real KVM, a real VFIO and a real IOMMU.
//!
//! Three levels. **L0** is this machine: it runs QEMU, which emulates a PC with virtualization extensions, an
//! IOMMU and PCI devices. **L1** is that PC with a stock Debian kernel: strait runs there. **L2** is strait's
//! guest, the same stock kernel with passed devices, and as its init the agent (`agent/`), which does a
//! scenario's steps and reports on the serial console.
//!
//! `scenarios/` says what is shown; `runner` boots hosts, runs jobs and judges; everything made lies in
//! `target/lab`, the consoles of all levels in `target/lab/logs/SCENARIO`.

mod bench;
mod builds;
mod bzimage;
mod cargo;
mod checkers;
mod demo;
mod fetch;
mod files;
mod fuzz;
mod here;
mod hosts;
mod initramfs;
mod known;
mod l1;
mod memory;
mod modules;
mod monitor;
mod outcome;
mod paths;
mod picture;
mod progress;
mod qemu;
mod report;
mod runner;
mod scenario;
mod scenarios;
mod shell;
mod truth;
#[path = "agent/words.rs"]
mod words;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Result;
use clap::{Parser, Subcommand};

use crate::{
    fetch::{Kernel, Tools},
    l1::Ingredients,
    monitor::Monitor,
    paths::Paths,
    progress::result,
    report::Report,
    runner::{Options, Runner},
    scenario::Scenario,
};

/// strait, shown on an emulated host: no special hardware needed.
#[derive(Debug, Parser)]
#[command(name = "cargo lab")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// A guest draws its console on a passed GPU; the picture goes to target/lab/demo.png.
    Demo {
        /// The monitor.
        #[arg(long, value_enum, default_value = "strait", hide = true)]
        monitor: Monitor,
    },
    /// Run the tests: formatting, lints, unit tests, then the scenarios.
    Test {
        /// Only those whose name contains one of these.
        filter: Vec<String>,
        /// Say what there is, run nothing.
        #[arg(long)]
        list: bool,
        /// Use this machine's real device instead of the emulated host, e.g. 0000:3b:00.0.
        #[arg(long, value_name = "BDF")]
        vfio: Option<String>,
        /// Show the guests' whole kernel log in their consoles.
        #[arg(long)]
        verbose: bool,
        /// The monitor to test; another one tells a wrong scenario from a wrong strait.
        #[arg(long, value_enum, default_value = "strait", hide = true)]
        monitor: Monitor,
    },
    /// Measure strait against QEMU on the emulated host; results go to target/lab/bench.json.
    ///
    /// STRAIT_BENCH_OTHER names more monitors, one a line: NAME:PROGRAM ARGUMENT..., with {kernel}, {initramfs}, {cmdline},
    /// {cpus}, {memory} (MiB), and [... {bdf} ...] once for each device.
    Bench(bench::Arguments),
    /// Fuzz what strangers can hand to strait: files, words, and what a guest does to its devices.
    Fuzz(fuzz::Arguments),
    /// A prompt on the emulated host, with strait on PATH and the devices bound to vfio-pci.
    Shell,
    /// Run strait once on the emulated host, with the given arguments, on this terminal.
    Run {
        /// strait's arguments.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        arguments: Vec<String>,
    },
}

fn main() -> ExitCode {
    match run(Arguments::parse().command) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            progress::say(format!("error: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<bool> {
    let paths = Paths::new();
    let _lock = paths.lock()?;
    match command {
        Command::Test { filter, list, vfio, verbose, monitor } => {
            let wanted =
                |name: &str| filter.is_empty() || filter.iter().any(|part| name.contains(part));
            let scenarios: Vec<Scenario> = match &vfio {
                Some(_) => scenarios::real(),
                None => scenarios::all(),
            };
            runner::check_names(&scenarios)?;
            if list {
                return Ok(show(&scenarios, &fuzz::tests(&paths)?, wanted));
            }
            let chosen: Vec<Scenario> = scenarios
                .into_iter()
                .filter(|scenario| match scenario.nightly {
                    true => filter.contains(&scenario.name),
                    false => wanted(&scenario.name),
                })
                .collect();
            let mut report = Report::default();
            if wanted(cargo::TESTS) {
                // A test asks iasl; without it the test would be skipped.
                fetch::tools()?;
            }
            cargo::run(&paths, wanted, &mut report);
            if vfio.is_none() {
                fuzz::test(&paths, wanted, &mut report)?;
            }
            if !chosen.is_empty() {
                let stock = Stock::prepare(&paths, monitor)?;
                if let (Some(_), Some(strait)) = (&vfio, &stock.strait) {
                    here::prepare(&paths, strait)?;
                }
                Runner::new(stock.ingredients(&paths), Options { monitor, verbose }, vfio)
                    .run(&chosen, &mut report);
            }
            Ok(report.finish())
        }
        Command::Bench(arguments) => {
            if !bench::listed(&arguments) {
                let stock = Stock::prepare(&paths, Monitor::Strait)?;
                bench::run(stock.ingredients(&paths), &arguments)?;
            }
            Ok(true)
        }
        Command::Fuzz(arguments) => fuzz::run(&paths, &arguments),
        Command::Demo { monitor } => {
            let stock = Stock::prepare(&paths, monitor)?;
            demo::demo(stock.ingredients(&paths), Options { monitor, verbose: false })
        }
        Command::Shell => {
            let stock = Stock::prepare(&paths, Monitor::Strait)?;
            shell::shell(stock.ingredients(&paths), None)?;
            Ok(true)
        }
        Command::Run { arguments } => {
            let stock = Stock::prepare(&paths, Monitor::Strait)?;
            shell::shell(stock.ingredients(&paths), Some(&arguments))?;
            Ok(true)
        }
    }
}

fn show(scenarios: &[Scenario], fuzz: &[String], wanted: impl Fn(&str) -> bool) -> bool {
    let programs = cargo::names().map(str::to_owned).chain(fuzz.iter().cloned());
    for name in programs.filter(|name| wanted(name)) {
        result(name);
    }
    for scenario in scenarios.iter().filter(|scenario| wanted(&scenario.name)) {
        let host = hosts::Host::of(scenario.host).name;
        let nightly = if scenario.nightly { ", only by its whole name" } else { "" };
        result(format!("{:<28} {} [{host}{nightly}]", scenario.name, scenario.about));
    }
    true
}

/// Everything found, fetched and built.
struct Stock {
    tools: Tools,
    kernel: Kernel,
    agent: PathBuf,
    strait: Option<PathBuf>,
}

impl Stock {
    fn prepare(paths: &Paths, monitor: Monitor) -> Result<Self> {
        let tools = fetch::tools()?;
        let kernel = fetch::kernel(paths)?;
        let agent = builds::agent(paths)?;
        let strait = match monitor {
            Monitor::Strait => Some(builds::strait(paths)?),
            Monitor::Qemu => None,
        };
        Ok(Self { tools, kernel, agent, strait })
    }

    fn ingredients<'a>(&'a self, paths: &'a Paths) -> Ingredients<'a> {
        Ingredients {
            paths,
            tools: &self.tools,
            kernel: &self.kernel,
            agent: &self.agent,
            strait: self.strait.as_deref(),
        }
    }
}
