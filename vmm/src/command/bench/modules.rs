//! The driver's modules for the guest, from the directory of the kernel that it boots. Module files name what they depend
//! on themselves (.modinfo), so no depmod needs to have run there.

use std::{
    collections::BTreeMap,
    fs, io,
    path::{Path, PathBuf},
};

use strait_arch::boot;

/// Files by the names of their modules.
pub(super) struct Modules(BTreeMap<String, PathBuf>);

impl Modules {
    /// Finds every module under a directory; a kernel without modules has none.
    pub(super) fn scan(directory: &Path) -> io::Result<Self> {
        let mut files = BTreeMap::new();
        let mut left = vec![directory.to_path_buf()];
        while let Some(directory) = left.pop() {
            for entry in fs::read_dir(&directory)? {
                let entry = entry?;
                let name = entry.file_name().to_string_lossy().into_owned();
                // Links (build, source) lead away from the modules.
                if entry.file_type()?.is_dir() {
                    left.push(entry.path());
                } else if let Some((stem, _)) = name.split_once(".ko") {
                    files.insert(stem.replace('-', "_"), entry.path());
                }
            }
        }
        Ok(Self(files))
    }

    /// This module after all that it needs: names and contents, decompressed. Empty when the kernel has it built in.
    pub(super) fn with_dependencies(&self, name: &str) -> io::Result<Vec<(String, Vec<u8>)>> {
        let mut ordered = Vec::new();
        if self.0.contains_key(&name.replace('-', "_")) {
            self.visit(&name.replace('-', "_"), &mut ordered, 0)?;
        }
        Ok(ordered)
    }

    fn visit(
        &self,
        name: &str,
        ordered: &mut Vec<(String, Vec<u8>)>,
        depth: usize,
    ) -> io::Result<()> {
        const DEEPEST: usize = 32;
        if ordered.iter().any(|(known, _)| known == name) || depth > DEEPEST {
            return Ok(());
        }
        // What no file has is built in.
        let Some(path) = self.0.get(name) else { return Ok(()) };
        let broken = |error: io::Error| io::Error::other(format!("{}: {error}", path.display()));
        let content = fs::read(path).and_then(|file| boot::decompressed(&file)).map_err(broken)?;
        for dependency in dependencies(&content) {
            self.visit(&dependency, ordered, depth + 1)?;
        }
        ordered.push((name.to_owned(), content));
        Ok(())
    }
}

/// The module that the function's driver is in, as sysfs says; `None` when it is built in or no driver has the function.
pub(super) fn of_driver(sysfs: &Path) -> Option<String> {
    let module = fs::read_link(sysfs.join("driver/module")).ok()?;
    Some(module.file_name()?.to_string_lossy().into_owned())
}

/// What a module's .modinfo says after `depends=`.
fn dependencies(module: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\0depends=";
    let Some(at) = module.windows(KEY.len()).position(|window| window == KEY) else {
        return Vec::new();
    };
    let value = module[at + KEY.len()..].split(|&byte| byte == 0).next().unwrap_or_default();
    let names = String::from_utf8_lossy(value).into_owned();
    names.split(',').filter(|name| !name.is_empty()).map(|name| name.replace('-', "_")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn module(depends: &str) -> Vec<u8> {
        format!("\x7fELF\0license=GPL\0depends={depends}\0name=x\0").into_bytes()
    }

    #[test]
    fn dependencies_come_first_and_once_and_what_is_built_in_is_left_out() {
        let root = tempfile::tempdir().unwrap();
        let drivers = root.path().join("kernel/drivers");
        fs::create_dir_all(&drivers).unwrap();
        for (name, depends) in [
            ("nvme", "nvme-core,t10-pi"),
            ("nvme-core", "crc64,builtin"),
            ("t10-pi", "crc64"),
            ("crc64", ""),
        ] {
            fs::write(drivers.join(format!("{name}.ko")), module(depends)).unwrap();
        }
        let modules = Modules::scan(root.path()).unwrap();
        let names: Vec<_> =
            modules.with_dependencies("nvme").unwrap().into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, ["crc64", "nvme_core", "t10_pi", "nvme"]);
        assert!(modules.with_dependencies("virtio_blk").unwrap().is_empty());
    }

    #[test]
    fn circular_dependencies_end() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("a.ko"), module("b")).unwrap();
        fs::write(root.path().join("b.ko"), module("a")).unwrap();
        let modules = Modules::scan(root.path()).unwrap();
        assert!(modules.with_dependencies("a").is_ok());
    }
}
