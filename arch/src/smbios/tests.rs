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
        self.formatted[at..at + len].iter().rev().fold(0, |sum, &byte| sum << 8 | u64::from(byte))
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

const UUID: [u8; 16] = *b"\x00\x11\x22\x33\x44\x55\x66\x77\x88\x99\xaa\xbb\xcc\xdd\xee\xff";

fn usual() -> &'static Identity {
    static USUAL: std::sync::OnceLock<Identity> = std::sync::OnceLock::new();
    USUAL.get_or_init(|| Identity::usual(UUID, false))
}

fn spec(ram: &[AddressRange]) -> SmbiosSpec<'_> {
    SmbiosSpec {
        identity: usual(),
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
    assert_eq!(kinds, [0, 1, 2, 3, 4, 4, 16, 17, 19, 19, 32, 127]);
    let mut handles: Vec<u16> = all.iter().map(|read| read.handle).collect();
    handles.dedup();
    assert_eq!(handles.len(), kinds.len());
    // The lengths of the specification's versions 3.1 (0), 2.4 (1), 2.0 (2), 2.7 (3), 3.0 (4), 2.7 (16), 2.8 (17), 2.7 (19).
    let lengths: Vec<usize> = all.iter().map(|read| read.formatted.len()).collect();
    assert_eq!(lengths, [0x1a, 0x1b, 0x0f, 0x16, 0x30, 0x30, 0x17, 0x28, 0x1f, 0x1f, 0xb, 4]);
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
    let many: Vec<_> = (0..3000).map(|i| AddressRange::new(i << 22, 1 << 21).unwrap()).collect();
    assert!(matches!(Smbios::new(&spec(&many)), Err(SmbiosError::TooLarge(_))));
}

#[test]
fn what_a_user_says_is_in_every_structure_that_has_a_place_for_it() {
    let identity = Identity {
        uuid: UUID,
        manufacturer: "Maker".into(),
        product: "Model".into(),
        version: "7".into(),
        serial: "S-1".into(),
        sku: "K".into(),
        family: "F".into(),
        asset: "A".into(),
        oem: vec!["io.systemd.credential:a=b".into(), "second".into()],
    };
    let all =
        read(&Smbios::new(&SmbiosSpec { identity: &identity, ..spec(&ram()) }).unwrap().tables);
    let texts = |kind: u8, at: &[usize]| -> Vec<String> {
        let structure = of_kind(&all, kind)[0];
        at.iter().map(|at| structure.text(*at).to_owned()).collect()
    };
    assert_eq!(texts(1, &[4, 5, 6, 7, 0x19, 0x1a]), ["Maker", "Model", "7", "S-1", "K", "F"]);
    assert_eq!(texts(2, &[4, 5, 6, 7, 8]), ["Maker", "Model", "7", "S-1", "A"]);
    assert_eq!(texts(3, &[4, 6, 7, 8, 0x15]), ["Maker", "7", "S-1", "A", "K"]);
    assert_eq!(of_kind(&all, 2)[0].number(0xb, 2), u64::from(of_kind(&all, 3)[0].handle));
    let oem = of_kind(&all, 11)[0];
    assert_eq!((oem.formatted[4], oem.formatted.len()), (2, 5));
    assert_eq!(oem.strings, ["io.systemd.credential:a=b", "second"]);
}

#[test]
fn hidden_machine_names_no_monitor() {
    let hidden = Identity::usual(UUID, true);
    let spec = SmbiosSpec { identity: &hidden, virtual_machine: false, ..spec(&[]) };
    let tables = Smbios::new(&spec).unwrap().tables;
    let text = String::from_utf8_lossy(&tables).to_lowercase();
    for word in ["strait", "kvm", "qemu", "virtual"] {
        assert!(!text.contains(word), "{word}");
    }
    assert_eq!(of_kind(&read(&tables), 1)[0].text(5), "System Product Name");
}

#[test]
fn number_of_a_machine_follows_from_its_description() {
    let number = uuid_of(b"a machine");
    assert_eq!(number, uuid_of(b"a machine"));
    assert_ne!(number, uuid_of(b"a machind"));
    assert_eq!((number[6] >> 4, number[8] >> 6), (8, 2), "version 8, variant 10b");
    // 128-bit FNV-1a of nothing is its offset basis.
    assert_eq!(uuid_of(b"")[..4], [0x6c, 0x62, 0x27, 0x2e]);
}
