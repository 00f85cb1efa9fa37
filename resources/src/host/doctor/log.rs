//! 43: what the kernel said.

use super::{Answer, Host, Outcome};

/// Words of the kernel's, all of them in one line, and what they mean for passing devices.
struct Phrase {
    words: &'static [&'static str],
    meaning: &'static str,
    fix: &'static str,
}

const fn phrase(
    words: &'static [&'static str],
    meaning: &'static str,
    fix: &'static str,
) -> Phrase {
    Phrase { words, meaning, fix }
}

const REFUSED: &str = "the IOMMU refused a device's access";
const REFUSED_FIX: &str = "update the firmware; a device misbehaves or its memory was not mapped";
const ASLEEP: &str = "a device did not wake up: its power was cut (D3cold)";
const ASLEEP_FIX: &str = "echo 0 > its d3cold_allowed before the next guest";
const RMRR: &str = "the firmware reserves memory for a device (RMRR)";
const RMRR_FIX: &str = "see check 19; another slot or a firmware option";
const NO_ROOM: &str = "a BAR got no address";
const NO_ROOM_FIX: &str = "see check 23: Above 4G Decoding in the firmware setup";

/// As the kernel prints them; most were compared with its sources: drivers/pci/{pci,rom,setup-res}.c,
/// drivers/pci/pcie/aer.c, drivers/iommu/iommu.c, drivers/iommu/intel/{dmar,iommu}.c, drivers/iommu/amd/iommu.c,
/// drivers/vfio/vfio_iommu_type1.c, drivers/vfio/pci/vfio_pci_config.c, security/lockdown/lockdown.c. Where a text has
/// changed over the years there is a row, or a shorter text, for each. NVRM's is of NVIDIA's driver.
const PHRASES: &[Phrase] = &[
    phrase(
        &["can't reserve"],
        "a BAR could not be claimed",
        "see check 25: a framebuffer may hold it",
    ),
    phrase(&["DMAR: [DMA"], REFUSED, REFUSED_FIX),
    phrase(&["AMD-Vi: Event logged [IO_PAGE_FAULT"], REFUSED, REFUSED_FIX),
    phrase(
        &["DMAR: [INTR-REMAP]"],
        "the IOMMU refused a device's interrupt",
        "update the firmware; or a device sends interrupts nobody asked for",
    ),
    phrase(
        // Lately with the IOMMU's address between.
        &["AMD-Vi: ", "Completion-Wait loop timed out"],
        "the IOMMU waits for a device that does not answer",
        "a card hangs, mostly after a reset: power cycle the host",
    ),
    phrase(
        &["not ready ", "ms after ", "; giving up"],
        "a device did not come back from a reset",
        "power cycle the host; see check 28 for this card",
    ),
    phrase(
        &["not ready ", "ms after ", "; waiting"],
        "a device was slow to come back from a reset",
        "nothing, if no line says that the kernel gave up",
    ),
    phrase(&["Unable to change power state from D3cold"], ASLEEP, ASLEEP_FIX),
    phrase(&["can't change power state from D3cold"], ASLEEP, ASLEEP_FIX),
    phrase(&["Refused to change power state, currently in D3"], ASLEEP, ASLEEP_FIX),
    phrase(&["Device is ineligible for IOMMU domain attach"], RMRR, RMRR_FIX),
    phrase(&["Firmware has requested this device have a 1:1 IOMMU mapping"], RMRR, RMRR_FIX),
    phrase(
        &["No interrupt remapping support"],
        "the platform cannot remap interrupts",
        "see check 7: switch it on in the firmware setup (x2APIC, VT-d interrupt remapping)",
    ),
    phrase(&["can't assign; no space"], NO_ROOM, NO_ROOM_FIX),
    phrase(&["BAR", ": no space for"], NO_ROOM, NO_ROOM_FIX),
    phrase(&["Lockdown:"], "lockdown refused something", "see check 11"),
    phrase(
        &["reset recovery - restoring BARs"],
        "a device was reset behind VFIO's back",
        "its guest resets it by itself, or it lost power for a moment",
    ),
    phrase(
        &["Invalid PCI ROM header signature"],
        "a device's ROM cannot be read",
        "rom=FILE with a dump of this very card, or rom=off",
    ),
    phrase(
        &["NVRM: Xid"],
        "NVIDIA's driver reported an error of its card",
        "look for the number in NVIDIA's list of Xid errors",
    ),
    phrase(&["AER: "], "PCI Express reported errors", "reseat the card; check risers and power"),
];

/// That AER is in use is no error.
const HARMLESS: &str = "AER: enabled";

/// Phrases that are found, each meaning with how often and with its last line.
pub(super) fn findings(host: &Host<'_>) -> Answer {
    const LOG: &str = "/dev/kmsg";
    if !host.sysroot.exists(LOG) {
        return Ok(vec![Outcome::skip("there is no kernel log to read", "")]);
    }
    let Ok(text) = host.sysroot.read_available(LOG) else {
        let fact = "the kernel log is for root only (dmesg_restrict)";
        return Ok(vec![Outcome::skip(fact, "run strait doctor as root")]);
    };
    let messages: Vec<&str> = messages(&text).collect();
    let mut found: Vec<(&Phrase, usize, &str)> = Vec::new();
    for line in messages.iter().filter(|line| !line.contains(HARMLESS)) {
        let Some(phrase) = known(line) else { continue };
        match found.iter_mut().find(|(known, ..)| known.meaning == phrase.meaning) {
            Some((_, count, last)) => (*count, *last) = (*count + 1, line),
            None => found.push((phrase, 1, line)),
        }
    }
    if found.is_empty() {
        let fact = format!("nothing in its {} lines hints at trouble", messages.len());
        return Ok(vec![Outcome::pass(fact)]);
    }
    let outcome = |(phrase, count, last): (&Phrase, usize, &str)| {
        let lines = if count == 1 { "1 line".to_owned() } else { format!("{count} lines") };
        let fact = format!("{} ({lines})", phrase.meaning);
        Outcome::warn(fact, phrase.fix).detail(last.chars().take(160).collect::<String>())
    };
    Ok(found.into_iter().map(outcome).collect())
}

/// "6,1234,5678,-;message"; lines that go on begin with a space and have no message.
pub(super) fn messages(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.split_once(';')).map(|(_, message)| message)
}

fn known(line: &str) -> Option<&'static Phrase> {
    PHRASES.iter().find(|phrase| phrase.words.iter().all(|word| line.contains(word)))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lines as kernels print them, in the order of the table.
    const LINES: &[&str] = &[
        "vfio-pci 0000:01:00.0: BAR 1: can't reserve [mem 0xc0000000-0xcfffffff 64bit pref]",
        "DMAR: [DMA Read NO_PASID] Request device [01:00.0] fault addr 0xbdf6a000 [fault reason 0x06] PTE Read access is not set",
        "AMD-Vi: Event logged [IO_PAGE_FAULT device=0000:43:00.0 domain=0x0015 address=0xfd00 flags=0x0020]",
        "DMAR: [INTR-REMAP] Request device [f0:1f.7] fault index 0x0 [fault reason 0x25] Blocked a compatibility format interrupt request",
        "AMD-Vi: Completion-Wait loop timed out",
        "vfio-pci 0000:0a:00.0: not ready 65535ms after bus reset; giving up",
        "vfio-pci 0000:0a:00.0: not ready 1023ms after FLR; waiting",
        "vfio-pci 0000:01:00.0: Unable to change power state from D3cold to D0, device inaccessible",
        "vfio-pci 0000:01:00.0: can't change power state from D3cold to D0 (config space inaccessible)",
        "vfio-pci 0000:01:00.0: Refused to change power state, currently in D3",
        "vfio-pci 0000:07:00.0: Device is ineligible for IOMMU domain attach due to platform RMRR requirement.  Contact your platform vendor.",
        "vfio-pci 0000:07:00.0: Firmware has requested this device have a 1:1 IOMMU mapping, rejecting configuring the device without a 1:1 mapping. Contact your platform vendor.",
        "vfio_iommu_type1_attach_group: No interrupt remapping support.  Use the module param \"allow_unsafe_interrupts\" to enable VFIO IOMMU support on this platform",
        "pci 0000:af:00.0: BAR 1 [mem size 0x400000000 64bit pref]: can't assign; no space",
        "pci 0000:af:00.0: BAR 1: no space for [mem size 0x400000000 64bit pref]",
        "Lockdown: setpci: direct PCI access is restricted; see man kernel_lockdown.7",
        "vfio-pci 0000:01:00.0: vfio_bar_restore: reset recovery - restoring BARs",
        "vfio-pci 0000:01:00.0: Invalid PCI ROM header signature: expecting 0xaa55, got 0xffff",
        "NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', GPU has fallen off the bus.",
        "pcieport 0000:00:1c.0: AER: Uncorrected (Fatal) error received: 0000:01:00.0",
    ];

    #[test]
    fn every_phrase_is_found_in_the_line_that_kernels_print() {
        assert_eq!(LINES.len(), PHRASES.len());
        let newer = "AMD-Vi: IOMMU 0000:00:00.2: Completion-Wait loop timed out";
        assert!(known(newer).is_some());
        for (line, phrase) in LINES.iter().zip(PHRASES) {
            let found = known(line).map(|phrase| phrase.words);
            assert_eq!(found, Some(phrase.words), "{line}");
        }
    }

    #[test]
    fn everyday_lines_are_no_trouble() {
        for line in [
            "vfio-pci 0000:01:00.0: enabling device (0000 -> 0003)",
            "DMAR: Intel(R) Virtualization Technology for Directed I/O",
            "AMD-Vi: Interrupt remapping enabled",
            "pci 0000:01:00.0: BAR 0 [mem 0xf7000000-0xf7ffffff]: assigned",
        ] {
            assert!(known(line).is_none(), "{line}");
        }
    }
}
