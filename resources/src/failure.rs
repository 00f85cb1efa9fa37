//! Refusals: a stable code, what was seen, what to do.

use std::{error::Error, fmt};

pub use crate::codes::{CODES, Code};

/// Why strait does not do what was asked. Printed as
///
/// ```text
/// error[E1102]: 0000:3b:00.0 is held by the host driver nouveau
///   fix: strait bind 0000:3b:00.0
/// ```
#[derive(Debug)]
pub struct Failure {
    /// From the table in [`crate::codes`].
    pub code: &'static Code,
    /// One line: what was seen, with the facts in it.
    pub cause: String,
    /// One line: what to do about it.
    pub fix: String,
    /// Facts worth a line each, between cause and fix: group members, who needs what.
    pub details: Vec<String>,
    /// What the system said.
    pub source: Option<Box<dyn Error + Send + Sync>>,
}

impl Failure {
    /// A refusal without details.
    pub fn new(code: &'static Code, cause: impl Into<String>, fix: impl Into<String>) -> Self {
        Self { code, cause: cause.into(), fix: fix.into(), details: Vec::new(), source: None }
    }

    /// The same with one more detail line.
    #[must_use]
    pub fn detail(mut self, line: impl Into<String>) -> Self {
        self.details.push(line.into());
        self
    }

    /// The same with what the system said.
    #[must_use]
    pub fn source(mut self, source: impl Into<Box<dyn Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.cause)
    }
}

impl Error for Failure {
    fn source(&self) -> Option<&(dyn Error + 'static)> {
        self.source.as_ref().map(|source| &**source as &(dyn Error + 'static))
    }
}
