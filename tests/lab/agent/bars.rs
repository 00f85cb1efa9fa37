//! BARs moved behind the kernel's back, as firmware and other systems do: config writes to function and root port.

use std::{fs, fs::OpenOptions, os::unix::fs::OpenOptionsExt, path::Path};

use anyhow::{Context, Result, ensure};

use crate::{
    Arguments,
    edu::{BAR_SIZE, DMA_SOURCE, Edu},
    nvme, pci,
    pci::{BME, Function, MSE},
    raw::Mapping,
    read, report, wait_for, write,
};

/// PCI-to-PCI Bridge 1.2, 3.2.5.8: Memory Base and Memory Limit, 1 MiB units in the upper twelve bits.
const MEMORY_BASE: u64 = 0x20;
const BAR0: u64 = 0x10;
const MIB: u64 = 1 << 20;

/// Where a function's BAR 0 and its port's window are, and where they could go.
struct Place {
    function: Function,
    port: Function,
    bar: u64,
    window: u64,
    window_size: u64,
}

impl Place {
    fn of(function: &Function) -> Result<Self> {
        let port = function.bridge()?;
        let window = port.config32(MEMORY_BASE)?;
        let (base, limit) = (u64::from(window & 0xfff0) << 16, u64::from(window >> 20) << 20);
        let bar = u64::from(function.config32(BAR0)? & !0xf);
        ensure!(base <= bar && bar <= limit, "BAR 0 at {bar:#x} is outside {base:#x}-{limit:#x}");
        let function = function.clone();
        Ok(Self { function, port, bar, window: base, window_size: limit + MIB - base })
    }

    /// Moves window and BAR; the offset of the BAR in the window stays.
    fn move_to(&self, window: u64) -> Result<u64> {
        let limit = window + self.window_size - MIB;
        let value = u32::try_from((window >> 16) | (limit >> 20 << 20))?;
        self.port.config_write(MEMORY_BASE, &value.to_le_bytes())?;
        let bar = window + (self.bar - self.window);
        self.function.config_write(BAR0, &u32::try_from(bar)?.to_le_bytes())?;
        Ok(bar)
    }
}

/// A free range of this size in the host bridge's windows below 4 GiB.
fn free(size: u64) -> Result<u64> {
    let text = read("/proc/iomem")?;
    let parse = |line: &str| -> Option<(usize, u64, u64, String)> {
        let depth = line.len() - line.trim_start().len();
        let (range, name) = line.trim().split_once(" : ")?;
        let (first, last) = range.split_once('-')?;
        let number = |word: &str| u64::from_str_radix(word, 16).ok();
        Some((depth, number(first)?, number(last)?, name.to_owned()))
    };
    let lines: Vec<_> = text.lines().filter_map(parse).collect();
    let mut windows = lines.iter().filter(|(depth, first, last, name)| {
        *depth == 0 && name == "PCI Bus 0000:00" && *first > MIB && *last < 1 << 32
    });
    windows
        .find_map(|(_, first, last, _)| {
            let mut at = first.next_multiple_of(size.next_power_of_two());
            let taken = lines
                .iter()
                .filter(|(depth, from, ..)| *depth == 2 && from >= first && from <= last);
            for (_, from, to, _) in taken {
                if at + size > *from {
                    at = (to + 1).max(at).next_multiple_of(size.next_power_of_two());
                }
            }
            (at + size - 1 <= *last).then_some(at)
        })
        .with_context(|| format!("no {size:#x} free bytes below 4 GiB"))
}

fn physical(address: u64, length: usize) -> Result<Mapping> {
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem")?;
    Mapping::of(&file, address, length)
}

fn tag(address: u64, value: u64) -> Result<()> {
    physical(address, BAR_SIZE)?.write64(DMA_SOURCE, value);
    Ok(())
}

fn tagged(address: u64) -> Result<u64> {
    Ok(physical(address, BAR_SIZE)?.read64(DMA_SOURCE))
}

/// Step `move-edu,N`: to a free place, with decoding off and with decoding on, and back.
pub(crate) fn move_edu(words: &mut Arguments<'_>) -> Result<()> {
    let edu = Edu::open(words.index()?)?;
    let place = Place::of(&edu.function)?;
    tag(place.bar, 0xa11c_e000)?;
    let target = free(place.window_size)?;
    edu.function.command(0, MSE)?;
    let bar = place.move_to(target)?;
    edu.function.command(MSE, 0)?;
    ensure!(tagged(bar)? == 0xa11c_e000, "at {bar:#x} the tag reads {:#x}", tagged(bar)?);
    let old = tagged(place.bar)?;
    ensure!(old != 0xa11c_e000, "the old place {:#x} still holds the tag", place.bar);
    report("bars.absent", format!("{old:#x}"));
    // Back again with decoding on throughout.
    place.move_to(place.window)?;
    ensure!(tagged(place.bar)? == 0xa11c_e000, "back in its place the tag is lost");
    ensure!(tagged(bar)? != 0xa11c_e000, "the other place still answers");
    edu.dma_both_ways().context("after the moves")?;
    report("bars.moved", format!("{:#x} to {bar:#x} and back", place.bar));
    Ok(())
}

/// Step `swap-edus,N,M`: two devices change places, through a moment in which both claim the same one.
pub(crate) fn swap_edus(words: &mut Arguments<'_>) -> Result<()> {
    let (one, two) = (Edu::open(words.index()?)?, Edu::open(words.index()?)?);
    let (here, there) = (Place::of(&one.function)?, Place::of(&two.function)?);
    tag(here.bar, 0x0001)?;
    tag(there.bar, 0x0002)?;
    for (to_here, to_there) in [(there.window, here.window), (here.window, there.window)] {
        let first = here.move_to(to_here)?;
        let second = there.move_to(to_there)?;
        let tags = (tagged(first)?, tagged(second)?);
        ensure!(tags == (1, 2), "at {first:#x} and {second:#x} the tags are {tags:?}");
    }
    one.dma_both_ways().context("the first, after the swaps")?;
    two.dma_both_ways().context("the second, after the swaps")?;
    report("bars.swapped", format!("{:#x} and {:#x}", here.bar, there.bar));
    Ok(())
}

/// Step `move-nvme,N,WORD`: the disk moves with its port's window and decodes there; the kernel forgets both, finds
/// them again and places them as it likes, usually where they were; then the disk must work.
pub(crate) fn move_nvme(words: &mut Arguments<'_>) -> Result<()> {
    let n = words.index()?;
    let word = words.word()?;
    let disk = format!("/dev/nvme{n}n1");
    wait_for(&disk, 20, || Path::new(&disk).exists().then_some(()))?;
    let function = pci::all()?
        .into_iter()
        .find(|function| function.driver().as_deref() == Some("nvme"))
        .context("no function has the driver nvme")?;
    function.unbind()?;
    let place = Place::of(&function)?;
    let bar = place.move_to(free(place.window_size)?)?;
    function.command(MSE | BME, 0)?;
    write(&place.port.file("remove"), "1")?;
    ensure!(!fs::exists(function.file(""))?, "the function is still known");
    write("/sys/bus/pci/rescan", "1")?;
    wait_for("the moved disk", 20, || Path::new(&disk).exists().then_some(()))?;
    let now = function.bars()?[0].start;
    report("bars.nvme", format!("{:#x} to {bar:#x} to {now:#x}", place.bar));
    ensure!(bar != place.bar, "the disk has not moved");
    nvme::write_and_compare(&nvme::open(n)?, word)
}
