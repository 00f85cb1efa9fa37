//! Turns a guest into a command line: strait's, or QEMU's inside L1 to prove a scenario's other half.

use std::path::Path;

use anyhow::{Context, Result};

use crate::{
    hosts::Host,
    scenario::{Passed, Vm},
};

/// The monitor under test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Monitor {
    /// What the lab is for.
    Strait,
    /// A known good monitor, to tell a wrong scenario from a wrong strait.
    Qemu,
}

/// Files a guest is started from, as L1 sees them.
#[derive(Clone, Debug)]
pub(crate) struct GuestFiles<'a> {
    /// Kernel.
    pub kernel: &'a str,
    /// Initramfs.
    pub initramfs: &'a str,
}

impl Monitor {
    /// The words that start this guest.
    pub(crate) fn command(
        self,
        vm: &Vm,
        host: &Host,
        files: &GuestFiles<'_>,
        quiet: bool,
        nonce: &str,
    ) -> Result<Vec<String>> {
        let noise = if quiet { "quiet loglevel=4" } else { "loglevel=7 ignore_loglevel" };
        let steps = vm.steps.replace("{nonce}", nonce);
        let cmdline = format!("console=ttyS0 {noise} {} lab.steps={steps}", vm.cmdline);
        match self {
            Self::Strait => strait(vm, host, files, &cmdline),
            Self::Qemu => qemu(vm, host, files, &cmdline),
        }
    }
}

fn bdf<'a>(host: &'a Host, passed: &Passed) -> Result<&'a str> {
    host.bdf(&passed.device)
        .with_context(|| format!("the {} host has no device {}", host.name, passed.device))
}

/// The functions behind one `--vfio`.
pub(crate) fn functions(host: &Host, passed: &Passed) -> Result<Vec<String>> {
    let bdf = bdf(host, passed)?;
    if !passed.slot {
        return Ok(vec![bdf.to_owned()]);
    }
    let slot = bdf.split('.').next().unwrap_or(bdf);
    let all = host.devices.iter().map(|device| &device.bdf);
    Ok(all.filter(|other| other.starts_with(slot)).cloned().collect())
}

fn strait(vm: &Vm, host: &Host, files: &GuestFiles<'_>, cmdline: &str) -> Result<Vec<String>> {
    let mut words: Vec<String> = ["strait", "run", "--kernel", files.kernel, "--initramfs"]
        .into_iter()
        .chain([files.initramfs, "--cmdline", cmdline])
        .map(str::to_owned)
        .collect();
    words.extend(["--cpus".to_owned(), vm.cpus.to_string()]);
    words.extend(["--memory".to_owned(), format!("{}M{}", vm.memory_mib, vm.memory_keys)]);
    for passed in &vm.devices {
        let mut value = bdf(host, passed)?.to_owned();
        if passed.slot {
            value.truncate(value.rfind('.').unwrap_or(value.len()));
        }
        if !passed.keys.is_empty() {
            value = format!("{value},{}", passed.keys);
        }
        words.extend(["--vfio".to_owned(), value]);
    }
    words.extend(vm.flags.iter().cloned());
    Ok(words)
}

fn qemu(vm: &Vm, host: &Host, files: &GuestFiles<'_>, cmdline: &str) -> Result<Vec<String>> {
    let cpu = format!("host{}", vm.qemu_cpu);
    let mut words: Vec<String> =
        "qemu-system-x86_64 -M q35 -accel kvm -display none -nodefaults -no-user-config -serial stdio"
            .split(' ')
            .chain(["-cpu", &cpu, "-kernel", files.kernel, "-initrd", files.initramfs])
            .chain(["-append", cmdline])
            .map(str::to_owned)
            .collect();
    words.extend(["-smp".to_owned(), vm.cpus.to_string()]);
    words.extend(["-m".to_owned(), format!("{}M", vm.memory_mib)]);
    for (port, passed) in vm.devices.iter().enumerate() {
        let (slot, function) = (0x10 + port / 8, port % 8);
        words.extend([
            "-device".to_owned(),
            format!("pcie-root-port,id=rp{port},chassis={port},addr={slot:02x}.{function},multifunction=on"),
        ]);
        for bdf in functions(host, passed)? {
            let function = if passed.slot { bdf.rsplit('.').next().unwrap_or("0") } else { "0" };
            let rom = qemu_rom(&passed.keys);
            words.extend([
                "-device".to_owned(),
                format!(
                    "vfio-pci,host={bdf},bus=rp{port},addr=0.{function},multifunction={}{rom}",
                    if passed.slot { "on" } else { "off" }
                ),
            ]);
        }
    }
    Ok(words)
}

/// QEMU's words for `rom=`.
fn qemu_rom(keys: &str) -> String {
    match keys.split(',').find_map(|key| key.strip_prefix("rom=")) {
        None | Some("on") => String::new(),
        Some("off") => ",rombar=0".to_owned(),
        Some(file) => format!(",romfile={file}"),
    }
}

/// One word for a shell.
pub(crate) fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,".contains(c);
    // A `$` stays for the shell: scripts name files of theirs in flags.
    if word.is_empty() || !word.chars().all(plain) {
        format!("\"{}\"", word.replace('\\', "\\\\").replace('"', "\\\"").replace('`', "\\`"))
    } else {
        word.to_owned()
    }
}

/// Is this path readable as a word of a shell?
pub(crate) fn path_word(path: &Path) -> String {
    quoted(&path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::hosts::HostKind;

    #[test]
    fn strait_command_names_slot_without_function() {
        let host = Host::of(HostKind::Main);
        let vm = Vm::new("a", "pci").slot("slot0").device_with("nvme0", "rom=off");
        let files = GuestFiles { kernel: "k", initramfs: "i" };
        let words =
            Monitor::Strait.command(&vm, &host, &files, true, "n").expect("a command").join(" ");
        assert!(words.contains("--vfio 0000:00:0c --vfio 0000:00:04.0,rom=off"), "{words}");
    }

    #[test]
    fn functions_of_a_slot_are_all_its_functions() {
        let host = Host::of(HostKind::Main);
        let passed = Passed { device: "slot0".into(), slot: true, keys: String::new() };
        assert_eq!(functions(&host, &passed).expect("a slot").len(), 4);
    }

    #[test]
    fn quoted_word_with_semicolon_stays_one_word() {
        assert_eq!(quoted("a;b"), "\"a;b\"");
        assert_eq!(quoted("0000:00:04.0,rom=off"), "0000:00:04.0,rom=off");
    }
}
