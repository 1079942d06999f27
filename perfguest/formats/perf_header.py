# SPDX-License-Identifier: Apache-2.0
"""The head of a perf.data file and its features: tools/perf/Documentation/perf.data-file-format.txt in the kernel's source."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from perfguest.errors import FormatError
from perfguest.formats import perf_attr
from perfguest.formats.perf_attr import Event, FileBytes

_MAGIC = b"PERFILE2"
_MAGIC_BIG_ENDIAN = b"2ELIFREP"
_MAGIC_OLD = b"PERFFILE"
_PIPE_HEADER_BYTES = 16
_FILE_HEADER = struct.Struct("<8sQQ6Q32s")
_SECTION = struct.Struct("<QQ")
_RECORD = struct.Struct("<IHH")

BUILD_ID, _HOSTNAME, _OSRELEASE, _VERSION, _ARCH, _NRCPUS, _CPUDESC = 2, 3, 4, 5, 6, 7, 8
_CMDLINE, _EVENT_DESC, _SAMPLE_TIME, _CLOCKID, _CLOCK_DATA = 11, 12, 21, 23, 29

_BUILD_ID_HAS_SIZE = 1 << 15
_RECORD_AGAIN = "The file is damaged; record again."


@dataclass(frozen=True)
class BuildId:
    """One entry of the header's table. ``build_id`` is hex. ``cpumode`` tells kernel (1), user (2), guest kernel (4), guest user (5)."""

    pid: int
    cpumode: int
    build_id: str
    filename: str


@dataclass(frozen=True)
class ClockData:
    """One moment on two clocks, in nanoseconds: that of the samples and the wall clock."""

    clockid: int
    wall_clock_ns: int
    clockid_time_ns: int


@dataclass(frozen=True)
class Header:
    """What perf wrote down of the host. Empty or None where the recording does not say."""

    hostname: str = ""
    osrelease: str = ""
    version: str = ""
    arch: str = ""
    cpudesc: str = ""
    nrcpus_available: int = 0
    nrcpus_online: int = 0
    cmdline: tuple[str, ...] = ()
    build_ids: tuple[BuildId, ...] = ()
    #: Time of the first and last sample, nanoseconds of the samples' clock.
    sample_time: tuple[int, int] | None = None
    #: Resolution in nanoseconds of the clock given by ``-k``.
    clockid_resolution: int | None = None
    clock_data: ClockData | None = None
    #: Events as named on perf's command line.
    event_desc: tuple[Event, ...] = ()


@dataclass(frozen=True)
class Head:
    """What stands before the records. ``start``, ``end``: bytes of the data section; ``torn``: the file lacks its end."""

    pipe: bool
    start: int
    end: int
    torn: bool
    events: tuple[Event, ...] = ()
    header: Header = Header()


class _Cut(Exception):
    """A feature is shorter than what it should hold."""


class Cursor:
    """Reads forward through ``data[position:end]``; raises ``_Cut`` where it ends."""

    def __init__(self, data: FileBytes, position: int, end: int) -> None:
        self.data = data
        self.position = position
        self.end = min(end, len(data))

    def take(self, size: int) -> int:
        start = self.position
        if size > self.end - start:
            raise _Cut
        self.position = start + size
        return start

    def u32(self) -> int:
        return int.from_bytes(self.data[(at := self.take(4)) : at + 4], "little")

    def u64(self) -> int:
        return int.from_bytes(self.data[(at := self.take(8)) : at + 8], "little")

    def string(self) -> str:
        size = self.u32()
        start = self.take(size)
        return self.data[start : start + size].split(b"\0", 1)[0].decode("utf-8", "replace")


def read_head(path: str, data: FileBytes, notes: list[str]) -> Head:
    """Reads header, attributes and features of a perf.data file; of one from a pipe only that it is one.

    Raises :class:`FormatError` for what is no perf.data of version 2 from a little-endian machine.
    """
    _check_magic(path, data)
    if int.from_bytes(data[8:16], "little") == _PIPE_HEADER_BYTES:
        # Nothing tells the length of a pipe, so any record that does not fit is a tear.
        return Head(pipe=True, start=_PIPE_HEADER_BYTES, end=len(data), torn=True)
    if len(data) < _FILE_HEADER.size:
        raise FormatError(f"{path} ends within its header, after {len(data)} bytes", _RECORD_AGAIN)
    _, _, attr_size, attrs_at, attrs_bytes, start, data_bytes, _, _, flags = _FILE_HEADER.unpack_from(data)
    events = _read_attrs(path, data, attr_size, attrs_at, attrs_bytes)
    if start > len(data) or start < _FILE_HEADER.size:
        raise FormatError(f"{path}: its records should begin at offset {start:#x}, the file has {len(data):#x} bytes", "The file is cut off; record again.")
    end = start + data_bytes
    if data_bytes == 0:
        # perf writes sizes and features last.
        if len(data) > start:
            notes.append(f"{path} was not finished: perf died while recording; it does not say what it recorded on")
        return Head(pipe=False, start=start, end=len(data), torn=True, events=events)
    if end > len(data):
        notes.append(f"{path} is cut off: {end - len(data)} bytes of records and the description of the host are missing")
        return Head(pipe=False, start=start, end=len(data), torn=True, events=events)
    header = Header()
    for feature, cursor in _feature_sections(data, end, int.from_bytes(flags, "little"), path, notes):
        header = add_feature(path, header, feature, cursor, notes)
    return Head(pipe=False, start=start, end=end, torn=False, events=events, header=header)


def _check_magic(path: str, data: FileBytes) -> None:
    magic = data[:8]
    if magic == _MAGIC_BIG_ENDIAN:
        raise FormatError(f"{path} was recorded on a big-endian machine", "Only little-endian recordings can be read.")
    if magic == _MAGIC_OLD:
        raise FormatError(f"{path} is of the format of perf before Linux 3.3", "Record with a newer perf.")
    if magic != _MAGIC or len(data) < _PIPE_HEADER_BYTES:
        raise FormatError(f"{path} is no perf.data file", "Give a file written by `perf record`, or a directory written by `perfguest record`.")


def _read_attrs(path: str, data: FileBytes, entry_bytes: int, at: int, size: int) -> tuple[Event, ...]:
    if size == 0 or at + size > len(data) or entry_bytes < perf_attr.MIN_ATTR_BYTES + _SECTION.size or size % entry_bytes:
        raise FormatError(f"{path}: no whole list of events at offset {at:#x}", _RECORD_AGAIN)
    events = []
    # Overlapping lists of ids could otherwise multiply the file.
    budget = len(data)
    for entry in range(at, at + size, entry_bytes):
        attr_bytes = entry_bytes - _SECTION.size
        ids_at, ids_bytes = _SECTION.unpack_from(data, entry + attr_bytes)
        budget -= ids_bytes
        if ids_at + ids_bytes > len(data) or ids_bytes % 8 or budget < 0:
            raise FormatError(f"{path}: the event at offset {entry:#x} has its ids outside the file", _RECORD_AGAIN)
        ids = struct.unpack_from(f"<{ids_bytes // 8}Q", data, ids_at)
        events.append(perf_attr.parse_attr(path, data, entry, attr_bytes).with_ids(ids))
    return tuple(events)


def _feature_sections(data: FileBytes, table: int, flags: int, path: str, notes: list[str]) -> Iterator[tuple[int, Cursor]]:
    present = [bit for bit in range(256) if flags >> bit & 1]
    if table + len(present) * _SECTION.size > len(data):
        notes.append(f"{path} is cut off: the description of the host is missing")
        return
    for index, feature in enumerate(present):
        at, size = _SECTION.unpack_from(data, table + index * _SECTION.size)
        yield feature, Cursor(data, at, at + size)


def add_feature(path: str, header: Header, feature: int, cursor: Cursor, notes: list[str]) -> Header:
    """``header`` with the feature at ``cursor``; unchanged for one that is not needed, and, with a note, for a damaged one."""
    reader = _READERS.get(feature)
    if reader is None:
        return header
    start = cursor.position
    try:
        return reader(path, header, cursor)
    except (_Cut, FormatError):
        notes.append(f"{path}: feature {feature} of its header, at offset {start:#x}, is damaged and was left out")
        return header


def _strings(cursor: Cursor) -> tuple[str, ...]:
    return tuple(cursor.string() for _ in range(cursor.u32()))


def _read_nrcpus(_: str, header: Header, cursor: Cursor) -> Header:
    return replace(header, nrcpus_available=cursor.u32(), nrcpus_online=cursor.u32())


def _read_sample_time(_: str, header: Header, cursor: Cursor) -> Header:
    first, last = cursor.u64(), cursor.u64()
    # perf that did not look at its samples again (--no-buildid, --buildid-mmap) writes zeros.
    return replace(header, sample_time=(first, last) if last else None)


def _read_clock_data(_: str, header: Header, cursor: Cursor) -> Header:
    cursor.u32()
    return replace(header, clock_data=ClockData(cursor.u32(), cursor.u64(), cursor.u64()))


def read_build_ids(_: str, header: Header, cursor: Cursor) -> Header:
    """Adds a run of ``struct build_id_event``, the form of both the header's table and a pipe's records."""
    found = list(header.build_ids)
    while cursor.end - cursor.position >= _RECORD.size:
        record = cursor.position
        _, misc, size = _RECORD.unpack_from(cursor.data, record)
        if size < 36:
            raise _Cut
        cursor.take(size)
        pid = struct.unpack_from("<i", cursor.data, record + 8)[0]
        length = min(cursor.data[record + 32], 20) if misc & _BUILD_ID_HAS_SIZE else 20
        build_id = cursor.data[record + 12 : record + 12 + length].hex()
        filename = cursor.data[record + 36 : record + size].split(b"\0", 1)[0].decode("utf-8", "replace")
        found.append(BuildId(pid, misc & 7, build_id, filename))
    return replace(header, build_ids=tuple(found))


def _read_event_desc(path: str, header: Header, cursor: Cursor) -> Header:
    count, attr_bytes = cursor.u32(), cursor.u32()
    events = []
    for _ in range(count):
        event = perf_attr.parse_attr(path, cursor.data, cursor.take(attr_bytes), attr_bytes)
        id_count = cursor.u32()
        event = event.with_name(cursor.string())
        ids_at = cursor.take(8 * id_count)
        events.append(event.with_ids(struct.unpack_from(f"<{id_count}Q", cursor.data, ids_at)))
    return replace(header, event_desc=tuple(events))


_READERS: dict[int, Callable[[str, Header, Cursor], Header]] = {
    BUILD_ID: read_build_ids,
    _HOSTNAME: lambda _, header, cursor: replace(header, hostname=cursor.string()),
    _OSRELEASE: lambda _, header, cursor: replace(header, osrelease=cursor.string()),
    _VERSION: lambda _, header, cursor: replace(header, version=cursor.string()),
    _ARCH: lambda _, header, cursor: replace(header, arch=cursor.string()),
    _NRCPUS: _read_nrcpus,
    _CPUDESC: lambda _, header, cursor: replace(header, cpudesc=cursor.string()),
    _CMDLINE: lambda _, header, cursor: replace(header, cmdline=_strings(cursor)),
    _EVENT_DESC: _read_event_desc,
    _SAMPLE_TIME: _read_sample_time,
    _CLOCKID: lambda _, header, cursor: replace(header, clockid_resolution=cursor.u64()),
    _CLOCK_DATA: _read_clock_data,
}
