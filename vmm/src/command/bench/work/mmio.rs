//! BARs from the CPU: how long a register read takes, and how fast memory behind a BAR can be read and written, uncached and
//! write-combined.
//!
//! Reading a register may change a device, so only what is known to be safe is touched: the first register of NVMe
//! controllers (CAP) and displays (an ID), and BARs that say of themselves that they are memory (prefetchable: reads have
//! no effect, PCI Local Bus 3.0, 6.2.5.1). Writes go only to such memory, only while no driver has the device, and write
//! back what was read.

use std::{
    fs::{self, File, OpenOptions},
    hint::black_box,
    io,
    path::Path,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use vm_memory::{Bytes, FileOffset, MmapRegion, VolatileMemory as _};

use super::{
    super::{
        guest::Task,
        said::{less, more, note},
    },
    attribute,
};

/// IORESOURCE_IO, IORESOURCE_MEM, IORESOURCE_PREFETCH of `resource`.
const IO: u64 = 0x100;
const MEMORY: u64 = 0x200;
const PREFETCHABLE: u64 = 0x2000;
/// How much of a BAR is copied at a time.
const WINDOW: usize = 1 << 20;
const READS: u32 = 20_000;

struct Bar {
    index: usize,
    size: u64,
    flags: u64,
}

/// Says what the BARs permit. In a guest the driver is taken away first: the kernel lets nobody map a BAR under a driver.
pub(super) fn measure(sysfs: &Path, task: &Task) {
    let in_guest = std::process::id() == 1;
    if in_guest
        && let Ok(address) = fs::canonicalize(sysfs)
        && let Some(name) = address.file_name().and_then(|name| name.to_str())
        && sysfs.join("driver").exists()
        && let Err(error) = fs::write(sysfs.join("driver/unbind"), name)
    {
        note(format!("the driver does not let go, the BARs are not measured: {error}"));
        return;
    }
    let driven = sysfs.join("driver").exists();
    if !driven && let Err(error) = fs::write(sysfs.join("enable"), "1") {
        note(format!("the device does not switch its BARs on: {error}"));
        return;
    }
    let class = attribute(sysfs, "class").unwrap_or_default();
    let known = class.starts_with("0x0108") || class.starts_with("0x03");
    for bar in bars(&attribute(sysfs, "resource").unwrap_or_default()) {
        let memory = bar.flags & PREFETCHABLE != 0;
        let is_safe = memory || (known && bar.index == 0);
        if !is_safe {
            note(format!(
                "BAR {}: registers of an unknown device; reading them may change its state",
                bar.index
            ));
            continue;
        }
        if let Err(error) = one(sysfs, &bar, memory, driven, task) {
            let why = match (driven, error.raw_os_error()) {
                (true, Some(libc::EINVAL | libc::EPERM)) => {
                    "the kernel lets no program map a BAR that a driver has (IO_STRICT_DEVMEM)"
                        .to_owned()
                }
                _ => error.to_string(),
            };
            note(format!("BAR {}: {why}", bar.index));
        }
    }
}

/// Lines of `resource`: start, end, flags.
fn bars(resource: &str) -> Vec<Bar> {
    let number = |word: &str| u64::from_str_radix(word.trim_start_matches("0x"), 16).ok();
    let lines = resource.lines().take(6).enumerate();
    let parsed = lines.filter_map(|(index, line)| {
        let words: Vec<u64> = line.split_whitespace().filter_map(number).collect();
        let [start, end, flags] = *words.as_slice() else { return None };
        let usable = start != 0 && flags & IO == 0 && flags & MEMORY != 0;
        usable.then(|| Bar { index, size: end - start + 1, flags })
    });
    parsed.collect()
}

fn one(sysfs: &Path, bar: &Bar, memory: bool, driven: bool, task: &Task) -> io::Result<()> {
    let Bar { index, size, .. } = bar;
    let may_write = memory && !driven;
    let file = file(&sysfs.join(format!("resource{index}")))?;
    let window = usize::try_from(*size).unwrap_or(WINDOW).min(WINDOW);
    let region = map(file, window)?;
    let micros = latency(&region)?;
    less(&format!("mmio.read.{index}"), &format!("BAR {index}: 4-byte read"), "us", micros);
    if !memory || window < 4096 {
        return Ok(());
    }
    let time = Duration::from_millis(task.rate_ms / 2);
    bandwidth(
        &region,
        window,
        time,
        may_write,
        &format!("uc.{index}"),
        &format!("BAR {index}, uncached"),
    )?;
    let combined = sysfs.join(format!("resource{index}_wc"));
    if combined.exists() {
        let region = map(self::file(&combined)?, window)?;
        bandwidth(
            &region,
            window,
            time,
            may_write,
            &format!("wc.{index}"),
            &format!("BAR {index}, write-combined"),
        )?;
    }
    Ok(())
}

/// vm-memory maps for reading and writing, so the file is open for both.
fn file(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(path)
}

fn map(file: File, length: usize) -> io::Result<MmapRegion> {
    MmapRegion::from_file(FileOffset::new(file, 0), length).map_err(|error| match error {
        vm_memory::mmap::MmapRegionError::Mmap(error) => error,
        other => io::Error::other(other.to_string()),
    })
}

/// Microseconds for one read of the first register.
fn latency(region: &MmapRegion) -> io::Result<f64> {
    let slice = region.as_volatile_slice();
    let read = || {
        slice.load::<u32>(0, Ordering::Relaxed).map_err(|error| io::Error::other(error.to_string()))
    };
    black_box(read()?);
    let begin = Instant::now();
    for _ in 0..READS {
        black_box(read()?);
    }
    Ok(begin.elapsed().as_secs_f64() * 1e6 / f64::from(READS))
}

fn bandwidth(
    region: &MmapRegion,
    window: usize,
    time: Duration,
    may_write: bool,
    id: &str,
    title: &str,
) -> io::Result<()> {
    let slice = region.as_volatile_slice();
    let failed = |error: vm_memory::VolatileMemoryError| io::Error::other(error.to_string());
    let mut buffer = vec![0u8; window.min(64 << 10)];
    slice.read_slice(&mut buffer, 0).map_err(failed)?;
    let rate =
        |mut step: Box<dyn FnMut() -> io::Result<()> + '_>, length: usize| -> io::Result<f64> {
            let (begin, mut bytes) = (Instant::now(), 0usize);
            while begin.elapsed() < time {
                step()?;
                bytes += length;
            }
            Ok(bytes as f64 / f64::from(1 << 20) / begin.elapsed().as_secs_f64())
        };
    if may_write {
        let length = buffer.len();
        let write = || slice.write_slice(&buffer, 0).map_err(failed);
        let mib = rate(Box::new(write), length)?;
        more(&format!("mmio.write.{id}"), &format!("{title}: CPU writes"), "MiB/s", mib);
    }
    let length = buffer.len();
    let read = || slice.read_slice(&mut buffer, 0).map_err(failed);
    let mib = rate(Box::new(read), length)?;
    more(&format!("mmio.bulk-read.{id}"), &format!("{title}: CPU reads"), "MiB/s", mib);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_assigned_memory_bars_are_looked_at() {
        let resource = "0x00000000febf0000 0x00000000febf3fff 0x0000000000140204\n\
            0x0000000000000000 0x0000000000000000 0x0000000000000000\n\
            0x000000000000c000 0x000000000000c01f 0x0000000000040101\n\
            0x0000008000000000 0x00000087ffffffff 0x000000000014220c\n";
        let found: Vec<_> =
            bars(resource).iter().map(|b| (b.index, b.size, b.flags & PREFETCHABLE != 0)).collect();
        assert_eq!(found, [(0, 0x4000, false), (3, 32 << 30, true)]);
    }
}
