//! Kernels into guest memory, and where to enter them.
//!
//! An ELF vmlinux with a PVH note is entered by it (32-bit, no page tables of ours); one without by the 64-bit
//! protocol. A bzImage is unwrapped to the vmlinux inside: the monitor decompresses faster than a guest that
//! sees each of its pages for the first time. Documentation/arch/x86/boot.rst; xen/include/public/arch-x86/hvm/start_info.h.

mod cmdline;
mod elf;
mod failure;
mod protocol;
mod sparse;
mod unwrap;

use std::{
    fs::File,
    io::{self, Cursor, Read, Seek},
    path::{Path, PathBuf},
};

use linux_loader::loader::{
    Elf, KernelLoader, bootparam::setup_header, bzimage::BzImage, elf::PvhBootCapability,
};
use strait_resources::range::{AddressRange, align_down, align_up};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap, ReadVolatile};

pub use self::cmdline::{telling_any_tsc, telling_some_tsc, telling_tsc, tells_tsc};
use self::sparse::Sparse;
use crate::{layout, plan::Plan};

/// Magic of the setup header, and where it and what we read of it stand in a bzImage.
const HDRS: &[u8; 4] = b"HdrS";
const HDRS_AT: usize = 0x202;
const INITRD_ADDR_MAX_AT: usize = 0x22c;
const CMDLINE_SIZE_AT: usize = 0x238;
/// Highest address for an initramfs where the kernel does not say (`initrd_addr_max` of every 64-bit Linux).
const INITRAMFS_MAX: u64 = 0x7fff_ffff;
const PAGE: u64 = 4096;
/// How much of a file is looked at to tell what it is.
const HEAD: usize = 0x1000;

/// What to boot.
#[derive(Clone, Copy, Debug)]
pub struct BootRequest<'a> {
    /// bzImage or ELF vmlinux.
    pub kernel: &'a Path,
    /// Passed on as it is.
    pub initramfs: Option<&'a Path>,
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
        /// First instruction.
        rip: u64,
        /// `hvm_start_info`.
        start_info: u64,
    },
    /// Long mode with identity-mapped low memory, `rsi` points at the zero page.
    Linux64 {
        /// First instruction.
        rip: u64,
        /// `boot_params`.
        zero_page: u64,
    },
}

/// Why a kernel could not be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A file.
    #[error("{} cannot be read", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// The system's error.
        #[source]
        source: io::Error,
    },
    /// Not something that boots.
    #[error("{} is {what}, not an x86-64 kernel", path.display())]
    NotAKernel {
        /// Which file.
        path: PathBuf,
        /// What it looks like.
        what: String,
    },
    /// An empty file.
    #[error("{} is empty, not an initramfs", path.display())]
    NotAnInitramfs {
        /// Which file.
        path: PathBuf,
    },
    /// `--boot pvh` for a kernel without that entry.
    #[error("{} has no PVH entry: {why}", path.display())]
    NoPvh {
        /// Which file.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// Too big.
    #[error("{} needs RAM up to {} MiB, the guest has {} MiB below 4 GiB", path.display(), end.div_ceil(1 << 20), low >> 20)]
    KernelTooBig {
        /// Which file.
        path: PathBuf,
        /// First address above the kernel.
        end: u64,
        /// End of low RAM.
        low: u64,
    },
    /// No room between kernel and end of low RAM.
    #[error("{} has {} MiB, {} MiB are free above the kernel", path.display(), len.div_ceil(1 << 20), room >> 20)]
    InitramfsTooBig {
        /// Which file.
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

    /// From a file that starts with `head`: `cmdline_size` (protocol 2.06 on), `initrd_addr_max` (2.03 on).
    fn of_bzimage(head: &[u8]) -> Self {
        let told = |at: usize| match head.get(at..at + 4) {
            Some(&[a, b, c, d]) => {
                Some(u32::from_le_bytes([a, b, c, d])).filter(|value| *value > 0)
            }
            _ => None,
        };
        let cmdline = told(CMDLINE_SIZE_AT).map_or(Self::UNTOLD.cmdline, |size| size as usize);
        Self {
            cmdline: cmdline.min(Self::UNTOLD.cmdline),
            initramfs: told(INITRD_ADDR_MAX_AT).map_or(INITRAMFS_MAX, u64::from),
        }
    }
}

/// A file of a kernel's, decompressed if it is compressed in one of the ways in which kernels are.
pub fn decompressed(file: &[u8]) -> io::Result<Vec<u8>> {
    unwrap::decompress(file).map_err(|error| io::Error::other(error.to_string()))
}

/// Looks at the files without loading them: what [`load`] would refuse for their kind, size or length is refused here,
/// before a machine is made. `ram` is the guest's in bytes.
///
/// # Errors
/// As [`load`]; a bzImage whose payload turns out to be broken or too large is left to that.
pub fn check(
    kernel: &Path,
    initramfs: Option<&Path>,
    cmdline: &str,
    mode: BootMode,
    ram: u64,
) -> Result<(), BootError> {
    let low = ram.min(layout::LOW_RAM_MAX);
    let read = |source| BootError::Read { path: kernel.to_owned(), source };
    let (mut file, head) = open_kernel(kernel)?;
    let (end, limits) = match kind(kernel, &head, mode)? {
        Kind::Elf => (elf_end(kernel, &mut file)?, Limits::UNTOLD),
        Kind::BzImage => {
            let len = file.seek(io::SeekFrom::End(0)).map_err(read)?;
            (layout::HIGH_MEMORY_START.saturating_add(len), Limits::of_bzimage(&head))
        }
    };
    if end > low {
        return Err(BootError::KernelTooBig { path: kernel.to_owned(), end, low });
    }
    if let Some(path) = initramfs {
        let len = Initramfs::open(path)?.len;
        let room = low.saturating_sub(end);
        if len > room {
            return Err(BootError::InitramfsTooBig { path: path.to_owned(), len, room });
        }
    }
    match (cmdline.len(), limits.cmdline) {
        (len, limit) if len > limit => Err(BootError::CmdlineTooLong { len, limit }),
        _ => Ok(()),
    }
}

/// What a kernel file is.
enum Kind {
    Elf,
    BzImage,
}

fn kind(path: &Path, head: &[u8], mode: BootMode) -> Result<Kind, BootError> {
    let not = |what| BootError::NotAKernel { path: path.to_owned(), what };
    if head.starts_with(b"\x7fELF") {
        if mode == BootMode::BzImage {
            return Err(not("an ELF file; --boot bzimage wants a bzImage".to_owned()));
        }
        return Ok(Kind::Elf);
    }
    match head.get(HDRS_AT..HDRS_AT + 4) {
        Some(magic) if magic == HDRS => Ok(Kind::BzImage),
        _ => Err(not(failure::what_is(head))),
    }
}

/// The file, and its first bytes.
fn open_kernel(path: &Path) -> Result<(File, Vec<u8>), BootError> {
    let read = |source| BootError::Read { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(read)?;
    let mut head = Vec::with_capacity(HEAD);
    file.by_ref().take(HEAD as u64).read_to_end(&mut head).map_err(read)?;
    file.rewind().map_err(read)?;
    Ok((file, head))
}

fn elf_end<F: Read + Seek>(path: &Path, image: &mut F) -> Result<u64, BootError> {
    elf::memory_end(image).map_err(|error| match error {
        elf::Error::Io(source) => BootError::Read { path: path.to_owned(), source },
        elf::Error::Odd(what) => BootError::NotAKernel { path: path.to_owned(), what },
    })
}

/// Loads kernel, initramfs and command line: all that takes a while, and that needs to know no more than where RAM is.
///
/// # Errors
/// A file that cannot be read or is no kernel, too little RAM, a command line that is too long.
pub fn load(memory: &GuestMemoryMmap, request: &BootRequest<'_>) -> Result<Loaded, BootError> {
    let low = request.ram.first().map_or(0, |range| range.last().saturating_add(1)).min(1 << 32);
    // Opened before the kernel is unpacked, which takes a while: a typing error should not.
    let initramfs = request.initramfs.map(Initramfs::open).transpose()?;
    let kernel = load_kernel(memory, request, low)?;
    let initramfs = initramfs.map(|initramfs| initramfs.load(memory, &kernel, low)).transpose()?;
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
    let path = request.kernel;
    let read = |source| BootError::Read { path: path.to_owned(), source };
    let (mut file, head) = open_kernel(path)?;
    if let Kind::Elf = kind(path, &head, request.mode)? {
        return load_elf(memory, request, &mut file, Limits::UNTOLD, low);
    }
    let limits = Limits::of_bzimage(&head);
    if request.mode == BootMode::BzImage {
        return load_bzimage(memory, path, &mut file, limits, low);
    }
    match unwrap::vmlinux(&mut file, &head) {
        Ok(vmlinux) => {
            let loaded = load_elf(memory, request, Cursor::new(vmlinux), limits, low)?;
            // A vmlinux from inside a bzImage without the note wants its own decompressor's set-up.
            if loaded.pvh { Ok(loaded) } else { load_bzimage(memory, path, &mut file, limits, low) }
        }
        Err(unwrap::Error::Io(source)) => Err(read(source)),
        Err(why) if request.mode == BootMode::Pvh => {
            Err(BootError::NoPvh { path: path.to_owned(), why: why.to_string() })
        }
        Err(_) => load_bzimage(memory, path, &mut file, limits, low),
    }
}

fn load_elf<F: Read + ReadVolatile + Seek>(
    memory: &GuestMemoryMmap,
    request: &BootRequest<'_>,
    image: F,
    limits: Limits,
    low: u64,
) -> Result<LoadedKernel, BootError> {
    let path = request.kernel.to_owned();
    let mut image = Sparse::new(image, request.fresh);
    let end = elf_end(&path, &mut image)?;
    if end > low {
        return Err(BootError::KernelTooBig { path, end, low });
    }
    let result = Elf::load(memory, None, &mut image, Some(GuestAddress(0))).map_err(|error| {
        BootError::NotAKernel {
            path: path.clone(),
            what: format!("an ELF file that does not load ({error})"),
        }
    })?;
    match result.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(entry) => {
            Ok(LoadedKernel { rip: entry.0, pvh: true, end, header: None, limits })
        }
        _ if request.mode == BootMode::Pvh => {
            let why = "it was built without CONFIG_PVH".to_owned();
            Err(BootError::NoPvh { path, why })
        }
        _ => Ok(LoadedKernel { rip: result.kernel_load.0, pvh: false, end, header: None, limits }),
    }
}

fn load_bzimage(
    memory: &GuestMemoryMmap,
    path: &Path,
    file: &mut File,
    limits: Limits,
    low: u64,
) -> Result<LoadedKernel, BootError> {
    let odd = |what: String| BootError::NotAKernel { path: path.to_owned(), what };
    let start = GuestAddress(layout::HIGH_MEMORY_START);
    let len = file
        .seek(io::SeekFrom::End(0))
        .map_err(|source| BootError::Read { path: path.to_owned(), source })?;
    if layout::HIGH_MEMORY_START.saturating_add(len) > low {
        return Err(BootError::KernelTooBig {
            path: path.to_owned(),
            end: layout::HIGH_MEMORY_START + len,
            low,
        });
    }
    let result = BzImage::load(memory, Some(start), file, Some(start))
        .map_err(|error| odd(format!("a bzImage that does not load ({error})")))?;
    let header =
        result.setup_header.ok_or_else(|| odd("a bzImage without a setup header".to_owned()))?;
    // XLF_KERNEL_64: there is a 64-bit entry at 0x200.
    if header.version < 0x020c || header.xloadflags & 1 == 0 {
        return Err(odd("a bzImage without a 64-bit entry".to_owned()));
    }
    // It decompresses itself to where it wants to run, and needs this much room there.
    let end = start.0.max(header.pref_address).saturating_add(u64::from(header.init_size));
    if end > low {
        return Err(BootError::KernelTooBig { path: path.to_owned(), end, low });
    }
    Ok(LoadedKernel {
        rip: result.kernel_load.0 + 0x200,
        pvh: false,
        end,
        header: Some(header),
        limits,
    })
}

/// A file for the kernel to unpack.
struct Initramfs<'a> {
    path: &'a Path,
    file: File,
    len: u64,
}

impl<'a> Initramfs<'a> {
    fn open(path: &'a Path) -> Result<Self, BootError> {
        let read = |source| BootError::Read { path: path.to_owned(), source };
        let file = File::open(path).map_err(read)?;
        let metadata = file.metadata().map_err(read)?;
        if metadata.is_dir() {
            return Err(read(io::Error::from(io::ErrorKind::IsADirectory)));
        }
        match metadata.len() {
            0 => Err(BootError::NotAnInitramfs { path: path.to_owned() }),
            len => Ok(Self { path, file, len }),
        }
    }

    /// As high as it may be: out of the way of whatever the kernel does first.
    fn load(
        mut self,
        memory: &GuestMemoryMmap,
        kernel: &LoadedKernel,
        low: u64,
    ) -> Result<AddressRange, BootError> {
        let len = self.len;
        let top = low.min(kernel.limits.initramfs.saturating_add(1));
        let bottom = align_up(kernel.end, PAGE).unwrap_or(u64::MAX);
        let range = top
            .checked_sub(len)
            .map(|start| align_down(start, PAGE))
            .filter(|start| *start >= bottom)
            .and_then(|start| AddressRange::new(start, len))
            .ok_or_else(|| BootError::InitramfsTooBig {
                path: self.path.to_owned(),
                len,
                room: top.saturating_sub(bottom),
            })?;
        let len = usize::try_from(len).map_err(written)?;
        memory.read_exact_volatile_from(GuestAddress(range.first()), &mut self.file, len).map_err(
            |error| BootError::Read { path: self.path.to_owned(), source: io::Error::other(error) },
        )?;
        Ok(range)
    }
}

#[cfg(test)]
mod tests;
