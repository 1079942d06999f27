# SPDX-License-Identifier: Apache-2.0
"""Names addresses of guests' processes by what was mapped in them and by the pages of their files, both read out of the guests' memory.

A mapping's file is named from: its pages in the recording; the same file under a directory that the user gave; for code without a file, the process's
perf map. What lies in no mapping that was read, or in pages that were not there, stays an address.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.guest_snapshot import GuestSnapshot, later_readings
from perfguest.guest.notes import build_id as read_build_id
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.elf import ElfFile, parse_sparse_elf, read_elf
from perfguest.symbols.resolved import Columns, Dso, Resolved
from perfguest.symbols.sparse_elf import open_binary
from perfguest.symbols.table import GLOBAL, RawSymbols, SymbolTable, build_table

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
U64 = npt.NDArray[np.uint64]

_USER_END = 1 << 57
_MAX_PATH = 4096
_MAX_JIT_SYMBOLS = 1 << 20
_MAX_JIT_NAME = 1024
_JIT_LINE = re.compile(rb"^(?:0x)?([0-9a-fA-F]{1,16}) (?:0x)?([0-9a-fA-F]{1,16}) ([^\n]+)$", re.MULTILINE)
# No program's file is larger.
_MAX_LOCAL = 1 << 30
_DELETED = " (deleted)"
# As for the host's: what is mapped from no file.
_NO_FILES = ("//", "/dev/", "/memfd:", "/SYSV", "/anon_hugepage")


@dataclass(frozen=True)
class _Mapping:
    path: str
    binary: str


class _Process:
    """The executable mappings of one reading, by address."""

    def __init__(self, message: pb.Process, files: dict[_Mapping, int]) -> None:
        mappings = [one for one in message.mappings if one.executable and one.start < one.end <= _USER_END]
        rows = sorted(((one.start, one.end, one.offset, one) for one in mappings), key=lambda row: row[:3])
        kept: list[tuple[int, int, int, int]] = []
        for start, end, offset, one in rows:
            # Two mappings never share an address: of what contradicts itself the first is taken.
            if (not kept or start >= kept[-1][1]) and offset < 1 << 63:
                found = _Mapping(one.path[:_MAX_PATH].decode("utf-8", "replace"), one.binary)
                kept.append((start, end, offset, files.setdefault(found, len(files))))
        columns = np.array(kept, np.uint64).reshape(-1, 4)
        self.start, self.end, self.offset = columns[:, 0].copy(), columns[:, 1].copy(), columns[:, 2].copy()
        self.file: I64 = columns[:, 3].astype(np.int64)
        self._perf_map = message.perf_map

    def find(self, addresses: U64) -> I64:
        """The row of the mapping that holds each, or -1."""
        if not len(self.start):
            return np.full(len(addresses), -1, np.int64)
        at = np.searchsorted(self.start, addresses, "right") - 1
        return np.where((at >= 0) & (addresses < self.end[np.maximum(at, 0)]), at, -1)

    @cached_property
    def jitted(self) -> SymbolTable | None:
        return parse_perf_map(self._perf_map) if self._perf_map else None


def parse_perf_map(text: bytes) -> SymbolTable:
    """Of ``/tmp/perf-PID.map``: lines of START, SIZE (hexadecimal) and NAME. A later line of the same start replaces an earlier one.

    What is no such line is skipped: the map may be read while its program writes it.
    """
    functions: dict[int, tuple[int, bytes]] = {}
    for line in _JIT_LINE.finditer(text):
        start, size = int(line[1], 16), int(line[2], 16)
        if size and start + size <= _USER_END:
            functions[start] = (size, line[3])
            if len(functions) >= _MAX_JIT_SYMBOLS:
                break
    starts = list(functions)
    names = [name.rstrip(b"\r")[:_MAX_JIT_NAME].decode("utf-8", "replace") for _, name in functions.values()]
    sizes = np.array([size for size, _ in functions.values()], np.uint64)
    raw = RawSymbols(np.array(starts, np.uint64), sizes, np.full(len(names), GLOBAL, np.uint8), names, np.zeros(len(names), np.int32), ("",))
    return build_table(raw, np.zeros(0, np.uint64))


class SnapshotPrograms:
    """The processes and files of all guests of a recording.

    ``mounts``: for each VM (its index in ``pids``) the directories that hold its files. ``local``: where files of this machine are, which are taken
    where they have the guest's path and build id: many a guest runs what its host runs.
    """

    def __init__(self, snapshot: GuestSnapshot, pids: Sequence[int], mounts: Sequence[Sequence[Path]], local: Path | None = None) -> None:
        self._local = local
        self._snapshot = snapshot
        self._mounts = mounts
        self._files: dict[_Mapping, int] = {}
        self._processes: dict[int, _Process] = {}
        self._elves: dict[str, tuple[ElfFile | None, str]] = {}
        self._later = later_readings(snapshot.processes)
        self._places = {pid: place for place, pid in enumerate(pids)}
        self._findings: Counter[tuple[int, str]] = Counter()
        self._problems: dict[str, None] = {}

    def notes(self, called: Sequence[str]) -> list[str]:
        """Lines on what has no name, and why; ``called``: how to call each VM."""
        return [*self._problems, *(f"{called[vm]}: {count} guest user addresses have no names: {why}" for (vm, why), count in sorted(self._findings.items()))]

    def resolve(self, process: I64, addresses: U64, is_return: npt.NDArray[np.bool_]) -> Resolved:
        """``process``: int64 index into the snapshot's processes for each of ``addresses`` (uint64, user). -1 has no name."""
        look = addresses - is_return.astype(np.uint64)
        out = Columns(len(addresses))
        row, file, offset = self._place(process, look)
        found = list(self._files)
        for number in np.unique(file[file >= 0]).tolist():
            at = np.flatnonzero(file == number)
            for vm in {self._vm_of(one) for one in np.unique(row[at]).tolist()}:
                mine = at[np.isin(row[at], [one for one in np.unique(row[at]).tolist() if self._vm_of(one) == vm])]
                self._name_file(out, found[number], vm, mine, offset[mine])
        for one in np.unique(row[row >= 0]).tolist():
            mine = np.flatnonzero(row == one)
            self._set_mappings(out, self._process(one), mine, look[mine])
            anonymous = mine[[not _has_file(found[number]) for number in file[mine].tolist()]]
            self._name_jitted(out, one, anonymous, look[anonymous])
        return out.resolved()

    def count_unnamed(self, vm: I32, process: I64, named: npt.NDArray[np.bool_], mapped: npt.NDArray[np.bool_]) -> None:
        """For the notes; columns by address."""
        reasons = (
            (process < 0, "their process was not read: it was gone before, or the reading had not begun"),
            ((process >= 0) & ~mapped, "nothing executable was mapped there when their process was read"),
            ((process >= 0) & mapped, "their code is in no symbol table that was in the guest's page cache; --guestmount may help"),
        )
        for mask, why in reasons:
            for place in np.unique(vm[mask & ~named & (vm >= 0)]).tolist():
                self._findings[place, why] += int(np.count_nonzero(mask & ~named & (vm == place)))

    def _place(self, process: I64, look: U64) -> tuple[I64, I64, U64]:
        """For each address the reading whose mapping holds it, the mapping's file, both or -1, and the offset in that file."""
        row, file, offset = np.full(len(look), -1, np.int64), np.full(len(look), -1, np.int64), np.zeros(len(look), np.uint64)
        for first in np.unique(process[process >= 0]).tolist():
            left = np.flatnonzero(process == first)
            for one in [first, *self._later.get(first, [])]:
                known = self._process(one)
                at = known.find(look[left])
                inside, at = left[at >= 0], at[at >= 0]
                row[inside], file[inside] = one, known.file[at]
                offset[inside] = look[inside] - known.start[at] + known.offset[at]
                left = left[row[left] < 0]
                if not len(left):
                    break
        return row, file, offset

    def _process(self, number: int) -> _Process:
        if number not in self._processes:
            self._processes[number] = _Process(self._snapshot.processes[number], self._files)
        return self._processes[number]

    def _vm_of(self, number: int) -> int:
        return self._places.get(self._snapshot.processes[number].vm_pid, -1)

    def _set_mappings(self, out: Columns, known: _Process, at: npt.NDArray[np.intp], look: U64) -> None:
        rows = known.find(look)
        for number in np.unique(rows).tolist():
            out.set_mapping(at[rows == number], int(known.start[number]), int(known.end[number]), int(known.offset[number]))

    def _name_file(self, out: Columns, mapping: _Mapping, vm: int, at: npt.NDArray[np.intp], offsets: U64) -> None:
        elf, build_id = self._elf(mapping.binary, mapping.path)
        left = np.ones(len(at), bool)
        name = mapping.path or "//anon"
        for one in [elf, *self._mounted(mapping, vm, build_id)]:
            if one is None:
                continue
            build_id = build_id or one.build_id
            vaddr, loaded = one.vaddr(offsets)
            symbol = np.where(loaded & left, one.symbols.lookup(vaddr), -1)
            named = symbol >= 0
            out.set_names(at[named], symbol[named], one.symbols, vaddr[named])
            left &= ~named
            if not left.any():
                break
        out.set_dso(at, Dso(name, build_id))

    def _elf(self, key: str, path: str) -> tuple[ElfFile | None, str]:
        """Of the pages that the recording holds, and the file's build id, which is known without all of them."""
        if key and key not in self._elves:
            self._elves[key] = None, ""
            binary = self._snapshot.binary(key)
            if binary is not None:
                self._elves[key] = None, binary.build_id.hex()
                try:
                    elf = parse_sparse_elf(open_binary(binary), f"guest file {path[:200]}")
                    if binary.build_id and elf.build_id and elf.build_id != binary.build_id.hex():
                        raise FormatError("its build id is another one than its key says")
                    self._elves[key] = elf, binary.build_id.hex() or elf.build_id
                    self._problems |= dict.fromkeys(elf.notes)
                except FormatError as error:
                    self._problems[f"guest file {path[:200]} cannot be used: {error.message}"] = None
        return self._elves.get(key, (None, ""))

    def _mounted(self, mapping: _Mapping, vm: int, build_id: str) -> list[ElfFile]:
        """The same file under the directories that the user gave. Where the guest's build id is known it must be that one's."""
        found = [elf for _, elf in self._mounted_files(mapping, vm, build_id)]
        local = self._local_file(mapping, build_id)
        try:
            return found if local is None else [*found, read_elf(local)]
        except FormatError as error:
            self._problems[f"{local} cannot be used: {error}"] = None
            return found

    def _mounted_files(self, mapping: _Mapping, vm: int, build_id: str) -> list[tuple[Path, ElfFile]]:
        parts = _parts(mapping)
        if vm < 0 or not parts:
            return []
        found = []
        for directory in self._mounts[vm]:
            path = directory.joinpath(*parts[1:])
            try:
                # A name out of a guest must not lead out of the directory.
                inside = path.is_file() and path.resolve().is_relative_to(directory.resolve())
                elf = read_elf(path, directory) if inside else None
            except (OSError, FormatError) as error:
                self._problems[f"{path} cannot be used: {error}"] = None
                continue
            if elf is not None and build_id and elf.build_id != build_id:
                self._problems[f"{path} is not the file that the guest ran: it has another build id"] = None
            elif elf is not None:
                if not build_id:
                    self._problems[f"{path} was taken for the guest's unchecked: no build id of the guest's file is known"] = None
                found.append((path, elf))
        return found

    def _local_file(self, mapping: _Mapping, build_id: str) -> Path | None:
        """This machine's file of the guest's path, if it is proven to be the same."""
        parts = _parts(mapping)
        if self._local is None or not parts or not build_id:
            return None
        path = self._local.joinpath(*parts[1:])
        try:
            if not path.is_file() or path.stat().st_size > _MAX_LOCAL:
                return None
            with path.open("rb") as file:
                same = read_build_id(lambda offset, size: os.pread(file.fileno(), size, offset)).hex() == build_id
        except OSError:
            # It was for the guest to have that file, not for this machine.
            return None
        return path if same else None

    def open_mounted(self, process: pb.Process, mapping: pb.Mapping, build_id: str) -> bytes | None:
        """The content of the same file under the directories that the user gave, or on this machine. ``build_id``: of the guest's file, "" if not known."""
        vm = self._places.get(process.vm_pid, -1)
        one = _Mapping(mapping.path[:_MAX_PATH].decode("utf-8", "replace"), mapping.binary)
        mounted = self._mounted_files(one, vm, build_id)
        path = mounted[0][0] if mounted else self._local_file(one, build_id)
        return path.read_bytes() if path else None

    def _name_jitted(self, out: Columns, number: int, at: npt.NDArray[np.intp], look: U64) -> None:
        """Functions are added to a map as they are compiled, so a later reading may know more."""
        left = np.ones(len(at), bool)
        for one in [number, *self._later.get(number, [])]:
            table = self._process(one).jitted if left.any() else None
            if table is not None:
                symbol = np.where(left, table.lookup(look), -1)
                named = symbol >= 0
                out.set_names(at[named], symbol[named], table, look[named])
                left &= ~named


def _parts(mapping: _Mapping) -> tuple[str, ...]:
    """Of the path of a mapped file; none where it names none that could be elsewhere, too."""
    parts = PurePosixPath(mapping.path).parts
    usable = _has_file(mapping) and ".." not in parts and "\0" not in mapping.path and not mapping.path.endswith(_DELETED)
    return parts if usable else ()


def _has_file(mapping: _Mapping) -> bool:
    return bool(mapping.binary) or (mapping.path.startswith("/") and not mapping.path.startswith(_NO_FILES))
