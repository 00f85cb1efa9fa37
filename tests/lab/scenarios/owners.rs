//! Who has which device, where others would like to decide it: local users, and straits of other PID namespaces.

use crate::{
    hosts::HostKind,
    scenario::{Ending, Scenario, Vm},
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let endless = || {
        Vm::new("a", "mark,ready;sleep,1000")
            .device_with("nvme0", "managed=yes")
            .ends(Ending::Whatever)
    };
    vec![
        Scenario::new(
            "journal-planted",
            HostKind::Main,
            "a journal that another user writes is never carried out, whatever umask strait had",
        )
        .strait_only()
        .vm(Vm::new("a", "mark,ready;sleep,4").device_with("nvme0", "managed=yes"))
        .script(format!("{NOBODY}{PLANTED}")),
        Scenario::new(
            "lock-of-others",
            HostKind::Main,
            "no user but root can keep strait from its devices, and a guest without any waits for nobody",
        )
        .strait_only()
        .vm(Vm::new("a", "mark,ready;sleep,4").device_with("nvme0", "managed=yes"))
        .vm(Vm::new("b", "mark,ready"))
        .script(format!("{NOBODY}{LOCK}")),
        Scenario::new(
            "pid-namespace",
            HostKind::Main,
            "a strait in another PID namespace leaves the devices of a running guest alone",
        )
        .strait_only()
        .vm(endless())
        .script(NAMESPACE),
    ]
}

const NOBODY: &str = r#"
nobody() { /usr/bin/setpriv --reuid 65534 --regid 65534 --clear-groups "$@"; }
"#;

/// First the modes under the worst umask, then what was left by a strait that had not set them.
const PLANTED: &str = r#"rm -rf /run/strait /tmp/victim /tmp/evil
give_back $nvme0
disk $nvme0 >/dev/null || exit 1
(umask 0; vm_a) &
wait_mark a ready 100 || exit 1
ls -lRan /run/strait >$J/modes
for path in /run/strait /run/strait/journal /run/strait/vm; do
    [ "$(stat -c '%a %u' $path)" = "700 0" ] || echo "FAIL: $path is $(stat -c '%a %u' $path)"
done
for path in /run/strait/lock /run/strait/journal/*.json /run/strait/vm/*; do
    [ "$(stat -c '%a %u' $path)" = "600 0" ] || echo "FAIL: $path is $(stat -c '%a %u' $path)"
done
nobody touch /run/strait/journal/run-1-99.json 2>/dev/null && echo "FAIL: another user writes journals"
wait
# As an older strait under umask 0 left it.
chmod 777 /run/strait /run/strait/journal
echo "root:x:0:0:root:/root:/bin/sh" >/tmp/victim
chmod 600 /tmp/victim
cp /tmp/victim $J/victim.before
mkdir -p /tmp/evil && ln -s /tmp/victim /tmp/evil/bind
cat >$J/attack.sh <<'X'
B=$(cat /proc/sys/kernel/random/boot_id)
printf '{"schema":"strait.journal/2","process":{"pid":1,"start":99},"pid_namespace":null,"boot":"%s","command":["x"],"kind":"run","settled":false,"functions":[{"bdf":"0000:00:04.0","group":1,"along":false,"before":null,"screen":{"name":"x","driver":"../../../../../tmp/evil","device":"../../../../../tmp/x/\\ntoor::0:0::","consoles":[]},"methods":null,"stuck":null}]}' "$B" >/run/strait/journal/run-1-99.json
X
nobody sh $J/attack.sh || echo "FAIL: no attack"
bindings >$J/before
for command in "run --kernel $VMLINUX --vfio $nvme0" "bind $nvme0" "unbind $nvme0"; do
    strait_to planted $command && echo "FAIL: $command goes on"
    says planted.err "error[E1125]: /run/strait may hold what somebody else wants done: others may write to it (mode 0777)"
done
# The directories are root's again, and the file is still another user's.
chmod 700 /run/strait /run/strait/journal
strait_to file bind $nvme0 && echo "FAIL: a journal of another user"
says file.err "error[E1125]: /run/strait/journal/run-1-99.json may hold what somebody else wants done: it belongs to user 65534"
# And if root had written it: its fields lead nowhere.
chown 0:0 /run/strait/journal/run-1-99.json
chmod 600 /run/strait/journal/run-1-99.json
strait_to bind bind $nvme0 || echo "FAIL: bind: $(cat $J/bind.err)"
says bind.err "warning[E1126]: /run/strait/journal/run-1-99.json is left alone"
strait_to unbind unbind $nvme0 || echo "FAIL: unbind: $(cat $J/unbind.err)"
cp /tmp/victim $J/victim.after
same "root wrote what another user wanted" victim.before victim.after
rm -rf /run/strait /tmp/evil /tmp/victim
disk $nvme0 >/dev/null
bindings >$J/after
same "the host is not as it was" before after
"#;

const LOCK: &str = r#"rm -rf /run/strait
give_back $nvme0
disk $nvme0 >/dev/null || exit 1
bindings >$J/before
vm_a &
wait_mark a ready 100 || exit 1
for path in /run/strait /run/strait/lock /run/strait/journal; do
    [ -e $path ] || echo "FAIL: no $path"
    nobody /usr/bin/flock -n -x $path true 2>/dev/null && echo "FAIL: another user locks $path"
done
nobody /usr/bin/flock -x /run/strait/journal sleep 100 2>/dev/null &
# Even if root holds it: a guest without devices changes no driver, and comes to its end while the lock is held.
(exec 9</run/strait/lock; /usr/bin/flock -x 9; touch $J/held; exec sleep 1000) &
holder=$!
until [ -e $J/held ]; do usleep 100000; done
vm_b
kill $holder || echo "FAIL: the lock was let go before the guest without devices ended"
wait
[ "$(cat $J/a.rc)" = 0 ] || echo "FAIL: status $(cat $J/a.rc): $(cat $J/a.err)"
disk $nvme0 >/dev/null
bindings >$J/after
same "the host is not as it was" before after
[ -z "$(ls /run/strait/journal)" ] || echo "FAIL: left behind: $(ls /run/strait/journal)"
"#;

const NAMESPACE: &str = r#"rm -rf /run/strait
give_back $nvme0 $edu1
disk $nvme0 >/dev/null || exit 1
bindings >$J/before
vm_a &
wait_mark a ready 100 || exit 1
pid=$(cat $J/a.pid)
elsewhere() {
    local n=$1
    shift
    /usr/bin/unshare --pid --fork --mount-proc strait "$@" </dev/null >$J/$n.out 2>$J/$n.err
}
elsewhere ps ps || echo "FAIL: ps: $(cat $J/ps.err)"
says ps.out "$pid  running"
elsewhere other bind $edu1 || echo "FAIL: bind of another device: $(cat $J/other.err)"
grep -q "ended without giving" $J/other.err && echo "FAIL: $(cat $J/other.err)"
elsewhere same bind $nvme0 && echo "FAIL: the guest's device is taken"
says same.err "error[E1114]: 0000:00:04.0 belongs to a running strait"
grep -q "kill $pid" $J/same.err && echo "FAIL: that number is another process there: $(cat $J/same.err)"
elsewhere guest run --kernel $VMLINUX --vfio $nvme0 && echo "FAIL: the guest's device is passed again"
sleep 2
[ "$(driver $nvme0)" = vfio-pci ] || echo "FAIL: the running guest has lost its device to $(driver $nvme0)"
[ -e $J/a.rc ] && echo "FAIL: the guest ended: $(cat $J/a.err)"
ls /run/strait/vm/$pid-*.sock >/dev/null || echo "FAIL: its socket is gone"
# Killed from here, it is dead for those there.
kill -9 $pid
wait
elsewhere after unbind $edu1 || echo "FAIL: unbind: $(cat $J/after.err)"
says after.out "strait $pid ended without giving 0000:00:04.0 back: done now"
disk $nvme0 >/dev/null
bindings >$J/after
same "the host is not as it was" before after
[ -z "$(ls /run/strait/journal)" ] || echo "FAIL: left behind: $(ls /run/strait/journal)"
"#;
