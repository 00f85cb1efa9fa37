//! What the emulated host itself does wrong, counted with strait and with QEMU in turns: a fault that both meet is the
//! emulator's. They take hours and run only by their whole names.

use crate::{
    hosts::HostKind,
    scenario::{Ending, Scenario, Vm},
};

/// How many starts the emulated host must survive.
const STARTS: u32 = 200;

/// Machines begin and end as fast as they can, each monitor's in turn. One that does not end stops the count.
const COUNT_STARTS: &str = r#"
pidof vm-holder >/dev/null || echo "FAIL: nobody holds a VM open"
agent tiny-kernel /run/lab/tiny || exit 91
once() {
    agent stopwatch $J/start until "LAB up=" -- "$@" >/dev/null 2>&1 || { echo "FAIL: start $n: $*"; exit 94; }
}
n=0
while [ $n -lt {starts} ]; do
    once strait run --kernel /run/lab/tiny --memory 64M
    n=$((n + 1))
    once qemu-system-x86_64 -M q35 -accel kvm -display none -nodefaults -no-user-config -serial stdio \
        -cpu host -m 64M -kernel /run/lab/tiny
    n=$((n + 1))
done
echo "LAB figure.starts=$n without a standstill"
echo $n >$J/starts
"#;

/// The same guest by each monitor in turn; a guest that does not finish its steps has died.
const COUNT_DEATHS: &str = r#"
bind $nvme0
line="console=ttyS0 quiet loglevel=4 lab.steps=cpu;irqs"
for burner in {burners}; do sh -c 'while :; do :; done' & burners="$burners $!"; done
strait_guest() {
    strait run --kernel $VMLINUX --initramfs $INITRAMFS_a --cpus 2 --memory 512M --vfio $nvme0 --cmdline "$line"
}
qemu_guest() {
    qemu-system-x86_64 -M q35 -accel kvm -display none -nodefaults -no-user-config -serial stdio -no-reboot \
        -cpu host -smp 2 -m 512M -kernel $VMLINUX -initrd $INITRAMFS_a -append "$line" \
        -device pcie-root-port,id=rp0,chassis=1 -device vfio-pci,host=$nvme0,bus=rp0 -d cpu_reset -D $J/resets
}
guests=0 strait_deaths=0 qemu_deaths=0
while [ $guests -lt {guests} ]; do
    guests=$((guests + 1))
    for monitor in strait qemu; do
        ${monitor}_guest </dev/null >$J/now.serial 2>$J/now.err &
        pid=$!
        left=240
        while [ $left -gt 0 ] && [ -d /proc/$pid ]; do left=$((left - 1)); sleep 1; done
        [ $left -gt 0 ] || echo "$monitor $guests: still there after 240 s" >>$J/now.err
        kill -9 $pid 2>/dev/null
        wait $pid
        status=$?
        if ! grep -q 'LAB steps=done' $J/now.serial; then
            eval "${monitor}_deaths=\$((${monitor}_deaths + 1))"
            { echo "== $monitor, guest $guests, status $status"; tail -5 $J/now.serial; cat $J/now.err; } >>$J/deaths
            # Registers and code at the reset by which a triple fault ends QEMU's guest.
            [ $monitor != qemu ] || grep -a -A 20 'CPU Reset' $J/resets | tail -60 >>$J/deaths
        fi
    done
    echo "$guests strait $strait_deaths qemu $qemu_deaths" >$J/count
done
kill $burners 2>/dev/null
echo "LAB figure.deaths=of $guests guests each: strait $strait_deaths, QEMU $qemu_deaths"
"#;

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    let mut all = vec![
        Scenario::new(
            "host-starts",
            HostKind::Main,
            "200 machines begin and end, strait's and QEMU's in turns, and the emulated host stands still in none",
        )
        .strait_only()
        .nightly()
        .limit(3600)
        .script(COUNT_STARTS.replace("{starts}", &STARTS.to_string()))
        .check(|outcome| {
            let starts = outcome.text("starts");
            if starts.trim().parse() == Ok(STARTS) { Ok(()) } else { Err(format!("starts: {starts}")) }
        }),
    ];
    for (host, threads) in [(HostKind::Main, "two-threads"), (HostKind::OneThread, "one-thread")] {
        for (burners, load) in [("", "quiet"), ("1 2", "loaded")] {
            let about =
                format!("guests of two CPUs that die under each monitor: {load}, {threads}");
            let script = COUNT_DEATHS.replace("{burners}", burners).replace("{guests}", "50");
            all.push(
                Scenario::new(format!("host-deaths-{load}-{threads}"), host, about)
                    .strait_only()
                    .nightly()
                    .limit(6 * 3600)
                    .vm(Vm::new("a", "").ends(Ending::Whatever))
                    .script(script)
                    .check(|outcome| {
                        // A death that only strait's guests die is strait's.
                        let count = outcome.text("count");
                        let words: Vec<&str> = count.split_whitespace().collect();
                        let [_, "strait", strait, "qemu", qemu] = words[..] else {
                            return Err(format!("not counted: {count}"));
                        };
                        let told = format!("strait {strait}, QEMU {qemu}; see deaths in the logs");
                        if strait == "0" || qemu != "0" { Ok(()) } else { Err(told) }
                    }),
            );
        }
    }
    all
}
