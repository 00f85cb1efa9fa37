//! `strait completions` and `strait man`, word for word.

use std::path::PathBuf;

use clap::{Args, ValueEnum};

const COMPLETIONS_EXAMPLES: &str = "\
Examples:
  strait completions bash
  strait completions zsh";

const MAN_EXAMPLES: &str = "\
Examples:
  strait man
  strait man /usr/local/share/man/man1";

/// `strait completions`.
#[derive(Debug, Args)]
#[command(after_help = COMPLETIONS_EXAMPLES)]
pub(crate) struct CompletionsArgs {
    /// For which shell.
    #[arg(value_name = "SHELL")]
    pub(crate) shell: Shell,
}

/// Shells that complete words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shell {
    /// GNU Bash.
    Bash,
    /// The Z shell.
    Zsh,
    /// The friendly shell.
    Fish,
}

/// `strait man`.
#[derive(Debug, Args)]
#[command(after_help = MAN_EXAMPLES)]
pub(crate) struct ManArgs {
    /// Write every page into this directory; without one, the first page goes to standard output.
    #[arg(value_name = "DIR")]
    pub(crate) directory: Option<PathBuf>,
}
