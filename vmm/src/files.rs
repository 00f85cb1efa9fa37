//! Files that root makes and acts on: in directories that nobody else can write to, with modes that no umask decides, and
//! never through a link.
//!
//! A directory is opened once and checked; everything in it is reached from that descriptor (openat), so that what was
//! checked is what is used. A file comes to be whole, under another name, and is renamed to its own.

use std::{
    fs::{self, DirBuilder, File},
    io::{self, Write as _},
    os::{fd::OwnedFd, unix::fs::DirBuilderExt as _},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, Stat},
    io::Errno,
};
use strait_resources::{codes, failure::Failure, host::sysroot::Sysroot};

/// From now on nothing that this process makes is for others, unless it says so: whoever started strait may have a umask that
/// hands root's files to everybody. To be called before any file is made.
pub(crate) fn keep_to_ourselves() {
    rustix::process::umask(Mode::RWXG | Mode::RWXO);
}

/// What is made from now on is for everybody to read: manual pages, say.
pub(crate) fn make_for_everybody() {
    rustix::process::umask(Mode::WGRP | Mode::WOTH);
}

/// Where straits keep what lives as long as the host runs.
pub(crate) const RUN: &str = "/run/strait";

/// For root alone.
pub(crate) const PRIVATE_DIRECTORY: Mode = Mode::RWXU;
/// For root alone.
pub(crate) const PRIVATE_FILE: Mode = Mode::from_raw_mode(0o600);

/// Bits of a mode by which others can change what they do not own.
const OTHERS_WRITE: u32 = 0o022;

/// Who must own what is acted on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The user of this process, or root: what is there is acted on.
    Owner,
    /// Anybody: a host laid out in a directory, which is only looked at.
    Anybody,
}

impl Trust {
    /// What is in this host's files is acted on; those of another one are shown.
    pub(crate) fn of(sysroot: &Sysroot) -> Self {
        if sysroot.is_host() { Self::Owner } else { Self::Anybody }
    }
}

/// How a file is put in its place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Manner {
    pub(crate) mode: Mode,
    /// On disk, its directory as well, before the call returns.
    pub(crate) durable: bool,
    /// Nobody else can lock it while the file that is returned is open (flock(2)).
    pub(crate) locked: bool,
}

/// An open directory.
#[derive(Debug)]
pub(crate) struct Directory {
    fd: OwnedFd,
    /// As on the host.
    path: String,
    trust: Trust,
}

impl Directory {
    /// /run/strait; with `create` it is made when it is not there, and made private when it is not.
    pub(crate) fn run(
        sysroot: &Sysroot,
        trust: Trust,
        create: bool,
    ) -> Result<Option<Self>, Failure> {
        let (parent, name) = RUN.rsplit_once('/').unwrap_or(("", RUN));
        if create {
            fs::create_dir_all(sysroot.path(parent)).map_err(|error| unusable(RUN, error))?;
        }
        let Some(parent) = Self::open(sysroot, parent, trust)? else { return Ok(None) };
        parent.sub(name, create.then_some(PRIVATE_DIRECTORY))
    }

    /// The directory at `path`, which the system's administrator made: links on the way are followed.
    fn open(sysroot: &Sysroot, path: &str, trust: Trust) -> Result<Option<Self>, Failure> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        match rustix::fs::openat(CWD, sysroot.path(path), flags, Mode::empty()) {
            Ok(fd) => Ok(Some(Self { fd, path: path.to_owned(), trust })),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(unusable(path, error)),
        }
    }

    /// The same, for something that root will act on: refused (E1125) when others could change it.
    pub(crate) fn of_root(sysroot: &Sysroot, path: &str) -> Result<Option<Self>, Failure> {
        let Some(found) = Self::open(sysroot, path, Trust::Owner)? else { return Ok(None) };
        let stat = rustix::fs::fstat(&found.fd).map_err(|error| unusable(path, error))?;
        refuse_others(path, &stat)?;
        Ok(Some(found))
    }

    /// The directory at `path`, made with those above it: for everybody to look into, and for its owner to write to.
    pub(crate) fn made(sysroot: &Sysroot, path: &str) -> io::Result<Self> {
        let on_disk = sysroot.path(path);
        DirBuilder::new().recursive(true).mode(0o755).create(&on_disk)?;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(CWD, on_disk, flags, Mode::empty())?;
        rustix::fs::fchmod(&fd, Mode::from_raw_mode(0o755))?;
        Ok(Self { fd, path: path.to_owned(), trust: Trust::Owner })
    }

    /// A directory in this one; with `mode` it is made when it is not there, and given that mode when it has more.
    pub(crate) fn sub(&self, name: &str, mode: Option<Mode>) -> Result<Option<Self>, Failure> {
        let path = self.at(name);
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let open = || rustix::fs::openat(&self.fd, name, flags, Mode::empty());
        let opened = match (open(), mode) {
            (Err(Errno::NOENT), Some(mode)) => match rustix::fs::mkdirat(&self.fd, name, mode) {
                Ok(()) | Err(Errno::EXIST) => open(),
                Err(error) => Err(error),
            },
            (opened, _) => opened,
        };
        let fd = match opened {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::NOTDIR | Errno::LOOP) => return Err(self.no_such_kind(name, "directory")),
            Err(error) => return Err(unusable(&path, error)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|error| unusable(&path, error))?;
        if self.trust == Trust::Owner {
            refuse_others(&path, &stat)?;
        }
        // Of an earlier strait, or made under another umask.
        if let Some(mode) = mode
            && Mode::from_raw_mode(stat.st_mode) != mode
        {
            rustix::fs::fchmod(&fd, mode).map_err(|error| unusable(&path, error))?;
        }
        Ok(Some(Self { fd, path, trust: self.trust }))
    }

    /// As on the host.
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    /// The path of a file in it.
    pub(crate) fn at(&self, name: &str) -> String {
        format!("{}/{name}", self.path)
    }

    /// Names of what is in it, sorted.
    pub(crate) fn names(&self) -> Result<Vec<String>, Failure> {
        let list = || {
            let mut names = Vec::new();
            for entry in Dir::read_from(&self.fd)? {
                names.push(entry?.file_name().to_string_lossy().into_owned());
            }
            names.retain(|name| name != "." && name != "..");
            names.sort();
            Ok::<_, Errno>(names)
        };
        list().map_err(|error| unusable(&self.path, error))
    }

    /// A file in it, for reading; `None` when there is none. Refused (E1125) is what others could have written.
    pub(crate) fn file(&self, name: &str) -> Result<Option<File>, Failure> {
        self.open_file(name, OFlags::RDONLY)
    }

    /// A file of nothing that is made when it is not there: something to lock.
    pub(crate) fn lock_file(&self, name: &str) -> Result<File, Failure> {
        let found = self.open_file(name, OFlags::RDWR | OFlags::CREATE)?;
        found.ok_or_else(|| unusable(&self.at(name), Errno::NOENT))
    }

    fn open_file(&self, name: &str, flags: OFlags) -> Result<Option<File>, Failure> {
        let path = self.at(name);
        // A FIFO would make an open for reading wait.
        let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let fd = match rustix::fs::openat(&self.fd, name, flags, PRIVATE_FILE) {
            Ok(fd) => fd,
            Err(Errno::NOENT) => return Ok(None),
            Err(Errno::LOOP | Errno::ISDIR | Errno::NXIO) => {
                return Err(self.no_such_kind(name, "file"));
            }
            Err(error) => return Err(unusable(&path, error)),
        };
        let stat = rustix::fs::fstat(&fd).map_err(|error| unusable(&path, error))?;
        if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile {
            return Err(self.no_such_kind(name, "file"));
        }
        if self.trust == Trust::Owner {
            refuse_others(&path, &stat)?;
            if stat.st_nlink > 1 {
                let seen = format!("it has {} names (hard links)", stat.st_nlink);
                return Err(not_safe(&path, &seen));
            }
        }
        // Removed between both calls.
        Ok((stat.st_nlink > 0).then(|| File::from(fd)))
    }

    /// Is this name still that file's?
    pub(crate) fn is_at(&self, file: &File, name: &str) -> bool {
        let named = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let same =
            |named: Stat, open: Stat| (named.st_dev, named.st_ino) == (open.st_dev, open.st_ino);
        matches!((named, rustix::fs::fstat(file)), (Ok(named), Ok(open)) if same(named, open))
    }

    /// Puts a file in its place, whole or not at all; another one of that name, even a link, is replaced and not written
    /// to. The file, open.
    pub(crate) fn put(&self, name: &str, bytes: &[u8], manner: Manner) -> io::Result<File> {
        let temporary = format!(".{name}.tmp");
        // Of a strait that was killed.
        match rustix::fs::unlinkat(&self.fd, &temporary, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(error.into()),
        }
        let flags =
            OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.fd, &temporary, flags, PRIVATE_FILE)?;
        // The umask has had its say in what was made.
        rustix::fs::fchmod(&fd, manner.mode)?;
        let mut file = File::from(fd);
        if manner.locked {
            file.try_lock()?;
        }
        file.write_all(bytes)?;
        if manner.durable {
            file.sync_all()?;
        }
        rustix::fs::renameat(&self.fd, &temporary, &self.fd, name)?;
        if manner.durable {
            rustix::fs::fsync(&self.fd)?;
        }
        Ok(file)
    }

    /// Removes a file; one that is not there is removed.
    pub(crate) fn remove(&self, name: &str) -> Result<(), Failure> {
        match rustix::fs::unlinkat(&self.fd, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(unusable(&self.at(name), error)),
        }
    }

    fn no_such_kind(&self, name: &str, kind: &str) -> Failure {
        let found = rustix::fs::statat(&self.fd, name, AtFlags::SYMLINK_NOFOLLOW);
        let is = match found.map(|stat| FileType::from_raw_mode(stat.st_mode)) {
            Ok(FileType::Symlink) => "a symbolic link",
            Ok(FileType::Directory) => "a directory",
            Ok(FileType::RegularFile) => "a file",
            _ => "something else",
        };
        not_safe(&self.at(name), &format!("it is {is} and should be a {kind}"))
    }
}

/// Others could have made it, or could change it.
fn refuse_others(path: &str, stat: &Stat) -> Result<(), Failure> {
    let me = rustix::process::geteuid().as_raw();
    if stat.st_uid != me && stat.st_uid != 0 {
        return Err(not_safe(path, &format!("it belongs to user {}, not to {me}", stat.st_uid)));
    }
    if stat.st_mode & OTHERS_WRITE != 0 {
        let mode = stat.st_mode & 0o7777;
        return Err(not_safe(path, &format!("others may write to it (mode {mode:04o})")));
    }
    Ok(())
}

fn not_safe(path: &str, seen: &str) -> Failure {
    let cause = format!("{path} may hold what somebody else wants done: {seen}");
    let fix = format!("look at it (ls -la {path}) and at who made it, then: rm -r {path}");
    Failure::new(&codes::E1125, cause, fix)
}

/// The system refused.
pub(crate) fn unusable(path: &str, error: impl Into<io::Error>) -> Failure {
    let error = error.into();
    let (cause, fix) = match error.kind() {
        io::ErrorKind::PermissionDenied => (
            format!(
                "{path} is for its owner and root alone, as are the straits that keep their notes there"
            ),
            "run it with sudo",
        ),
        _ => (format!("{path} cannot be used"), "run strait as root, where it can be written"),
    };
    Failure::new(&codes::E1003, cause, fix).source(error)
}

/// Where a file of a host is on this one; for what takes paths alone.
pub(crate) fn place(sysroot: &Sysroot, directory: &Directory, name: &str) -> PathBuf {
    Path::new(&sysroot.path(directory.path())).join(name)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};

    use strait_resources::host::fixture::Tree;

    use super::*;

    const MANNER: Manner = Manner { mode: PRIVATE_FILE, durable: false, locked: false };

    fn run(tree: &Tree, create: bool) -> Result<Option<Directory>, Failure> {
        Directory::run(&tree.sysroot(), Trust::Owner, create)
    }

    fn mode(tree: &Tree, path: &str) -> u32 {
        fs::symlink_metadata(tree.sysroot().path(path)).unwrap().mode() & 0o7777
    }

    fn chmod(tree: &Tree, path: &str, mode: u32) {
        let mode = fs::Permissions::from_mode(mode);
        fs::set_permissions(tree.sysroot().path(path), mode).unwrap();
    }

    #[test]
    fn modes_are_those_of_the_program() {
        let tree = Tree::new();
        let directory = run(&tree, true).unwrap().unwrap();
        let journal = directory.sub("journal", Some(PRIVATE_DIRECTORY)).unwrap().unwrap();
        journal.put("a", b"x", MANNER).unwrap();
        let public = Manner { mode: Mode::from_raw_mode(0o644), ..MANNER };
        journal.put("b", b"x", public).unwrap();
        directory.lock_file("lock").unwrap();
        let modes = ["", "/journal", "/journal/a", "/journal/b", "/lock"]
            .map(|name| mode(&tree, &format!("{RUN}{name}")));
        assert_eq!(modes, [0o700, 0o700, 0o600, 0o644, 0o600]);
    }

    #[test]
    fn directory_of_an_earlier_strait_is_made_private() {
        let tree = Tree::new();
        tree.directory(RUN);
        chmod(&tree, RUN, 0o755);
        assert!(run(&tree, false).unwrap().is_some());
        assert_eq!(mode(&tree, RUN), 0o755);
        run(&tree, true).unwrap();
        assert_eq!(mode(&tree, RUN), 0o700);
    }

    #[test]
    fn directory_that_others_can_write_to_is_refused_and_left_as_it_is() {
        for bits in [0o777, 0o770, 0o702, 0o1777] {
            let tree = Tree::new();
            tree.directory(RUN);
            chmod(&tree, RUN, bits);
            for create in [false, true] {
                let refused = run(&tree, create).unwrap_err();
                assert_eq!(refused.code.id, "E1125");
                assert!(refused.cause.contains(&format!("mode {bits:04o}")), "{}", refused.cause);
                assert!(refused.fix.contains("rm -r /run/strait"), "{}", refused.fix);
            }
            assert_eq!(mode(&tree, RUN), bits);
        }
    }

    #[test]
    fn link_in_the_place_of_a_directory_or_a_file_is_refused() {
        let tree = Tree::new();
        tree.directory("/tmp/evil");
        tree.directory("/run");
        symlink(tree.sysroot().path("/tmp/evil"), tree.sysroot().path(RUN)).unwrap();
        let refused = run(&tree, true).unwrap_err();
        assert_eq!(refused.code.id, "E1125");
        assert!(refused.cause.contains("a symbolic link"), "{}", refused.cause);

        let tree = Tree::new();
        let directory = run(&tree, true).unwrap().unwrap();
        tree.file("/tmp/victim", "old");
        let victim = tree.sysroot().path("/tmp/victim");
        for name in ["lock", "a.json"] {
            symlink(&victim, tree.sysroot().path(&directory.at(name))).unwrap();
        }
        assert_eq!(directory.lock_file("lock").unwrap_err().code.id, "E1125");
        assert_eq!(directory.file("a.json").unwrap_err().code.id, "E1125");
        // What is put there takes the link's place.
        directory.put("a.json", b"new", MANNER).unwrap();
        assert_eq!(fs::read_to_string(victim).unwrap(), "old");
        assert_eq!(tree.sysroot().read(&directory.at("a.json")).unwrap(), "new");
    }

    #[test]
    fn file_with_another_name_or_for_others_to_write_is_refused() {
        let tree = Tree::new();
        let directory = run(&tree, true).unwrap().unwrap();
        directory.put("a", b"x", MANNER).unwrap();
        assert!(directory.file("a").unwrap().is_some());
        let at = |name: &str| tree.sysroot().path(&directory.at(name));
        fs::hard_link(at("a"), at("b")).unwrap();
        let refused = directory.file("a").unwrap_err();
        assert!(refused.cause.contains("it has 2 names"), "{}", refused.cause);
        fs::remove_file(at("b")).unwrap();
        chmod(&tree, &directory.at("a"), 0o620);
        let refused = directory.file("a").unwrap_err();
        assert!(refused.cause.contains("mode 0620"), "{}", refused.cause);
    }

    #[test]
    fn fifo_and_directory_in_the_place_of_a_file_are_refused_at_once() {
        let tree = Tree::new();
        let directory = run(&tree, true).unwrap().unwrap();
        let fifo = tree.sysroot().path(&directory.at("fifo"));
        let made = rustix::fs::mknodat(CWD, fifo, FileType::Fifo, PRIVATE_FILE, 0);
        made.unwrap();
        tree.directory(&directory.at("sub"));
        for name in ["fifo", "sub"] {
            assert_eq!(directory.file(name).unwrap_err().code.id, "E1125", "{name}");
        }
    }

    #[test]
    fn leftover_of_a_killed_strait_is_no_obstacle() {
        let tree = Tree::new();
        let directory = run(&tree, true).unwrap().unwrap();
        tree.file(&directory.at(".a.tmp"), "half");
        directory.put("a", b"whole", MANNER).unwrap();
        assert_eq!(directory.names().unwrap(), ["a"]);
        assert_eq!(tree.sysroot().read(&directory.at("a")).unwrap(), "whole");
    }

    #[test]
    fn file_that_was_put_locked_cannot_be_locked_while_it_is_open() {
        let tree = Tree::new();
        let directory = run(&tree, true).unwrap().unwrap();
        let held = directory.put("a", b"x", Manner { locked: true, ..MANNER }).unwrap();
        let seen = directory.file("a").unwrap().unwrap();
        assert!(seen.try_lock_shared().is_err());
        assert!(directory.is_at(&seen, "a"));
        drop(held);
        assert!(seen.try_lock_shared().is_ok());
        directory.put("a", b"y", MANNER).unwrap();
        assert!(!directory.is_at(&seen, "a"));
    }
}
