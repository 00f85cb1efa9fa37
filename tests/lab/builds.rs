//! Builds what the lab tests: strait as users build it, and the agent as a static program for L2's initramfs.

use std::{
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, ensure};

use crate::{paths::Paths, progress::Progress};

/// The only target the lab has.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";

/// `cargo` as it started us, or the one on PATH.
pub(crate) fn cargo(root: &Path) -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root);
    // These describe the lab's own package to its build; a nested cargo must not inherit them.
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CARGO_PKG_") || name == "CARGO_MANIFEST_DIR" {
            command.env_remove(name);
        }
    }
    command
}

/// strait, in release mode.
pub(crate) fn strait(paths: &Paths) -> Result<PathBuf> {
    let mut command = cargo(&paths.root);
    command.args(["build", "--release", "--package", "strait"]);
    build(command, "strait")
}

/// The agent, static: L2 has no libraries.
pub(crate) fn agent(paths: &Paths) -> Result<PathBuf> {
    let mut command = cargo(&paths.root);
    command
        .args(["build", "--release", "--package", "strait-tests", "--bin", "agent"])
        .args(["--target", TARGET])
        .arg("--config")
        .arg(format!("target.{TARGET}.rustflags=[\"-C\", \"target-feature=+crt-static\"]"))
        .arg("--target-dir")
        .arg(paths.lab.join("agent"))
        .env_remove("RUSTFLAGS");
    build(command, "agent")
}

/// Builds and answers where cargo put the program: CARGO_TARGET_DIR and profiles may move it.
pub(crate) fn build(mut command: Command, name: &str) -> Result<PathBuf> {
    let _progress = Progress::start(format!("building {name}"));
    let output = command
        .args(["--quiet", "--message-format=json-render-diagnostics"])
        .stderr(Stdio::inherit())
        .output()
        .context("cannot start cargo")?;
    ensure!(output.status.success(), "{name} does not build");
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| message["target"]["name"] == name)
        .find_map(|message| message["executable"].as_str().map(PathBuf::from))
        .with_context(|| format!("cargo names no program {name}"))
}
