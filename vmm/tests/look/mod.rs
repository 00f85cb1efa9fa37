//! strait as a process, on a host laid out in a directory.

use std::process::{Command, Output};

use strait_resources::host::fixture::Tree;

/// Runs it with these words and this host.
pub(crate) fn look(tree: &Tree, words: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_strait"))
        .args(words)
        .arg("--sysroot")
        .arg(tree.sysroot().path("/"))
        .output()
        .unwrap()
}
