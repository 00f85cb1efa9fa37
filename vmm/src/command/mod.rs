//! What `strait` does, one file a command. Each returns the exit status or why it refused.

pub(crate) mod bench;
pub(crate) mod bind;
pub(crate) mod devices;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod generate;
pub(crate) mod inspect;
pub(crate) mod ps;
pub(crate) mod report;
pub(crate) mod rom;
pub(crate) mod run;
