//! The few parts of a PC that every operating system still looks for.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects))]

pub mod acpi_pm;
pub mod i8042;
pub mod rtc;
pub mod serial;

use vm_device::DevicePio;

/// A device of the machine's own, on fixed ports. Each has a way back to its state after power-on, which a reset of the
/// machine calls for every one.
pub trait LegacyDevice: DevicePio + Send + Sync {
    /// As after power-on: nothing that the guest wrote is left. No vCPU runs.
    fn reset(&self);
}
