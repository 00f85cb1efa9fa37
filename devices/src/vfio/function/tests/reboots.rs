//! What a function holds of the host after many reboots of its guest.

use super::*;

/// A guest's driver and its end: decodes BARs, masters the bus, takes a vector, is reset. What that did to the host.
fn boot_and_reset(bench: &mut Bench) -> Vec<String> {
    bench.command(regs::COMMAND_MEMORY | regs::COMMAND_IO | regs::COMMAND_MASTER);
    bench.enable_msix();
    bench.bar_write(0, TABLE + 12, &[0; 4]);
    let gone = bench.function.reset();
    assert!(gone.iter().all(|change| !change.decoded));
    // Vectors are numbered on.
    let number = |call: String| match call.split_once(' ') {
        Some((what @ ("connect" | "drop" | "disconnect"), _)) => what.to_owned(),
        _ => call,
    };
    bench.calls().into_iter().map(number).collect()
}

#[test]
fn reboot_1000_does_to_the_host_what_reboot_10_did() {
    let mut bench = bench();
    let calls: Vec<Vec<String>> = (0..1000).map(|_| boot_and_reset(&mut bench)).collect();
    assert_eq!(calls[999], calls[9]);
    let count = |what: &str| calls[999].iter().filter(|call| *call == what).count();
    assert_eq!((count("connect"), count("drop")), (1, 1));
    assert_eq!(count("line on"), count("line off"));
}
