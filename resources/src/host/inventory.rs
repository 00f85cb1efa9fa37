//! Every function of the host with what can be done with it: the facts behind `strait devices`.
//!
//! The verdict comes from the same checks that a run makes, so a device that is shown as assignable is
//! not refused a minute later.

use super::{
    capabilities::{self, Kind},
    check::{self, Allowed, assignable},
    cpu,
    holders::Holder,
    iommu,
    needs::{Needs, group_node},
    pci::{self, HostFunction},
    sysroot::{SysError, Sysroot},
};
use crate::{
    bar::{BarKind, BarSpec},
    bdf::Bdf,
    failure::Failure,
};

/// One function.
#[derive(Debug)]
pub struct Entry {
    /// All facts of it.
    pub function: HostFunction,
    /// Can it be passed?
    pub verdict: Verdict,
    /// Address space it needs in a guest.
    pub totals: Totals,
    /// The firmware's number of the physical slot: what is printed on the board, mostly.
    pub slot: Option<String>,
    /// The bridges above it, from the host bridge down: how two identical cards differ.
    pub path: Vec<Bdf>,
    /// PCI Express device serial number; needs root to be seen.
    pub serial: Option<u64>,
}

/// Can a function be passed to a guest?
#[derive(Debug)]
pub enum Verdict {
    /// Now.
    Assignable,
    /// Once these functions of its group, itself among them or not, are on vfio-pci.
    AfterBinding(Vec<Bdf>),
    /// Not, or not without harm to the host.
    No(Failure),
}

/// Bytes of address space, by where it must be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// I/O ports.
    pub io: u64,
    /// BARs that need an address below 4 GiB.
    pub memory32: u64,
    /// BARs that can be above.
    pub memory64: u64,
    /// The expansion ROM, below 4 GiB too when it is shown to the guest.
    pub rom: u64,
}

/// The sum over these BARs; alignment, which a plan adds, is not in it.
pub fn totals(bars: &[BarSpec]) -> Totals {
    let mut totals = Totals::default();
    for bar in bars {
        let total = match bar.kind {
            BarKind::Io => &mut totals.io,
            BarKind::Memory32 { .. } => &mut totals.memory32,
            BarKind::Memory64 { .. } => &mut totals.memory64,
            BarKind::Rom => &mut totals.rom,
        };
        *total = total.saturating_add(bar.size);
    }
    totals
}

/// Every function of the host, by ascending address.
pub fn inventory(sysroot: &Sysroot) -> Result<Vec<Entry>, SysError> {
    let slots = pci::physical_slots(sysroot)?;
    let judge = Judge::new(sysroot)?;
    let mut entries = Vec::new();
    for function in pci::scan(sysroot)? {
        entries.push(Entry {
            verdict: judge.verdict(&function)?,
            totals: totals(&function.bars),
            slot: function.bdf.with_function(0).and_then(|slot| slots.get(&slot).cloned()),
            path: pci::upstream(sysroot, function.bdf)?,
            serial: serial(&function.config),
            function,
        });
    }
    Ok(entries)
}

/// What is the same for every function.
struct Judge<'a> {
    sysroot: &'a Sysroot,
    needs: Needs<'a>,
    is_x86: bool,
}

impl<'a> Judge<'a> {
    fn new(sysroot: &'a Sysroot) -> Result<Self, SysError> {
        let needs = Needs::new(sysroot);
        Ok(Self { sysroot, needs, is_x86: cpu::first_cpu(sysroot)?.is_some() })
    }

    fn verdict(&self, function: &HostFunction) -> Result<Verdict, SysError> {
        // What the device is comes before what the host lacks: a bridge is none with an IOMMU either.
        if !self.is_x86
            && let Err(failure) = check::kvm(self.sysroot)
        {
            return Ok(Verdict::No(failure));
        }
        if !function.is_bridge()
            && function.group.is_none()
            && let Err(failure) = check::vfio(self.sysroot)
        {
            return Ok(Verdict::No(failure));
        }
        let one = std::slice::from_ref(function);
        let refusal =
            assignable::kind(self.sysroot, function).and_then(|()| match function.group {
                Some(group) => assignable::reserved(self.sysroot, group, one)
                    .and_then(|()| assignable::addressed(function))
                    .and_then(|()| {
                        let holders = self.holders_of(group)?;
                        assignable::free(self.sysroot, function.bdf, group, &holders)
                    }),
                None => Ok(()),
            });
        if let Err(failure) = refusal {
            return Ok(Verdict::No(failure));
        }
        let to_bind = self.to_bind(function)?;
        if to_bind.is_empty() {
            return Ok(Verdict::Assignable);
        }
        if let Err(failure) = check::bindable_of(&self.needs, one, &Allowed::default()) {
            return Ok(Verdict::No(failure));
        }
        Ok(Verdict::AfterBinding(to_bind.iter().map(|member| member.bdf).collect()))
    }

    fn holders_of(&self, group: u32) -> Result<Vec<Holder>, SysError> {
        let node = group_node(self.sysroot, &group.to_string())?;
        Ok(self.needs.files()?.holders(&[node]).found)
    }

    /// The function itself unless VFIO has it, and the members of its group that are in the way.
    fn to_bind(&self, function: &HostFunction) -> Result<Vec<HostFunction>, SysError> {
        let Some(group) = function.group else { return Ok(Vec::new()) };
        let members = iommu::members(self.sysroot, group)?;
        let is_in_the_way = |member: &HostFunction| {
            let is_it = member.bdf == function.bdf;
            if is_it { !member.is_on_vfio() } else { assignable::is_foreign(member) }
        };
        Ok(members.into_iter().filter(is_in_the_way).collect())
    }
}

/// Device Serial Number (PCI Express Base 5.0, 7.9.3).
fn serial(config: &[u8]) -> Option<u64> {
    let at = capabilities::find(config, Kind::Extended, capabilities::SERIAL)?.offset;
    let (low, high) = (capabilities::dword(config, at + 4)?, capabilities::dword(config, at + 8)?);
    Some(u64::from(high) << 32 | u64::from(low))
}

// Provenance: functions by hand, in the form of Documentation/ABI/testing/sysfs-bus-pci; no dump of
// a host.
#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        bar::BarIndex,
        host::fixture::{Function, Tree},
    };

    fn entry(tree: &Tree, bdf: &str) -> Entry {
        let bdf: Bdf = bdf.parse().unwrap();
        let entries = inventory(&tree.sysroot()).unwrap();
        entries.into_iter().find(|entry| entry.function.bdf == bdf).unwrap()
    }

    fn refusal(tree: &Tree, bdf: &str) -> Failure {
        match entry(tree, bdf).verdict {
            Verdict::No(failure) => failure,
            other => panic!("{bdf}: {other:?}"),
        }
    }

    fn nic(driver: Option<&'static str>) -> Function<'static> {
        Function { driver, group: Some(7), ..Function::default() }
    }

    #[test]
    fn totals_of_a_v100_are_those_that_its_owners_know() {
        let bar = |index, kind, size| BarSpec { index: BarIndex::new(index).unwrap(), kind, size };
        let wide = BarKind::Memory64 { prefetchable: true };
        let bars = [
            bar(0, BarKind::Memory32 { prefetchable: false }, 16 << 20),
            bar(1, wide, 16 << 30),
            bar(3, wide, 32 << 20),
        ];
        let expected = Totals { memory32: 16 << 20, memory64: 16_416 << 20, ..Totals::default() };
        assert_eq!(totals(&bars), expected);
    }

    #[test]
    fn totals_of_a_card_with_everything_keep_the_kinds_apart() {
        let found = entry(&Tree::two_cards(), "3b:00.0").totals;
        let (io, memory32, memory64, rom) = (128, 16 << 20, 288 << 20, 512 << 10);
        assert_eq!(found, Totals { io, memory32, memory64, rom });
    }

    #[test]
    fn verdict_of_a_card_on_vfio_is_assignable() {
        assert!(matches!(entry(&Tree::two_cards(), "3b:00.2").verdict, Verdict::Assignable));
    }

    #[test]
    fn verdict_lists_itself_and_the_group_members_to_bind() {
        let tree = Tree::two_cards();
        tree.function(&nic(Some("e1000e")));
        tree.function(&Function { bdf: "0000:00:03.0", ..nic(Some("snd_hda_intel")) });
        tree.function(&Function { bdf: "0000:00:04.0", ..nic(None) });
        let bind = |bdf: &str| match entry(&tree, bdf).verdict {
            Verdict::AfterBinding(bind) => bind.iter().map(Bdf::to_string).collect::<Vec<_>>(),
            other => panic!("{other:?}"),
        };
        assert_eq!(bind("00:02.0"), ["0000:00:02.0", "0000:00:03.0"]);
        assert_eq!(bind("00:04.0"), ["0000:00:02.0", "0000:00:03.0", "0000:00:04.0"]);
    }

    #[test]
    fn verdict_of_the_hosts_only_display_is_no() {
        let failure = refusal(&Tree::two_cards(), "03:00.0");
        assert_eq!(failure.code.id, "E1104");
        assert!(failure.cause.contains("console"), "{}", failure.cause);
    }

    #[test]
    fn verdict_beside_a_mounted_disk_is_no() {
        let tree = Tree::two_cards();
        tree.function(&nic(Some("e1000e")));
        tree.function(&Function { bdf: "0000:00:03.0", ..nic(Some("nvme")) });
        tree.file("/sys/bus/pci/devices/0000:00:03.0/nvme/nvme0/nvme0n1/dev", "259:0\n");
        tree.link("/sys/block/nvme0n1", "../bus/pci/devices/0000:00:03.0/nvme/nvme0/nvme0n1");
        tree.file("/proc/self/mountinfo", "25 1 259:0 / / rw - ext4 /dev/nvme0n1 rw\n");
        assert_eq!(refusal(&tree, "00:02.0").code.id, "E1103");
        assert_eq!(refusal(&tree, "00:03.0").code.id, "E1104");
    }

    #[test]
    fn verdict_of_a_card_in_use_names_the_process() {
        let tree = Tree::two_cards();
        tree.link("/proc/4242/fd/11", "/dev/vfio/31");
        tree.file("/proc/4242/comm", "strait\n");
        assert!(refusal(&tree, "3b:00.0").cause.contains("strait (pid 4242)"));
        assert!(matches!(entry(&tree, "d8:00.0").verdict, Verdict::Assignable));
    }

    #[test]
    fn verdict_without_iommu_blames_the_host_and_not_the_card() {
        let tree = Tree::new();
        tree.host_basics();
        tree.remove("/sys/kernel/iommu_groups");
        tree.file("/proc/cmdline", "quiet\n");
        tree.function(&Function::default());
        tree.function(&Function {
            bdf: "0000:00:1c.0",
            class: 0x06_0400,
            header_type: 1,
            ..Function::default()
        });
        assert_eq!(refusal(&tree, "00:02.0").code.id, "E1001");
        assert_eq!(refusal(&tree, "00:1c.0").code.id, "E1108");
    }

    #[test]
    fn twin_cards_are_told_apart_by_slot_path_and_serial() {
        let tree = Tree::new();
        tree.host_basics();
        let real = "/sys/devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0";
        for (name, value) in
            [("vendor", "0x10de"), ("device", "0x1e07"), ("class", "0x030000"), ("resource", "")]
        {
            tree.file(&format!("{real}/{name}"), value);
        }
        let mut config = vec![0; 4096];
        // Advanced error reporting first, the serial number behind it.
        config[0x100..0x104].copy_from_slice(&0x1501_0001_u32.to_le_bytes());
        config[0x150..0x154].copy_from_slice(&0x0001_0003_u32.to_le_bytes());
        config[0x154..0x15c].copy_from_slice(&0x0048_b02d_1122_3344_u64.to_le_bytes());
        tree.file(&format!("{real}/config"), config);
        tree.link(
            "/sys/bus/pci/devices/0000:3b:00.0",
            "../../../devices/pci0000:3a/0000:3a:00.0/0000:3b:00.0",
        );
        tree.file("/sys/bus/pci/slots/3/address", "0000:3b:00\n");
        let found = entry(&tree, "3b:00.0");
        assert_eq!(found.slot.as_deref(), Some("3"));
        assert_eq!(found.path, ["3a:00.0".parse().unwrap()]);
        assert_eq!(found.serial, Some(0x0048_b02d_1122_3344));
    }

    #[test]
    fn serial_of_a_looping_or_absent_list_is_none() {
        let mut config = vec![0; 4096];
        config[0x100..0x104].copy_from_slice(&0x1001_0001_u32.to_le_bytes());
        assert_eq!(serial(&config), None);
        assert_eq!(serial(&[0xff; 4096]), None);
        assert_eq!(serial(&config[..64]), None);
    }
}
