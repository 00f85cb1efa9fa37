//! Who is measured: strait, QEMU, L1 itself without a guest, and monitors that the environment names.

use anyhow::{Context, Result, bail, ensure};

use super::cases::{Case, Wish};
use crate::{
    hosts::Host,
    monitor::{GuestFiles, Monitor, functions},
};

/// The variable that names other monitors, one a line.
pub(crate) const VARIABLE: &str = "STRAIT_BENCH_OTHER";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Contender {
    /// Ours.
    Strait,
    /// The one that goals are ratios to.
    Qemu,
    /// No monitor: L1's own driver.
    Bare,
    /// From the environment.
    Other { name: String, template: String },
}

impl Contender {
    /// For tables and files.
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Strait => "strait",
            Self::Qemu => "qemu",
            Self::Bare => "bare",
            Self::Other { name, .. } => name,
        }
    }

    /// The others: `NAME:PROGRAM ARGUMENT...` a line, where `{kernel}`, `{initramfs}`, `{cmdline}`, `{cpus}` and
    /// `{memory}` (MiB) stand for the guest's, and what is between `[` and `]` comes once for each device, `{bdf}` being
    /// its address.
    pub(crate) fn others(text: &str) -> Result<Vec<Self>> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let parsed = lines.map(|line| {
            let (name, template) =
                line.split_once(':').with_context(|| format!("{VARIABLE}: no NAME: in {line}"))?;
            let plain = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphanumeric());
            ensure!(plain, "{VARIABLE}: a name has only letters and digits: {name}");
            ensure!(!["strait", "qemu", "bare"].contains(&name), "{VARIABLE}: {name} is taken");
            ensure!(template.contains("{kernel}"), "{VARIABLE}: {name} has no {{kernel}}");
            Ok(Self::Other { name: name.to_owned(), template: template.trim().to_owned() })
        });
        parsed.collect()
    }

    /// The words that start this case's guest; `None` when this contender cannot do it.
    pub(crate) fn command(
        &self,
        case: &Case,
        host: &Host,
        files: &GuestFiles<'_>,
        strait_help: &str,
    ) -> Result<Option<Vec<String>>> {
        let monitor = match self {
            Self::Strait => return strait(case, host, files, strait_help),
            Self::Qemu => Monitor::Qemu,
            Self::Bare => {
                return Ok(case
                    .bare
                    .map(|steps| ["agent", "do", steps].map(str::to_owned).to_vec()));
            }
            Self::Other { template, .. } => return other(template, case, host, files),
        };
        let mut words = monitor.command(&case.vm, host, files, true, "bench")?;
        if case.tiny {
            drop_pair(&mut words, "-initrd");
            drop_pair(&mut words, "-append");
        }
        if case.hugetlb {
            let size = case.vm.memory_mib;
            let backend = format!(
                "memory-backend-memfd,id=ram,size={size}M,hugetlb=on,hugetlbsize=2M,prealloc=on,prealloc-threads=2"
            );
            words
                .extend(["-object", &backend, "-machine", "memory-backend=ram"].map(str::to_owned));
        }
        Ok(Some(words))
    }
}

fn strait(
    case: &Case,
    host: &Host,
    files: &GuestFiles<'_>,
    help: &str,
) -> Result<Option<Vec<String>>> {
    let mut case = case.clone();
    if case.managed {
        case.vm.devices.iter_mut().for_each(|device| "managed=yes".clone_into(&mut device.keys));
    }
    let mut memory = String::new();
    for wish in case.wants {
        match wish {
            Wish::IdleNative if !help.contains("idle=") => return Ok(None),
            Wish::IdleNative => case.vm.flags.extend(["--cpu", "idle=native"].map(str::to_owned)),
            Wish::PinEager if help.contains("pin=") => memory.push_str(",pin=eager"),
            Wish::PinEager => {}
        }
    }
    if case.hugetlb {
        memory.push_str(",hugepages=2M");
    }
    let mut words = Monitor::Strait.command(&case.vm, host, files, true, "bench")?;
    if case.tiny {
        drop_pair(&mut words, "--initramfs");
        drop_pair(&mut words, "--cmdline");
    }
    let at = words.iter().position(|word| word == "--memory").context("no --memory")?;
    words[at + 1].push_str(&memory);
    Ok(Some(words))
}

fn drop_pair(words: &mut Vec<String>, flag: &str) {
    if let Some(at) = words.iter().position(|word| word == flag) {
        words.drain(at..at + 2);
    }
}

/// Fills a template. What it has no words for, the tiny kernel and huge pages, is not asked of it.
fn other(
    template: &str,
    case: &Case,
    host: &Host,
    files: &GuestFiles<'_>,
) -> Result<Option<Vec<String>>> {
    if case.tiny || case.hugetlb || !case.wants.is_empty() || !case.vm.flags.is_empty() {
        return Ok(None);
    }
    let mut bdfs = Vec::new();
    for passed in &case.vm.devices {
        bdfs.extend(functions(host, passed)?);
    }
    let mut words: Vec<String> = Vec::new();
    let mut repeated: Option<Vec<String>> = None;
    let cmdline =
        format!("console=ttyS0 quiet loglevel=4 {} lab.steps={}", case.vm.cmdline, case.vm.steps);
    for word in template.split_whitespace() {
        let opens = word.starts_with('[');
        let closes = word.ends_with(']');
        let word = word
            .trim_start_matches('[')
            .trim_end_matches(']')
            .replace("{kernel}", files.kernel)
            .replace("{initramfs}", files.initramfs)
            .replace("{cmdline}", &cmdline)
            .replace("{cpus}", &case.vm.cpus.to_string())
            .replace("{memory}", &case.vm.memory_mib.to_string());
        if opens {
            repeated = Some(Vec::new());
        }
        match &mut repeated {
            Some(group) => group.push(word),
            None => words.push(word),
        }
        if closes {
            let Some(group) = repeated.take() else { bail!("{VARIABLE}: ] without [") };
            for bdf in &bdfs {
                words.extend(group.iter().map(|word| word.replace("{bdf}", bdf)));
            }
        }
    }
    ensure!(repeated.is_none(), "{VARIABLE}: [ without ]");
    Ok(Some(words))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{bench::cases, hosts::HostKind};

    const FILES: GuestFiles<'_> = GuestFiles { kernel: "K", initramfs: "I" };

    fn case(name: &str) -> Case {
        cases::all().into_iter().find(|case| case.name == name).expect("a case")
    }

    #[test]
    fn template_repeats_its_brackets_for_every_device() {
        let text = "ch:/x/ch --kernel {kernel} --cmdline {cmdline} [--device path=/sys/{bdf}/] --memory size={memory}M\n";
        let others = Contender::others(text).expect("a template");
        let host = Host::of(HostKind::Main);
        let words =
            others[0].command(&case("bar32g"), &host, &FILES, "").expect("words").expect("able");
        let devices: Vec<_> = words.iter().filter(|word| word.starts_with("path=")).collect();
        assert_eq!(
            devices,
            ["path=/sys/0000:00:04.0/", "path=/sys/0000:00:0a.0/", "path=/sys/0000:00:07.0/"]
        );
        assert_eq!(
            (words[1].as_str(), words.last().map(String::as_str)),
            ("--kernel", Some("size=512M"))
        );
        assert!(words[4].contains("lab.steps="), "the command line stays one word: {words:?}");
    }

    #[test]
    fn template_without_kernel_or_with_a_taken_name_is_refused() {
        for text in ["ch:/x/ch", "qemu:/x {kernel}", "/x {kernel}", "a b:/x {kernel}"] {
            assert!(Contender::others(text).is_err(), "{text}");
        }
    }

    #[test]
    fn strait_without_idle_native_does_not_run_that_case() {
        let host = Host::of(HostKind::Main);
        let words = |help: &str| {
            Contender::Strait.command(&case("native"), &host, &FILES, help).expect("words")
        };
        assert!(words("").is_none());
        assert!(words("idle=native").expect("able").contains(&"idle=native".to_owned()));
    }

    #[test]
    fn huge_pages_are_asked_of_both() {
        let host = Host::of(HostKind::Big);
        let words = |who: &Contender| {
            let words =
                who.command(&case("huge1g"), &host, &FILES, "pin=eager|behind").expect("words");
            words.expect("able").join(" ")
        };
        assert!(words(&Contender::Strait).contains("--memory 1024M,pin=eager,hugepages=2M"));
        assert!(words(&Contender::Qemu).contains("hugetlb=on"));
    }
}
