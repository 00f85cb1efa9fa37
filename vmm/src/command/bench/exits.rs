//! Exits to user space, counted by the kernel by reason: a histogram of `kvm:kvm_userspace_exit` in an instance of the
//! tracer of our own, so that nobody else's tracing is disturbed.
//!
//! The event has no owner in it that is known beforehand, so it counts every guest of the host: with another guest
//! running the count would be wrong, and is not taken.

use std::{collections::BTreeMap, fs, io, path::PathBuf};

/// Reasons and counts.
pub(super) type Counts = BTreeMap<String, u64>;

const EVENT: &str = "events/kvm/kvm_userspace_exit";
const ARM: &str = "hist:keys=reason";

/// An armed histogram; dropping it removes the instance.
pub(super) struct Counter {
    instance: PathBuf,
}

impl Counter {
    /// Arms it, or says why that cannot be.
    pub(super) fn arm() -> Result<Self, String> {
        if let Some(other) = other_guest() {
            return Err(format!("another guest runs on this host (process {other})"));
        }
        let instance = tracing()?.join(format!("instances/strait-bench-{}", std::process::id()));
        fs::create_dir(&instance).map_err(|error| format!("no tracer: {error}"))?;
        let this = Self { instance };
        fs::write(this.file("trigger"), ARM)
            .map_err(|error| format!("no histogram of exits: {error}"))?;
        Ok(this)
    }

    /// The counts so far.
    pub(super) fn counts(&self) -> io::Result<Counts> {
        Ok(parse(&fs::read_to_string(self.file("hist"))?))
    }

    fn file(&self, name: &str) -> PathBuf {
        self.instance.join(EVENT).join(name)
    }
}

impl Drop for Counter {
    fn drop(&mut self) {
        // An instance with a trigger is busy. When it cannot be removed, it counts on, harmlessly.
        let _ = fs::write(self.file("trigger"), format!("!{ARM}"));
        if let Err(error) = fs::remove_dir(&self.instance) {
            log::info!("{} stays: {error}", self.instance.display());
        }
    }
}

/// Where the kernel's tracer is.
pub(super) fn tracing() -> Result<PathBuf, String> {
    let places = ["/sys/kernel/tracing", "/sys/kernel/debug/tracing"].map(PathBuf::from);
    let place = places.into_iter().find(|path| path.join("instances").exists());
    place.ok_or_else(|| {
        "tracefs is not mounted: mount -t tracefs none /sys/kernel/tracing".to_owned()
    })
}

/// `{ reason: KVM_EXIT_IO ( 2) } hitcount: 17`: the word where there is one, the number otherwise.
fn parse(hist: &str) -> Counts {
    let mut counts = Counts::new();
    for line in hist.lines() {
        let Some((key, count)) = line.split_once("hitcount:") else { continue };
        let Ok(count) = count.trim().parse::<u64>() else { continue };
        let reason = key.split_once(':').map_or(key, |(_, reason)| reason);
        let reason = reason.trim_matches(|c: char| c == '}' || c.is_whitespace());
        *counts.entry(name(reason)).or_default() += count;
    }
    counts
}

/// The numbers of linux/kvm.h that a guest makes.
fn name(reason: &str) -> String {
    let known = match reason {
        "0" => "unknown",
        "2" => "port I/O",
        "5" => "halt",
        "6" => "MMIO",
        "7" => "interrupt window",
        "8" => "shutdown",
        "9" => "entry failed",
        "10" => "interrupted",
        "12" => "TPR access",
        "17" => "internal error",
        "24" => "system event",
        "26" => "IOAPIC EOI",
        "27" => "Hyper-V",
        "29" => "MSR read",
        "30" => "MSR write",
        other => other,
    };
    known.to_owned()
}

/// A process that has a KVM guest. A virtual machine without a vCPU makes no exits, and is none.
pub(super) fn other_guest() -> Option<u32> {
    for entry in fs::read_dir("/proc").ok()?.filter_map(Result::ok) {
        let Ok(pid) = entry.file_name().to_string_lossy().parse::<u32>() else { continue };
        let fds =
            fs::read_dir(entry.path().join("fd")).into_iter().flatten().filter_map(Result::ok);
        let mut links = fds.filter_map(|fd| fs::read_link(fd.path()).ok());
        if pid != std::process::id()
            && links.any(|link| link.to_string_lossy().starts_with("anon_inode:kvm-vcpu"))
        {
            return Some(pid);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histogram_of_the_kernel_is_read_by_reason() {
        let hist = "# event histogram\n#\n# trigger info: hist:keys=reason:vals=hitcount\n#\n\n\
            { reason:          2 } hitcount:        417\n{ reason:          6 } hitcount:         66\n\
            { reason:         99 } hitcount:          1\n\nTotals:\n    Hits: 484\n    Entries: 3\n";
        let counts = parse(hist);
        let wanted = [("99", 1), ("MMIO", 66), ("port I/O", 417)];
        assert_eq!(counts.iter().map(|(k, v)| (k.as_str(), *v)).collect::<Vec<_>>(), wanted);
        assert!(parse("").is_empty());
    }
}
