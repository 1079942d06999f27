# SPDX-License-Identifier: Apache-2.0
"""PERF_RECORD_SAMPLE into columns: the fields in the order of include/uapi/linux/perf_event.h, as far as the callchain."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats import perf_attr
from perfguest.formats.perf_attr import Event
from perfguest.formats.perf_events import EventFinder
from perfguest.formats.perf_records import I32, I64, U8, U16, U64, Records


@dataclass(frozen=True)
class Samples:
    """Columns of samples in order of time; those of equal time stay in the file's order.

    ``time``: int64 nanoseconds of the recording's clock, 0 if not sampled. ``cpu``, ``pid``, ``tid``: int32, -1 if not sampled.
    ``period``: int64, the event's own if not sampled. ``ip``: uint64, 0 if not sampled. ``event``: int32 index into :attr:`PerfData.events`.
    ``misc``: uint16 of the record's header, ``cpumode``: uint8, its low three bits (``PERF_RECORD_MISC_CPUMODE_MASK``).
    Callchain *i* is ``chain[chain_start[i]:chain_start[i + 1]]``: leaf first, with the ``PERF_CONTEXT_`` markers as perf wrote them; empty if there is none.
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
    chain_start: I64
    chain: U64
    offset: I64

    def __len__(self) -> int:
        return len(self.time)


class _Columns:
    """The columns while they are filled, one layout after the other, in the file's order."""

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
    for layout in dict.fromkeys(each.layout for each in events):
        members = [index for index, each in enumerate(events) if each.layout == layout]
        rows = np.flatnonzero(np.isin(event, members))
        if len(rows):
            _decode_layout(path, records.where(rows), events[members[0]], rows, columns)
    if not all(each.sample_type & perf_attr.PERIOD for each in events):
        own = np.array([_own_period(each) for each in events], np.int64)
        lacking = np.array([not each.sample_type & perf_attr.PERIOD for each in events])[event]
        columns.period[lacking] = own[event[lacking]]
    return _sorted(records, event, columns)


def _own_period(event: Event) -> int:
    return min(event.sample_period, np.iinfo(np.int64).max)


def _decode_layout(path: str, records: Records, event: Event, rows: I64, columns: _Columns) -> None:
    words = event.sample_words()
    position = np.full(len(rows), 8 + 8 * len(words), np.int64)
    _check(path, records, position <= records.size)
    buffer, offset = records.buffer, records.offset
    if (at := words.get(perf_attr.IP)) is not None:
        columns.ip[rows] = buffer.u64(offset + at)
    if (at := words.get(perf_attr.TID)) is not None:
        columns.pid[rows], columns.tid[rows] = buffer.u32_pair(offset + at)
    if (at := words.get(perf_attr.TIME)) is not None:
        columns.time[rows] = buffer.u64(offset + at).view(np.int64)
    if (at := words.get(perf_attr.CPU)) is not None:
        columns.cpu[rows] = buffer.u32_pair(offset + at)[0]
    if (at := words.get(perf_attr.PERIOD)) is not None:
        columns.period[rows] = buffer.u64(offset + at).view(np.int64)
    if event.sample_type & perf_attr.CALLCHAIN:
        if event.sample_type & perf_attr.READ:
            position += _read_bytes(path, records, position, event.read_format)
        length = _count_at(path, records, position)
        _check(path, records, length <= (records.size - position - 8) // 8)
        columns.chain_at[rows] = offset + position + 8
        columns.chain_length[rows] = length


def _read_bytes(path: str, records: Records, position: I64, read_format: int) -> I64:
    """Size of ``struct read_format``, which in a group depends on its number of counters."""
    times = bool(read_format & perf_attr.READ_ENABLED) + bool(read_format & perf_attr.READ_RUNNING)
    per_counter = 1 + bool(read_format & perf_attr.READ_ID) + bool(read_format & perf_attr.READ_LOST)
    if not read_format & perf_attr.READ_GROUP:
        return np.full(len(position), 8 * (times + per_counter), np.int64)
    return 8 * (1 + times + per_counter * _count_at(path, records, position))


def _count_at(path: str, records: Records, position: I64) -> I64:
    """The count of words at ``position`` in each record; larger than any record is an error, so that sums stay small."""
    _check(path, records, position + 8 <= records.size)
    count = records.buffer.u64(records.offset + position)
    _check(path, records, count < np.uint64(1 << 16))
    return count.astype(np.int64)


def _check(path: str, records: Records, good: npt.NDArray[np.bool_]) -> None:
    if not good.all():
        offset = int(records.offset[np.argmin(good)])
        raise FormatError(f"{path}: the sample at offset {offset:#x} is too short for its fields", "The file is damaged; record again.")


def _sorted(records: Records, event: I32, columns: _Columns) -> Samples:
    order = np.argsort(columns.time, kind="stable")
    length = columns.chain_length[order]
    start = np.zeros(len(order) + 1, np.int64)
    np.cumsum(length, out=start[1:])
    # Word k of a flat chain lies at its sample's chain plus its distance from that sample's first word.
    word = np.arange(start[-1], dtype=np.int64)
    chain = records.buffer.u64(np.repeat(columns.chain_at[order] - 8 * start[:-1], length) + 8 * word)
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
        chain_start=start,
        chain=chain,
        offset=records.offset[order],
    )
