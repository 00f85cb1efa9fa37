//! Programs that only check what strait writes for others: shells for their completions, mandoc for the manual. Their
//! Debian packages are unpacked into the lab's directory, never installed.

use std::{
    env, fs,
    os::unix::fs::PermissionsExt as _,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, ensure};

use crate::{fetch::quiet, files, paths::Paths};

/// Each program with its place in its package, and what it needs that a small system lacks.
const CHECKERS: &[(&str, &str, &[&str])] = &[
    ("zsh", "bin/zsh", &["zsh"]),
    ("fish", "usr/bin/fish", &["fish", "libpcre2-32-0"]),
    ("mandoc", "usr/bin/mandoc", &["mandoc"]),
];

/// A search path that has all of them.
pub(crate) fn path(paths: &Paths) -> Result<std::ffi::OsString> {
    let directory = paths.lab.join("checkers");
    let programs = directory.join("bin");
    fs::create_dir_all(&programs)?;
    for (name, at, packages) in CHECKERS {
        let wrapper = programs.join(name);
        if files::program(name).is_none() && !wrapper.exists() {
            unpack(&directory, packages)?;
            let program = directory.join("tree").join(at);
            ensure!(program.exists(), "the package {} has no {at}", packages.join(" "));
            wrap(&wrapper, &program, &directory.join("tree/usr/lib"))?;
        }
    }
    let usual = env::var_os("PATH").unwrap_or_default();
    let all = [programs].into_iter().chain(env::split_paths(&usual));
    env::join_paths(all).context("a directory of PATH has a colon in its name")
}

fn unpack(directory: &Path, packages: &[&str]) -> Result<()> {
    let work = directory.join("packages");
    files::fresh_directory(&work)?;
    let mut command = Command::new("apt-get");
    command.current_dir(&work).arg("download").args(packages);
    quiet(&mut command, &format!("downloading {}", packages.join(" ")))?;
    for entry in fs::read_dir(&work)? {
        let mut command = Command::new("dpkg-deb");
        command.arg("-x").arg(entry?.path()).arg(directory.join("tree"));
        quiet(&mut command, &format!("unpacking {}", packages.join(" ")))?;
    }
    fs::remove_dir_all(&work)?;
    Ok(())
}

/// Its libraries are where no loader looks.
fn wrap(wrapper: &Path, program: &Path, libraries: &Path) -> Result<()> {
    let mut all: Vec<PathBuf> = vec![libraries.to_owned()];
    if let Ok(entries) = fs::read_dir(libraries) {
        all.extend(entries.filter_map(Result::ok).map(|entry| entry.path()));
    }
    let places: Vec<String> =
        all.iter().filter(|path| path.is_dir()).map(|path| path.display().to_string()).collect();
    let script = format!(
        "#!/bin/sh\nLD_LIBRARY_PATH='{}' exec '{}' \"$@\"\n",
        places.join(":"),
        program.display()
    );
    files::write_whole(wrapper, script.as_bytes())?;
    fs::set_permissions(wrapper, fs::Permissions::from_mode(0o755))?;
    Ok(())
}
