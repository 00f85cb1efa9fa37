//! The fuzzer's program: libFuzzer brings `main` and calls the target that `STRAIT_FUZZ_TARGET` names.
#![no_main]

use std::sync::LazyLock;

use strait_fuzz::{Target, target};

static TARGET: LazyLock<&'static Target> = LazyLock::new(|| {
    let name = std::env::var("STRAIT_FUZZ_TARGET").unwrap_or_default();
    target(&name).unwrap_or_else(|| panic!("STRAIT_FUZZ_TARGET={name:?} names no target"))
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| (TARGET.run)(bytes));
