//! Registers of the boot CPU at each entry, and the tables in guest memory that they point to.

use kvm_bindings::{kvm_fpu, kvm_lapic_state, kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError, GuestMemoryMmap};

use crate::{boot::Entry, layout};

const CR0_PE: u64 = 1;
const CR0_ET: u64 = 1 << 4;
const CR0_PG: u64 = 1 << 31;
const CR4_PAE: u64 = 1 << 5;
const EFER_LME: u64 = 1 << 8;
const EFER_LMA: u64 = 1 << 10;
/// Bit 1 of RFLAGS is always one.
const RFLAGS: u64 = 2;

/// Page table entry: present and writable; in a page directory, 2 MiB.
const PRESENT_WRITABLE: u64 = 3;
const LARGE_PAGE: u64 = 1 << 7;
const GIB: u64 = 1 << 30;

/// Linux's boot selectors (Documentation/arch/x86/boot.rst, 64-bit protocol).
const BOOT_CS: u16 = 0x10;
const BOOT_DS: u16 = 0x18;
const BOOT_TSS: u16 = 0x20;

/// Offsets of the local vector table in the local APIC page (Intel SDM 3, 11.4.1).
const LVT_LINT0: usize = 0x350;
const LVT_LINT1: usize = 0x360;
const DELIVERY_EXTINT: u32 = 7 << 8;
const DELIVERY_NMI: u32 = 4 << 8;

/// The boot CPU's registers for `entry`, from what KVM has after power-on. Writes GDT, and page tables where the
/// entry wants them, into guest memory.
///
/// # Errors
/// When the low megabyte is not RAM.
pub fn boot_state(
    memory: &GuestMemoryMmap,
    entry: Entry,
    power_on: kvm_sregs,
) -> Result<(kvm_regs, kvm_sregs), GuestMemoryError> {
    let long = matches!(entry, Entry::Linux64 { .. });
    let (code, data, task) = (code(long), data(), task());
    for (index, segment) in [(BOOT_CS, &code), (BOOT_DS, &data), (BOOT_TSS, &task)] {
        memory.write_obj(descriptor(segment), GuestAddress(layout::BOOT_GDT + u64::from(index)))?;
    }
    let mut sregs = power_on;
    sregs.gdt.base = layout::BOOT_GDT;
    sregs.gdt.limit = BOOT_TSS + 7;
    sregs.idt.base = 0;
    sregs.idt.limit = 0;
    sregs.cs = code;
    for segment in [&mut sregs.ds, &mut sregs.es, &mut sregs.fs, &mut sregs.gs, &mut sregs.ss] {
        *segment = data;
    }
    sregs.tr = task;
    sregs.cr0 = CR0_PE | CR0_ET;
    sregs.cr4 = 0;
    let mut regs = kvm_regs { rflags: RFLAGS, ..Default::default() };
    match entry {
        Entry::Pvh { rip, start_info } => {
            regs.rip = rip;
            regs.rbx = start_info;
        }
        Entry::Linux64 { rip, zero_page } => {
            identity_map(memory)?;
            sregs.cr3 = layout::BOOT_PAGE_TABLES;
            sregs.cr4 |= CR4_PAE;
            sregs.cr0 |= CR0_PG;
            sregs.efer |= EFER_LME | EFER_LMA;
            regs.rip = rip;
            regs.rsi = zero_page;
            regs.rsp = layout::BOOT_STACK;
            regs.rbp = layout::BOOT_STACK;
        }
    }
    Ok((regs, sregs))
}

/// x87 and SSE as after FNINIT: what a kernel may expect before it sets its own.
pub fn fpu() -> kvm_fpu {
    kvm_fpu { fcw: 0x37f, mxcsr: 0x1f80, ..Default::default() }
}

/// LINT0 takes the PIC's interrupts, LINT1 is the NMI, as the MADT says.
pub fn set_local_interrupts(lapic: &mut kvm_lapic_state) {
    for (offset, delivery) in [(LVT_LINT0, DELIVERY_EXTINT), (LVT_LINT1, DELIVERY_NMI)] {
        // Signed and unsigned bytes are the same bits: the C structure says `char`.
        for (at, byte) in delivery.to_le_bytes().into_iter().enumerate() {
            if let Some(register) = lapic.regs.get_mut(offset + at) {
                *register = byte.cast_signed();
            }
        }
    }
}

/// The first 4 GiB, one to one, by 2 MiB pages: one PML4, one PDPT, four page directories.
fn identity_map(memory: &GuestMemoryMmap) -> Result<(), GuestMemoryError> {
    let pml4 = layout::BOOT_PAGE_TABLES;
    let pdpt = pml4 + 0x1000;
    memory.write_obj(pdpt | PRESENT_WRITABLE, GuestAddress(pml4))?;
    for gib in 0..4_u64 {
        let directory = pdpt + 0x1000 * (gib + 1);
        memory.write_obj(directory | PRESENT_WRITABLE, GuestAddress(pdpt + 8 * gib))?;
        let entries: Vec<u8> = (0..512_u64)
            .map(|page| (gib * GIB + (page << 21)) | PRESENT_WRITABLE | LARGE_PAGE)
            .flat_map(u64::to_le_bytes)
            .collect();
        memory.write_slice(&entries, GuestAddress(directory))?;
    }
    Ok(())
}

fn code(long: bool) -> kvm_segment {
    let size = u8::from(!long);
    kvm_segment { selector: BOOT_CS, type_: 0xb, l: u8::from(long), db: size, ..flat() }
}

fn data() -> kvm_segment {
    kvm_segment { selector: BOOT_DS, type_: 0x3, db: 1, ..flat() }
}

fn task() -> kvm_segment {
    kvm_segment { selector: BOOT_TSS, type_: 0xb, s: 0, limit: 0x67, g: 0, ..flat() }
}

fn flat() -> kvm_segment {
    kvm_segment { base: 0, limit: 0xffff_ffff, present: 1, s: 1, g: 1, ..Default::default() }
}

/// The descriptor of a segment (Intel SDM 3, 3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = if segment.g == 1 { segment.limit >> 12 } else { segment.limit };
    let (base, limit) = (segment.base, u64::from(limit));
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

#[cfg(test)]
mod tests {
    use super::*;

    fn memory() -> GuestMemoryMmap {
        GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap()
    }

    #[test]
    fn descriptors_are_the_well_known_flat_ones() {
        assert_eq!(descriptor(&code(false)), 0x00cf_9b00_0000_ffff);
        assert_eq!(descriptor(&code(true)), 0x00af_9b00_0000_ffff);
        assert_eq!(descriptor(&data()), 0x00cf_9300_0000_ffff);
    }

    #[test]
    fn pvh_entry_has_no_paging_and_its_start_info_in_ebx() {
        let entry = Entry::Pvh { rip: 0x100_0000, start_info: 0x6000 };
        let (regs, sregs) = boot_state(&memory(), entry, kvm_sregs::default()).unwrap();
        assert_eq!((regs.rip, regs.rbx, regs.rflags), (0x100_0000, 0x6000, 2));
        assert_eq!((sregs.cr0 & CR0_PG, sregs.cr4, sregs.efer), (0, 0, 0));
        assert_eq!((sregs.cs.db, sregs.cs.l), (1, 0));
    }

    #[test]
    fn long_mode_entry_maps_the_first_4_gib_one_to_one() {
        let memory = memory();
        let entry = Entry::Linux64 { rip: 0x100_0200, zero_page: 0x7000 };
        let (regs, sregs) = boot_state(&memory, entry, kvm_sregs::default()).unwrap();
        assert_eq!((regs.rsi, sregs.cr3, sregs.cs.l), (0x7000, layout::BOOT_PAGE_TABLES, 1));
        let entry_of = |address: u64| -> u64 { memory.read_obj(GuestAddress(address)).unwrap() };
        for address in [0, 0x1234_5678_u64, 0xffff_ffff] {
            let pdpt = entry_of(sregs.cr3) & !0xfff;
            let directory = entry_of(pdpt + 8 * (address >> 30)) & !0xfff;
            let page = entry_of(directory + 8 * (address >> 21 & 511));
            assert_eq!(page, address & !0x1f_ffff | 0x83);
        }
    }

    #[test]
    fn local_interrupts_are_external_and_nmi() {
        let mut lapic = kvm_lapic_state::default();
        set_local_interrupts(&mut lapic);
        let byte = |at: usize| lapic.regs[at].cast_unsigned();
        assert_eq!((byte(LVT_LINT0 + 1), byte(LVT_LINT1 + 1)), (0x7, 0x4));
    }
}
