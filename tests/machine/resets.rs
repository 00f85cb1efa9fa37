//! Resets while other CPUs are amid an access, and what of the machine a reset puts back.

use std::{fs, io::Write, path::PathBuf};

use crate::guest::{Guest, kernel, prompted, read_until, strait};

/// How often the guest has started.
const BOOTS: u32 = 0x20_0000;
/// Accesses that the CPU which does not reset has made since the start.
const ACCESSES: u32 = 0x20_0010;
/// The other CPU runs.
const ALIVE: u32 = 0x20_0020;
/// Nothing is here: every read is an exit to strait.
const ABSENT: u32 = 0xd000_0000;

/// `mov eax, [ABSENT]`
fn mmio_read() -> Guest {
    Guest::new().raw(&[0xa1]).raw(&ABSENT.to_le_bytes())
}

/// `mov dx, 0x2000; in eax, dx`: nothing is there.
fn pio_read() -> Guest {
    Guest::new().raw(&[0x66, 0xba, 0x00, 0x20, 0xed])
}

/// `mov dx, 0x3fd; mov edi, 0x210000; mov ecx, 16; rep insb`
fn string_read() -> Guest {
    Guest::new().raw(&[0x66, 0xba, 0xfd, 0x03, 0xbf, 0, 0, 0x21, 0, 0xb9, 16, 0, 0, 0, 0xf3, 0x6c])
}

/// A guest that starts `boots` times. The boot CPU resets it while the other one makes one access after another.
fn boot_cpu_resets(boots: u32, access: &Guest) -> Guest {
    let spin = Guest::new().forever(&Guest::new().raw(&access.code).increment(ACCESSES));
    Guest::new()
        .increment(BOOTS)
        .store(ACCESSES, 0)
        .start_others(&spin)
        .wait_for(ACCESSES, 2)
        .if_below(BOOTS, boots, &Guest::new().reset())
        .print("done")
        .power_off()
}

/// The other way round: the boot CPU makes the accesses, and must start at the kernel's entry each time.
fn other_cpu_resets(boots: u32, access: &Guest) -> Guest {
    let end = Guest::new().print("done").power_off();
    let reset = Guest::new().wait_for(ACCESSES, 2).reset();
    let round = Guest::new().raw(&access.code).increment(ACCESSES);
    Guest::new()
        .increment(BOOTS)
        .store(ACCESSES, 0)
        .if_equal(BOOTS, boots, &end)
        .start_others(&reset)
        .until(ACCESSES, 1 << 18, &round)
        .fail()
}

fn ends_well(guest: &Guest) {
    let Some(run) = strait(guest, &["--cpus", "2"]) else { return };
    assert_eq!((run.code(), run.stdout().as_str()), (Some(0), "done"), "{}", run.stderr());
}

/// Resets in a test that every run makes, and in one that takes minutes.
const FEW: u32 = 200;
const MANY: u32 = 10_000;

#[test]
fn reset_amid_another_cpus_memory_read_starts_every_cpu_afresh() {
    ends_well(&boot_cpu_resets(FEW, &mmio_read()));
}

#[test]
fn reset_amid_another_cpus_port_read_starts_every_cpu_afresh() {
    ends_well(&boot_cpu_resets(FEW, &pio_read()));
}

#[test]
fn reset_amid_another_cpus_string_read_starts_every_cpu_afresh() {
    ends_well(&boot_cpu_resets(FEW, &string_read()));
}

#[test]
fn reset_amid_the_boot_cpus_memory_read_starts_it_at_the_kernels_entry() {
    ends_well(&other_cpu_resets(FEW, &mmio_read()));
}

#[test]
fn reset_amid_the_boot_cpus_string_read_starts_it_at_the_kernels_entry() {
    ends_well(&other_cpu_resets(FEW, &string_read()));
}

#[test]
#[ignore = "takes minutes: cargo test -p strait --test machine nightly -- --ignored"]
fn nightly_resets_amid_another_cpus_accesses() {
    ends_well(&boot_cpu_resets(MANY, &mmio_read()));
    ends_well(&boot_cpu_resets(MANY, &pio_read()));
    ends_well(&boot_cpu_resets(MANY, &string_read()));
}

#[test]
#[ignore = "takes minutes: cargo test -p strait --test machine nightly -- --ignored"]
fn nightly_resets_amid_the_boot_cpus_accesses() {
    ends_well(&other_cpu_resets(MANY, &mmio_read()));
    ends_well(&other_cpu_resets(MANY, &pio_read()));
    ends_well(&other_cpu_resets(MANY, &string_read()));
}

/// What a process holds.
#[derive(Debug, PartialEq, Eq)]
struct Held {
    /// What its descriptors are open on; numbers of anonymous files left out.
    files: Vec<String>,
    threads: Vec<String>,
    /// Its mappings, memory of devices and of the guest among them.
    mappings: usize,
    /// Eventfds that KVM, or another part of the kernel, may be signalled by.
    eventfds: usize,
    /// KiB that it keeps from being paged out.
    locked: u64,
}

impl Held {
    /// With KiB of memory that is there, which need not be the same.
    fn of(pid: u32) -> (Self, u64) {
        let entries = |what: &str| {
            let entries =
                fs::read_dir(format!("/proc/{pid}/{what}")).expect("the process is there");
            entries.map(|entry| entry.expect("listed").path())
        };
        let text =
            |what: &str| fs::read_to_string(format!("/proc/{pid}/{what}")).expect("readable");
        let target = |path| fs::read_link(path).expect("open").display().to_string();
        let mut files: Vec<String> = entries("fd").map(target).collect();
        let name = |path: PathBuf| fs::read_to_string(path.join("comm")).expect("it runs");
        let mut threads: Vec<String> = entries("task").map(name).collect();
        files.sort();
        threads.sort();
        let status = text("status");
        let kib = |key: &str| {
            let value = status.lines().find_map(|line| line.strip_prefix(key));
            let number = value.and_then(|value| value.trim().strip_suffix(" kB")?.parse().ok());
            number.expect("the kernel counts it")
        };
        let held = Self {
            eventfds: files.iter().filter(|file| file.contains("[eventfd]")).count(),
            files,
            threads,
            mappings: text("maps").lines().count(),
            locked: kib("VmLck:"),
        };
        (held, kib("VmRSS:"))
    }
}

#[test]
fn guest_with_two_cpus_that_reboots_1000_times_leaves_nothing_behind() {
    let prompt = Guest::new().print(">").key();
    let guest = Guest::new()
        .increment(BOOTS)
        .store(ALIVE, 0)
        .start_others(&Guest::new().increment(ALIVE).halt())
        .wait_for(ALIVE, 1)
        .if_equal(BOOTS, 10, &prompt)
        .if_below(BOOTS, 1000, &Guest::new().reset())
        .raw(&prompt.code)
        .power_off();
    let Some(file) = kernel(&guest) else { return };
    let (mut child, mut input, mut output) = prompted(file.path(), &["--cpus", "2"]);
    let (early, early_kib) = Held::of(child.id());
    input.write_all(b"k").expect("typed");
    read_until(&mut output, b">");
    let (late, late_kib) = Held::of(child.id());
    input.write_all(b"k").expect("typed");
    assert_eq!(child.wait().expect("ended").code(), Some(0));
    assert_eq!(late, early);
    assert!(
        late_kib < early_kib + 1024,
        "KiB of memory: {early_kib} after 10 boots, {late_kib} after 1000"
    );
}
