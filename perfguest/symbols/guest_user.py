# SPDX-License-Identifier: Apache-2.0
"""Names addresses of guest programs from copies of their files.

Nothing in the recording says which program ran in which guest address space (CR3). Yet an executable that is linked to fixed
addresses, or whose load bias was given, can be proven to be the one: all samples of the address space lie in its code, and the return
addresses of their chains follow call instructions there. What is not proven so, by one file alone, stays an address.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError, UsageError
from perfguest.symbols.elf import read_elf
from perfguest.symbols.guest_calls import I64, U64, Bool, Code
from perfguest.symbols.resolved import Columns, Dso, Resolved

I32 = npt.NDArray[np.int32]

# A sampled chain has junk at its end where code without frame pointers uses RBP for something else. In a file that is not the one
# that ran, some 3% of all addresses follow a call by chance, so one alone proves nothing; and one more is asked for where there is junk.
_MIN_PROVEN = 2
_MAX_DISPROVEN_SHARE = 0.1
_CR3_ADDRESS = np.uint64(0x000FFFFFFFFFF000)
# Here Linux maps shared objects and the vDSO: what lies here is not the executable's.
_MMAP_AREA = np.uint64(0x7E0000000000)
_USER_END = 1 << 56

# Of a whole mounted root.
_NO_PROGRAMS = {"proc", "sys", "dev", "run"}

_ET_EXEC = 2
_PT_LOAD, _PF_X = 1, 1
_MAX_FILES = 200_000
_MAX_SEGMENTS = 256
_MAX_CODE = 1 << 30


@dataclass(frozen=True)
class _Segment:
    vaddr: int
    offset: int
    size: int


@dataclass
class _Program:
    """``name`` as in the guest, where that is known. ``which``: the VMs it is given for. ``bias``: what the loader added to its addresses."""

    path: str
    name: str
    bias: int
    which: set[int]
    segments: tuple[_Segment, ...]
    # Not read before samples lie in it.
    _code: Code | None = None

    def code(self) -> Code:
        if self._code is None:
            with Path(self.path).open("rb") as file:
                self._code = Code.of([(segment.vaddr + self.bias, _read_at(file.fileno(), segment)) for segment in self.segments])
        return self._code

    def covers(self, addresses: U64) -> Bool:
        covered = np.zeros(len(addresses), bool)
        for segment in self.segments:
            start = np.uint64(segment.vaddr + self.bias)
            covered |= (addresses >= start) & (addresses - start < np.uint64(segment.size))
        return covered


class GuestPrograms:
    """The files of guests' programs, and which of them ran in which address space."""

    def __init__(self, vm_count: int) -> None:
        self._programs: list[_Program] = []
        self._given = [False] * vm_count
        self._unread: list[str] = []
        # By VM: reason -> (address spaces, addresses).
        self._unnamed: dict[int, dict[str, tuple[int, int]]] = {}

    @property
    def given(self) -> bool:
        return any(self._given)

    def add_directory(self, directory: str, which: Sequence[int]) -> None:
        """All executables in it that are linked to fixed addresses. Raises :class:`UsageError` where it is no directory."""
        root = Path(directory)
        if not root.is_dir():
            raise UsageError(f"{directory}: not a directory", "Give --guestmount a directory that holds the guest's files at the guest's paths.")
        for path in _regular_files(root, directory):
            program = _fixed_executable(path)
            if program is not None:
                self._add(_Program(str(path), "/" + str(path.relative_to(root)), 0, set(which), program))

    def add_file(self, path: str, bias: int | None, which: Sequence[int]) -> None:
        """One program. Raises :class:`FormatError` for what is no ELF file, and :class:`UsageError` where a load bias is needed and not given."""
        try:
            kind, segments = _executable_segments(Path(path))
        except OSError as error:
            raise FormatError(f"{path}: cannot be read: {error.strerror}", "Check the path and its permissions.") from error
        if not segments:
            raise FormatError(f"{path}: an ELF file without code", "Give an executable or a shared object of the guest.")
        if bias is None and kind != _ET_EXEC:
            raise UsageError(f"{path}: position-independent, so its load address must be given", f"Give {path}@ADDRESS, from /proc/PID/maps in the guest.")
        if segments[-1].vaddr + segments[-1].size + (bias or 0) > _USER_END:
            raise UsageError(f"{path}: at {bias or 0:#x} it leaves the user half of the address space", "Give the load bias in hexadecimal.")
        self._add(_Program(path, path, bias or 0, set(which), segments))

    def _add(self, program: _Program) -> None:
        self._programs.append(program)
        for place in program.which:
            self._given[place] = True

    def resolve(self, vm: I32, cr3: U64, addresses: U64, is_return: Bool) -> Resolved:
        """See :meth:`perfguest.symbols.guest.GuestSymbols.resolve_user`."""
        out = Columns(len(addresses))
        if not len(addresses):
            return out.resolved()
        spaces, space = np.unique(np.stack([vm.astype(np.uint64), cr3 & _CR3_ADDRESS], axis=1), axis=0, return_inverse=True)
        space = space.reshape(-1)
        chosen, several = self._choose(spaces[:, 0].astype(np.int64), space, addresses, is_return)
        for number in np.unique(chosen[chosen >= 0]).tolist():
            program = self._programs[number]
            at = np.flatnonzero(chosen[space] == number)
            at = at[program.covers(addresses[at])]
            self._name(out, program, at, addresses[at] - is_return[at])
        self._count_unnamed(spaces[:, 0].astype(np.int64), space, chosen, several)
        return out.resolved()

    def notes(self, called: Sequence[str]) -> list[str]:
        """Lines on what has no name; ``called``: how to call each VM."""
        lines = [f"guest program not used: {problem}" for problem in self._unread]
        for place, reasons in sorted(self._unnamed.items()):
            for reason, (spaces, addresses) in reasons.items():
                lines.append(f"{called[place]}: {addresses} guest user addresses of {spaces} address spaces have no names: {reason}")
        return lines

    def _choose(self, space_vm: I64, space: I64, addresses: U64, is_return: Bool) -> tuple[I64, Bool]:
        """For each address space the one program that is proven for it, or -1; and where several are."""
        count = len(space_vm)
        # What counts is each place once, however often it was sampled.
        rows = np.unique(np.stack([space.astype(np.uint64), addresses, is_return.astype(np.uint64)], axis=1), axis=0)
        row_space, row_address = rows[:, 0].astype(np.int64), rows[:, 1].copy()
        counted = row_address < _MMAP_AREA
        leaf, back = counted & (rows[:, 2] == 0), counted & (rows[:, 2] == 1)
        chosen = np.full(count, -1, np.int64)
        several = np.zeros(count, bool)
        for number, program in enumerate(self._programs):
            # With a bias given, the file may be a shared object, beside which others are mapped.
            considered = leaf if not program.bias else leaf & program.covers(row_address)
            fits = np.isin(space_vm, list(program.which)) & _all_true(row_space[considered], program.covers(row_address[considered]), count)
            mine = np.flatnonzero(back & fits[row_space] & (not program.bias or _near(program, row_address)))
            if not len(mine):
                continue
            proven = self._follows_call(program, row_address[mine])
            good = np.bincount(row_space[mine], proven, count)
            total = np.bincount(row_space[mine], minlength=count)
            bad = total - good
            accepted = fits & (good >= _MIN_PROVEN + (bad > 0)) & (bad <= np.maximum(1, _MAX_DISPROVEN_SHARE * total))
            for earlier in np.unique(chosen[accepted & (chosen >= 0)]).tolist():
                if not _same_file(self._programs[earlier], program):
                    several |= accepted & (chosen == earlier)
            chosen[accepted & (chosen < 0)] = number
        chosen[several] = -1
        return chosen, several

    def _follows_call(self, program: _Program, returns: U64) -> Bool:
        try:
            return program.code().follows_call(returns)
        except (OSError, FormatError) as error:
            self._unread.append(f"{program.path}: {error}")
            return np.zeros(len(returns), bool)

    def _name(self, out: Columns, program: _Program, at: npt.NDArray[np.intp], addresses: U64) -> None:
        """``addresses``: to look up, of the rows ``at``."""
        try:
            elf = read_elf(program.path)
        except FormatError as error:
            self._unread.append(error.message)
            return
        out.set_dso(at, Dso(program.name, elf.build_id))
        own = addresses - np.uint64(program.bias)
        for segment in program.segments:
            inside = (own >= np.uint64(segment.vaddr)) & (own - np.uint64(segment.vaddr) < np.uint64(segment.size))
            start = segment.vaddr + program.bias
            out.set_mapping(at[inside], start, start + segment.size, segment.offset)
        symbol = elf.symbols.lookup(own)
        named = symbol >= 0
        out.set_names(at[named], symbol[named], elf.symbols, own[named])

    def _count_unnamed(self, space_vm: I64, space: I64, chosen: I64, several: Bool) -> None:
        sizes = np.bincount(space, minlength=len(space_vm))
        for place in np.unique(space_vm).tolist():
            without = (space_vm == place) & (chosen < 0)
            reasons = self._unnamed.setdefault(place, {})
            for mask, reason in ((without & ~several, self._why(place)), (without & several, "several of the given programs fit")):
                if mask.any():
                    spaces, places = reasons.get(reason, (0, 0))
                    reasons[reason] = spaces + int(np.count_nonzero(mask)), places + int(sizes[mask].sum())

    def _why(self, place: int) -> str:
        if not self._given[place]:
            return "give --guestmount with a directory of the guest's programs"
        return "their chains prove none of the given programs (only executables without position-independent code, or with an address given, can be)"


def _all_true(groups: I64, values: Bool, count: int) -> Bool:
    failed: Bool = np.bincount(groups[~values], minlength=count) > 0
    return ~failed


def _near(program: _Program, addresses: U64) -> Bool:
    first, last = program.segments[0], program.segments[-1]
    return (addresses >= np.uint64(first.vaddr + program.bias)) & (addresses <= np.uint64(last.vaddr + last.size + program.bias))


def _same_file(one: _Program, other: _Program) -> bool:
    """Two names of one program, as hard links and /bin beside /usr/bin give."""
    if one.bias != other.bias or one.segments != other.segments:
        return False
    return all(np.array_equal(mine, theirs) for mine, theirs in zip(one.code().pieces, other.code().pieces, strict=True))


def _regular_files(root: Path, directory: str) -> list[Path]:
    found: list[Path] = []
    for folder, folders, names in os.walk(root):
        if Path(folder) == root:
            folders[:] = [name for name in folders if name not in _NO_PROGRAMS]
        for name in names:
            path = Path(folder, name)
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mode & 0o111:
                found.append(path)
        if len(found) > _MAX_FILES:
            raise UsageError(f"{directory}: more than {_MAX_FILES} files in it", "Give a directory that holds the guest's programs only.")
    return sorted(found)


def _fixed_executable(path: Path) -> tuple[_Segment, ...] | None:
    try:
        kind, segments = _executable_segments(path)
    except (FormatError, OSError):
        # Most files are no programs; one that cannot be read proves nothing and is used for nothing.
        return None
    return segments if kind == _ET_EXEC and segments and segments[-1].vaddr + segments[-1].size <= _USER_END else None


def _executable_segments(path: Path) -> tuple[int, tuple[_Segment, ...]]:
    """(e_type, executable PT_LOADs in order of address) of an ELF file, of which only the headers are read."""
    if not path.is_file():
        raise FormatError(f"{path}: no such file", "Give an executable or a shared object of the guest.")
    with path.open("rb") as file:
        head = file.read(64)
        if len(head) < 64 or head[:4] != b"\x7fELF" or head[4] not in {1, 2} or head[5] != 1:
            raise FormatError(f"{path}: no little-endian ELF file", "Give an executable or a shared object of the guest.")
        wide = head[4] == 2
        (kind,) = struct.unpack_from("<H", head, 16)
        (offset,) = struct.unpack_from("<Q" if wide else "<I", head, 32 if wide else 28)
        entry, count = struct.unpack_from("<HH", head, 54 if wide else 42)
        size = os.fstat(file.fileno()).st_size
        if entry != (56 if wide else 32) or count > _MAX_SEGMENTS or offset + entry * count > size:
            raise FormatError(f"{path}: damaged ELF file: its program headers lie outside it", "Copy it from the guest again.")
        file.seek(offset)
        headers = struct.iter_unpack("<IIQQQQQQ" if wide else "<IIIIIIII", file.read(entry * count))
    segments = []
    for fields in headers:
        if wide:
            form, flags, start, vaddr, _, length, _, _ = fields
        else:
            form, start, vaddr, _, length, _, flags, _ = fields
        if form == _PT_LOAD and flags & _PF_X and length:
            if start + length > size or length > _MAX_CODE or vaddr + length > _USER_END:
                raise FormatError(f"{path}: damaged ELF file: a segment lies outside it", "Copy it from the guest again.")
            segments.append(_Segment(vaddr, start, length))
    return kind, tuple(sorted(segments, key=lambda segment: segment.vaddr))


def _read_at(descriptor: int, segment: _Segment) -> npt.NDArray[np.uint8]:
    return np.frombuffer(os.pread(descriptor, segment.size, segment.offset), np.uint8)
