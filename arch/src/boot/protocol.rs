//! What a kernel finds in memory when it is entered: the PVH start info, or Linux's zero page.

use linux_loader::{
    configurator::{
        BootConfigurator, BootParams, linux::LinuxBootConfigurator, pvh::PvhBootConfigurator,
    },
    loader::{
        bootparam::{boot_e820_entry, boot_params, setup_header},
        elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info},
    },
};
use vm_memory::{GuestAddress, GuestMemoryMmap};

use super::{BootError, Loaded, written};
use crate::{layout, plan::Plan};

/// `XEN_HVM_START_MAGIC_VALUE`.
const PVH_MAGIC: u32 = 0x336e_c578;
/// Version 1 has the memory map.
const PVH_VERSION: u32 = 1;
/// The one module, behind the start info.
const PVH_MODULES: u64 = layout::PVH_START_INFO + 0x80;
/// "No bootloader that has a number": Documentation/arch/x86/boot.rst, type_of_loader.
const LOADER_UNDEFINED: u8 = 0xff;
/// `KEEP_SEGMENTS`, `CAN_USE_HEAP` off, `LOADED_HIGH`: only the last matters to a 64-bit entry.
const LOADED_HIGH: u8 = 1;
/// What a setup header that we make ourselves must say (an ELF kernel has none).
const BOOT_FLAG: u16 = 0xaa55;
const HEADER_MAGIC: u32 = 0x5372_6448;
const HEADER_VERSION: u16 = 0x020f;

pub(super) fn pvh(
    memory: &GuestMemoryMmap,
    loaded: &Loaded,
    plan: &Plan,
    rsdp: u64,
) -> Result<(), BootError> {
    let map: Vec<hvm_memmap_table_entry> = plan
        .e820()
        .into_iter()
        .map(|(range, kind)| hvm_memmap_table_entry {
            addr: range.first(),
            size: range.len(),
            type_: kind as u32,
            reserved: 0,
        })
        .collect();
    let room = ((layout::ZERO_PAGE - layout::PVH_MEMMAP) / 24) as usize;
    if map.len() > room {
        return Err(BootError::Memory(format!("the memory map has {} entries", map.len())));
    }
    let info = hvm_start_info {
        magic: PVH_MAGIC,
        version: PVH_VERSION,
        nr_modules: u32::from(loaded.initramfs.is_some()),
        modlist_paddr: if loaded.initramfs.is_some() { PVH_MODULES } else { 0 },
        cmdline_paddr: layout::CMDLINE,
        rsdp_paddr: rsdp,
        memmap_paddr: layout::PVH_MEMMAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    let mut parameters = BootParams::new(&info, GuestAddress(layout::PVH_START_INFO));
    parameters.set_sections(&map, GuestAddress(layout::PVH_MEMMAP));
    if let Some(range) = loaded.initramfs {
        let module =
            hvm_modlist_entry { paddr: range.first(), size: range.len(), ..Default::default() };
        parameters.set_modules(&[module], GuestAddress(PVH_MODULES));
    }
    PvhBootConfigurator::write_bootparams(&parameters, memory).map_err(written)
}

pub(super) fn linux64(
    memory: &GuestMemoryMmap,
    loaded: &Loaded,
    plan: &Plan,
    rsdp: u64,
) -> Result<(), BootError> {
    let mut page = boot_params {
        hdr: loaded.kernel.header.unwrap_or(setup_header {
            boot_flag: BOOT_FLAG,
            header: HEADER_MAGIC,
            version: HEADER_VERSION,
            kernel_alignment: 0x20_0000,
            ..Default::default()
        }),
        acpi_rsdp_addr: rsdp,
        ..Default::default()
    };
    page.hdr.type_of_loader = LOADER_UNDEFINED;
    page.hdr.loadflags |= LOADED_HIGH;
    page.hdr.cmd_line_ptr = layout::CMDLINE as u32;
    page.hdr.cmdline_size = loaded.cmdline;
    if let Some(range) = loaded.initramfs {
        // Both fit: the initramfs is below 2 GiB.
        page.hdr.ramdisk_image = range.first() as u32;
        page.hdr.ramdisk_size = range.len() as u32;
    }
    let map = plan.e820();
    let mut table = page.e820_table;
    if map.len() > table.len() {
        return Err(BootError::Memory(format!("the memory map has {} entries", map.len())));
    }
    for (entry, (range, kind)) in table.iter_mut().zip(&map) {
        *entry = boot_e820_entry { addr: range.first(), size: range.len(), r#type: *kind as u32 };
    }
    page.e820_table = table;
    page.e820_entries = map.len() as u8;
    let parameters = BootParams::new(&page, GuestAddress(layout::ZERO_PAGE));
    LinuxBootConfigurator::write_bootparams(&parameters, memory).map_err(written)
}
