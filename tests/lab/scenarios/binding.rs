//! Taking devices from the host's drivers and giving them back: after every kind of end, and refused when the host
//! needs them.

use crate::{
    hosts::HostKind,
    scenario::{Ending, Scenario, Vm},
    scenarios::nvme::image_holds,
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let guest = |name: &str, word: &str| {
        Vm::new(name, &format!("nvme-verify,0,{{nonce}}/{word};mark,ready;sleep,2"))
            .device_with("nvme0", "managed=yes")
            .modules(&["nvme"])
    };
    let endless = |name: &str| {
        Vm::new(name, "nvme-verify,0,{nonce}/m0;mark,ready;sleep,1000")
            .device_with("nvme0", "managed=yes")
            .modules(&["nvme"])
            .ends(Ending::Whatever)
    };
    vec![
        Scenario::new(
            "managed",
            HostKind::Main,
            "managed=yes: a disk leaves the host's driver for a guest and comes back with what it wrote",
        )
        .strait_only()
        .vm(guest("a", "m1"))
        .script(MANAGED)
        .check(|outcome| image_holds(outcome, "nvme0", &format!("{}/m1", outcome.nonce))),
        Scenario::new(
            "managed-sigterm",
            HostKind::Main,
            "a strait that is told to end gives the disk back at once",
        )
        .strait_only()
        .vm(endless("a"))
        .script(SIGTERM),
        Scenario::new(
            "managed-sigkill",
            HostKind::Main,
            "what a killed strait had is given back by the next one, and works",
        )
        .strait_only()
        .vm(endless("a"))
        .vm(guest("b", "m2"))
        .script(SIGKILL)
        .check(|outcome| image_holds(outcome, "nvme0", &format!("{}/m2", outcome.nonce))),
        Scenario::new(
            "bind-unbind",
            HostKind::Main,
            "strait bind and unbind of a disk, a network card and a display with a console on it",
        )
        .strait_only()
        .script(BIND_UNBIND),
        Scenario::new(
            "bind-refused",
            HostKind::Main,
            "a disk that is mounted, swapped to or open, and the way to the network, stay",
        )
        .strait_only()
        .script(format!("{REFUSED_FUNCTION}{REFUSED}")),
        Scenario::new(
            "bind-hangs",
            HostKind::Desk,
            "a driver that does not let go is told in bounded time, and the device returns when it has",
        )
        .strait_only()
        .script(HANGS),
        Scenario::new(
            "group-several",
            HostKind::Desk,
            "of a group of two the other one is listed, refused while the host needs it, taken along, returned",
        )
        .strait_only()
        .vm(Vm::new("a", "edu,0;mark,ready;sleep,2").device_with("edu0", "managed=yes"))
        .reports("a", "edu.dma", "both ways")
        .script(format!("{REFUSED_FUNCTION}{GROUP}")),
    ]
}

/// The journal is looked at as well: a file that stays behind would be undone again by the next strait.
const MANAGED: &str = r#"give_back $nvme0
disk $nvme0 >/dev/null || exit 1
bindings >$J/before
power $nvme0 >>$J/before
vm_a &
wait_mark a ready 100 || exit 1
[ $(driver $nvme0) = vfio-pci ] || echo "FAIL: the guest runs, and the disk is on $(driver $nvme0)"
[ "$(power $nvme0)" = "control on d3cold_allowed 0" ] || echo "FAIL: not kept awake: $(power $nvme0)"
strait_to ps ps
says ps.out "$(cat $J/a.pid)  running"
says ps.out "0000:00:04.0  group $(group $nvme0)  goes back to nvme"
wait
bindings >$J/after
power $nvme0 >>$J/after
same "the host is not as it was" before after
node=$(disk $nvme0) || exit 1
# This host is booted with iommu=pt: what a guest left in a device must not reach all memory.
case "$(cat /sys/kernel/iommu_groups/$(group $nvme0)/type)" in
DMA*) ;;
*) echo "FAIL: the group's type is $(cat /sys/kernel/iommu_groups/$(group $nvme0)/type)" ;;
esac
# What the guest wrote, read by the host's driver again and compared with the file on L0.
dd if=$node of=$J/read bs=1M skip=1 count=8 2>/dev/null
dd if=/lab/nvme0.img of=$J/image bs=1M skip=1 count=8 2>/dev/null
cmp $J/read $J/image || echo "FAIL: the host reads something else from $node"
rm $J/read $J/image
[ -z "$(ls /run/strait/journal)" ] || echo "FAIL: left behind: $(ls /run/strait/journal)"
"#;

const SIGTERM: &str = r#"give_back $nvme0
disk $nvme0 >/dev/null || exit 1
bindings >$J/before
vm_a &
wait_mark a ready 100 || exit 1
begin=$(cut -d' ' -f1 /proc/uptime)
kill $(cat $J/a.pid)
wait
echo "LAB figure.back=$(awk "BEGIN { print $(cut -d' ' -f1 /proc/uptime) - $begin }") s after SIGTERM"
bindings >$J/after
same "the host is not as it was" before after
node=$(disk $nvme0) && dd if=$node of=/dev/null bs=1M count=1 2>/dev/null || echo "FAIL: the disk cannot be read"
[ -z "$(ls /run/strait/journal)" ] || echo "FAIL: left behind: $(ls /run/strait/journal)"
"#;

/// It binds and unbinds `edu1` as well, which earlier scenarios may have left on vfio-pci.
const SIGKILL: &str = r#"give_back $nvme0 $edu1
disk $nvme0 >/dev/null || exit 1
bindings >$J/before
power $nvme0 >>$J/before
vm_a &
wait_mark a ready 100 || exit 1
pid=$(cat $J/a.pid)
kill -9 $pid
wait
[ $(driver $nvme0) = vfio-pci ] || echo "FAIL: who gave it back to $(driver $nvme0)?"
strait_to ps ps
says ps.out "$pid  dead"
# Another device: the one that was lost comes back all the same.
strait_to bind bind $edu1
says bind.err "strait $pid ended without giving 0000:00:04.0 back: done now"
strait_to unbind unbind $edu1
bindings >$J/after
power $nvme0 >>$J/after
same "the host is not as it was" before after
node=$(disk $nvme0) && dd if=$node of=/dev/null bs=1M count=1 2>/dev/null || echo "FAIL: the disk cannot be read"
vm_b
bindings >$J/end
power $nvme0 >>$J/end
same "the host is not as it was after the second guest" before end
[ -z "$(ls /run/strait/journal)" ] || echo "FAIL: left behind: $(ls /run/strait/journal)"
"#;

const BIND_UNBIND: &str = r#"load e1000e virtio_gpu
give_back $nvme0 $nic $gpu
disk $nvme0 >/dev/null || exit 1
grep -q virtio_gpu /proc/fb || echo "FAIL: no console on the display: $(cat /proc/fb)"
host() { bindings; for f in $nvme0 $nic $gpu; do power $f; done; cat /proc/fb; ls $PCI/$nic/net; }
host >$J/before
strait_to dry bind --dry-run $nvme0 $nic $gpu || echo "FAIL: the dry run: $(cat $J/dry.err)"
says dry.out "0000:00:04.0 would go from nvme to vfio-pci"
host >$J/after-dry
same "a dry run changed the host" before after-dry
strait_to bind bind $nvme0 $nic $gpu || echo "FAIL: bind: $(cat $J/bind.err)"
for f in $nvme0 $nic $gpu; do
    [ $(driver $f) = vfio-pci ] || echo "FAIL: $f is on $(driver $f)"
    [ "$(power $f)" = "control on d3cold_allowed 0" ] || echo "FAIL: $f is not kept awake: $(power $f)"
done
strait_to ps ps
says ps.out "  goes back to nvme"
says ps.out "  goes back to e1000e"
says ps.out "  goes back to virtio-pci"
strait_to again bind $nvme0 || echo "FAIL: bind again: $(cat $J/again.err)"
says again.out "0000:00:04.0 is on vfio-pci already"
# vfio-pci waits for whoever has the group open, for ever: found before.
sleep 100 9<>/dev/vfio/$(group $nvme0) &
strait_to held unbind $nvme0 && echo "FAIL: unbind of a device in use"
says held.err "error[E1107]: 0000:00:04.0 is in use: sleep (pid $!)"
kill $!
strait_to unbind unbind $nvme0 $nic $gpu || echo "FAIL: unbind: $(cat $J/unbind.err)"
node=$(disk $nvme0) && dd if=$node of=/dev/null bs=1M count=1 2>/dev/null || echo "FAIL: the disk cannot be read"
host >$J/after
same "the host is not as it was" before after
[ -z "$(ls /run/strait/journal)" ] || echo "FAIL: left behind: $(ls /run/strait/journal)"
"#;

const REFUSED_FUNCTION: &str = r#"
# refused NAME CODE WORDS ARGUMENTS...: exit status 4, the code, the reason, nothing changed.
refused() {
    local n=$1 code=$2 words=$3
    shift 3
    bindings >$J/$n.before
    strait_to $n "$@"
    local status=$?
    bindings >$J/$n.after
    [ $status = 4 ] || echo "FAIL: $n: exit status $status: $(cat $J/$n.err)"
    says $n.err "error[$code]: "
    says $n.err "$words"
    same "$n changed the host" $n.before $n.after
}
"#;

const REFUSED: &str = r#"load e1000e crc32c_generic ext4
give_back $nvme0 $nic
node=$(disk $nvme0) || exit 1
net=$(ls $PCI/$nic/net)
mke2fs -F $node >/dev/null 2>&1
mkdir -p /tmp/mounted && mount -t ext4 $node /tmp/mounted || { echo "FAIL: no file system"; exit 1; }
refused mounted E1104 "${node#/dev/} -> mounted on /tmp/mounted" bind $nvme0
refused mounted-run E1104 "${node#/dev/} -> mounted on /tmp/mounted" run --kernel $VMLINUX --vfio $nvme0,managed=yes
umount /tmp/mounted
mkswap $node >/dev/null && swapon $node || { echo "FAIL: no swap"; exit 1; }
refused swap E1104 "${node#/dev/} -> in use as swap" bind $nvme0
swapoff $node
sleep 100 9<$node &
refused open E1106 "(pid $!): $node" bind $nvme0
kill $!
ip addr add 10.0.2.15/24 dev $net && ip link set $net up && ip route add default via 10.0.2.2 ||
    { echo "FAIL: no route"; exit 1; }
refused route E1104 "$nic -> $net -> the host's default route" bind $nic
ip route del default && ip addr flush dev $net && ip link set $net down
# With nothing in the way it goes, and comes back.
bindings >$J/before
strait_to bind bind $nvme0 $nic || echo "FAIL: still refused: $(cat $J/bind.err)"
strait_to unbind unbind $nvme0 $nic || echo "FAIL: unbind: $(cat $J/unbind.err)"
bindings >$J/after
same "the host is not as it was" before after
"#;

/// The 9p driver waits in its unbind, without an end, until its file system is unmounted. Reading `driver_override`
/// waits with it, so `bindings` must not look meanwhile.
const HANGS: &str = r#"mkdir -p /tmp/shared
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none shared /tmp/shared || { echo "FAIL: no 9p"; exit 1; }
bindings >$J/before
# timed NAME MOST ARGUMENTS...: it must fail, and in time.
timed() {
    local n=$1 most=$2 begin=$(cut -d. -f1 /proc/uptime)
    shift 2
    strait_to $n "$@" && echo "FAIL: $n: no failure"
    local took=$(($(cut -d. -f1 /proc/uptime) - begin))
    [ $took -le $most ] || echo "FAIL: $n took $took s"
    echo "LAB figure.$n=$took s"
}
timed bind 45 bind $shared
says bind.err "error[E1112]: virtio-pci does not let go of 0000:00:05.0"
strait_to ps ps
says ps.out "dead"
# Neither a second try nor a look is caught by the same lock.
timed again 5 bind $shared
says again.err "error[E1112]: 0000:00:05.0 still waits for its driver, in process "
strait_to devices devices || echo "FAIL: devices: $(cat $J/devices.err)"
strait_to show devices show $shared || echo "FAIL: show: $(cat $J/show.err)"
says show.out "does not let go of it"
umount /tmp/shared
sleep 2
strait_to unbind unbind $edu1
bindings >$J/after
same "the host is not as it was" before after
mount -t 9p -o trans=virtio,version=9p2000.L,cache=none shared /tmp/shared && umount /tmp/shared ||
    echo "FAIL: the device does not work"
[ -z "$(ls /run/strait/journal)" ] || echo "FAIL: left behind: $(ls /run/strait/journal)"
"#;

const GROUP: &str = r#"load e1000
give_back $edu0 $nic
[ $(group $edu0) = $(group $nic) ] || echo "FAIL: no common group"
net=$(ls $PCI/$nic/net)
bind $edu0
refused by-hand E1103 "0000:01:02.0" run --kernel $VMLINUX --vfio $edu0,managed=no
says by-hand.err "e1000"
give_back $edu0
ip addr add 10.0.2.15/24 dev $net && ip link set $net up && ip route add default via 10.0.2.2 ||
    { echo "FAIL: no route"; exit 1; }
refused needed E1103 "0000:01:02.0 shares IOMMU group $(group $nic) and the host needs it" bind $edu0
says needed.err "$net -> the host's default route"
ip route del default && ip addr flush dev $net && ip link set $net down
bindings >$J/before
vm_a &
wait_mark a ready 100 || exit 1
[ "$(driver $edu0) $(driver $nic)" = "vfio-pci vfio-pci" ] || echo "FAIL: on $(driver $edu0) and $(driver $nic)"
strait_to ps ps
says ps.out "0000:01:02.0  group $(group $nic)  goes back to e1000"
wait
bindings >$J/after
same "the host is not as it was" before after
[ -d $PCI/$nic/net/$net ] || echo "FAIL: no network card"
[ -z "$(ls /run/strait/journal)" ] || echo "FAIL: left behind: $(ls /run/strait/journal)"
"#;
