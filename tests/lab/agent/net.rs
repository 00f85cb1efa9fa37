//! A network card: up, and echoes from L0's gateway.

use std::{fs, process::Command};

use anyhow::{Context, Result, ensure};

use crate::{Arguments, irqs, read, report, wait_for, write};

/// QEMU's user network: our address and the gateway's.
const ADDRESS: &str = "10.0.2.15";
const GATEWAY: &str = "10.0.2.2";

fn interface() -> Option<String> {
    let entries = fs::read_dir("/sys/class/net").ok()?;
    let mut names =
        entries.filter_map(|entry| Some(entry.ok()?.file_name().to_string_lossy().into_owned()));
    names.find(|name| name != "lo")
}

fn busybox(arguments: &[&str]) -> Result<String> {
    let output = Command::new("/bin/busybox").args(arguments).output().context("no busybox")?;
    let text = [output.stdout, output.stderr].concat();
    Ok(String::from_utf8_lossy(&text).into_owned())
}

/// So many echoes, all answered.
pub(crate) fn echo(count: u32) -> Result<()> {
    let said = busybox(&["ping", "-c", &count.to_string(), "-W", "5", "-i", "0.2", GATEWAY])?;
    let wanted = format!("{count} packets received");
    ensure!(said.contains(&wanted), "ping: {}", said.lines().last().unwrap_or_default());
    Ok(())
}

/// Step `ping,WAY`: five echoes through the passed card, whose interrupts must come by this way: `MSI` or
/// `IO-APIC`.
pub(crate) fn ping(words: &mut Arguments<'_>) -> Result<()> {
    let way = words.word()?;
    let name = wait_for("a network interface", 20, interface)?;
    busybox(&["ifconfig", &name, ADDRESS, "netmask", "255.255.255.0", "up"])?;
    let carrier = format!("/sys/class/net/{name}/carrier");
    wait_for("the carrier", 20, || (read(&carrier).ok()? == "1").then_some(()))?;
    if fs::exists("/proc/sys/net/ipv6/conf/all/disable_ipv6")? {
        // Its neighbour discovery would make interrupts nobody asked for.
        write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1")?;
    }
    echo(5)?;
    let lines = irqs::named(&name)?;
    let total: u64 = lines.iter().map(irqs::Line::total).sum();
    report("net.interrupts", format!("{total} in {} vectors", lines.len()));
    ensure!(total >= 5, "five echoes made only {total} interrupts");
    for line in &lines {
        ensure!(line.rest.contains(way), "the interrupts come by {}, not {way}", line.rest);
    }
    report("figure.ping", format!("5 of 5 by {way}, {total} interrupts"));
    report("net.ping", "all");
    Ok(())
}
