//! The checks: pure functions over a [`Sysroot`] that refuse with a [`Failure`]. Every command calls these, so
//! that no two can disagree about a host.

mod advice;
pub(super) mod assignable;
mod bindable;
pub(super) mod framebuffer;
mod guest_cpu;
pub(super) mod machine;
mod memory;
mod needed;
mod nodes;
mod select;

pub(super) use advice::end as how_to_end;
pub use assignable::assignable;
pub(super) use bindable::display_left;
pub use bindable::{Allowed, Bindable, Taking, bindable, bindable_of, unused};
pub use guest_cpu::{nested, pmu};
pub use machine::{exposed, host, kvm, vfio};
pub use memory::{has_spare_memory, huge_pages, memlock, memory};
pub(super) use needed::expendable;
pub use select::{Slot, expect, resolve, select, selector};

use super::sysroot::SysError;
#[cfg(doc)]
use super::sysroot::Sysroot;
use crate::{codes, failure::Failure};

/// Something the user should know of; nothing is refused. Its code's exit status is 0.
pub type Warning = Failure;

impl From<SysError> for Failure {
    fn from(error: SysError) -> Self {
        let cause = format!("{} is there, but cannot be read", error.path().display());
        let fix = "run strait as root, or outside of the container that hides it";
        Self::new(&codes::E1007, cause, fix).source(error)
    }
}
