//! How devices without a function reset are brought back: by their whole bus, when all of it is the guest's.

use crate::{
    hosts::HostKind,
    scenario::{Ending, Scenario, Vm},
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    // The resets up to the first mark are counted while the guest sleeps.
    let reboots =
        |name: &str| Vm::new(name, "edu,0;mark,ready;sleep,3;reboot").ends(Ending::Whatever);
    vec![
        Scenario::new(
            "reset-bus",
            HostKind::Desk,
            "two devices behind a bridge, both the guest's, are reset with their bus at each reboot and work",
        )
        .strait_only()
        .vm(reboots("a").device("edu0").device("nic"))
        .script(format!("{COUNT}{BUS}")),
        Scenario::new(
            "reset-said",
            HostKind::Desk,
            "how a device is reset, and that it is not, is said before the start",
        )
        .strait_only()
        .script(SAID),
    ]
}

/// The kernel's own count of bus resets, whoever asked for them.
const COUNT: &str = r#"T=/sys/kernel/tracing
echo 'p:lab_bus_reset pci_reset_secondary_bus' >$T/kprobe_events || { echo "FAIL: no kprobe"; exit 1; }
echo 1 >$T/events/kprobes/lab_bus_reset/enable
resets() { grep -c lab_bus_reset: $T/trace; }
"#;

const BUS: &str = r#"load e1000
give_back $edu0 $nic
bindings >$J/before
strait_to dry run --kernel $VMLINUX --vfio $edu0 --vfio $nic --dry-run || echo "FAIL: dry run: $(cat $J/dry.err)"
says dry.out "its bus, with 0000:01:02.0"
says dry.out "its bus, with 0000:01:01.0"
: >$T/trace
vm_a &
wait_mark a ready 100 || exit 1
first=$(resets)
left=600
until [ $(grep -c 'LAB mark=ready' $J/a.serial) -ge 3 ]; do
    left=$((left - 1))
    [ $left -gt 0 ] && [ ! -e $J/a.rc ] || { echo "FAIL: no third boot: $(cat $J/a.err)"; break; }
    usleep 100000
done
after=$(resets)
kill $(cat $J/a.pid)
wait
# A reset for each reboot, by strait: the kernel asks for one of its own only when a device is closed.
[ $((after - first)) -ge 2 ] || echo "FAIL: $((after - first)) bus resets for two reboots ($first before)"
echo "LAB figure.resets=$((after - first)) for two reboots"
grep -q E1405 $J/a.err && echo "FAIL: $(cat $J/a.err)"
bindings >$J/after
same "the host is not as it was" before after
echo 0 >$T/events/kprobes/lab_bus_reset/enable
echo >$T/kprobe_events
"#;

/// One card is alone behind its port, the display sits on a root bus.
const SAID: &str = r#"give_back $vga
strait_to dry run --kernel $VMLINUX --vfio $edu1 --dry-run || echo "FAIL: dry run: $(cat $J/dry.err)"
says dry.out "  reset       bus"
strait_to root run --kernel $VMLINUX --vfio $vga --allow-boot-vga --release-fb --dry-run || echo "FAIL: dry run: $(cat $J/root.err)"
says root.err "warning[E1405]: $vga keeps its state over guest reboots"
"#;
