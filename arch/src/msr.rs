//! Model-specific registers as firmware would leave them, and those that a reset has to put back.

use std::ops::Range;

use kvm_bindings::kvm_msr_entry;

/// Time-stamp counter.
pub const TSC: u32 = 0x10;
/// `IA32_MISC_ENABLE` (Intel SDM 4, 2.1): fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE` (Intel SDM 3, 12.11.2.1): MTRRs on, everything write-back. Device memory is uncached by the
/// page tables of whoever maps it; a range that is uncached here could never be write-combined.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);
/// Base and mask of eight variable MTRRs, which is what KVM has.
const MTRR_VARIABLE: Range<u32> = 0x200..0x210;
/// Fixed-range MTRRs for the low megabyte: ranges of 64 KiB, 16 KiB and 4 KiB.
const MTRR_FIXED: [Range<u32>; 3] = [0x250..0x251, 0x258..0x25a, 0x268..0x270];
/// Control, status, address and miscellaneous register of each of KVM's 32 machine-check banks.
const MACHINE_CHECK_BANKS: Range<u32> = 0x400..0x480;

/// `IA32_FEATURE_CONTROL` (Intel SDM 3, 24.7) as firmware locks it: VMXON outside of SMX.
const FEATURE_CONTROL: (u32, u64) = (0x3a, 1 | 1 << 2);

/// What each vCPU starts with. `vmx`: it has Intel's virtualization.
pub fn initial(vmx: bool) -> Vec<kvm_msr_entry> {
    [MISC_ENABLE, MTRR_DEF_TYPE]
        .into_iter()
        .chain(vmx.then_some(FEATURE_CONTROL))
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect()
}

/// MSRs that a guest can set and that KVM_GET_MSR_INDEX_LIST leaves out, although no other part of a vCPU's state has them
/// (as that of the local APIC has the x2APIC's, and the special registers have EFER and the segments' bases).
pub fn unlisted() -> impl Iterator<Item = u32> {
    MTRR_VARIABLE
        .chain(MTRR_FIXED.into_iter().flatten())
        .chain([MTRR_DEF_TYPE.0])
        .chain(MACHINE_CHECK_BANKS)
}

/// One vCPU's HWCR, the hardware configuration register of AMD CPUs (AMD APM 2, 3.2.10), where KVM leaves it to strait.
///
/// Linux finds a firmware bug in a CPU whose TSC never changes and whose HWCR does not say that the TSC counts at the
/// frequency of P0. KVM knows that bit since Linux 6.7 only, and refuses it before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hwcr {
    /// The bits that KVM acts on.
    kvms: u64,
}

impl Hwcr {
    /// The register's number.
    pub const INDEX: u32 = 0xc001_0015;
    /// TscFreqSel: the TSC counts at the frequency of P0. Read-only.
    const TSC_FREQ_SEL: u64 = 1 << 24;
    /// McStatusWrEn: software may write to the machine-check status registers.
    const MC_STATUS_WR_EN: u64 = 1 << 18;
    /// Settings of old CPUs' caches and of IGNNE, which KVM lets a guest write without effect: TlbCacheDis, FFDis,
    /// IgnneEm.
    const IGNORED: u64 = 1 << 3 | 1 << 6 | 1 << 8;

    /// What the guest reads.
    pub const fn read(self) -> u64 {
        self.kvms | Self::TSC_FREQ_SEL
    }

    /// What the guest writes; `false`: with bits that do not exist here, a general-protection fault.
    pub const fn write(&mut self, value: u64) -> bool {
        let known = Self::IGNORED | Self::TSC_FREQ_SEL | Self::MC_STATUS_WR_EN;
        if value & !known != 0 {
            return false;
        }
        self.kvms = value & Self::MC_STATUS_WR_EN;
        true
    }

    /// What KVM shall hold for it.
    pub fn for_kvm(self) -> kvm_msr_entry {
        kvm_msr_entry { index: Self::INDEX, data: self.kvms, ..Default::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hwcr_says_that_the_tsc_counts_at_p0_whatever_is_written() {
        let mut hwcr = Hwcr::default();
        assert_eq!(hwcr.read(), 1 << 24);
        for value in [0, 1 << 24, 1 << 6 | 1 << 8] {
            assert!(hwcr.write(value), "{value:#x}");
            assert_eq!((hwcr.read(), hwcr.for_kvm().data), (1 << 24, 0));
        }
    }

    #[test]
    fn hwcr_hands_kvm_its_bit_and_refuses_what_nobody_has() {
        let mut hwcr = Hwcr::default();
        assert!(hwcr.write(1 << 18));
        assert_eq!((hwcr.read(), hwcr.for_kvm().data), (1 << 24 | 1 << 18, 1 << 18));
        for value in [1, 1 << 25, 1 << 30, u64::MAX] {
            assert!(!hwcr.write(value), "{value:#x}");
        }
        assert_eq!(hwcr.read(), 1 << 24 | 1 << 18, "a refused write changes nothing");
    }
}
