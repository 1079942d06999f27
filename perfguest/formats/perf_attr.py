# SPDX-License-Identifier: Apache-2.0
"""``struct perf_event_attr`` (include/uapi/linux/perf_event.h): what an event samples, its name, and where its fields lie in a record."""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass, replace

from perfguest.errors import FormatError

#: What a file holds: read, or mapped.
FileBytes = bytes | mmap.mmap

IP, TID, TIME, ADDR, READ, CALLCHAIN, ID, CPU, PERIOD, STREAM_ID = (1 << bit for bit in range(10))
IDENTIFIER = 1 << 16

READ_ENABLED, READ_RUNNING, READ_ID, READ_GROUP, READ_LOST = (1 << bit for bit in range(5))

#: The 8-byte words of a sample before those of varying length, in their order.
_SAMPLE_WORDS = (IDENTIFIER, IP, TID, TIME, ADDR, ID, STREAM_ID, CPU, PERIOD)
#: The words of ``struct sample_id`` at the end of every other record, in their order.
_TRAILER_WORDS = (TID, TIME, ID, STREAM_ID, CPU, IDENTIFIER)

_ATTR = struct.Struct("<II5Q")
_CLOCKID_OFFSET = 92
#: Size of the first published struct, and the least there may be.
MIN_ATTR_BYTES = 64

# In the order of enum perf_hw_id and enum perf_sw_ids.
_HARDWARE = (
    "cycles",
    "instructions",
    "cache-references",
    "cache-misses",
    "branches",
    "branch-misses",
    "bus-cycles",
    "stalled-cycles-frontend",
    "stalled-cycles-backend",
    "ref-cycles",
)
_SOFTWARE = (
    "cpu-clock",
    "task-clock",
    "page-faults",
    "context-switches",
    "cpu-migrations",
    "minor-faults",
    "major-faults",
    "alignment-faults",
    "emulation-faults",
    "dummy",
    "bpf-output",
    "cgroup-switches",
)


@dataclass(frozen=True)
class Event:
    """One event of a recording. ``ids`` are those that samples carry, one per CPU or task."""

    name: str
    type: int
    config: int
    #: Period, or frequency in Hz where :attr:`is_frequency`.
    sample_period: int
    sample_type: int
    read_format: int
    flags: int
    #: Clock of the time fields (``CLOCK_…``); None for perf's own.
    clockid: int | None
    ids: tuple[int, ...] = ()

    @property
    def is_frequency(self) -> bool:
        return bool(self.flags >> 10 & 1)

    @property
    def sample_id_all(self) -> bool:
        """Records other than samples end in a ``struct sample_id``."""
        return bool(self.flags >> 18 & 1)

    @property
    def exclude_host(self) -> bool:
        return bool(self.flags >> 19 & 1)

    @property
    def exclude_guest(self) -> bool:
        return bool(self.flags >> 20 & 1)

    @property
    def layout(self) -> tuple[int, int]:
        """Events of equal layout have their sample's fields at the same places."""
        return self.sample_type, self.read_format

    def sample_words(self) -> dict[int, int]:
        """Byte offset in a sample record of each field before READ, by its ``PERF_SAMPLE_`` bit."""
        present = [bit for bit in _SAMPLE_WORDS if self.sample_type & bit]
        return {bit: 8 + 8 * index for index, bit in enumerate(present)}

    def trailer_words(self) -> dict[int, int]:
        """Byte distance from the end of any other record to each field of its ``struct sample_id``; empty where there is none."""
        present = [bit for bit in _TRAILER_WORDS if self.sample_type & bit] if self.sample_id_all else []
        return {bit: 8 * (len(present) - index) for index, bit in enumerate(present)}

    def with_ids(self, ids: tuple[int, ...]) -> Event:
        return replace(self, ids=ids)

    def with_name(self, name: str) -> Event:
        return replace(self, name=name)


def parse_attr(path: str, data: FileBytes, offset: int, size: int) -> Event:
    """Reads the ``size`` bytes at ``offset``. The name is that which perf would make up from type, config and exclusions.

    Raises :class:`FormatError` for less than the oldest attr.
    """
    if size < MIN_ATTR_BYTES or offset < 0 or offset + size > len(data):
        raise FormatError(f"{path}: no whole perf_event_attr at offset {offset:#x}", "The file is damaged; record again.")
    kind, _, config, period, sample_type, read_format, flags = _ATTR.unpack_from(data, offset)
    uses_clockid = bool(flags >> 25 & 1) and size >= _CLOCKID_OFFSET + 4
    clockid = struct.unpack_from("<i", data, offset + _CLOCKID_OFFSET)[0] if uses_clockid else None
    return Event(_name(kind, config, flags), kind, config, period, sample_type, read_format, flags, clockid)


def _name(kind: int, config: int, flags: int) -> str:
    known = {0: _HARDWARE, 1: _SOFTWARE}.get(kind, ())
    base = known[config] if config < len(known) else f"type {kind} config {config:#x}"
    modifiers = _modifiers(flags)
    return f"{base}:{modifiers}" if modifiers else base


def _modifiers(flags: int) -> str:
    excluded = {letter: bool(flags >> bit & 1) for letter, bit in zip("ukhHG", (4, 5, 6, 19, 20), strict=True)}
    precise = flags >> 15 & 3
    levels = "".join(letter for letter in "kuh" if not excluded[letter]) if any(excluded[letter] for letter in "ukh") else ""
    # Excluding the guest is perf's default unless a modifier was given, so only the other case is worth a letter.
    guest_expected = bool(levels or precise)
    sides = "".join(letter for letter in "HG" if not excluded[letter]) if excluded["H"] or excluded["G"] == guest_expected else ""
    return levels + "p" * precise + sides
