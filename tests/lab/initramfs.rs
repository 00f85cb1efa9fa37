//! Writes initramfs images: the "newc" cpio format of the kernel's initramfs-buffer-format document.
//! Uncompressed on purpose: unpacking xz under emulation takes longer than reading the plain bytes.

use std::{collections::BTreeSet, path::Path};

/// An image being written.
#[derive(Default)]
pub(crate) struct Initramfs {
    bytes: Vec<u8>,
    inode: u32,
    directories: BTreeSet<String>,
}

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const SYMLINK: u32 = 0o120_777;
const CHAR_DEVICE: u32 = 0o020_600;

impl Initramfs {
    /// An image with what every init needs: /proc, /sys, /dev and a console before /dev is mounted.
    pub(crate) fn new() -> Self {
        let mut this = Self::default();
        for directory in ["dev", "proc", "sys", "tmp", "bin", "modules"] {
            this.directory(directory);
        }
        this.entry("dev/console", CHAR_DEVICE, (5, 1), &[]);
        this
    }

    /// Adds a directory and those above it.
    pub(crate) fn directory(&mut self, path: &str) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        if self.directories.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, (0, 0), &[]);
        }
    }

    /// Adds a file that may be executed.
    pub(crate) fn file(&mut self, path: &str, content: &[u8]) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent);
        }
        self.entry(path, EXECUTABLE, (0, 0), content);
    }

    /// Adds a symbolic link.
    pub(crate) fn symlink(&mut self, path: &str, target: &str) {
        self.entry(path, SYMLINK, (0, 0), target.as_bytes());
    }

    /// Ends the archive and writes it, whole or not at all.
    pub(crate) fn write(mut self, to: &Path) -> std::io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[]);
        crate::files::write_whole(to, &self.bytes)
    }

    fn entry(&mut self, name: &str, mode: u32, device: (u32, u32), content: &[u8]) {
        self.inode += 1;
        let name_size = name.len() + 1;
        let fields = [
            self.inode,
            mode,
            0,
            0,
            1,
            0,
            u32::try_from(content.len()).expect("files of an initramfs are small"),
            0,
            0,
            device.0,
            device.1,
            u32::try_from(name_size).expect("names are short"),
            0,
        ];
        self.bytes.extend_from_slice(b"070701");
        for field in fields {
            self.bytes.extend_from_slice(format!("{field:08x}").as_bytes());
        }
        self.bytes.extend_from_slice(name.as_bytes());
        self.bytes.push(0);
        self.pad();
        self.bytes.extend_from_slice(content);
        self.pad();
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_in_new_directory_brings_its_parents_once() {
        let mut image = Initramfs::default();
        image.file("a/b/one", b"1");
        image.file("a/b/two", b"2");
        let text = String::from_utf8_lossy(&image.bytes).into_owned();
        assert_eq!(text.matches("070701").count(), 4, "a, a/b, and two files");
    }

    #[test]
    fn entry_header_and_content_are_padded_to_four_bytes() {
        let mut image = Initramfs::default();
        image.file("x", b"12345");
        // 110 bytes of header and "x\0" make 112; five bytes of content are padded to eight.
        assert_eq!(image.bytes.len(), 120);
        assert_eq!(&image.bytes[112..117], b"12345");
    }
}
