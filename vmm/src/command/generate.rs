//! `strait completions` and `strait man`: made from the definition of the command line, so they know all of it.

use std::{fs, io, path::Path};

use clap::{Command, CommandFactory as _};
use clap_complete::shells::{Bash, Fish, Zsh};
use clap_mangen::Man;
use strait_resources::{codes, failure::Failure};

use crate::{
    cli::{Cli, CompletionsArgs, ManArgs, Shell},
    files, report,
};

/// In the pages' last line: when this version's were made. The day of the build would make every build another one.
const DATE: &str = "2026-11-21";

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
            let mut cli = Cli::command().disable_help_subcommand(true);
            cli.build();
            files::make_for_everybody();
            let written = fs::create_dir_all(directory).and_then(|()| write_pages(&cli, directory));
            written.map_err(|error| cannot_write(directory, error))?;
        }
        None => {
            let mut page = Vec::new();
            page_of(Cli::command())
                .render(&mut page)
                .map_err(|error| cannot_write(Path::new("-"), error))?;
            report::out(&String::from_utf8_lossy(&page))?;
        }
    }
    Ok(0)
}

/// Of a command and of all below it.
fn write_pages(command: &Command, directory: &Path) -> io::Result<()> {
    for below in command.get_subcommands().filter(|below| !below.is_hide_set()) {
        write_pages(below, directory)?;
    }
    page_of(command.clone()).generate_to(directory).map(drop)
}

fn page_of(command: Command) -> Man {
    let source = concat!("strait ", env!("CARGO_PKG_VERSION"));
    Man::new(command).date(DATE).source(source).manual("strait manual")
}

fn cannot_write(path: &Path, error: io::Error) -> Failure {
    let cause = format!("manual pages cannot be written to {}", path.display());
    Failure::new(&codes::E2101, cause, "name a directory that is yours").source(error)
}
