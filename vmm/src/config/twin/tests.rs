use std::path::PathBuf;

use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

/// A directory with the files `k` and `r`, and a `vm.toml`.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new(toml: &str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["k", "r"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        let bench = Self { dir };
        fs::write(bench.file(), bench.here(toml)).unwrap();
        bench
    }

    fn file(&self) -> PathBuf {
        self.dir.path().join("vm.toml")
    }

    /// `@` stands for the directory.
    fn here(&self, text: &str) -> String {
        text.replace('@', &format!("{}/", self.dir.path().display()))
    }

    fn line(&self, words: &str) -> Vec<OsString> {
        let words = self.here(words);
        ["strait", "run"].into_iter().chain(words.split_whitespace()).map(OsString::from).collect()
    }

    /// With the file and these words.
    fn config(&self, words: &str) -> Result<RunConfig, Failure> {
        let line = self.line(&format!("--config @vm.toml {words}"));
        RunConfig::try_from(merged(&self.file(), &line)?.0)
    }

    /// Without the file.
    fn plain(&self, words: &str) -> (RunConfig, ArgMatches) {
        let matches = parsed(&self.line(words)).unwrap();
        (RunConfig::try_from(typed(&matches).unwrap()).unwrap(), matches)
    }
}

const FULL: &str = "kernel = '@k'\ninitrd = '@r'\ncmdline = 'quiet \"x\"'\np2p = 'off'\n\
    serial = 'none'\nmmio64 = '64G'\nallow_boot_vga = true\ndry-run = false\n\
    [memory]\nsize = '4G'\nhugepages = '2M'\n\
    [cpu]\ncount = 8\nthreads = 2\nhide = 'kvm'\n\
    [[vfio]]\nhost = '0000:3b:00'\nexpect = '10de:1e07'\nguest_address = '05:00'\n\
    [[vfio]]\nslot = '7'\nrom = '@r'\nid = 'second'\n[[vfio]]\nhost = '1002:73bf'\nrom = false\n";

#[test]
fn file_and_flags_mean_the_same() {
    let bench = Bench::new(FULL);
    let from_file = bench.config("").unwrap();
    let words = "--kernel @k --initramfs @r --p2p off --serial none --mmio64 64G --allow-boot-vga \
        --memory 4G,hugepages=2M --cpus 8 --cpu threads=2,hide=kvm \
        --vfio 3b:00,expect=10de:1e07,guest-address=05:00 --vfio slot=7,rom=@r,id=second \
        --vfio 1002:73bf,rom=off";
    let (mut from_flags, _) = bench.plain(words);
    from_flags.kernel.cmdline = "quiet \"x\"".to_owned();
    assert_eq!(from_file, from_flags);
}

#[test]
fn command_line_wins_and_devices_add_up() {
    let bench = Bench::new(FULL);
    let config = bench.config("--memory 1G --cpu hide=all --vfio 00:02.0 --cpus 4").unwrap();
    assert_eq!((config.memory.size, config.memory.pages), (1 << 30, super::super::Pages::Default));
    assert_eq!((config.cpu.count.get(), config.cpu.hide), (4, super::super::Hide::All));
    assert_eq!(config.cpu.threads_per_core.get(), 2);
    let devices: Vec<String> = config.vfio.iter().map(|d| d.selector.to_string()).collect();
    assert_eq!(devices, ["0000:3b:00", "slot=7", "1002:73bf", "0000:00:02.0"]);
}

#[test]
fn printed_file_means_what_the_words_did() {
    let bench = Bench::new("");
    for words in [
        "--kernel @k",
        "--kernel @k --memory 2G,hugepages=1G --serial none --dry-run",
        "--kernel @k --initramfs @r --cmdline a=\"b\\c\" --cpus 4 --cpu hide=kvm --cpu threads=2 \
         --vfio 3b:00,id=a,rom=@r --vfio slot=a=b,managed=no --vfio /sys/bus/pci/devices/0000:00:02.0 \
         --p2p on --mmio32 256M --boot pvh --allow-boot-vga --serial file=/tmp/a,b",
    ] {
        let (config, matches) = bench.plain(words);
        let text = print(&matches, &config.kernel.cmdline);
        fs::write(bench.file(), &text).unwrap();
        assert_eq!(bench.config("").unwrap(), config, "{text}");
    }
    let (config, matches) = bench.plain("--kernel @k");
    let text = print(&matches, &config.kernel.cmdline);
    for default in
        ["cmdline = \"console=ttyS0\"", "[memory]\nsize = \"512M\"", "p2p = \"auto\"", "count = 1"]
    {
        assert!(text.contains(default), "{text}");
    }
}

#[test]
fn refusals_name_file_line_and_the_nearest_key() {
    for (toml, code, place, says) in [
        ("kernel = '@k'\nmemroy = '4G'\n", "E2002", "line 2", "did you mean memory?"),
        ("kernel = '@k'\n[memroy]\nsize = '4G'\n", "E2002", "line 2", "did you mean memory?"),
        (
            "kernel = '@k'\n\n[[vfio]]\nhost = '3b:00'\nexpct = '1:2'\n",
            "E2002",
            "line 3",
            "expect=",
        ),
        ("kernel = '@k'\n[memory]\nsize = 4096\n", "E2003", "line 2", "needs a unit"),
        ("kernel = '@k'\nboot = 'efi'\n", "E2003", "line 2", "'efi'"),
        ("kernel = '@k'\ndry-run = 'yes'\n", "E2003", "line 2", "true"),
        ("kernel = '@k'\nmmio64 = 1.5\n", "E2003", "line 2", "as text"),
        ("kernel = ['a', 'b']\n", "E2003", "line 1", "as text"),
        ("[kernel]\nfile = 'k'\n", "E2003", "line 1", "no table"),
        ("config = 'x'\n", "E2002", "line 1", "no key 'config'"),
        ("kernel = '@k'\n[cpu]\ncount = 0\n", "E2003", "line 2", "--cpus"),
        ("kernel = \n", "E2003", "line 1", "no TOML"),
        ("kernel = '@k'\nkernel = '@k'\n", "E2003", "line 2", "no TOML"),
    ] {
        let failure = Bench::new(toml).config("").unwrap_err();
        assert_eq!((failure.code.id, failure.code.exit), (code, 2), "{toml}: {failure:?}");
        let told = format!("{} {} {}", failure.cause, failure.details.join(" "), failure.fix);
        assert!(told.contains(&format!("vm.toml, {place}")) && told.contains(says), "{told}");
    }
}

#[test]
fn file_that_is_not_there_and_kernel_that_is_not_named_are_told() {
    let bench = Bench::new("memory = '1G'\n");
    let failure = bench.config("").unwrap_err();
    assert_eq!(failure.code.id, "E2001");
    assert!(failure.cause.contains("--kernel"), "{}", failure.cause);
    assert!(bench.config("--kernel @k").is_ok());
    fs::remove_file(bench.file()).unwrap();
    assert_eq!(bench.config("--kernel @k").unwrap_err().code.id, "E2101");
}

#[test]
fn every_flag_of_run_has_a_key() {
    let command = run_command();
    let keys: Vec<&str> = flags(&command).filter_map(Arg::get_long).collect();
    for name in ["kernel", "memory", "vfio", "cpus", "dry-run"] {
        assert!(keys.contains(&name), "{keys:?}");
    }
    assert!(NO_KEYS.iter().all(|name| !keys.contains(name)), "{keys:?}");
}

/// Text that tries what TOML, lists and shells treat apart.
fn odd_text() -> impl Strategy<Value = String> {
    let odd = prop_oneof![
        Just(','),
        Just('='),
        Just('"'),
        Just('\''),
        Just('\\'),
        Just('#'),
        Just(' '),
        Just('\t'),
        Just('\n'),
        Just('\r'),
        Just('/'),
        Just(']'),
        Just('\u{e9}'),
        Just('\u{7f}'),
        any::<char>(),
    ];
    let letters = prop_oneof![Just('a'), Just('Z'), Just('7')];
    proptest::collection::vec(prop_oneof![2 => letters, 1 => odd], 1..10)
        .prop_map(|text| text.into_iter().filter(|letter| *letter != '\0').collect())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    /// Words, the file that says the same, the words of that, and so on: nothing changes after the first step.
    #[test]
    fn file_of_a_files_words_is_the_same_file(
        cmdline in odd_text(),
        serial in odd_text(),
        smbios in odd_text(),
        rom in odd_text(),
        id in "[a-z0-9=]{1,6}",
    ) {
        let doubled = |text: &str| text.replace(',', ",,");
        let line: Vec<OsString> = [
            "strait".to_owned(),
            "run".to_owned(),
            "--kernel=k".to_owned(),
            format!("--cmdline={cmdline}"),
            format!("--serial=file={serial}"),
            format!("--smbios=serial={}", doubled(&smbios)),
            format!("--vfio=0000:3b:00.0,rom={},id={id}", doubled(&rom)),
            "--vfio=slot=7".to_owned(),
        ]
        .map(OsString::from)
        .into();
        let matches = parsed(&line).unwrap();
        let config = typed(&matches).and_then(RunConfig::meaning);
        prop_assume!(config.is_ok());
        let config = config.unwrap();
        let text = print(&matches, &config.kernel.cmdline);
        let words = read("vm.toml", &text);
        prop_assert!(words.is_ok(), "{text}\n{:?}", words.err().map(|failure| failure.cause));
        let again = ["strait", "run"].into_iter().map(OsString::from);
        let again = again.chain(words.unwrap().into_iter().map(|(_, word)| word.into()));
        let again = parsed(&again.collect::<Vec<_>>()).unwrap();
        let meant = RunConfig::meaning(typed(&again).unwrap()).unwrap();
        prop_assert_eq!(print(&again, &meant.kernel.cmdline), text);
        prop_assert_eq!(meant, config);
    }
}
