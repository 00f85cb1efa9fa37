//! `strait run`: from words to meaning, then over to the builder.

use std::{env, ffi::OsString};

use strait_resources::failure::Failure;

use crate::{
    builder,
    cli::RunArgs,
    config::{RunConfig, twin},
    report,
};

/// Runs the machine that was asked for.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failure> {
    if args.config.is_none() && !args.print_config {
        return builder::run(&RunConfig::try_from(args)?);
    }
    let line: Vec<OsString> = env::args_os().collect();
    let (print, path) = (args.print_config, args.config.clone());
    let (args, matches) = match path {
        Some(path) => twin::merged(&path, &line)?,
        None => (args, twin::parsed(&line)?),
    };
    if !print {
        return builder::run(&RunConfig::try_from(args)?);
    }
    let config = RunConfig::meaning(args)?;
    report::out(&twin::print(&matches, &config.kernel.cmdline))?;
    Ok(0)
}
