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
            "reset-chosen",
            HostKind::Desk,
            "reset=none: neither the start nor a reboot resets a device that is reset otherwise; the kernel's list is put back",
        )
        .strait_only()
        // Nine boots.
        .limit(360)
        .vm(reboots("auto").device("edu1"))
        .vm(reboots("none").device_with("edu1", "reset=none"))
        .vm(reboots("bus").device_with("edu1", "reset=bus"))
        .script(format!("{COUNT}{CHOSEN}")),
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

/// A card alone behind its port: the kernel resets its bus when it is opened, and the monitor asks for that at each reboot.
const CHOSEN: &str = r#"give_back $edu1
list=$PCI/$edu1/reset_method
state() { bindings; cat $list; }
state >$J/before
strait_to dry run --kernel $VMLINUX --vfio $edu1,reset=none --dry-run || echo "FAIL: dry run: $(cat $J/dry.err)"
says dry.out "reset       none, as reset=none asks"
strait_to flr run --kernel $VMLINUX --vfio $edu1,reset=flr && echo "FAIL: a reset that the device has not got"
says flr.err "error[E1404]: $edu1 cannot be reset by flr"
says flr.err "fix: the kernel offers: bus"
state >$J/after
same "a refusal changed the host" before after
# counted NAME METHODS: bus resets at the start of a guest and for its first reboot; the list meanwhile.
counted() {
    : >$T/trace
    # Of an earlier run of the same guest.
    rm -f $J/$1.rc $J/$1.serial
    vm_$1 &
    wait_mark $1 ready 100 || exit 1
    eval "$1_start=$(resets)"
    [ "$(cat $list)" = "$2" ] || echo "FAIL: $1: the list is '$(cat $list)'"
    local left=600
    until [ $(grep -c 'LAB mark=ready' $J/$1.serial) -ge 2 ]; do
        left=$((left - 1))
        [ $left -gt 0 ] && [ ! -e $J/$1.rc ] || { echo "FAIL: $1: no second boot: $(cat $J/$1.err)"; break; }
        usleep 100000
    done
    eval "$1_reboot=$(($(resets) - $1_start))"
    kill $3 $(cat $J/$1.pid)
    wait
}
counted auto bus
counted bus bus
counted none ""
state >$J/after
same "the host is not as it was" before after
for way in auto bus; do
    eval "[ \$${way}_start -ge 1 ] && [ \$${way}_reboot -ge 1 ]" || echo "FAIL: $way: $auto_start/$bus_start at the start, $auto_reboot/$bus_reboot for a reboot"
done
[ "$none_start $none_reboot" = "0 0" ] || echo "FAIL: reset=none: $none_start resets at the start, $none_reboot for a reboot"
echo "LAB figure.resets=auto $auto_start+$auto_reboot, bus $bus_start+$bus_reboot, none $none_start+$none_reboot"
# Killed: the list is put back by the next strait.
counted none "" -9
[ "$(cat $list)" = "" ] || echo "FAIL: who put the list back?"
strait_to unbind unbind $edu0
state >$J/after
same "the host is not as it was after a SIGKILL" before after
# Doctor's check 8 asks VFIO for what it grants, and opens no device for that.
bind $edu1
strait_to doctor -v doctor $edu1
says doctor.out "VFIO lets devices of group $(group $edu1) address 0x0-0xfedfffff, 0xfef00000-0xffffffffffff"
give_back $edu1
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
