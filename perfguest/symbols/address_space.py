# SPDX-License-Identifier: Apache-2.0
"""Which file was mapped where, in every process and at every moment, from perf's MMAP, FORK and COMM records."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import repeat

import numpy as np
import numpy.typing as npt

from perfguest import _native
from perfguest.formats.perf_data import PerfData
from perfguest.formats.perf_timeline import latest

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

_BEFORE_ALL = np.iinfo(np.int64).min
_CPUMODE_KERNEL, _CPUMODE_USER = 1, 2
_MAP, _EXEC, _FORK = 0, 1, 2


@dataclass
class _Image:
    """What a process has mapped between two execs. A forked one begins with the first ``inherited`` rows of its parent's."""

    pid: int
    start: int
    parent: _Image | None = None
    inherited: int = 0
    rows: list[int] = field(default_factory=list)

    def all_rows(self) -> list[int]:
        """Rows of the table of mappings, oldest first."""
        parts, image, count = [], self, len(self.rows)
        while True:
            parts.append(image.rows[:count])
            if image.parent is None:
                break
            count, image = image.inherited, image.parent
        return [row for part in reversed(parts) for row in part]


class AddressSpaces:
    """The mappings of a recording's processes.

    A fork copies the parent's, an exec begins anew, and a later mapping hides what it covers of older ones: munmap(2) is not recorded.
    """

    def __init__(self, perf_data: PerfData) -> None:
        mmaps = perf_data.mmaps
        self.mmaps = mmaps
        end = mmaps.start + mmaps.length
        self._end: U64 = np.where(end < mmaps.start, np.uint64(np.iinfo(np.uint64).max), end)
        user = (mmaps.cpumode <= _CPUMODE_USER) & (mmaps.cpumode != _CPUMODE_KERNEL) & (mmaps.pid >= 0)
        self._images = _build_images(perf_data, np.flatnonzero(user).tolist())
        self._image_pid: I64 = np.array([image.pid for image in self._images], np.int64)
        self._image_start: I64 = np.array([image.start for image in self._images], np.int64)
        self._change_pid = np.concatenate([self._image_pid, mmaps.pid[user].astype(np.int64)])
        self._change_time = np.concatenate([self._image_start, mmaps.time[user]])

    def epoch(self, pid: I32, time: I64) -> I64:
        """A number for each process and moment: where two have the same, the same is mapped. -1: nothing is known to be."""
        return latest(self._change_pid, self._change_time, pid.astype(np.int64), time)

    def find(self, pid: I32, time: I64, addresses: U64) -> I64:
        """For each address in a process at a moment the row in ``mmaps`` of its mapping, or -1."""
        image = latest(self._image_pid, self._image_start, pid.astype(np.int64), time)
        order = np.lexsort((addresses, image))
        rows = np.full(len(order), -1, np.int64)
        numbers, firsts = np.unique(image[order], return_index=True)
        known = int(np.searchsorted(numbers, 0))
        if known == len(numbers):
            return rows
        parts = [self._images[number].all_rows() for number in numbers[known:].tolist()]
        mappings = np.array([row for part in parts for row in part], np.int64)
        mapping_starts = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        order = order[firsts[known] :]
        address_starts = np.append(firsts[known:], len(image)) - firsts[known]
        mmaps = self.mmaps
        found = _native.find_mappings(
            mmaps.start[mappings], self._end[mappings], mmaps.time[mappings], mappings, mapping_starts, addresses[order], time[order], address_starts
        )
        rows[order] = np.frombuffer(found, np.int64)
        return rows


def _happened(time: I64, offset: I64, kind: int, pid: I32, detail: I64 | I32) -> Iterator[tuple[int, int, int, int, int]]:
    return zip(time.tolist(), offset.tolist(), repeat(kind), pid.tolist(), detail.tolist())  # one has no end


def _build_images(perf_data: PerfData, rows: list[int]) -> list[_Image]:
    images: list[_Image] = []
    current: dict[int, _Image] = {}
    # Within execve(2) the user's registers still are those of the old program, so that ends only when the new one's first mapping is there.
    exec_pending: set[int] = set()

    def begin(pid: int, start: int, parent: _Image | None = None) -> _Image:
        image = _Image(pid, start, parent, len(parent.rows) if parent else 0)
        images.append(image)
        current[pid] = image
        return image

    mmaps, comms, forks = perf_data.mmaps, perf_data.comms, perf_data.forks
    chosen = np.array(rows, np.int64)
    maps = _happened(mmaps.time[chosen], mmaps.offset[chosen], _MAP, mmaps.pid[chosen], chosen)
    begun = np.flatnonzero(comms.exec)
    execs = _happened(comms.time[begun], comms.offset[begun], _EXEC, comms.pid[begun], begun)
    new = np.flatnonzero(forks.pid != forks.ppid)
    births = _happened(forks.time[new], forks.offset[new], _FORK, forks.pid[new], np.where(forks.exec, -1, forks.ppid)[new])
    for time, _, kind, pid, detail in sorted([*maps, *execs, *births]):
        if kind == _EXEC:
            exec_pending.add(pid)
            continue
        if kind == _FORK:
            begin(pid, time, current.get(detail))
        elif pid in exec_pending:
            begin(pid, time)
        elif pid not in current:
            # It was there before recording began.
            begin(pid, _BEFORE_ALL)
        exec_pending.discard(pid)
        if kind == _MAP:
            current[pid].rows.append(detail)
    return images
