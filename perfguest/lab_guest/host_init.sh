#!/bin/busybox sh
# SPDX-License-Identifier: Apache-2.0
# First process of the lab's host: puts together a root from the outer machine's file system and hands over to the agent.
# The lab writes /config, which sets kernel_modules and release, and /shares, a line "TAG PATH" for each directory that is shared read-write.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev

fail() {
	echo "PERFGUEST-LAB-FAILED $*"
	exit 1
}

while read -r module; do
	insmod "/modules/$module" || fail "insmod $module"
done < /modules/order
. /config

options=trans=virtio,version=9p2000.L,msize=512000
mkdir -p /lower /upper /new
mount -t 9p -o "$options,cache=loose,ro" hostroot /lower || fail "mount of the outer root"
mount -t tmpfs -o size=80% upper /upper
mkdir -p /upper/data /upper/work
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/work overlay /new || fail "overlay"

for dir in proc sys dev run; do
	[ -d /new/$dir ] || mkdir /new/$dir
done
mount --move /proc /new/proc
mount --move /sys /new/sys
mount --move /dev /new/dev
mkdir -p /new/dev/pts /new/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /new/dev/pts
mount -t tmpfs shm /new/dev/shm
mount -t tmpfs run /new/run
mount -t debugfs debugfs /new/sys/kernel/debug
mount -t tracefs tracefs /new/sys/kernel/tracing
ln -s /proc/self/fd /new/dev/fd
ln -s /proc/self/fd/0 /new/dev/stdin
ln -s /proc/self/fd/1 /new/dev/stdout
ln -s /proc/self/fd/2 /new/dev/stderr
mkdir -p /new/dev/virtio-ports
for port in /new/sys/class/virtio-ports/*; do
	ln -s "../${port##*/}" "/new/dev/virtio-ports/$(cat "$port/name")"
done

while IFS=' ' read -r tag path; do
	mkdir -p "/new$path"
	mount -t 9p -o "$options,cache=mmap" "$tag" "/new$path" || fail "mount of $path"
done < /shares
if [ "$kernel_modules" != "/lib/modules/$release" ]; then
	mkdir -p "/new/lib/modules/$release"
	mount --bind "/new$kernel_modules" "/new/lib/modules/$release" || fail "mount of $kernel_modules"
fi
ip link set lo up
hostname perfguest-lab
# The emulator is slow, and perf would take it for its own sampling being too slow and turn the rate down.
echo 0 > /new/proc/sys/kernel/perf_cpu_time_max_percent

lab=/run/perfguest-lab
mkdir -p /new$lab
cp /bin/busybox /agent.sh /agent.json /new$lab/
exec switch_root /new $lab/busybox sh $lab/agent.sh
