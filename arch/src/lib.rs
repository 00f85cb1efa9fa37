//! What an x86-64 PC looks like: addresses, tables, registers. Pure over guest memory.

pub mod acpi;
pub mod boot;
pub mod cpuid;
pub mod layout;
pub mod mptable;
pub mod msr;
pub mod plan;
pub mod regs;
pub mod smbios;
