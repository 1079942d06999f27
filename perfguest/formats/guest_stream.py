# SPDX-License-Identifier: Apache-2.0
"""Reads guest.stream: what the kernel module wrote, in columns.

The file begins with 16 bytes ``PERFGUEST-STREAM``, the version (u32), the length of the module's ``format`` text (u32), that text, and zeros up to a multiple
of 8. Records follow as the module's streams gave them (``kmod/perfguest_abi.h``). Fields are found by the ``format`` text, so that a later module's records
can be read as far as they are known here. A file whose recorder was cut off in the middle of a record is read up to there.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.recording import STREAM_MAGIC, STREAM_VERSION
from perfguest.profile import I32, I64, U64

ABI_VERSION = 1

#: Kinds of sections and flags of samples: ``enum pg_section_kind`` and ``PG_SAMPLE_*`` in kmod/perfguest_abi.h.
CHAIN_KERNEL, CHAIN_USER = 1, 2
FLAG_USER = 1 << 0

#: ``enum pg_lost_reason``.
LOST_REASONS = ("full", "nested", "no_reader", "no_vcpu")

_HEAD = struct.Struct("<16sII")
_MAX_SECTIONS = 64
_KINDS = {"u16": "<u2", "u32": "<u4", "u64": "<u8", "char": "S"}


@dataclass(frozen=True)
class Chains:
    """One frame-pointer chain a sample. Chain *i* is ``address[start[i]:start[i + 1]]``, leaf first; empty if the sample has none. ``end``: ``enum pg_end``."""

    start: I64
    address: U64
    end: I32


@dataclass(frozen=True)
class GuestSamples:
    """Columns of sample records, in the order of the file. ``fields`` has what ``format`` describes, a numpy structured array."""

    fields: npt.NDArray[np.void]
    kernel: Chains
    user: Chains

    def __len__(self) -> int:
        return len(self.fields)

    def column(self, name: str, dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
        """The field as an array of the dtype; raises :class:`FormatError` if the module's format has no such field."""
        if name not in (self.fields.dtype.names or ()):
            raise FormatError(
                f"the guest stream's samples have no field {name!r}", "It was written by another version of the module: convert with that version's perfguest."
            )
        return np.ascontiguousarray(self.fields[name]).astype(dtype)


@dataclass(frozen=True)
class Memslot:
    """A piece of guest-physical memory and where the VMM's address space has it, in bytes."""

    gpa: int
    size: int
    hva: int


@dataclass(frozen=True)
class VmRecord:
    """The state of a VM's memory at a time: see ``struct pg_vm``."""

    time: int
    vm_id: int
    pid: int
    lstar: int
    memslots: list[Memslot]


@dataclass(frozen=True)
class GuestStream:
    """All of a guest.stream. ``lost``: per host CPU, counts in the order of :data:`LOST_REASONS`."""

    format_text: str
    samples: GuestSamples
    vms: list[VmRecord]
    lost: dict[int, list[int]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Layout:
    """Of one struct of the format text. ``type``: the record's, 0 for parts of records."""

    type: int
    dtype: np.dtype[np.void]


def parse_format(text: str) -> dict[str, _Layout]:
    """The structs that the module's ``format`` text describes, by name. Raises :class:`FormatError` if one that is needed is not there or makes no sense."""
    abi = re.match(r"abi: (\d+)\n", text)
    if not abi:
        raise FormatError("the guest stream's description of its records does not begin with 'abi:'", "The file is damaged: record again.")
    if int(abi[1]) != ABI_VERSION:
        raise FormatError(
            f"the guest stream has records of version {abi[1]}, this perfguest reads version {ABI_VERSION}",
            "Convert with the perfguest that recorded it, or a newer one.",
        )
    layouts = dict(_parse_struct(block) for block in text.split("\n\n")[1:])
    missing = {"sample", "section", "vm", "memslot", "lost"} - layouts.keys()
    if missing:
        raise FormatError(f"the guest stream does not describe {', '.join(sorted(missing))}", "The file is damaged: record again.")
    for name, needed in _NEEDED.items():
        absent = needed - set(layouts[name].dtype.names or ())
        if absent:
            raise FormatError(f"the guest stream's {name} lacks {', '.join(sorted(absent))}", "The file is damaged: record again.")
    return layouts


_NEEDED = {
    "sample": {"time", "cpu", "vm_id", "vm_pid", "tid", "vcpu_id", "nr_sections", "flags", "ip", "cr3"},
    "section": {"kind", "end", "size", "address"},
    "vm": {"time", "vm_id", "vm_pid", "nr_memslots", "lstar"},
    "memslot": {"gpa", "size", "hva"},
    "lost": {"cpu", "lost"},
}


def _parse_struct(block: str) -> tuple[str, _Layout]:
    head = re.match(r"name: (\w+)\nID: (\d+)\nsize: (\d+)\n", block)
    if not head:
        raise FormatError(f"the guest stream's format has a struct that cannot be read: {block[:40]!r}", "The file is damaged: record again.")
    size = int(head[3])
    names, formats, offsets = [], [], []
    for kind, name, count, offset, length in re.findall(r"\tfield:(\w+) (\w+)(?:\[(\d+)\])?;\toffset:(\d+);\tsize:(\d+);", block):
        base = _KINDS.get(kind)
        if base is None or int(offset) + int(length) > size:
            raise FormatError(f"the guest stream's field {head[1]}.{name} cannot be read", "The file is damaged, or of a newer perfguest.")
        if base == "S":
            formats.append(f"S{length}")
        else:
            formats.append(f"({count},){base}" if count else base)
        names.append(name)
        offsets.append(int(offset))
    try:
        dtype = np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": size})
    except (TypeError, ValueError) as error:
        raise FormatError(f"the guest stream's {head[1]} cannot be read: {error}", "The file is damaged: record again.") from error
    return head[1], _Layout(int(head[2]), dtype)


def read_guest_stream(path: Path) -> GuestStream:
    """Reads the file. Raises :class:`FormatError` if it is not a guest stream or of a newer format; a tail that is cut or garbage becomes a note."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}", "Is this a whole recording directory?") from error
    text, at = _read_head(path, data)
    layouts = parse_format(text)
    words = np.frombuffer(data, "<u4", len(data) // 4)
    offsets, end = _walk(words, at)
    notes = []
    if end < len(data):
        notes.append(f"{path}: {len(data) - end} bytes at offset {end} are not whole records and were left out")
    bytes_ = np.frombuffer(data, np.uint8)
    types = words[offsets // 4]
    sizes = words[offsets // 4 + 1].astype(np.int64)
    chosen = types == layouts["sample"].type
    samples = _read_samples(path, bytes_, offsets[chosen], sizes[chosen], layouts)
    vms = list(_read_vms(data, offsets[types == layouts["vm"].type], layouts))
    return GuestStream(text, samples, vms, _sum_lost(bytes_, offsets[types == layouts["lost"].type], layouts["lost"]), notes)


def _read_head(path: Path, data: bytes) -> tuple[str, int]:
    """The format text and the offset of the first record."""
    if len(data) < _HEAD.size or not data.startswith(STREAM_MAGIC):
        raise FormatError(f"{path}: not a guest stream of perfguest", "Give the directory that 'perfguest record' wrote.")
    _, version, length = _HEAD.unpack_from(data)
    if version != STREAM_VERSION:
        raise FormatError(
            f"{path}: file format {version}, this perfguest reads {STREAM_VERSION}", "Convert with the perfguest that recorded it, or a newer one."
        )
    if _HEAD.size + length > len(data):
        raise FormatError(f"{path}: cut off in its head, at offset {len(data)}", "The recording was ended before it began: record again.")
    text = data[_HEAD.size : _HEAD.size + length].decode("ascii", "replace")
    return text, -(-(_HEAD.size + length) // 8) * 8


def _walk(words: npt.NDArray[np.uint32], at: int) -> tuple[I64, int]:
    """Offsets of the records, and where they end: the one loop over records, for each says where the next is."""
    view = memoryview(words.data).cast("B").cast("I")
    offsets: list[int] = []
    append = offsets.append
    end = len(view)
    index = at // 4
    while index + 2 <= end:
        size = view[index + 1]
        if size < 24 or size & 7 or index + size // 4 > end:
            break
        append(index)
        index += size // 4
    return np.array(offsets, dtype=np.int64) * 4, index * 4


def _gather(data: npt.NDArray[np.uint8], offsets: I64, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """The structs at the offsets."""
    if not len(offsets):
        return np.empty(0, dtype)
    windows = np.lib.stride_tricks.sliding_window_view(data, dtype.itemsize)
    return np.ascontiguousarray(windows[offsets]).view(dtype)[:, 0]


def _read_samples(path: Path, data: npt.NDArray[np.uint8], offsets: I64, sizes: I64, layouts: dict[str, _Layout]) -> GuestSamples:
    layout, section = layouts["sample"], layouts["section"].dtype
    whole = sizes >= layout.dtype.itemsize
    if not whole.all():
        raise FormatError(f"{path}: a sample at offset {offsets[~whole][0]} is shorter than its format says", "The file is damaged: record again.")
    fields = _gather(data, offsets, layout.dtype)
    number = fields["nr_sections"].astype(np.int64)
    chains: dict[int, list[tuple[I64, I64, I64, I32]]] = {CHAIN_KERNEL: [], CHAIN_USER: []}
    cursor, limit = offsets + layout.dtype.itemsize, offsets + sizes
    index = np.arange(len(offsets))
    for turn in range(min(int(number.max(initial=0)), _MAX_SECTIONS)):
        alive = (number[index] > turn) & (cursor[index] + section.itemsize <= limit[index])
        index = index[alive]
        if not len(index):
            break
        head = _gather(data, cursor[index], section)
        length = head["size"].astype(np.int64)
        start = cursor[index] + section.itemsize
        if (start + length > limit[index]).any():
            raise FormatError(
                f"{path}: a section at offset {cursor[index][start + length > limit[index]][0]} is longer than its record", "The file is damaged: record again."
            )
        for kind, found in chains.items():
            of = head["kind"] == kind
            found.append((index[of], start[of], length[of] // 8, head["end"][of].astype(np.int32)))
        cursor[index] = start + (length + 7 & ~7)
    return GuestSamples(fields, _join_chains(data, len(offsets), chains[CHAIN_KERNEL]), _join_chains(data, len(offsets), chains[CHAIN_USER]))


def _join_chains(data: npt.NDArray[np.uint8], number: int, parts: list[tuple[I64, I64, I64, I32]]) -> Chains:
    at, count, end = np.zeros(number, np.int64), np.zeros(number, np.int64), np.zeros(number, np.int32)
    for index, offset, length, why in parts:
        at[index], count[index], end[index] = offset, length, why
    start = np.zeros(number + 1, np.int64)
    np.cumsum(count, out=start[1:])
    # Records and sections are aligned to 8 bytes, so chains are too.
    words = np.frombuffer(data.tobytes() if not data.flags.c_contiguous else data, np.uint64, len(data) // 8)
    positions = np.repeat(at // 8 - start[:-1], count) + np.arange(start[-1])
    return Chains(start, words[positions], end)


def _read_vms(data: bytes, offsets: I64, layouts: dict[str, _Layout]) -> Iterator[VmRecord]:
    record, slot = layouts["vm"].dtype, layouts["memslot"].dtype
    for offset in offsets.tolist():
        (size,) = struct.unpack_from("<I", data, offset + 4)
        if size < record.itemsize:
            continue
        vm = np.frombuffer(data, record, 1, offset)[0]
        number = min(int(vm["nr_memslots"]), (size - record.itemsize) // slot.itemsize)
        slots = np.frombuffer(data, slot, number, offset + record.itemsize)
        memslots = [Memslot(int(s["gpa"]), int(s["size"]), int(s["hva"])) for s in slots]
        yield VmRecord(int(vm["time"]), int(vm["vm_id"]), int(vm["vm_pid"]), int(vm["lstar"]), memslots)


def _sum_lost(data: npt.NDArray[np.uint8], offsets: I64, layout: _Layout) -> dict[int, list[int]]:
    records = _gather(data, offsets, layout.dtype)
    result: dict[int, list[int]] = {}
    for cpu in np.unique(records["cpu"]).tolist():
        counts = records["lost"][records["cpu"] == cpu].astype(np.int64).sum(axis=0)
        result[int(cpu)] = counts.tolist()
    return result
