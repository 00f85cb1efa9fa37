//! `strait bench`: what a passed device costs. The same work on the host and in a guest of each monitor, interleaved.
//!
//! - `guest` and `work`: the work itself, by this same program as a guest's init or as a child on the host; `said`: its words.
//! - `image`, `modules`: the guest's initramfs. `monitor`: the command lines.
//! - `watch`, `exits`, `delivery`: one run, seen from outside. `result`, `stats`: figures of all runs.
//! - `table`, `html`, `svg`: for people. `compare`: two results.

mod compare;
mod delivery;
mod exits;
mod guest;
mod html;
mod image;
mod modules;
mod monitor;
mod place;
mod result;
mod said;
mod stats;
mod svg;
mod table;
mod watch;
mod work;

use std::{env, fs, path::PathBuf, process::Command, time::Duration};

use strait_resources::{
    codes,
    failure::Failure,
    host::{check, check::Allowed, pci::HostFunction, sysroot::Sysroot},
    journal::Kind,
    names::Names,
};

use guest::Network;
pub(crate) use guest::run as guest;

use self::{
    delivery::{Delivered, Delivery},
    exits::Counter,
    monitor::{Guest, Monitor},
    place::Place,
    result::{Contender, Device, Host, Report, SCHEMA, Settings, middle, rows, steps},
    watch::{Files, Meters, Seen},
};
use crate::{
    binding::{Binder, Guard, Wishes},
    builder::internal,
    cli::{BenchArgs, BenchCommand},
    config, phases, report, signals,
};

/// Single operations that are timed, in each run.
const OPERATIONS: u32 = 2000;
/// How long a rate is measured.
const RATE_MS: u64 = 1000;
/// Runs that warm caches up and are not counted.
const WARM_UP: u32 = 1;
/// Longer than this is no start.
const LIMIT: Duration = Duration::from_secs(300);

/// Measures, or compares what was measured.
pub(crate) fn run(args: &BenchArgs) -> Result<u8, Failure> {
    if let Some(BenchCommand::Compare(compare)) = &args.command {
        return compare::run(compare);
    }
    let bench = Bench::plan(args)?;
    let report = bench.run()?;
    let directory = bench.place.output.clone();
    let write = |name: &str, text: &str| {
        let path = directory.join(name);
        fs::write(&path, text).map_err(|error| place::cannot_write(&path, error))
    };
    let json = serde_json::to_string_pretty(&report)
        .map_err(|error| internal("writing the result")(error.into()))?;
    write("report.json", &(json + "\n"))?;
    write("report.html", &html::render(&report))?;
    if args.json {
        report::json(&report)?;
    } else {
        report::out(&table::render(&report, report::columns()))?;
        let shown = directory.display();
        report::out(&format!("\n{shown}/report.html  {shown}/report.json\n"))?;
    }
    Ok(0)
}

/// Everything looked at, nothing touched yet.
struct Bench {
    binder: Binder,
    function: HostFunction,
    peers: Vec<(Monitor, PathBuf)>,
    guest: Guest,
    place: Place,
    runs: u32,
    workload: Option<String>,
    network: Option<Network>,
    notes: Vec<String>,
    /// The host's own driver has the device: the host is measured, too.
    on_host: bool,
}

impl Bench {
    fn plan(args: &BenchArgs) -> Result<Self, Failure> {
        let network = args.peer.as_deref().map(Network::parse).transpose()?;
        let binder = Binder::host();
        let sysroot = Sysroot::host();
        let word = args.vfio.clone().into_iter().collect::<Vec<_>>();
        let mut functions = check::select(&sysroot, &word)?;
        if functions.len() > 1 {
            let list = functions.iter().map(|f| f.bdf.to_string()).collect::<Vec<_>>().join(", ");
            let cause = format!("--vfio {} is {} functions: {list}", word[0], functions.len());
            return Err(Failure::new(
                &codes::E2003,
                cause,
                "name one of them: it is measured, and its group comes along",
            ));
        }
        let Some(function) = functions.pop() else {
            let fix = "strait devices --assignable lists what a guest can have";
            return Err(Failure::new(&codes::E2001, "--vfio is missing", fix));
        };
        let mut peers = Vec::new();
        for name in args.against.iter().filter(|name| !name.is_empty()) {
            let monitor = Monitor::peer(name)?;
            let Some(program) = monitor.program() else {
                let cause = format!("--against {name}: this host has no {name}");
                return Err(Failure::new(
                    &codes::E2152,
                    cause,
                    format!("install {name}, or leave it out"),
                ));
            };
            if peers.iter().all(|(known, _)| *known != monitor) {
                peers.push((monitor, program));
            }
        }
        let memory = config::memory_size(&args.memory)?;
        let place = Place::find(args, &function)?;
        let on_host = !function.is_on_vfio() && function.driver.is_some();
        let mut notes = Vec::new();
        if !on_host {
            let driver = function.driver.as_deref().unwrap_or("no driver");
            notes.push(format!(
                "host: not measured, as the device is on {driver}; strait unbind {} gives it back to its own driver",
                function.bdf
            ));
        }
        notes.extend(
            peers
                .iter()
                .flat_map(|(monitor, _)| monitor.differences())
                .map(|&text| text.to_owned()),
        );
        binder.need_root("strait bench")?;
        check::host(&sysroot)?;
        check::kvm(&sysroot)?;
        check::memory(&sysroot, memory)?;
        check::memlock(&sysroot, memory)?;
        // What the host uses is refused now, before it is measured at length.
        binder.plan(std::slice::from_ref(&function), &Allowed::default())?;
        let guest = Guest {
            kernel: place.kernel.clone(),
            initramfs: place.scratch().join("initramfs"),
            cmdline: "console=ttyS0 quiet loglevel=3 rdinit=/strait -- bench-guest /task.json"
                .to_owned(),
            memory_mib: memory >> 20,
            cpus: 1,
            bdf: function.bdf,
        };
        let workload = args.workload.clone();
        Ok(Self {
            network,
            binder,
            function,
            peers,
            guest,
            place,
            runs: args.runs,
            workload,
            notes,
            on_host,
        })
    }

    fn run(&self) -> Result<Report, Failure> {
        self.place.prepare(&self.function, self.workload.as_deref(), self.network, &self.guest)?;
        // A signal must not end strait between two drivers; it ends the guest, and that ends the bench.
        signals::hold().map_err(internal("installing a signal handler"))?;
        let mut notes = self.notes.clone();
        let mut all: Vec<(String, Vec<Seen>)> =
            self.names().into_iter().map(|name| (name.to_owned(), Vec::new())).collect();
        let mut binding: [Vec<f64>; 2] = Default::default();
        for round in 0..WARM_UP + self.runs {
            let counted = round >= WARM_UP;
            let mut keep = |name: &str, seen: Seen| {
                for note in seen.notes.iter().map(|note| format!("{name}: {note}")) {
                    if !notes.contains(&note) {
                        notes.push(note);
                    }
                }
                if let Some((_, runs)) = all.iter_mut().find(|(known, _)| known == name)
                    && counted
                {
                    runs.push(seen);
                }
            };
            if self.on_host {
                keep("host", self.host(round)?);
            }
            let begin = phases::now();
            let guard = self.take()?;
            let taken = phases::now() - begin;
            // Who comes first turns with the rounds.
            let mut monitors = vec![(Monitor::Strait, PathBuf::from("/proc/self/exe"))];
            monitors.extend(self.peers.iter().cloned());
            let turn = round as usize % monitors.len();
            monitors.rotate_left(turn);
            for (monitor, program) in monitors {
                keep(monitor.name(), self.one(monitor, &program, round)?);
            }
            let begin = phases::now();
            drop(guard);
            if counted && self.on_host {
                binding[0].push(taken);
                binding[1].push(phases::now() - begin);
            }
        }
        Ok(self.report(&all, &binding, notes))
    }

    fn names(&self) -> Vec<&'static str> {
        let peers = self.peers.iter().map(|(monitor, _)| monitor.name());
        let host = self.on_host.then_some("host");
        std::iter::once("strait").chain(peers).chain(host).collect()
    }

    /// The device and what shares its group, taken from the host until the guard is dropped.
    fn take(&self) -> Result<Option<Guard>, Failure> {
        let lock = self.binder.lock()?;
        let allowed = Allowed::default();
        let planned = self.binder.plan(std::slice::from_ref(&self.function), &allowed)?;
        if planned.take.is_empty() {
            return Ok(None);
        }
        self.binder.take(&lock, Kind::Bind, &planned, &[], &Wishes::default()).map(Some)
    }

    fn host(&self, round: u32) -> Result<Seen, Failure> {
        self.place.progress(round, WARM_UP + self.runs, "host");
        let mut command = Command::new("/proc/self/exe");
        command.arg("bench-guest").arg(self.place.scratch().join("host.json"));
        self.watched("host", command, Meters::default(), round)
    }

    fn one(
        &self,
        monitor: Monitor,
        program: &std::path::Path,
        round: u32,
    ) -> Result<Seen, Failure> {
        self.place.progress(round, WARM_UP + self.runs, monitor.name());
        let mut command = Command::new(program);
        command.args(monitor.arguments(&self.guest));
        let (counter, delivery) = (Counter::arm(), Delivery::arm(self.function.bdf));
        let meters = Meters { exits: counter.as_ref().ok(), interrupts: delivery.as_ref().ok() };
        let mut seen = self.watched(monitor.name(), command, meters, round)?;
        if let Err(why) = counter {
            seen.notes.push(format!("exits: not counted: {why}"));
        }
        match delivery {
            Err(why) => seen.notes.push(format!("interrupts: not timed: {why}")),
            Ok(_) => seen.notes.extend(seen.delivered.as_ref().and_then(Delivered::missing)),
        }
        Ok(seen)
    }

    fn phases(&self) -> PathBuf {
        self.place.scratch().join("phases.json")
    }

    fn watched(
        &self,
        name: &str,
        mut command: Command,
        meters: Meters<'_>,
        round: u32,
    ) -> Result<Seen, Failure> {
        let phases = self.phases();
        // From the run before, which may have been another monitor's.
        if phases.exists() {
            fs::remove_file(&phases).map_err(|error| place::cannot_write(&phases, error))?;
        }
        let file = fs::File::create_new(&phases);
        let file = file.map_err(|error| place::cannot_write(&phases, error))?;
        phases::hand_over(&file, &mut command).map_err(internal("handing a file over"))?;
        let log = self.place.scratch().join(format!("{name}-{round}.log"));
        let seen = watch::run(command, &Files { log: &log, phases: &phases }, meters, LIMIT)
            .map_err(internal("watching a run"))?;
        drop(file);
        if signals::have_come() {
            let cause = "strait bench was told to end";
            return Err(Failure::new(
                &codes::E8051,
                cause,
                "the device went back to its driver; start it again",
            ));
        }
        match &seen.failed {
            None => Ok(seen),
            Some(why) => {
                let cause = format!("{name} did not come to the end of the work: {why}");
                let fix = format!("its output is in {} and, beside it, .err", log.display());
                Err(Failure::new(&codes::E8051, cause, fix))
            }
        }
    }

    fn report(
        &self,
        all: &[(String, Vec<Seen>)],
        binding: &[Vec<f64>; 2],
        notes: Vec<String>,
    ) -> Report {
        let names = Names::load(&Sysroot::host());
        let function = &self.function;
        let mut rows = rows(all, self.guest.memory_mib, OPERATIONS);
        for ((id, title), samples) in [
            ("host.bind", "device from its driver to vfio-pci"),
            ("host.give-back", "device back to its driver"),
        ]
        .into_iter()
        .zip(binding)
        {
            if let Some(summary) = stats::Summary::of(samples.clone()) {
                let results = [("strait".to_owned(), summary)].into_iter().collect();
                let (id, title, unit) = (id.to_owned(), title.to_owned(), "s".to_owned());
                rows.push(result::Row { id, title, unit, less_is_better: Some(true), results });
            }
        }
        let contenders = all.iter().map(|(name, seen)| self.contender(name, seen)).collect();
        Report {
            schema: SCHEMA.to_owned(),
            date: place::date(),
            command: env::args().collect(),
            host: Host {
                name: place::text("/proc/sys/kernel/hostname"),
                kernel: place::text("/proc/sys/kernel/osrelease"),
                cpu: place::cpu_model(),
                cpus: std::thread::available_parallelism().map_or(1, usize::from),
            },
            device: Device {
                bdf: function.bdf.to_string(),
                id: function.id(),
                name: names.function(function),
            },
            settings: Settings {
                runs: self.runs,
                warm_up: WARM_UP,
                memory: self.guest.memory_mib << 20,
                cpus: self.guest.cpus,
                kernel: self.guest.kernel.display().to_string(),
                workload: self.workload.clone(),
            },
            contenders,
            rows,
            notes,
        }
    }

    fn contender(&self, name: &str, seen: &[Seen]) -> Contender {
        let mut monitors = vec![(Monitor::Strait, PathBuf::from("strait"))];
        monitors.extend(self.peers.iter().cloned());
        let monitor = monitors.into_iter().find(|(monitor, _)| monitor.name() == name);
        let (version, command) = match monitor {
            Some((Monitor::Strait, _)) => {
                let mut words = Monitor::Strait.arguments(&self.guest);
                words.insert(0, "strait".to_owned());
                (format!("strait {}", env!("CARGO_PKG_VERSION")), words)
            }
            Some((monitor, program)) => {
                let mut words = monitor.arguments(&self.guest);
                words.insert(0, program.display().to_string());
                (monitor.version(&program), words)
            }
            None => {
                let driver = self.function.driver.clone().unwrap_or_default();
                (
                    format!("driver {driver}"),
                    ["strait", "bench-guest", "host.json"].map(str::to_owned).to_vec(),
                )
            }
        };
        let middle = middle(seen);
        Contender {
            name: name.to_owned(),
            version,
            command,
            latency: middle.map(|seen| seen.latency.clone()).unwrap_or_default(),
            exits: middle.and_then(|seen| seen.exits.clone()),
            start: if name == "host" { Vec::new() } else { steps(seen) },
        }
    }
}
