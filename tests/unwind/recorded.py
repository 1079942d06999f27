# SPDX-License-Identifier: Apache-2.0
"""One guest, booted once, under all workloads one after the other, sampled all the time: a recording, and what the guest itself says of that time."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from tests.guest.emulated import EmulatedGuest
from tests.unwind.disk import HOME
from tests.unwind.sampler import Sampler

# QEMU 7.2 gives wrong flags after cmpxchg16b now and then, which newer kernels do not survive.
_CPU = "max,la57=off,cx16=off"
_MODULES = ("virtio_pci", "virtio_blk", "crc32c_generic", "ext4")
_STORM = f"chroot /disk {HOME}/storm /work /tmp/storm"
_OPENSSL = (
    "(while [ ! -e /tmp/end ]; do chroot /disk /usr/bin/openssl speed -seconds 2 -bytes 8192 sha256 sha512 aes-256-cbc chacha20-poly1305 rsa2048 ecdhx25519;"
    f" for file in /usr/bin/python3 {HOME}/truth; do chroot /disk /usr/bin/openssl dgst -sha1 $file;"
    " chroot /disk /usr/bin/openssl enc -aes-128-ctr -pbkdf2 -k secret -in $file -out /tmp/sealed; done; : >/disk/tmp/openssl; done) >/dev/null 2>&1"
)
_WORKLOADS = {
    "storm": _STORM,
    "truth": f"chroot /disk {HOME}/truth {HOME}/truth_plugin.so /tmp/truth",
    "perl": f"chroot /disk /usr/bin/perl {HOME}/load.pl /tmp/perl",
    "python3": f"chroot /disk /usr/bin/python3 {HOME}/load.py /tmp/python3",
    "openssl": _OPENSSL,
}


@dataclass(frozen=True)
class Counts:
    """How many samples are taken of what runs."""

    storm: int = 2200
    truth: int = 1800
    programs: int = 2100
    idle: int = 150
    perf: int = 1000
    cold: int = 300


@dataclass
class Recorded:
    """``phases``: which samples were taken while what ran. ``perf_script``: what ``perf script`` in the guest says of the phase "perf".

    ``cold``: another recording, from when the guest had read of its files no more than what it needed to run them.
    """

    directory: Path
    cold: Path
    release: str
    phases: dict[str, range] = field(default_factory=dict)
    perf_script: str = ""
    console: str = ""


def record(kernel: str, disk: Path, directory: Path, counts: Counts) -> Recorded:
    """Boots the kernel and records in ``directory``."""
    with EmulatedGuest(kernel, modules=_MODULES, cpu=_CPU, disk=disk, scratch=True, memory=768) as guest:
        result = Recorded(directory / "perfguest.data", directory / "cold.data", guest.release)
        guest.run("mkdir /disk && mount -t ext4 /dev/vda /disk && ifconfig lo up")
        guest.run("for at in proc sys dev tmp; do mount --bind /$at /disk/$at || exit; done")
        with Sampler(guest, result.cold) as sampler:
            _start(guest, *_WORKLOADS)
            sampler.take(counts.cold)
        _end(guest)
        # As after an installation or a backup: all of the files are in memory.
        guest.run("find /disk -xdev -type f | xargs cat >/dev/null")
        with Sampler(guest, result.directory) as sampler:
            _take(result, guest, sampler, ["storm"], counts.storm)
            _take(result, guest, sampler, ["truth"], counts.truth)
            _take(result, guest, sampler, ["perl", "python3", "openssl"], counts.programs)
            _take(result, guest, sampler, [], counts.idle)
            _take_with_perf(result, guest, sampler, counts.perf)
            _start(guest, "perl", "python3", "truth")
            # Their files are read once more, as they are then.
        result.console = guest.console.read_text(errors="replace")
    return result


def _start(guest: EmulatedGuest, *names: str) -> None:
    for name in names:
        guest.run(f"rm -f /tmp/{name}; {_WORKLOADS[name]} >/tmp/{name}.log 2>&1 & echo $! >/tmp/{name}.job")
    for name in names:
        _wait(guest, f"[ -e /tmp/{name} ]", f"/tmp/{name}.log")


def _wait(guest: EmulatedGuest, condition: str, log: str) -> None:
    """Until a condition in the guest's shell holds; fails with the log after three minutes."""
    guest.run(f"i=0; until {condition} || [ $i = 1800 ]; do i=$((i+1)); usleep 100000; done; {condition} || {{ cat {log}; false; }}")


def _end(guest: EmulatedGuest) -> None:
    """Ends all that runs from the disk, and the shells that would start more of it."""
    programs = "for p in /proc/[0-9]*; do readlink $p/exe; done | grep ^/disk/"
    shells = "for j in /tmp/*.job; do readlink /proc/$(cat $j)/exe; done"
    ours = f'[ -n "$( ({programs}; {shells}) 2>/dev/null)" ]'
    kill = "for p in /proc/[0-9]*; do case $(readlink $p/exe) in /disk/*) kill -9 ${p#/proc/};; esac; done 2>/dev/null"
    guest.run(f"touch /tmp/end; while {ours}; do {kill}; usleep 10000; done; rm -f /tmp/end /tmp/*.job")


def _take(result: Recorded, guest: EmulatedGuest, sampler: Sampler, names: list[str], count: int) -> None:
    _start(guest, *names)
    first = sampler.count
    sampler.take(count)
    result.phases["+".join(names) or "idle"] = range(first, sampler.count)
    _end(guest)


def _take_with_perf(result: Recorded, guest: EmulatedGuest, sampler: Sampler, count: int) -> None:
    """With perf sampling in the guest at the same time, for as long."""
    _start(guest, "storm")
    guest.run("chroot /disk /usr/bin/perf record -q -a -g -e cpu-clock -F 999 -o /tmp/perf.data >/tmp/perf.log 2>&1 & echo $! >/tmp/perf.pid")
    # At first perf reads of all processes what they have mapped, and takes no samples yet.
    _wait(guest, "[ $(stat -c %s /tmp/perf.data 2>/dev/null || echo 0) -gt 100000 ]", "/tmp/perf.log")
    first = sampler.count
    sampler.take(count)
    result.phases["perf"] = range(first, sampler.count)
    guest.run("kill -INT $(cat /tmp/perf.pid); while [ -e /proc/$(cat /tmp/perf.pid) ]; do usleep 10000; done")
    _end(guest)
    result.perf_script = guest.run("chroot /disk /usr/bin/perf script -i /tmp/perf.data -F comm,ip,sym 2>/dev/null").decode(errors="replace")
