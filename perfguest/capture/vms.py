# SPDX-License-Identifier: Apache-2.0
"""The VMs that run on this host, found in /proc: processes that hold a KVM virtual machine open, whatever VMM they are."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from perfguest.errors import UsageError
from perfguest.proto import recording_pb2 as pb
from perfguest.terminal import printable

_VM_LINK = "anon_inode:kvm-vm"
#: A VMM opens its VM soon after it starts; a process that had none in so many looks gets one more look at the end only.
_LOOKS = 10


@dataclass(frozen=True)
class Vm:
    """A VMM process. ``start_time``: clock ticks after boot, tells a reused pid. ``threads``: names by thread id. Texts may hold anything."""

    pid: int
    name: str
    comm: str
    command_line: tuple[str, ...]
    start_time: int
    threads: dict[int, str] = field(default_factory=dict)

    def to_proto(self) -> pb.VirtualMachine:
        threads = [pb.Thread(tid=tid, comm=comm) for tid, comm in sorted(self.threads.items())]
        return pb.VirtualMachine(pid=self.pid, name=self.name, comm=self.comm, command_line=self.command_line, start_time=self.start_time, threads=threads)


class VmList:
    """All VMs seen so far, also those that have ended since. ``proc`` is /proc."""

    def __init__(self, proc: Path = Path("/proc")) -> None:
        self._proc = proc
        self._vms: dict[tuple[int, int], Vm] = {}
        self._looks: dict[tuple[int, int], int] = {}

    @property
    def vms(self) -> list[Vm]:
        return sorted(self._vms.values(), key=lambda vm: (vm.pid, vm.start_time))

    def refresh(self, thorough: bool = False) -> None:
        """Looks for new VMs and new threads. ``thorough``: also in processes that had no VM in several looks before."""
        for pid in _pids(self._proc):
            start = _start_time(self._proc / str(pid))
            if start is None:
                continue
            key = (pid, start)
            known = self._vms.get(key)
            looks = self._looks.get(key, 0)
            if known is None and looks >= _LOOKS and not thorough:
                continue
            self._looks[key] = looks + 1
            if known is not None or holds_vm(self._proc / str(pid)):
                self._vms[key] = _describe(self._proc / str(pid), pid, start, known)


def find_vms(proc: Path = Path("/proc")) -> list[Vm]:
    """The VMs that run now."""
    found = VmList(proc)
    found.refresh()
    return found.vms


def select_vms(vms: Sequence[Vm], pids: Iterable[int], name: str | None) -> list[Vm]:
    """Those that -p and --vm ask for; all if neither is given. Raises :class:`UsageError`, with the VMs there are, if one asked for is not among them."""
    by_pid = {vm.pid: vm for vm in vms}
    wanted = list(dict.fromkeys(pids))
    unknown = [pid for pid in wanted if pid not in by_pid]
    if unknown:
        raise UsageError(f"process {unknown[0]} runs no VM", _there_are(vms))
    if name is None:
        return [by_pid[pid] for pid in wanted] if wanted else list(vms)
    named = [vm for vm in vms if vm.name == name]
    if not named:
        raise UsageError(f"no VM is named {printable(name)}", _there_are(vms))
    return [vm for vm in named if vm.pid in wanted] if wanted else named


def vm_name(comm: str, command_line: Sequence[str], pid: int) -> str:
    """The name that the VMM was given on its command line, else COMM-PID.

    QEMU: ``-name guest=NAME,…`` or ``-name NAME``; Firecracker and its jailer: ``--id``; crosvm, kvmtool and others: ``--name``.
    """
    for option, value in _options(command_line):
        if option == "-name" and (name := _qemu_name(value)):
            return name
        if option in ("--id", "--name", "--vm-name") and value:
            return value
    return f"{comm}-{pid}"


def _options(command_line: Sequence[str]) -> Iterable[tuple[str, str]]:
    for at, word in enumerate(command_line):
        option, equals, value = word.partition("=")
        if equals and option.startswith("--"):
            yield option, value
        elif word.startswith("-") and at + 1 < len(command_line):
            # QEMU takes all its options with one dash or two.
            yield ("-name" if word == "--name" and "qemu" in command_line[0] else word), command_line[at + 1]


def _qemu_name(value: str) -> str:
    # QEMU writes a comma within a value twice.
    parts = [part.replace("\0", ",") for part in value.replace(",,", "\0").split(",")]
    named = dict(part.partition("=")[::2] for part in parts)
    return named.get("guest") or ("" if "=" in parts[0] else parts[0])


def _there_are(vms: Sequence[Vm]) -> str:
    if not vms:
        return "No VM runs on this host."
    return "VMs on this host: " + ", ".join(f"{printable(vm.name)} (pid {vm.pid})" for vm in vms) + "."


def _pids(proc: Path) -> list[int]:
    return [int(name) for name in os.listdir(proc) if re.fullmatch(r"[0-9]+", name)]  # noqa: PTH208 - thousands of entries, a second apart


def _start_time(process: Path) -> int | None:
    try:
        stat = (process / "stat").read_bytes()
    except OSError:
        return None
    # The name, field 2, may hold spaces and parentheses.
    fields = stat[stat.rfind(b")") + 1 :].split()
    return int(fields[19]) if len(fields) > 19 and fields[19].isdigit() else None


def holds_vm(process: Path) -> bool:
    """Whether the process of this directory under /proc has a VM now."""
    try:
        with os.scandir(process / "fd") as entries:
            return any(_link(entry.path) == _VM_LINK for entry in entries)
    except OSError:
        return False


def _link(path: str) -> str:
    try:
        return os.readlink(path)  # noqa: PTH115 - as above
    except OSError:
        return ""


def _describe(process: Path, pid: int, start_time: int, known: Vm | None) -> Vm:
    threads = dict(known.threads) if known else {}
    # If it has ended, what was seen before stands.
    with contextlib.suppress(OSError):
        threads |= {int(task.name): _comm(task) for task in (process / "task").iterdir()}
    if known:
        return Vm(pid, known.name, known.comm, known.command_line, start_time, threads)
    comm = _comm(process)
    command_line = tuple(_read(process / "cmdline").split("\0")[:-1])
    return Vm(pid, vm_name(comm, command_line, pid), comm, command_line, start_time, threads)


def _comm(process: Path) -> str:
    return _read(process / "comm").rstrip("\n")


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace")
    except OSError:
        return ""
