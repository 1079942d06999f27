#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# First process of the lab's guest: sends the kernel's symbol table out through a virtio port, then becomes the workload.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
echo "PERFGUEST-GUEST-INIT $(uname -r)"
while read -r module; do
	insmod "/modules/$module" || echo "PERFGUEST-WORKLOAD-FAILED insmod $module"
done < /modules/order
# A port gets its name some time after its driver.
until name=$(grep -lsx perfguest.kallsyms /sys/class/virtio-ports/*/name); do
	sleep 0.1
done
port=${name%/name}
{ cat /proc/kallsyms; echo PERFGUEST-KALLSYMS-END; } > "/dev/${port##*/}"
exec /bin/workload
