//! An NVMe disk: latency of single reads, reads a second at depth, MiB a second. Past the page cache, and reads only.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::{FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use super::{
    super::{
        guest::Task,
        said::{Mark, Said, figure, less, more},
        stats::percentile,
    },
    PERCENTILES, interrupts,
};

const BLOCK: usize = 4096;
const LARGE: usize = 128 << 10;
/// Readers at the same time, each with one read under way.
const DEPTHS: [usize; 2] = [4, 16];
/// The block device behind a controller's function, once it is there.
pub(super) fn disk(sysfs: &Path) -> Option<PathBuf> {
    let controllers = fs::read_dir(sysfs.join("nvme")).ok()?;
    for controller in controllers.filter_map(Result::ok) {
        let inside = fs::read_dir(controller.path()).ok()?;
        let names = inside.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
        for name in names.filter(|name| name.starts_with("nvme") && name.contains('n')) {
            // With native multipath the namespace's node has another name: nvme0c0n1 is nvme0n1.
            let node = Path::new("/dev").join(without_path(&name));
            if node.exists() {
                return Some(node);
            }
        }
    }
    None
}

fn without_path(name: &str) -> String {
    match (name.find('c'), name.rfind('n')) {
        (Some(c), Some(n)) if c < n => format!("{}{}", &name[..c], &name[n..]),
        _ => name.to_owned(),
    }
}

/// Everything about this disk.
pub(super) fn measure(disk: &Path, sysfs: &Path, task: &Task) -> io::Result<()> {
    let file = open(disk)?;
    let size = size_of_disk(disk)?;
    let mut buffer = Aligned::new(BLOCK);
    file.read_exact_at(buffer.bytes(), 0)?;
    Said::Mark(Mark::First).say();
    single(&file, size, sysfs, task)?;
    watched(&file, size, task)?;
    for depth in DEPTHS {
        let each = Duration::from_millis(task.rate_ms);
        let (reads, interrupts) = parallel(disk, size, depth, BLOCK, each, sysfs)?;
        let seconds = each.as_secs_f64();
        let id = format!("nvme.iops.{depth}");
        more(&id, &format!("4 KiB random reads, depth {depth}"), "reads/s", reads as f64 / seconds);
        if depth == DEPTHS[DEPTHS.len() - 1]
            && let Some(interrupts) = interrupts
        {
            let title = format!("interrupts at depth {depth}");
            figure("irq.rate", &title, "1/s", interrupts as f64 / seconds, None);
        }
    }
    let each = Duration::from_millis(task.rate_ms);
    let (reads, _) = parallel(disk, size, 4, LARGE, each, sysfs)?;
    let mib = (reads * LARGE as u64) as f64 / f64::from(1 << 20) / each.as_secs_f64();
    more("nvme.throughput", "128 KiB sequential reads, depth 4", "MiB/s", mib);
    Ok(())
}

/// Single reads, each timed; with silence around them, so that what a console costs is not counted.
fn single(file: &File, size: u64, sysfs: &Path, task: &Task) -> io::Result<()> {
    let mut buffer = Aligned::new(BLOCK);
    let mut place = Places::new(size, BLOCK, 1);
    let mut micros = Vec::with_capacity(task.operations as usize);
    Said::Mark(Mark::WorkBegin).say();
    thread::sleep(Duration::from_millis(400));
    let before = interrupts::of(sysfs);
    let begin = Instant::now();
    for _ in 0..task.operations {
        let one = Instant::now();
        file.read_exact_at(buffer.bytes(), place.random())?;
        micros.push(one.elapsed().as_secs_f64() * 1e6);
    }
    let seconds = begin.elapsed().as_secs_f64();
    let after = interrupts::of(sysfs);
    thread::sleep(Duration::from_millis(400));
    Said::Mark(Mark::WorkEnd).say();
    micros.sort_by(f64::total_cmp);
    for (id, title, at) in [
        ("nvme.qd1.median", "4 KiB random read, depth 1, median", 50.0),
        ("nvme.qd1.p99", "4 KiB random read, depth 1, 99 %", 99.0),
        ("nvme.qd1.p999", "4 KiB random read, depth 1, 99.9 %", 99.9),
    ] {
        less(id, title, "us", percentile(&micros, at));
    }
    let operations = f64::from(task.operations);
    more("nvme.qd1.iops", "4 KiB random reads, depth 1", "reads/s", operations / seconds);
    if let Some((before, after)) = before.zip(after) {
        let each = after.saturating_sub(before) as f64 / operations;
        figure("irq.per-read", "interrupts for each read at depth 1", "", each, None);
    }
    Said::Latency(PERCENTILES.iter().map(|&at| (at, percentile(&micros, at))).collect()).say();
    Ok(())
}

/// More single reads, untimed, for whoever watches their interrupts from outside: watching costs time.
fn watched(file: &File, size: u64, task: &Task) -> io::Result<()> {
    let mut buffer = Aligned::new(BLOCK);
    let mut place = Places::new(size, BLOCK, 2);
    Said::Mark(Mark::InterruptsBegin).say();
    thread::sleep(Duration::from_millis(300));
    for _ in 0..task.operations / 4 {
        file.read_exact_at(buffer.bytes(), place.random())?;
    }
    thread::sleep(Duration::from_millis(100));
    Said::Mark(Mark::InterruptsEnd).say();
    Ok(())
}

/// So many readers for so long; how many reads they did, and how many interrupts came.
fn parallel(
    disk: &Path,
    size: u64,
    depth: usize,
    length: usize,
    time: Duration,
    sysfs: &Path,
) -> io::Result<(u64, Option<u64>)> {
    let before = interrupts::of(sysfs);
    let end = Instant::now() + time;
    let readers: Vec<_> = (0..depth)
        .map(|n| {
            let disk = disk.to_path_buf();
            thread::spawn(move || -> io::Result<u64> {
                let file = open(&disk)?;
                let mut buffer = Aligned::new(length);
                let mut place = Places::new(size, length, n as u64 + 1);
                let mut done = 0;
                while Instant::now() < end {
                    let at = if length == BLOCK { place.random() } else { place.next(n, depth) };
                    file.read_exact_at(buffer.bytes(), at)?;
                    done += 1;
                }
                Ok(done)
            })
        })
        .collect();
    let mut reads = 0;
    for reader in readers {
        reads += reader.join().map_err(|_| io::Error::other("a reader died"))??;
    }
    let interrupts =
        before.zip(interrupts::of(sysfs)).map(|(before, after)| after.saturating_sub(before));
    Ok((reads, interrupts))
}

fn open(disk: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(disk)
}

fn size_of_disk(disk: &Path) -> io::Result<u64> {
    use io::Seek as _;
    let size = File::open(disk)?.seek(io::SeekFrom::End(0))?;
    if size < 1 << 20 { Err(io::Error::other("the disk is smaller than 1 MiB")) } else { Ok(size) }
}

/// Where to read.
struct Places {
    blocks: u64,
    length: u64,
    state: u64,
    turn: u64,
}

impl Places {
    fn new(size: u64, length: usize, seed: u64) -> Self {
        let length = length as u64;
        Self { blocks: (size / length).max(1), length, state: seed, turn: 0 }
    }

    /// Xorshift: the same places in every run and on both sides.
    fn random(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state % self.blocks * self.length
    }

    /// One after the other, reader by reader.
    fn next(&mut self, reader: usize, readers: usize) -> u64 {
        let block = (self.turn * readers as u64 + reader as u64) % self.blocks;
        self.turn += 1;
        block * self.length
    }
}

/// A buffer at a page's start, as O_DIRECT wants it.
struct Aligned {
    bytes: Vec<u8>,
    start: usize,
    length: usize,
}

impl Aligned {
    fn new(length: usize) -> Self {
        let bytes = vec![0; length + BLOCK];
        let start = bytes.as_ptr().addr().next_multiple_of(BLOCK) - bytes.as_ptr().addr();
        Self { bytes, start, length }
    }

    fn bytes(&mut self) -> &mut [u8] {
        &mut self.bytes[self.start..self.start + self.length]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffer_starts_at_a_page() {
        let mut buffer = Aligned::new(BLOCK);
        assert_eq!(buffer.bytes().as_ptr().addr() % BLOCK, 0);
        assert_eq!(buffer.bytes().len(), BLOCK);
    }

    #[test]
    fn places_stay_on_the_disk_and_do_not_repeat_at_once() {
        let size = (1 << 20) + 17;
        let mut places = Places::new(size, BLOCK, 1);
        let seen: Vec<u64> = (0..1000).map(|_| places.random()).collect();
        assert!(seen.iter().all(|at| at % BLOCK as u64 == 0 && at + BLOCK as u64 <= size));
        assert!(seen.windows(2).filter(|pair| pair[0] == pair[1]).count() < 20);
        let mut first = Places::new(size, LARGE, 1);
        assert_eq!([first.next(1, 4), first.next(1, 4)], [LARGE as u64, 5 * LARGE as u64]);
    }

    #[test]
    fn node_of_a_multipath_namespace_is_that_of_its_head() {
        assert_eq!(without_path("nvme0c0n1"), "nvme0n1");
        assert_eq!(without_path("nvme12n2"), "nvme12n2");
    }
}
