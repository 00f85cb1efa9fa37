//! Files the user names: looked at early, so that a typing error costs nothing.

use std::{fs::File, io, path::Path};

use strait_resources::{codes, failure::Failure};

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
}
