//! BARs of every kind: huge, smaller than a page, I/O, ROM, several functions; and BARs that move.

use crate::{
    files,
    hosts::{HostKind, option_rom},
    memory,
    outcome::Outcome,
    scenario::{Scenario, Vm},
    words::sum,
};

/// Are the guest's patterns in L0's memory behind the device?
fn memory_holds(outcome: &Outcome, mib: u64) -> Result<(), String> {
    let size = mib << 20;
    for (name, at) in [("start", 0), ("middle", size / 2), ("end", size - 4096)] {
        let wanted = sum(format!("{}/{mib}/{name}", outcome.nonce).as_bytes());
        let found = memory::read64(outcome.pid, size, at)?;
        if found != wanted {
            return Err(format!("L0 sees {found:#x} at the {name}, the guest wrote {wanted:#x}"));
        }
    }
    Ok(())
}

fn rom_report(seed: &str, kib: u8) -> String {
    let rom = option_rom(seed, kib);
    format!("{} bytes, sum {:016x}", rom.len(), sum(&rom))
}

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = kinds();
    all.extend(moves());
    all
}

fn kinds() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "bar-16m",
            HostKind::Main,
            "memory of a device, and a BAR smaller than a page",
        )
        .vm(Vm::new("a", "ivshmem,16,{nonce};pci").device("bar16m"))
        .check(|outcome| memory_holds(outcome, 16)),
        Scenario::new(
            "bar-32g",
            HostKind::Main,
            "a BAR of 32 GiB: start, middle and end, seen by L0 too",
        )
        .limit(240)
        .vm(Vm::new("a", "ivshmem,32768,{nonce};pci").device("bar32g").device("edu1"))
        .check(|outcome| memory_holds(outcome, 32768)),
        Scenario::new(
            "four-functions",
            HostKind::Main,
            "a slot of four functions arrives as one device",
        )
        .vm(Vm::new("a", "pci;edu,0;nvme-verify,0,{nonce}/7")
            .slot("slot0")
            .modules(&["nvme", "xhci_pci"]))
        .check(|outcome| {
            let ids = ["1234:11e8", "1b36:000d", "8086:2668", "1b36:0010"];
            let guest = outcome.vm("a")?;
            let places: Vec<&str> = ids
                .iter()
                .filter_map(|id| guest.all("pci").find(|line| line.contains(id)))
                .filter_map(|line| line.split(' ').next())
                .collect();
            let slot = places.first().and_then(|place| place.split('.').next());
            let numbers: Vec<_> =
                places.iter().filter_map(|place| place.rsplit('.').next()).collect();
            let same = places.iter().all(|place| place.split('.').next() == slot);
            if same && numbers == ["0", "1", "2", "3"] {
                Ok(())
            } else {
                Err(format!("the functions are at {places:?}"))
            }
        }),
        Scenario::new(
            "io-bar",
            HostKind::Main,
            "a serial card: bytes out of an I/O BAR arrive on L0",
        )
        .vm(Vm::new("a", "serial,{nonce};pci").device("serial"))
        .check(|outcome| {
            let text = files::text(&outcome.run.join("serial.txt"));
            let line = format!("{} through an I/O BAR", outcome.nonce);
            let count = text.lines().filter(|got| got.trim_end() == line).count();
            if count == 8 { Ok(()) } else { Err(format!("{count} of 8 lines arrived: {text:?}")) }
        }),
        Scenario::new("rom", HostKind::Main, "the option ROM reads byte for byte")
            .vm(Vm::new("a", "rom,1234:11e8,0;edu,0").device("edu0"))
            .reports("a", "rom", &rom_report("edu0", 24)),
        Scenario::new("rom-file", HostKind::Main, "rom=FILE replaces it")
            .vm(Vm::new("a", "rom,1234:11e8,0").device_with("edu0", "rom=/tmp/other.rom"))
            .script("bind {all}\ncp /lab/other.rom /tmp/other.rom || exit 1\nvm_a\n")
            .reports("a", "rom", &rom_report("other", 40)),
        Scenario::new("rom-off", HostKind::Main, "rom=off takes it away")
            .vm(Vm::new("a", "rom,1234:11e8,0;edu,0").device_with("edu0", "rom=off"))
            .reports("a", "rom", "none"),
        Scenario::new(
            "guest-address",
            HostKind::Main,
            "guest-address= puts the device exactly there",
        )
        .strait_only()
        .vm(Vm::new("a", "pci;edu,0").device_with("edu1", "guest-address=05:00.0"))
        .check(|outcome| {
            let mut lines = outcome.vm("a")?.all("pci");
            let there = lines.any(|line| line.starts_with("0000:05:00.0 1234:11e8"));
            if there { Ok(()) } else { Err("edu is not at 05:00.0".to_owned()) }
        }),
    ]
}

fn moves() -> Vec<Scenario> {
    vec![
        Scenario::new("rescan", HostKind::Main, "a removed device is found again and works").vm(
            Vm::new("a", "rescan,1b36:0010,0;nvme-verify,0,{nonce}/8")
                .device("nvme0")
                .modules(&["nvme"]),
        ),
        Scenario::new("bar-move", HostKind::Main, "a BAR moves with decoding off and on, and back")
            .vm(Vm::new("a", "move-edu,0").device("edu1"))
            .strait_check(|outcome| {
                let absent = outcome.vm("a")?.report("bars.absent")?;
                let ones = absent == "0xffffffffffffffff";
                if ones { Ok(()) } else { Err(format!("the place it left reads {absent}")) }
            }),
        Scenario::new("bar-swap", HostKind::Main, "two devices swap places through an overlap")
            .vm(Vm::new("a", "swap-edus,0,1").device("edu0").device("edu1")),
        Scenario::new(
            "bar-move-nvme",
            HostKind::Main,
            "a disk that was moved with its bridge works there",
        )
        .vm(Vm::new("a", "move-nvme,0,{nonce}/9").device("nvme0").modules(&["nvme"])),
    ]
}
