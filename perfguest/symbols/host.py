# SPDX-License-Identifier: Apache-2.0
"""Names the host's addresses: its kernel's by kallsyms, its programs' by their ELF files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.perf_data import PerfData
from perfguest.rows import distinct_values
from perfguest.symbols.address_space import AddressSpaces
from perfguest.symbols.elf import ElfFile, parse_elf, read_elf
from perfguest.symbols.kallsyms import KERNEL_DSO, read_kallsyms
from perfguest.symbols.resolved import Columns, Dso, Resolved

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

_CPUMODE_KERNEL, _CPUMODE_USER = 1, 2
_VDSO = "[vdso]"
# Both kinds of process call theirs [vdso]; this is perf's name for the other.
_VDSO_32 = "[vdso32]"
_FIRST_64_BIT_ADDRESS = np.uint64(1 << 32)
_PATHS_TOLD = 5


class HostSymbols:
    """Resolves addresses of one recording.

    ``kallsyms``: the host's, as path or bytes; without it no kernel address has a name. ``root``: where the host's files are.
    A file is used only if it has the build id that was recorded, if any was.
    Raises :class:`FormatError` for a ``kallsyms`` that is none. Everything else that is missing is told by :attr:`notes`.
    """

    def __init__(self, perf_data: PerfData, kallsyms: bytes | str | Path | None, root: str | Path = "/") -> None:
        self._spaces = AddressSpaces(perf_data)
        self._mmaps = perf_data.mmaps
        self._kernel = read_kallsyms(kallsyms) if kallsyms is not None else None
        self._root = Path(root)
        # What was said of files, in the order of finding out: (what, path).
        self._findings: dict[tuple[str, str], None] = {}
        self._files: dict[Dso, tuple[ElfFile | None, str]] = {}
        entries = perf_data.header.build_ids
        self._user_build_ids = {entry.filename: entry.build_id for entry in entries if entry.cpumode == _CPUMODE_USER}
        self._kernel_build_ids = _kernel_build_ids(perf_data)
        rows = np.flatnonzero(self._mmaps.cpumode == _CPUMODE_KERNEL)
        self._kernel_rows: I64 = rows[np.argsort(self._mmaps.start[rows], kind="stable")]
        low = self._mmaps.start < _FIRST_64_BIT_ADDRESS
        kinds: dict[tuple[str, str, int, bool], int] = {}
        rows_kinds = zip(self._mmaps.filename, self._mmaps.build_id, self._mmaps.cpumode.tolist(), low.tolist(), strict=True)
        number = np.array([kinds.setdefault(kind, len(kinds)) for kind in rows_kinds], np.int32)
        dsos: dict[Dso, int] = {}
        of_kind = np.array([dsos.setdefault(self._recorded_dso(*kind), len(dsos)) for kind in kinds], np.int32)
        self._row_dso: I32 = of_kind[number] if len(number) else number
        self._dsos = list(dsos)

    def epoch(self, pid: I32, time: I64) -> I64:
        """A number for each process and moment: where two have the same, equal addresses have equal names. To resolve fewer of them."""
        return self._spaces.epoch(pid, time)

    def is_mapped(self, pid: I32, time: I64, addresses: U64) -> npt.NDArray[np.bool_]:
        """For each address in a process at a moment whether code is known to be mapped there."""
        return self._spaces.find(pid, time, addresses) >= 0

    @property
    def notes(self) -> list[str]:
        """Lines for people on files that could not be used, or not be checked."""
        lines = []
        for finding in dict.fromkeys(finding for finding, _ in self._findings):
            paths = [path for what, path in self._findings if what == finding]
            rest = f" and {len(paths) - _PATHS_TOLD} more" if len(paths) > _PATHS_TOLD else ""
            lines.append(f"{finding}: {', '.join(paths[:_PATHS_TOLD])}{rest}")
        return lines

    def resolve_kernel(self, addresses: U64) -> Resolved:
        """``addresses``: uint64, of the host's kernel and its modules."""
        out = Columns(len(addresses))
        row = self._kernel_mapping(addresses)
        self._set_mappings(out, np.flatnonzero(row >= 0), row[row >= 0])
        for number in distinct_values(self._row_dso[row[row >= 0]]).tolist():
            out.set_dso(np.flatnonzero((row >= 0) & (self._row_dso[row] == number)), self._dsos[number])
        if self._kernel is not None:
            symbol = self._kernel.lookup(addresses)
            named = np.flatnonzero(symbol >= 0)
            out.set_names(named, symbol[named], self._kernel, addresses[named])
            owner = self._kernel.dso[symbol[named]]
            for number in distinct_values(owner).tolist():
                name = self._kernel.dsos[number]
                out.set_dso(named[owner == number], Dso(name, self._kernel_build_ids.get(name, "")))
        return out.resolved()

    def resolve_user(self, pid: I32, time: I64, addresses: U64) -> Resolved:
        """``addresses``: uint64, each in process ``pid`` (int32) at ``time`` (int64 nanoseconds of the recording's clock)."""
        out = Columns(len(addresses))
        row = self._spaces.find(pid, time, addresses)
        mapped = np.flatnonzero(row >= 0)
        mapped = mapped[np.argsort(self._row_dso[row[mapped]], kind="stable")]
        rows = row[mapped]
        self._set_mappings(out, mapped, rows)
        file_offset = addresses[mapped] - self._mmaps.start[rows] + self._mmaps.pgoff[rows]
        numbers, firsts = np.unique(self._row_dso[rows], return_index=True)
        for number, first, last in zip(numbers.tolist(), firsts.tolist(), np.append(firsts, len(rows))[1:].tolist(), strict=True):
            elf, build_id = self._file(self._dsos[number])
            out.set_dso(mapped[first:last], Dso(self._dsos[number].name, build_id))
            if elf is not None:
                vaddr, loaded = elf.vaddr(file_offset[first:last])
                symbol = np.where(loaded, elf.symbols.lookup(vaddr), -1)
                named = symbol >= 0
                out.set_names(mapped[first:last][named], symbol[named], elf.symbols, vaddr[named])
        return out.resolved()

    def _set_mappings(self, out: Columns, at: I64, rows: I64) -> None:
        start = self._mmaps.start[rows]
        out.set_mapping(at, start, start + self._mmaps.length[rows], self._mmaps.pgoff[rows])

    def _kernel_mapping(self, addresses: U64) -> I64:
        rows = self._kernel_rows
        if not len(rows):
            return np.full(len(addresses), -1, np.int64)
        at = np.searchsorted(self._mmaps.start[rows], addresses, "right") - 1
        row = rows[np.maximum(at, 0)]
        inside = (at >= 0) & (addresses - self._mmaps.start[row] < self._mmaps.length[row])
        return np.where(inside, row, -1)

    def _recorded_dso(self, filename: str, build_id: str, cpumode: int, low: bool) -> Dso:
        """``low``: mapped where 32-bit processes have their code."""
        if cpumode == _CPUMODE_KERNEL:
            name = _kernel_dso(filename)
            return Dso(name, self._kernel_build_ids.get(name, ""))
        if filename == _VDSO and low:
            return Dso(_VDSO_32, "")
        return Dso(filename, build_id or self._user_build_ids.get(filename, ""))

    def _file(self, dso: Dso) -> tuple[ElfFile | None, str]:
        """The file of a mapping, if it is the one that was mapped, and the build id to tell."""
        if dso not in self._files:
            self._files[dso] = self._open(dso)
        return self._files[dso]

    def _open(self, dso: Dso) -> tuple[ElfFile | None, str]:
        if dso.name == _VDSO:
            return self._open_vdso(dso)
        # What is mapped from no file: [heap], [stack], //anon, anon_inode:…, /dev/zero and the like.
        if not dso.name.startswith("/") or dso.name.startswith(("//", "/dev/", "/memfd:", "/SYSV", "/anon_hugepage")):
            return None, dso.build_id
        try:
            elf = read_elf(self._root / dso.name.lstrip("/"), self._root)
        except FormatError:
            self._findings["files of the host that cannot be read here, so that their functions have no names", dso.name] = None
            return None, dso.build_id
        for note in elf.notes:
            self._findings["files of debug information that cannot be used", note] = None
        if dso.build_id and elf.build_id != dso.build_id:
            self._findings["files of the host that are not those recorded (another build id), so that their functions have no names", dso.name] = None
            return None, dso.build_id
        if not dso.build_id:
            self._findings["files of the host that were recorded without build id; the ones here were taken for them", dso.name] = None
        return elf, elf.build_id

    def _open_vdso(self, dso: Dso) -> tuple[ElfFile | None, str]:
        elf = own_vdso()
        # The vDSO is part of the kernel's image, so the same kernel has the same one.
        same = elf is not None and (elf.build_id == dso.build_id if dso.build_id else self._kernel_build_ids.get(KERNEL_DSO) in own_kernel_build_ids())
        return (elf, elf.build_id) if elf is not None and same else (None, dso.build_id)


def kernel_build_id(perf_data: PerfData) -> str:
    """Hex, of the kernel that was recorded; empty if it was not written down."""
    return _kernel_build_ids(perf_data).get(KERNEL_DSO, "")


def _kernel_build_ids(perf_data: PerfData) -> dict[str, str]:
    """By dso: of the kernel and its modules."""
    mmaps = perf_data.mmaps
    found = {_kernel_dso(entry.filename): entry.build_id for entry in perf_data.header.build_ids if entry.cpumode == _CPUMODE_KERNEL}
    rows = np.flatnonzero(mmaps.cpumode == _CPUMODE_KERNEL).tolist()
    return found | {_kernel_dso(mmaps.filename[row]): mmaps.build_id[row] for row in rows if mmaps.build_id[row]}


def _kernel_dso(filename: str) -> str:
    """perf's short name: ``[kernel.kallsyms]_text`` is the kernel, ``…/kvm-amd.ko.xz`` is ``[kvm_amd]``."""
    if filename.startswith(KERNEL_DSO):
        return KERNEL_DSO
    stem, suffix, _ = PurePosixPath(filename).name.partition(".ko")
    return f"[{stem.replace('-', '_')}]" if suffix else filename


@lru_cache(maxsize=1)
def own_vdso() -> ElfFile | None:
    """The vDSO of the running kernel, which is no file; None if this process has none."""
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        if line.endswith(_VDSO):
            start, end = (int(part, 16) for part in line.split(maxsplit=1)[0].split("-"))
            with Path("/proc/self/mem").open("rb", buffering=0) as memory:
                memory.seek(start)
                return parse_elf(memory.read(end - start), _VDSO)
    return None


@lru_cache(maxsize=1)
def own_kernel_build_ids() -> tuple[str, ...]:
    """Hex build id of the running kernel, from the notes that it shows; empty if it shows none."""
    try:
        notes = Path("/sys/kernel/notes").read_bytes()
    except OSError:
        return ()
    # The only note named GNU of type 3: u32 sizes of name and contents, u32 type, the name.
    _, found, rest = notes.partition(b"\x14\0\0\0\x03\0\0\0GNU\0")
    return (rest[:20].hex(),) if found else ()
