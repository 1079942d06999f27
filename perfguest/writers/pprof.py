# SPDX-License-Identifier: Apache-2.0
"""pprof's format (``proto/profile.proto``): one gzipped message, in which samples of the same stack and the same labels are one.

No viewer may look for symbols of its own: the addresses are a guest's or another machine's, and a file of the same name here would give wrong names.
So each mapping says that it has its functions.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import BinaryIO

import numpy as np

from perfguest import _native
from perfguest.profile import I32, I64, U8, Mode, Profile, Samples
from perfguest.proto import profile_pb2 as pb
from perfguest.rows import distinct_rows
from perfguest.writers.columns import blocks, has_symbol, is_clock, pieces
from perfguest.writers.text import escape

_BLOCK = 1 << 16
# The fastest, as Go's own profiles have it: the best takes seven times as long, and makes an eighth less of it.
_LEVEL = 1


@dataclass
class _StringTable:
    """Indices of strings, in the order in which they were first asked for."""

    indices: dict[str, int] = field(default_factory=lambda: {"": 0})

    def __getitem__(self, text: str) -> int:
        """``text``: printable already, see :func:`escape`."""
        return self.indices.setdefault(text, len(self.indices))


def write(profile: Profile, out: BinaryIO) -> None:
    """Writes the profile to ``out``. The same profile always gives the same bytes.

    Values: ``samples``, and for each event the sum of its periods (``cpu`` in nanoseconds for the clock events). Labels: ``execution_mode``, ``vm``,
    ``vcpu``, ``cpu``, ``pid``, ``tid``, ``comm``, ``event``; and of the guest's running thread, where it is known, ``guest_comm``, ``guest_pid``, ``guest_tid``
    and ``cgroup``.
    """
    with gzip.GzipFile(filename="", mode="wb", compresslevel=_LEVEL, fileobj=out, mtime=0) as packed:
        for message in _messages(profile):
            packed.write(message)


def _messages(profile: Profile) -> Iterator[bytes]:
    """Pieces of the profile: messages that follow one another are one message with all their fields."""
    strings = _StringTable()
    yield _head(profile, strings).SerializeToString(deterministic=True)
    yield _mappings(profile, strings).SerializeToString(deterministic=True)
    yield from _locations(profile, strings)
    yield from _samples(profile, strings)
    yield pb.Profile(string_table=strings.indices).SerializeToString(deterministic=True)


def _head(profile: Profile, strings: _StringTable) -> pb.Profile:
    samples = profile.samples
    types = [(escape(name), unit) for name, unit in _value_types(profile.events)]
    head = pb.Profile(
        sample_type=[_value_type(strings, "samples", "count"), *(_value_type(strings, *one) for one in types)],
        time_nanos=_nanoseconds(profile.wall_start or 0),
        comment=[strings[escape(note)] for note in profile.notes],
    )
    if len(samples):
        head.duration_nanos = int(samples.time[-1] - samples.time[0])
    if types:
        head.default_sample_type = strings[types[0][0]]
        head.period_type.CopyFrom(_value_type(strings, *types[0]))
        periods = np.sort(samples.period[samples.event == 0])
        head.period = int(periods[len(periods) // 2]) if len(periods) else 0
    return head


def _nanoseconds(seconds: float) -> int:
    """Without the digits that are lost when a number of today's size is multiplied as a float."""
    return int(seconds) * 1_000_000_000 + round(seconds % 1 * 1e9)


def _value_types(events: list[str]) -> list[tuple[str, str]]:
    """Name and unit of what each event counts."""
    clocks = [event for event in events if is_clock(event)]
    return [("cpu" if len(clocks) == 1 else event, "nanoseconds") if event in clocks else (event, "count") for event in events]


def _value_type(strings: _StringTable, name: str, unit: str) -> pb.ValueType:
    return pb.ValueType(type=strings[name], unit=strings[unit])


def _mappings(profile: Profile, strings: _StringTable) -> pb.Profile:
    """Mapping *i* has the id *i* + 1; one more is for frames of no mapping."""
    part = pb.Profile()
    for index, mapping in enumerate(profile.mappings):
        part.mapping.add(
            id=index + 1,
            memory_start=mapping.start,
            memory_limit=mapping.limit,
            file_offset=mapping.file_offset,
            filename=strings[escape(mapping.name) or "[unknown]"],
            build_id=strings[escape(mapping.build_id)],
            has_functions=True,
        )
    part.mapping.add(id=len(profile.mappings) + 1, filename=strings["[unknown]"], has_functions=True)
    return part


def _locations(profile: Profile, strings: _StringTable) -> Iterator[bytes]:
    """Frame *i* is the location *i* + 1.

    pprof adds up functions of equal names, a host's do_syscall_64 and its guest's too, unless it is asked for ``-filefunctions``: so the mapping is the file.
    """
    frames = profile.frames
    named = np.flatnonzero(has_symbol(profile) | (frames.mode == Mode.NONE))
    # A program has a mapping for each process that runs it. The last one is that of no mapping.
    files: dict[str, int] = {}
    numbers = [files.setdefault(name, len(files)) for name in [*(escape(one.name) for one in profile.mappings), "[unknown]"]]
    file = np.array(numbers, np.int32)[frames.mapping[named]]
    first, which = distinct_rows(frames.symbol[named], file)
    function = np.zeros(len(frames), np.int64)
    function[named] = which + 1
    mapping = np.where(frames.mapping >= 0, frames.mapping, len(profile.mappings)).astype(np.int64) + 1
    for block in blocks(len(frames), _BLOCK):
        yield _native.pprof_locations(block.start + 1, frames.address[block], mapping[block], function[block])
    texts, part = list(files), pb.Profile()
    for number, (symbol, place) in enumerate(zip(frames.symbol[named[first]].tolist(), file[first].tolist(), strict=True), 1):
        name = strings[(escape(profile.strings[symbol]) if symbol >= 0 else "") or "[unknown]"]
        part.function.add(id=number, name=name, system_name=name, filename=strings[texts[place]])
    yield part.SerializeToString(deterministic=True)


def _samples(profile: Profile, strings: _StringTable) -> Iterator[bytes]:
    samples, stacks = profile.samples, profile.stacks
    labels_first, labels = distinct_rows(*_label_columns(samples))
    texts = pieces(_labels(profile, labels_first, strings))
    first, kind = distinct_rows(samples.stack, labels)
    values = _values(profile, kind, len(first))
    for block in blocks(len(first), _BLOCK):
        rows = first[block]
        yield _native.pprof_samples(samples.stack[rows], labels[rows], values[block], stacks.start, stacks.frames, *texts)


def _values(profile: Profile, kind: I32, kinds: int) -> I64:
    """Shape (kinds, 1 + events): how many samples each kind has, and the sum of their periods in the column of their event."""
    samples = profile.samples
    values = np.zeros((kinds, 1 + len(profile.events)), np.int64)
    values[:, 0] = np.bincount(kind, minlength=kinds)
    np.add.at(values, (kind, samples.event + 1), samples.period)
    return values


def _label_columns(samples: Samples) -> tuple[I32 | U8, ...]:
    host = (samples.mode, samples.vm, samples.vcpu, samples.cpu, samples.pid, samples.tid, samples.comm, samples.event)
    return (*host, samples.guest_comm, samples.guest_pid, samples.guest_tid, samples.cgroup)


def _labels(profile: Profile, rows: I64, strings: _StringTable) -> Iterator[bytes]:
    """Of each row a message Sample with its labels alone."""
    # The empty one at the end is that of index -1.
    names = [*profile.strings, ""]

    @cache
    def text(key: str, value: str) -> bytes:
        if not value:
            return b""
        label = pb.Label(key=strings[key], str=strings[escape(value)])
        return pb.Sample(label=[label]).SerializeToString(deterministic=True)

    @cache
    def number(key: str, value: int) -> bytes:
        label = pb.Label(key=strings[key], num=value, num_unit=strings[key])
        return pb.Sample(label=[label]).SerializeToString(deterministic=True)

    @cache
    def known(key: str, value: int) -> bytes:
        return number(key, value) if value >= 0 else b""

    columns = (column[rows].tolist() for column in _label_columns(profile.samples))
    for mode, vm, vcpu, cpu, pid, tid, comm, event, guest_comm, guest_pid, guest_tid, cgroup in zip(*columns, strict=True):
        yield b"".join(
            (
                text("execution_mode", Mode(mode).label),
                text("vm", profile.vms[vm].name if vm >= 0 else ""),
                text("comm", names[comm]),
                text("event", profile.events[event]),
                text("guest_comm", names[guest_comm]),
                text("cgroup", names[cgroup]),
                known("cpu", cpu),
                number("pid", pid),
                number("tid", tid),
                known("vcpu", vcpu),
                known("guest_pid", guest_pid),
                known("guest_tid", guest_tid),
            )
        )
