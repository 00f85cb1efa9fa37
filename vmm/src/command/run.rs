//! `strait run`: from words to meaning, then over to the builder.

pub(super) mod json;

use std::{env, ffi::OsString};

use strait_resources::{
    failure::Failure,
    host::{check, pci::HostFunction, smt, sysroot::Sysroot},
    names::Names,
};

use crate::{
    builder,
    cli::RunArgs,
    config::{RunConfig, twin},
    core_sched,
    looked::{self, Draft},
    report, smbios, tsc,
};

/// Runs the machine that was asked for.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failure> {
    let json = args.json;
    report::answered(json, run_or_refuse(args))
}

fn run_or_refuse(args: RunArgs) -> Result<u8, Failure> {
    if args.config.is_none() && !args.print_config {
        return go(args, None);
    }
    let line: Vec<OsString> = env::args_os().collect();
    let (print, path) = (args.print_config, args.config.clone());
    let (args, matches) = match path {
        Some(path) => twin::merged(&path, &line)?,
        None => (args, twin::parsed(&line)?),
    };
    let config = RunConfig::meaning(args.clone())?;
    let file = twin::print(&matches, &config.kernel.cmdline);
    if print {
        return report::out(&file).map(|()| 0);
    }
    go(args, Some(file))
}

/// `file` is what the words mean, when a file is among them.
fn go(args: RunArgs, file: Option<String>) -> Result<u8, Failure> {
    let (json, sysroot) = (args.json, Sysroot::at(&args.sysroot));
    let config = RunConfig::try_from(args)?;
    if !config.dry_run {
        return builder::run(&config, file);
    }
    let draft = looked::draft(&sysroot, &config)?;
    let names = Names::load(&sysroot);
    if json {
        report::json(&json::answer(&sysroot, &config, &draft, &names)?)?;
        return Ok(0);
    }
    let Draft { selection, plan, p2p, binding } = &draft;
    report::warnings(&binding.warnings);
    report::notes(&binding.take.iter().flat_map(would_be_taken).collect::<Vec<_>>());
    report::warnings(&selection.warnings);
    let (mut shown, told) = tsc::shown(&sysroot, &config);
    let host = smt::core_scheduling(&sysroot)?;
    report::notes(&core_sched::note(config.cpu.core_sched, host).into_iter().collect::<Vec<_>>());
    shown.smbios = smbios::spelt_out(&sysroot, &config);
    report::notes(&told.why().map(str::to_owned).into_iter().collect::<Vec<_>>());
    report::dry_run(&shown, &names, selection, plan, *p2p)?;
    Ok(0)
}

/// What would happen to one function.
fn would_be_taken(taking: &check::Taking) -> Vec<String> {
    let HostFunction { bdf, driver, .. } = &taking.function;
    let screen = taking.framebuffer.iter();
    let mut lines: Vec<String> = screen
        .map(|fb| format!("the host's framebuffer {} would let go of {bdf}", fb.name))
        .collect();
    if !taking.function.is_on_vfio() {
        let driver = driver.as_deref().unwrap_or("no driver");
        lines.push(format!("{bdf} would be taken from {driver}"));
    }
    lines
}
