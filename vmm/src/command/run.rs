//! `strait run`: from words to meaning, then over to the builder.

use strait_resources::failure::Failure;

use crate::{builder, cli::RunArgs, config::RunConfig};

/// Runs the machine that was asked for.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failure> {
    builder::run(&RunConfig::try_from(args)?)
}
