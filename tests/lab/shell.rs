//! The user's own terminal in L1: a prompt, or one run of strait.

use std::{
    fs,
    process::{Command, Stdio},
};

use anyhow::Result;

use crate::{
    hosts::{Host, HostKind},
    l1::{Ingredients, L1},
    monitor::quoted,
    progress::say,
    qemu::Purpose,
};

/// A shell on the main host; with arguments, strait instead of a shell.
pub(crate) fn shell(with: Ingredients<'_>, strait: Option<&[String]>) -> Result<()> {
    let host = Host::of(HostKind::Main);
    let l1 = L1::boot(with, &host, Purpose::Terminal)?;
    let mut profile = String::from("S=/lab/jobs\n. /lab/lib.sh\n");
    for device in &host.devices {
        profile.push_str(&format!("bind {}; export {}={}\n", device.bdf, device.name, device.bdf));
    }
    profile.push_str(&format!(
        "export VMLINUX={} BZIMAGE={}\n",
        with.kernel.vmlinux.display(),
        with.kernel.bzimage.display()
    ));
    fs::write(l1.run().join("profile.sh"), &profile)?;
    let script = match strait {
        Some(arguments) => {
            let words: Vec<_> = arguments.iter().map(|word| quoted(word)).collect();
            format!(
                "(. /lab/profile.sh >/dev/null)\nstrait {}\necho \"strait: exit status $?\"\n",
                words.join(" ")
            )
        }
        None => {
            let names: Vec<_> =
                host.devices.iter().map(|d| format!("{}={}", d.name, d.bdf)).collect();
            say(format!(
                "L1: strait is on PATH, devices are bound: {}; $VMLINUX and $BZIMAGE are a stock kernel; \
                 L0's files are at their own paths; leave with exit",
                names.join(" ")
            ));
            "ENV=/lab/profile.sh exec sh -i\n".to_owned()
        }
    };
    fs::write(l1.run().join("terminal.sh"), script)?;
    let (rows, columns) = terminal_size().unwrap_or((24, 80));
    l1.shell(rows, columns)
}

fn terminal_size() -> Option<(u16, u16)> {
    let output = Command::new("stty").arg("size").stdin(Stdio::inherit()).output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let (rows, columns) = text.trim().split_once(' ')?;
    let (rows, columns): (u16, u16) = (rows.parse().ok()?, columns.parse().ok()?);
    // A terminal that does not know its size says 0 0.
    (rows > 0 && columns > 0).then_some((rows, columns))
}
