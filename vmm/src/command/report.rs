//! `strait report`: everything that a bug report needs, in one archive, without what tells whose host it is.

use std::{
    ffi::OsString,
    fs::OpenOptions,
    io,
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;
use strait_resources::{
    bdf::Bdf,
    codes,
    failure::Failure,
    host::{
        kernel_log::KernelLog,
        pci::{self, HostFunction},
        sysroot::{SysError, Sysroot},
    },
    names::Names,
    size::Size,
};

use super::{devices, doctor, inspect, run};
use crate::{
    bundle::{Bundle, redact::Redactor},
    cli::ReportArgs,
    config::{RunConfig, twin},
    inspect::{guest::Guest, socket},
    looked,
    report::{self, QUIET, STRONG},
};

const FILE: &str = "strait-report.tar.gz";
const SCHEMA: &str = "strait.report/1";

/// What `--json` answers; the document is docs/json.md.
#[derive(Serialize)]
struct Answer {
    schema: &'static str,
    file: Option<String>,
    contents: Vec<Content>,
    replaced: Vec<String>,
}

#[derive(Serialize)]
struct Content {
    name: String,
    about: &'static str,
    size: usize,
}

/// Collects and writes.
pub(crate) fn run(args: &ReportArgs) -> Result<u8, Failure> {
    let sysroot = Sysroot::at(&args.answer.sysroot);
    let to_stdout = args.output.as_deref() == Some(Path::new("-"));
    let path = args.output.clone().unwrap_or_else(|| PathBuf::from(FILE));
    if !to_stdout && path.exists() {
        let cause = format!("{} exists", path.display());
        let fix = "name another file with --output, or remove that one";
        return Err(Failure::new(&codes::E2101, cause, fix));
    }
    let guests = match &args.vm {
        Some(word) => vec![inspect::find(&sysroot, Some(word))?],
        None => running(&sysroot)?,
    };
    let bundle = collect(&sysroot, &guests)?;
    let cannot = |error: io::Error| {
        let cause = format!("{} cannot be written", path.display());
        Failure::new(&codes::E2101, cause, "name a place that is yours with --output").source(error)
    };
    if to_stdout {
        return bundle.write(io::stdout().lock()).map(|()| 0).map_err(cannot);
    }
    // The kernel log in it was root's.
    let file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(cannot)?;
    bundle.write(file).map_err(cannot)?;
    match args.answer.json {
        true => report::json(&answer(&path, &bundle)),
        false => report::out(&render(&path, &bundle)),
    }?;
    Ok(0)
}

/// Every guest that answers.
fn running(sysroot: &Sysroot) -> Result<Vec<Guest>, Failure> {
    let mut guests = Vec::new();
    for process in socket::running(sysroot)? {
        match socket::ask(sysroot, process) {
            Ok(guest) => guests.push(guest),
            Err(failure) => report::warnings(&[failure]),
        }
    }
    Ok(guests)
}

fn collect(sysroot: &Sysroot, guests: &[Guest]) -> Result<Bundle, Failure> {
    let mut bundle = Bundle::new(Redactor::of_host(sysroot)?);
    let mut passed: Vec<HostFunction> = Vec::new();
    for device in guests.iter().flat_map(|guest| &guest.devices) {
        passed.extend(pci::find(sysroot, device.host)?);
    }
    let text = |path: &str| sysroot.read_if_present(path).map(|text| text.unwrap_or_default());
    bundle.add_text(
        "versions.txt",
        "strait, kernel, distribution, CPU, firmware",
        &versions(sysroot)?,
    );
    bundle.add_text(
        "cmdline.txt",
        "the host kernel's command line",
        &(text("/proc/cmdline")? + "\n"),
    );
    let about = "strait devices --json";
    bundle.add_json("devices.json", about, devices::answer(sysroot)?);
    let about = "strait doctor --json with the guests' devices";
    bundle.add_json("doctor.json", about, doctor::answer(sysroot, &passed)?);
    let log = kernel_log(sysroot, &passed.iter().map(|function| function.bdf).collect::<Vec<_>>());
    bundle.add_text("kernel-log.txt", "the kernel log, as far as it is about them", &log);
    for guest in guests {
        if let Some(config) = config(guest) {
            let plan = plan(sysroot, &config);
            let name = format!("guest-{}.toml", guest.pid);
            bundle.add_text(name, "a guest's configuration", &config);
            let name = format!("guest-{}-plan.json", guest.pid);
            bundle.add_json(name, "its machine, as strait run --dry-run --json", plan?);
        }
        let name = format!("guest-{}.json", guest.pid);
        bundle.add_json(name, "strait inspect --json", inspect::answer(sysroot, guest.clone())?);
    }
    Ok(bundle)
}

/// What success depends on.
fn versions(sysroot: &Sysroot) -> Result<String, SysError> {
    let text = |path: &str| sysroot.read_if_present(path).map(|text| text.unwrap_or_default());
    let field = |text: &str, name: &str, by: char| {
        let mut lines = text.lines().filter_map(|line| line.split_once(by));
        let found = lines.find(|(key, _)| key.trim() == name);
        found.map_or("unknown", |(_, value)| value.trim().trim_matches('"')).to_owned()
    };
    let (cpu, system) = (text("/proc/cpuinfo")?, text("/etc/os-release")?);
    let dmi = |file: &str| text(&format!("/sys/class/dmi/id/{file}"));
    Ok(format!(
        "strait        {}\nkernel        {} {}\ndistribution  {}\nCPU           {}\nmicrocode     {}\n\
         board         {} {}\nfirmware      {} {} {}\n",
        env!("CARGO_PKG_VERSION"),
        text("/proc/sys/kernel/osrelease")?,
        text("/proc/sys/kernel/version")?,
        field(&system, "PRETTY_NAME", '='),
        field(&cpu, "model name", ':'),
        field(&cpu, "microcode", ':'),
        dmi("board_vendor")?,
        dmi("board_name")?,
        dmi("bios_vendor")?,
        dmi("bios_version")?,
        dmi("bios_date")?,
    ))
}

/// Lines about passed functions, and about what passes them.
fn kernel_log(sysroot: &Sysroot, passed: &[Bdf]) -> String {
    const SUBJECTS: &[&str] = &["vfio", "VFIO", "iommu", "DMAR", "AMD-Vi", "kvm", "AER:"];
    let Some(log) = KernelLog::read(sysroot) else {
        return "It can be read by root only: run strait report with sudo.\n".to_owned();
    };
    let about: Vec<&str> = passed.iter().flat_map(|bdf| log.about(*bdf)).collect();
    let lines = log.messages().iter().filter(|line| {
        about.contains(&line.as_str()) || SUBJECTS.iter().any(|subject| line.contains(subject))
    });
    lines.map(|line| format!("{line}\n")).collect()
}

/// The machine that a configuration means on this host, or why it would be refused now.
fn plan(sysroot: &Sysroot, config: &str) -> Result<Value, Failure> {
    let answer = twin::understood(config).and_then(|args| {
        let config = RunConfig::meaning(args)?;
        let draft = looked::draft_of_running(sysroot, &config)?;
        run::json::answer(sysroot, &config, &draft, &Names::load(sysroot))
    });
    match answer {
        Ok(answer) => to_value(&answer),
        Err(failure) => to_value(&report::failure_answer(&failure)),
    }
}

/// What it was started with, as a file for --config; `None` when its command line is none of this version's.
fn config(guest: &Guest) -> Option<String> {
    if guest.config.is_some() {
        return guest.config.clone();
    }
    let line: Vec<OsString> = guest.command.iter().map(OsString::from).collect();
    let matches = twin::parsed(&line).ok()?;
    if matches.get_raw("config").is_some() {
        return None;
    }
    let cmdline = matches.get_one::<String>("cmdline").cloned().unwrap_or_default();
    Some(twin::print(&matches, &cmdline))
}

fn answer(path: &Path, bundle: &Bundle) -> Answer {
    let content = |document: &crate::bundle::Document| Content {
        name: document.name.clone(),
        about: document.about,
        size: document.text.len(),
    };
    Answer {
        schema: SCHEMA,
        file: Some(path.display().to_string()),
        contents: bundle.documents().iter().map(content).collect(),
        replaced: bundle.replaced(),
    }
}

fn render(path: &Path, bundle: &Bundle) -> String {
    let mut text = format!("{STRONG}{}{STRONG:#} holds\n", path.display());
    for document in bundle.documents() {
        let size = Size(document.text.len() as u64).to_string();
        text.push_str(&format!(
            "  {:20} {size:>10}  {QUIET}{}{QUIET:#}\n",
            document.name, document.about
        ));
    }
    let replaced = bundle.replaced();
    match replaced.as_slice() {
        [] => text.push_str("Nothing had to be replaced in it.\n"),
        kinds => text.push_str(&format!("Replaced in it: {}.\n", kinds.join(", "))),
    }
    text.push_str("Look into it before you send it.\n");
    text
}

/// For commands whose answer goes into an archive.
pub(super) fn to_value(answer: &impl Serialize) -> Result<Value, Failure> {
    serde_json::to_value(answer).map_err(|error| {
        let fix = "please report this";
        Failure::new(&codes::E9001, "an answer cannot be written as JSON", fix).source(error)
    })
}
