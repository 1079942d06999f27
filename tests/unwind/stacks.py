# SPDX-License-Identifier: Apache-2.0
"""A recording's samples one by one, with their registers and copies of stacks, and what its snapshot holds for them: plain Python, for tests."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from perfguest.formats.guest_format import parse_format
from perfguest.formats.guest_snapshot import DIRECTORY, GuestSnapshot, read_snapshot
from perfguest.formats.recording import RecordingPaths
from perfguest.proto import guest_pb2
from tests.unwind.sampler import REGISTERS, STACK_KERNEL, STACK_TASK, STACK_USER, USER

_HEAD = struct.Struct("<16sII")
# Without PCID, flags, and the bit that tells a process's user table from its kernel table.
_CR3 = 0x000F_FFFF_FFFF_E000


@dataclass(frozen=True)
class Copy:
    """Guest memory from ``address`` on."""

    kind: int
    address: int
    data: bytes


@dataclass(frozen=True)
class Sample:
    """``registers``: by QEMU's names, RIP too. ``task``: (pid, tgid, start); ``comm``: its name."""

    user: bool
    registers: dict[str, int]
    cr3: int
    time: int
    task: tuple[int, int, int]
    comm: str
    copies: list[Copy]

    @property
    def has_user_copy(self) -> bool:
        return any(copy.kind == STACK_USER for copy in self.copies)


@dataclass
class Evidence:
    """All of a recording."""

    directory: Path
    samples: list[Sample]
    snapshot: GuestSnapshot
    _by_table: dict[tuple[int, int], list[guest_pb2.Process]] = field(default_factory=dict)

    @property
    def vm_kernel(self) -> guest_pb2.VmKernel:
        return self.snapshot.kernels[0]

    def kernel(self) -> guest_pb2.Kernel:
        kernel = self.snapshot.kernel(self.vm_kernel.kernel)
        assert kernel is not None
        return kernel

    def process_of(self, sample: Sample) -> guest_pb2.Process | None:
        """The process as it was read last before the sample, else as it was read first: with the page table that the sample had."""
        if not self._by_table:
            for process in self.snapshot.processes:
                self._by_table.setdefault((process.tgid, process.cr3 & _CR3), []).append(process)
        readings = self._by_table.get((sample.task[1], sample.cr3 & _CR3), [])
        at = bisect_right([reading.time for reading in readings], sample.time) - 1
        return readings[max(at, 0)] if readings else None


def read_evidence(directory: Path) -> Evidence:
    data = RecordingPaths(directory).guest_stream.read_bytes()
    snapshot = read_snapshot(directory / DIRECTORY)
    assert snapshot is not None and not snapshot.notes
    return Evidence(directory, list(_samples(data)), snapshot)


def _samples(data: bytes) -> Iterator[Sample]:
    _, _, length = _HEAD.unpack_from(data)
    layouts = parse_format(data[_HEAD.size : _HEAD.size + length].decode())
    layout, section = layouts["sample"].dtype, layouts["section"].dtype
    at = -(-(_HEAD.size + length) // 8) * 8
    while at < len(data):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == layouts["sample"].type:
            fields = np.frombuffer(data, layout, 1, at)[0]
            yield _sample(fields, list(_copies(data, at + layout.itemsize, at + size, section)))
        at += size


def _sample(fields: np.void, copies: list[Copy]) -> Sample:
    registers = dict(zip(REGISTERS, (int(value) for value in fields["regs"]), strict=True)) | {"RIP": int(fields["ip"])}
    task = int(fields["task_pid"]), int(fields["task_tgid"]), int(fields["task_start"])
    comm = fields["task_comm"].decode(errors="replace")
    return Sample(bool(int(fields["flags"]) & USER), registers, int(fields["cr3"]), int(fields["time"]), task, comm, copies)


def _copies(data: bytes, at: int, end: int, section: np.dtype[np.void]) -> Iterator[Copy]:
    while at < end:
        head = np.frombuffer(data, section, 1, at)[0]
        at += section.itemsize
        size = int(head["size"])
        if int(head["kind"]) in {STACK_KERNEL, STACK_TASK, STACK_USER}:
            yield Copy(int(head["kind"]), int(head["address"]), data[at : at + size])
        at += size + 7 & ~7
