//! A guest that means harm: random accesses to config space, I/O ports and device addresses. What it does to itself
//! is its own affair; the monitor must neither panic, hang nor fill its log.

use std::{
    fs::{File, OpenOptions},
    os::unix::fs::{FileExt, OpenOptionsExt},
    thread,
};

use anyhow::{Context, Result, bail, ensure};

use crate::{
    Arguments,
    pci::{self, BME, COMMAND, Function},
    raw::Mapping,
    report,
};

/// What an attacker would try first, besides noise.
const FAVOURITES: [u32; 8] =
    [0, u32::MAX, 0xffff_fff0, 0x8000_0000, 0xfee0_0000, 0xfec0_0000, 0xe000_0000, 0x0000_0001];

/// Ports that the guest's own kernel lives on, or that end the machine: interrupt controllers, timer, keyboard
/// controller, clock, console, power management, reset.
const SPARED: [(u16, u16); 7] = [
    (0x20, 0x21),
    (0x40, 0x71),
    (0xa0, 0xa1),
    (0x3f8, 0x3ff),
    (0x4d0, 0x4d1),
    (0x600, 0x67f),
    (0xcf9, 0xcf9),
];

/// Reproducible noise: xorshift.
struct Noise(u64);

impl Noise {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }

    fn value(&mut self) -> u32 {
        match self.below(3) {
            0 => FAVOURITES[self.below(8) as usize],
            _ => (self.next() >> 16) as u32,
        }
    }

    fn width(&mut self) -> usize {
        [1, 2, 4][self.below(3) as usize]
    }
}

/// Step `hostile,SEED,COUNT`: so many rounds of each kind on each of two threads, so that the monitor's locks are
/// attacked as well.
pub(crate) fn hostile(words: &mut Arguments<'_>) -> Result<()> {
    let seed = words.number()?;
    let rounds = words.number()?;
    let functions = pci::all()?;
    // Noise in a BAR must not make a device write over this guest's kernel.
    let quiet = || functions.iter().try_for_each(|function| function.command(0, BME));
    quiet()?;
    thread::scope(|scope| {
        let attackers = [1, 2].map(|n| {
            let mut noise = Noise(seed << 8 | n);
            let functions = &functions;
            scope.spawn(move || {
                config(&mut noise, functions, rounds)?;
                ports(&mut noise, rounds)?;
                memory(&mut noise, rounds)
            })
        });
        attackers.into_iter().try_for_each(|attacker| match attacker.join() {
            Ok(result) => result,
            Err(_) => bail!("an attacker panicked"),
        })
    })?;
    quiet()?;
    report("hostile", "done");
    Ok(())
}

/// All of config space of every function, bridges included, at every width and alignment that sysfs has.
fn config(noise: &mut Noise, functions: &[Function], rounds: u64) -> Result<()> {
    let files = functions
        .iter()
        .map(|function| {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(function.file("config"))
                .with_context(|| format!("cannot open the config space of {}", function.bdf))
        })
        .collect::<Result<Vec<File>>>()?;
    let mut bytes = [0; 4];
    for _ in 0..rounds {
        let file = &files[noise.below(files.len() as u64) as usize];
        let width = noise.width();
        // Standard registers more often than the 4096 - 64 others.
        let space = if noise.below(2) == 0 { 64 } else { 4096 };
        let at = noise.below(space);
        let value = noise.value().to_le_bytes();
        let masters = at <= COMMAND && COMMAND < at + width as u64;
        if masters || noise.below(3) == 0 {
            // The end of config space and functions that fell silent answer less than was asked for.
            let _ = file.read_at(&mut bytes[..width], at);
        } else {
            let _ = file.write_at(&value[..width], at);
        }
    }
    report("hostile.config", rounds);
    Ok(())
}

/// I/O ports, CF8/CFC with every odd address and width among them.
fn ports(noise: &mut Noise, rounds: u64) -> Result<()> {
    let file = OpenOptions::new().read(true).write(true).open("/dev/port")?;
    let mut byte = [0];
    for _ in 0..rounds {
        let port = match noise.below(2) {
            0 => 0xcf8 + noise.below(8) as u16,
            _ => noise.next() as u16,
        };
        if SPARED.iter().any(|&(first, last)| (first..=last).contains(&port)) {
            continue;
        }
        if noise.below(2) == 0 {
            file.read_exact_at(&mut byte, u64::from(port))?;
        } else {
            file.write_all_at(&[noise.value() as u8], u64::from(port))?;
        }
    }
    report("hostile.ports", rounds);
    Ok(())
}

/// Addresses below 4 GiB that are no RAM: ECAM, windows, BARs and what lies between them; and above RAM, up to the
/// end of what the CPU can address. Firmware's and interrupt controllers' addresses are left alone.
fn memory(noise: &mut Noise, rounds: u64) -> Result<()> {
    const PAGE: usize = 4096;
    let file =
        OpenOptions::new().read(true).write(true).custom_flags(libc::O_SYNC).open("/dev/mem")?;
    let mut touched = 0;
    for _ in 0..rounds / 8 {
        let page = match noise.below(4) {
            0 => 0xe000_0000 + noise.below(0x1000_0000),
            1 | 2 => 0x8000_0000 + noise.below(0x7ec0_0000),
            _ => (4 << 30) + noise.below((1 << 39) - (4 << 30)),
        } & !0xfff;
        let Ok(mapping) = Mapping::of(&file, page, PAGE) else { continue };
        touched += 1;
        for _ in 0..8 {
            match noise.below(4) {
                0 => mapping.write32(noise.below(1024) as usize * 4, noise.value()),
                1 => mapping.write64(noise.below(512) as usize * 8, noise.next()),
                2 => drop(mapping.read32(noise.below(1024) as usize * 4)),
                _ => drop(mapping.read64(noise.below(512) as usize * 8)),
            }
        }
    }
    ensure!(touched > rounds / 32, "only {touched} pages of device memory could be mapped");
    report("hostile.memory", touched * 8);
    Ok(())
}
