//! NVMe disks, by checksum and past the page cache.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    thread::sleep,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};

use crate::{Arguments, pattern, raw, raw::Mapping, report, sum, wait_for, write};

/// Where the pattern lies on the disk: the lab looks at the same place of the image.
const AT: u64 = 1 << 20;
/// Its length.
const LENGTH: usize = 8 << 20;
/// Where a scenario across reboots keeps count.
const COUNT_AT: u64 = 512 << 10;
/// One transfer.
const CHUNK: usize = 256 << 10;

/// The n-th disk, as soon as it is there.
pub(crate) fn open(n: usize) -> Result<File> {
    let path = format!("/dev/nvme{n}n1");
    wait_for(&path, 20, || {
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(&path).ok()
    })
}

fn store(disk: &File, at: u64, bytes: &[u8]) -> Result<()> {
    let mut buffer = Mapping::anonymous(CHUNK)?;
    for (n, chunk) in bytes.chunks(CHUNK).enumerate() {
        let piece = &mut buffer.bytes()[..chunk.len()];
        piece.copy_from_slice(chunk);
        let written = disk.write_at(piece, at + (n * CHUNK) as u64).context("cannot write")?;
        ensure!(written == chunk.len(), "short write: {written}");
    }
    disk.sync_all().context("cannot flush")
}

fn load(disk: &File, at: u64, length: usize) -> Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(length);
    let mut buffer = Mapping::anonymous(CHUNK)?;
    while bytes.len() < length {
        let piece = &mut buffer.bytes()[..CHUNK.min(length - bytes.len())];
        let got = disk.read_at(piece, at + bytes.len() as u64).context("cannot read")?;
        ensure!(got == piece.len(), "short read: {got}");
        bytes.extend_from_slice(piece);
    }
    Ok(bytes)
}

/// Writes the pattern, reads it back.
pub(crate) fn write_and_compare(disk: &File, word: &str) -> Result<()> {
    let bytes = pattern(word, LENGTH);
    store(disk, AT, &bytes)?;
    compare(disk, &bytes)
}

fn compare(disk: &File, bytes: &[u8]) -> Result<()> {
    let got = load(disk, AT, bytes.len())?;
    report("nvme.sum", format!("{:016x}", sum(&got)));
    ensure!(got == bytes, "the disk holds something else: {:016x}", sum(&got));
    report("nvme.readback", "same");
    Ok(())
}

/// Step `nvme-verify,N,WORD`: 8 MiB written and read back.
pub(crate) fn verify(words: &mut Arguments<'_>) -> Result<()> {
    let disk = open(words.index()?)?;
    write_and_compare(&disk, words.word()?)
}

/// Step `nvme-reads,N,COUNT`: single 4 KiB reads, with silence before and after for a count of exits.
pub(crate) fn reads(words: &mut Arguments<'_>) -> Result<()> {
    let disk = open(words.index()?)?;
    let count = words.number()?;
    let mut buffer = Mapping::anonymous(4096)?;
    disk.read_at(buffer.bytes(), 0)?;
    report("mark", "reads-begin");
    sleep(Duration::from_secs(3));
    let begin = Instant::now();
    for n in 0..count {
        let got = disk.read_at(buffer.bytes(), (n * 4096) % (32 << 20))?;
        ensure!(got == 4096, "short read: {got}");
    }
    let seconds = begin.elapsed().as_secs_f64();
    sleep(Duration::from_secs(4));
    report("mark", "reads-end");
    report("figure.reads", format!("{count} in {seconds:.2} s"));
    Ok(())
}

/// Step `nvme-bench,N,COUNT`: a first read, then so many single ones, marked for whoever holds the clock.
pub(crate) fn bench(words: &mut Arguments<'_>) -> Result<()> {
    let disk = open(words.index()?)?;
    let count = words.number()?;
    let mut buffer = Mapping::anonymous(4096)?;
    disk.read_at(buffer.bytes(), 0)?;
    report("mark", "first-read");
    let mut micros = Vec::with_capacity(usize::try_from(count)?);
    report("mark", "reads-begin");
    for n in 0..count {
        let begin = Instant::now();
        let got = disk.read_at(buffer.bytes(), (n * 4096) % (32 << 20))?;
        ensure!(got == 4096, "short read: {got}");
        micros.push(begin.elapsed().as_secs_f64() * 1e6);
    }
    report("mark", "reads-end");
    micros.sort_by(f64::total_cmp);
    let at =
        |share: f64| micros.get((micros.len() as f64 * share) as usize).copied().unwrap_or(0.0);
    report("reads.micros", format!("{:.1} {:.1} {:.1}", at(0.5), at(0.99), at(0.999)));
    Ok(())
}

/// How long a guest stays where its host is to count what it holds.
const COUNTED_FOR: Duration = Duration::from_secs(10);

/// Step `nvme-reboots,N,WORD,KIND.KIND...`: writes a pattern at the first boot, restarts once in each of these
/// ways (`acpi`, `kbd`, `pci`), and finds pattern and count again every time. With a fourth argument `count` the tenth
/// and the last of at least ten boots wait, so that what the monitor holds then can be compared from outside.
pub(crate) fn reboots(words: &mut Arguments<'_>) -> Result<()> {
    let disk = open(words.index()?)?;
    let word = words.word()?;
    let kinds: Vec<&str> = words.word()?.split('.').collect();
    let bytes = pattern(word, LENGTH);
    let head = |boot: u8| {
        let mut block = pattern(&format!("{word}/{boot}"), 4096);
        block[0] = boot;
        block
    };
    let found = load(&disk, COUNT_AT, 4096)?;
    let boot = if found == head(found[0]) { found[0] } else { 0 };
    report("boot", boot);
    if boot == 0 {
        store(&disk, AT, &bytes)?;
    }
    compare(&disk, &bytes)?;
    if words.word().is_ok_and(|word| word == "count")
        && (boot == 10 || usize::from(boot) == kinds.len())
    {
        report("mark", format!("count-{}", if boot == 10 { "first" } else { "last" }));
        sleep(COUNTED_FOR);
    }
    let Some(kind) = kinds.get(usize::from(boot)) else {
        return Ok(());
    };
    store(&disk, COUNT_AT, &head(boot + 1))?;
    write("/sys/kernel/reboot/type", kind)?;
    report("reboot", kind);
    raw::end(true)
}
