//! A card that the host's console draws on: refused, taken with leave, and what of the console comes back.

use crate::{
    hosts::HostKind,
    picture::Picture,
    scenario::{Scenario, Vm},
};

/// The scenarios.
pub(crate) fn scenarios() -> Vec<Scenario> {
    vec![
        Scenario::new(
            "release-fb",
            HostKind::Desk,
            "a card under vesafb is refused; with --release-fb a guest draws on it; the console is told or put back",
        )
        .strait_only()
        .vm(Vm::new("a", "draw,strait_passed_this_GPU_to_a_guest;pci;sleep,8")
            .device_with("vga", "managed=yes")
            .modules(&["bochs"])
            .flags("--allow-boot-vga --release-fb"))
        .script(RELEASE)
        .reports("a", "display.driver", "bochs-drm")
        .check(|outcome| {
            let picture = Picture::read(&outcome.job.join("picture.ppm"));
            picture.map_err(|error| format!("{error:#}"))?.shows_text().map(drop)
        }),
    ]
}

/// Linux deletes the platform device of the framebuffer when vfio-pci takes a VGA card. So what comes back is shown with
/// a probe that fails after the framebuffer let go; the guest comes last.
const RELEASE: &str = r#"give_back $vga
fb=/sys/bus/platform/devices/vesa-framebuffer.0
screen() { grep vesafb /proc/iomem; cat /proc/fb; ls $fb/driver/unbind; cat /sys/class/vtconsole/vtcon1/bind; }
state() { bindings; screen; }
[ "$(screen | wc -l)" = 4 ] || { echo "FAIL: no vesafb on this host: $(screen)"; exit 1; }
state >$J/before
refused() {
    strait_to $1 $2
    local status=$?
    [ $status = 5 ] || echo "FAIL: $1: exit status $status: $(cat $J/$1.err)"
    says $1.err "error[E1205]: the host's framebuffer vesafb lies in a BAR of 0000:00:04.0"
    says $1.err "say --release-fb"
    state >$J/after
    same "$1 changed the host" before after
}
refused by-bind "bind $vga --allow-boot-vga"
refused by-run "run --kernel $VMLINUX --vfio $vga --allow-boot-vga"
strait_to doctor doctor $vga
says doctor.out "FAIL  framebuffer: the host's framebuffer vesafb lies in a BAR"
strait_to both bind $vga
says both.err "--allow-boot-vga --release-fb"
strait_to dry bind $vga --allow-boot-vga --release-fb --dry-run || echo "FAIL: dry run: $(cat $J/dry.err)"
says dry.out "echo 0 > /sys/class/vtconsole/vtcon1/bind"
says dry.out "echo vesa-framebuffer.0 > /sys/bus/platform/drivers/vesa-framebuffer/unbind"
state >$J/after
same "a dry run changed the host" before after
# A program that draws: its framebuffer would keep the BAR.
sleep 100 9<>/dev/fb0 &
strait_to held bind $vga --allow-boot-vga --release-fb && echo "FAIL: taken from who draws"
says held.err "error[E1106]: programs draw on the host's framebuffer vesafb"
kill $!
# The framebuffer lets go, then the probe fails: all of it comes back.
echo >/tmp/probe && mount --bind /tmp/probe /sys/bus/pci/drivers_probe &&
    mount -o remount,ro,bind /sys/bus/pci/drivers_probe || echo "FAIL: no read-only file"
strait_to failed -v bind $vga --allow-boot-vga --release-fb && echo "FAIL: bound without a probe"
umount /sys/bus/pci/drivers_probe
says failed.err "error[E1105]"
says failed.err "vesa-framebuffer/unbind <- vesa-framebuffer.0"
says failed.err "vesa-framebuffer/bind <- vesa-framebuffer.0"
state >$J/after
same "the console is not as it was" before after
bindings >$J/before
vm_a &
wait_mark a drawn 100 || exit 1
grep vesafb /proc/iomem && echo "FAIL: the guest runs under vesafb"
sed -n '/ : 0000:00:04.0$/,/^  [^ ]/p' /proc/iomem >$J/iomem
says iomem vfio-pci
strait_to ps ps
says ps.out "the host's framebuffer vesafb had to let go"
sleep 2
signal screendump vga picture.ppm
wait
bindings >$J/after
same "the host is not as it was" before after
# This kernel has forgotten the framebuffer: said, and no reason for another exit status.
says a.err "warning[E1117]: the host's framebuffer vesafb does not come back: the kernel has removed vesa-framebuffer.0"
[ ! -e $fb ] || echo "FAIL: strait says that vesa-framebuffer.0 is gone, and it is there"
[ "$(cat $J/a.rc)" = 0 ] || echo "FAIL: exit status $(cat $J/a.rc)"
[ -z "$(ls /run/strait/journal)" ] || echo "FAIL: left behind: $(ls /run/strait/journal)"
"#;
