//! Where things lie. Everything the lab makes is under `target/lab` of the repository.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

/// The repository and the lab's corner of it.
#[derive(Clone, Debug)]
pub(crate) struct Paths {
    /// The workspace root.
    pub root: PathBuf,
    /// `target/lab`.
    pub lab: PathBuf,
}

impl Paths {
    /// Of the repository this lab was built from.
    pub(crate) fn new() -> Self {
        let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = manifest.parent().unwrap_or(manifest).to_path_buf();
        let lab = root.join("target/lab");
        Self { root, lab }
    }

    /// Keeps a second lab out of the same directories; held until dropped.
    pub(crate) fn lock(&self) -> Result<File> {
        fs::create_dir_all(&self.lab)
            .with_context(|| format!("cannot create {}", self.lab.display()))?;
        let file = File::create(self.lab.join("lock"))?;
        file.try_lock().context("another lab is running in this repository")?;
        Ok(file)
    }

    /// Unpacked kernel packages.
    pub(crate) fn kernels(&self) -> PathBuf {
        self.lab.join("kernel")
    }

    /// Initramfs images, one per set of modules.
    pub(crate) fn images(&self) -> PathBuf {
        self.lab.join("images")
    }

    /// Files of one boot of L1: disks, sockets, the share.
    pub(crate) fn boot(&self, host: &str) -> PathBuf {
        self.lab.join("run").join(host)
    }

    /// What is kept of one scenario.
    pub(crate) fn logs(&self, scenario: &str) -> PathBuf {
        self.lab.join("logs").join(scenario)
    }

    /// A path for people: relative to where they stand, if that is shorter.
    pub(crate) fn shown(path: &Path) -> String {
        let here = std::env::current_dir().unwrap_or_default();
        path.strip_prefix(&here).unwrap_or(path).display().to_string()
    }
}
