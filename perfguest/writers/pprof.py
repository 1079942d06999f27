# SPDX-License-Identifier: Apache-2.0
"""pprof's format (``proto/profile.proto``): one gzipped message, in which samples of the same stack and the same labels are one.

No viewer may look for symbols of its own: the addresses are a guest's or another machine's, and a file of the same name here would give wrong names.
So each mapping says that it has its functions.
"""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

from perfguest.profile import I32, I64, U8, Mode, Profile, Samples
from perfguest.proto import profile_pb2 as pb
from perfguest.writers.columns import Indices, blocks, has_symbol, is_clock, unique_rows
from perfguest.writers.text import escape

_BLOCK = 4096


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
    with gzip.GzipFile(filename="", mode="wb", fileobj=out, mtime=0) as packed:
        for message in _messages(profile):
            packed.write(message.SerializeToString(deterministic=True))


def _messages(profile: Profile) -> Iterator[pb.Profile]:
    """Pieces of the profile: messages that follow one another are one message with all their fields."""
    strings = _StringTable()
    yield _head(profile, strings)
    yield from _mappings(profile, strings)
    yield from _locations(profile, strings)
    yield from _samples(profile, strings)
    yield pb.Profile(string_table=strings.indices)


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


def _mappings(profile: Profile, strings: _StringTable) -> Iterator[pb.Profile]:
    """Mapping *i* has the id *i* + 1; one more is for frames of no mapping."""
    for index, mapping in enumerate(profile.mappings):
        one = pb.Mapping(
            id=index + 1,
            memory_start=mapping.start,
            memory_limit=mapping.limit,
            file_offset=mapping.file_offset,
            filename=strings[escape(mapping.name) or "[unknown]"],
            build_id=strings[escape(mapping.build_id)],
            has_functions=True,
        )
        yield pb.Profile(mapping=[one])
    yield pb.Profile(mapping=[pb.Mapping(id=len(profile.mappings) + 1, filename=strings["[unknown]"], has_functions=True)])


def _locations(profile: Profile, strings: _StringTable) -> Iterator[pb.Profile]:
    """Frame *i* is the location *i* + 1.

    pprof adds up functions of equal names, a host's do_syscall_64 and its guest's too, unless it is asked for ``-filefunctions``: so the mapping is the file.
    """
    frames = profile.frames
    functions: dict[tuple[int, int], int] = {}
    safe = [escape(string) for string in profile.strings]
    files = [escape(mapping.name) for mapping in profile.mappings] + ["[unknown]"]
    named = np.array(has_symbol(profile), bool) | (frames.mode == Mode.NONE)
    for block in blocks(len(frames), _BLOCK):
        part = pb.Profile()
        rows = zip(*(column[block].tolist() for column in (named, frames.symbol, frames.mapping, frames.address)), strict=True)
        for index, (has_name, symbol, mapping, address) in enumerate(rows, block.start):
            location = part.location.add(id=index + 1, address=address, mapping_id=(mapping if mapping >= 0 else len(profile.mappings)) + 1)
            if not has_name:
                continue
            key = (symbol, mapping)
            if key not in functions:
                functions[key] = len(functions) + 1
                name = strings[(safe[symbol] if symbol >= 0 else "") or "[unknown]"]
                part.function.add(id=functions[key], name=name, system_name=name, filename=strings[files[mapping]])
            location.line.add(function_id=functions[key])
        yield part


def _samples(profile: Profile, strings: _StringTable) -> Iterator[pb.Profile]:
    samples = profile.samples
    labels_first, labels = unique_rows(*_label_columns(samples))
    label_bytes = [pb.Sample(label=one).SerializeToString() for one in _labels(profile, labels_first, strings)]
    first, kind = unique_rows(samples.stack, labels)
    values = _values(profile, kind, len(first))
    for block in blocks(len(first), _BLOCK):
        part = pb.Profile()
        rows = zip(samples.stack[first[block]].tolist(), labels[first[block]].tolist(), values[block].tolist(), strict=True)
        for stack, label, value in rows:
            one = part.sample.add(location_id=(profile.stacks.of(stack) + 1).tolist(), value=value)
            one.MergeFromString(label_bytes[label])
        yield part


def _values(profile: Profile, kind: Indices, kinds: int) -> I64:
    """Shape (kinds, 1 + events): how many samples each kind has, and the sum of their periods in the column of their event."""
    samples = profile.samples
    values = np.zeros((kinds, 1 + len(profile.events)), np.int64)
    values[:, 0] = np.bincount(kind, minlength=kinds)
    np.add.at(values, (kind, samples.event + 1), samples.period)
    return values


def _label_columns(samples: Samples) -> tuple[I32 | U8, ...]:
    host = (samples.mode, samples.vm, samples.vcpu, samples.cpu, samples.pid, samples.tid, samples.comm, samples.event)
    return (*host, samples.guest_comm, samples.guest_pid, samples.guest_tid, samples.cgroup)


def _labels(profile: Profile, rows: Indices, strings: _StringTable) -> Iterator[list[pb.Label]]:
    # The empty one at the end is that of index -1.
    names = [*profile.strings, ""]
    columns = (column[rows].tolist() for column in _label_columns(profile.samples))
    for mode, vm, vcpu, cpu, pid, tid, comm, event, guest_comm, guest_pid, guest_tid, cgroup in zip(*columns, strict=True):
        texts = {
            "execution_mode": Mode(mode).label,
            "vm": profile.vms[vm].name if vm >= 0 else "",
            "comm": names[comm],
            "event": profile.events[event],
            "guest_comm": names[guest_comm],
            "cgroup": names[cgroup],
        }
        numbers = {"cpu": cpu, "pid": pid, "tid": tid}
        numbers |= {key: number for key, number in (("vcpu", vcpu), ("guest_pid", guest_pid), ("guest_tid", guest_tid)) if number >= 0}
        yield [
            *(pb.Label(key=strings[key], str=strings[escape(text)]) for key, text in texts.items() if text),
            *(pb.Label(key=strings[key], num=number, num_unit=strings[key]) for key, number in numbers.items()),
        ]
