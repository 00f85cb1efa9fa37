//! Everything that a stranger can hand to strait, as functions of bytes. A function returns for every input, soon and
//! without much memory, and panics where a property does not hold. `cargo lab fuzz` lets libFuzzer look for such inputs;
//! what it found once stays in `corpus/TARGET` and is tried again by the tests of this crate.
//!
//! There is something here for these two only: what a target needs of other crates stays out of every other build.

#![cfg(any(test, feature = "libfuzzer"))]

mod files;
mod guest;
mod host;
mod legacy;
mod words;

/// One thing to fuzz.
#[derive(Clone, Copy, Debug)]
pub struct Target {
    /// Its name for `cargo lab fuzz`, and the directory of its corpus.
    pub name: &'static str,
    /// What the bytes are and what must hold.
    pub about: &'static str,
    /// Tries one input. Panics where a property does not hold.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target {
        name: "kernel",
        about: "a kernel file: looked at and loaded, or refused, within a second and the guest's RAM",
        run: files::kernel,
    },
    Target {
        name: "unpack",
        about: "a compressed kernel: unpacked to 1 GiB at most, or refused",
        run: files::unpack,
    },
    Target {
        name: "rom",
        about: "an expansion ROM: its images lie inside the file and do not overlap",
        run: files::rom,
    },
    Target {
        name: "acpi",
        about: "an ACPI table of the user's: one that is taken adds up to zero",
        run: files::acpi,
    },
    Target {
        name: "journal",
        about: "a journal of what is to be undone: whatever it says, known files alone are written",
        run: strait_resources::journal::fuzz,
    },
    Target {
        name: "words",
        about: "addresses and selectors of devices: what is read and written again is the same",
        run: words::words,
    },
    Target {
        name: "guest_bus",
        about: "accesses of a guest: slots lie apart, a closed gate masters no bus, the host's registers are not written",
        run: guest::bus,
    },
    Target {
        name: "guest_threads",
        about: "the same from four CPUs at once, with resets of the machine between: it ends, and nothing stays mapped",
        run: guest::threads,
    },
    Target {
        name: "policy",
        about: "a configuration space, as VFIO and as the host have it: no closed register goes to hardware",
        run: strait_devices::vfio::policy::fuzz::fuzz,
    },
    Target {
        name: "vfio_answers",
        about: "what the kernel answers: nothing is believed beyond the answer's bytes",
        run: strait_devices::vfio::ioctl::fuzz::fuzz,
    },
    Target {
        name: "legacy",
        about: "accesses of any width to the legacy devices: each comes to an end",
        run: legacy::registers,
    },
    Target {
        name: "serial",
        about: "the serial port: what is typed comes out whole and in order, and what is written goes out",
        run: legacy::serial,
    },
    Target {
        name: "proc",
        about: "files of /proc: they are read to their end, whatever they say",
        run: host::proc,
    },
];

/// The target of this name.
pub fn target(name: &str) -> Option<&'static Target> {
    TARGETS.iter().find(|target| target.name == name)
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use super::*;

    /// Every input that a target has stumbled over once, and a few that it must get far with.
    #[test]
    fn kept_inputs_hold_in_every_target() {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
        for target in TARGETS {
            (target.run)(&[]);
            let mut tried = 0;
            for entry in fs::read_dir(corpus.join(target.name)).expect("a corpus of each target") {
                let path = entry.expect("an entry").path();
                (target.run)(&fs::read(&path).expect("an input"));
                tried += 1;
            }
            assert!(tried > 0, "{} has no inputs to begin with", target.name);
        }
    }

    #[test]
    fn each_target_is_found_by_its_name_alone() {
        for (n, one) in TARGETS.iter().enumerate() {
            assert!(TARGETS[n + 1..].iter().all(|other| other.name != one.name), "{}", one.name);
            assert_eq!(target(one.name).map(|found| found.about), Some(one.about));
        }
        assert!(target("nothing").is_none());
    }
}
