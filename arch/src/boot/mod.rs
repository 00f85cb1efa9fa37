//! Kernels into guest memory, and where to enter them.
//!
//! An ELF vmlinux with a PVH note is entered by it (32-bit, no page tables of ours); one without by the 64-bit
//! protocol. A bzImage is unwrapped to the vmlinux inside: the monitor decompresses faster than a guest that
//! sees each of its pages for the first time. Documentation/arch/x86/boot.rst; xen/include/public/arch-x86/hvm/start_info.h.

mod cmdline;
mod elf;
mod failure;
mod files;
mod protocol;
mod setup;
mod sparse;
mod unwrap;

use std::{
    io::{self, Cursor, Read, Seek, SeekFrom},
    path::PathBuf,
};

use linux_loader::loader::{KernelLoader, bootparam::setup_header, bzimage::BzImage};
use strait_resources::range::{AddressRange, align_down, align_up};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

pub use self::{
    cmdline::{telling_any_tsc, telling_some_tsc, telling_tsc, tells_tsc},
    files::BootFiles,
};
use self::{elf::Layout, files::OpenFile, setup::Setup, sparse::Sparse};
use crate::{layout, plan::Plan};

/// Highest address for an initramfs where the kernel does not say (`initrd_addr_max` of every 64-bit Linux).
const INITRAMFS_MAX: u64 = 0x7fff_ffff;
const PAGE: u64 = 4096;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootRequest<'a> {
    /// The kernel, a bzImage or an ELF vmlinux, and the initramfs, which is passed on as it is.
    pub files: &'a BootFiles,
    /// Without NUL.
    pub cmdline: &'a str,
    /// Where RAM is, the lowest first: [`Plan::ram`].
    pub ram: &'a [AddressRange],
    /// RAM is as the host gave it, all zeros: no guest has run in it yet.
    pub fresh: bool,
    /// Which way in.
    pub mode: BootMode,
}

/// Which way into the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BootMode {
    /// PVH where there is that entry, else the 64-bit one.
    #[default]
    Auto,
    /// PVH or nothing.
    Pvh,
    /// The bzImage's own 64-bit entry: the kernel decompresses itself.
    BzImage,
}

/// Where the boot CPU starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// 32-bit protected mode without paging, `ebx` points at the start info.
    Pvh {
        /// Guest-physical address of the kernel's first instruction.
        rip: u64,
        /// Guest-physical address of `hvm_start_info`.
        start_info: u64,
    },
    /// Long mode with identity-mapped low memory, `rsi` points at the zero page.
    Linux64 {
        /// Guest-physical address of the kernel's first instruction.
        rip: u64,
        /// Guest-physical address of `boot_params`.
        zero_page: u64,
    },
}

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file that was to be read.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Not something that boots.
    #[error("{} is {what}, not an x86-64 kernel", path.display())]
    NotAKernel {
        /// The file that was given as a kernel.
        path: PathBuf,
        /// What it looks like.
        what: String,
    },
    /// An empty file.
    #[error("{} is empty, not an initramfs", path.display())]
    NotAnInitramfs {
        /// The file that was given as an initramfs.
        path: PathBuf,
    },
    /// `--boot pvh` for a kernel without that entry.
    #[error("{} has no PVH entry: {why}", path.display())]
    NoPvh {
        /// The file that was given as a kernel.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Too big.
    #[error("{} needs RAM up to {} MiB, the guest has {} MiB below 4 GiB", path.display(), end.div_ceil(1 << 20), low >> 20)]
    KernelTooBig {
        /// The file that was given as a kernel.
        path: PathBuf,
        /// First address above the kernel.
        end: u64,
        /// End of low RAM.
        low: u64,
    },
    /// No room between kernel and end of low RAM.
    #[error("{} has {} MiB, {} MiB are free above the kernel", path.display(), len.div_ceil(1 << 20), room >> 20)]
    InitramfsTooBig {
        /// The file that was given as an initramfs.
        path: PathBuf,
        /// Its size in bytes.
        len: u64,
        /// What is free, in bytes.
        room: u64,
    },
    /// Longer than the kernel takes.
    #[error("the kernel command line has {len} bytes, the kernel takes {limit}")]
    CmdlineTooLong {
        /// Bytes without the terminating NUL.
        len: usize,
        /// At most.
        limit: usize,
    },
    /// RAM that should be there is not.
    #[error("boot data cannot be written to guest RAM: {0}")]
    Memory(String),
}

/// What was loaded, for [`Loaded::prepare`].
pub struct Loaded {
    kernel: LoadedKernel,
    initramfs: Option<AddressRange>,
    /// Bytes without the NUL.
    cmdline: u32,
}

/// A kernel in guest memory.
struct LoadedKernel {
    /// First instruction for the way that was chosen.
    rip: u64,
    pvh: bool,
    /// First byte above it, bss and decompression room included.
    end: u64,
    /// Of a bzImage entered by its own code.
    header: Option<setup_header>,
    limits: Limits,
}

/// What the kernel says it takes. A bare ELF file says nothing; a bzImage does, for its vmlinux too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Limits {
    /// Bytes of command line without the NUL: Linux cuts what is longer without a word.
    cmdline: usize,
    /// Highest address of the initramfs's last byte.
    initramfs: u64,
}

impl Limits {
    const UNTOLD: Self =
        Self { cmdline: layout::CMDLINE_SIZE as usize - 1, initramfs: INITRAMFS_MAX };
}

/// A file of a kernel's, decompressed if it is compressed in one of the ways in which kernels are.
pub fn decompressed(file: &[u8]) -> io::Result<Vec<u8>> {
    unwrap::decompress(file).map_err(|error| io::Error::other(error.to_string()))
}

/// First address above the RAM below 4 GiB, where the kernel and what goes with it lie. `ram`: [`Plan::ram`].
pub fn low_ram(ram: &[AddressRange]) -> u64 {
    ram.first().map_or(0, |range| range.last().saturating_add(1)).min(1 << 32)
}

/// Looks at the files without loading them: what [`load`] would refuse is refused here, before a machine is made. `low`
/// is [`low_ram`] in bytes. `--boot pvh` for a bzImage takes as long as its unpacking.
///
/// # Errors
/// As [`load`].
pub fn check(files: &BootFiles, cmdline: &str, mode: BootMode, low: u64) -> Result<(), BootError> {
    let kernel = &files.kernel;
    let path = || kernel.path.clone();
    let (end, limits) = match kind(kernel, mode)? {
        Kind::Elf(layout) if mode == BootMode::Pvh && layout.pvh.is_none() => {
            return Err(BootError::NoPvh { path: path(), why: NO_NOTE.to_owned() });
        }
        Kind::Elf(layout) => (layout.end, Limits::UNTOLD),
        Kind::BzImage(setup) => {
            if mode == BootMode::Pvh {
                let (vmlinux, _) = unpacked(files, low)?;
                files.keep(vmlinux);
            }
            (setup.end, setup.limits)
        }
    };
    if end > low {
        return Err(BootError::KernelTooBig { path: path(), end, low });
    }
    if let Some(initramfs) = &files.initramfs {
        place_initramfs(initramfs, end, limits, low)?;
    }
    match (cmdline.len(), limits.cmdline) {
        (len, limit) if len > limit => Err(BootError::CmdlineTooLong { len, limit }),
        _ => Ok(()),
    }
}

/// What a kernel file is.
enum Kind {
    Elf(Layout),
    BzImage(Setup),
}

const NO_NOTE: &str = "it was built without CONFIG_PVH";

fn kind(kernel: &OpenFile, mode: BootMode) -> Result<Kind, BootError> {
    let not = |what| BootError::NotAKernel { path: kernel.path.clone(), what };
    let head = kernel.head()?;
    if head.starts_with(b"\x7fELF") {
        let layout = elf_layout(kernel, &mut *kernel.rewound()?)?;
        if mode == BootMode::BzImage {
            return Err(not("an ELF file; --boot bzimage wants a bzImage".to_owned()));
        }
        return Ok(Kind::Elf(layout));
    }
    match setup::is_bzimage(&head) {
        true => setup::read(&head, kernel.size()?).map(Kind::BzImage).map_err(not),
        false => Err(not(failure::what_is(&head))),
    }
}

fn elf_layout<F: Read + Seek>(kernel: &OpenFile, image: &mut F) -> Result<Layout, BootError> {
    elf::layout(image).map_err(|error| match error {
        elf::Error::Io(source) => kernel.error(source),
        elf::Error::Odd(what) => BootError::NotAKernel { path: kernel.path.clone(), what },
    })
}

/// The vmlinux inside a bzImage and its layout, when it can be entered by PVH.
fn unpacked(files: &BootFiles, low: u64) -> Result<(Vec<u8>, Layout), BootError> {
    let kernel = &files.kernel;
    let no_pvh = |why| BootError::NoPvh { path: kernel.path.clone(), why };
    let vmlinux = match files.take_unpacked() {
        Some(vmlinux) => vmlinux,
        None => {
            let head = kernel.head()?;
            unwrap::vmlinux(&mut *kernel.rewound()?, &head, low).map_err(|error| match error {
                unwrap::Error::Io(source) => kernel.error(source),
                why => no_pvh(why.to_string()),
            })?
        }
    };
    let layout = elf_layout(kernel, &mut Cursor::new(&vmlinux)).map_err(|error| match error {
        BootError::NotAKernel { what, .. } => no_pvh(format!("inside is {what}")),
        error => error,
    })?;
    match layout.pvh {
        Some(_) if layout.end <= low => Ok((vmlinux, layout)),
        Some(_) => Err(BootError::KernelTooBig { path: kernel.path.clone(), end: layout.end, low }),
        None => Err(no_pvh(NO_NOTE.to_owned())),
    }
}

/// Loads kernel, initramfs and command line: all that takes a while, and that needs to know no more than where RAM is.
///
/// # Errors
/// A file that cannot be read or is no kernel, too little RAM, a command line that is too long.
pub fn load(memory: &GuestMemoryMmap, request: &BootRequest<'_>) -> Result<Loaded, BootError> {
    let low = low_ram(request.ram);
    let kernel = load_kernel(memory, request, low)?;
    let initramfs = request.files.initramfs.as_ref();
    let initramfs =
        initramfs.map(|initramfs| load_initramfs(memory, initramfs, &kernel, low)).transpose()?;
    let mut loaded = Loaded { kernel, initramfs, cmdline: 0 };
    loaded.set_cmdline(memory, request.cmdline)?;
    Ok(loaded)
}

impl Loaded {
    /// Writes the command line, in the place of an earlier one.
    ///
    /// # Errors
    /// When it is longer than the kernel takes, or RAM that is not there.
    pub fn set_cmdline(
        &mut self,
        memory: &GuestMemoryMmap,
        cmdline: &str,
    ) -> Result<(), BootError> {
        let (len, limit) = (cmdline.len(), self.kernel.limits.cmdline);
        if len > limit {
            return Err(BootError::CmdlineTooLong { len, limit });
        }
        let terminated = [cmdline.as_bytes(), &[0]].concat();
        memory.write_slice(&terminated, GuestAddress(layout::CMDLINE)).map_err(written)?;
        self.cmdline = len as u32;
        Ok(())
    }

    /// Writes what the kernel is told when it is entered; says where that is. `rsdp`: guest-physical address of the ACPI
    /// root pointer.
    ///
    /// # Errors
    /// A plan with more ranges than a kernel can be told of, or RAM that is not there.
    pub fn prepare(
        &self,
        memory: &GuestMemoryMmap,
        plan: &Plan,
        rsdp: u64,
    ) -> Result<Entry, BootError> {
        let rip = self.kernel.rip;
        if self.kernel.pvh {
            protocol::pvh(memory, self, plan, rsdp)?;
            Ok(Entry::Pvh { rip, start_info: layout::PVH_START_INFO })
        } else {
            protocol::linux64(memory, self, plan, rsdp)?;
            Ok(Entry::Linux64 { rip, zero_page: layout::ZERO_PAGE })
        }
    }
}

fn written(error: impl std::fmt::Display) -> BootError {
    BootError::Memory(error.to_string())
}

fn load_kernel(
    memory: &GuestMemoryMmap,
    request: &BootRequest<'_>,
    low: u64,
) -> Result<LoadedKernel, BootError> {
    let kernel = &request.files.kernel;
    let setup = match kind(kernel, request.mode)? {
        Kind::Elf(layout) => {
            if request.mode == BootMode::Pvh && layout.pvh.is_none() {
                let why = NO_NOTE.to_owned();
                return Err(BootError::NoPvh { path: kernel.path.clone(), why });
            }
            let file = &mut *kernel.rewound()?;
            return load_elf(memory, request, file, &layout, Limits::UNTOLD);
        }
        Kind::BzImage(setup) => setup,
    };
    if request.mode == BootMode::BzImage {
        return load_bzimage(memory, kernel, setup, low);
    }
    match unpacked(request.files, low) {
        Ok((vmlinux, layout)) => {
            load_elf(memory, request, Cursor::new(vmlinux), &layout, setup.limits)
        }
        // What is inside cannot be entered by PVH: the bzImage has its own entry and unpacks itself.
        Err(BootError::NoPvh { .. } | BootError::KernelTooBig { .. })
            if request.mode == BootMode::Auto =>
        {
            load_bzimage(memory, kernel, setup, low)
        }
        Err(error) => Err(error),
    }
}

fn load_elf<F: Read + ReadVolatile + Seek>(
    memory: &GuestMemoryMmap,
    request: &BootRequest<'_>,
    image: F,
    layout: &Layout,
    limits: Limits,
) -> Result<LoadedKernel, BootError> {
    let kernel = &request.files.kernel;
    let (low, end) = (low_ram(request.ram), layout.end);
    if end > low {
        return Err(BootError::KernelTooBig { path: kernel.path.clone(), end, low });
    }
    let mut image = Sparse::new(image, request.fresh);
    for segment in &layout.segments {
        image.seek(SeekFrom::Start(segment.offset)).map_err(|source| kernel.error(source))?;
        let len = usize::try_from(segment.len).map_err(written)?;
        memory
            .read_exact_volatile_from(GuestAddress(segment.physical), &mut image, len)
            .map_err(|error| kernel.error(io::Error::other(error)))?;
    }
    let (rip, pvh) = (layout.pvh.unwrap_or(layout.entry), layout.pvh.is_some());
    Ok(LoadedKernel { rip, pvh, end, header: None, limits })
}

fn load_bzimage(
    memory: &GuestMemoryMmap,
    kernel: &OpenFile,
    setup: Setup,
    low: u64,
) -> Result<LoadedKernel, BootError> {
    let odd = |what: String| BootError::NotAKernel { path: kernel.path.clone(), what };
    let Setup { end, limits } = setup;
    if end > low {
        return Err(BootError::KernelTooBig { path: kernel.path.clone(), end, low });
    }
    let start = GuestAddress(layout::HIGH_MEMORY_START);
    let result = BzImage::load(memory, Some(start), &mut *kernel.rewound()?, Some(start))
        .map_err(|error| odd(format!("a bzImage that does not load ({error})")))?;
    let header = result.setup_header;
    let header = Some(header.ok_or_else(|| odd("a bzImage without a setup header".to_owned()))?);
    Ok(LoadedKernel { rip: result.kernel_load.0 + 0x200, pvh: false, end, header, limits })
}

/// Where an initramfs goes: as high as it may be, out of the way of whatever the kernel does first. `end`: first address
/// above the kernel.
fn place_initramfs(
    initramfs: &OpenFile,
    end: u64,
    limits: Limits,
    low: u64,
) -> Result<AddressRange, BootError> {
    let len = initramfs.size()?;
    let top = low.min(limits.initramfs.saturating_add(1));
    let bottom = align_up(end, PAGE).unwrap_or(u64::MAX);
    top.checked_sub(len)
        .map(|start| align_down(start, PAGE))
        .filter(|start| *start >= bottom)
        .and_then(|start| AddressRange::new(start, len))
        .ok_or_else(|| match len {
            0 => BootError::NotAnInitramfs { path: initramfs.path.clone() },
            len => BootError::InitramfsTooBig {
                path: initramfs.path.clone(),
                len,
                room: top.saturating_sub(bottom),
            },
        })
}

fn load_initramfs(
    memory: &GuestMemoryMmap,
    initramfs: &OpenFile,
    kernel: &LoadedKernel,
    low: u64,
) -> Result<AddressRange, BootError> {
    let range = place_initramfs(initramfs, kernel.end, kernel.limits, low)?;
    let len = usize::try_from(range.len()).map_err(written)?;
    memory
        .read_exact_volatile_from(GuestAddress(range.first()), &mut *initramfs.rewound()?, len)
        .map_err(|error| initramfs.error(io::Error::other(error)))?;
    Ok(range)
}

#[cfg(test)]
mod tests;
