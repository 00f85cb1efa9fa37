//! Finds what the lab needs, or fetches it: QEMU, busybox, iasl, dmidecode, OVMF by the package manager where that is
//! allowed, and a stock kernel package that is downloaded and unpacked, never installed.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    bzimage, files,
    modules::Modules,
    paths::Paths,
    progress::{Progress, say},
};

/// The Debian package whose dependency is the current stock kernel.
const KERNEL_METAPACKAGE: &str = "linux-image-amd64";

/// Programs that the lab starts or copies.
#[derive(Clone, Debug)]
pub(crate) struct Tools {
    /// `qemu-system-x86_64`.
    pub qemu: PathBuf,
    /// A busybox that needs no libraries.
    pub busybox: PathBuf,
}

/// A stock kernel, unpacked.
#[derive(Debug)]
pub(crate) struct Kernel {
    /// `linux-image-6.1.0-56-amd64`.
    pub package: String,
    /// As distributed.
    pub bzimage: PathBuf,
    /// The ELF file inside it.
    pub vmlinux: PathBuf,
    /// Its modules.
    pub modules: Modules,
}

struct Need {
    what: &'static str,
    package: &'static str,
    find: fn() -> Option<PathBuf>,
}

const NEEDS: &[Need] = &[
    Need {
        what: "qemu-system-x86_64",
        package: "qemu-system-x86",
        find: || files::program("qemu-system-x86_64"),
    },
    Need { what: "a static busybox", package: "busybox-static", find: static_busybox },
    Need { what: "iasl", package: "acpica-tools", find: || files::program("iasl") },
    Need { what: "dmidecode", package: "dmidecode", find: || files::program("dmidecode") },
    Need { what: "OVMF", package: "ovmf", find: ovmf },
    Need { what: "xz", package: "xz-utils", find: || files::program("xz") },
    Need { what: "dpkg-deb", package: "dpkg", find: || files::program("dpkg-deb") },
];

/// What libFuzzer is compiled with.
const COMPILER: &[Need] =
    &[Need { what: "a C++ compiler", package: "g++", find: || files::program("c++") }];

fn static_busybox() -> Option<PathBuf> {
    let path = files::program("busybox")?;
    // A dynamic program names its loader; a static one has no such string in its first page.
    let bytes = fs::read(&path).ok()?;
    let head = bytes.get(..4096)?;
    (!head.windows(9).any(|window| window == b"ld-linux-")).then_some(path)
}

fn ovmf() -> Option<PathBuf> {
    [
        "/usr/share/OVMF/OVMF_CODE_4M.fd",
        "/usr/share/OVMF/OVMF_CODE.fd",
        "/usr/share/edk2/x64/OVMF_CODE.4m.fd",
    ]
    .iter()
    .map(PathBuf::from)
    .find(|path| path.exists())
}

/// Finds the programs; installs the missing ones where this user may.
pub(crate) fn tools() -> Result<Tools> {
    install(NEEDS)?;
    let found = |what: &str| -> Result<PathBuf> {
        let need = NEEDS.iter().find(|need| need.what == what).context("not in the table")?;
        (need.find)().with_context(|| {
            format!("{what} is still missing although {} is installed", need.package)
        })
    };
    Ok(Tools { qemu: found("qemu-system-x86_64")?, busybox: found("a static busybox")? })
}

/// The same for what the fuzzer is built with.
pub(crate) fn compiler() -> Result<()> {
    install(COMPILER)
}

/// Installs what of these is missing, where this user may.
fn install(needs: &[Need]) -> Result<()> {
    let missing: Vec<&Need> = needs.iter().filter(|need| (need.find)().is_none()).collect();
    if !missing.is_empty() {
        let whats: Vec<_> = missing.iter().map(|need| need.what).collect();
        let packages: Vec<_> = missing.iter().map(|need| need.package).collect();
        if !is_root() || files::program("apt-get").is_none() {
            bail!(
                "missing: {}\n  fix: install the packages {} (Debian's names), e.g. sudo apt-get install {}",
                whats.join(", "),
                packages.join(" "),
                packages.join(" ")
            );
        }
        say(format!("missing: {}; installing {}", whats.join(", "), packages.join(" ")));
        apt_install(&packages)?;
    }
    Ok(())
}

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|data| std::os::unix::fs::MetadataExt::uid(&data) == 0)
}

fn apt_install(packages: &[&str]) -> Result<()> {
    let install = || {
        let mut command = Command::new("apt-get");
        command.env("DEBIAN_FRONTEND", "noninteractive");
        command.args(["install", "--yes", "--no-install-recommends"]).args(packages);
        quiet(&mut command, &format!("apt-get install {}", packages.join(" ")))
    };
    // Package lists are often absent in a container, or too old for what the mirror still has.
    if install().is_err() {
        apt_update()?;
        install()?;
    }
    Ok(())
}

fn apt_update() -> Result<()> {
    quiet(Command::new("apt-get").arg("update"), "apt-get update")
}

/// Runs a command without its chatter; on failure the chatter is the error.
pub(crate) fn quiet(command: &mut Command, what: &str) -> Result<()> {
    let _progress = Progress::start(what);
    let output = command.output().with_context(|| format!("cannot start {what}"))?;
    ensure!(
        output.status.success(),
        "{what} failed ({})\n{}{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

/// The stock kernel: from the cache, or downloaded and unpacked into it.
pub(crate) fn kernel(paths: &Paths) -> Result<Kernel> {
    let cache = paths.kernels();
    let package = match cached(&cache) {
        Some(package) => package,
        None => download(&cache)?,
    };
    let directory = cache.join(&package);
    let bzimage = only(&directory.join("boot"), "vmlinuz-")?;
    let vmlinux = directory.join("vmlinux");
    if !vmlinux.exists() {
        let _progress = Progress::start("taking vmlinux out of the bzImage");
        let elf = bzimage::vmlinux(&files::read(&bzimage)?)
            .with_context(|| format!("cannot unpack {}", bzimage.display()))?;
        files::write_whole(&vmlinux, &elf)?;
    }
    let tree = ["lib/modules", "usr/lib/modules"].map(|tree| directory.join(tree));
    let tree = tree.iter().find(|tree| tree.is_dir()).context("the package has no lib/modules")?;
    Ok(Kernel { package, bzimage, vmlinux, modules: Modules::scan(tree)? })
}

fn cached(cache: &Path) -> Option<String> {
    let package = fs::read_to_string(cache.join("current")).ok()?;
    cache.join(&package).is_dir().then_some(package)
}

fn download(cache: &Path) -> Result<String> {
    for program in ["apt-cache", "apt-get", "dpkg-deb"] {
        ensure!(
            files::program(program).is_some(),
            "no {program} here to fetch a kernel with\n  fix: unpack a Debian linux-image package into {} \
             and write the directory's name to {}",
            cache.join("NAME").display(),
            cache.join("current").display()
        );
    }
    let package = match kernel_package() {
        Ok(package) => package,
        Err(_) if is_root() => {
            apt_update()?;
            kernel_package()?
        }
        Err(error) => return Err(error.context("the package lists may be missing: apt-get update")),
    };
    let work = cache.join(format!("unpacking-{}", std::process::id()));
    files::fresh_directory(&work)?;
    let fetch = || {
        let mut command = Command::new("apt-get");
        command.current_dir(&work).args(["download", &package]);
        quiet(&mut command, &format!("downloading {package} (70 MB)"))
    };
    if let Err(first) = fetch() {
        // The mirror drops a kernel when the next one comes out; the lists here are older than that.
        ensure!(is_root(), "{first:#}");
        apt_update()?;
        return download(cache);
    }
    let deb = only(&work, &package)?;
    let tree = work.join("tree");
    quiet(
        Command::new("dpkg-deb").arg("-x").arg(&deb).arg(&tree),
        &format!("unpacking {package}"),
    )?;
    let target = cache.join(&package);
    if target.exists() {
        fs::remove_dir_all(&target)?;
    }
    fs::rename(&tree, &target)?;
    fs::remove_dir_all(&work)?;
    files::write_whole(&cache.join("current"), package.as_bytes())?;
    Ok(package)
}

fn kernel_package() -> Result<String> {
    let output = Command::new("apt-cache").args(["depends", KERNEL_METAPACKAGE]).output()?;
    String::from_utf8_lossy(&output.stdout)
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
        .with_context(|| format!("apt-cache knows no {KERNEL_METAPACKAGE}"))
}

/// The one entry of a directory whose name starts so.
fn only(directory: &Path, prefix: &str) -> Result<PathBuf> {
    fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?
        .filter_map(Result::ok)
        .find(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path())
        .with_context(|| format!("no {prefix}* in {}", directory.display()))
}
