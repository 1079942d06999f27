# SPDX-License-Identifier: Apache-2.0
"""Names guest addresses: of kernels, and of the guests' programs, from what was read out of the guests' memory and from files that the user gives.

Of a kernel a file that the user gives comes first, and what was read fills its gaps; of a program it is the other way round.
A file is believed only if it is proven to be this guest's. Of a kernel: a copy of /proc/kallsyms must have the syscall entry where
the guest's LSTAR points; an image is moved there, by a distance that KASLR can have chosen; and where there is machine code, the
samples must agree with it (:meth:`GuestSymbols.check_kernels`). Of a program: see :mod:`perfguest.symbols.guest_user`.
What is not proven stays an address, and :attr:`GuestSymbols.notes` says why.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError, UsageError
from perfguest.formats.guest_snapshot import GuestSnapshot
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.guest_addresses import KERNEL_HALF
from perfguest.symbols.guest_calls import I64, U64, Bool
from perfguest.symbols.guest_files import GuestFiles
from perfguest.symbols.guest_kernel import PROVEN, UNKNOWN, GuestKernel, KernelFile, kernel_offset
from perfguest.symbols.guest_user import GuestPrograms
from perfguest.symbols.kallsyms import module_symbols
from perfguest.symbols.kernel_tables import KernelTables, add_image
from perfguest.symbols.resolved import Columns, Dso, Resolved, overlay
from perfguest.symbols.snapshot_kernel import SnapshotKernels
from perfguest.symbols.snapshot_user import SnapshotPrograms
from perfguest.symbols.table import SymbolTable

I32 = npt.NDArray[np.int32]
I8 = npt.NDArray[np.int8]

# Of the return addresses in the image's text nearly all follow a call if it is the right one (chains of kernels without frame
# pointers hold some stale ones and some junk), and a few in a hundred if it is another one.
_MIN_RETURNS = 8
_MIN_PROVEN_SHARE = 0.4
# Addresses that contradict the image. None does in the right one, some 4% do in another.
_MIN_CONTRADICTIONS = 2
_MAX_CONTRADICTING_SHARE = 0.01


@dataclass(frozen=True)
class GuestVm:
    """A VM of the recording. ``lstars``: the distinct syscall entries that its VM records hold; 0 says nothing."""

    pid: int
    name: str
    lstars: tuple[int, ...] = ()


@dataclass(frozen=True)
class GuestSymbolOptions:
    """What the user gave. Each is ``FILE``, for all VMs, or ``VM=FILE`` with a VM's name or pid.

    ``kallsyms``: copies of a guest's /proc/kallsyms, plain or gzipped. ``vmlinux``: a vmlinuz, vmlinux, or System.map.
    ``mounts``: directories that hold the guest's files at the guest's paths. ``binaries``: ``FILE``, or ``FILE@ADDRESS`` with the load bias in hexadecimal.
    """

    kallsyms: tuple[str, ...] = ()
    vmlinux: tuple[str, ...] = ()
    mounts: tuple[str, ...] = ()
    binaries: tuple[str, ...] = ()


@dataclass
class _Kernels:
    """What is known of one VM's kernel. Of each kind the candidates that fit so far, the first one being used."""

    kallsyms: list[GuestKernel] = field(default_factory=list)
    images: list[GuestKernel] = field(default_factory=list)
    # Why no file can be placed, whichever is given.
    unplaceable: str = ""
    # The images were found in a directory: if none is the guest's, that is no mistake of the user's.
    found: bool = False

    @property
    def naming(self) -> GuestKernel | None:
        # The copy of /proc/kallsyms has the modules, too.
        return next(iter([*self.kallsyms, *self.images]), None)

    @property
    def proving(self) -> GuestKernel | None:
        return next((kernel for kernel in [*self.images, *self.kallsyms] if kernel.code is not None), self.naming)


class GuestSymbols:
    """Resolves addresses of the guests of one recording. Make it with :meth:`build`; VMs are meant by their index in the list given there."""

    def __init__(self, vms: Sequence[GuestVm], kernels: list[_Kernels], programs: GuestPrograms, refusals: dict[str, dict[int, FormatError]]) -> None:
        self._vms = list(vms)
        self._kernels = kernels
        self._programs = programs
        self._read_kernels: SnapshotKernels | None = None
        self._read_programs: SnapshotPrograms | None = None
        # Of each file the VMs that it was refused for, and why.
        self._refusals = refusals
        self._checks: dict[int, list[str]] = {}
        self._files: list[GuestFiles] = []

    @classmethod
    def build(cls, vms: Sequence[GuestVm], options: GuestSymbolOptions, snapshot: GuestSnapshot | None = None, local: Path | None = None) -> GuestSymbols:
        """Reads the files. ``snapshot``: what the recording has of the guests' memory. ``local``: where this machine's files are; of those that have the
        path and the build id of a guest's is taken what the recording lacks.

        Raises :class:`UsageError` for an option that names no VM, :class:`FormatError` for a file that is broken or
        is no VM's, and EnvironmentProblem where a program is missing that unpacks it."""
        kernels = [_Kernels() for _ in vms]
        refusals: dict[str, dict[int, FormatError]] = {}
        for given, read in ((options.kallsyms, KernelFile.read_kallsyms), (options.vmlinux, KernelFile.read_vmlinux)):
            for path, which in _assign(given, vms):
                _place_kernel(read(path), which, vms, kernels, refusals)
        programs = GuestPrograms(len(vms))
        mounts: list[list[Path]] = [[] for _ in vms]
        for directory, which in _assign(options.mounts, vms):
            programs.add_directory(directory, which)
            for place in which:
                mounts[place].append(Path(directory))
        for binary, which in _assign(options.binaries, vms, lambda text: Path(_split_bias(text)[0]).exists()):
            programs.add_file(*_split_bias(binary), which)
        symbols = cls(vms, kernels, programs, refusals)
        if snapshot is not None:
            pids = [vm.pid for vm in vms]
            symbols._read_kernels = SnapshotKernels(snapshot, pids, symbols.kernel_dsos, [_called(vm) for vm in vms])
            symbols._read_programs = SnapshotPrograms(snapshot, pids, mounts, local)
        symbols._refuse_unused()
        symbols._files = [GuestFiles(directories, _called(vm)) for directories, vm in zip(mounts, vms, strict=True)]
        for place in range(len(vms)):
            symbols._find_images(place)
        return symbols

    @property
    def notes(self) -> list[str]:
        """Lines for people: what could not be named, or not be checked, and why. Complete after the last call of the other methods."""
        lines = []
        for place, (vm, kernels) in enumerate(zip(self._vms, self._kernels, strict=True)):
            if kernels.naming is None and not (self._read_kernels and set(self._read_kernels.of_vm[place]) - self._read_kernels.refused):
                lines.append(f"{_called(vm)}: guest kernel functions have no names: {self._why_unnamed(place)}")
        called = [_called(vm) for vm in self._vms]
        lines += [line for checks in self._checks.values() for line in checks] + self._programs.notes(called)
        lines += [note for files in self._files for note in files.notes]
        lines += self._read_kernels.notes if self._read_kernels else []
        return lines + (self._read_programs.notes(called) if self._read_programs else [])

    @property
    def kernel_dsos(self) -> list[str]:
        """perf's name of each VM's kernel."""
        return [_kernel_dso(vm, self._vms) for vm in self._vms]

    def kernel_at(self, vm: I32, time: I64, lstar: U64) -> I32:
        """For each moment of a VM a number of the kernel that was read out of its memory and ran then, for the methods below; -1 where there is none.

        ``vm``: int32 index; ``time``: int64 nanoseconds; ``lstar``: uint64, the syscall entry in force at that time, 0 where it is not known.
        """
        return self._read_kernels.at(vm, time, lstar) if self._read_kernels else np.full(len(vm), -1, np.int32)

    @property
    def refused_kernels(self) -> set[int]:
        """Numbers of kernels, as :meth:`kernel_at` gives them, that :meth:`check_kernels` found to be others."""
        return set() if self._read_kernels is None else self._read_kernels.refused

    def open_mounted(self, process: pb.Process, mapping: pb.Mapping, build_id: str) -> bytes | None:
        """See :meth:`perfguest.symbols.snapshot_user.SnapshotPrograms.open_mounted`."""
        return None if self._read_programs is None else self._read_programs.open_mounted(process, mapping, build_id)

    def kernel_tables(self, vm: int, kernel: int = -1) -> KernelTables | None:
        """What unwinding the VM's kernel needs, where it ran: what was read out of its memory, and for what is missing there the files that were given.

        ``kernel``: a number as :meth:`kernel_at` gives it, or -1. None where nothing is known. To be called after :meth:`check_kernels`.
        """
        numbers = self._read_kernels_of(np.array([kernel], np.int32), np.zeros(1, np.intp))
        read = self._read_kernels.kernels[kernel] if self._read_kernels and numbers else None
        tables = self._read_kernels.tables(kernel) if self._read_kernels and read else KernelTables("")
        known = self._kernels[vm]
        for image in known.images:
            if image.file.image is not None and (read is None or read.build_id in {"", image.build_id}):
                add_image(tables, image.file.image, image.offset)
        listed = module_symbols(known.kallsyms[0].file.text) if known.kallsyms else {}
        self._files[vm].add_modules(tables, tables.release, list(read.event.modules) if read else [], listed)
        return tables if tables.orc or tables.text else None

    def check_kernels(self, vm: I32, addresses: U64, is_return: Bool, kernel: I32 | None = None) -> None:
        """Holds the kernels against the samples; to be called before anything is resolved, and again when more returns are known.

        ``kernel``: as :meth:`kernel_at` gives it.

        ``vm``: int32 index of each; ``addresses``: uint64 guest kernel addresses, of samples' instructions or, where ``is_return``, of returns in their chains.
        A file that they contradict is not used; raises :class:`FormatError` with the figures where it was good for no other VM.
        """
        for place in np.unique(vm[vm >= 0]).tolist():
            mine = vm == place
            ips, returns = addresses[mine & ~is_return], np.unique(addresses[mine & is_return])
            self._checks[place] = self._check(place, ips, returns)
        if self._read_kernels and kernel is not None:
            self._read_kernels.check(kernel[is_return], addresses[is_return])
        self._refuse_unused()

    def _check(self, place: int, ips: U64, returns: U64) -> list[str]:
        """Drops the images that the samples contradict, and those found of which they do not tell which one ran; gives lines for people."""
        kernels, called = self._kernels[place], _called(self._vms[place])
        refused = []
        for image in list(kernels.images):
            problem = _contradiction(image, ips, returns, called)
            if problem is not None:
                kernels.images.remove(image)
                refused.append(problem.message)
                if not kernels.found:
                    self._refusals.setdefault(image.file.path, {})[place] = problem
        if kernels.found and len(kernels.images) > 1:
            paths = ", ".join(image.file.path for image in kernels.images)
            kernels.images.clear()
            refused.append(f"{called}: {paths} can each be its kernel, and the samples do not tell which; give the one with --guestvmlinux")
        return (refused if kernels.found else []) + _unchecked(kernels, self._vms[place], ips, returns)

    def _find_images(self, place: int) -> None:
        """In the VM's directories, where the user gave no image and its memory gave no tables."""
        kernels, entries = self._kernels[place], {lstar for lstar in self._vms[place].lstars if lstar}
        numbers = self._read_kernels.of_vm[place] if self._read_kernels else []
        read = [self._read_kernels.kernels[number] for number in numbers] if self._read_kernels else []
        if kernels.images or len(entries) != 1 or any(one.image.orc.addresses for one in read):
            return
        kallsyms = kernels.kallsyms[0] if kernels.kallsyms else None
        releases, build_ids = {one.release for one in read} - {""}, {one.build_id for one in read} - {""}
        kernels.images = self._files[place].kernels(entries.pop(), releases, build_ids, kallsyms, self.kernel_dsos[place])
        kernels.found = bool(kernels.images)

    def resolve_kernel(self, vm: I32, addresses: U64, kernel: I32 | None = None) -> Resolved:
        """``vm``: int32 index for each of ``addresses`` (uint64, of the guest's kernel half). ``kernel``: as :meth:`kernel_at` gives it."""
        out = Columns(len(addresses))
        for place in np.unique(vm[vm >= 0]).tolist():
            mine = np.flatnonzero(vm == place)
            dso = _kernel_dso(self._vms[place], self._vms)
            naming, proving = self._kernels[place].naming, self._kernels[place].proving
            build_id = proving.build_id if proving is not None else ""
            out.set_dso(mine[addresses[mine] >= np.uint64(KERNEL_HALF)], Dso(dso, build_id))
            if naming is not None:
                mine = mine[~_name_kernel(out, naming.table, mine, addresses[mine])]
            for number, rows in self._read_kernels_of(kernel, mine):
                self._name_read_kernel(out, number, rows, addresses, Dso(dso, build_id) if build_id else None)
        return out.resolved()

    def _read_kernels_of(self, kernel: I32 | None, rows: npt.NDArray[np.intp]) -> list[tuple[int, npt.NDArray[np.intp]]]:
        """(Number of a kernel that was read, those of ``rows`` whose it is)."""
        if kernel is None or self._read_kernels is None:
            return []
        used = set(np.unique(kernel[rows]).tolist()) - {-1} - self._read_kernels.refused
        return [(number, rows[kernel[rows] == number]) for number in sorted(used)]

    def _name_read_kernel(self, out: Columns, number: int, rows: npt.NDArray[np.intp], addresses: U64, dso: Dso | None) -> None:
        assert self._read_kernels is not None  # noqa: S101 - where a number came from
        first: int | None = number
        read = self._read_kernels.kernels[number]
        out.set_dso(rows[addresses[rows] >= np.uint64(KERNEL_HALF)], dso or Dso(read.table.dsos[0], read.build_id))
        while first is not None and len(rows):
            rows = rows[~_name_kernel(out, self._read_kernels.kernels[first].table, rows, addresses[rows])]
            first = self._read_kernels.successor(first)

    def resolve_user(self, vm: I32, cr3: U64, addresses: U64, is_return: Bool, process: I64 | None = None) -> Resolved:
        """Names of guest user addresses. Columns of one length: ``vm`` int32 index, ``cr3`` and ``addresses`` uint64, ``is_return`` bool:
        an address of a chain, not of the sample itself; ``process`` int64: the snapshot's reading of the process, or -1.

        All addresses of the recording belong into one call, because those of one address space together prove which program ran in it.
        A return address gets the name of the byte before it, the call's, and its offset is that byte's.
        """
        if self._read_programs is None or process is None:
            return self._programs.resolve(vm, cr3, addresses, is_return)
        read = self._read_programs.resolve(process, addresses, is_return)
        if self._programs.given:
            read = overlay(read, self._programs.resolve(vm, cr3, addresses, is_return))
        self._read_programs.count_unnamed(vm, process, read.name >= 0, read.dso >= 0)
        return read

    def proven_returns(self, vm: I32, addresses: U64, kernel: I32 | None = None) -> I8:
        """For each guest kernel return address int8 1: it follows a call in the kernel's text; 0: it does not, so it is none; -1: not known.

        ``kernel``: as :meth:`kernel_at` gives it.
        """
        proven = np.full(len(addresses), UNKNOWN, np.int8)
        for place in np.unique(vm[vm >= 0]).tolist():
            proving = self._kernels[place].proving
            mine = np.flatnonzero(vm == place)
            if proving is not None:
                proven[mine] = proving.proven_returns(addresses[mine])
            if self._read_kernels is None or (proving is not None and proving.code is not None):
                continue
            for number, rows in self._read_kernels_of(kernel, mine):
                proven[rows] = self._read_kernels.kernels[number].proven_returns(addresses[rows])
        return proven

    def _refuse_unused(self) -> None:
        """A file that every VM refused, which it was given for, is a mistake of the user's."""
        used = {kernel.file.path for kernels in self._kernels for kernel in [*kernels.kallsyms, *kernels.images]}
        for path, refusals in self._refusals.items():
            if path not in used:
                raise next(iter(refusals.values()))

    def _why_unnamed(self, place: int) -> str:
        if self._kernels[place].unplaceable:
            return self._kernels[place].unplaceable
        refused = [refusals[place].message for refusals in self._refusals.values() if place in refusals]
        if refused:
            return "; ".join(refused)
        return "give --guestkallsyms with a copy of the guest's /proc/kallsyms, or --guestvmlinux with its /boot/vmlinuz"


def _name_kernel(out: Columns, table: SymbolTable, rows: npt.NDArray[np.intp], addresses: U64) -> Bool:
    """Names what the table knows of ``addresses``, those of ``rows``; gives which."""
    symbol = table.lookup(addresses)
    named = symbol >= 0
    out.set_names(rows[named], symbol[named], table, addresses[named])
    for number in np.unique(table.dso[symbol[named]]).tolist():
        if number:
            out.set_dso(rows[named][table.dso[symbol[named]] == number], Dso(table.dsos[number], ""))
    return named


def _assign(given: Sequence[str], vms: Sequence[GuestVm], exists: Callable[[str], bool] = lambda text: Path(text).exists()) -> list[tuple[str, list[int]]]:
    """(File, indices of the VMs it is given for) of each option."""
    assigned = []
    for text in given:
        key, equals, path = text.partition("=")
        which = [place for place, vm in enumerate(vms) if equals and key in {vm.name, str(vm.pid)}]
        if which and not exists(text):
            assigned.append((path, which))
        elif equals and not exists(text) and not which:
            known = ", ".join(f"{vm.name} ({vm.pid})" for vm in vms) or "none"
            raise UsageError(f"{text}: no such file, and no VM is called {key}", f"VMs in this recording: {known}.")
        else:
            assigned.append((text, list(range(len(vms)))))
    return assigned


def _split_bias(text: str) -> tuple[str, int | None]:
    path, at, address = text.rpartition("@")
    if not at or Path(text).exists():
        return text, None
    try:
        bias = int(address, 16)
    except ValueError:
        bias = -1
    if not 0 <= bias < 1 << 64:
        raise UsageError(f"{text}: {address} is no address", "Give FILE@ADDRESS with the load bias in hexadecimal.")
    return path, bias


def _place_kernel(file: KernelFile, which: list[int], vms: Sequence[GuestVm], kernels: list[_Kernels], refusals: dict[str, dict[int, FormatError]]) -> None:
    for place in which:
        vm, mine = vms[place], kernels[place]
        entries = sorted({lstar for lstar in vm.lstars if lstar})
        offset = 0
        if len(entries) > 1:
            mine.unplaceable = f"it changed its kernel while it was recorded: its syscall entry was {', '.join(f'{lstar:#x}' for lstar in entries)}"
            continue
        if not entries and file.linked:
            mine.unplaceable = "its syscall entry is not in the recording, so nothing says where its kernel was loaded; give --guestkallsyms"
            continue
        if entries:
            try:
                offset = kernel_offset(file, entries[0])
            except FormatError as error:
                refusals.setdefault(file.path, {})[place] = error
                continue
        (mine.images if file.linked else mine.kallsyms).append(GuestKernel(file, offset, _kernel_dso(vm, vms)))


def _contradiction(kernel: GuestKernel, ips: U64, returns: U64, called: str) -> FormatError | None:
    """Why this image is not that guest's kernel, or None if the samples agree with it or say nothing."""
    code = kernel.code
    if code is None:
        return None
    wrong, addresses = kernel.check_addresses(ips)
    if wrong >= _MIN_CONTRADICTIONS and wrong > _MAX_CONTRADICTING_SHARE * addresses:
        figures = f"{wrong} of the {addresses} sampled kernel addresses lie where it has no code"
    else:
        verdict = kernel.proven_returns(returns[code.contains_return(returns)])
        proven, decided = int(np.count_nonzero(verdict == PROVEN)), int(np.count_nonzero(verdict != UNKNOWN))
        if decided < _MIN_RETURNS or proven >= _MIN_PROVEN_SHARE * decided:
            return None
        figures = f"only {proven} of the {decided} return addresses in its text follow a call instruction"
    return FormatError(
        f"{kernel.file.path}: this {kernel.file.what} is not the kernel that {called} ran: {figures}",
        "Give the file of the kernel that `uname -r` prints in the guest.",
    )


def _unchecked(kernels: _Kernels, vm: GuestVm, ips: U64, returns: U64) -> list[str]:
    notes = []
    for kernel in kernels.images[:1]:
        code = kernel.code
        decided = 0 if code is None else int(np.count_nonzero(kernel.proven_returns(returns[code.contains_return(returns)]) != UNKNOWN))
        if decided < _MIN_RETURNS and kernel.check_addresses(ips)[1] < 4 * _MIN_RETURNS:
            held = "there is no machine code to hold against the samples" if code is None else "there are too few samples to hold against its code"
            notes.append(f"{_called(vm)}: {kernel.file.path} was taken for its kernel by the place of its syscall entry alone: {held}")
    if kernels.kallsyms and not any(vm.lstars):
        notes.append(f"{_called(vm)}: {kernels.kallsyms[0].file.path} was taken for its kernel unchecked: its syscall entry is not in the recording")
    return notes


def _kernel_dso(vm: GuestVm, vms: Sequence[GuestVm]) -> str:
    return "[guest.kernel.kallsyms]" if len(vms) == 1 else f"[guest.kernel.kallsyms.{vm.pid}]"


def _called(vm: GuestVm) -> str:
    return f"VM {vm.name} ({vm.pid})"
