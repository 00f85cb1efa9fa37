//! SMBIOS tables: what `dmidecode` and Windows' system information show (DMTF DSP0134, version 3.6; sections are its).
//!
//! What 6.2 requires, as far as a virtual machine has an answer: firmware, system, board, chassis, processors, memory;
//! and the user's OEM strings. A 64-bit entry point at 0xF0000, where a guest without firmware scans for it (5.2), the
//! tables behind it.

use strait_resources::range::AddressRange;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::{
    cpuid::CpuTopology,
    layout::{SMBIOS_END, SMBIOS_START},
};

/// Who made the machine, and which one it is. Texts are printable ASCII; an empty one is not there.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The machine's own number, in the byte order it is written in (RFC 9562).
    pub uuid: [u8; 16],
    /// Maker of system, board and chassis.
    pub manufacturer: String,
    /// The model.
    pub product: String,
    /// The model's version.
    pub version: String,
    /// Serial number of system, board and chassis.
    pub serial: String,
    /// Which configuration of the model.
    pub sku: String,
    /// Models that belong together.
    pub family: String,
    /// The owner's number for board and chassis.
    pub asset: String,
    /// Free texts (7.12), 255 at most.
    pub oem: Vec<String>,
}

/// Letters of a machine that says who made it.
const MAKER: &str = "strait";
const PRODUCT: &str = "strait q35";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// What firmware says whose maker filled nothing in: for a guest that shall not know what it runs on.
const NOBODY: [&str; 3] = ["System manufacturer", "System Product Name", "System Version"];

impl Identity {
    /// What a machine says of itself unless asked otherwise. `hidden`: nothing that names a monitor.
    pub fn usual(uuid: [u8; 16], hidden: bool) -> Self {
        let names = if hidden { NOBODY } else { [MAKER, PRODUCT, VERSION] };
        let [manufacturer, product, version] = names.map(str::to_owned);
        Self { uuid, manufacturer, product, version, ..Self::default() }
    }
}

/// A number for a machine that always has the same description, and no other (RFC 9562, 5.8: a UUID of version 8, by
/// 128-bit FNV-1a).
pub fn uuid_of(description: &[u8]) -> [u8; 16] {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let hash = description
        .iter()
        .fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME));
    let mut uuid = hash.to_be_bytes();
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}

/// What the tables tell about the machine.
#[derive(Clone, Debug)]
pub struct SmbiosSpec<'a> {
    /// Who it is.
    pub identity: &'a Identity,
    /// RAM as in the plan; multiples of 1 KiB.
    pub ram: &'a [AddressRange],
    /// vCPUs in the machine.
    pub cpus: u32,
    /// How they are arranged.
    pub topology: CpuTopology,
    /// EAX and EDX of CPUID leaf 1.
    pub cpu_id: (u32, u32),
    /// Do the tables say that this is a virtual machine? Not when the hypervisor hides.
    pub virtual_machine: bool,
}

/// Why there are no tables.
#[derive(Debug, thiserror::Error)]
pub enum SmbiosError {
    /// Hundreds of RAM ranges or sockets.
    #[error("SMBIOS tables of {0} bytes do not fit into their 64 KiB")]
    TooLarge(usize),
    /// There is no RAM where they belong.
    #[error("cannot write the SMBIOS tables into guest memory")]
    Memory(#[source] GuestMemoryError),
}

/// Entry point and tables, apart because a firmware takes them apart (fw_cfg: `smbios-anchor`, `smbios-tables`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Smbios {
    /// The 64-bit entry point, with the address of the tables behind it in low memory.
    pub entry: [u8; ENTRY_LEN],
    /// The structures.
    pub tables: Vec<u8>,
}

const ENTRY_LEN: usize = 24;
const ENTRY_ROOM: u64 = 32;

impl Smbios {
    /// Tables for this machine.
    ///
    /// # Errors
    /// [`SmbiosError::TooLarge`] when they do not fit below 1 MiB.
    pub fn new(spec: &SmbiosSpec<'_>) -> Result<Self, SmbiosError> {
        let tables = tables(spec);
        let address = SMBIOS_START + ENTRY_ROOM;
        let room = SMBIOS_END + 1 - address;
        let size = u32::try_from(tables.len())
            .ok()
            .filter(|&size| u64::from(size) <= room)
            .ok_or(SmbiosError::TooLarge(tables.len()))?;
        Ok(Self { entry: entry_point(address, size), tables })
    }

    /// Puts both at their place in low memory.
    ///
    /// # Errors
    /// [`SmbiosError::Memory`] when that is no RAM.
    pub fn write<M: GuestMemoryBackend>(&self, memory: &M) -> Result<(), SmbiosError> {
        let write = |bytes: &[u8], at| memory.write_slice(bytes, GuestAddress(at));
        write(&self.entry, SMBIOS_START).map_err(SmbiosError::Memory)?;
        write(&self.tables, SMBIOS_START + ENTRY_ROOM).map_err(SmbiosError::Memory)
    }
}

/// 5.2.2.
fn entry_point(address: u64, size: u32) -> [u8; ENTRY_LEN] {
    let mut entry = [0; ENTRY_LEN];
    entry[..5].copy_from_slice(b"_SM3_");
    entry[6] = 24;
    // Version 3.1, whose structures these are, each in its full length; revision 1 of the entry point.
    (entry[7], entry[8], entry[10]) = (3, 1, 1);
    entry[12..16].copy_from_slice(&size.to_le_bytes());
    entry[16..].copy_from_slice(&address.to_le_bytes());
    entry[5] = entry.iter().fold(0_u8, |sum, byte| sum.wrapping_sub(*byte));
    entry
}

/// Not of a build: the same tables come from the same sources.
const RELEASE_DATE: &str = "01/01/2026";

const OTHER: u8 = 1;
const SAFE: u8 = 3;
const NO_HANDLE: u16 = 0xfffe;
const CHASSIS_HANDLE: u16 = 0x0300;
/// The physical memory array, to which memory devices and mapped ranges belong.
const ARRAY_HANDLE: u16 = 0x1000;

fn tables(spec: &SmbiosSpec<'_>) -> Vec<u8> {
    let ram = spec.ram.iter().fold(0_u64, |sum, range| sum.saturating_add(range.len()));
    let mut tables = Vec::new();
    firmware(spec).end(&mut tables);
    system(spec.identity).end(&mut tables);
    board(spec.identity).end(&mut tables);
    chassis(spec.identity).end(&mut tables);
    let per_package = spec
        .topology
        .threads_per_core
        .max(1)
        .saturating_mul(spec.topology.cores_per_package.max(1));
    // More would be too large in any case, as the caller will notice.
    let sockets = spec.cpus.max(1).div_ceil(per_package).min(2048);
    for socket in 0..sockets {
        let cpus =
            spec.cpus.max(1).saturating_sub(socket.saturating_mul(per_package)).min(per_package);
        processor(spec, socket, cpus).end(&mut tables);
    }
    if !spec.identity.oem.is_empty() {
        oem_strings(&spec.identity.oem).end(&mut tables);
    }
    memory_array(ram).end(&mut tables);
    memory_device(spec.identity, ram).end(&mut tables);
    for (number, range) in (0..).zip(spec.ram) {
        mapped_range(number, *range).end(&mut tables);
    }
    // 7.33, system boot information: no errors.
    Structure::new(32, 0x2000).bytes(&[0; 6]).byte(0).end(&mut tables);
    // 7.45, end of table.
    Structure::new(127, 0x7f00).end(&mut tables);
    tables
}

/// 7.1.
fn firmware(spec: &SmbiosSpec<'_>) -> Structure {
    // Characteristics that follow say what there is; bit 3 says that this field does not.
    const NOT_SUPPORTED: u64 = 1 << 3;
    // Extension byte 2: targeted content distribution, and whether this is a virtual machine.
    let extension = 1 << 2 | u8::from(spec.virtual_machine) << 4;
    Structure::new(0, 0)
        .text(if spec.virtual_machine { MAKER } else { "BIOS" })
        .text(VERSION)
        .word(0xe800)
        .text(RELEASE_DATE)
        .byte(0)
        .qword(NOT_SUPPORTED)
        .bytes(&[1, extension])
        // No releases of firmware and embedded controller; extended ROM size as in the byte above.
        .bytes(&[0xff; 4])
        .word(0)
}

/// 7.2.
fn system(identity: &Identity) -> Structure {
    const POWER_SWITCH: u8 = 6;
    let mut uuid = identity.uuid;
    // 7.2.1: the first three fields are little-endian.
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    Structure::new(1, 0x0100)
        .text(&identity.manufacturer)
        .text(&identity.product)
        .text(&identity.version)
        .text(&identity.serial)
        .bytes(&uuid)
        .byte(POWER_SWITCH)
        .text(&identity.sku)
        .text(&identity.family)
}

/// 7.3.
fn board(identity: &Identity) -> Structure {
    const HOSTING: u8 = 1;
    const MOTHERBOARD: u8 = 0x0a;
    Structure::new(2, 0x0200)
        .text(&identity.manufacturer)
        .text(&identity.product)
        .text(&identity.version)
        .text(&identity.serial)
        .text(&identity.asset)
        .byte(HOSTING)
        // Nowhere in particular in the chassis.
        .text("")
        .word(CHASSIS_HANDLE)
        // No list of objects on it.
        .bytes(&[MOTHERBOARD, 0])
}

/// 7.4.
fn chassis(identity: &Identity) -> Structure {
    const SECURITY_NONE: u8 = 3;
    Structure::new(3, CHASSIS_HANDLE)
        .text(&identity.manufacturer)
        .byte(OTHER)
        .text(&identity.version)
        .text(&identity.serial)
        .text(&identity.asset)
        .bytes(&[SAFE, SAFE, SAFE, SECURITY_NONE])
        .dword(0)
        // Height and power cords unknown, no contained elements.
        .bytes(&[0; 4])
        .text(&identity.sku)
}

/// 7.12: how many, then the strings alone.
fn oem_strings(strings: &[String]) -> Structure {
    let count = u8::try_from(strings.len()).unwrap_or(u8::MAX);
    let structure = Structure::new(11, 0x0b00).byte(count);
    strings.iter().take(count.into()).fold(structure, |structure, text| structure.string(text))
}

/// 7.5. `cpus` are the logical processors of this socket.
fn processor(spec: &SmbiosSpec<'_>, socket: u32, cpus: u32) -> Structure {
    const CENTRAL: u8 = 3;
    const POPULATED_ENABLED: u8 = 1 << 6 | 1;
    const CAPABLE_64_BIT: u16 = 1 << 2;
    const MULTI_CORE: u16 = 1 << 3;
    const HARDWARE_THREAD: u16 = 1 << 4;
    let threads = spec.topology.threads_per_core.max(1);
    let (cores, cpus) = (clamp(cpus.div_ceil(threads)), clamp(cpus));
    let count = |number: u16| u8::try_from(number).unwrap_or(0xff);
    let mut characteristics = CAPABLE_64_BIT;
    characteristics |= if cores > 1 { MULTI_CORE } else { 0 };
    characteristics |= if threads > 1 { HARDWARE_THREAD } else { 0 };
    Structure::new(4, 0x0400_u16.saturating_add(clamp(socket)))
        .text(&format!("CPU {socket}"))
        .bytes(&[CENTRAL, OTHER])
        .text(&spec.identity.manufacturer)
        .dword(spec.cpu_id.0)
        .dword(spec.cpu_id.1)
        .text("")
        // Voltage, external clock, maximum and current speed unknown.
        .bytes(&[0; 7])
        .bytes(&[POPULATED_ENABLED, OTHER])
        // No caches of levels 1 to 3 are described: the guest reads them from CPUID.
        .bytes(&[0xff; 6])
        .text("")
        .text("")
        .text("")
        .bytes(&[count(cores), count(cores), count(cpus)])
        .word(characteristics)
        // Family, once more with 16 bits.
        .word(u16::from(OTHER))
        .word(cores)
        .word(cores)
        .word(cpus)
}

fn clamp(number: u32) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// 7.17.
fn memory_array(ram: u64) -> Structure {
    const SYSTEM_BOARD: u8 = 3;
    const SYSTEM_MEMORY: u8 = 3;
    const NO_ERROR_CORRECTION: u8 = 3;
    const SEE_EXTENDED: u32 = 0x8000_0000;
    let kib = u32::try_from(ram >> 10).ok().filter(|&kib| kib < SEE_EXTENDED);
    Structure::new(16, ARRAY_HANDLE)
        .bytes(&[SYSTEM_BOARD, SYSTEM_MEMORY, NO_ERROR_CORRECTION])
        .dword(kib.unwrap_or(SEE_EXTENDED))
        .word(NO_HANDLE)
        .word(1)
        .qword(if kib.is_none() { ram } else { 0 })
}

/// 7.18: one, however large: RAM has no modules.
fn memory_device(identity: &Identity, ram: u64) -> Structure {
    const WIDTH_UNKNOWN: u16 = 0xffff;
    const DIMM: u8 = 9;
    const RAM: u8 = 7;
    const DETAIL_OTHER: u16 = 1 << 1;
    const SEE_EXTENDED: u16 = 0x7fff;
    let mib = u32::try_from(ram >> 20).unwrap_or(u32::MAX).min(0x7fff_ffff);
    let short = u16::try_from(mib).ok().filter(|&mib| mib < SEE_EXTENDED);
    Structure::new(17, 0x1100)
        .word(ARRAY_HANDLE)
        .word(NO_HANDLE)
        .word(WIDTH_UNKNOWN)
        .word(WIDTH_UNKNOWN)
        .word(short.unwrap_or(SEE_EXTENDED))
        .bytes(&[DIMM, 0])
        .text("DIMM 0")
        .text("")
        .byte(RAM)
        .word(DETAIL_OTHER)
        .word(0)
        .text(&identity.manufacturer)
        .text("")
        .text("")
        .text("")
        .byte(0)
        .dword(if short.is_none() { mib } else { 0 })
        // Speed and voltages unknown.
        .bytes(&[0; 8])
}

/// 7.20.
fn mapped_range(number: u16, range: AddressRange) -> Structure {
    const SEE_EXTENDED: u32 = u32::MAX;
    let kib = |address: u64| u32::try_from(address >> 10).ok().filter(|&kib| kib != SEE_EXTENDED);
    let short = kib(range.first()).zip(kib(range.last()));
    let (first, last) = short.unwrap_or((SEE_EXTENDED, SEE_EXTENDED));
    let (long_first, long_last) =
        if short.is_some() { (0, 0) } else { (range.first(), range.last()) };
    Structure::new(19, 0x1300_u16.saturating_add(number))
        .dword(first)
        .dword(last)
        .word(ARRAY_HANDLE)
        .byte(1)
        .qword(long_first)
        .qword(long_last)
}

/// A structure under construction (6.1.2, 6.1.3): formatted part, then strings, which it counts from 1.
struct Structure {
    formatted: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self { formatted: vec![kind, 0, low, high], strings: Vec::new(), count: 0 }
    }

    fn bytes(mut self, bytes: &[u8]) -> Self {
        self.formatted.extend_from_slice(bytes);
        self
    }

    fn byte(self, value: u8) -> Self {
        self.bytes(&[value])
    }

    fn word(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn dword(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    fn qword(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }

    /// The number of a string; 0, "none", for an empty one.
    fn text(self, text: &str) -> Self {
        if text.is_empty() {
            return self.byte(0);
        }
        let structure = self.string(text);
        let number = structure.count;
        structure.byte(number)
    }

    /// A string that nothing in the formatted part names.
    fn string(mut self, text: &str) -> Self {
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        self.count = self.count.saturating_add(1);
        self
    }

    fn end(mut self, tables: &mut Vec<u8>) {
        // Every formatted part above is far below 256 bytes.
        self.formatted[1] = u8::try_from(self.formatted.len()).unwrap_or(u8::MAX);
        if self.strings.is_empty() {
            self.strings.push(0);
        }
        self.strings.push(0);
        tables.append(&mut self.formatted);
        tables.append(&mut self.strings);
    }
}

#[cfg(test)]
mod tests;
