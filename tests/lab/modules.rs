//! Kernel modules of an unpacked package, with what they depend on. The package has no modules.dep (depmod
//! makes it when a package is installed), but every module names its dependencies in its .modinfo section.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{bzimage::filter, files};

/// The modules of one kernel.
#[derive(Debug)]
pub(crate) struct Modules {
    files: BTreeMap<String, PathBuf>,
}

impl Modules {
    /// Finds every module under a directory.
    pub(crate) fn scan(directory: &Path) -> Result<Self> {
        let mut files = BTreeMap::new();
        let mut todo = vec![directory.to_path_buf()];
        while let Some(directory) = todo.pop() {
            let entries = fs::read_dir(&directory)
                .with_context(|| format!("cannot list {}", directory.display()))?;
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                if entry.file_type()?.is_dir() {
                    todo.push(entry.path());
                } else if let Some((stem, _)) = name.split_once(".ko") {
                    files.insert(stem.replace('-', "_"), entry.path());
                }
            }
        }
        Ok(Self { files })
    }

    /// These modules and all they need, each after its dependencies: name and content.
    pub(crate) fn with_dependencies(&self, names: &[&str]) -> Result<Vec<(String, Vec<u8>)>> {
        let mut ordered = Vec::new();
        for name in names {
            self.visit(&name.replace('-', "_"), &mut ordered)?;
        }
        Ok(ordered)
    }

    fn visit(&self, name: &str, ordered: &mut Vec<(String, Vec<u8>)>) -> Result<()> {
        if ordered.iter().any(|(known, _)| known == name) {
            return Ok(());
        }
        let Some(path) = self.files.get(name) else {
            bail!("the kernel package has no module {name}");
        };
        let mut content = files::read(path)?;
        if path.extension().is_some_and(|extension| extension == "xz") {
            content = filter(&["xz", "-dc"], &content)?;
        }
        for dependency in dependencies(&content) {
            self.visit(&dependency, ordered)?;
        }
        ordered.push((name.to_owned(), content));
        Ok(())
    }

    /// Is this module in the package?
    pub(crate) fn has(&self, name: &str) -> bool {
        self.files.contains_key(&name.replace('-', "_"))
    }
}

/// What a module's .modinfo says after `depends=`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    String::from_utf8_lossy(value)
        .split(',')
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dependencies_of_module_are_read_from_modinfo() {
        let module = b"\x7fELF...\0license=GPL\0depends=nvme-core,t10-pi\0retpoline=Y\0";
        assert_eq!(dependencies(module), ["nvme_core", "t10_pi"]);
        assert!(dependencies(b"\0depends=\0x").is_empty());
    }
}
