//! NVMe disks: DMA both ways, MSI-X, a real driver, reboots, sudden death, two machines at once.

use crate::{
    files,
    hosts::HostKind,
    outcome::Outcome,
    scenario::{Ending, Scenario, Vm},
    words::{pattern, sum},
};

const MIB: usize = 1 << 20;

/// Is the pattern that the guest wrote in L0's image, where it wrote it?
pub(super) fn image_holds(outcome: &Outcome, device: &str, word: &str) -> Result<(), String> {
    let image = files::read(&outcome.run.join(format!("{device}.img")));
    let image = image.map_err(|error| format!("{error:#}"))?;
    let wanted = sum(&pattern(word, 8 * MIB));
    let found = sum(image.get(MIB..9 * MIB).ok_or("the image is too short")?);
    if found == wanted {
        Ok(())
    } else {
        Err(format!("{device}.img on L0 holds {found:016x}, the guest wrote {wanted:016x}"))
    }
}

/// How often the guest may make strait's own code run for 2000 reads.
const EXITS_ALLOWED: u64 = 20;

/// How often a guest may make strait's own code run from start to power-off: 2245 when this was set.
const BOOT_EXITS_ALLOWED: u64 = 2600;

/// The same while KVM is hidden: TCG is too slow for Linux to refine its TSC's frequency against the PM timer, so it
/// tries again every second with five reads, however long a busy machine takes. A guest whose clock is that timer makes
/// thousands.
const HIDDEN_EXITS_ALLOWED: u64 = 500;

fn at_most(allowed: u64, outcome: &Outcome) -> Result<(), String> {
    let counted = outcome.text("exits");
    let exits: u64 = counted.trim().parse().map_err(|_| format!("exits: {counted}"))?;
    let message = || format!("{exits} exits to user space, {allowed} allowed");
    if exits < allowed { Ok(()) } else { Err(message()) }
}

/// Writes down what strait holds at the tenth and at the hundredth reboot of its guest: descriptors by what they are (an
/// eventfd for each route of an interrupt among them), threads by name, interrupts that VFIO has asked for, mappings,
/// locked and pinned memory, and at last the memory that it has touched.
const REBOOTS_SCRIPT: &str = r#"
held() {
    local pid=$(cat $J/a.pid)
    for fd in /proc/$pid/fd/*; do readlink $fd | sed 's/[0-9][0-9]*/N/g'; done | sort | uniq -c | sed 's/^ */fd /'
    cat /proc/$pid/task/*/comm | sort | uniq -c | sed 's/^ */thread /'
    grep -c vfio /proc/interrupts | sed 's/^/vectors /'
    wc -l </proc/$pid/maps | sed 's/^/mappings /'
    awk '/^(VmLck|VmPin):/ { print $1, $2 }' /proc/$pid/status
}
memory() { awk '/^(RssAnon|RssFile):/ { sum += $2 } END { print sum }' /proc/$(cat $J/a.pid)/status; }
bind {all}
vm_a &
wait_mark a count-first 600 && held >$J/held.first && memory >$J/memory.first
wait_mark a count-last 3000 && held >$J/held.last && memory >$J/memory.last
wait
"#;

/// Ways to reboot, each in turn, a hundred of them.
fn hundred_ways() -> String {
    ["acpi", "kbd", "pci"].iter().cycle().take(100).copied().collect::<Vec<_>>().join(".")
}

/// The same at the hundredth boot as at the tenth, but for a MiB.
fn nothing_is_left(outcome: &Outcome) -> Result<(), String> {
    let [first, last] = ["held.first", "held.last"].map(|name| outcome.text(name));
    if first.lines().count() < 5 || first != last {
        return Err(format!("at the 10th boot:\n{first}at the 100th:\n{last}"));
    }
    let kib = |name: &str| outcome.text(name).trim().parse::<u64>();
    match (kib("memory.first"), kib("memory.last")) {
        (Ok(first), Ok(last)) if last <= first + 1024 => Ok(()),
        (first, last) => Err(format!("KiB of memory: {first:?}, then {last:?}")),
    }
}

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new("nvme", HostKind::Main, "an NVMe disk is written and read back by checksum")
            .vm(Vm::new("a", "nvme-verify,0,{nonce}/1;pci;irqs").device("nvme0").modules(&["nvme"]))
            .reports("a", "nvme.readback", "same")
            .check(|outcome| image_holds(outcome, "nvme0", &format!("{}/1", outcome.nonce))),
        Scenario::new(
            "nvme-reboots",
            HostKind::Main,
            "the disk keeps its contents over guest reboots by ACPI, keyboard controller and 0xCF9",
        )
        .limit(300)
        .vm(Vm::new("a", "nvme-reboots,0,{nonce}/2,acpi.kbd.pci")
            .device("nvme0")
            .modules(&["nvme"]))
        .reports("a", "boot", "3")
        .check(|outcome| {
            let boots = outcome.vm("a")?.all("boot").count();
            if boots == 4 { Ok(()) } else { Err(format!("{boots} boots instead of 4")) }
        }),
        Scenario::new(
            "nvme-reboots-100",
            HostKind::Main,
            "100 reboots leave no descriptor, thread, vector, memory slot or MiB behind",
        )
        .strait_only()
        .nightly()
        .limit(3600)
        .vm(Vm::new("a", &format!("nvme-reboots,0,{{nonce}}/3,{},count", hundred_ways()))
            .cpus(2)
            .device("nvme0")
            .modules(&["nvme"]))
        .script(REBOOTS_SCRIPT)
        .reports("a", "boot", "100")
        .check(nothing_is_left),
        Scenario::new("nvme-exits", HostKind::Main, "2000 reads leave KVM fewer than 20 times")
            .vm(Vm::new("a", "nvme-reads,0,2000").device("nvme0").modules(&["nvme"]))
            .script(EXITS_SCRIPT)
            .strait_check(|outcome| at_most(EXITS_ALLOWED, outcome)),
        Scenario::new(
            "nvme-exits-hidden",
            HostKind::Main,
            "reads cost no exits with KVM hidden either: its clock is the TSC",
        )
        .vm(Vm::new("a", "nvme-reads,0,2000")
            .device("nvme0")
            .modules(&["nvme"])
            .flags("--cpu hide=kvm")
            .qemu_cpu(",kvm=off"))
        .script(EXITS_SCRIPT)
        .strait_check(|outcome| at_most(HIDDEN_EXITS_ALLOWED, outcome)),
        Scenario::new(
            "boot-exits",
            HostKind::Main,
            "boot, 2000 reads and power-off exit to strait 2600 times at most",
        )
        .vm(Vm::new("a", "nvme-reads,0,2000").device("nvme0").modules(&["nvme"]))
        .script(
            "bind {all}\n\
                 count_exits\n\
                 vm_a\n\
                 exits >$J/exits\n\
                 stop_counting\n\
                 echo \"LAB figure.exits=$(cat $J/exits) to user space until power-off\"\n",
        )
        .strait_check(|outcome| {
            let counted = outcome.text("exits");
            let exits: u64 = counted.trim().parse().map_err(|_| format!("exits: {counted}"))?;
            // Less than a boot can do with is no count.
            match exits {
                200..=BOOT_EXITS_ALLOWED => Ok(()),
                _ => Err(format!("{exits} exits to user space, {BOOT_EXITS_ALLOWED} allowed")),
            }
        }),
        Scenario::new(
            "idle-native",
            HostKind::Main,
            "a vCPU that idles natively does not exit for it, and has a CPU to itself",
        )
        .strait_only()
        .vm(Vm::new("a", "nvme-reads,0,2000")
            .device("nvme0")
            .modules(&["nvme"])
            .flags("--cpu idle=native"))
        .vm(Vm::new("b", "").cpus(8).flags("--cpu idle=native").ends(Ending::Status(3)))
        .script(
            "bind {all}\n\
                 hlt='hist:keys=exit_reason if exit_reason == 0x78'\n\
                 echo \"$hlt\" >$KVM_EXIT/trigger\n\
                 vm_a\n\
                 awk '/Hits:/ { print $2 }' $KVM_EXIT/hist >$J/halts\n\
                 echo \"!$hlt\" >$KVM_EXIT/trigger\n\
                 vm_b\n"
                .replace("$KVM_EXIT", "/sys/kernel/tracing/events/kvm/kvm_exit"),
        )
        .check(|outcome| {
            let halts = outcome.text("halts");
            if halts.trim() != "0" {
                return Err(format!("{} exits for HLT", halts.trim()));
            }
            let said = &outcome.vm("b")?.errors;
            let clear = said.contains("error[E1005]") && said.contains("8 vCPUs");
            if clear { Ok(()) } else { Err(format!("8 vCPUs on 2 CPUs: {said}")) }
        }),
        Scenario::new(
            "sigkill",
            HostKind::Main,
            "strait dies by SIGKILL amid DMA; the next run works",
        )
        .vm(Vm::new("a", "mark,busy;nvme-reads,0,10000000")
            .device("nvme0")
            .modules(&["nvme"])
            .ends(Ending::Whatever))
        .vm(Vm::new("b", "nvme-verify,0,{nonce}/3").device("nvme0").modules(&["nvme"]))
        .script(
            "bind {all}\n\
                 vm_a &\n\
                 wait_mark a reads-begin 100 || exit 1\n\
                 sleep 5\n\
                 kill -9 $(cat $J/a.pid)\n\
                 wait\n\
                 [ \"$(cat $J/a.rc)\" = 137 ] || echo FAIL: a ended by itself\n\
                 vm_b\n",
        )
        .check(|outcome| image_holds(outcome, "nvme0", &format!("{}/3", outcome.nonce))),
        Scenario::new(
            "two-machines",
            HostKind::Main,
            "two guests with a disk each, at the same time",
        )
        .limit(240)
        .vm(Vm::new("a", "nvme-verify,0,{nonce}/4;mark,ready;sleep,10")
            .device("nvme0")
            .modules(&["nvme"]))
        .vm(Vm::new("b", "nvme-verify,0,{nonce}/5;mark,ready;sleep,10")
            .device("nvme1")
            .modules(&["nvme"]))
        .script(
            "bind {all}\n\
                 vm_a &\n\
                 vm_b &\n\
                 wait_mark a ready 200 && wait_mark b ready 30\n\
                 wait\n",
        )
        .check(|outcome| image_holds(outcome, "nvme0", &format!("{}/4", outcome.nonce)))
        .check(|outcome| image_holds(outcome, "nvme1", &format!("{}/5", outcome.nonce))),
    ]
}

/// The guest is silent for seconds before and after its reads, so that what its console costs is not counted: A is
/// the count in the silence before; of the counts taken all the time after, the one before the last but one is
/// from the silence after.
const EXITS_SCRIPT: &str = r#"bind {all}
count_exits
vm_a &
wait_mark a reads-begin 100 || exit 1
usleep 1500000
before=$(exits)
a=$before b=$before c=$before
until grep -q 'LAB mark=reads-end' $J/a.serial; do
    a=$b b=$c c=$(exits)
    usleep 700000
    [ ! -e $J/a.rc ] || break
done
wait
stop_counting
# The guest's boot alone makes hundreds: a histogram that counts nothing is no proof.
[ $before -gt 50 ] || echo "FAIL: only $before exits counted before the reads"
echo $((a - before)) >$J/exits
echo "LAB figure.exits=$((a - before)) to user space ($before before)"
"#;
