//! What an x86-64 PC looks like: addresses, tables, registers. Pure over guest memory.

pub mod cpuid;
pub mod layout;
pub mod plan;
