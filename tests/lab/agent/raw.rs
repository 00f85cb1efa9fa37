//! The agent's only unsafe code: system calls without a safe wrapper in std, mapped device memory, and CPUID.
#![allow(unsafe_code, reason = "device memory, mount, reboot and CPUID have no safe form in std")]

use std::{
    ffi::CString,
    fs::File,
    io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
    ptr::{self, NonNull},
    time::Duration,
};

use anyhow::{Context, Result, ensure};

/// A mapped range: device memory, /dev/mem, or memory of our own. Accessed volatile only.
pub(crate) struct Mapping {
    base: NonNull<u8>,
    length: usize,
}

impl Mapping {
    /// Maps part of a file; `offset` is a multiple of the page size.
    pub(crate) fn of(file: &File, offset: u64, length: usize) -> Result<Self> {
        let offset = libc::off_t::try_from(offset)?;
        Self::map(length, libc::MAP_SHARED, file.as_raw_fd(), offset)
            .with_context(|| format!("cannot map {length:#x} bytes at {offset:#x}"))
    }

    /// Maps anonymous memory that is page-aligned, as O_DIRECT wants.
    pub(crate) fn anonymous(length: usize) -> Result<Self> {
        Self::map(length, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1, 0)
            .context("cannot map memory")
    }

    /// Maps one huge page: 2 MiB that are contiguous for a device as well.
    pub(crate) fn huge_page() -> Result<Self> {
        let flags =
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_HUGETLB | libc::MAP_POPULATE;
        Self::map(2 << 20, flags, -1, 0).context("cannot map a huge page")
    }

    fn map(length: usize, flags: i32, fd: i32, offset: libc::off_t) -> io::Result<Self> {
        let access = libc::PROT_READ | libc::PROT_WRITE;
        // SAFETY: a fresh mapping at an address of the kernel's choice overlaps nothing.
        let base = unsafe { libc::mmap(ptr::null_mut(), length, access, flags, fd, offset) };
        if base == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let base = NonNull::new(base.cast()).ok_or(io::ErrorKind::InvalidData)?;
        Ok(Self { base, length })
    }

    /// The virtual address, for /proc/self/pagemap.
    pub(crate) fn address(&self) -> u64 {
        self.base.as_ptr() as u64
    }

    fn at<T>(&self, offset: usize) -> *mut T {
        let size = size_of::<T>();
        assert!(offset.is_multiple_of(size) && offset + size <= self.length, "{offset:#x}");
        // SAFETY: offset and size were checked against the mapping's length just above.
        unsafe { self.base.as_ptr().add(offset).cast() }
    }

    /// Reads 32 bits.
    pub(crate) fn read32(&self, offset: usize) -> u32 {
        // SAFETY: `at` checks bounds and alignment; the mapping lives as long as self.
        unsafe { self.at::<u32>(offset).read_volatile() }
    }

    /// Writes 32 bits.
    pub(crate) fn write32(&self, offset: usize, value: u32) {
        // SAFETY: `at` checks bounds and alignment; the mapping lives as long as self.
        unsafe { self.at::<u32>(offset).write_volatile(value) }
    }

    /// Reads 64 bits.
    pub(crate) fn read64(&self, offset: usize) -> u64 {
        // SAFETY: `at` checks bounds and alignment; the mapping lives as long as self.
        unsafe { self.at::<u64>(offset).read_volatile() }
    }

    /// Writes 64 bits.
    pub(crate) fn write64(&self, offset: usize, value: u64) {
        // SAFETY: `at` checks bounds and alignment; the mapping lives as long as self.
        unsafe { self.at::<u64>(offset).write_volatile(value) }
    }

    /// The whole of a mapping of our own memory as a slice.
    pub(crate) fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the mapping is `length` bytes, readable and writable, and borrowed mutably with self.
        unsafe { std::slice::from_raw_parts_mut(self.base.as_ptr(), self.length) }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: base and length are what mmap gave; nothing can use the mapping after self.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.length) };
    }
}

/// Mounts a file system.
pub(crate) fn mount(kind: &str, at: &str) -> Result<()> {
    let (kind_c, at_c) = (CString::new(kind)?, CString::new(at)?);
    // SAFETY: the strings live through the call; no data argument is passed.
    let status =
        unsafe { libc::mount(kind_c.as_ptr(), at_c.as_ptr(), kind_c.as_ptr(), 0, ptr::null()) };
    ensure!(status == 0, "cannot mount {kind} on {at}: {}", io::Error::last_os_error());
    Ok(())
}

/// Keeps the calling thread on one CPU.
pub(crate) fn run_on(cpu: usize) -> Result<()> {
    // SAFETY: a set of CPUs is plain bits, for which zeros are a value.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `CPU_SET` ignores a CPU that does not fit into the set.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: the set lives through the call, and its size is given.
    let status =
        unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &raw const set) };
    ensure!(status == 0, "cannot run on CPU {cpu}: {}", io::Error::last_os_error());
    Ok(())
}

/// Makes a VM without memory and vCPUs; it ends with the descriptor.
pub(crate) fn create_vm(kvm: &File) -> Result<OwnedFd> {
    const KVM_CREATE_VM: libc::c_ulong = 0xae01;
    // SAFETY: the request takes an integer, the VM's type, and no memory of ours.
    let vm = unsafe { libc::ioctl(kvm.as_raw_fd(), KVM_CREATE_VM, 0) };
    ensure!(vm >= 0, "KVM_CREATE_VM: {}", io::Error::last_os_error());
    // SAFETY: the kernel has just made this descriptor, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(vm) })
}

/// Loads a kernel module.
pub(crate) fn load_module(image: &[u8]) -> io::Result<()> {
    // SAFETY: the kernel copies the image and the empty parameter string before it returns.
    let status =
        unsafe { libc::syscall(libc::SYS_init_module, image.as_ptr(), image.len(), c"".as_ptr()) };
    if status == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Lets only messages of panics reach the console.
pub(crate) fn quiet_console() {
    const SYSLOG_ACTION_CONSOLE_LEVEL: i32 = 8;
    // SAFETY: this action takes no buffer.
    unsafe { libc::klogctl(SYSLOG_ACTION_CONSOLE_LEVEL, ptr::null_mut(), 1) };
}

/// The kernel's log.
pub(crate) fn kernel_log() -> String {
    const SYSLOG_ACTION_READ_ALL: i32 = 3;
    let mut buffer = vec![0u8; 1 << 20];
    let length = i32::try_from(buffer.len()).unwrap_or(i32::MAX);
    // SAFETY: the buffer is `length` bytes long and outlives the call.
    let got = unsafe { libc::klogctl(SYSLOG_ACTION_READ_ALL, buffer.as_mut_ptr().cast(), length) };
    buffer.truncate(usize::try_from(got).unwrap_or(0));
    String::from_utf8_lossy(&buffer).into_owned()
}

/// Ends the machine: power-off or restart.
pub(crate) fn end(restart: bool) -> ! {
    let how = if restart { libc::RB_AUTOBOOT } else { libc::RB_POWER_OFF };
    loop {
        // SAFETY: only integers are passed.
        unsafe {
            libc::sync();
            libc::reboot(how);
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

/// Seconds of the monotonic clock, which the kernel's tracer can stamp its events with as well.
pub(crate) fn monotonic() -> f64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the structure lives through the call. This clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// User and system seconds of all children that were waited for.
pub(crate) fn children_seconds() -> Result<[f64; 2]> {
    // SAFETY: every bit pattern, zeros too, is a valid rusage.
    let mut usage: libc::rusage = unsafe { std::mem::zeroed() };
    // SAFETY: the structure lives through the call.
    let status = unsafe { libc::getrusage(libc::RUSAGE_CHILDREN, &raw mut usage) };
    ensure!(status == 0, "getrusage: {}", io::Error::last_os_error());
    Ok([usage.ru_utime, usage.ru_stime].map(|time| time.tv_sec as f64 + time.tv_usec as f64 / 1e6))
}

/// Waits until the file can be read.
pub(crate) fn readable(file: &File, wait: Duration) -> Result<bool> {
    let mut entry = libc::pollfd { fd: file.as_raw_fd(), events: libc::POLLIN, revents: 0 };
    let wait = i32::try_from(wait.as_millis())?;
    // SAFETY: one entry, which lives through the call.
    let ready = unsafe { libc::poll(&raw mut entry, 1, wait) };
    ensure!(ready >= 0, "poll: {}", io::Error::last_os_error());
    Ok(ready == 1)
}

/// EAX, EBX, ECX, EDX of a CPUID leaf.
pub(crate) fn cpuid(leaf: u32, subleaf: u32) -> [u32; 4] {
    #[allow(unused_unsafe, reason = "safe in newer releases of Rust")]
    // SAFETY: every x86-64 processor has CPUID.
    let result = unsafe { std::arch::x86_64::__cpuid_count(leaf, subleaf) };
    [result.eax, result.ebx, result.ecx, result.edx]
}
