//! What the guest learns about its hypervisor, and the clock it has when it learns nothing.
//!
//! A guest that does not see KVM has no kvm-clock. Its next best is the TSC itself, which costs nothing to read, if it
//! knows the frequency and that it never changes; else it measures against the PIT and may end on the HPET or the PM
//! timer, an exit for every look at the clock. Linux checks a TSC that may change against the PM timer twice a second and
//! drops it for good when one of those reads was held up, which in a guest is a matter of luck. The invariant bit passes
//! through from KVM, or comes from here where the host vouches for its TSC; the frequency comes from here.

use super::{CpuidSpec, Hide, Leaves, Vendor, set_bit};

const HYPERVISOR: u32 = 1 << 31;
const FIRST: u32 = 0x4000_0000;
/// Where KVM's leaves go when Hyper-V's take the first place. Guests scan in steps of 0x100.
const SECOND: u32 = FIRST + 0x100;
/// TSC and APIC timer frequency in kHz, in the place VMware gave them.
const TIMING: u32 = FIRST + 0x10;
const KVM_SIGNATURE: &[u8; 12] = b"KVMKVMKVM\0\0\0";

pub(super) fn apply(leaves: &mut Leaves, spec: &CpuidSpec) {
    let features = leaves.get(FIRST + 1, 0).map(|leaf| [leaf.eax, leaf.ebx, leaf.ecx, leaf.edx]);
    leaves.remove(|function| (FIRST..FIRST + 0x1_0000).contains(&function));
    if let Some(leaf) = leaves.get(0x1, 0) {
        set_bit(&mut leaf.ecx, HYPERVISOR, spec.hide != Hide::All);
    }
    let hv_vendor = spec.hv_vendor.filter(|_| spec.hide != Hide::All);
    if let Some(vendor) = hv_vendor {
        hyper_v(leaves, spec, &vendor);
    }
    match (spec.hide, features) {
        (Hide::No, Some(features)) => {
            let base = if hv_vendor.is_some() { SECOND } else { FIRST };
            kvm(leaves, spec, base, features);
        }
        (Hide::No, None) => {}
        (Hide::Kvm | Hide::All, _) => {
            frequency(leaves, spec);
            if spec.tsc_invariant {
                invariant(leaves);
            }
        }
    }
}

/// KVM's own leaves, features as it reports them.
fn kvm(leaves: &mut Leaves, spec: &CpuidSpec, base: u32, features: [u32; 4]) {
    let timing = spec.tsc_khz.filter(|_| base == FIRST);
    let highest = if timing.is_some() { TIMING } else { base + 1 };
    leaves.put(base, signature(highest, KVM_SIGNATURE));
    leaves.put(base + 1, features);
    if let Some(tsc_khz) = timing {
        leaves.put(TIMING, [tsc_khz, spec.apic_khz, 0, 0]);
    }
}

/// Leaf 0x40000000 of any hypervisor: the highest leaf and a name.
fn signature(highest: u32, name: &[u8; 12]) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l] = *name;
    let word = u32::from_le_bytes;
    [highest, word([a, b, c, d]), word([e, f, g, h]), word([i, j, k, l])]
}

/// "Hv#1": the interface of the Hypervisor Top Level Functional Specification. Windows looks at this only.
const INTERFACE: u32 = u32::from_le_bytes(*b"Hv#1");

/// TLFS 6.0b, 2.4: the leaves with what KVM implements by itself, without SynIC, which has to be enabled for each vCPU.
fn hyper_v(leaves: &mut Leaves, spec: &CpuidSpec, vendor: &[u8; 12]) {
    /// Privileges: VP run time, reference counter, APIC registers, hypercall page (without it Windows leaves the
    /// reference TSC page alone), VP index, reset, reference TSC page, TSC and APIC frequencies.
    const PRIVILEGES: u32 = 1 << 0 | 1 << 1 | 1 << 4 | 1 << 5 | 1 << 6 | 1 << 7 | 1 << 9 | 1 << 11;
    /// The frequency MSRs are there.
    const FREQUENCIES: u32 = 1 << 8;
    /// Relaxed timing: no watchdog bug checks when a vCPU was not scheduled. And no AutoEOI, which would keep KVM
    /// from delivering interrupts without an exit.
    const RECOMMENDATIONS: u32 = 1 << 5 | 1 << 9;
    const NEVER_SPIN_NOTIFY: u32 = u32::MAX;

    leaves.put(FIRST, signature(FIRST + 6, vendor));
    leaves.put(FIRST + 1, [INTERFACE, 0, 0, 0]);
    // Build 14393, version 10.0: Windows Server 2016.
    leaves.put(FIRST + 2, [14393, 10 << 16, 0, 0]);
    leaves.put(FIRST + 3, [PRIVILEGES, 0, 0, FREQUENCIES]);
    leaves.put(FIRST + 4, [RECOMMENDATIONS, NEVER_SPIN_NOTIFY, 0, 0]);
    leaves.put(FIRST + 5, [spec.cpus, 0, 0, 0]);
    leaves.put(FIRST + 6, [0; 4]);
}

/// Leaves 0x15 and 0x16 of an Intel CPU. AMD has no such leaf and no guest looks for one there: those measure once, at
/// boot, and keep the TSC because it is invariant.
fn frequency(leaves: &mut Leaves, spec: &CpuidSpec) {
    let Some(tsc_khz) = spec.tsc_khz.filter(|&khz| khz > 0) else { return };
    if leaves.vendor() != Vendor::Intel {
        return;
    }
    let Some(ratio) = Ratio::of(spec.apic_khz, tsc_khz) else { return };
    let Some(crystal) = ratio.crystal_khz.checked_mul(1000) else { return };
    leaves.put(0x15, [ratio.denominator, ratio.numerator, crystal, 0]);
    let mhz = (tsc_khz.saturating_add(500) / 1000) & 0xffff;
    leaves.put(0x16, [mhz, mhz, 100, 0]);
    if let Some(leaf) = leaves.get(0, 0) {
        leaf.eax = leaf.eax.max(0x16);
    }
}

/// 0x80000007, EDX[8]: the TSC runs at one rate in all states of the CPU.
fn invariant(leaves: &mut Leaves) {
    const POWER: u32 = 0x8000_0007;
    const INVARIANT_TSC: u32 = 1 << 8;
    // A CPU whose extended leaves end before this one cannot say it.
    if leaves.get(0x8000_0000, 0).is_none_or(|leaf| leaf.eax < POWER) {
        return;
    }
    match leaves.get(POWER, 0) {
        Some(leaf) => leaf.edx |= INVARIANT_TSC,
        None => leaves.put(POWER, [0, 0, 0, INVARIANT_TSC]),
    }
}

/// TSC = crystal * numerator / denominator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Ratio {
    crystal_khz: u32,
    numerator: u32,
    denominator: u32,
}

impl Ratio {
    /// The TSC's frequency to the kHz for a guest that multiplies in 32 bits and then divides, rounding down, as Linux
    /// does: tsc_khz/apic_khz as it stands would overflow there, and a short fraction of it would be wrong by up to
    /// 100 ppm, which a guest would believe and lose seconds a day. So it is the crystal that is not quite the APIC
    /// timer's clock, for which Linux takes it too: a timer may be off by that much, since time is not read from it.
    fn of(apic_khz: u32, tsc_khz: u32) -> Option<Self> {
        // Only a TSC slower than any would have more.
        const TRIES: u32 = 10_000;
        let highest = u32::MAX.checked_div(tsc_khz)?.min(TRIES);
        let apic = u64::from(apic_khz);
        let fractions = (1..=highest).flat_map(|denominator| {
            let product = u64::from(tsc_khz) * u64::from(denominator);
            let nearest = (product + apic / 2).checked_div(apic).unwrap_or(0);
            // Near a whole multiple of the APIC timer's clock the nearest numerators all miss by the same kHz.
            (nearest.saturating_sub(3).max(1)..=nearest + 3).filter_map(move |numerator| {
                let crystal_khz = u32::try_from(product.div_ceil(numerator)).ok()?;
                Some(Self { crystal_khz, numerator: u32::try_from(numerator).ok()?, denominator })
            })
        });
        fractions
            .filter(|ratio| apic_khz > 0 && ratio.tsc_khz() == Some(tsc_khz))
            .min_by_key(|ratio| ratio.crystal_khz.abs_diff(apic_khz))
    }

    /// What Linux makes of it; `None` where its product overflows.
    fn tsc_khz(self) -> Option<u32> {
        self.crystal_khz.checked_mul(self.numerator)?.checked_div(self.denominator)
    }
}

#[cfg(test)]
mod tests {
    use super::{
        super::{
            KVM_APIC_KHZ, guest_cpuid,
            tests::{amd, find, intel, leaf, spec},
        },
        *,
    };

    fn name(list: &[kvm_bindings::kvm_cpuid_entry2], base: u32) -> Option<(u32, Vec<u8>)> {
        let [eax, ebx, ecx, edx] = find(list, base, 0)?;
        Some((eax, [ebx, ecx, edx].map(u32::to_le_bytes).concat()))
    }

    #[test]
    fn visible_kvm_keeps_its_features_and_tells_the_clock() {
        let list = guest_cpuid(&intel(), &spec());
        assert_eq!(name(&list, FIRST), Some((TIMING, KVM_SIGNATURE.to_vec())));
        assert_eq!(find(&list, FIRST + 1, 0), find(&intel(), FIRST + 1, 0));
        assert_eq!(find(&list, TIMING, 0), Some([2_999_998, 1_000_000, 0, 0]));
        assert_ne!(find(&list, 0x1, 0).unwrap()[2] & HYPERVISOR, 0);
    }

    #[test]
    fn hidden_kvm_leaves_the_hypervisor_bit_only() {
        let list = guest_cpuid(&intel(), &CpuidSpec { hide: Hide::Kvm, ..spec() });
        assert!(list.iter().all(|leaf| leaf.function & 0xf000_0000 != FIRST));
        assert_ne!(find(&list, 0x1, 0).unwrap()[2] & HYPERVISOR, 0);
    }

    #[test]
    fn everything_hidden_clears_the_bit_and_outweighs_a_vendor() {
        let hidden = CpuidSpec { hide: Hide::All, hv_vendor: Some(*b"GeForceRocks"), ..spec() };
        let list = guest_cpuid(&intel(), &hidden);
        assert!(list.iter().all(|leaf| leaf.function & 0xf000_0000 != FIRST));
        assert_eq!(find(&list, 0x1, 0).unwrap()[2] & HYPERVISOR, 0);
    }

    #[test]
    fn hidden_intel_guest_reads_its_tsc_frequency() {
        for hide in [Hide::Kvm, Hide::All] {
            let mut old = intel();
            old[0].eax = 0xd;
            let list = guest_cpuid(&old, &CpuidSpec { hide, ..spec() });
            let [denominator, numerator, crystal, _] = find(&list, 0x15, 0).unwrap();
            let ratio = Ratio { crystal_khz: crystal / 1000, numerator, denominator };
            assert_eq!(ratio.tsc_khz(), Some(2_999_998));
            assert_eq!(find(&list, 0x16, 0), Some([3000, 3000, 100, 0]));
            assert_eq!(find(&list, 0, 0).unwrap()[0], 0x16);
        }
    }

    #[test]
    fn amd_guest_gets_no_intel_leaf() {
        let list = guest_cpuid(&amd(), &CpuidSpec { hide: Hide::All, ..spec() });
        assert_eq!(find(&list, 0x15, 0), None);
        assert_eq!(find(&list, 0, 0).unwrap()[0], 0x10);
    }

    #[test]
    fn hidden_guest_relies_on_a_tsc_that_the_host_vouches_for() {
        let host = |highest: u32| {
            let mut host = amd();
            host.retain(|leaf| leaf.function != 0x8000_0007);
            host.push(leaf(0x8000_0000, [highest, 0, 0, 0]));
            host
        };
        let told = |highest: u32, spec: CpuidSpec| {
            find(&guest_cpuid(&host(highest), &spec), 0x8000_0007, 0).map(|leaf| leaf[3])
        };
        let vouched = CpuidSpec { tsc_invariant: true, ..spec() };
        for hide in [Hide::Kvm, Hide::All] {
            assert_eq!(told(0x8000_0008, CpuidSpec { hide, ..vouched }), Some(1 << 8));
            assert_eq!(told(0x8000_0008, CpuidSpec { hide, ..spec() }), None);
            assert_eq!(
                told(0x8000_0006, CpuidSpec { hide, ..vouched }),
                None,
                "beyond the last leaf"
            );
        }
        assert_eq!(told(0x8000_0008, vouched), None, "a guest with kvm-clock needs no such word");
    }

    #[test]
    fn tsc_ratio_is_exact_and_the_crystal_near_the_apic_timer() {
        for apic_khz in [KVM_APIC_KHZ, 25_000] {
            for tsc_khz in (400_000..6_000_000).step_by(9_973).chain([2_999_600, 3_000_400]) {
                let ratio = Ratio::of(apic_khz, tsc_khz).unwrap();
                assert_eq!(ratio.tsc_khz(), Some(tsc_khz));
                let off = ratio.crystal_khz.abs_diff(apic_khz);
                assert!(u64::from(off) * 1_000_000 <= u64::from(apic_khz) * 500, "{ratio:?}");
            }
        }
    }

    #[test]
    fn tsc_ratio_of_extremes_is_no_panic() {
        assert_eq!(Ratio::of(0, 3_000_000), None);
        assert_eq!(Ratio::of(1_000_000, 0), None);
        assert!(Ratio::of(u32::MAX, u32::MAX).is_some());
        let _ = Ratio::of(1, u32::MAX);
    }

    #[test]
    fn hyper_v_takes_the_first_place_and_kvm_the_second() {
        let list =
            guest_cpuid(&intel(), &CpuidSpec { hv_vendor: Some(*b"Microsoft Hv"), ..spec() });
        assert_eq!(name(&list, FIRST), Some((FIRST + 6, b"Microsoft Hv".to_vec())));
        assert_eq!(find(&list, FIRST + 1, 0).unwrap()[0].to_le_bytes(), *b"Hv#1");
        assert_eq!(find(&list, FIRST + 3, 0), Some([0xaf3, 0, 0, 0x100]));
        assert_eq!(name(&list, SECOND), Some((SECOND + 1, KVM_SIGNATURE.to_vec())));
        assert_eq!(find(&list, SECOND + 1, 0), find(&intel(), FIRST + 1, 0));
        assert_eq!(find(&list, TIMING, 0), None);
    }

    #[test]
    fn hyper_v_with_kvm_hidden_shows_hyper_v_only() {
        let shown = CpuidSpec { hide: Hide::Kvm, hv_vendor: Some(*b"0123456789ab"), ..spec() };
        let list = guest_cpuid(&intel(), &shown);
        assert_eq!(name(&list, FIRST).unwrap().1, b"0123456789ab");
        assert_eq!(find(&list, SECOND, 0), None);
    }
}
