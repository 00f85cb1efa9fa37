//! The guest's PCI functions, through sysfs.

use std::{
    fs::{self, File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{Arguments, raw::Mapping, read, report, sum, wait_for, write};

/// Config space: Command.
pub(crate) const COMMAND: u64 = 0x04;
/// Command: Memory Space Enable.
pub(crate) const MSE: u16 = 1 << 1;
/// Command: Bus Master Enable.
pub(crate) const BME: u16 = 1 << 2;
/// Command: Interrupt Disable.
pub(crate) const INTX_DISABLE: u16 = 1 << 10;

/// One function.
#[derive(Clone, Debug)]
pub(crate) struct Function {
    /// `0000:01:00.0`.
    pub bdf: String,
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
}

/// One BAR as the kernel placed it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bar {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

/// All functions, in the order of their addresses.
pub(crate) fn all() -> Result<Vec<Function>> {
    let mut names: Vec<String> = fs::read_dir("/sys/bus/pci/devices")?
        .filter_map(Result::ok)
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect();
    names.sort();
    names.into_iter().map(Function::named).collect()
}

/// The n-th function with these IDs.
pub(crate) fn find(vendor: u16, device: u16, n: usize) -> Result<Function> {
    all()?
        .into_iter()
        .filter(|function| (function.vendor, function.device) == (vendor, device))
        .nth(n)
        .with_context(|| format!("there is no device {vendor:04x}:{device:04x} number {n}"))
}

impl Function {
    fn named(bdf: String) -> Result<Self> {
        let id = |file: &str| -> Result<u16> {
            let text = read(&format!("/sys/bus/pci/devices/{bdf}/{file}"))?;
            Ok(u16::from_str_radix(text.trim_start_matches("0x"), 16)?)
        };
        let (vendor, device) = (id("vendor")?, id("device")?);
        Ok(Self { bdf, vendor, device })
    }

    /// A file of its sysfs directory.
    pub(crate) fn file(&self, name: &str) -> String {
        format!("/sys/bus/pci/devices/{}/{name}", self.bdf)
    }

    /// The driver's name.
    pub(crate) fn driver(&self) -> Option<String> {
        let link = fs::read_link(self.file("driver")).ok()?;
        Some(link.file_name()?.to_string_lossy().into_owned())
    }

    /// Its BARs; an absent one has no size.
    pub(crate) fn bars(&self) -> Result<Vec<Bar>> {
        let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16);
        read(&self.file("resource"))?
            .lines()
            .take(6)
            .map(|line| {
                let mut words = line.split_whitespace();
                let (Some(start), Some(end)) = (words.next(), words.next()) else {
                    bail!("a resource line has two words at least");
                };
                let (start, end) = (number(start)?, number(end)?);
                Ok(Bar { start, size: if end == 0 { 0 } else { end - start + 1 } })
            })
            .collect()
    }

    /// Maps part of a memory BAR.
    pub(crate) fn map(&self, bar: usize, offset: u64, length: usize) -> Result<Mapping> {
        let path = self.file(&format!("resource{bar}"));
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_SYNC)
            .open(&path)
            .with_context(|| format!("cannot open {path}"))?;
        Mapping::of(&file, offset, length).with_context(|| format!("cannot map {path}"))
    }

    fn config(&self) -> Result<File> {
        let path = self.file("config");
        let file = OpenOptions::new().read(true).write(true).open(&path);
        file.with_context(|| format!("cannot open {path}"))
    }

    /// Reads config space.
    pub(crate) fn config_read<const N: usize>(&self, at: u64) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.config()?.read_exact_at(&mut bytes, at)?;
        Ok(bytes)
    }

    /// Reads a word of config space.
    pub(crate) fn config16(&self, at: u64) -> Result<u16> {
        Ok(u16::from_le_bytes(self.config_read(at)?))
    }

    /// Reads a double word of config space.
    pub(crate) fn config32(&self, at: u64) -> Result<u32> {
        Ok(u32::from_le_bytes(self.config_read(at)?))
    }

    /// Writes config space.
    pub(crate) fn config_write(&self, at: u64, bytes: &[u8]) -> Result<()> {
        Ok(self.config()?.write_all_at(bytes, at)?)
    }

    /// Sets and clears bits of Command.
    pub(crate) fn command(&self, set: u16, clear: u16) -> Result<()> {
        let value = (self.config16(COMMAND)? | set) & !clear;
        self.config_write(COMMAND, &value.to_le_bytes())
    }

    /// Where a capability lies.
    pub(crate) fn capability(&self, id: u8) -> Result<u64> {
        let [mut at] = self.config_read::<1>(0x34)?;
        for _ in 0..48 {
            let [found, next] = self.config_read::<2>(u64::from(at))?;
            match at {
                0 => break,
                _ if found == id => return Ok(u64::from(at)),
                _ => at = next & !3,
            }
        }
        bail!("{} has no capability {id:#x}", self.bdf)
    }

    /// The bridge it is behind.
    pub(crate) fn bridge(&self) -> Result<Self> {
        let path = fs::canonicalize(self.file(""))?;
        let parent = path.parent().and_then(|parent| parent.file_name());
        let name = parent.context("no parent")?.to_string_lossy().into_owned();
        ensure!(name.starts_with("0000:"), "{} is not behind a bridge", self.bdf);
        Self::named(name)
    }

    /// Takes it away from its driver, if it has one.
    pub(crate) fn unbind(&self) -> Result<()> {
        if self.driver().is_some() {
            write(&self.file("driver/unbind"), &self.bdf)?;
        }
        Ok(())
    }
}

/// Step `pci`: what the guest sees, one line per function.
pub(crate) fn show() -> Result<()> {
    let functions = all()?;
    for function in &functions {
        let class = read(&function.file("class"))?;
        let mut line = format!(
            "{} {:04x}:{:04x} class {} driver {} irq {}",
            function.bdf,
            function.vendor,
            function.device,
            class.trim_start_matches("0x"),
            function.driver().unwrap_or_else(|| "none".to_owned()),
            read(&function.file("irq"))?,
        );
        line.push_str(&format!(
            " subsystem {}:{}",
            read(&function.file("subsystem_vendor"))?.trim_start_matches("0x"),
            read(&function.file("subsystem_device"))?.trim_start_matches("0x"),
        ));
        let vectors = fs::read_dir(function.file("msi_irqs")).map_or(0, Iterator::count);
        line.push_str(&format!(" msi-vectors {vectors}"));
        for (n, bar) in function.bars()?.iter().enumerate().filter(|(_, bar)| bar.size > 0) {
            line.push_str(&format!(" bar{n} {:#x}+{:#x}", bar.start, bar.size));
        }
        report("pci", line);
    }
    report("pci.count", functions.len());
    Ok(())
}

/// Step `config,VENDOR:DEVICE,N`: the first bytes of config space, for a comparison with the host's.
pub(crate) fn config(words: &mut Arguments<'_>) -> Result<()> {
    let function = by_id(words)?;
    let bytes: [u8; 64] = function.config_read(0)?;
    let text: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    report("config", text.join(""));
    let mut caps = Vec::new();
    let [mut at] = function.config_read::<1>(0x34)?;
    while at != 0 && caps.len() < 48 {
        let [id, next] = function.config_read::<2>(u64::from(at))?;
        caps.push(format!("{id:02x}@{at:02x}"));
        at = next & !3;
    }
    report("config.caps", caps.join(" "));
    Ok(())
}

fn by_id(words: &mut Arguments<'_>) -> Result<Function> {
    let id = words.word()?;
    let (vendor, device) = id.split_once(':').context("not VENDOR:DEVICE")?;
    find(u16::from_str_radix(vendor, 16)?, u16::from_str_radix(device, 16)?, words.index()?)
}

/// Step `config-hidden,VENDOR,DEVICE,AT`: writes 0xfd to a byte of extended configuration space.
pub(crate) fn hidden(words: &mut Arguments<'_>) -> Result<()> {
    let mut hexadecimal = || Ok::<_, anyhow::Error>(u16::from_str_radix(words.word()?, 16)?);
    let (vendor, device, at) = (hexadecimal()?, hexadecimal()?, hexadecimal()?);
    let function = find(vendor, device, 0)?;
    report("config-hidden.list", format!("{:08x}", function.config32(0x100)?));
    function.config_write(at.into(), &[0xfd])?;
    report("config-hidden.register", format!("{:02x}", function.config_read::<1>(at.into())?[0]));
    Ok(())
}

/// Step `reset,VENDOR:DEVICE,N`: a function-level reset asked for by the guest.
pub(crate) fn reset(words: &mut Arguments<'_>) -> Result<()> {
    let function = by_id(words)?;
    report("reset.methods", read(&function.file("reset_method"))?);
    write(&function.file("reset"), "1")?;
    report("reset", "done");
    Ok(())
}

/// Step `rescan,VENDOR:DEVICE,N`: removed and found again.
pub(crate) fn remove_and_rescan(words: &mut Arguments<'_>) -> Result<()> {
    let function = by_id(words)?;
    write(&function.file("remove"), "1")?;
    let path = PathBuf::from(function.file(""));
    ensure!(!path.exists(), "{} is still there", function.bdf);
    write("/sys/bus/pci/rescan", "1")?;
    wait_for("the removed function", 10, || path.exists().then_some(()))?;
    report("rescan", "found");
    Ok(())
}

/// Step `rom,VENDOR:DEVICE,N`: the option ROM's length and sum, or `none`.
pub(crate) fn rom(words: &mut Arguments<'_>) -> Result<()> {
    let function = by_id(words)?;
    let path = function.file("rom");
    if !fs::exists(&path)? {
        report("rom", "none");
        return Ok(());
    }
    // A ROM decodes only while memory does, and no driver has turned that on.
    write(&function.file("enable"), "1")?;
    write(&path, "1")?;
    let bytes = fs::read(&path).with_context(|| format!("cannot read {path}"));
    write(&path, "0")?;
    let bytes = bytes?;
    report("rom", format!("{} bytes, sum {:016x}", bytes.len(), sum(&bytes)));
    Ok(())
}
