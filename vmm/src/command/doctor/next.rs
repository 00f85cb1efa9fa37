//! What to type next: from a host to a running guest.

use std::fmt::Write as _;

use strait_resources::{
    bdf::Bdf,
    failure::Failure,
    host::{
        driver,
        inventory::{self, Entry, Verdict},
        pci::HostFunction,
        sysroot::Sysroot,
    },
    names::Names,
};

use crate::report::{QUIET, STRONG};

/// The last lines of the answer.
pub(super) fn steps(
    sysroot: &Sysroot,
    chosen: &[HostFunction],
    status: u8,
) -> Result<String, Failure> {
    let mut text = String::new();
    if status != 0 {
        let devices: Vec<String> = chosen.iter().map(|f| f.bdf.to_string()).collect();
        let gap = if devices.is_empty() { "" } else { " " };
        let _ = writeln!(
            text,
            "\n{STRONG}Next{STRONG:#}  strait doctor{gap}{} --fix-plan  prints the lines for this system",
            devices.join(" ")
        );
        return Ok(text);
    }
    if !chosen.is_empty() {
        let devices: Vec<Bdf> = chosen.iter().map(|function| function.bdf).collect();
        let _ = writeln!(text, "\n{STRONG}Next{STRONG:#}  {}", run_line(sysroot, &devices)?);
        return Ok(text);
    }
    let entries = inventory::inventory(sysroot)?;
    let Some(entry) = candidate(&entries) else {
        let _ = writeln!(
            text,
            "\nThe host is ready, and has no device that a guest could have; strait devices tells why."
        );
        return Ok(text);
    };
    let function = &entry.function;
    let name = Names::load(sysroot).function(function);
    let _ = writeln!(
        text,
        "\n{STRONG}Next{STRONG:#}, for example with {} {name}, as root; strait devices lists all",
        function.bdf
    );
    if let Verdict::AfterBinding(bind) = &entry.verdict {
        let mut lines: Vec<String> = Vec::new();
        for bdf in bind {
            let other = entries.iter().find(|other| other.function.bdf == *bdf);
            let driver = other.and_then(|other| other.function.driver.as_deref());
            for line in driver::bind_commands(*bdf, driver) {
                if !lines.contains(&line) {
                    lines.push(line);
                }
            }
        }
        lines.iter().for_each(|line| {
            let _ = writeln!(text, "  {line}");
        });
    }
    let _ = writeln!(text, "  {}", run_line(sysroot, &[function.bdf])?);
    let _ =
        writeln!(text, "{QUIET}strait doctor {} looks at the device itself{QUIET:#}", function.bdf);
    Ok(text)
}

/// The device that people pass most: a card for graphics or computing, then a disk, a NIC, a USB controller.
fn candidate(entries: &[Entry]) -> Option<&Entry> {
    let able = |entry: &&Entry| !matches!(entry.verdict, Verdict::No(_));
    let rank = |entry: &&Entry| {
        let class = entry.function.class;
        match (class.base(), class.sub()) {
            (0x03 | 0x12, _) => 0,
            (0x01, _) => 1,
            (0x02, _) => 2,
            (0x0c, 0x03) => 3,
            _ => 4,
        }
    };
    entries.iter().filter(able).min_by_key(rank)
}

fn run_line(sysroot: &Sysroot, devices: &[Bdf]) -> Result<String, Failure> {
    let release = sysroot.read_if_present("/proc/sys/kernel/osrelease")?.unwrap_or_default();
    let first = |names: [String; 3], other: &str| {
        names.into_iter().find(|name| sysroot.exists(name)).unwrap_or_else(|| other.to_owned())
    };
    let kernel = first(
        [
            format!("/boot/vmlinuz-{release}"),
            format!("/lib/modules/{release}/vmlinuz"),
            "/boot/vmlinuz-linux".to_owned(),
        ],
        "vmlinuz",
    );
    let initramfs = first(
        [
            format!("/boot/initrd.img-{release}"),
            format!("/boot/initramfs-{release}.img"),
            "/boot/initramfs-linux.img".to_owned(),
        ],
        "initrd.img",
    );
    let devices: Vec<String> = devices.iter().map(|bdf| format!("--vfio {bdf}")).collect();
    Ok(format!(
        "strait run --kernel {kernel} --initramfs {initramfs} --memory 4G {}",
        devices.join(" ")
    ))
}
