//! `strait run`: from words to meaning, then over to the builder.

use strait_resources::{codes, failure::Failure};

use crate::{cli::RunArgs, config::RunConfig};

/// Checks what was asked for, then refuses: there is no builder yet.
pub(crate) fn run(args: RunArgs) -> Result<u8, Failure> {
    RunConfig::try_from(args)?;
    Err(Failure::new(&codes::E9001, "this build of strait has no machine", "use a later one"))
}
