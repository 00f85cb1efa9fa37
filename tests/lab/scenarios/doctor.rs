//! What `strait doctor` tells a newcomer, typed as printed.

use crate::{
    hosts::HostKind,
    scenario::{Scenario, Vm},
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "doctor-next",
            HostKind::Main,
            "nothing is bound; the commands that strait doctor prints lead to a running guest",
        )
        .strait_only()
        .vm(Vm::new("a", "").bzimage())
        .script(SCRIPT)
        .check(|outcome| {
            let run = outcome.vm("a")?;
            let device = outcome.text("device");
            let seen = format!("[{}]", device.trim());
            if device.trim().len() == 9 && run.serial.contains(&seen) {
                Ok(())
            } else {
                Err(format!("the guest's kernel does not speak of the device {seen}"))
            }
        }),
    ]
}

/// This host keeps a kernel where distributions do; the initramfs is the agent's, which comes up and powers off.
const SCRIPT: &str = r#"for f in $PCI/*; do
    f=$(basename $f)
    [ $(driver $f) != vfio-pci ] || give_back $f
done
bindings >$J/bound.before
grep -q vfio-pci $J/bound.before && echo "FAIL: something is bound already"
mkdir -p /boot
cp $BZIMAGE /boot/vmlinuz-$(uname -r)
cp $INITRAMFS_a /boot/initrd.img-$(uname -r)
strait doctor >$J/doctor.out || { echo "FAIL: strait doctor ends with $?"; exit 1; }
strait doctor -v | grep -q 'PASS  KVM: API 12 with all' || echo "FAIL: no word of KVM's capabilities"
# The commands are the lines that stand in by four spaces or more.
awk '/^Next/ { on = 1 } on && /^    /' $J/doctor.out >$J/commands
# A backslash goes on in the next line; the last command is the guest.
awk '{ command = command $0 "\n" } !/\\$/ { n++; printf "%s", command >("'$J'/command." n); command = "" }' $J/commands
[ -e $J/command.3 ] && [ ! -e $J/command.4 ] || echo "FAIL: these are not three commands"
cat $J/command.1 $J/command.2 >$J/before.sh
cp $J/command.3 $J/run.sh
sh -ex $J/before.sh >$J/before.out 2>&1 || { echo "FAIL: $(tail -1 $J/before.out)"; exit 1; }
device=0000:$(sed 's/.*--vfio //' $J/run.sh | tail -1)
sed 's/^0x//' $PCI/$device/vendor $PCI/$device/device | tr -d '\n' | sed 's/^..../&:/' >$J/device
run_vm a sh $J/run.sh
bindings >$J/bound.after
cmp $J/bound.before $J/bound.after || echo "FAIL: the guest's end did not give it back"
rm /boot/vmlinuz-$(uname -r) /boot/initrd.img-$(uname -r)
"#;
