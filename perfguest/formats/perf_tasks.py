# SPDX-License-Identifier: Apache-2.0
"""What perf says of tasks: names, mappings, forks and exits, each a table in order of time."""

from __future__ import annotations

from dataclasses import dataclass
from heapq import merge

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats import perf_records
from perfguest.formats.perf_events import EventFinder
from perfguest.formats.perf_records import I32, I64, U8, U64, Records
from perfguest.formats.perf_timeline import latest

_MISC_COMM_EXEC = 1 << 13
_MISC_FORK_EXEC = 1 << 13
_MISC_MMAP_DATA = 1 << 13
_MISC_MMAP_BUILD_ID = 1 << 14
_PROT_READ, _PROT_EXEC = 1, 4


@dataclass(frozen=True)
class Comms:
    """PERF_RECORD_COMM. ``comm``: the task's new name; ``exec``: it came with an exec. ``offset`` orders records of equal time."""

    time: I64
    offset: I64
    pid: I32
    tid: I32
    comm: list[str]
    exec: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time)


@dataclass(frozen=True)
class Mmaps:
    """PERF_RECORD_MMAP and MMAP2. ``start``, ``length``, ``pgoff`` in bytes; ``prot`` as of mmap(2); ``build_id`` hex, empty if not recorded."""

    time: I64
    offset: I64
    pid: I32
    tid: I32
    start: U64
    length: U64
    pgoff: U64
    prot: I32
    cpumode: U8
    filename: list[str]
    build_id: list[str]

    def __len__(self) -> int:
        return len(self.time)


@dataclass(frozen=True)
class Tasks:
    """PERF_RECORD_FORK or EXIT: task ``tid`` of process ``pid``, made by task ``ptid`` of process ``ppid``.

    ``exec``: the process has since begun another program; so perf marks those that were there before recording, whose mappings it lists themselves.
    """

    time: I64
    offset: I64
    pid: I32
    ppid: I32
    tid: I32
    ptid: I32
    exec: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.time)


def decode_comms(path: str, records: Records, finder: EventFinder) -> Comms:
    """Raises :class:`FormatError` for a record too short."""
    records, time = _in_order(path, records.of_type(perf_records.COMM), finder, 16)
    pid, tid = records.buffer.u32_pair(records.offset + 8)
    return Comms(time, records.offset, pid, tid, _strings(records, 16), (records.misc & _MISC_COMM_EXEC) != 0)


def decode_tasks(path: str, records: Records, kind: int, finder: EventFinder) -> Tasks:
    """``kind``: FORK or EXIT. Raises :class:`FormatError` for a record too short."""
    records, time = _in_order(path, records.of_type(kind), finder, 32)
    pid, ppid = records.buffer.u32_pair(records.offset + 8)
    tid, ptid = records.buffer.u32_pair(records.offset + 16)
    return Tasks(time, records.offset, pid, ppid, tid, ptid, (records.misc & _MISC_FORK_EXEC) != 0)


def decode_mmaps(path: str, records: Records, finder: EventFinder) -> Mmaps:
    """Raises :class:`FormatError` for a record too short."""
    _check_size(path, records.of_type(perf_records.MMAP2), 72)
    records, time = _in_order(path, records.of_type(perf_records.MMAP, perf_records.MMAP2), finder, 40)
    buffer, offset, second = records.buffer, records.offset, records.type == perf_records.MMAP2
    pid, tid = buffer.u32_pair(offset + 8)
    prot = np.where(records.misc & _MISC_MMAP_DATA, _PROT_READ, _PROT_READ | _PROT_EXEC).astype(np.int32)
    prot[second] = buffer.u32_pair(offset[second] + 64)[0]
    build_id = [""] * len(records)
    for row in np.flatnonzero(second & ((records.misc & _MISC_MMAP_BUILD_ID) != 0)).tolist():
        at = int(offset[row])
        build_id[row] = buffer.data[at + 44 : at + 44 + min(buffer.data[at + 40], 20)].hex()
    names_at = np.where(second, 72, 40)
    return Mmaps(
        time=time,
        offset=offset,
        pid=pid,
        tid=tid,
        start=buffer.u64(offset + 16),
        length=buffer.u64(offset + 24),
        pgoff=buffer.u64(offset + 32),
        prot=prot,
        cpumode=(records.misc & 7).astype(np.uint8),
        filename=_strings(records, names_at),
        build_id=build_id,
    )


def _in_order(path: str, records: Records, finder: EventFinder, least: int) -> tuple[Records, I64]:
    _check_size(path, records, least)
    time = finder.times(records)
    order = np.argsort(time, kind="stable")
    return records.where(order), time[order]


def _check_size(path: str, records: Records, least: int) -> None:
    short = np.flatnonzero(records.size < least)
    if len(short):
        offset, kind = int(records.offset[short[0]]), int(records.type[short[0]])
        raise FormatError(f"{path}: the record of type {kind} at offset {offset:#x} is too short", "The file is damaged; record again.")


def _strings(records: Records, at: int | I64) -> list[str]:
    starts, ends = (records.offset + at).tolist(), (records.offset + records.size).tolist()
    return [records.buffer.text(start, end) for start, end in zip(starts, ends, strict=True)]


class CommTimeline:
    """The name of every task at every moment: its own last one, or that which its parent had when it was forked."""

    def __init__(self, comms: Comms, forks: Tasks) -> None:
        numbers: dict[str, int] = {}
        current: dict[int, int] = {}
        tids: list[int] = []
        times: list[int] = []
        names: list[int] = []
        named = zip(comms.time.tolist(), comms.offset.tolist(), comms.tid.tolist(), comms.comm, strict=True)
        forked = zip(forks.time.tolist(), forks.offset.tolist(), forks.tid.tolist(), forks.ptid.tolist(), strict=True)
        for time, _, tid, source in merge(named, forked):
            name = numbers.setdefault(source, len(numbers)) if isinstance(source, str) else current.get(source, -1)
            current[tid] = name
            tids.append(tid)
            times.append(time)
            names.append(name)
        self._names = list(numbers)
        self._tid: I64 = np.array(tids, np.int64)
        self._time: I64 = np.array(times, np.int64)
        self._name: I32 = np.array(names, np.int32)

    def at(self, tid: I32, time: I64) -> tuple[list[str], I32]:
        """Names, and for each task and moment an int32 index into them. Tasks of no known name are called ``:TID`` as perf does, the idle task ``swapper``."""
        entry = latest(self._tid, self._time, tid.astype(np.int64), time)
        found = np.full(len(tid), -1, np.int32)
        found[entry >= 0] = self._name[entry[entry >= 0]]
        names = list(self._names)
        nameless = np.flatnonzero(found < 0)
        strangers, which = np.unique(tid[nameless], return_inverse=True)
        found[nameless] = len(names) + which
        names += ["swapper" if stranger == 0 else f":{stranger}" for stranger in strangers.tolist()]
        return names, found
