//! `strait completions` and `strait man`: made from the definition of the command line, so they know all of it.

use std::{fs, io, path::Path};

use clap::CommandFactory as _;
use clap_complete::shells::{Bash, Fish, Zsh};
use strait_resources::{codes, failure::Failure};

use crate::{
    cli::{Cli, CompletionsArgs, ManArgs, Shell},
    report,
};

/// Prints the script.
pub(crate) fn completions(args: &CompletionsArgs) -> Result<u8, Failure> {
    let (mut cli, mut script) = (Cli::command(), Vec::new());
    match args.shell {
        Shell::Bash => clap_complete::generate(Bash, &mut cli, "strait", &mut script),
        Shell::Zsh => clap_complete::generate(Zsh, &mut cli, "strait", &mut script),
        Shell::Fish => clap_complete::generate(Fish, &mut cli, "strait", &mut script),
    }
    report::out(&String::from_utf8_lossy(&script))?;
    Ok(0)
}

/// Prints the first page, or writes all of them.
pub(crate) fn man(args: &ManArgs) -> Result<u8, Failure> {
    match &args.directory {
        Some(directory) => {
            let written = fs::create_dir_all(directory)
                .and_then(|()| clap_mangen::generate_to(Cli::command(), directory));
            written.map_err(|error| cannot_write(directory, error))?;
        }
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(Cli::command())
                .render(&mut page)
                .map_err(|error| cannot_write(Path::new("-"), error))?;
            report::out(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(0)
}

fn cannot_write(path: &Path, error: io::Error) -> Failure {
    let cause = format!("manual pages cannot be written to {}", path.display());
    Failure::new(&codes::E2101, cause, "name a directory that is yours").source(error)
}
