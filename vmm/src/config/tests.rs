//! Whole command lines, and what becomes of them.

use std::fs;

use clap::Parser as _;
use tempfile::TempDir;

use super::*;
use crate::cli::{Cli, Command};

/// A directory with the files `k`, `i` and `r`, and the command line `--kernel k` with more words.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["k", "i", "r"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        Self { dir }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `words` after `--kernel k`; `@` stands for the directory.
    fn config(&self, words: &[&str]) -> Result<RunConfig, Failure> {
        let at = format!("{}/", self.dir.path().display());
        let kernel = self.file("k").display().to_string();
        let mut line = vec!["strait".to_owned(), "run".into(), "--kernel".into(), kernel];
        line.extend(words.iter().map(|word| word.replace('@', &at)));
        let Command::Run(args) = Cli::try_parse_from(line).unwrap().command else {
            panic!("not run")
        };
        RunConfig::try_from(*args)
    }
}

#[test]
fn kernel_alone_gives_the_documented_defaults() {
    let bench = Bench::new();
    let expected = RunConfig {
        kernel: Kernel {
            path: bench.file("k"),
            initramfs: None,
            cmdline: "console=ttyS0".into(),
            boot: BootMode::Auto,
        },
        cpu: Cpu {
            count: NonZeroU8::MIN,
            threads_per_core: NonZeroU8::MIN,
            cores_per_package: NonZeroU8::MIN,
            hide: Hide::No,
            hv_vendor: None,
            idle: Idle::Halt,
            nested: false,
            pmu: false,
            core_sched: true,
        },
        memory: Memory { size: 512 << 20, pages: Pages::Default, pin: Pin::Auto },
        vfio: vec![],
        p2p: P2p::Auto,
        serial: Serial::Stdio,
        acpi: vec![],
        smbios: Smbios::default(),
        mmio32: None,
        mmio64: None,
        allow_boot_vga: false,
        release_fb: false,
        dry_run: false,
    };
    assert_eq!(bench.config(&[]).unwrap(), expected);
}

#[test]
fn every_flag_reaches_its_field() {
    let bench = Bench::new();
    let words = "--initramfs @i --cmdline quiet --cpus 4 --memory 1G --vfio 3b:00.0,rom=@r --vfio 3c:00 --p2p off \
                 --cpu hide=kvm --serial socket=/run/s --mmio32 256M --mmio64 64G --boot pvh --dry-run";
    let config = bench
        .config(&words.split(' ').filter(|word| !word.is_empty()).collect::<Vec<_>>())
        .unwrap();
    assert_eq!(config.kernel.initramfs, Some(bench.file("i")));
    assert_eq!((config.kernel.cmdline.as_str(), config.kernel.boot), ("quiet", BootMode::Pvh));
    assert_eq!((config.cpu.count.get(), config.cpu.hide), (4, Hide::Kvm));
    assert_eq!(config.memory.size, 1 << 30);
    assert_eq!(config.vfio.len(), 2);
    assert_eq!(config.vfio[0].rom, RomChoice::File(bench.file("r")));
    assert_eq!((config.p2p, config.dry_run), (P2p::Off, true));
    assert_eq!(config.serial, Serial::Socket("/run/s".into()));
    assert_eq!((config.mmio32, config.mmio64), (Some(256 << 20), Some(64 << 30)));
}

#[test]
fn serial_takes_its_four_forms() {
    assert_eq!(serial("stdio").unwrap(), Serial::Stdio);
    assert_eq!(serial("none").unwrap(), Serial::None);
    assert_eq!(serial("file=/tmp/a=b,c").unwrap(), Serial::File("/tmp/a=b,c".into()));
    assert_eq!(serial("socket=s").unwrap(), Serial::Socket("s".into()));
    for text in ["", "tty", "file=", "socket=", "file", "stdio=x", "/dev/ttyS0"] {
        let failure = serial(text).unwrap_err();
        assert_eq!(failure.code.id, "E2003", "{text}");
        assert!(failure.fix.contains("stdio, none, file=PATH or socket=PATH"), "{text}");
    }
}

#[test]
fn cmdline_without_a_serial_port_defaults_to_nothing() {
    let bench = Bench::new();
    assert_eq!(bench.config(&["--serial", "none"]).unwrap().kernel.cmdline, "");
    assert_eq!(bench.config(&["--cmdline", ""]).unwrap().kernel.cmdline, "");
}

#[test]
fn refusals_of_whole_lines_have_their_codes() {
    let bench = Bench::new();
    for (words, code, says) in [
        (&["--p2p", "yes"][..], "E2003", "'yes' is no value of --p2p"),
        (&["--boot", "efi"], "E2003", "'efi' is no value of --boot"),
        (&["--serial", "com1"], "E2003", "--serial"),
        (&["--cpus", "0"], "E2003", "--cpus"),
        (&["--memory", "4096"], "E2003", "--memory 4096"),
        (&["--mmio32", "8G"], "E2003", "--mmio32 8G"),
        (&["--mmio64", "1"], "E2003", "--mmio64 1"),
        (&["--cpu", "hid=kvm"], "E2002", "'hid'"),
        (&["--vfio", "3b:00.0", "--vfio", "3b:00"], "E2004", "share a function"),
        (&["--vfio", "3b:00.0,guest-address=00:01"], "E2005", "bus 0"),
        (&["--initramfs", "@nothing"], "E2101", "--initramfs"),
        (&["--vfio", "3b:00.0,rom=@nothing"], "E2101", "rom="),
    ] {
        let failure = bench.config(words).unwrap_err();
        assert_eq!((failure.code.id, failure.code.exit), (code, 2), "{words:?}: {}", failure.cause);
        assert!(failure.cause.contains(says), "{words:?}: {}", failure.cause);
        assert!(!failure.fix.is_empty(), "{words:?}");
    }
}

#[test]
fn missing_kernel_is_told_by_name() {
    let bench = Bench::new();
    fs::remove_file(bench.file("k")).unwrap();
    let failure = bench.config(&[]).unwrap_err();
    assert_eq!(failure.code.id, "E2101");
    assert!(failure.cause.contains(&bench.file("k").display().to_string()), "{}", failure.cause);
}
