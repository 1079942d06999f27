# SPDX-License-Identifier: Apache-2.0
"""Looks at the module's records as they are drained, for what reading guests' memory needs: VMs, page tables, running processes, code that is hit."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest.capture.guest_modules import CODE_END, CODE_START
from perfguest.formats.guest_format import parse_format
from perfguest.formats.guest_stream import Memslot, VmRecord

#: ``PG_SAMPLE_*`` in kmod/perfguest_abi.h.
_USER, _LONG_MODE, _CR3, _TASK = 1 << 0, 1 << 1, 1 << 9, 1 << 12
_CR4_LA57 = 1 << 12
_PAGE = np.uint64((1 << 64) - 4096)
_TABLE = 0x000F_FFFF_FFFF_F000
_LEAST_RECORD = 24
_TASK_FIELDS = ("task_pid", "task_tgid", "task_start", "task_comm")
#: Of one chunk and VM.
_MOST_HINTS = 16
#: Processes that were reported once are not reported again as long as so many are remembered.
_REMEMBERED = 1 << 16


_Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True)
class TaskSeen:
    """A process of a guest, in a sample. ``comm``: of its main thread if that ran, else empty. ``start``: ns of the guest's boot clock."""

    vm_id: int
    tgid: int
    start: int
    comm: bytes
    time: int


@dataclass
class Seen:
    """What a chunk holds. ``hints``: by VM, CR3s with whether the kernel ran on them. ``la57``: VMs with five-level page tables.
    ``new``: processes, at their first sample and at each new name. ``hits``: samples by (VM, tgid, start, page of user code),
    ``code``: by VM, pages of kernel code that modules may have. ``time``: of the last sample."""

    vms: list[VmRecord] = field(default_factory=list)
    hints: dict[int, dict[int, bool]] = field(default_factory=dict)
    la57: set[int] = field(default_factory=set)
    new: list[TaskSeen] = field(default_factory=list)
    hits: Counter[tuple[int, int, int, int]] = field(default_factory=Counter)
    code: dict[int, set[int]] = field(default_factory=dict)
    time: int = 0

    def __bool__(self) -> bool:
        return bool(self.vms or self.hints or self.new or self.hits or self.code)


class Observer:
    """For the streams of one recording; for one thread. Raises :class:`FormatError` if the module's ``format`` text cannot be read."""

    def __init__(self, format_text: bytes) -> None:
        self._layouts = parse_format(format_text.decode("ascii", "replace"))
        self._sample = self._layouts["sample"].dtype
        names = set(self._sample.names or ())
        self._has_tasks = names.issuperset(_TASK_FIELDS)
        self._has_cr4 = "cr4" in names
        self._looked_at = ["vm_id", "flags", "cr3", "ip", "time", *(["cr4"] if self._has_cr4 else []), *(_TASK_FIELDS if self._has_tasks else [])]
        self._known: set[tuple[Any, ...]] = set()

    def look(self, data: bytes) -> Seen:
        """What is in whole records, as one read of a stream gives them. Ends at what is none."""
        seen = Seen()
        words = memoryview(data)[: len(data) & ~7].cast("I")
        found: dict[int, list[int]] = {layout.type: [] for layout in self._layouts.values() if layout.type}
        at, end = 0, len(words)
        while at + 2 <= end:
            size = words[at + 1]
            if size < _LEAST_RECORD or size & 7 or at + size // 4 > end:
                break
            if (offsets := found.get(words[at])) is not None:
                offsets.append(4 * at)
            at += size // 4
        for offset in found[self._layouts["vm"].type]:
            self._look_at_vm(data, offset, words[offset // 4 + 1], seen)
        offsets = [offset for offset in found[self._layouts["sample"].type] if words[offset // 4 + 1] >= self._sample.itemsize]
        if offsets:
            self._look_at_samples(self._columns(data, np.array(offsets)), seen)
        return seen

    def _look_at_vm(self, data: bytes, offset: int, size: int, seen: Seen) -> None:
        record, slot = self._layouts["vm"].dtype, self._layouts["memslot"].dtype
        if size < record.itemsize:
            return
        vm = np.frombuffer(data, record, 1, offset)[0]
        number = min(int(vm["nr_memslots"]), (size - record.itemsize) // slot.itemsize)
        slots = np.frombuffer(data, slot, number, offset + record.itemsize)
        memslots = [Memslot(int(s["gpa"]), int(s["size"]), int(s["hva"])) for s in slots]
        seen.vms.append(VmRecord(int(vm["time"]), int(vm["vm_id"]), int(vm["vm_pid"]), int(vm["lstar"]), memslots))

    def _columns(self, data: bytes, offsets: npt.NDArray[np.int64]) -> _Columns:
        """The fields that are looked at, of the samples at these offsets."""
        windows = np.lib.stride_tricks.sliding_window_view(np.frombuffer(data, np.uint8), self._sample.itemsize)
        samples = windows[offsets].view(self._sample)[:, 0]
        return {name: np.ascontiguousarray(samples[name]) for name in self._looked_at}

    def _look_at_samples(self, samples: _Columns, seen: Seen) -> None:
        flags = samples["flags"]
        seen.time = int(samples["time"].max())
        code = ((flags & np.uint64(_USER)) == 0) & (samples["ip"] >= np.uint64(CODE_START)) & (samples["ip"] < np.uint64(CODE_END))
        for vm_id, page in set(_rows(samples["vm_id"][code], samples["ip"][code] & _PAGE)):
            seen.code.setdefault(vm_id, set()).add(page)
        self._look_at_page_tables(_those(samples, (flags & np.uint64(_CR3 | _LONG_MODE)) == np.uint64(_CR3 | _LONG_MODE)), seen)
        if self._has_tasks:
            self._look_at_tasks(_those(samples, (flags & np.uint64(_TASK)) != 0), seen)

    def _look_at_page_tables(self, samples: _Columns, seen: Seen) -> None:
        user = (samples["flags"] & np.uint64(_USER)) != 0
        for vm_id, cr3, is_user in set(_rows(samples["vm_id"], samples["cr3"] & np.uint64(_TABLE), user)):
            hints = seen.hints.setdefault(vm_id, {})
            if len(hints) < _MOST_HINTS:
                hints[cr3] = hints.get(cr3, False) or not is_user
        if self._has_cr4:
            seen.la57.update(samples["vm_id"][(samples["cr4"] & np.uint64(_CR4_LA57)) != 0].tolist())

    def _look_at_tasks(self, samples: _Columns, seen: Seen) -> None:
        if not len(samples["flags"]):
            return
        if len(self._known) > _REMEMBERED:
            self._known.clear()
        comms = np.where(samples["task_pid"] == samples["task_tgid"], samples["task_comm"], b"")
        # From the last to the first, so that the time of the first stays.
        columns = (column[::-1] for column in (samples["vm_id"], samples["task_tgid"], samples["task_start"], comms))
        for task, time in dict(zip(_rows(*columns), samples["time"][::-1].tolist(), strict=True)).items():
            process = (*task[:3], None)
            if task in self._known or (not task[3] and process in self._known):
                continue
            self._known |= {task, process}
            seen.new.append(TaskSeen(task[0], task[1], task[2], task[3], time))
        user = _those(samples, (samples["flags"] & np.uint64(_USER)) != 0)
        seen.hits = Counter(_rows(user["vm_id"], user["task_tgid"], user["task_start"], user["ip"] >> np.uint64(12)))


def _those(samples: _Columns, chosen: npt.NDArray[np.bool_]) -> _Columns:
    return {name: column[chosen] for name, column in samples.items()}


def _rows(*columns: npt.NDArray[Any]) -> Iterator[tuple[Any, ...]]:
    return zip(*(column.tolist() for column in columns), strict=True)
