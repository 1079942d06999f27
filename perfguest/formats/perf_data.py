# SPDX-License-Identifier: Apache-2.0
"""Reads a perf.data file into columns, without perf.

Sources of the format: tools/perf/Documentation/perf.data-file-format.txt and include/uapi/linux/perf_event.h of the Linux kernel. A file from a pipe
(``perf record -o -``) has the same records, but its events and features are records too.
"""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from perfguest.errors import FormatError
from perfguest.formats import perf_attr, perf_records
from perfguest.formats.perf_attr import Event, FileBytes
from perfguest.formats.perf_events import EventFinder
from perfguest.formats.perf_header import BUILD_ID, Cursor, Head, Header, add_feature, read_head
from perfguest.formats.perf_records import I32, I64, Records, walk_records
from perfguest.formats.perf_samples import Samples, decode_samples
from perfguest.formats.perf_tasks import Comms, CommTimeline, Mmaps, Tasks, decode_comms, decode_mmaps, decode_tasks

_HEADER_BUILD_ID_RECORD = 67
_UPDATE_NAME = 2


@dataclass(frozen=True)
class PerfData:
    """All that a recording says. Tables are in order of time; what perf made up before recording began has time 0 and stands first."""

    path: str
    header: Header
    events: tuple[Event, ...]
    samples: Samples
    comms: Comms
    mmaps: Mmaps
    forks: Tasks
    exits: Tasks
    #: Records that the kernel dropped for want of buffer space (PERF_RECORD_LOST).
    lost: int
    #: Samples that the kernel or perf dropped (PERF_RECORD_LOST_SAMPLES).
    lost_samples: int
    #: How often the kernel throttled sampling, and let it go again.
    throttled: int
    unthrottled: int
    #: Lines for people: what is damaged or missing.
    notes: tuple[str, ...]

    @cached_property
    def _comm_timeline(self) -> CommTimeline:
        return CommTimeline(self.comms, self.forks)

    def comms_at(self, tid: I32, time: I64) -> tuple[list[str], I32]:
        """The tasks' names at these moments: a list, and an int32 index into it for each. See :meth:`CommTimeline.at`."""
        return self._comm_timeline.at(tid, time)


def read_perf_data(path: str | Path) -> PerfData:
    """Reads all of ``path``. A file whose end is missing is read up to the tear, which :attr:`PerfData.notes` tells.

    The file stays mapped as long as the result lives, and must not be made shorter meanwhile.
    Raises :class:`FormatError` for what cannot be read: no perf.data, big-endian, damaged.
    """
    name, data = str(path), _read_file(Path(path))
    notes: list[str] = []
    head = read_head(name, data, notes)
    records = walk_records(name, data, head.start, head.end, torn=head.torn, notes=notes)
    if head.pipe:
        head = _add_pipe_records(name, head, records, notes)
    events = _name_events(head)
    finder = EventFinder(name, events)
    return PerfData(
        path=name,
        header=head.header,
        events=events,
        samples=decode_samples(name, records.of_type(perf_records.SAMPLE), finder, events, notes),
        comms=decode_comms(name, records, finder),
        mmaps=decode_mmaps(name, records, finder),
        forks=decode_tasks(name, records, perf_records.FORK, finder),
        exits=decode_tasks(name, records, perf_records.EXIT, finder),
        lost=_sum_at(records.of_type(perf_records.LOST), 16),
        lost_samples=_sum_at(records.of_type(perf_records.LOST_SAMPLES), 8),
        throttled=int(np.count_nonzero(records.type == perf_records.THROTTLE)),
        unthrottled=int(np.count_nonzero(records.type == perf_records.UNTHROTTLE)),
        notes=tuple(notes),
    )


def _read_file(path: Path) -> FileBytes:
    try:
        with path.open("rb") as file:
            if not path.is_file() or not os.fstat(file.fileno()).st_size:
                return file.read()
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except IsADirectoryError as error:
        raise FormatError(f"{path} is a directory", "Give the perf.data file in it; recordings of `perf record --threads` cannot be read.") from error
    except OSError as error:
        raise FormatError(f"{path} cannot be read: {error.strerror}", "Give a file written by `perf record`.") from error


def _sum_at(records: Records, at: int) -> int:
    whole = records.where(records.size >= at + 8)
    return sum(whole.buffer.u64(whole.offset + at).tolist())


def _name_events(head: Head) -> tuple[Event, ...]:
    """EVENT_DESC has the names that were asked for; it lists the events in the same order, with the same ids."""
    by_ids = {described.ids: described.name for described in head.header.event_desc if described.ids}
    named = [event.with_name(by_ids[event.ids]) if event.ids in by_ids else event for event in head.events]
    if not by_ids and len(head.header.event_desc) == len(named):
        named = [event.with_name(described.name) for event, described in zip(named, head.header.event_desc, strict=True)]
    return tuple(named)


def _add_pipe_records(path: str, head: Head, records: Records, notes: list[str]) -> Head:
    """Events and features out of the records of a pipe."""
    data, events, header = records.buffer.data, [], head.header
    wanted = (perf_records.HEADER_ATTR, perf_records.HEADER_FEATURE, _HEADER_BUILD_ID_RECORD, perf_records.EVENT_UPDATE)
    few = records.of_type(*wanted)
    renamed: dict[int, str] = {}
    for kind, offset, size in zip(few.type.tolist(), few.offset.tolist(), few.size.tolist(), strict=True):
        end = offset + size
        if kind == perf_records.HEADER_ATTR:
            events.append(_attr_record(path, data, offset, end))
        elif kind == _HEADER_BUILD_ID_RECORD:
            header = add_feature(path, header, BUILD_ID, Cursor(data, offset, end), notes)
        elif size >= 16 and kind == perf_records.HEADER_FEATURE:
            header = add_feature(path, header, int.from_bytes(data[offset + 8 : offset + 16], "little"), Cursor(data, offset + 16, end), notes)
        elif size >= 24 and int.from_bytes(data[offset + 8 : offset + 16], "little") == _UPDATE_NAME:
            renamed[int.from_bytes(data[offset + 16 : offset + 24], "little")] = records.buffer.text(offset + 24, end)
    named = [event.with_name(next((renamed[each] for each in event.ids if each in renamed), event.name)) for event in events]
    return replace(head, events=tuple(named), header=header)


def _attr_record(path: str, data: FileBytes, offset: int, end: int) -> Event:
    size = int.from_bytes(data[offset + 12 : offset + 16], "little") or perf_attr.MIN_ATTR_BYTES
    if offset + 8 + size > end:
        raise FormatError(f"{path}: the event at offset {offset:#x} is longer than its record", "The file is damaged; record again.")
    event = perf_attr.parse_attr(path, data, offset + 8, size)
    ids = np.frombuffer(data[offset + 8 + size : end - (end - offset - 8 - size) % 8], "<u8")
    return event.with_ids(tuple(ids.tolist()))
