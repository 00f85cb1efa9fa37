//! A serial card: bytes out of an I/O BAR.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::{Arguments, irqs, pci, report};

/// Step `serial,WORD`: writes a line to the tty that the kernel's driver made of the passed card.
pub(crate) fn write(words: &mut Arguments<'_>) -> Result<()> {
    let word = words.word()?;
    let card = pci::find(0x1b36, 0x0002, 0)?;
    let bars = card.bars()?;
    report("serial.bar0", format!("{:#x}+{:#x}", bars[0].start, bars[0].size));
    ensure!(bars[0].start < 0x1_0000 && bars[0].size == 8, "BAR 0 is no I/O BAR of 8 ports");
    let directory = card.file("tty");
    let mut names = fs::read_dir(&directory).with_context(|| format!("no {directory}"))?;
    let name = names.next().context("the card has no tty")??.file_name();
    let name = name.to_string_lossy().into_owned();
    // Long enough to fill the transmit queue several times, so that interrupts must drain it.
    let text = format!("{word} through an I/O BAR\n").repeat(8);
    fs::write(format!("/dev/{name}"), &text).with_context(|| format!("cannot write to {name}"))?;
    std::thread::sleep(std::time::Duration::from_secs(1));
    report("serial.tty", &name);
    let count: u64 = irqs::named(&name)?.iter().map(irqs::Line::total).sum();
    report("serial.interrupts", count);
    report("figure.serial", format!("{} bytes", text.len()));
    Ok(())
}
