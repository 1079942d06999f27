# SPDX-License-Identifier: Apache-2.0
"""Which file was mapped where, in every process and at every moment, from perf's MMAP, FORK and COMM records."""

from __future__ import annotations

from dataclasses import dataclass, field
from heapq import merge

import numpy as np
import numpy.typing as npt

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
        for number, first, last in zip(numbers.tolist(), firsts.tolist(), np.append(firsts, len(order))[1:].tolist(), strict=True):
            if number >= 0:
                part = order[first:last]
                rows[part] = self._find_in(self._images[number], time[part], addresses[part])
        return rows

    def _find_in(self, image: _Image, time: I64, addresses: U64) -> I64:
        """``addresses`` ascending: each mapping covers a run of them."""
        found = np.full(len(addresses), -1, np.int64)
        rows = np.array(image.all_rows(), np.int64)
        if not len(rows):
            return found
        low, high = np.searchsorted(addresses, self.mmaps.start[rows]), np.searchsorted(addresses, self._end[rows])
        covering = np.flatnonzero(high > low)
        for row, first, last in zip(rows[covering].tolist(), low[covering].tolist(), high[covering].tolist(), strict=True):
            found[first:last][time[first:last] >= self.mmaps.time[row]] = row
        return found


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
    maps = ((int(mmaps.time[row]), int(mmaps.offset[row]), _MAP, int(mmaps.pid[row]), row) for row in rows)
    execs = ((int(comms.time[row]), int(comms.offset[row]), _EXEC, int(comms.pid[row]), 0) for row in np.flatnonzero(comms.exec).tolist())
    new = np.flatnonzero(forks.pid != forks.ppid).tolist()
    parents = np.where(forks.exec, -1, forks.ppid)
    births = ((int(forks.time[row]), int(forks.offset[row]), _FORK, int(forks.pid[row]), int(parents[row])) for row in new)
    for time, _, kind, pid, detail in merge(maps, execs, births):
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
