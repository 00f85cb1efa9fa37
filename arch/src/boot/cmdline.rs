//! The word that strait adds to a kernel's command line: how fast the TSC of a guest runs that does not see KVM.
//!
//! Linux measures its TSC at boot against the PIT, and gives the TSC up as its clock when the measurement was disturbed,
//! which in a guest is a matter of luck. Then each look at the clock is an exit to the monitor. `tsc_early_khz=` takes the
//! place of the measurement (Documentation/admin-guide/kernel-parameters.txt; since Linux 4.20).

const TSC: &str = "tsc_early_khz=";

/// Does this command line tell the TSC's frequency already? Linux takes `-` and `_` in the name of a parameter for the
/// same, and parameters of the kernel end at `--`.
pub fn tells_tsc(cmdline: &str) -> bool {
    let words = cmdline.split_ascii_whitespace().take_while(|word| *word != "--");
    words
        .map(|word| word.trim_start_matches('"'))
        .any(|word| word.get(..TSC.len()).is_some_and(|name| name.replace('-', "_") == TSC))
}

/// The command line with the frequency in kHz in front: behind a `--` of the user's it would be init's.
pub fn telling_tsc(cmdline: &str, khz: u32) -> String {
    before(cmdline, &khz.to_string())
}

/// The same where the frequency is not known, for people to read.
pub fn telling_some_tsc(cmdline: &str) -> String {
    before(cmdline, "?")
}

/// The longest that [`telling_tsc`] can make of a command line: for a check before the frequency is known.
pub fn telling_any_tsc(cmdline: &str) -> String {
    telling_tsc(cmdline, u32::MAX)
}

fn before(cmdline: &str, frequency: &str) -> String {
    let gap = if cmdline.is_empty() { "" } else { " " };
    format!("{TSC}{frequency}{gap}{cmdline}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_own_word_is_found_however_it_is_spelt() {
        for cmdline in [
            "tsc_early_khz=2000000",
            "console=ttyS0 tsc-early_khz=2000000 quiet",
            "quiet \"tsc_early_khz=2000000\"",
            "quiet\ttsc_early_khz=1 -- init",
        ] {
            assert!(tells_tsc(cmdline), "{cmdline}");
        }
        for cmdline in [
            "",
            "tsc=reliable",
            "xtsc_early_khz=1",
            "tsc_early_khz",
            "quiet -- tsc_early_khz=1",
            "\u{fc}",
        ] {
            assert!(!tells_tsc(cmdline), "{cmdline}");
        }
    }

    #[test]
    fn word_comes_before_whatever_ends_the_kernels_own_words() {
        assert_eq!(
            telling_tsc("quiet -- single", 2_500_000),
            "tsc_early_khz=2500000 quiet -- single"
        );
        assert_eq!(telling_tsc("", 1), "tsc_early_khz=1");
        assert!(tells_tsc(&telling_tsc("quiet", 1)));
        assert!(telling_any_tsc("quiet").len() >= telling_tsc("quiet", 9_999_999).len());
    }
}
