# Runs in L1 after init: takes jobs from L0 on the second serial port, one after the other.
/run/lab/bin/busybox --install -s /run/lab/bin
export PATH=/run/lab/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export HOME=/tmp TERM=linux
cd /tmp || exit 1
for program in strait agent; do
    [ -e /lab/bin/$program ] && cp /lab/bin/$program /run/lab/bin/
done
# Under a name of its own: jobs end with every agent killed, and this VM must outlive them.
cp /lab/bin/agent /run/lab/bin/vm-holder
vm-holder hold-vm </dev/null >/dev/null 2>/dev/console &
stty -F /dev/ttyS1 raw -echo
exec 3<>/dev/ttyS1
echo "ready" >&3
while read -r verb name limit <&3; do
    case $verb in
    job)
        rm -rf /run/lab/job && mkdir -p /run/lab/job
        dmesg -c >/dev/null
        # A sign of life; and if L1 hangs, what its guests had said by then is the evidence.
        (while sleep 4; do cat /proc/uptime >"/lab/jobs/$name/alive"; cp /run/lab/job/*.serial /run/lab/job/*.err "/lab/jobs/$name/"; done) 2>/dev/null 3<&- &
        keeper=$!
        timeout -s KILL "$limit" sh "/lab/jobs/$name/job.sh" >/run/lab/job/job.out 2>&1 </dev/null 3<&-
        status=$?
        kill $keeper
        wait $keeper
        # What a job left running must not meet the next one.
        killall -q -9 strait qemu-system-x86_64 agent
        dmesg >/run/lab/job/l1-dmesg.txt
        cp -r /run/lab/job/. "/lab/jobs/$name/"
        echo "done $name $status" >&3
        ;;
    shell)
        # The third serial port is the user's terminal.
        stty -F /dev/ttyS2 sane rows "${name:-24}" cols "${limit:-80}"
        (export PS1='L1:\w# '; setsid -c sh /lab/terminal.sh </dev/ttyS2 >/dev/ttyS2 2>&1 3<&-)
        echo "done shell $?" >&3
        ;;
    off)
        poweroff -f
        ;;
    esac
done
poweroff -f
