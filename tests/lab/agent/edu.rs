//! QEMU's educational device (docs/specs/edu.txt): arithmetic, a DMA engine, MSI and INTx. The stock kernel has no
//! driver for it, so the agent is one: BAR 0 through sysfs, its MSI message through config space.

use std::{
    fs::{File, OpenOptions},
    io::Read,
    sync::atomic::{AtomicBool, Ordering},
    thread::{self, sleep},
    time::Duration,
};

use anyhow::{Context, Result, anyhow, ensure};

use crate::{
    Arguments, irqs,
    memory::{DmaPage, ivshmem},
    pattern, pci,
    pci::{BME, Function, INTX_DISABLE, MSE},
    raw,
    raw::Mapping,
    report, wait_for, write,
};

/// Vendor and device.
pub(crate) const EDU: (u16, u16) = (0x1234, 0x11e8);

const IDENTIFICATION: usize = 0x00;
const LIVENESS: usize = 0x04;
const FACTORIAL: usize = 0x08;
const STATUS: usize = 0x20;
const INTERRUPT_STATUS: usize = 0x24;
const INTERRUPT_RAISE: usize = 0x60;
const INTERRUPT_ACKNOWLEDGE: usize = 0x64;
/// The DMA source register; it keeps what is written, so it can tell two devices apart.
pub(crate) const DMA_SOURCE: usize = 0x80;
const DMA_DESTINATION: usize = 0x88;
const DMA_COUNT: usize = 0x90;
const DMA_COMMAND: usize = 0x98;
const DMA_START: u64 = 1;
const DMA_FROM_DEVICE: u64 = 2;
/// The device's own buffer, in the addresses of its DMA engine.
const BUFFER: u64 = 0x4_0000;
/// One transfer: less than the buffer's 4096 bytes, whose last byte QEMU's check does not admit.
const TRANSFER: usize = 2048;
/// Its BAR.
pub(crate) const BAR_SIZE: usize = 1 << 20;

/// An edu with its BAR mapped.
pub(crate) struct Edu {
    /// The function.
    pub function: Function,
    registers: Mapping,
}

impl Edu {
    /// The n-th one, enabled.
    pub(crate) fn open(n: usize) -> Result<Self> {
        let function = pci::find(EDU.0, EDU.1, n)?;
        function.command(MSE | BME, 0)?;
        let registers = function.map(0, 0, BAR_SIZE)?;
        Ok(Self { function, registers })
    }

    fn alive(&self) -> Result<()> {
        let id = self.registers.read32(IDENTIFICATION);
        ensure!(id & 0xff == 0xed, "the identification is {id:#x}");
        self.registers.write32(LIVENESS, 0x1234_5678);
        let answer = self.registers.read32(LIVENESS);
        ensure!(answer == !0x1234_5678, "the liveness check answers {answer:#x}");
        Ok(())
    }

    /// Moves bytes between an address and the device's buffer.
    fn dma(&self, address: u64, from_device: bool) -> Result<()> {
        let (source, destination) = if from_device { (BUFFER, address) } else { (address, BUFFER) };
        self.registers.write64(DMA_SOURCE, source);
        self.registers.write64(DMA_DESTINATION, destination);
        self.registers.write64(DMA_COUNT, TRANSFER as u64);
        let direction = if from_device { DMA_FROM_DEVICE } else { 0 };
        self.registers.write64(DMA_COMMAND, DMA_START | direction);
        wait_for("the end of the DMA", 5, || {
            (self.registers.read64(DMA_COMMAND) & DMA_START == 0).then_some(())
        })
    }

    /// RAM to the device and back to another place.
    pub(crate) fn dma_both_ways(&self) -> Result<()> {
        let mut page = DmaPage::new()?;
        let bytes = pattern(&self.function.bdf, TRANSFER);
        page.memory.bytes()[..TRANSFER].copy_from_slice(&bytes);
        self.dma(page.physical, false)?;
        let back = 64 << 10;
        self.dma(page.physical + back as u64, true)?;
        ensure!(
            page.memory.bytes()[back..back + TRANSFER] == bytes,
            "what came back by DMA is not what went out"
        );
        Ok(())
    }

    /// Raises its interrupt.
    fn raise(&self) {
        self.registers.write32(INTERRUPT_RAISE, 1);
    }

    fn acknowledge(&self) -> Result<()> {
        let status = self.registers.read32(INTERRUPT_STATUS);
        ensure!(status == 1, "the interrupt status is {status:#x}");
        self.registers.write32(INTERRUPT_ACKNOWLEDGE, status);
        Ok(())
    }
}

/// Step `edu,N`: registers, arithmetic, DMA both ways.
pub(crate) fn check(words: &mut Arguments<'_>) -> Result<()> {
    let edu = Edu::open(words.index()?)?;
    edu.alive()?;
    edu.registers.write32(FACTORIAL, 10);
    wait_for("the factorial", 5, || (edu.registers.read32(STATUS) & 1 == 0).then_some(()))?;
    let product = edu.registers.read32(FACTORIAL);
    ensure!(product == 3_628_800, "10! is {product}");
    edu.dma_both_ways()?;
    report("edu.dma", "both ways");
    Ok(())
}

/// Step `edu-master,N`: the write that enables bus mastering, and what another CPU gets done meanwhile: naps of 10 ms.
pub(crate) fn master(words: &mut Arguments<'_>) -> Result<()> {
    let function = pci::find(EDU.0, EDU.1, words.index()?)?;
    let (begun, over) = (AtomicBool::new(false), AtomicBool::new(false));
    let naps = thread::scope(|scope| {
        let other = scope.spawn(|| {
            raw::run_on(1)?;
            begun.store(true, Ordering::Release);
            let mut naps = 0;
            while !over.load(Ordering::Acquire) {
                sleep(Duration::from_millis(10));
                naps += 1;
            }
            Ok::<u32, anyhow::Error>(naps)
        });
        raw::run_on(0)?;
        wait_for("the other CPU", 5, || begun.load(Ordering::Acquire).then_some(()))?;
        let written = function.command(BME, 0);
        over.store(true, Ordering::Release);
        written?;
        other.join().map_err(|_| anyhow!("the other thread panicked"))?
    })?;
    report("edu.naps", naps);
    Ok(())
}

/// Step `edu-master-reboot,N`: one CPU enables bus mastering, another one reboots a second later: at once, because an
/// orderly reboot wants configuration space, which the kernel has locked for the first CPU.
pub(crate) fn master_then_reboot(words: &mut Arguments<'_>) -> Result<()> {
    let function = pci::find(EDU.0, EDU.1, words.index()?)?;
    thread::spawn(move || {
        let _ = raw::run_on(1);
        let _ = function.command(BME, 0);
    });
    raw::run_on(0)?;
    sleep(Duration::from_secs(1));
    write("/proc/sysrq-trigger", "b")
}

/// Step `edu-all,COUNT`: so many of them, each alive.
pub(crate) fn check_all(words: &mut Arguments<'_>) -> Result<()> {
    let count = words.index()?;
    for n in 0..count {
        Edu::open(n)?.alive().with_context(|| format!("edu {n}"))?;
    }
    report("edu.alive", count);
    Ok(())
}

/// Step `edu-msi,N,CPU`: ten messages to a vector that the kernel counts by name and otherwise ignores.
pub(crate) fn msi(words: &mut Arguments<'_>) -> Result<()> {
    /// POSTED_INTR_VECTOR: `PIN` in /proc/interrupts, acknowledged and counted, without other effect.
    const VECTOR: u16 = 0xf2;
    const MSI: u8 = 0x05;
    const TIMES: u64 = 10;
    let edu = Edu::open(words.index()?)?;
    let cpu = words.index()?;
    let at = edu.function.capability(MSI)?;
    // PCI Local Bus 3.0, 6.8.1: control at 2, address at 4 and 8, data at 12 for a 64-bit capability.
    let control = edu.function.config16(at + 2)?;
    ensure!(control & (1 << 7) != 0, "the MSI capability is not the 64-bit one that edu has");
    let apic_id = u32::try_from(cpu)?;
    edu.function.config_write(at + 4, &(0xfee0_0000u32 | (apic_id << 12)).to_le_bytes())?;
    edu.function.config_write(at + 8, &0u32.to_le_bytes())?;
    edu.function.config_write(at + 12, &VECTOR.to_le_bytes())?;
    edu.function.config_write(at + 2, &(control | 1).to_le_bytes())?;
    let before = irqs::special("PIN")?;
    for n in 1..=TIMES {
        edu.raise();
        wait_for("an MSI", 5, || {
            (irqs::special("PIN").ok()?[cpu] == before[cpu] + n).then_some(())
        })?;
        edu.acknowledge()?;
    }
    // One more, with the function's MSI off: it must not come.
    edu.function.command(INTX_DISABLE, 0)?;
    edu.function.config_write(at + 2, &control.to_le_bytes())?;
    edu.raise();
    sleep(Duration::from_millis(300));
    edu.acknowledge()?;
    let after = irqs::special("PIN")?;
    for (n, (after, before)) in after.iter().zip(&before).enumerate() {
        let wanted = if n == cpu { TIMES } else { 0 };
        ensure!(after - before == wanted, "CPU {n} got {} messages", after - before);
    }
    report("edu.msi", format!("{TIMES} on cpu {cpu}"));
    Ok(())
}

/// Step `edu-intx,N`: twenty level interrupts through uio_pci_generic, each masked by the kernel in the Command
/// register and unmasked by us.
pub(crate) fn intx(words: &mut Arguments<'_>) -> Result<()> {
    const TIMES: u32 = 20;
    let edu = Edu::open(words.index()?)?;
    write(&edu.function.file("driver_override"), "uio_pci_generic")?;
    write("/sys/bus/pci/drivers_probe", &edu.function.bdf)?;
    let mut uio: File =
        OpenOptions::new().read(true).write(true).open("/dev/uio0").context("no /dev/uio0")?;
    edu.function.command(0, INTX_DISABLE)?;
    for n in 1..=TIMES {
        edu.raise();
        ensure!(raw::readable(&uio, Duration::from_secs(5))?, "interrupt {n} did not come");
        let mut count = [0u8; 4];
        uio.read_exact(&mut count)?;
        let count = u32::from_ne_bytes(count);
        ensure!(count == n, "{count} interrupts came instead of {n}");
        edu.acknowledge()?;
        edu.function.command(0, INTX_DISABLE)?;
    }
    // Lowered and unmasked: silence.
    ensure!(!raw::readable(&uio, Duration::from_millis(500))?, "an interrupt nobody raised came");
    for line in irqs::named("uio_pci_generic")? {
        report("edu.intx-line", &line.rest);
        ensure!(line.rest.contains("IO-APIC"), "INTx comes by {}", line.rest);
    }
    report("edu.intx", TIMES);
    Ok(())
}

/// Step `edu-p2p,N,MIB`: DMA from this edu into the BAR of the ivshmem of so many MiB, and out of it.
pub(crate) fn peer(words: &mut Arguments<'_>) -> Result<()> {
    let edu = Edu::open(words.index()?)?;
    let mib = words.number()?;
    let peer = ivshmem(mib)?;
    peer.command(MSE, 0)?;
    let bar = peer.bars()?[2];
    let mut page = DmaPage::new()?;
    let bytes = pattern("peer", TRANSFER);
    page.memory.bytes()[..TRANSFER].copy_from_slice(&bytes);
    for at in [0, (mib << 19), (mib << 20) - 4096] {
        edu.dma(page.physical, false)?;
        edu.dma(bar.start + at, true)?;
        let mut seen = peer.map(2, at, 4096)?;
        ensure!(seen.bytes()[..TRANSFER] == bytes, "BAR offset {at:#x} did not get the bytes");
        let mark = !at;
        seen.write64(0, mark);
        edu.dma(bar.start + at, false)?;
        edu.dma(page.physical + (64 << 10), true)?;
        let got = page.memory.read64(64 << 10);
        ensure!(got == mark, "out of BAR offset {at:#x} came {got:#x}, not {mark:#x}");
    }
    report("edu.p2p", "both ways");
    Ok(())
}
