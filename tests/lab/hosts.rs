//! The emulated hosts: which devices each has, where they sit and what lies behind them on L0.

use std::path::Path;

use anyhow::Result;

use crate::files;

const GIB: u64 = 1 << 30;
const MIB: u64 = 1 << 20;

/// One emulated host; scenarios with the same one share a boot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum HostKind {
    /// Every kind of device, Intel IOMMU of 48 bits.
    Main,
    /// An IOMMU narrower than the CPU: 39 bits.
    Narrow,
    /// An AMD IOMMU.
    Amd,
    /// Thirty-three devices, each behind its own root port.
    Many,
    /// Memory for an 8 GiB guest.
    Big,
    /// One CPU, and a clock that counts its instructions.
    Counted,
    /// Two CPUs that one thread of the emulator runs in turns: what happens here is no race of the emulator's threads.
    OneThread,
    /// No IOMMU at all.
    NoIommu,
    /// A workstation: a console on its graphics card, cards behind a bridge in one group, a card that resets by its bus.
    Desk,
    /// The machine the lab runs on, with a real device.
    Here,
}

/// What backs a device on L0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Backing {
    /// Nothing.
    None,
    /// A sparse disk image of so many bytes.
    Disk(u64),
    /// Shared memory of so many bytes, sparse as well.
    Memory(u64),
    /// QEMU's user-mode network: gateway 10.0.2.2.
    Net,
    /// A file that takes what a serial port sends.
    SerialFile,
    /// An option ROM the lab makes up.
    Rom,
}

/// One function of the emulated host.
#[derive(Clone, Debug)]
pub(crate) struct Device {
    /// The name scenarios use.
    pub name: String,
    /// Where L1 finds it.
    pub bdf: String,
    /// QEMU's device with its properties.
    qemu: String,
    /// QEMU's bus and address.
    at: String,
    /// What lies behind it.
    pub backing: Backing,
}

/// How the emulator runs the CPUs of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Clock {
    /// Three CPUs, each with a thread of its own, the first of them without guests.
    Threads,
    /// Two CPUs, run in turns by one thread.
    OneThread,
    /// One CPU, and a clock that counts its instructions.
    Instructions,
}

/// The IOMMU of a host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Iommu {
    Intel { bits: u8 },
    Amd,
    None,
}

/// An emulated host.
#[derive(Clone, Debug)]
pub(crate) struct Host {
    /// Which one it is.
    pub kind: HostKind,
    /// For directories and messages.
    pub name: &'static str,
    /// MiB of memory of L1.
    pub memory_mib: u64,
    /// How the emulator runs its CPUs.
    pub clock: Clock,
    iommu: Iommu,
    /// Its functions.
    pub devices: Vec<Device>,
    root_ports: usize,
}

fn device(name: &str, slot: u8, function: u8, qemu: &str, backing: Backing) -> Device {
    Device {
        name: name.to_owned(),
        bdf: format!("0000:00:{slot:02x}.{function}"),
        qemu: qemu.to_owned(),
        at: format!("bus=pcie.0,addr={slot:02x}.{function}"),
        backing,
    }
}

const EDU: &str = "edu,dma_mask=0xffffffffffff";

impl Host {
    /// The host of this kind.
    pub(crate) fn of(kind: HostKind) -> Self {
        let intel = Iommu::Intel { bits: 48 };
        let disk = Backing::Disk(64 * MIB);
        let (name, memory_mib, iommu, devices) = match kind {
            HostKind::Main => ("main", 4096, intel, Self::main_devices()),
            HostKind::Narrow => (
                "narrow-iommu",
                3072,
                Iommu::Intel { bits: 39 },
                vec![
                    device("nvme0", 4, 0, "nvme", disk),
                    device("edu0", 5, 0, EDU, Backing::None),
                    device("bar256g", 6, 0, "ivshmem-plain", Backing::Memory(256 * GIB)),
                    device("bar512g", 7, 0, "ivshmem-plain", Backing::Memory(512 * GIB)),
                    // Its extended capabilities are vendor-specific ones that VFIO takes out of the list.
                    device("cxl", 8, 0, "cxl-type3,lsa=labels", Backing::Memory(256 * MIB)),
                ],
            ),
            HostKind::Amd => (
                "amd-iommu",
                3072,
                Iommu::Amd,
                vec![
                    device("nvme0", 4, 0, "nvme", disk),
                    device("edu0", 5, 0, EDU, Backing::None),
                    // Interrupts by its pin alone.
                    device("rtl", 6, 0, "rtl8139,romfile=,mac=52:54:00:12:34:58", Backing::Net),
                ],
            ),
            HostKind::Many => {
                ("many-devices", 3072, intel, (0..33).map(Self::behind_port).collect())
            }
            HostKind::Big => {
                let edu = device("edu0", 5, 0, EDU, Backing::None);
                let devices = vec![device("nvme0", 4, 0, "nvme", disk), edu];
                ("big-memory", 11 * 1024, intel, devices)
            }
            HostKind::Counted => {
                ("counted", 3072, intel, vec![device("nvme0", 4, 0, "nvme", disk)])
            }
            HostKind::OneThread => {
                ("one-thread", 3072, intel, vec![device("nvme0", 4, 0, "nvme", disk)])
            }
            HostKind::NoIommu => {
                ("no-iommu", 1024, Iommu::None, vec![device("nvme0", 4, 0, "nvme", disk)])
            }
            HostKind::Desk => ("desk", 2048, intel, Self::desk_devices()),
            HostKind::Here => ("here", 0, Iommu::None, Vec::new()),
        };
        let root_ports = if kind == HostKind::Many { devices.len() } else { 0 };
        let clock = match kind {
            HostKind::Counted => Clock::Instructions,
            HostKind::OneThread => Clock::OneThread,
            _ => Clock::Threads,
        };
        Self { kind, name, memory_mib, clock, iommu, devices, root_ports }
    }

    /// This machine with one real device, which scenarios know as `device`.
    pub(crate) fn here(bdf: &str) -> Self {
        let mut host = Self::of(HostKind::Here);
        let mut real = device("device", 0, 0, "", Backing::None);
        real.bdf =
            if bdf.matches(':').count() == 2 { bdf.to_owned() } else { format!("0000:{bdf}") };
        host.devices.push(real);
        host
    }

    fn main_devices() -> Vec<Device> {
        vec![
            device("nvme0", 4, 0, "nvme", Backing::Disk(64 * MIB)),
            device("nvme1", 5, 0, "nvme", Backing::Disk(64 * MIB)),
            device(
                "gpu",
                6,
                0,
                "virtio-gpu-pci,iommu_platform=on,disable-legacy=on,ats=on,xres=1024,yres=768",
                Backing::None,
            ),
            device("edu0", 7, 0, EDU, Backing::Rom),
            device("edu1", 8, 0, EDU, Backing::None),
            device("nic", 9, 0, "e1000e,romfile=,mac=52:54:00:12:34:56", Backing::Net),
            device("bar32g", 0xa, 0, "ivshmem-plain", Backing::Memory(32 * GIB)),
            device("bar16m", 0xb, 0, "ivshmem-plain", Backing::Memory(16 * MIB)),
            device("slot0", 0xc, 0, &format!("{EDU},multifunction=on"), Backing::None),
            device("slot1", 0xc, 1, "qemu-xhci,multifunction=on", Backing::None),
            device("slot2", 0xc, 2, "intel-hda,multifunction=on", Backing::None),
            device("slot3", 0xc, 3, "nvme,multifunction=on", Backing::Disk(16 * MIB)),
            device("serial", 0xd, 0, "pci-serial", Backing::SerialFile),
        ]
    }

    /// The bridge to conventional PCI has no ACS, so what is behind it shares its group. Firmware gives it bus 1 and the
    /// root port bus 2.
    fn desk_devices() -> Vec<Device> {
        let behind = |name: &str, bdf: &str, at: &str, qemu: &str, backing| Device {
            name: name.to_owned(),
            bdf: bdf.to_owned(),
            qemu: qemu.to_owned(),
            at: at.to_owned(),
            backing,
        };
        vec![
            device("vga", 4, 0, "VGA,vgamem_mb=16", Backing::None),
            device("shared", 5, 0, "virtio-9p-pci,fsdev=lab,mount_tag=shared", Backing::None),
            device("bridge", 0x10, 0, "pcie-pci-bridge", Backing::None),
            device("rport", 0x11, 0, "pcie-root-port,chassis=1", Backing::None),
            behind("edu0", "0000:01:01.0", "bus=bridge,addr=1", EDU, Backing::None),
            behind(
                "nic",
                "0000:01:02.0",
                "bus=bridge,addr=2",
                "e1000,romfile=,mac=52:54:00:12:34:57",
                Backing::Net,
            ),
            behind("edu1", "0000:02:00.0", "bus=rport,addr=0", EDU, Backing::None),
        ]
    }

    /// Firmware numbers buses in the order of the root ports: port N has bus N + 1 behind it.
    fn behind_port(n: usize) -> Device {
        Device {
            name: format!("edu{n}"),
            bdf: format!("0000:{:02x}:00.0", n + 1),
            qemu: EDU.to_owned(),
            at: format!("bus=rp{n},addr=0"),
            backing: Backing::None,
        }
    }

    /// Where L1 finds the device of this name.
    pub(crate) fn bdf(&self, name: &str) -> Option<&str> {
        self.devices.iter().find(|device| device.name == name).map(|device| device.bdf.as_str())
    }

    /// What L1's kernel must be told.
    pub(crate) fn kernel_arguments(&self) -> &'static str {
        match self.iommu {
            // 1024x768 at 16 bits, set by the kernel's own real-mode code: vesafb draws on it.
            _ if self.kind == HostKind::Desk => "intel_iommu=on iommu=pt vga=791",
            Iommu::Intel { .. } => "intel_iommu=on iommu=pt",
            Iommu::Amd => "iommu=pt",
            Iommu::None => "intel_iommu=off",
        }
    }

    /// Makes what lies behind the devices and answers QEMU's arguments; all paths are relative to `run`.
    pub(crate) fn qemu_arguments(&self, run: &Path) -> Result<Vec<String>> {
        // What `rom=FILE` puts in the place of a device's own ROM.
        files::write_whole(&run.join("other.rom"), &option_rom("other", 40))?;
        // What `--acpi-table FILE` adds to the machine's own.
        files::write_whole(&run.join("extra.aml"), &ssdt())?;
        let mut all = Vec::new();
        match self.iommu {
            // The IOMMU comes before the devices it translates for.
            Iommu::Intel { bits } => all.extend([
                "-device".to_owned(),
                format!("intel-iommu,intremap=on,caching-mode=off,aw-bits={bits}"),
            ]),
            Iommu::Amd => all.extend(["-device".to_owned(), "amd-iommu,intremap=on".to_owned()]),
            Iommu::None => {}
        }
        for port in 0..self.root_ports {
            let (slot, function) = (0x10 + port / 8, port % 8);
            all.extend([
                "-device".to_owned(),
                format!(
                    "pcie-root-port,id=rp{port},chassis={port},bus=pcie.0,addr={slot:02x}.{function},multifunction=on"
                ),
            ]);
        }
        for Device { name, qemu, at, backing, .. } in &self.devices {
            let mut push = |option: &str, value: String| all.extend([option.to_owned(), value]);
            let more = match backing {
                Backing::None => String::new(),
                Backing::Disk(size) => {
                    files::sparse(&run.join(format!("{name}.img")), *size)?;
                    push("-drive", format!("if=none,id={name},file={name}.img,format=raw"));
                    format!(",drive={name},serial=lab-{name}")
                }
                Backing::Memory(size) => {
                    push(
                        "-object",
                        format!("memory-backend-memfd,id={name},size={size},reserve=off,share=on"),
                    );
                    format!(",memdev={name}")
                }
                Backing::Net => {
                    push("-netdev", format!("user,id={name}"));
                    format!(",netdev={name}")
                }
                Backing::SerialFile => {
                    push("-chardev", format!("file,id={name},path={name}.txt"));
                    format!(",chardev={name}")
                }
                Backing::Rom => {
                    files::write_whole(&run.join(format!("{name}.rom")), &option_rom(name, 24))?;
                    format!(",romfile={name}.rom")
                }
            };
            if qemu.contains("lsa=labels") {
                push("-object", "memory-backend-memfd,id=labels,size=1M,share=on".to_owned());
            }
            push("-device", format!("{qemu},id={name},{at}{more}"));
        }
        Ok(all)
    }
}

/// An SSDT with one device, `\_SB.LABX` with the ID LABT0001.
fn ssdt() -> Vec<u8> {
    // Scope (\_SB_) { Device (LABX) { Name (_HID, "LABT0001") } } (ACPI 6.5, 20.2.5).
    let name = [b"\x08_HID\x0d", &b"LABT0001\0"[..]].concat();
    let device = [b"\x5b\x82", &[name.len() as u8 + 5][..], b"LABX", &name].concat();
    let scope = [b"\x10", &[device.len() as u8 + 6][..], b"\\_SB_", &device].concat();
    let length = 36 + scope.len() as u32;
    let header: [&[u8]; 7] = [
        b"SSDT",
        &length.to_le_bytes(),
        &[2, 0],
        b"LAB   LABTABLE",
        &1_u32.to_le_bytes(),
        b"LAB ",
        &1_u32.to_le_bytes(),
    ];
    let mut table = [header.concat(), scope].concat();
    table[9] = table.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    table
}

/// Makes up an option ROM of so many KiB: a valid image (PCI Firmware 3.3, 5.1) of a code type that no firmware
/// runs, filled with bytes that differ everywhere.
pub(crate) fn option_rom(seed: &str, kib: u8) -> Vec<u8> {
    let size = usize::from(kib) * 1024;
    let mut state = seed
        .bytes()
        .fold(0x9e37_79b9u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    let mut rom: Vec<u8> = (0..size)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            state.to_le_bytes()[3]
        })
        .collect();
    rom[..2].copy_from_slice(&[0x55, 0xaa]);
    // Pointer to the data structure, which must be 4-byte aligned.
    rom[0x18..0x1a].copy_from_slice(&0x20u16.to_le_bytes());
    rom[0x20..0x24].copy_from_slice(b"PCIR");
    rom[0x24..0x28].copy_from_slice(&[0x34, 0x12, 0xe8, 0x11]); // edu: 1234:11e8
    rom[0x28..0x2a].copy_from_slice(&[0, 0]);
    rom[0x2a..0x2c].copy_from_slice(&0x1cu16.to_le_bytes());
    rom[0x2c..0x30].copy_from_slice(&[3, 0xff, 0, 0]); // revision, class
    rom[0x30..0x32].copy_from_slice(&(u16::from(kib) * 2).to_le_bytes());
    rom[0x32..0x34].copy_from_slice(&[0, 0]);
    rom[0x34..0x36].copy_from_slice(&[1, 0x80]); // code type: Open Firmware; last image
    rom
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_of_a_host_have_names_and_places_of_their_own() {
        for kind in
            [HostKind::Main, HostKind::Narrow, HostKind::Amd, HostKind::Many, HostKind::Desk]
        {
            let host = Host::of(kind);
            for (n, one) in host.devices.iter().enumerate() {
                for other in &host.devices[n + 1..] {
                    assert_ne!(one.name, other.name);
                    assert_ne!(one.bdf, other.bdf);
                }
            }
        }
    }

    #[test]
    fn option_rom_says_its_own_length() {
        let rom = option_rom("x", 24);
        assert_eq!(rom.len(), usize::from(u16::from_le_bytes([rom[0x30], rom[0x31]])) * 512);
        assert_ne!(rom[4096..8192], rom[8192..12288]);
    }
}
