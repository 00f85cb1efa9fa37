//! 43: what the kernel said.

use super::{Answer, Host, Outcome};

/// A phrase of the kernel and what it means for passing devices.
const PHRASES: &[(&str, &str, &str)] = &[
    ("can't reserve", "a BAR could not be claimed", "see check 25: a framebuffer may hold it"),
    (
        "DMAR: [DMA",
        "the IOMMU refused a device's access",
        "update the firmware; a device misbehaves or its memory was not mapped",
    ),
    (
        "IO_PAGE_FAULT",
        "the IOMMU refused a device's access",
        "update the firmware; a device misbehaves or its memory was not mapped",
    ),
    ("not ready 65535ms after", "a device did not come back from a reset", "power cycle the host"),
    (
        "Unable to change power state from D3cold",
        "a device did not wake up from D3cold",
        "echo 0 > its d3cold_allowed before the next guest",
    ),
    (
        "Device is ineligible for IOMMU domain attach",
        "the firmware reserves memory for a device (RMRR)",
        "see check 19",
    ),
    ("No interrupt remapping", "the platform cannot remap interrupts", "see check 7"),
    ("can't assign; no space", "a BAR got no address", "see check 23"),
    ("Lockdown:", "lockdown refused something", "see check 11"),
    (
        "NVRM: Xid",
        "NVIDIA's driver reported an error of its card",
        "look for the number in NVIDIA's list of Xid errors",
    ),
    ("AER: ", "PCI Express reported errors", "reseat the card; check risers and power"),
];

/// Phrases that are found, each with how often and with its last line.
pub(super) fn findings(host: &Host<'_>) -> Answer {
    const LOG: &str = "/dev/kmsg";
    if !host.sysroot.exists(LOG) {
        return Ok(vec![Outcome::skip("there is no kernel log to read", "")]);
    }
    let Ok(text) = host.sysroot.read_available(LOG) else {
        let fact = "the kernel log is for root only (dmesg_restrict)";
        return Ok(vec![Outcome::skip(fact, "run strait doctor as root")]);
    };
    // "6,1234,5678,-;message"; lines that go on begin with a space.
    let messages: Vec<&str> =
        text.lines().filter_map(|line| line.split_once(';')).map(|(_, message)| message).collect();
    let mut found = Vec::new();
    for (phrase, meaning, fix) in PHRASES {
        let lines: Vec<&&str> = messages
            .iter()
            .filter(|line| line.contains(phrase))
            // That AER is in use is no error.
            .filter(|line| !line.contains("AER: enabled"))
            .collect();
        if let Some(last) = lines.last() {
            let fact = format!("{meaning} ({} lines)", lines.len());
            found
                .push(Outcome::warn(fact, *fix).detail(last.chars().take(160).collect::<String>()));
        }
    }
    if found.is_empty() {
        found.push(Outcome::pass(format!(
            "nothing in its {} lines hints at trouble",
            messages.len()
        )));
    }
    Ok(found)
}
