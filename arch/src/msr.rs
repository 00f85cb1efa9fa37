//! Model-specific registers as firmware would leave them.

use kvm_bindings::kvm_msr_entry;

/// `IA32_MISC_ENABLE` (Intel SDM 4, 2.1): fast string operations.
const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
/// `IA32_MTRR_DEF_TYPE` (Intel SDM 3, 12.11.2.1): MTRRs on, everything write-back. Device memory is uncached by the
/// page tables of whoever maps it; a range that is uncached here could never be write-combined.
const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, 1 << 11 | 6);

/// What each vCPU starts with.
pub fn initial() -> Vec<kvm_msr_entry> {
    [MISC_ENABLE, MTRR_DEF_TYPE]
        .into_iter()
        .map(|(index, data)| kvm_msr_entry { index, data, ..Default::default() })
        .collect()
}
