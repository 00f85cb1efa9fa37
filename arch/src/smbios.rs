//! SMBIOS tables: what `dmidecode` and Windows' system information show (DMTF DSP0134, version 3.6; sections are its).
//!
//! The least that 6.2 requires, as far as a virtual machine has an answer: firmware, system, chassis, processors,
//! memory. A 64-bit entry point at 0xF0000, where a guest without firmware scans for it (5.2), the tables behind it.

use strait_resources::range::AddressRange;
use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryError};

use crate::{
    cpuid::CpuTopology,
    layout::{SMBIOS_END, SMBIOS_START},
};

/// What the tables tell about the machine.
#[derive(Clone, Debug)]
pub struct SmbiosSpec<'a> {
    /// The machine's identity, in the byte order it is written in (RFC 9562).
    pub uuid: [u8; 16],
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

const MAKER: &str = "strait";
const PRODUCT: &str = "strait q35";
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// Not of a build: the same tables come from the same sources.
const RELEASE_DATE: &str = "01/01/2026";

const OTHER: u8 = 1;
const SAFE: u8 = 3;
const NO_HANDLE: u16 = 0xfffe;
/// The physical memory array, to which memory devices and mapped ranges belong.
const ARRAY_HANDLE: u16 = 0x1000;

fn tables(spec: &SmbiosSpec<'_>) -> Vec<u8> {
    let ram = spec.ram.iter().fold(0_u64, |sum, range| sum.saturating_add(range.len()));
    let mut tables = Vec::new();
    firmware(spec).end(&mut tables);
    system(spec).end(&mut tables);
    chassis().end(&mut tables);
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
    memory_array(ram).end(&mut tables);
    memory_device(ram).end(&mut tables);
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
        .text(MAKER)
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
fn system(spec: &SmbiosSpec<'_>) -> Structure {
    const POWER_SWITCH: u8 = 6;
    let mut uuid = spec.uuid;
    // 7.2.1: the first three fields are little-endian.
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    Structure::new(1, 0x0100)
        .text(MAKER)
        .text(PRODUCT)
        .text(VERSION)
        .text("")
        .bytes(&uuid)
        .byte(POWER_SWITCH)
        .text("")
        .text("")
}

/// 7.4.
fn chassis() -> Structure {
    const SECURITY_NONE: u8 = 3;
    Structure::new(3, 0x0300)
        .text(MAKER)
        .byte(OTHER)
        .text(VERSION)
        .text("")
        .text("")
        .bytes(&[SAFE, SAFE, SAFE, SECURITY_NONE])
        .dword(0)
        // Height and power cords unknown, no contained elements.
        .bytes(&[0; 4])
        .text("")
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
        .text(MAKER)
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
fn memory_device(ram: u64) -> Structure {
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
        .text(MAKER)
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
    fn text(mut self, text: &str) -> Self {
        if text.is_empty() {
            return self.byte(0);
        }
        self.strings.extend_from_slice(text.as_bytes());
        self.strings.push(0);
        self.count += 1;
        let number = self.count;
        self.byte(number)
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
mod tests {
    use vm_memory::GuestMemoryMmap;

    use super::*;

    const GIB: u64 = 1 << 30;

    /// One structure, read back.
    struct Read {
        kind: u8,
        handle: u16,
        formatted: Vec<u8>,
        strings: Vec<String>,
    }

    impl Read {
        fn text(&self, at: usize) -> &str {
            &self.strings[usize::from(self.formatted[at]) - 1]
        }

        fn number(&self, at: usize, len: usize) -> u64 {
            self.formatted[at..at + len]
                .iter()
                .rev()
                .fold(0, |sum, &byte| sum << 8 | u64::from(byte))
        }
    }

    /// Walks the tables as 6.1.2 says: length, then strings up to an empty one.
    fn read(mut tables: &[u8]) -> Vec<Read> {
        let mut all = Vec::new();
        while !tables.is_empty() {
            let (formatted, rest) = tables.split_at(usize::from(tables[1]));
            let end = rest.windows(2).position(|two| two == [0, 0]).unwrap();
            let strings = std::str::from_utf8(&rest[..end]).unwrap();
            let handle = u16::from_le_bytes([formatted[2], formatted[3]]);
            all.push(Read {
                kind: formatted[0],
                handle,
                formatted: formatted.to_vec(),
                strings: strings.split('\0').map(str::to_owned).collect(),
            });
            tables = &rest[end + 2..];
        }
        all
    }

    fn spec(ram: &[AddressRange]) -> SmbiosSpec<'_> {
        SmbiosSpec {
            uuid: *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff",
            ram,
            cpus: 6,
            topology: CpuTopology { threads_per_core: 2, cores_per_package: 2 },
            cpu_id: (0x000c_0662, 0x178b_fbff),
            virtual_machine: true,
        }
    }

    fn ram() -> [AddressRange; 2] {
        [(0, 2 * GIB), (4 * GIB, 6 << 40)].map(|(at, len)| AddressRange::new(at, len).unwrap())
    }

    fn of_kind(all: &[Read], kind: u8) -> Vec<&Read> {
        all.iter().filter(|read| read.kind == kind).collect()
    }

    #[test]
    fn tables_hold_every_structure_with_a_handle_of_its_own() {
        let all = read(&Smbios::new(&spec(&ram())).unwrap().tables);

        let kinds: Vec<u8> = all.iter().map(|read| read.kind).collect();
        assert_eq!(kinds, [0, 1, 3, 4, 4, 16, 17, 19, 19, 32, 127]);
        let mut handles: Vec<u16> = all.iter().map(|read| read.handle).collect();
        handles.dedup();
        assert_eq!(handles.len(), kinds.len());
        // The lengths of the specification's versions 3.1 (0), 2.4 (1), 2.7 (3), 3.0 (4), 2.7 (16), 2.8 (17), 2.7 (19).
        let lengths: Vec<usize> = all.iter().map(|read| read.formatted.len()).collect();
        assert_eq!(lengths, [0x1a, 0x1b, 0x16, 0x30, 0x30, 0x17, 0x28, 0x1f, 0x1f, 0xb, 4]);
    }

    #[test]
    fn entry_point_sums_to_zero_and_leads_to_the_tables() {
        let memory: GuestMemoryMmap =
            GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap();
        let smbios = Smbios::new(&spec(&ram())).unwrap();
        smbios.write(&memory).unwrap();

        let mut entry = [0; ENTRY_LEN];
        memory.read_slice(&mut entry, GuestAddress(0xf_0000)).unwrap();
        assert_eq!(&entry[..5], b"_SM3_");
        assert_eq!(entry.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        let at = u64::from_le_bytes(entry[16..].try_into().unwrap());
        let mut tables = vec![0; u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize];
        memory.read_slice(&mut tables, GuestAddress(at)).unwrap();
        assert_eq!(tables, smbios.tables);
    }

    #[test]
    fn system_names_the_machine_and_its_uuid_in_mixed_order() {
        let all = read(&Smbios::new(&spec(&ram())).unwrap().tables);
        let system = of_kind(&all, 1)[0];
        assert_eq!((system.text(4), system.text(5)), ("strait", "strait q35"));
        assert_eq!(
            system.formatted[8..24],
            *b"\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff"
        );
    }

    #[test]
    fn virtual_machine_bit_is_gone_when_hiding() {
        for virtual_machine in [true, false] {
            let spec = SmbiosSpec { virtual_machine, ..spec(&[]) };
            let all = read(&Smbios::new(&spec).unwrap().tables);
            assert_eq!(all[0].formatted[0x13] & 1 << 4 != 0, virtual_machine);
        }
    }

    #[test]
    fn sockets_share_out_the_processors() {
        let all = read(&Smbios::new(&spec(&ram())).unwrap().tables);
        let counts: Vec<_> = of_kind(&all, 4)
            .iter()
            .map(|cpu| (cpu.text(4), cpu.formatted[0x23], cpu.formatted[0x25]))
            .collect();
        assert_eq!(counts, [("CPU 0", 2, 4), ("CPU 1", 1, 2)]);
    }

    #[test]
    fn terabytes_of_ram_use_the_extended_fields() {
        let all = read(&Smbios::new(&spec(&ram())).unwrap().tables);
        let total = 2 * GIB + (6 << 40);

        let array = of_kind(&all, 16)[0];
        assert_eq!((array.number(7, 4), array.number(15, 8)), (0x8000_0000, total));
        let device = of_kind(&all, 17)[0];
        assert_eq!((device.number(0xc, 2), device.number(0x1c, 4)), (0x7fff, total >> 20));
        let ranges = of_kind(&all, 19);
        assert_eq!((ranges[0].number(4, 4), ranges[0].number(8, 4)), (0, 0x1f_ffff));
        assert_eq!((ranges[1].number(4, 4), ranges[1].number(15, 8)), (0xffff_ffff, 4 * GIB));
    }

    #[test]
    fn thousands_of_ranges_are_refused() {
        let many: Vec<_> =
            (0..3000).map(|i| AddressRange::new(i << 22, 1 << 21).unwrap()).collect();
        assert!(matches!(Smbios::new(&spec(&many)), Err(SmbiosError::TooLarge(_))));
    }
}
