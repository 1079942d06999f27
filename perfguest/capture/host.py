# SPDX-License-Identifier: Apache-2.0
"""The host that is recorded: where its kernel's files are, and who it is."""

from __future__ import annotations

import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from perfguest.proto import recording_pb2 as pb

_NOTE = struct.Struct("<III")
_NT_GNU_BUILD_ID = 3


@dataclass(frozen=True)
class HostPaths:
    """Where the kernel's file systems are mounted."""

    proc: Path = Path("/proc")
    sys: Path = Path("/sys")
    dev: Path = Path("/dev")
    debugfs: Path = Path("/sys/kernel/debug")


def describe(paths: HostPaths) -> pb.Host:
    """The host as a recording tells it; what this kernel does not tell stays empty."""
    name = os.uname()
    return pb.Host(
        hostname=name.nodename,
        release=name.release,
        cpu_vendor=cpu_info(paths).get("vendor_id", ""),
        online_cpus=len(online_cpus(paths)),
        kernel_build_id=build_id(_read_bytes(paths.sys / "kernel/notes")),
    )


def cpu_info(paths: HostPaths) -> dict[str, str]:
    """The first processor of ``/proc/cpuinfo``; empty if it cannot be read."""
    first = _read_bytes(paths.proc / "cpuinfo").decode(errors="replace").split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def online_cpus(paths: HostPaths) -> list[int]:
    """CPU numbers from ``/sys/devices/system/cpu/online``; those this process may use if it is not there."""
    text = _read_bytes(paths.sys / "devices/system/cpu/online").decode(errors="replace")
    return parse_cpu_list(text) or sorted(os.sched_getaffinity(0))


def parse_cpu_list(text: str) -> list[int]:
    """``0-3,8`` as numbers, without what is no range of CPUs (at most 8,192, as in the kernel)."""
    cpus: set[int] = set()
    for part in text.strip().split(","):
        match = re.fullmatch(r"([0-9]{1,4})(?:-([0-9]{1,4}))?", part)
        if match:
            cpus.update(range(int(match[1]), min(int(match[2] or match[1]), 8191) + 1))
    return sorted(cpus)


def build_id(notes: bytes) -> bytes:
    """The GNU build id in ELF notes (of ``/sys/kernel/notes``); empty if there is none."""
    offset = 0
    while offset + _NOTE.size <= len(notes):
        name_size, desc_size, kind = _NOTE.unpack_from(notes, offset)
        name_at = offset + _NOTE.size
        desc_at = name_at + -(-name_size // 4) * 4
        if kind == _NT_GNU_BUILD_ID and notes[name_at : name_at + name_size] == b"GNU\0":
            return notes[desc_at : desc_at + desc_size]
        offset = desc_at + -(-desc_size // 4) * 4
    return b""


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
