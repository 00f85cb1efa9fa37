//! The one door to /sys, /proc, /dev and /usr: a path prefix, so that a directory can stand for a host.
//!
//! Paths are given as on the host (`/sys/kernel/iommu_groups`) and reading never follows them out of the tree,
//! except that a symbolic link inside may be absolute; sysfs has relative ones only.

use std::{
    fs,
    io::{self, Read},
    os::{
        fd::OwnedFd,
        unix::{
            fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
            net::UnixStream,
        },
    },
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant, SystemTime},
};

use crate::names::Names;

/// No file that the host checks read is longer; a pci.ids is 1.5 MiB.
const READ_LIMIT: u64 = 16 << 20;

const EPIPE: i32 = 32;

/// A host, real or laid out in a directory.
#[derive(Clone, Debug)]
pub struct Sysroot {
    prefix: PathBuf,
    /// pci.ids is long, and every refusal names its device: read once.
    names: Arc<OnceLock<Names>>,
}

impl PartialEq for Sysroot {
    fn eq(&self, other: &Self) -> bool {
        self.prefix == other.prefix
    }
}

impl Eq for Sysroot {}

/// The system refused a read.
#[derive(Debug, thiserror::Error)]
#[error("cannot {action} {}", path.display())]
pub struct SysError {
    /// "read", "list".
    action: &'static str,
    /// As on the host, without the prefix.
    path: PathBuf,
    /// What it said.
    #[source]
    source: io::Error,
}

impl SysError {
    /// Which file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Is it only that the file is not there?
    pub fn is_absent(&self) -> bool {
        absent(&self.source)
    }

    /// May this user not look at it?
    pub fn is_forbidden(&self) -> bool {
        self.source.kind() == io::ErrorKind::PermissionDenied
    }

    /// Did it not come to an end?
    pub fn is_stuck(&self) -> bool {
        self.source.kind() == io::ErrorKind::TimedOut
    }

    /// The content makes no sense.
    pub(crate) fn nonsense(path: &str, content: &str) -> Self {
        let shown: String = content.chars().take(80).collect();
        let source =
            io::Error::new(io::ErrorKind::InvalidData, format!("unexpected content '{shown}'"));
        Self { action: "understand", path: path.into(), source }
    }
}

/// Owner and permission bits of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits, 0o7777 at most.
    pub mode: u32,
}

impl Sysroot {
    /// This host.
    pub fn host() -> Self {
        Self::at("/")
    }

    /// The tree under `prefix`.
    pub fn at(prefix: impl Into<PathBuf>) -> Self {
        Self { prefix: prefix.into(), names: Arc::default() }
    }

    /// Is it this host, whose files do things, and not one laid out in a directory?
    pub fn is_host(&self) -> bool {
        self.prefix == Path::new("/")
    }

    /// Names of devices, as they were when first asked for.
    pub(crate) fn names(&self) -> &Names {
        self.names.get_or_init(|| Names::read(self))
    }

    /// Where a path of the host is here.
    pub fn path(&self, path: &str) -> PathBuf {
        self.prefix.join(path.trim_start_matches('/'))
    }

    /// Is there something at `path`? A dangling link is nothing.
    pub fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// A text file, without the white space around it.
    pub fn read(&self, path: &str) -> Result<String, SysError> {
        let bytes = self.read_bytes(path)?;
        Ok(String::from_utf8_lossy(&bytes).trim().to_owned())
    }

    /// The same; `None` when the file is not there.
    pub fn read_if_present(&self, path: &str) -> Result<Option<String>, SysError> {
        present(self.read(path))
    }

    /// A text file of the kernel's that takes a lock to be read, by a child process that gets so much time: whoever waits
    /// in the kernel for a lock cannot be ended, and what waits here would be strait. `None` when the file is not there.
    pub fn read_within(&self, path: &str, limit: Duration) -> Result<Option<String>, SysError> {
        if !self.exists(path) {
            return Ok(None);
        }
        let read = || {
            // No pipe: a cat that splices holds a pipe's lock while it waits, and then even closing our end would.
            let (output, theirs) = UnixStream::pair()?;
            let mut child = Command::new(cat())
                .arg(self.path(path))
                .env_clear()
                .stdin(Stdio::null())
                .stdout(OwnedFd::from(theirs))
                .stderr(Stdio::null())
                .spawn()?;
            let end = Instant::now() + limit;
            let status = loop {
                match child.try_wait()? {
                    Some(status) => break status,
                    None if Instant::now() < end => thread::sleep(Duration::from_millis(1)),
                    // It stays behind: no signal reaches it.
                    None => {
                        let waits =
                            format!("process {} waits for it and cannot be ended", child.id());
                        return Err(io::Error::new(io::ErrorKind::TimedOut, waits));
                    }
                }
            };
            if !status.success() {
                return Err(io::Error::other("cat failed"));
            }
            let mut text = String::new();
            output.take(READ_LIMIT).read_to_string(&mut text)?;
            Ok(text.trim().to_owned())
        };
        read().map(Some).map_err(error("read", path))
    }

    /// As many bytes as the file gives: config space has 64 for a user, 256 or 4096 for root.
    pub fn read_bytes(&self, path: &str) -> Result<Vec<u8>, SysError> {
        self.read_up_to(path, READ_LIMIT)
    }

    /// The same; `None` when the file is not there.
    pub fn bytes_if_present(&self, path: &str) -> Result<Option<Vec<u8>>, SysError> {
        present(self.read_bytes(path))
    }

    /// The start of a text file: for one whose length grows with the host, when its first lines say it all.
    pub fn read_start(&self, path: &str, bytes: u64) -> Result<String, SysError> {
        let bytes = self.read_up_to(path, bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn read_up_to(&self, path: &str, limit: u64) -> Result<Vec<u8>, SysError> {
        /// Files of sysfs and most of procfs fit: one read, and one more that finds the end.
        const USUAL: usize = 4096;
        let read = || {
            let mut bytes = Vec::with_capacity(USUAL);
            fs::File::open(self.path(path))?.take(limit).read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        read().map_err(error("read", path))
    }

    /// The last component of a symbolic link's target, which is how sysfs names drivers and groups; `None`
    /// when there is no link.
    pub fn link_name(&self, path: &str) -> Result<Option<String>, SysError> {
        let target = self.link(path)?;
        Ok(target.and_then(|target| Some(target.file_name()?.to_string_lossy().into_owned())))
    }

    /// The target of a symbolic link as written; `None` when there is no link.
    pub fn link(&self, path: &str) -> Result<Option<PathBuf>, SysError> {
        present(fs::read_link(self.path(path)).map_err(error("read the link", path)))
    }

    /// The path as on the host with every symbolic link resolved; `None` when there is nothing.
    pub fn canonical(&self, path: &str) -> Result<Option<PathBuf>, SysError> {
        let resolve = |path: &Path| present(path.canonicalize().map_err(error("resolve", "")));
        let found = present(self.path(path).canonicalize().map_err(error("resolve", path)))?;
        let (Some(found), Some(prefix)) = (found, resolve(&self.prefix)?) else { return Ok(None) };
        Ok(Some(match found.strip_prefix(&prefix) {
            Ok(inside) => Path::new("/").join(inside),
            Err(_) => found,
        }))
    }

    /// Names in a directory, sorted.
    pub fn list(&self, path: &str) -> Result<Vec<String>, SysError> {
        let list = || {
            let mut names = Vec::new();
            for entry in fs::read_dir(self.path(path))? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.sort();
            Ok(names)
        };
        list().map_err(error("list", path))
    }

    /// The same; empty when there is no such directory.
    pub fn list_if_present(&self, path: &str) -> Result<Vec<String>, SysError> {
        Ok(present(self.list(path))?.unwrap_or_default())
    }

    /// Names of the directories in a directory, sorted, without symbolic links to some.
    pub fn directories(&self, path: &str) -> Result<Vec<String>, SysError> {
        let list = || {
            let mut names = Vec::new();
            for entry in fs::read_dir(self.path(path))? {
                let entry = entry?;
                if entry.file_type()?.is_dir() {
                    names.push(entry.file_name().to_string_lossy().into_owned());
                }
            }
            names.sort();
            Ok(names)
        };
        list().map_err(error("list", path))
    }

    /// `major:minor` of the block device that a file is on; `None` when there is no such file. File systems of
    /// several devices, and those without one, have a number of their own.
    pub fn device_of(&self, path: &str) -> Result<Option<String>, SysError> {
        let found = present(fs::metadata(self.path(path)).map_err(error("look at", path)))?;
        Ok(found.map(|meta| numbers(meta.dev())))
    }

    /// Kind and number of the device node at `path`: `b259:1`, `c226:0`; `None` when it is no device, or cannot be looked
    /// at. In a directory that stands for a host, where only root can make nodes, a file with that text is one.
    pub fn number_at(&self, path: &str) -> Option<String> {
        let path = self.path(path);
        let kept = || fs::File::open(&path).ok().filter(|_| !self.is_host());
        number_of(&fs::metadata(&path).ok()?).or_else(|| node_text(kept()?))
    }

    /// The same for a file that a process has open, which calls it `path`: by the descriptor itself, so that another
    /// mount namespace does not matter. In a directory that stands for a host the process's own root comes first.
    pub fn number_of_open(&self, pid: u32, descriptor: &str, path: &str) -> Option<String> {
        if self.is_host() {
            let open = self.path(&format!("/proc/{pid}/fd/{descriptor}"));
            return number_of(&fs::metadata(open).ok()?);
        }
        self.number_at(&format!("/proc/{pid}/root{path}")).or_else(|| self.number_at(path))
    }

    /// Opens a block device for itself alone and closes it again: refused (EBUSY) when the kernel has claimed it.
    pub fn try_claim(&self, path: &str) -> io::Result<()> {
        use std::os::unix::fs::OpenOptionsExt;
        const O_EXCL: i32 = 0o200;
        // A drive with an open tray would close it.
        const O_NONBLOCK: i32 = 0o4000;
        let flags = O_EXCL | O_NONBLOCK;
        fs::OpenOptions::new().read(true).custom_flags(flags).open(self.path(path)).map(drop)
    }

    /// Owner and mode; `None` when there is nothing.
    pub fn node(&self, path: &str) -> Result<Option<Node>, SysError> {
        let node = fs::metadata(self.path(path)).map_err(error("look at", path));
        Ok(present(node)?.map(|meta| Node {
            uid: meta.uid(),
            gid: meta.gid(),
            mode: meta.mode() & 0o7777,
        }))
    }

    /// When a file's content was written last; `None` when there is nothing.
    pub fn modified(&self, path: &str) -> Result<Option<SystemTime>, SysError> {
        let modified = fs::metadata(self.path(path)).and_then(|meta| meta.modified());
        present(modified.map_err(error("look at", path)))
    }

    /// What a file that waits for more, as /dev/kmsg does, has now.
    pub fn read_available(&self, path: &str) -> Result<String, SysError> {
        const O_NONBLOCK: i32 = 0o4000;
        /// One record of /dev/kmsg at most.
        const RECORD: usize = 8192;
        let read = || {
            let mut file =
                fs::OpenOptions::new().read(true).custom_flags(O_NONBLOCK).open(self.path(path))?;
            let (mut bytes, mut record) = (Vec::new(), vec![0; RECORD]);
            while bytes.len() < READ_LIMIT as usize {
                match file.read(&mut record) {
                    Ok(0) => break,
                    Ok(count) => bytes.extend_from_slice(record.get(..count).unwrap_or_default()),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    // The record was overwritten before it was read: the next one is there.
                    Err(error) if error.raw_os_error() == Some(EPIPE) => {}
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            Ok(bytes)
        };
        let bytes = read().map_err(error("read", path))?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Opens for reading and writing and closes again: what the system says is the best permission check.
    pub fn try_open(&self, path: &str) -> io::Result<()> {
        fs::OpenOptions::new().read(true).write(true).open(self.path(path)).map(drop)
    }
}

/// The program, where distributions have it: root runs none that PATH names.
fn cat() -> &'static str {
    const USUAL: [&str; 3] = ["/bin/cat", "/usr/bin/cat", "/run/current-system/sw/bin/cat"];
    USUAL.into_iter().find(|path| Path::new(path).exists()).unwrap_or(USUAL[0])
}

/// The two halves of a device number, makedev(3).
fn numbers(device: u64) -> String {
    let major = (device >> 8 & 0xfff) | (device >> 32 & !0xfff);
    let minor = (device & 0xff) | (device >> 12 & !0xff & 0xffff_ffff);
    format!("{major}:{minor}")
}

fn number_of(meta: &fs::Metadata) -> Option<String> {
    let kind = meta.file_type();
    let letter = match (kind.is_block_device(), kind.is_char_device()) {
        (true, _) => 'b',
        (_, true) => 'c',
        _ => return None,
    };
    Some(format!("{letter}{}", numbers(meta.rdev())))
}

/// The text of a file that stands for a device node.
fn node_text(file: fs::File) -> Option<String> {
    const LONGEST: u64 = 32;
    let mut text = String::new();
    file.take(LONGEST).read_to_string(&mut text).ok()?;
    let text = text.trim();
    let (major, minor) = text.strip_prefix(['b', 'c'])?.split_once(':')?;
    let is_number = |text: &str| text.parse::<u32>().is_ok();
    (is_number(major) && is_number(minor)).then(|| text.to_owned())
}

fn error(action: &'static str, path: &str) -> impl FnOnce(io::Error) -> SysError {
    let path = path.into();
    move |source| SysError { action, path, source }
}

/// ENOENT and ENOTDIR; ENODEV and ENXIO come from attributes of a device that left, ESRCH from a process.
fn absent(error: &io::Error) -> bool {
    const ENXIO: i32 = 6;
    const ENODEV: i32 = 19;
    const ESRCH: i32 = 3;
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
        || matches!(error.raw_os_error(), Some(ENXIO | ENODEV | ESRCH))
}

fn present<T>(result: Result<T, SysError>) -> Result<Option<T>, SysError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_absent() => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::fixture::Tree;

    #[test]
    fn read_trims_and_stays_under_the_prefix() {
        let tree = Tree::new();
        tree.file("/sys/x", "0x10de\n");
        assert_eq!(tree.sysroot().read("/sys/x").unwrap(), "0x10de");
    }

    #[test]
    fn read_of_an_absent_file_names_the_host_path() {
        let error = Tree::new().sysroot().read("/sys/nowhere").unwrap_err();
        assert_eq!(error.to_string(), "cannot read /sys/nowhere");
        assert!(error.is_absent());
    }

    #[test]
    fn absent_file_is_none_but_an_unreadable_one_is_an_error() {
        let tree = Tree::new();
        tree.file("/sys/dir/file", "");
        assert_eq!(tree.sysroot().read_if_present("/sys/none").unwrap(), None);
        assert!(tree.sysroot().read_if_present("/sys/dir").is_err());
    }

    #[test]
    fn read_within_tells_a_file_that_never_answers() {
        let tree = Tree::new();
        tree.file("/sys/override", "(null)\n");
        let limit = Duration::from_secs(20);
        let text = tree.sysroot().read_within("/sys/override", limit).unwrap();
        assert_eq!(text.as_deref(), Some("(null)"));
        assert_eq!(tree.sysroot().read_within("/sys/none", limit).unwrap(), None);
        // A pipe that nobody writes to.
        let pipe = tree.sysroot().path("/sys/pipe");
        assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        let stuck = tree.sysroot().read_within("/sys/pipe", Duration::from_millis(20)).unwrap_err();
        assert!(stuck.is_stuck() && !stuck.is_absent());
        // The child ends with this.
        fs::OpenOptions::new().write(true).open(pipe).unwrap();
    }

    #[test]
    fn link_name_is_the_last_component_even_of_a_dangling_link() {
        let tree = Tree::new();
        tree.link("/sys/dev/driver", "../../bus/pci/drivers/vfio-pci");
        assert_eq!(tree.sysroot().link_name("/sys/dev/driver").unwrap().unwrap(), "vfio-pci");
        assert_eq!(tree.sysroot().link_name("/sys/dev/none").unwrap(), None);
    }

    #[test]
    fn canonical_follows_links_and_drops_the_prefix() {
        let tree = Tree::new();
        tree.file("/sys/devices/pci0000:00/0000:00:01.0/vendor", "0x8086");
        tree.link("/sys/bus/pci/devices/0000:00:01.0", "../../../devices/pci0000:00/0000:00:01.0");
        let path = tree.sysroot().canonical("/sys/bus/pci/devices/0000:00:01.0").unwrap().unwrap();
        assert_eq!(path, Path::new("/sys/devices/pci0000:00/0000:00:01.0"));
    }

    #[test]
    fn list_is_sorted() {
        let tree = Tree::new();
        tree.file("/sys/d/b", "");
        tree.file("/sys/d/a", "");
        assert_eq!(tree.sysroot().list("/sys/d").unwrap(), ["a", "b"]);
        assert!(tree.sysroot().list_if_present("/sys/e").unwrap().is_empty());
    }
}
