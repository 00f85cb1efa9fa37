//! Threads, cores, packages: APIC ids and every leaf that speaks of them.

use kvm_bindings::kvm_cpuid_entry2;

use super::{CpuidSpec, Leaves, Vendor, set_bit};

/// How vCPUs are arranged in each package (socket).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuTopology {
    /// 1 or 2 on today's CPUs; at most 256 count.
    pub threads_per_core: u32,
    /// At most 32768 count.
    pub cores_per_package: u32,
}

impl CpuTopology {
    fn threads(self) -> u32 {
        self.threads_per_core.clamp(1, 256)
    }

    fn cores(self) -> u32 {
        self.cores_per_package.clamp(1, 0x8000)
    }

    /// Logical processors of a full package.
    fn logical(self) -> u32 {
        self.threads() * self.cores()
    }

    /// Bits of an APIC id that number the thread in its core.
    fn thread_bits(self) -> u32 {
        bits_for(self.threads())
    }

    /// Bits of an APIC id that number the logical processor in its package; the rest is the package.
    fn package_bits(self) -> u32 {
        self.thread_bits() + bits_for(self.cores())
    }
}

/// Bits that number `count` things.
const fn bits_for(count: u32) -> u32 {
    count.next_power_of_two().trailing_zeros()
}

/// The APIC id of the vCPU with this index: package, core and thread, each in a field of whole bits, because software takes
/// them apart by shifting (Intel SDM 3A, 10.9.3). There are gaps when a count is no power of two.
pub fn apic_id(cpu: u32, topology: CpuTopology) -> u32 {
    let (thread, core) = (cpu % topology.threads(), cpu / topology.threads());
    let (core, package) = (core % topology.cores(), core / topology.cores());
    package << topology.package_bits() | core << topology.thread_bits() | thread
}

const HYPER_THREADING: u32 = 1 << 28;

/// Level types in ECX[15:8] of leaves 0xB and 0x1F.
const LEVEL_SMT: u32 = 1 << 8;
const LEVEL_CORE: u32 = 2 << 8;

pub(super) fn apply(leaves: &mut Leaves, spec: &CpuidSpec) {
    let vendor = leaves.vendor();
    basic(leaves, spec, vendor);
    for leaf in leaves.of(0x4) {
        intel_cache(leaf, spec.topology);
    }
    extended_levels(leaves, spec);
    if vendor == Vendor::Amd {
        amd(leaves, spec);
    }
}

/// Leaf 1. EBX[23:16] counts APIC ids on Intel, which come in powers of two, and logical processors on AMD.
fn basic(leaves: &mut Leaves, spec: &CpuidSpec, vendor: Vendor) {
    let topology = spec.topology;
    let ids = 1 << topology.package_bits();
    let count = if vendor == Vendor::Amd { topology.logical() } else { ids };
    if let Some(leaf) = leaves.get(0x1, 0) {
        leaf.ebx = leaf.ebx & 0xffff | count.min(255) << 16 | spec.apic_id << 24;
        set_bit(&mut leaf.edx, HYPER_THREADING, topology.logical() > 1);
    }
}

/// Leaf 4: EAX[25:14] is the highest id offset among those who share the cache, [31:26] among the cores of the package.
/// Caches up to level 2 belong to a core, the others to the package.
fn intel_cache(leaf: &mut kvm_cpuid_entry2, topology: CpuTopology) {
    let (kind, level) = (leaf.eax & 0x1f, leaf.eax >> 5 & 0x7);
    if kind == 0 {
        return;
    }
    let bits = if level <= 2 { topology.thread_bits() } else { topology.package_bits() };
    let sharing = (1_u32 << bits) - 1;
    let cores = (1_u32 << (topology.package_bits() - topology.thread_bits())) - 1;
    leaf.eax = leaf.eax & 0x3fff | sharing.min(0xfff) << 14 | cores.min(0x3f) << 26;
}

/// Leaves 0xB and 0x1F: thread level, core level, end. KVM lists them without levels and with the x2APIC id of whatever
/// host CPU it was asked on.
fn extended_levels(leaves: &mut Leaves, spec: &CpuidSpec) {
    let topology = spec.topology;
    let id = spec.apic_id;
    let levels = [
        [topology.thread_bits(), topology.threads(), LEVEL_SMT, id],
        [topology.package_bits(), topology.logical().min(0xffff), LEVEL_CORE | 1, id],
        [0, 0, 2, id],
    ];
    if leaves.highest() >= 0xb {
        leaves.put_indexed(0xb, &levels);
    }
    if leaves.has(0x1f) {
        leaves.put_indexed(0x1f, &levels);
    }
}

fn amd(leaves: &mut Leaves, spec: &CpuidSpec) {
    let topology = spec.topology;
    for leaf in leaves.of(0x8000_001d) {
        let (kind, level) = (leaf.eax & 0x1f, leaf.eax >> 5 & 0x7);
        if kind != 0 {
            let sharing = if level <= 2 { topology.threads() } else { topology.logical() };
            leaf.eax = leaf.eax & !(0xfff << 14) | (sharing - 1).min(0xfff) << 14;
        }
    }
    if let Some(leaf) = leaves.get(0x8000_0008, 0) {
        let (count, bits) = (topology.logical(), topology.package_bits());
        leaf.ecx = leaf.ecx & !0xf0ff | (count - 1).min(0xff) | bits.min(0xf) << 12;
    }
    if let Some(leaf) = leaves.get(0x8000_001e, 0) {
        let package = spec.apic_id >> topology.package_bits();
        let core = spec.apic_id >> topology.thread_bits();
        let in_package = core & ((1_u32 << (topology.package_bits() - topology.thread_bits())) - 1);
        // One node a package: ECX[10:8] is the number of nodes less one.
        leaf.eax = spec.apic_id;
        leaf.ebx = in_package & 0xff | (topology.threads() - 1) << 8;
        leaf.ecx = package & 0xff;
    }
    // The newer form of 0xB, which KVM would pass on with the host's own levels.
    leaves.remove(|function| function == 0x8000_0026);
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            guest_cpuid,
            tests::{amd, find, intel, spec},
        },
        *,
    };

    fn topology(threads_per_core: u32, cores_per_package: u32) -> CpuTopology {
        CpuTopology { threads_per_core, cores_per_package }
    }

    #[test]
    fn apic_ids_of_three_cores_leave_a_gap_before_the_next_package() {
        let ids: Vec<u32> = (0..8).map(|cpu| apic_id(cpu, topology(2, 3))).collect();
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, 8, 9]);
    }

    #[test]
    fn apic_ids_are_unique_and_ascending_for_any_topology() {
        for (threads, cores) in (0..5).flat_map(|t| (0..20).map(move |c| (t, c))) {
            let ids: Vec<u32> =
                (0..300).map(|cpu| apic_id(cpu, topology(threads, cores))).collect();
            assert!(ids.is_sorted_by(|a, b| a < b), "{threads} threads, {cores} cores");
        }
    }

    #[test]
    fn basic_leaf_has_the_apic_id_and_the_count() {
        let list = guest_cpuid(&intel(), &spec());
        let [_, ebx, _, edx] = find(&list, 0x1, 0).unwrap();
        assert_eq!(ebx, 0x0508_0800);
        assert_ne!(edx & HYPER_THREADING, 0);

        let alone = CpuidSpec { topology: topology(1, 1), apic_id: 0, cpus: 1, ..spec() };
        let [_, ebx, _, edx] = find(&guest_cpuid(&intel(), &alone), 0x1, 0).unwrap();
        assert_eq!((ebx >> 16, edx & HYPER_THREADING), (1, 0));
    }

    #[test]
    fn intel_caches_are_shared_by_core_and_by_package() {
        let list = guest_cpuid(&intel(), &spec());
        let shared = |index| find(&list, 0x4, index).unwrap()[0] >> 14 & 0xfff;
        assert_eq!([0, 1, 2, 3].map(shared), [1, 1, 1, 7]);
        let cores = |index| find(&list, 0x4, index).unwrap()[0] >> 26;
        assert_eq!([0, 1, 2, 3].map(cores), [3; 4]);
        assert_eq!(find(&list, 0x4, 4), Some([0; 4]));
    }

    #[test]
    fn extended_levels_shift_the_id_down_to_core_and_package() {
        let list = guest_cpuid(&intel(), &spec());
        for function in [0xb, 0x1f] {
            assert_eq!(find(&list, function, 0), Some([1, 2, 0x100, 5]));
            assert_eq!(find(&list, function, 1), Some([3, 8, 0x201, 5]));
            assert_eq!(find(&list, function, 2), Some([0, 0, 2, 5]));
        }
        assert_eq!(find(&guest_cpuid(&amd(), &spec()), 0x1f, 0), None);
    }

    #[test]
    fn amd_leaves_count_cores_and_sharers() {
        let list = guest_cpuid(&amd(), &CpuidSpec { apic_id: 13, ..spec() });
        let shared = |index| find(&list, 0x8000_001d, index).unwrap()[0] >> 14 & 0xfff;
        assert_eq!([0, 1, 2, 3].map(shared), [1, 1, 1, 7]);
        assert_eq!(find(&list, 0x8000_0008, 0).unwrap()[2], 0x3007);
        // APIC id 13 is package 1, core 2, thread 1.
        assert_eq!(find(&list, 0x8000_001e, 0), Some([13, 0x102, 1, 0]));
        assert_eq!(find(&list, 0x8000_0026, 0), None);
    }
}
