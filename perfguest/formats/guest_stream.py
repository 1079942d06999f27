# SPDX-License-Identifier: Apache-2.0
"""Reads guest.stream: what the kernel module wrote, in columns.

The file begins with 16 bytes ``PERFGUEST-STREAM``, the version (u32), the length of the module's ``format`` text (u32), that text, and zeros up to a multiple
of 8. Records follow as the module's streams gave them (``kmod/perfguest_abi.h``). Fields are found by the ``format`` text, so that a later module's records
can be read as far as they are known here. A file whose recorder was cut off in the middle of a record is read up to there.

Most of a file are copies of stacks. They are left where they are: the file is mapped, and the columns say where in it they stand.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.guest_format import Layout, parse_format
from perfguest.formats.recording import STREAM_MAGIC, STREAM_VERSION
from perfguest.profile import I32, I64, U8, U64

#: Kinds of sections and flags of samples: ``enum pg_section_kind`` and ``PG_SAMPLE_*`` in kmod/perfguest_abi.h.
CHAIN_KERNEL, CHAIN_USER, STACK_KERNEL, STACK_TASK, STACK_USER, USER_REGS = 1, 2, 3, 4, 5, 6
FLAG_USER, FLAG_LONG_MODE, FLAG_CODE64, FLAG_CODE32, FLAG_REGS = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 8
#: ``enum pg_end``: why a chain or a copy ends where it does.
END_FULL, END_STACK_TOP, END_NOT_MAPPED, END_BAD_ADDRESS, END_BAD_TABLE, END_NO_SLOT, END_NOT_RESIDENT = 2, 3, 7, 8, 9, 10, 11

#: ``enum pg_lost_reason``.
LOST_REASONS = ("full", "nested", "no_reader", "no_vcpu")

_HEAD = struct.Struct("<16sII")
_MAX_SECTIONS = 64
#: Linux's selector for 64-bit user code: ``PG_USER_CS``.
_USER_CS = 0x33
#: So much of the file is looked at before its pages are let go of.
_WINDOW = 64 << 20


@dataclass(frozen=True)
class Chains:
    """One frame-pointer chain a sample. Chain *i* is ``address[start[i]:start[i + 1]]``, leaf first; empty if the sample has none. ``end``: ``enum pg_end``."""

    start: I64
    address: U64
    end: I32


@dataclass(frozen=True)
class Copies:
    """Raw copies of guests' stacks. Those of sample *i* are rows ``start[i]`` to ``start[i + 1]``, in the order of the record.

    ``kind`` (uint8): :data:`STACK_KERNEL`, at most one; :data:`STACK_TASK`, the task's stack where the kernel was on another (before it, an interrupt's, where
    that was interrupted too); :data:`STACK_USER`, at most one. Of each, ``size`` bytes (int64) from the guest's ``address`` (uint64) upwards stand at
    ``offset`` (int64, a multiple of 8) of :attr:`GuestStream.memory`. ``end`` (int32, ``enum pg_end``) says why there are no more.
    """

    start: I64
    kind: U8
    address: U64
    offset: I64
    size: I64
    end: I32

    def __len__(self) -> int:
        return len(self.kind)


@dataclass(frozen=True)
class UserRegisters:
    """Of samples that hit the kernel while it ran for a user program, that program's registers.

    ``row`` (int64[k], ascending): which samples. ``registers``: uint64[k, 17] in the order of :meth:`GuestSamples.registers`. ``code64`` (bool[k]): whether it
    is 64-bit code.
    """

    row: I64
    registers: U64
    code64: npt.NDArray[np.bool_]


def _no_registers() -> UserRegisters:
    return UserRegisters(np.zeros(0, np.int64), np.zeros((0, 17), np.uint64), np.zeros(0, np.bool_))


@dataclass(frozen=True)
class GuestSamples:
    """Columns of sample records, in the order of the file. ``fields`` has what ``format`` describes, a numpy structured array."""

    fields: npt.NDArray[np.void]
    kernel: Chains
    user: Chains
    copies: Copies
    user_registers: UserRegisters = field(default_factory=_no_registers)

    def __len__(self) -> int:
        return len(self.fields)

    def column(self, name: str, dtype: npt.DTypeLike = np.int64) -> npt.NDArray[Any]:
        """The field as an array of the dtype; raises :class:`FormatError` if the module's format has no such field."""
        if name not in (self.fields.dtype.names or ()):
            raise FormatError(
                f"the guest stream's samples have no field {name!r}", "It was written by another version of the module: convert with that version's perfguest."
            )
        return np.ascontiguousarray(self.fields[name]).astype(dtype)

    def registers(self, rows: slice | I64 = slice(None)) -> U64:
        """uint64[n, 17] of the samples ``rows``: RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI, R8 to R15, RIP at the sample. Where a sample's flags lack
        :data:`FLAG_REGS`, only RIP is known and the others are 0. Raises :class:`FormatError` as :meth:`column` does."""
        part = replace(self, fields=self.fields[rows])
        registers = np.empty((len(part), 17), np.uint64)
        registers[:, :16] = part.column("regs", np.uint64)
        registers[:, 16] = part.column("ip", np.uint64)
        return registers


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
    """All of a guest.stream. ``lost``: per host CPU, counts in the order of :data:`LOST_REASONS`. ``memory``: the bytes of the file that is mapped."""

    format_text: str
    samples: GuestSamples
    vms: list[VmRecord]
    lost: dict[int, list[int]]
    memory: U8
    mapping: mmap.mmap
    notes: list[str] = field(default_factory=list)

    def let_go(self) -> None:
        """Gives back what reading the copies took of this process's memory; they can be read again."""
        self.mapping.madvise(mmap.MADV_DONTNEED)


def read_guest_stream(path: Path) -> GuestStream:
    """Reads the file. Raises :class:`FormatError` if it is not a guest stream or of a newer format; a tail that is cut or garbage becomes a note.

    The file stays mapped as long as the result lives, and must not be made shorter meanwhile.
    """
    mapped = _map(path)
    text, at = _read_head(path, mapped)
    reader = _Reader(path, np.frombuffer(mapped, np.uint8), parse_format(text))
    notes = []
    for offsets, end in _windows(mapped, at):
        reader.read(offsets)
        # What was looked at lies scattered among copies of stacks, and the kernel maps their pages with it.
        mapped.madvise(mmap.MADV_DONTNEED, 0, end)
        at = end
    if at < len(mapped):
        notes.append(f"{path}: {len(mapped) - at} bytes at offset {at} are not whole records and were left out")
    return GuestStream(text, reader.samples(), reader.vms, reader.lost, reader.data, mapped, notes)


def _map(path: Path) -> mmap.mmap:
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise _not_a_stream(path)
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"{path}: {error.strerror}", "Is this a whole recording directory?") from error


def _not_a_stream(path: Path) -> FormatError:
    return FormatError(f"{path}: not a guest stream of perfguest", "Give the directory that 'perfguest record' wrote.")


def _read_head(path: Path, data: mmap.mmap | bytes) -> tuple[str, int]:
    """The format text and the offset of the first record."""
    if len(data) < _HEAD.size or data[: len(STREAM_MAGIC)] != STREAM_MAGIC:
        raise _not_a_stream(path)
    _, version, length = _HEAD.unpack_from(data)
    if version != STREAM_VERSION:
        raise FormatError(
            f"{path}: file format {version}, this perfguest reads {STREAM_VERSION}", "Convert with the perfguest that recorded it, or a newer one."
        )
    if _HEAD.size + length > len(data):
        raise FormatError(f"{path}: cut off in its head, at offset {len(data)}", "The recording was ended before it began: record again.")
    text = data[_HEAD.size : _HEAD.size + length].decode("ascii", "replace")
    return text, -(-(_HEAD.size + length) // 8) * 8


def _windows(data: mmap.mmap, at: int) -> Iterator[tuple[I64, int]]:
    """Of each window, the offsets of its records, and where the last of them ends."""
    words = memoryview(data)[: len(data) & ~7].cast("I")
    index, end = at // 4, len(words)
    while True:
        offsets, index, more = _walk(words, index, min(index + _WINDOW // 4, end))
        yield np.array(offsets, np.int64) * 4, index * 4
        if not more:
            return


def _walk(words: memoryview[int], index: int, stop: int) -> tuple[list[int], int, bool]:
    """Indices of the records that begin before ``stop``, where they end, and whether there may be more: the one loop over records, for each says where
    the next is."""
    offsets: list[int] = []
    append, end = offsets.append, len(words)
    while index + 2 <= stop:
        size = words[index + 1]
        if size < 24 or size & 7 or index + size // 4 > end:
            return offsets, index, False
        append(index)
        index += size // 4
    return offsets, index, index + 2 <= end


def _gather(data: U8, offsets: I64, dtype: np.dtype[np.void]) -> npt.NDArray[np.void]:
    """The structs at the offsets."""
    if not len(offsets):
        return np.empty(0, dtype)
    windows = np.lib.stride_tricks.sliding_window_view(data, dtype.itemsize)
    return np.ascontiguousarray(windows[offsets]).view(dtype)[:, 0]


class _Reader:
    """Gathers the columns, a window after the other."""

    def __init__(self, path: Path, data: U8, layouts: dict[str, Layout]) -> None:
        self.data = data
        self.vms: list[VmRecord] = []
        self.lost: dict[int, list[int]] = {}
        self._path = path
        self._layouts = layouts
        self._words = data[: len(data) & ~7].view("<u4")
        self._parts: list[GuestSamples] = []

    def read(self, offsets: I64) -> None:
        """The records at these offsets. Raises :class:`FormatError` for one that contradicts the format."""
        types = self._words[offsets // 4]
        sizes = self._words[offsets // 4 + 1].astype(np.int64)
        of = {name: types == layout.type for name, layout in self._layouts.items()}
        self._parts.append(self._read_samples(offsets[of["sample"]], sizes[of["sample"]]))
        self.vms.extend(self._read_vms(offsets[of["vm"]], sizes[of["vm"]]))
        self._add_lost(offsets[of["lost"]])

    def samples(self) -> GuestSamples:
        """Of all windows."""
        parts = self._parts
        copies, users = [part.copies for part in parts], [part.user_registers for part in parts]
        before = np.cumsum([0, *(len(part) for part in parts[:-1])])
        return GuestSamples(
            np.concatenate([part.fields for part in parts]),
            _concatenate_chains([part.kernel for part in parts]),
            _concatenate_chains([part.user for part in parts]),
            Copies(
                _concatenate_starts([part.start for part in copies]),
                np.concatenate([part.kind for part in copies]),
                np.concatenate([part.address for part in copies]),
                np.concatenate([part.offset for part in copies]),
                np.concatenate([part.size for part in copies]),
                np.concatenate([part.end for part in copies]),
            ),
            UserRegisters(
                np.concatenate([first + part.row for first, part in zip(before.tolist(), users, strict=True)]),
                np.concatenate([part.registers for part in users]),
                np.concatenate([part.code64 for part in users]),
            ),
        )

    def _read_samples(self, offsets: I64, sizes: I64) -> GuestSamples:
        layout = self._layouts["sample"]
        whole = sizes >= layout.dtype.itemsize
        if not whole.all():
            raise FormatError(f"{self._path}: a sample at offset {offsets[~whole][0]} is shorter than its format says", "The file is damaged: record again.")
        fields = _gather(self.data, offsets, layout.dtype)
        sections = self._read_sections(offsets + layout.dtype.itemsize, offsets + sizes, fields["nr_sections"].astype(np.int64))
        kernel, user = (self._read_chains(len(offsets), sections, kind) for kind in (CHAIN_KERNEL, CHAIN_USER))
        return GuestSamples(fields, kernel, user, _copies(len(offsets), sections), self._read_user_registers(sections))

    def _read_sections(self, cursor: I64, limit: I64, number: I64) -> _Sections:
        """All sections of samples whose first is at ``cursor``, in the order of samples and within a sample of the record. Changes ``cursor``."""
        section = self._layouts["section"].dtype
        index = np.arange(len(cursor))
        turns: list[_Sections] = []
        for turn in range(min(int(number.max(initial=0)), _MAX_SECTIONS)):
            index = index[(number[index] > turn) & (cursor[index] + section.itemsize <= limit[index])]
            if not len(index):
                break
            head = _gather(self.data, cursor[index], section)
            size, start = head["size"].astype(np.int64), cursor[index] + section.itemsize
            too_long = start + size > limit[index]
            if too_long.any():
                raise FormatError(
                    f"{self._path}: a section at offset {cursor[index][too_long][0]} is longer than its record", "The file is damaged: record again."
                )
            turns.append(_Sections(index, head["kind"].astype(np.int64), head["address"].astype(np.uint64), start, size, head["end"].astype(np.int32)))
            cursor[index] = start + (size + 7 & ~7)
        return _in_order(turns)

    def _read_chains(self, number: int, sections: _Sections, kind: int) -> Chains:
        found = sections.where(sections.kind == kind)
        at, count, end = np.zeros(number, np.int64), np.zeros(number, np.int64), np.zeros(number, np.int32)
        at[found.index], count[found.index], end[found.index] = found.offset, found.size // 8, found.end
        start = np.zeros(number + 1, np.int64)
        np.cumsum(count, out=start[1:])
        # Records and sections are aligned to 8 bytes, so chains are too.
        positions = np.repeat(at // 8 - start[:-1], count) + np.arange(start[-1])
        return Chains(start, self._words.view("<u8")[positions].astype(np.uint64, copy=False), end)

    def _read_user_registers(self, sections: _Sections) -> UserRegisters:
        layout = self._layouts.get("user_regs")
        if layout is None or not {"regs", "ip", "cs"} <= set(layout.dtype.names or ()):
            return _no_registers()
        found = sections.where((sections.kind == USER_REGS) & (sections.size >= layout.dtype.itemsize))
        values = _gather(self.data, found.offset, layout.dtype)
        registers = np.concatenate([values["regs"].reshape(-1, 16), values["ip"][:, None]], axis=1).astype(np.uint64, copy=False)
        return UserRegisters(found.index, registers, values["cs"] == _USER_CS)

    def _read_vms(self, offsets: I64, sizes: I64) -> Iterator[VmRecord]:
        record, slot = self._layouts["vm"].dtype, self._layouts["memslot"].dtype
        for offset, size in zip(offsets.tolist(), sizes.tolist(), strict=True):
            if size < record.itemsize:
                continue
            vm = np.frombuffer(self.data, record, 1, offset)[0]
            number = min(int(vm["nr_memslots"]), (size - record.itemsize) // slot.itemsize)
            slots = np.frombuffer(self.data, slot, number, offset + record.itemsize)
            memslots = [Memslot(int(s["gpa"]), int(s["size"]), int(s["hva"])) for s in slots]
            yield VmRecord(int(vm["time"]), int(vm["vm_id"]), int(vm["vm_pid"]), int(vm["lstar"]), memslots)

    def _add_lost(self, offsets: I64) -> None:
        records = _gather(self.data, offsets, self._layouts["lost"].dtype)
        for cpu in np.unique(records["cpu"]).tolist():
            counts = records["lost"][records["cpu"] == cpu].astype(np.int64).sum(axis=0)
            self.lost[cpu] = (np.array(self.lost.get(cpu, np.zeros_like(counts))) + counts).tolist()


@dataclass(frozen=True)
class _Sections:
    # Of which sample (its row), ``enum pg_section_kind``, and of the payload the offset in the file and the bytes.
    index: I64
    kind: I64
    address: U64
    offset: I64
    size: I64
    end: I32

    def where(self, chosen: npt.NDArray[np.bool_] | I64) -> _Sections:
        return _Sections(self.index[chosen], self.kind[chosen], self.address[chosen], self.offset[chosen], self.size[chosen], self.end[chosen])


def _in_order(turns: list[_Sections]) -> _Sections:
    """From all first sections, all second ones and so on."""
    if not turns:
        none = np.zeros(0, np.int64)
        return _Sections(none, none, np.zeros(0, np.uint64), none, none, np.zeros(0, np.int32))
    joined = _Sections(
        np.concatenate([turn.index for turn in turns]),
        np.concatenate([turn.kind for turn in turns]),
        np.concatenate([turn.address for turn in turns]),
        np.concatenate([turn.offset for turn in turns]),
        np.concatenate([turn.size for turn in turns]),
        np.concatenate([turn.end for turn in turns]),
    )
    return joined.where(np.argsort(joined.index, kind="stable"))


def _copies(number: int, sections: _Sections) -> Copies:
    found = sections.where(np.isin(sections.kind, (STACK_KERNEL, STACK_TASK, STACK_USER)))
    start = np.zeros(number + 1, np.int64)
    np.cumsum(np.bincount(found.index, minlength=number), out=start[1:])
    return Copies(start, found.kind.astype(np.uint8), found.address, found.offset, found.size, found.end)


def _concatenate_chains(parts: list[Chains]) -> Chains:
    return Chains(
        _concatenate_starts([part.start for part in parts]), np.concatenate([part.address for part in parts]), np.concatenate([part.end for part in parts])
    )


def _concatenate_starts(parts: list[I64]) -> I64:
    """Of parts that each begin at 0 and end at their number of entries."""
    counts = np.concatenate([np.diff(part) for part in parts])
    start = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=start[1:])
    return start
