#!/bin/busybox sh
# The guest's first program, from the initramfs. It loads the modules, lays a tmpfs over the host's root so that the
# guest can write anywhere and the host sees nothing of it, and goes on there with guest-run.sh.

/bin/busybox mkdir -p /proc /sys /host /written
/bin/busybox --install -s /bin
export PATH=/bin

mount -t devtmpfs dev /dev
mount -t proc proc /proc
mount -t sysfs sys /sys

while read -r module; do
    insmod "/modules/$module.ko"
done < /modules/order

# cache=loose: the guest keeps what it has read, and need not ask whether the host has changed it since.
mount -t 9p -o ro,trans=virtio,version=9p2000.L,msize=524288,cache=loose root /host
mount -t tmpfs -o size=75% written /written
mkdir /written/upper /written/work
mount -t overlay -o lowerdir=/host,upperdir=/written/upper,workdir=/written/work overlay /root

mkdir -p /root/run/triptych-vm
mount -t 9p -o ro,trans=virtio,version=9p2000.L orders /root/run/triptych-vm
for folder in dev proc sys; do
    mount --move "/$folder" "/root/$folder"
done
exec switch_root /root /bin/bash /run/triptych-vm/guest-run.sh
