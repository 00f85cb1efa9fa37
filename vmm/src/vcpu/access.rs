//! Port accesses as KVM reports them: one exit may be a whole string instruction.

#![allow(unsafe_code, reason = "reads the port-access variant of kvm_run's union")]
#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

use std::slice;

use kvm_ioctls::VcpuFd;
use strait_devices::bus::Bus;

/// Answers the KVM_EXIT_IO that KVM has just left with. REP INS and REP OUTS may come as one exit with a count above 1:
/// that many accesses of `size` bytes to the same port. `goes_on` is asked before each but the first; when it is false
/// the machine was reset meanwhile, and what is left must reach no device.
pub(super) fn serve_port(fd: &mut VcpuFd, bus: &Bus, goes_on: impl Fn() -> bool) {
    let run: *mut kvm_bindings::kvm_run = fd.get_kvm_run();
    // SAFETY: KVM has just left with KVM_EXIT_IO, so `io` is the variant it filled in, of plain integers. Its data lies
    // `data_offset` bytes into the mapping of `kvm_run`, which `fd` keeps, and is `size * count` bytes long (api.rst, 5).
    // Nothing else refers to it while `fd` is borrowed.
    let (io, data) = unsafe {
        let io = (*run).__bindgen_anon_1.io;
        let first = run.cast::<u8>().add(io.data_offset as usize);
        let len = usize::from(io.size).saturating_mul(io.count as usize);
        (io, slice::from_raw_parts_mut(first, len))
    };
    let size = usize::from(io.size);
    if u32::from(io.direction) == kvm_bindings::KVM_EXIT_IO_IN {
        each(data, size, goes_on, |element| bus.pio_read(io.port, element));
    } else {
        each(data, size, goes_on, |element| bus.pio_write(io.port, element));
    }
}

/// Calls `access` for each `size` bytes of `data` while `goes_on`; what it was not called for reads as all ones.
fn each(
    data: &mut [u8],
    size: usize,
    goes_on: impl Fn() -> bool,
    mut access: impl FnMut(&mut [u8]),
) {
    let mut stopped = false;
    for (index, element) in data.chunks_exact_mut(size.max(1)).enumerate() {
        stopped = stopped || index > 0 && !goes_on();
        if stopped {
            element.fill(0xff);
        } else {
            access(element);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn string_access_is_one_access_for_each_element() {
        let mut data = [1, 2, 3, 4, 5, 6];
        let mut seen = Vec::new();
        each(&mut data, 2, || true, |element| seen.push(element.to_vec()));
        assert_eq!(seen, [[1, 2], [3, 4], [5, 6]]);
    }

    #[test]
    fn string_read_fills_every_element_by_a_read_of_its_own() {
        let (mut data, mut next) = ([0; 4], 0x60);
        let read = |element: &mut [u8]| {
            element.fill(next);
            next += 1;
        };
        each(&mut data, 1, || true, read);
        assert_eq!(data, [0x60, 0x61, 0x62, 0x63]);
    }

    #[test]
    fn string_access_that_a_reset_overtakes_reaches_no_device_any_more() {
        let (mut data, mut seen) = ([0; 8], 0);
        each(&mut data, 2, || false, |_| seen += 1);
        assert_eq!((seen, data), (1, [0, 0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff]));
    }
}
