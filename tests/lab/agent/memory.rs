//! The guest's memory, and memory that a device brings.

use std::{fs, thread};

use anyhow::{Context, Result, bail, ensure};

use crate::{Arguments, pci, pci::Function, raw::Mapping, read, report, sum, write};

/// Step `memory`.
pub(crate) fn show() -> Result<()> {
    let info = read("/proc/meminfo")?;
    let kib = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:")?.split_whitespace().next())
        .and_then(|word| word.parse::<u64>().ok())
        .context("no MemTotal")?;
    report("memory.mib", kib / 1024);
    let highest = read("/proc/iomem")?
        .lines()
        .filter(|line| line.ends_with("System RAM"))
        .filter_map(|line| u64::from_str_radix(line.split(['-', ' ']).nth(1)?, 16).ok())
        .max();
    report("memory.highest", format!("{:#x}", highest.context("no System RAM")?));
    Ok(())
}

/// Step `scrub,MIB`: has the kernel clear so much free memory, most recently used first, and gives it back.
pub(crate) fn scrub(words: &mut Arguments<'_>) -> Result<()> {
    let len = usize::try_from(words.number()? << 20)?;
    let mut memory = vec![0u8; len];
    thread::scope(|scope| {
        for half in memory.chunks_mut(len.div_ceil(2).max(1)) {
            scope.spawn(|| half.chunks_mut(4096).for_each(|page| page[0] = 1));
        }
    });
    ensure!(memory.iter().step_by(4096).all(|byte| *byte == 1), "memory forgets");
    Ok(())
}

/// A huge page and where a device finds it.
pub(crate) struct DmaPage {
    /// The CPU's view.
    pub memory: Mapping,
    /// The device's: a guest physical address.
    pub physical: u64,
}

impl DmaPage {
    /// Takes one.
    pub(crate) fn new() -> Result<Self> {
        write("/proc/sys/vm/nr_hugepages", "4")?;
        let memory = Mapping::huge_page()?;
        memory.write64(0, 0);
        // Documentation/admin-guide/mm/pagemap.rst: 8 bytes per 4 KiB page, bits 0-54 the frame, 63 present.
        let mut entry = [0u8; 8];
        let pagemap = fs::File::open("/proc/self/pagemap")?;
        let at = memory.address() / 4096 * 8;
        std::os::unix::fs::FileExt::read_exact_at(&pagemap, &mut entry, at)?;
        let entry = u64::from_le_bytes(entry);
        ensure!(entry >> 63 == 1, "the huge page is not present");
        Ok(Self { memory, physical: (entry & ((1 << 55) - 1)) * 4096 })
    }
}

/// The ivshmem whose memory is so many MiB, which tells several apart.
pub(crate) fn ivshmem(mib: u64) -> Result<Function> {
    for n in 0..8 {
        let function = pci::find(0x1af4, 0x1110, n)?;
        if function.bars()?.get(2).is_some_and(|bar| bar.size == mib << 20) {
            return Ok(function);
        }
    }
    bail!("there is no ivshmem of {mib} MiB")
}

/// Step `ivshmem,MIB,WORD`: patterns at the start, in the middle and at the end of BAR 2, and a register in
/// BAR 0, which is smaller than a page.
pub(crate) fn shared(words: &mut Arguments<'_>) -> Result<()> {
    let mib = words.number()?;
    let word = words.word()?;
    let function = ivshmem(mib)?;
    write(&function.file("enable"), "1")?;
    let bars = function.bars()?;
    report("ivshmem.bar2", format!("{:#x}+{:#x}", bars[2].start, bars[2].size));
    report("ivshmem.bar0", format!("{:#x}+{:#x}", bars[0].start, bars[0].size));
    let size = mib << 20;
    let places = [("start", 0), ("middle", size / 2), ("end", size - 4096)];
    for (name, at) in places {
        let page = function.map(2, at, 4096)?;
        page.write64(0, sum(format!("{word}/{mib}/{name}").as_bytes()));
        page.write64(4088, !at);
    }
    // Read only after all were written: a BAR that repeats would show here.
    for (name, at) in places {
        let page = function.map(2, at, 4096)?;
        let wanted = sum(format!("{word}/{mib}/{name}").as_bytes());
        ensure!(page.read64(0) == wanted, "{name}: {:#x}, not {wanted:#x}", page.read64(0));
        ensure!(page.read64(4088) == !at, "{name}: the page's end is {:#x}", page.read64(4088));
    }
    report("ivshmem.patterns", "same");
    // A BAR of 256 bytes need not begin a page.
    let inside = usize::try_from(bars[0].start % 4096)?;
    let registers = function.map(0, 0, 4096)?;
    registers.write32(inside, 0x5a5a_1234);
    let mask = registers.read32(inside);
    ensure!(mask == 0x5a5a_1234, "the interrupt mask register reads {mask:#x}");
    report("ivshmem.register", "same");
    Ok(())
}
