//! The few parts of a PC that every operating system still looks for.

pub mod acpi_pm;
pub mod i8042;
pub mod rtc;
pub mod serial;
