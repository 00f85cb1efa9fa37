//! The guest's initramfs: strait itself as init, the libraries it was linked with, the device's driver, the task. The "newc"
//! cpio format of the kernel's initramfs-buffer-format document.

use std::{
    collections::BTreeSet,
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

const DIRECTORY: u32 = 0o040_755;
const EXECUTABLE: u32 = 0o100_755;
const CHAR_DEVICE: u32 = 0o020_600;

/// An image being made.
#[derive(Default)]
pub(super) struct Image {
    bytes: Vec<u8>,
    entries: u32,
    known: BTreeSet<String>,
}

impl Image {
    /// With the directories that init mounts on, and a console for before it does.
    pub(super) fn new() -> io::Result<Self> {
        let mut this = Self::default();
        for directory in ["dev", "proc", "sys", "tmp", "modules"] {
            this.directory(directory)?;
        }
        this.entry("dev/console", CHAR_DEVICE, (5, 1), &[])?;
        Ok(this)
    }

    /// Adds a file at this path.
    pub(super) fn file(&mut self, path: &str, content: &[u8]) -> io::Result<()> {
        let path = path.trim_start_matches('/');
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        if self.known.insert(path.to_owned()) {
            self.entry(path, EXECUTABLE, (0, 0), content)?;
        }
        Ok(())
    }

    /// Adds a program at `to`, and the libraries and the loader that it needs where it looks for them.
    pub(super) fn program(&mut self, from: &Path, to: &str) -> io::Result<()> {
        let content = fs::read(from)?;
        for library in libraries(from, &content)? {
            self.file(&library.display().to_string(), &fs::read(&library)?)?;
        }
        self.file(to, &content)
    }

    /// Ends and writes it.
    pub(super) fn write(mut self, to: &Path) -> io::Result<()> {
        self.entry("TRAILER!!!", 0, (0, 0), &[])?;
        fs::write(to, &self.bytes)
    }

    fn directory(&mut self, path: &str) -> io::Result<()> {
        if let Some((parent, _)) = path.rsplit_once('/') {
            self.directory(parent)?;
        }
        if self.known.insert(path.to_owned()) {
            self.entry(path, DIRECTORY, (0, 0), &[])?;
        }
        Ok(())
    }

    fn entry(
        &mut self,
        name: &str,
        mode: u32,
        device: (u32, u32),
        content: &[u8],
    ) -> io::Result<()> {
        let size = |length: usize| {
            u32::try_from(length).map_err(|_| io::Error::other(format!("{name} is too large")))
        };
        self.entries += 1;
        let fields = [
            self.entries,
            mode,
            0,
            0,
            1,
            0,
            size(content.len())?,
            0,
            0,
            device.0,
            device.1,
            size(name.len() + 1)?,
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
        Ok(())
    }

    fn pad(&mut self) {
        self.bytes.resize(self.bytes.len().next_multiple_of(4), 0);
    }
}

/// The loader that a program names, and what that loader would load for it. A static program needs nothing.
fn libraries(program: &Path, content: &[u8]) -> io::Result<Vec<PathBuf>> {
    let Some(loader) = interpreter(content) else { return Ok(Vec::new()) };
    let output = Command::new(&loader).arg("--list").arg(program).output()?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(io::Error::other(format!("{loader} --list {}: {error}", program.display())));
    }
    let mut found = vec![PathBuf::from(loader)];
    found.extend(listed(&String::from_utf8_lossy(&output.stdout)));
    Ok(found)
}

/// `libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x...)`, line by line; what has no file (the vDSO) is left out.
fn listed(text: &str) -> Vec<PathBuf> {
    let words = text.lines().filter_map(|line| {
        let path = line.split_once("=> ").map_or(line, |(_, path)| path);
        path.split_whitespace().next()
    });
    words.filter(|word| word.starts_with('/')).map(PathBuf::from).collect()
}

/// PT_INTERP of a 64-bit ELF file.
fn interpreter(file: &[u8]) -> Option<String> {
    const PT_INTERP: u64 = 3;
    let number = |at: usize, length: usize| -> Option<u64> {
        let bytes = file.get(at..at.checked_add(length)?)?;
        Some(bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    };
    if !file.starts_with(b"\x7fELF\x02\x01") {
        return None;
    }
    let (table, size, count) = (number(0x20, 8)?, number(0x36, 2)?, number(0x38, 2)?);
    let headers = (0..count).map(|n| usize::try_from(table.checked_add(n * size)?).ok());
    let at = headers.flatten().find(|&at| number(at, 4) == Some(PT_INTERP))?;
    let start = usize::try_from(number(at + 8, 8)?).ok()?;
    let length = usize::try_from(number(at + 32, 8)?).ok()?;
    let name = file.get(start..start.checked_add(length)?)?;
    Some(String::from_utf8_lossy(name).trim_end_matches('\0').to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_program_comes_with_its_loader_and_libc() {
        let exe = std::env::current_exe().unwrap();
        let content = fs::read(&exe).unwrap();
        let loader = interpreter(&content).expect("tests are linked dynamically");
        assert!(Path::new(&loader).exists(), "{loader}");
        let libraries = libraries(&exe, &content).unwrap();
        assert!(
            libraries.iter().any(|path| path.to_string_lossy().contains("libc.so")),
            "{libraries:?}"
        );
        assert!(libraries.iter().all(|path| path.exists()), "{libraries:?}");
    }

    #[test]
    fn list_of_the_loader_is_read_without_the_vdso() {
        let text = "\tlinux-vdso.so.1 (0x7ffd)\n\tlibm.so.6 => /lib/libm.so.6 (0x7f)\n\t/lib64/ld-linux-x86-64.so.2 (0x7f)\n";
        let wanted: Vec<PathBuf> =
            ["/lib/libm.so.6", "/lib64/ld-linux-x86-64.so.2"].map(PathBuf::from).to_vec();
        assert_eq!(listed(text), wanted);
    }

    #[test]
    fn garbage_has_no_interpreter() {
        for file in [&b"#!/bin/sh"[..], b"\x7fELF\x02\x01", &[0xff; 300]] {
            assert_eq!(interpreter(file), None);
        }
        let mut huge = b"\x7fELF\x02\x01".to_vec();
        huge.resize(0x40, 0xff);
        assert_eq!(interpreter(&huge), None);
    }

    #[test]
    fn file_brings_its_directories_once() {
        let mut image = Image::default();
        image.file("/a/b/one", b"1").unwrap();
        image.file("/a/b/two", b"2").unwrap();
        image.file("/a/b/two", b"again").unwrap();
        let text = String::from_utf8_lossy(&image.bytes).into_owned();
        assert_eq!(text.matches("070701").count(), 4, "a, a/b, and two files");
    }
}
