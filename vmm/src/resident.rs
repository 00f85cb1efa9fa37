//! How much of this program is in memory, and when.
//!
//! Code comes from the page cache in small parts, a page fault each; a start uses most of it, and has all of it mapped at
//! once instead. To run a machine takes little of it: the guest's exits are few. The kernel would keep all of it mapped,
//! several MiB for every guest. It comes back from the page cache, page by page, where it is needed again.

#![allow(unsafe_code, reason = "dl_iterate_phdr, madvise of this program's own code, mallopt")]

use std::{
    ffi::{CStr, c_int, c_void},
    ops::Range,
};

const PAGE: usize = 4096;
/// Bytes by which the heap grows; what is not used of them costs nothing.
const HEAP_STEP: c_int = 1 << 20;

/// One heap for all threads, that grows and shrinks in large steps. Each would have its own otherwise, with pages that
/// stay; and whatever maps something waits for whoever has RAM faulted in.
pub(crate) fn keep_one_heap() {
    for (what, much) in [
        (libc::M_ARENA_MAX, 1),
        (libc::M_TOP_PAD, HEAP_STEP),
        (libc::M_TRIM_THRESHOLD, 4 * HEAP_STEP),
    ] {
        // SAFETY: sets a parameter of malloc's.
        if unsafe { libc::mallopt(what, much) } != 1 {
            log::debug!("mallopt({what}) is not known");
        }
    }
}

/// Maps what this program and its libraries only read: code and constants. Kernels before 5.14 do not know how.
pub(crate) fn bring_in_code() {
    advise(libc::MADV_POPULATE_READ);
}

/// Unmaps the same. Every later use brings a page back.
pub(crate) fn let_go_of_code() {
    advise(libc::MADV_DONTNEED);
}

fn advise(advice: c_int) {
    let mut segments: Vec<Range<usize>> = Vec::new();
    // SAFETY: `note` gets what it expects, `segments`, which lives until this call is over.
    unsafe { libc::dl_iterate_phdr(Some(note), (&raw mut segments).cast()) };
    for Range { start, end } in segments {
        // SAFETY: whole pages of a private mapping of a file in which nothing was ever written: what is dropped is the
        // same as what comes back.
        if unsafe { libc::madvise(start as *mut _, end - start, advice) } != 0 {
            log::debug!("madvise({advice}) of code: {}", std::io::Error::last_os_error());
        }
    }
}

/// Collects the segments of one object that cannot be written.
unsafe extern "C" fn note(
    object: *mut libc::dl_phdr_info,
    _: libc::size_t,
    segments: *mut c_void,
) -> c_int {
    // SAFETY: the C library gives a valid object, and back what `advise` gave it.
    let (object, segments) = unsafe { (&*object, &mut *segments.cast::<Vec<Range<usize>>>()) };
    // SAFETY: a C string of the C library's; null only where there is no name.
    let name = unsafe { object.dlpi_name.as_ref().map(|name| CStr::from_ptr(name)) };
    // The kernel's own page of code is no file's.
    if name.is_some_and(|name| name.to_bytes().starts_with(b"linux-vdso")) {
        return 0;
    }
    // SAFETY: as many headers as it says.
    let headers = unsafe { std::slice::from_raw_parts(object.dlpi_phdr, object.dlpi_phnum.into()) };
    for header in headers {
        if header.p_type == libc::PT_LOAD && header.p_flags & libc::PF_W == 0 {
            let start = object.dlpi_addr as usize + header.p_vaddr as usize;
            let end = start + header.p_filesz as usize;
            segments.push(start & !(PAGE - 1)..(end + PAGE - 1) & !(PAGE - 1));
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// KiB of files' pages that this process has mapped.
    fn resident() -> u64 {
        let status = fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssFile:")).unwrap();
        line.trim().trim_end_matches(" kB").parse().unwrap()
    }

    #[test]
    fn code_that_is_let_go_comes_back_when_it_is_used() {
        // Tests beside this one use code of their own meanwhile.
        let dropped = (0..100).any(|_| {
            let before = resident();
            let_go_of_code();
            resident() < before
        });
        assert!(dropped);
        assert_eq!(format!("{:?}", fs::metadata("/dev/null").unwrap().is_file()), "false");
        let brought_in = (0..100).any(|_| {
            let_go_of_code();
            let before = resident();
            bring_in_code();
            resident() > before + 1024
        });
        assert!(brought_in, "more than a MiB of a test with its libraries");
    }
}
