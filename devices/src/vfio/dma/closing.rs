//! The one call into vfio-ioctls that may panic: its `VfioDevice` looks its group up in sysfs when it is dropped, and takes
//! for granted that it is there. A device can be pulled from the host at any moment before that, and then the machine's
//! other devices must still be given back.

use std::{
    cell::Cell,
    panic::{AssertUnwindSafe, catch_unwind},
};

thread_local! {
    static CLOSING: Cell<bool> = const { Cell::new(false) };
}

/// Is this thread inside of such a call? A panic there is caught and is no reason to end the process: for panic hooks,
/// which are called in the thread that panics.
pub fn is_closing() -> bool {
    CLOSING.get()
}

/// Drops a device. `false`: it panicked on the way, with the device's descriptor closed but its group where it was. What
/// vfio-ioctls shares between devices is whole then: it panics before it takes a lock, or after it has let go of it.
pub fn close<T>(device: T) -> bool {
    CLOSING.set(true);
    let closed = catch_unwind(AssertUnwindSafe(|| drop(device)));
    CLOSING.set(false);
    closed.is_ok()
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// As `VfioDevice` does with a device that was pulled from the host.
    struct Pulled;

    impl Drop for Pulled {
        fn drop(&mut self) {
            assert!(is_closing());
            panic!("no link iommu_group in sysfs");
        }
    }

    #[test]
    fn device_that_panics_when_it_is_closed_leaves_the_others_to_be_closed() {
        struct Whole<'a>(&'a AtomicUsize);
        impl Drop for Whole<'_> {
            fn drop(&mut self) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let count = AtomicUsize::new(0);
        assert!(close(Whole(&count)));
        assert!(!close(Pulled));
        assert!(close(Whole(&count)));
        assert_eq!((count.into_inner(), is_closing()), (2, false));
    }
}
