//! Files the user names: looked at early, so that a typing error costs nothing.

use std::{
    fs::File,
    io::{self, Read as _},
    os::unix::fs::FileTypeExt as _,
    path::Path,
};

use rustix::fs::{Access, access};
use strait_resources::{codes, failure::Failure};

use super::Serial;

/// The largest expansion ROM that a BAR can show (PCI Local Bus 3.0, 6.2.5.2): 16 MiB.
const MAX_ROM: u64 = 16 << 20;
/// The longest path of a Unix socket, without the NUL (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// E2101 unless `path` is a regular file that opens for reading.
pub(crate) fn readable(flag: &str, path: &Path) -> Result<(), Failure> {
    // The kind is asked before opening: a FIFO without a writer would never open.
    let looked = path.metadata().and_then(|found| {
        if !found.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        File::open(path).map(drop)
    });
    looked.map_err(|error| {
        let cause = format!("{flag} {}: this file cannot be read", path.display());
        let fix = match error.kind() {
            io::ErrorKind::NotFound => {
                "check the path; a relative one starts at the current directory"
            }
            io::ErrorKind::PermissionDenied => "give yourself read permission on it",
            _ => "name a regular file",
        };
        Failure::new(&codes::E2101, cause, fix).source(error)
    })
}

/// The bytes of a ROM file; E2101 for one that cannot be read, E2106 for one that is longer than any ROM.
pub(crate) fn rom(path: &Path) -> Result<Vec<u8>, Failure> {
    readable("the ROM file", path)?;
    let mut bytes = Vec::new();
    let read = File::open(path).and_then(|file| file.take(MAX_ROM + 1).read_to_end(&mut bytes));
    read.map_err(|error| {
        let cause = format!("the ROM file {} cannot be read", path.display());
        Failure::new(&codes::E2101, cause, "check the path and its permissions").source(error)
    })?;
    if bytes.len() as u64 > MAX_ROM {
        let cause = format!("{} is no ROM: it has more than 16 MiB", path.display());
        let fix = "name a file as strait rom dump writes it, or use rom=off";
        return Err(Failure::new(&codes::E2106, cause, fix));
    }
    Ok(bytes)
}

/// E2101 unless what the serial port writes to can be made; nothing is made here.
pub(crate) fn writable(serial: &Serial) -> Result<(), Failure> {
    let (path, looked) = match serial {
        Serial::Stdio | Serial::None => return Ok(()),
        Serial::File(path) => (path, makeable(path, true)),
        Serial::Socket(path) if path.as_os_str().len() > MAX_SOCKET_PATH => {
            (path, Err(io::Error::other("a socket's path has at most 107 bytes")))
        }
        Serial::Socket(path) => (path, makeable(path, false)),
    };
    looked.map_err(|error| {
        let cause = format!("{} cannot be made for the serial port", path.display());
        let fix = "name a path in a directory that exists and is yours, not in use";
        Failure::new(&codes::E2101, cause, fix).source(error)
    })
}

/// Can a file be made there? `over`: in the place of one that is there.
fn makeable(path: &Path, over: bool) -> io::Result<()> {
    match path.metadata() {
        Ok(found) if found.is_dir() => Err(io::ErrorKind::IsADirectory.into()),
        Ok(found) if found.file_type().is_socket() || !over => {
            Err(io::ErrorKind::AlreadyExists.into())
        }
        Ok(_) => Ok(access(path, Access::WRITE_OK)?),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty());
            Ok(access(parent.unwrap_or(Path::new(".")), Access::WRITE_OK | Access::EXEC_OK)?)
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readable_file_passes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(readable("--kernel", file.path()).is_ok());
    }

    #[test]
    fn readable_refusals_name_file_and_reason() {
        let dir = tempfile::tempdir().unwrap();
        let missing = readable("--kernel", &dir.path().join("vmlinuz")).unwrap_err();
        assert_eq!(missing.code.id, "E2101");
        assert!(missing.cause.contains("vmlinuz") && missing.fix.contains("check the path"));
        assert!(missing.source.unwrap().to_string().contains("No such file"));

        let directory = readable("--initramfs", dir.path()).unwrap_err();
        assert_eq!(directory.code.id, "E2101");
        assert!(directory.source.unwrap().to_string().contains("no regular file"));
    }

    #[test]
    fn rom_of_any_length_is_read_no_further_than_a_rom_can_be() {
        let file = tempfile::NamedTempFile::new().unwrap();
        file.as_file().set_len(3 << 30).unwrap();
        let failure = rom(file.path()).unwrap_err();
        assert_eq!(failure.code.id, "E2106");
        assert!(failure.cause.contains("16 MiB"), "{}", failure.cause);
        file.as_file().set_len(16 << 20).unwrap();
        assert_eq!(rom(file.path()).unwrap().len(), 16 << 20);
    }

    #[test]
    fn serial_path_that_cannot_be_made_is_refused_and_nothing_is_made() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        let refused = |serial: Serial| writable(&serial).map_err(|failure| failure.code.id);
        for serial in [
            Serial::File(at("none/log")),
            Serial::File(dir.path().into()),
            Serial::Socket(at("none/socket")),
            Serial::Socket(at(&"x".repeat(200))),
        ] {
            assert_eq!(refused(serial.clone()), Err("E2101"), "{serial:?}");
        }
        for serial in [Serial::File(at("log")), Serial::Socket(at("socket")), Serial::Stdio] {
            assert_eq!(refused(serial), Ok(()));
        }
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
        std::fs::write(at("log"), "").unwrap();
        assert_eq!(refused(Serial::File(at("log"))), Ok(()));
        assert_eq!(refused(Serial::Socket(at("log"))), Err("E2101"));
    }
}
