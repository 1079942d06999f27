# SPDX-License-Identifier: Apache-2.0
"""The address spaces of guests' processes as the unwinder takes them: what was mapped executable, and the pages of those files."""

from __future__ import annotations

import struct
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable

import numpy as np

from perfguest.errors import FormatError
from perfguest.formats.elf_sections import read_sections
from perfguest.formats.guest_snapshot import GuestSnapshot, later_readings
from perfguest.proto import guest_pb2 as pb
from perfguest.unwind.engine import Engine
from perfguest.unwind.kept_tables import KeptTables

_USER_END = 1 << 57
# PT_GNU_EH_FRAME, a type in the program headers, which stand at the file's begin.
_SEARCH_TABLE, _HEADERS = struct.pack("<I", 0x6474E550), 4096
_MAX_STATIC = 64 << 20

#: Gives the whole content of a mapped file where it is at hand, by VM, path and the build id that the guest's file has ("" if that is not known).
OpenFile = Callable[[pb.Process, pb.Mapping, str], bytes | None]


class Spaces:
    """Gives each process that was read a number in the engine, when it is first asked for. A binary is loaded once, for all processes that map it."""

    def __init__(self, engine: Engine, snapshot: GuestSnapshot, open_file: OpenFile, kept: KeptTables) -> None:
        self._engine = engine
        self._snapshot = snapshot
        self._open_file = open_file
        self._kept = kept
        self._later = later_readings(snapshot.processes)
        self._numbers: dict[int, int] = {}
        self._binaries: dict[tuple[str, bytes], int] = {}
        self._problems: Counter[str] = Counter()

    @property
    def notes(self) -> list[str]:
        """Lines for people on files that cannot be used."""
        return list(self._problems)

    def number(self, process: int) -> int:
        """``process``: index into the snapshot's processes."""
        if process not in self._numbers:
            self._numbers[process] = self._add(process)
        return self._numbers[process]

    def _add(self, process: int) -> int:
        rows = []
        readings = [self._snapshot.processes[number] for number in (process, *self._later.get(process, []))]
        for start, end, offset, reading, mapping in merged_mappings(readings):
            rows.append((start, end, offset, self._binary(reading, mapping)))
        columns = np.array([row[:3] for row in rows], np.uint64).reshape(-1, 3)
        binaries = np.array([row[3] for row in rows], np.int32)
        return self._engine.add_space(columns[:, 0].copy(), columns[:, 1].copy(), columns[:, 2].copy(), binaries)

    def _binary(self, reading: pb.Process, mapping: pb.Mapping) -> int:
        key = (mapping.binary, b"" if mapping.binary else mapping.path)
        if key not in self._binaries:
            self._binaries[key] = self._load(reading, mapping)
        return self._binaries[key]

    def _load(self, reading: pb.Process, mapping: pb.Mapping) -> int:
        stored = self._snapshot.binary(mapping.binary) if mapping.binary else None
        whole = self._open_file(reading, mapping, stored.build_id.hex() if stored else "")
        try:
            if whole is not None:
                size, runs = len(whole), [(0, whole)]
            elif stored is not None:
                size, runs = stored.size, sorted(((run.address, run.data) for run in stored.pages), key=lambda run: run[0])
            else:
                return -1
            kept = self._kept.complete(stored.build_id, size, runs) if stored else None
            return self._engine.add_binary(size, runs, _tables_of_static(size, runs), kept=kept)
        except ValueError as error:
            self._problems[f"guest file {mapping.path.decode('utf-8', 'replace')[:200]} cannot be used for unwinding: {error}"] += 1
        return -1


def _tables_of_static(size: int, runs: list[tuple[int, bytes]]) -> tuple[int, int] | None:
    """(Offset, size) of ``.eh_frame``: statically linked programs have no search table that would lead there. None where the section headers are missing."""
    if size > _MAX_STATIC or not runs or _SEARCH_TABLE in runs[0][1][:_HEADERS]:
        return None
    content = bytearray(size)
    for offset, data in runs:
        part = data[: max(size - offset, 0)]
        content[offset : offset + len(part)] = part
    try:
        sections = read_sections(bytes(content), "", "")
    except FormatError:
        return None
    number = sections.find(".eh_frame")
    return None if number is None else (int(sections.table["offset"][number]), int(sections.table["size"][number]))


def merged_mappings(readings: list[pb.Process]) -> list[tuple[int, int, int, pb.Process, pb.Mapping]]:
    """(start, end, file offset, reading, mapping), ascending and disjoint: executable mappings of the first reading and what the others add to it."""
    starts: list[int] = []
    kept: list[tuple[int, int, int, pb.Process, pb.Mapping]] = []
    for reading in readings:
        for one in reading.mappings:
            if not one.executable or not one.start < one.end <= _USER_END or one.offset >= 1 << 63:
                continue
            at = bisect_right(starts, one.start)
            if (at and kept[at - 1][1] > one.start) or (at < len(kept) and one.end > kept[at][0]):
                continue
            starts.insert(at, one.start)
            kept.insert(at, (one.start, one.end, one.offset, reading, one))
    return kept
