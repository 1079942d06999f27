# SPDX-License-Identifier: Apache-2.0
"""PERF_RECORD_SAMPLE into columns: the fields in the order of include/uapi/linux/perf_event.h, as far as the callchain."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats import perf_attr
from perfguest.formats.perf_attr import Event
from perfguest.formats.perf_events import EventFinder
from perfguest.formats.perf_records import I32, I64, U8, U16, U64, Buffer, Records, halves


@dataclass(frozen=True)
class Samples:
    """Columns of samples in order of time; those of equal time stay in the file's order.

    ``time``: int64 nanoseconds of the recording's clock, 0 if not sampled. ``cpu``, ``pid``, ``tid``: int32, -1 if not sampled.
    ``period``: int64, the event's own if not sampled. ``ip``: uint64, 0 if not sampled. ``event``: int32 index into :attr:`PerfData.events`.
    ``misc``: uint16 of the record's header, ``cpumode``: uint8, its low three bits (``PERF_RECORD_MISC_CPUMODE_MASK``).
    Callchains stay where they are: ``chain_length`` (int64) words from the byte ``chain_at`` (int64) of ``buffer`` on: leaf first, with the
    ``PERF_CONTEXT_`` markers as perf wrote them; none if there is no callchain.
    ``offset``: int64 byte offset of the record, beyond the end of the file for one that was compressed.
    """

    time: I64
    cpu: I32
    pid: I32
    tid: I32
    period: I64
    ip: U64
    event: I32
    cpumode: U8
    misc: U16
    buffer: Buffer
    chain_at: I64
    chain_length: I64
    offset: I64

    def __len__(self) -> int:
        return len(self.time)

    @cached_property
    def chain_start(self) -> I64:
        """Callchain *i* is ``chain[chain_start[i]:chain_start[i + 1]]``."""
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(self.chain_length, dtype=np.int64)])

    @cached_property
    def chain(self) -> U64:
        """The words of all callchains, one after the other."""
        start = self.chain_start
        return self.buffer.u64(np.repeat(self.chain_at - 8 * start[:-1], self.chain_length) + 8 * np.arange(start[-1]))


class _Columns:
    """The columns while they are filled, one layout after the other."""

    def __init__(self, count: int) -> None:
        self.time: I64 = np.zeros(count, np.int64)
        self.cpu: I32 = np.full(count, -1, np.int32)
        self.pid: I32 = np.full(count, -1, np.int32)
        self.tid: I32 = np.full(count, -1, np.int32)
        self.period: I64 = np.zeros(count, np.int64)
        self.ip: U64 = np.zeros(count, np.uint64)
        self.chain_at: I64 = np.zeros(count, np.int64)
        self.chain_length: I64 = np.zeros(count, np.int64)


def decode_samples(path: str, records: Records, finder: EventFinder, events: tuple[Event, ...], notes: list[str]) -> Samples:
    """``records``: all of type SAMPLE. Samples with an id that no event has are left out, with a note.

    Raises :class:`FormatError` with the offset of a sample too short for its fields.
    """
    event = finder.of_samples(records)
    if (unknown := int(np.count_nonzero(event < 0))) > 0:
        notes.append(f"{path}: {unknown} samples belong to no event that it describes and were left out")
        records, event = records.where(event >= 0), event[event >= 0]
    columns = _Columns(len(records))
    for layout, rows in _layouts(events, event):
        _decode_layout(path, records.where(rows), layout, rows, columns)
    if not all(each.sample_type & perf_attr.PERIOD for each in events):
        own = np.array([_own_period(each) for each in events], np.int64)
        lacking = np.array([not each.sample_type & perf_attr.PERIOD for each in events])[event]
        columns.period[lacking] = own[event[lacking]]
    order: I64 | slice = slice(None)
    if (columns.time[1:] < columns.time[:-1]).any():
        order = np.argsort(columns.time, kind="stable")
    misc = records.misc[order]
    return Samples(
        time=columns.time[order],
        cpu=columns.cpu[order],
        pid=columns.pid[order],
        tid=columns.tid[order],
        period=columns.period[order],
        ip=columns.ip[order],
        event=event[order],
        cpumode=(misc & 7).astype(np.uint8),
        misc=misc,
        buffer=records.buffer,
        chain_at=columns.chain_at[order],
        chain_length=columns.chain_length[order],
        offset=records.offset[order],
    )


def _own_period(event: Event) -> int:
    return min(event.sample_period, np.iinfo(np.int64).max)


def _layouts(events: tuple[Event, ...], event: I32) -> Iterator[tuple[Event, I64 | slice]]:
    """An event of each layout, and which samples are of that layout."""
    layouts = list(dict.fromkeys(each.layout for each in events))
    for layout in layouts:
        members = [index for index, each in enumerate(events) if each.layout == layout]
        if len(layouts) == 1:
            yield events[0], slice(None)
        elif len(rows := np.flatnonzero(np.isin(event, members))):
            yield events[members[0]], rows


def _decode_layout(path: str, records: Records, event: Event, rows: I64 | slice, columns: _Columns) -> None:
    words = event.sample_words()
    behind = 8 + 8 * len(words)
    chains, read = event.sample_type & perf_attr.CALLCHAIN, event.sample_type & perf_attr.READ
    _check(path, records, records.size >= behind + (8 if chains and not read else 0))
    places = {bit: words[bit] for bit in (perf_attr.IP, perf_attr.TID, perf_attr.TIME, perf_attr.CPU, perf_attr.PERIOD) if bit in words}
    if chains and not read:
        places[perf_attr.CALLCHAIN] = behind
    found = dict(zip(places, records.buffer.columns(records.offset, list(places.values())), strict=True))
    if (word := found.get(perf_attr.IP)) is not None:
        columns.ip[rows] = word
    if (word := found.get(perf_attr.TID)) is not None:
        columns.pid[rows], columns.tid[rows] = halves(word)
    if (word := found.get(perf_attr.TIME)) is not None:
        columns.time[rows] = word.view(np.int64)
    if (word := found.get(perf_attr.CPU)) is not None:
        columns.cpu[rows] = halves(word)[0]
    if (word := found.get(perf_attr.PERIOD)) is not None:
        columns.period[rows] = word.view(np.int64)
    if chains:
        position = np.full(len(records), behind, np.int64)
        if read:
            position += _read_bytes(path, records, position, event.read_format)
        length = _count_at(path, records, position) if read else _counts(path, records, found[perf_attr.CALLCHAIN])
        _check(path, records, length <= (records.size - position - 8) // 8)
        columns.chain_at[rows] = records.offset + position + 8
        columns.chain_length[rows] = length


def _read_bytes(path: str, records: Records, position: I64, read_format: int) -> I64:
    """Size of ``struct read_format``, which in a group depends on its number of counters."""
    times = bool(read_format & perf_attr.READ_ENABLED) + bool(read_format & perf_attr.READ_RUNNING)
    per_counter = 1 + bool(read_format & perf_attr.READ_ID) + bool(read_format & perf_attr.READ_LOST)
    if not read_format & perf_attr.READ_GROUP:
        return np.full(len(position), 8 * (times + per_counter), np.int64)
    return 8 * (1 + times + per_counter * _count_at(path, records, position))


def _count_at(path: str, records: Records, position: I64) -> I64:
    """The count of words at ``position`` in each record."""
    _check(path, records, position + 8 <= records.size)
    return _counts(path, records, records.buffer.u64(records.offset + position))


def _counts(path: str, records: Records, count: U64) -> I64:
    """Larger than any record is an error, so that sums stay small."""
    _check(path, records, count < np.uint64(1 << 16))
    return count.astype(np.int64)


def _check(path: str, records: Records, good: npt.NDArray[np.bool_]) -> None:
    if not good.all():
        offset = int(records.offset[np.argmin(good)])
        raise FormatError(f"{path}: the sample at offset {offset:#x} is too short for its fields", "The file is damaged; record again.")
