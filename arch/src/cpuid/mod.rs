//! What CPUID tells the guest: the host's CPU as KVM supports it, with this machine's topology and clock, and as much of
//! the hypervisor as the user wants to be seen.
//!
//! Leaves are those of the Intel SDM, volume 2A, CPUID, and the AMD APM, volume 3, appendix E. Pure: from KVM's list
//! (KVM_GET_SUPPORTED_CPUID) to a vCPU's (KVM_SET_CPUID2). KVM itself keeps up to date what changes at run time, such as
//! OSXSAVE and the size of the XSAVE area.

mod hypervisor;
mod topology;

use std::ops::RangeInclusive;

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2};

pub use topology::{CpuTopology, apic_id};

/// How much of the hypervisor a guest sees.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Hide {
    /// Nothing is hidden: KVM's leaf, its clock and its other services are there.
    #[default]
    No,
    /// KVM's leaf is gone; that there is a hypervisor, and Hyper-V's leaves if asked for, remain.
    Kvm,
    /// No leaf of any hypervisor, and the hypervisor bit is clear.
    All,
}

/// One vCPU's part in the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CpuidSpec {
    /// This vCPU's APIC id, as [`apic_id`] makes it.
    pub apic_id: u32,
    /// vCPUs in the machine.
    pub cpus: u32,
    /// How they are arranged.
    pub topology: CpuTopology,
    /// Physical-address bits when they shall differ from what KVM says, which is what the host has.
    pub physical_bits: Option<u8>,
    /// What the guest shall not see.
    pub hide: Hide,
    /// Hyper-V's leaves with this vendor, `Microsoft Hv` or any other twelve characters: Windows looks at the interface
    /// `Hv#1` only. Ignored with [`Hide::All`].
    pub hv_vendor: Option<[u8; 12]>,
    /// Frequency of the guest's TSC, if known.
    pub tsc_khz: Option<u32>,
    /// The host's TSC never changes and never stops, whatever its CPU says of itself: a hidden guest may rely on it.
    pub tsc_invariant: bool,
    /// Frequency of the local APIC's timer before its divider: KVM's is 1 GHz unless told otherwise.
    pub apic_khz: u32,
    /// Does KVM's local APIC have the TSC-deadline mode (KVM_CAP_TSC_DEADLINE_TIMER)? It is not in KVM's list on
    /// older kernels because it depends on who emulates the APIC.
    pub tsc_deadline: bool,
    /// Does the guest get performance counters?
    pub pmu: bool,
    /// May the guest have virtual machines of its own (VMX, SVM)?
    pub nested: bool,
}

/// KVM's APIC timer frequency.
pub const KVM_APIC_KHZ: u32 = 1_000_000;

/// Name, and what AMD's CPUs say of caches and TLBs: the host's, yet older kernels leave them out of KVM's list, and a
/// guest would find a CPU without a name.
const HOSTS_OWN: RangeInclusive<u32> = 0x8000_0002..=0x8000_0006;

/// Adds what is `host`'s own to KVM's list where that says nothing: CPUID of the CPU that this runs on, by leaf.
pub fn complete(
    supported: Vec<kvm_cpuid_entry2>,
    host: impl Fn(u32) -> [u32; 4],
) -> Vec<kvm_cpuid_entry2> {
    let mut leaves = Leaves(supported);
    let highest = host(0x8000_0000)[0];
    for function in HOSTS_OWN.filter(|function| *function <= highest) {
        let told = leaves.get(function, 0);
        if told.is_none_or(|leaf| leaf.eax | leaf.ebx | leaf.ecx | leaf.edx == 0) {
            leaves.put(function, host(function));
        }
    }
    leaves.0
}

/// The list for one vCPU.
pub fn guest_cpuid(supported: &[kvm_cpuid_entry2], spec: &CpuidSpec) -> Vec<kvm_cpuid_entry2> {
    let mut leaves = Leaves(supported.to_vec());
    topology::apply(&mut leaves, spec);
    hypervisor::apply(&mut leaves, spec);
    address_bits(&mut leaves, spec);
    features(&mut leaves, spec);
    leaves.0
}

/// EAX and EDX of leaf 1, the CPU's signature and features, as firmware's tables have them.
pub fn cpu_id(supported: &[kvm_cpuid_entry2]) -> (u32, u32) {
    let leaf = supported.iter().find(|leaf| leaf.function == 1);
    leaf.map_or((0, 0), |leaf| (leaf.eax, leaf.edx))
}

/// Is this the list of an AMD CPU, or of one that takes after it?
pub fn is_amd(supported: &[kvm_cpuid_entry2]) -> bool {
    Leaves(supported.to_vec()).vendor() == Vendor::Amd
}

const TSC_DEADLINE: u32 = 1 << 24;
/// Leaf 1, ECX: 64-bit debug store, and the MSR of what the counters can.
const PERFMON_ECX: u32 = 1 << 2 | 1 << 15;
/// Leaf 1, EDX: debug store, where events are recorded.
const DEBUG_STORE: u32 = 1 << 21;
/// Leaf 7, EDX: architectural last branch records.
const ARCH_LBR: u32 = 1 << 19;
/// Leaf 0x80000001, ECX: instruction-based sampling, and counters of core, northbridge and last-level cache.
const AMD_COUNTERS: u32 = 1 << 10 | 1 << 23 | 1 << 24 | 1 << 28;
/// Leaves about counters, of Intel: counters, last branch records, counters again; of AMD: sampling, counters. All zeros
/// is "none".
const PMU_LEAVES: [u32; 5] = [0xa, 0x1c, 0x23, 0x8000_001b, 0x8000_0022];
/// Leaf 1, ECX.
const VMX: u32 = 1 << 5;
/// Leaf 0x80000001, ECX: SVM, and SKINIT, which begins a measured start of a hypervisor.
const SVM: u32 = 1 << 2;
const SKINIT: u32 = 1 << 12;
/// What SVM can.
const SVM_LEAF: u32 = 0x8000_000a;

fn features(leaves: &mut Leaves, spec: &CpuidSpec) {
    if let Some(leaf) = leaves.get(0x1, 0) {
        set_bit(&mut leaf.ecx, TSC_DEADLINE, spec.tsc_deadline);
    }
    if !spec.pmu {
        no_counters(leaves);
    }
    if !spec.nested {
        not_nested(leaves);
    }
}

fn no_counters(leaves: &mut Leaves) {
    if let Some(leaf) = leaves.get(0x1, 0) {
        leaf.ecx &= !PERFMON_ECX;
        leaf.edx &= !DEBUG_STORE;
    }
    if let Some(leaf) = leaves.get(0x7, 0) {
        leaf.edx &= !ARCH_LBR;
    }
    if let Some(leaf) = leaves.get(0x8000_0001, 0) {
        leaf.ecx &= !AMD_COUNTERS;
    }
    for function in PMU_LEAVES {
        leaves.of(function).for_each(clear);
    }
}

/// KVM refuses a guest the registers of an extension that its CPUID does not have: VMXON, EFER.SVME and their MSRs.
fn not_nested(leaves: &mut Leaves) {
    if let Some(leaf) = leaves.get(0x1, 0) {
        leaf.ecx &= !VMX;
    }
    if let Some(leaf) = leaves.get(0x8000_0001, 0) {
        leaf.ecx &= !(SVM | SKINIT);
    }
    leaves.of(SVM_LEAF).for_each(clear);
}

fn clear(leaf: &mut kvm_cpuid_entry2) {
    (leaf.eax, leaf.ebx, leaf.ecx, leaf.edx) = (0, 0, 0, 0);
}

/// Can a guest have virtual machines of its own by this list?
pub fn can_nest(list: &[kvm_cpuid_entry2]) -> bool {
    has_vmx(list) || has(list, 0x8000_0001, SVM)
}

/// Has a guest Intel's virtualization by this list?
pub fn has_vmx(list: &[kvm_cpuid_entry2]) -> bool {
    has(list, 0x1, VMX)
}

fn has(list: &[kvm_cpuid_entry2], function: u32, ecx: u32) -> bool {
    list.iter().any(|leaf| leaf.function == function && leaf.ecx & ecx != 0)
}

/// 0x80000008: EAX[7:0] are the physical-address bits, [23:16] how many of them a guest can map. Real CPUs have 0 in the
/// latter; KVM fills it where nested paging reaches less far, and then it stays, unless it would say more than the former.
fn address_bits(leaves: &mut Leaves, spec: &CpuidSpec) {
    let Some(bits) = spec.physical_bits.map(u32::from) else { return };
    if let Some(leaf) = leaves.get(0x8000_0008, 0) {
        let mappable = (leaf.eax >> 16 & 0xff).min(bits);
        leaf.eax = leaf.eax & 0xff00_ff00 | mappable << 16 | bits;
    }
}

fn set_bit(register: &mut u32, mask: u32, on: bool) {
    if on { *register |= mask } else { *register &= !mask }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Vendor {
    Intel,
    Amd,
    Other,
}

/// A list under construction.
struct Leaves(Vec<kvm_cpuid_entry2>);

impl Leaves {
    fn get(&mut self, function: u32, index: u32) -> Option<&mut kvm_cpuid_entry2> {
        self.0.iter_mut().find(|leaf| leaf.function == function && leaf.index == index)
    }

    fn has(&self, function: u32) -> bool {
        self.0.iter().any(|leaf| leaf.function == function)
    }

    fn of(&mut self, function: u32) -> impl Iterator<Item = &mut kvm_cpuid_entry2> {
        self.0.iter_mut().filter(move |leaf| leaf.function == function)
    }

    fn remove(&mut self, gone: impl Fn(u32) -> bool) {
        self.0.retain(|leaf| !gone(leaf.function));
    }

    /// Replaces a leaf without subleaves.
    fn put(&mut self, function: u32, [eax, ebx, ecx, edx]: [u32; 4]) {
        self.remove(|other| other == function);
        self.0.push(kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() });
    }

    /// Replaces a leaf with subleaves, from 0 up.
    fn put_indexed(&mut self, function: u32, subleaves: &[[u32; 4]]) {
        self.remove(|other| other == function);
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        self.0.extend((0..).zip(subleaves).map(|(index, &[eax, ebx, ecx, edx])| {
            kvm_cpuid_entry2 { function, index, flags, eax, ebx, ecx, edx, ..Default::default() }
        }));
    }

    /// The highest basic leaf.
    fn highest(&mut self) -> u32 {
        self.get(0, 0).map_or(0, |leaf| leaf.eax)
    }

    fn vendor(&mut self) -> Vendor {
        let name = self.get(0, 0).map(|leaf| {
            let registers = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes);
            registers.concat()
        });
        match name.as_deref() {
            Some(b"GenuineIntel") => Vendor::Intel,
            Some(b"AuthenticAMD" | b"HygonGenuine") => Vendor::Amd,
            _ => Vendor::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn spec() -> CpuidSpec {
        CpuidSpec {
            apic_id: 5,
            cpus: 8,
            topology: CpuTopology { threads_per_core: 2, cores_per_package: 4 },
            physical_bits: None,
            hide: Hide::No,
            hv_vendor: None,
            tsc_khz: Some(2_999_998),
            tsc_invariant: false,
            apic_khz: KVM_APIC_KHZ,
            tsc_deadline: true,
            pmu: true,
            nested: true,
        }
    }

    pub(super) fn leaf(function: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let [eax, ebx, ecx, edx] = registers;
        kvm_cpuid_entry2 { function, eax, ebx, ecx, edx, ..Default::default() }
    }

    pub(super) fn sub(function: u32, index: u32, registers: [u32; 4]) -> kvm_cpuid_entry2 {
        let flags = KVM_CPUID_FLAG_SIGNIFCANT_INDEX;
        kvm_cpuid_entry2 { index, flags, ..leaf(function, registers) }
    }

    /// The registers of a leaf, `None` when it is absent; a panic when it is there twice.
    pub(super) fn find(list: &[kvm_cpuid_entry2], function: u32, index: u32) -> Option<[u32; 4]> {
        let mut found = list.iter().filter(|leaf| leaf.function == function && leaf.index == index);
        let leaf = found.next()?;
        assert!(found.next().is_none(), "leaf {function:#x} twice");
        Some([leaf.eax, leaf.ebx, leaf.ecx, leaf.edx])
    }

    fn name(highest: u32, vendor: &[u8; 12]) -> kvm_cpuid_entry2 {
        let word = |at: usize| u32::from_le_bytes(vendor[at..at + 4].try_into().unwrap());
        leaf(0, [highest, word(0), word(8), word(4)])
    }

    /// What KVM lists on an Intel host, less what no test here looks at.
    pub(super) fn intel() -> Vec<kvm_cpuid_entry2> {
        vec![
            name(0x1f, b"GenuineIntel"),
            leaf(0x1, [0x000c_0662, 0x0010_0800, 0x0020_8025, 0x0020_1000]),
            // 2 threads share L1d, L1i and L2; 128 ids share L3; 64 core ids.
            sub(0x4, 0, [0xfc00_4121, 0x02c0_003f, 0x3f, 0]),
            sub(0x4, 1, [0xfc00_4122, 0x01c0_003f, 0x3f, 0]),
            sub(0x4, 2, [0xfc00_4143, 0x03c0_003f, 0x7ff, 0]),
            sub(0x4, 3, [0xfdfc_4163, 0x0380_003f, 0xffff, 4]),
            sub(0x4, 4, [0, 0, 0, 0]),
            sub(0x7, 0, [2, 0x2000_0000, 0, ARCH_LBR | 1 << 10]),
            leaf(0xa, [0x0830_0802, 0, 0, 0x603]),
            sub(0xb, 0, [0, 0, 0, 99]),
            leaf(0x15, [0, 0, 0, 0]),
            leaf(0x16, [0, 0, 0, 0]),
            sub(0x1c, 0, [0x4000_0003, 7, 0x4f, 0]),
            sub(0x1f, 0, [0, 0, 0, 99]),
            leaf(0x8000_0001, [0, 0, 0x121, 0x2c10_0800]),
            leaf(0x8000_0007, [0, 0, 0, 0x100]),
            leaf(0x8000_0008, [0x0030_302e, 0x100_d000, 0, 0]),
            leaf(0x4000_0000, [0x4000_0001, 0x4b4d_564b, 0x564b_4d56, 0x4d]),
            leaf(0x4000_0001, [0x0100_7efb, 0, 0, 0]),
        ]
    }

    /// The same of an AMD host.
    pub(super) fn amd() -> Vec<kvm_cpuid_entry2> {
        let mut list: Vec<_> = intel()
            .into_iter()
            .filter(|leaf| !matches!(leaf.function, 0 | 4 | 7 | 0xa | 0x15 | 0x16 | 0x1c | 0x1f))
            .collect();
        list.extend([
            name(0x10, b"AuthenticAMD"),
            sub(0x8000_001d, 0, [0x0000_4121, 0x01c0_003f, 0x3f, 0]),
            sub(0x8000_001d, 1, [0x0000_4122, 0x01c0_003f, 0x3f, 0]),
            sub(0x8000_001d, 2, [0x0000_4143, 0x01c0_003f, 0x3ff, 2]),
            sub(0x8000_001d, 3, [0x0003_c163, 0x03c0_003f, 0x7fff, 1]),
            sub(0x8000_001d, 4, [0, 0, 0, 0]),
            leaf(SVM_LEAF, [1, 0x8000, 0, 0x0001_9ef0]),
            leaf(0x8000_001b, [0x3ff, 0, 0, 0]),
            leaf(0x8000_001e, [99, 0x163, 0x700, 0]),
            leaf(0x8000_0022, [1, 6, 0, 0]),
            sub(0x8000_0026, 0, [1, 2, 0x100, 99]),
        ]);
        for leaf in &mut list {
            match leaf.function {
                0x1 => leaf.ecx &= !VMX,
                0x8000_0001 => leaf.ecx |= AMD_COUNTERS | SVM | SKINIT | 1 << 22,
                _ => {}
            }
        }
        list
    }

    #[test]
    fn hosts_name_and_caches_are_added_only_where_kvm_says_nothing() {
        let host = |function: u32| match function {
            0x8000_0000 => [0x8000_0005, 0, 0, 0],
            _ => [function, 1, 2, 3],
        };
        let list = vec![leaf(0x8000_0003, [7, 0, 0, 0]), leaf(0x8000_0004, [0; 4])];
        let list = complete(list, host);
        assert_eq!(find(&list, 0x8000_0002, 0), Some([0x8000_0002, 1, 2, 3]));
        assert_eq!(find(&list, 0x8000_0003, 0), Some([7, 0, 0, 0]));
        assert_eq!(find(&list, 0x8000_0004, 0), Some([0x8000_0004, 1, 2, 3]));
        assert_eq!(find(&list, 0x8000_0005, 0), Some([0x8000_0005, 1, 2, 3]));
        assert_eq!(find(&list, 0x8000_0006, 0), None, "the host's CPU does not know it");
        assert_eq!(list.len(), 4);
    }

    #[test]
    fn leaves_nobody_touches_pass_through() {
        let list = guest_cpuid(&intel(), &spec());
        for function in [0x8000_0001, 0x8000_0007, 0x8000_0008, 0xa] {
            assert_eq!(find(&list, function, 0), find(&intel(), function, 0), "{function:#x}");
        }
    }

    #[test]
    fn invariant_tsc_and_mtrr_stay() {
        let list = guest_cpuid(&amd(), &CpuidSpec { hide: Hide::All, ..spec() });
        assert_eq!(find(&list, 0x8000_0007, 0).unwrap()[3] & 1 << 8, 1 << 8);
        assert_eq!(find(&list, 0x1, 0).unwrap()[3] & 1 << 12, 1 << 12);
    }

    #[test]
    fn tsc_deadline_follows_kvms_capability() {
        for (tsc_deadline, bit) in [(true, TSC_DEADLINE), (false, 0)] {
            let list = guest_cpuid(&intel(), &CpuidSpec { tsc_deadline, ..spec() });
            assert_eq!(find(&list, 0x1, 0).unwrap()[2] & TSC_DEADLINE, bit);
        }
    }

    #[test]
    fn physical_bits_asked_for_cap_the_mappable_ones() {
        let list = guest_cpuid(&intel(), &CpuidSpec { physical_bits: Some(39), ..spec() });
        assert_eq!(find(&list, 0x8000_0008, 0).unwrap()[0], 0x0027_3027);
    }

    #[test]
    fn pmu_off_leaves_no_counter() {
        for host in [intel(), amd()] {
            let list = guest_cpuid(&host, &CpuidSpec { pmu: false, ..spec() });
            let [.., ecx, edx] = find(&list, 0x1, 0).unwrap();
            assert_eq!((ecx & PERFMON_ECX, edx & DEBUG_STORE), (0, 0));
            assert_eq!(find(&list, 0x8000_0001, 0).unwrap()[2] & AMD_COUNTERS, 0);
            assert!(find(&list, 0x7, 0).is_none_or(|[.., edx]| edx & ARCH_LBR == 0));
            for function in PMU_LEAVES {
                assert!(find(&list, function, 0).is_none_or(|leaf| leaf == [0; 4]));
            }
            // What is beside those bits stays.
            let topology = find(&list, 0x8000_0001, 0).unwrap()[2] & 1 << 22;
            assert_eq!(topology, find(&host, 0x8000_0001, 0).unwrap()[2] & 1 << 22);
        }
    }

    #[test]
    fn nested_off_leaves_no_virtualization_and_on_all_of_it() {
        for host in [intel(), amd()] {
            assert!(can_nest(&host));
            let on = guest_cpuid(&host, &spec());
            assert!(can_nest(&on));
            assert_eq!(find(&on, SVM_LEAF, 0), find(&host, SVM_LEAF, 0));
            let off = guest_cpuid(&host, &CpuidSpec { nested: false, ..spec() });
            assert!(!can_nest(&off));
            assert_eq!(find(&off, 0x8000_0001, 0).unwrap()[2] & SKINIT, 0);
            assert!(find(&off, SVM_LEAF, 0).is_none_or(|leaf| leaf == [0; 4]));
            let others = |list: &[kvm_cpuid_entry2]| find(list, 0x1, 0).unwrap()[2] & !VMX;
            assert_eq!(others(&off), others(&on));
        }
    }

    #[test]
    fn empty_list_is_no_panic() {
        let spec = CpuidSpec { hv_vendor: Some(*b"Microsoft Hv"), hide: Hide::Kvm, ..spec() };
        assert!(find(&guest_cpuid(&[], &spec), 0x1, 0).is_none());
    }
}
