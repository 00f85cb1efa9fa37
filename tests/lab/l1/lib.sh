# Words for L1 scripts. J is where a job's results go; S is the share with L0.
J=/run/lab/job
PCI=/sys/bus/pci/devices

# bind BDF...: give functions to vfio-pci, as a careful administrator would.
bind() {
    for f in "$@"; do
        if [ "$(driver $f)" != vfio-pci ]; then
            echo vfio-pci >$PCI/$f/driver_override
            [ -e $PCI/$f/driver ] && echo $f >$PCI/$f/driver/unbind
            echo $f >/sys/bus/pci/drivers_probe
        fi
        [ "$(driver $f)" = vfio-pci ] || { echo "FAIL: $f did not bind to vfio-pci"; exit 90; }
    done
}

# give_back BDF...: back to whatever driver the host has.
give_back() {
    for f in "$@"; do
        [ -e $PCI/$f/driver ] && echo $f >$PCI/$f/driver/unbind
        echo >$PCI/$f/driver_override
        echo $f >/sys/bus/pci/drivers_probe
    done
}

# driver BDF: the driver's name, or none.
driver() {
    if [ -e $PCI/$1/driver ]; then basename "$(readlink $PCI/$1/driver)"; else echo none; fi
}

# load MODULE...: a driver that L1 does not have from the start, with what it needs.
load() {
    for m in "$@"; do
        while read -r needed; do
            [ -d /sys/module/$needed ] || insmod /run/lab/modules/$needed.ko ||
                { echo "FAIL: insmod $needed"; exit 92; }
        done <"/run/lab/modules/$m.order"
    done
}

# disk BDF: the node of an NVMe disk on the host's driver, once it is there.
disk() {
    local left=50 node
    while [ $left -gt 0 ]; do
        node=$(ls -d $PCI/$1/nvme/nvme*/nvme*n1 2>/dev/null) && [ -b "/dev/$(basename "$node")" ] && break
        left=$((left - 1))
        usleep 100000
    done
    [ $left -gt 0 ] || { echo "FAIL: no disk at $1" >&2; return 1; }
    echo "/dev/$(basename "$node")"
}

# power BDF: what its power management is told.
power() { echo "control $(cat $PCI/$1/power/control) d3cold_allowed $(cat $PCI/$1/d3cold_allowed)"; }

# says FILE WORDS: does it say so?
says() { grep -qF -- "$2" $J/$1 || { echo "FAIL: $1 does not say '$2': $(head -3 $J/$1)"; return 1; }; }

# same WHAT BEFORE AFTER: two files of results that must not differ.
same() { cmp -s $J/$2 $J/$3 || { echo "FAIL: $1: $(diff $J/$2 $J/$3 | grep '^[-+][^-+]' | tr '\n' ';')"; return 1; }; }

# strait_to NAME ARGUMENTS...: runs strait to its end; NAME.out, NAME.err, and the status as the answer.
strait_to() {
    local n=$1
    shift
    strait "$@" </dev/null >$J/$n.out 2>$J/$n.err
}

# group BDF: the IOMMU group's number.
group() { basename "$(readlink $PCI/$1/iommu_group)"; }

# bindings: every function with its driver and override; taken before and after bad input.
bindings() {
    for d in $PCI/*; do
        echo "$(basename $d) $(driver $(basename $d)) $(cat $d/driver_override) $(cat $d/enable)"
    done
}

# run_vm NAME COMMAND...: run to the end; output, status and times are kept by name. What strait says of the machine before
# (--dry-run) and meanwhile (inspect) is kept, too, unless COMPARE=no.
run_vm() {
    local n=$1 compare=no pid
    shift
    echo "$*" >$J/$n.command
    [ "$1 $2" != "strait run" ] || compare=${COMPARE:-yes}
    [ $compare = no ] || "$@" --dry-run --json </dev/null >$J/$n.plan.json 2>/dev/null
    cut -d' ' -f1 /proc/uptime >$J/$n.begin
    "$@" </dev/null >$J/$n.serial 2>$J/$n.err &
    pid=$!
    echo $pid >$J/$n.pid
    [ $compare = no ] || look_at $n $pid &
    wait $pid
    echo $? >$J/$n.rc
    cut -d' ' -f1 /proc/uptime >$J/$n.end
}

# look_at NAME PID: what strait says of its guest once that has come to its init.
look_at() {
    until grep -q "LAB up=" $J/$1.serial; do
        [ ! -e $J/$1.rc ] || return
        usleep 200000
    done
    strait inspect $2 --json </dev/null >$J/$1.inspect 2>$J/$1.inspect.err || rm $J/$1.inspect
    # A guest that ended meanwhile owes no answer, nor one that had nothing left to do: strait takes its socket away before
    # it gives memory and devices back, and both take time.
    [ ! -e $J/$1.rc ] && ! grep -q "LAB steps=done" $J/$1.serial || echo late >$J/$1.inspect.late
    [ ! -e $J/$1.inspect ] || mv $J/$1.inspect $J/$1.inspect.json
}

# wait_mark NAME MARK SECONDS: until the guest has said so.
wait_mark() {
    local left=$(($3 * 5))
    until grep -q "LAB mark=$2" $J/$1.serial 2>/dev/null; do
        left=$((left - 1))
        [ $left -gt 0 ] || { echo "FAIL: $1 never said $2"; return 1; }
        [ ! -e $J/$1.rc ] || { echo "FAIL: $1 ended before it said $2"; return 1; }
        usleep 200000
    done
}

# signal WORDS: ask L0 to do something now, and wait until it has.
signal() {
    rm -f $S/ack
    echo "signal $*" >/dev/ttyS1
    local left=300
    until [ -e $S/ack ]; do
        left=$((left - 1))
        [ $left -gt 0 ] || { echo "FAIL: L0 did not answer: $*"; return 1; }
        usleep 100000
    done
}

# exits: how many times KVM has returned to user space since the histogram was armed.
exits() {
    awk '/hitcount:/ { for (i = 1; i < NF; i++) if ($i == "hitcount:") n += $(i + 1) } END { print n + 0 }' \
        /sys/kernel/tracing/events/kvm/kvm_userspace_exit/hist
}

# count_exits / stop_counting: arm and disarm that histogram.
count_exits() { echo 'hist:keys=reason' >/sys/kernel/tracing/events/kvm/kvm_userspace_exit/trigger; }
stop_counting() { echo '!hist:keys=reason' >/sys/kernel/tracing/events/kvm/kvm_userspace_exit/trigger; }
