//! Kernel and initramfs, opened once: a guest that reboots starts from the files that it was started with, whatever has
//! their names by then.

use std::{
    fs::File,
    io::{self, Read, Seek},
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use super::BootError;

/// How much of a file is looked at to tell what it is.
const HEAD: usize = 0x1000;

/// The files of a guest, open.
#[derive(Debug)]
pub struct BootFiles {
    pub(super) kernel: OpenFile,
    pub(super) initramfs: Option<OpenFile>,
    /// The vmlinux inside a bzImage, when [`super::check`] had to unpack it: for the first load.
    unpacked: Mutex<Option<Vec<u8>>>,
}

/// A regular file.
#[derive(Debug)]
pub(super) struct OpenFile {
    pub(super) path: PathBuf,
    file: Mutex<File>,
}

impl BootFiles {
    /// Opens both for reading.
    ///
    /// # Errors
    /// [`BootError::Read`] for one that cannot be opened or is no regular file, [`BootError::NotAnInitramfs`] for one
    /// without content.
    pub fn open(kernel: &Path, initramfs: Option<&Path>) -> Result<Self, BootError> {
        // The initramfs first: it costs nothing to see that it is missing.
        let initramfs = initramfs.map(OpenFile::open).transpose()?;
        if let Some(initramfs) = &initramfs
            && initramfs.size()? == 0
        {
            return Err(BootError::NotAnInitramfs { path: initramfs.path.clone() });
        }
        Ok(Self { kernel: OpenFile::open(kernel)?, initramfs, unpacked: Mutex::default() })
    }

    pub(super) fn keep(&self, vmlinux: Vec<u8>) {
        *self.unpacked.lock().unwrap_or_else(PoisonError::into_inner) = Some(vmlinux);
    }

    pub(super) fn take_unpacked(&self) -> Option<Vec<u8>> {
        self.unpacked.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

impl OpenFile {
    fn open(path: &Path) -> Result<Self, BootError> {
        let read = |source| BootError::Read { path: path.to_owned(), source };
        // The kind is asked before opening: a FIFO without a writer would never open.
        let found = path.metadata().map_err(read)?;
        if found.is_dir() {
            return Err(read(io::ErrorKind::IsADirectory.into()));
        }
        if !found.is_file() {
            return Err(read(io::Error::other("it is no regular file")));
        }
        let file = Mutex::new(File::open(path).map_err(read)?);
        Ok(Self { path: path.to_owned(), file })
    }

    /// In bytes, as it is now.
    pub(super) fn size(&self) -> Result<u64, BootError> {
        let metadata = self.lock().metadata();
        metadata.map(|found| found.len()).map_err(|source| self.error(source))
    }

    /// At its start.
    pub(super) fn rewound(&self) -> Result<MutexGuard<'_, File>, BootError> {
        let mut file = self.lock();
        file.rewind().map_err(|source| self.error(source))?;
        Ok(file)
    }

    /// The first bytes.
    pub(super) fn head(&self) -> Result<Vec<u8>, BootError> {
        let mut head = Vec::with_capacity(HEAD);
        let mut file = self.rewound()?;
        (&mut *file)
            .take(HEAD as u64)
            .read_to_end(&mut head)
            .map_err(|source| self.error(source))?;
        Ok(head)
    }

    pub(super) fn error(&self, source: io::Error) -> BootError {
        BootError::Read { path: self.path.clone(), source }
    }

    fn lock(&self) -> MutexGuard<'_, File> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
