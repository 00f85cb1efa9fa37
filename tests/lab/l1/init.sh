#!/bin/busybox sh
# /init of L1, the emulated host: brings up L0's file system under a tmpfs overlay and hands over to loop.sh there.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /host /over /root
while read -r module; do
    insmod "/modules/$module.ko" || echo "lab: insmod $module failed"
done </modules/order
mount -t 9p -o trans=virtio,version=9p2000.L,ro,msize=1048576,cache=loose host /host ||
    { echo "lab: no 9p root"; poweroff -f; }
mount -t tmpfs over /over
mkdir /over/upper /over/work
mount -t overlay -o lowerdir=/host,upperdir=/over/upper,workdir=/over/work root /root
cd /root || poweroff -f
# /tmp and /run stay L0's under the overlay: the repository may lie there.
mkdir -p proc sys dev run/lab tmp lab
mount -t tmpfs lab run/lab
mkdir -p run/lab/bin run/lab/job
cp /bin/busybox run/lab/bin/busybox
cp -r /later run/lab/modules
mount -t 9p -o trans=virtio,version=9p2000.L,msize=1048576,cache=none,access=any lab lab
mount -t tracefs trace /sys/kernel/tracing
mkdir -p /dev/pts /dev/shm
mount -t devpts pts /dev/pts
mount -t tmpfs shm /dev/shm
mount --rbind /proc proc
mount --rbind /sys sys
mount --rbind /dev dev
ip link set lo up
exec chroot /root /run/lab/bin/busybox sh /lab/loop.sh
