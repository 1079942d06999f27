# SPDX-License-Identifier: Apache-2.0
"""Guests' kernels as they were read out of their memory: symbols of kernel, modules and BPF where they stood, and the kernel's text as it ran.

A VM may have run several, one after another. Which one a sample belongs to is told by the syscall entry (LSTAR) in force at its time,
which the module recorded, and by the times at which they were read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.guest_snapshot import GuestSnapshot
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.guest_addresses import KASLR_END, KASLR_STEP, KERNEL_HALF, MODULES_END
from perfguest.symbols.guest_calls import U8, U64, Bool, Code
from perfguest.symbols.guest_kernel import DISPROVEN, PROVEN, UNKNOWN
from perfguest.symbols.kernel_tables import KernelTables, add_modules, read_tables
from perfguest.symbols.module_texts import ModuleTexts
from perfguest.symbols.names import Names
from perfguest.symbols.table import GLOBAL, LOCAL, WEAK, RawSymbols, SymbolTable, build_table

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]

_ENTRY = "entry_SYSCALL_64"
_BPF_DSO = "[bpf]"
_MAX_SYMBOLS = 1 << 22
_MAX_NAME = 1024
_NOP5 = (0x0F, 0x1F, 0x44, 0x00, 0x00)
# As for kernel images that the user gives: of the returns of the right kernel nearly all follow a call, of another's a few in a hundred.
_MIN_RETURNS = 8
_MIN_PROVEN_SHARE = 0.4


@dataclass(frozen=True)
class SymbolColumns:
    """``address``: uint64, ascending; ``kind``: uint8, a letter of nm; ``names`` may hold anything."""

    address: U64
    kind: U8
    names: Names


def decode_symbols(message: pb.Symbols, what: str) -> SymbolColumns:
    """Raises :class:`FormatError` where the columns contradict one another. ``what`` stands in messages."""
    count = len(message.types)
    names = message.names
    if len(message.addresses) != 8 * count or count > _MAX_SYMBOLS or names.count(b"\0") != count or (count and names[-1]):
        raise FormatError(f"the symbols of {what} do not fit together")
    address = np.frombuffer(message.addresses, "<u8").astype(np.uint64)
    if (address[1:] < address[:-1]).any():
        raise FormatError(f"the symbols of {what} are not in order")
    return SymbolColumns(address, np.frombuffer(message.types, np.uint8), Names.terminated(names).cut(_MAX_NAME))


@dataclass(frozen=True)
class _Image:
    """A kernel of ``kernels/``, shared by the VMs that run it."""

    release: str
    build_id: str
    symbols: SymbolColumns
    text: tuple[tuple[int, U8], ...]
    orc: pb.Orc


class SnapshotKernel:
    """A kernel as it ran in one VM, from ``time`` on. ``dso``: the name of the kernel itself. Raises :class:`FormatError` for what contradicts itself."""

    def __init__(self, event: pb.VmKernel, image: _Image, dso: str, module_text: Sequence[tuple[int, U8]] = ()) -> None:
        """``module_text``: (address, code) of its modules, as far as it was read."""
        self.event = event
        self.module_text = module_text
        self.image = image
        self.time = event.time
        self.lstar = event.lstar
        self.key = event.kernel
        self.build_id = image.build_id
        self.release = image.release
        self.dropped: list[str] = []
        offset = event.kaslr_offset
        if offset % KASLR_STEP or offset >= KASLR_END:
            raise FormatError(f"its kernel cannot stand {offset:#x} above where it was linked")
        at_entry = image.symbols.names.find(_ENTRY)
        if at_entry is not None and event.lstar:
            entry = int(image.symbols.address[at_entry]) + offset
            if entry != event.lstar:
                raise FormatError(f"its kernel's {_ENTRY} would be at {entry:#x}, but the guest's syscall entry is {event.lstar:#x}")
        placed = image.symbols.address >= np.uint64(KERNEL_HALF)
        if not placed.any():
            raise FormatError("its kernel has no symbols in the kernel's half")
        self._end = min(int(image.symbols.address[placed][-1]) + offset, MODULES_END)
        self.table = self._build_table(event, image, dso)
        pieces = [(address + offset, content) for address, content in image.text if KERNEL_HALF <= address < MODULES_END - offset - len(content)]
        pieces += [(address, content) for address, content in module_text if KERNEL_HALF <= address <= MODULES_END - len(content)]
        self.code = Code.of(pieces) if pieces else None

    def _build_table(self, event: pb.VmKernel, image: _Image, dso: str) -> SymbolTable:
        parts = [(dso, image.symbols, event.kaslr_offset)]
        bounds = []
        for module in event.modules:
            name = module.name.decode("utf-8", "replace")[:_MAX_NAME]
            try:
                parts.append((f"[{name}]", decode_symbols(module.symbols, f"module {name}"), 0))
            except FormatError as error:
                self.dropped.append(error.message)
            bounds += [module.address, min(module.address + module.size, MODULES_END)]
        try:
            parts.append((_BPF_DSO, decode_symbols(event.bpf, "BPF programs"), 0))
        except FormatError as error:
            self.dropped.append(error.message)
        return _table(parts, np.array(bounds, np.uint64))

    def proven_returns(self, addresses: U64) -> npt.NDArray[np.int8]:
        """As :meth:`perfguest.symbols.guest_kernel.GuestKernel.proven_returns`; the text is that of the running kernel, with what it rewrote itself."""
        symbol = self.table.lookup(addresses)
        in_function = (symbol >= 0) & (self.table.start[np.maximum(symbol, 0)] != addresses) if len(self.table) else symbol >= 0
        behind = (addresses >= np.uint64(self._end)) & (addresses < np.uint64(MODULES_END))
        unknown: Bool = in_function | behind
        proven = np.zeros(len(addresses), bool)
        if self.code is not None:
            inside = self.code.contains_return(addresses)
            proven = self.code.follows_call(addresses)
            unknown = np.where(inside, self._patched(addresses) | self._calls_outside(addresses), unknown)
        return np.where(proven, PROVEN, np.where(unknown, UNKNOWN, DISPROVEN)).astype(np.int8)

    def contradiction(self, returns: U64) -> str:
        """Why this is not the kernel whose chains hold these return addresses; empty if they agree with it or say nothing."""
        if self.code is None:
            return ""
        verdict = self.proven_returns(returns[self.code.contains_return(returns)])
        proven, decided = int(np.count_nonzero(verdict == PROVEN)), int(np.count_nonzero(verdict != UNKNOWN))
        if decided < _MIN_RETURNS or proven >= _MIN_PROVEN_SHARE * decided:
            return ""
        return f"only {proven} of the {decided} return addresses in its text follow a call instruction"

    def _patched(self, addresses: U64) -> Bool:
        """Behind five bytes of nop, at which tracers and static calls come and go, or behind a place that is being rewritten (int3)."""
        assert self.code is not None  # noqa: S101 - only called where there is one
        nop = np.ones(len(addresses), bool)
        for place, byte in enumerate(_NOP5):
            nop &= self.code.bytes_at(addresses, place - 5) == byte
        patching: Bool = self.code.bytes_at(addresses, -5) == 0xCC
        return nop | patching

    def _calls_outside(self, addresses: U64) -> Bool:
        """Behind a direct call to code that is not in the image: a module's, a trampoline."""
        assert self.code is not None  # noqa: S101 - only called where there is one
        target = self.code.call_targets(addresses - np.uint64(5))
        return (target >= np.uint64(self._end)) & (target < np.uint64(MODULES_END))


def _table(parts: Sequence[tuple[str, SymbolColumns, int]], bounds: U64) -> SymbolTable:
    """Functions of all parts, each (dso, symbols, distance that it was moved), and everything else as bounds."""
    start, binding, names, dso, dsos, known = [], [], [], [], [name for name, _, _ in parts], [bounds[bounds >= np.uint64(KERNEL_HALF)]]
    for number, (_, symbols, offset) in enumerate(parts):
        kind = symbols.kind | np.uint8(32)
        # Per-CPU variables have small numbers, and absolute symbols are no places.
        placed = (symbols.address >= np.uint64(KERNEL_HALF)) & (symbols.address < np.uint64(MODULES_END - offset)) & (kind != ord("a"))
        rows = np.flatnonzero(placed & ((kind == ord("t")) | (kind == ord("w"))))
        start.append(symbols.address[rows] + np.uint64(offset))
        binding.append(np.where(symbols.kind[rows] == ord("T"), GLOBAL, np.where(kind[rows] == ord("w"), WEAK, LOCAL)).astype(np.uint8))
        names.append(symbols.names.take(rows))
        dso.append(np.full(len(rows), number, np.int32))
        known.append(symbols.address[placed] + np.uint64(offset))
    raw = RawSymbols(
        np.concatenate(start), np.zeros(sum(map(len, names)), np.uint64), np.concatenate(binding), Names.concatenate(names), np.concatenate(dso), tuple(dsos)
    )
    return build_table(raw, np.unique(np.concatenate(known)))


class SnapshotKernels:
    """The kernels of all VMs of a recording. Numbers of kernels are indices into ``kernels``; VMs are meant by their index in ``pids``."""

    def __init__(self, snapshot: GuestSnapshot, pids: Sequence[int], dsos: Sequence[str], called: Sequence[str]) -> None:
        """``dsos``, ``called``: for each VM the name of its kernel and how notes call it."""
        self.kernels: list[SnapshotKernel] = []
        self.notes: list[str] = []
        # Of each VM the numbers of its kernels, in order of time.
        self.of_vm: list[list[int]] = [[] for _ in pids]
        # Numbers of kernels that samples contradict.
        self.refused: set[int] = set()
        self._called = called
        self._snapshot = snapshot
        self._images: dict[str, _Image | None] = {}
        self._texts = ModuleTexts(snapshot.module_texts)
        places = {pid: place for place, pid in enumerate(pids)}
        for event in sorted(snapshot.kernels, key=lambda event: event.time):
            if event.vm_pid in places:
                self._add(event, places[event.vm_pid], dsos[places[event.vm_pid]])

    def _add(self, event: pb.VmKernel, place: int, dso: str) -> None:
        called = self._called[place]
        if event.level and event.level != "processes":
            self.notes.append(f"{called}: its memory told {event.level[:32]} only: {event.reason[:300] or 'no reason given'}")
        image = self._image(event.kernel) if event.kernel else None
        if image is None:
            return
        try:
            kernel = SnapshotKernel(event, image, dso, self._texts.of(event))
        except FormatError as error:
            self.notes.append(f"{called}: what was read out of its memory is not used: {error.message}")
            return
        self.notes += [f"{called}: {problem}; left out" for problem in kernel.dropped]
        self.of_vm[place].append(len(self.kernels))
        self.kernels.append(kernel)

    def _image(self, key: str) -> _Image | None:
        if key not in self._images:
            self._images[key] = None
            kernel = self._snapshot.kernel(key)
            if kernel is not None:
                try:
                    symbols = decode_symbols(kernel.symbols, f"kernel {kernel.release[:64]}")
                    text = tuple((piece.address, np.frombuffer(piece.data, np.uint8)) for piece in kernel.text)
                    self._images[key] = _Image(kernel.release, kernel.build_id.hex(), symbols, text, kernel.orc)
                except FormatError as error:
                    self.notes.append(f"{error.message}; they are not used")
        return self._images[key]

    def at(self, vm: I32, time: I64, lstar: U64) -> I32:
        """For each moment of a VM the number of the kernel that it ran, or -1. ``lstar``: the syscall entry in force then, 0 where not known."""
        found = np.full(len(vm), -1, np.int32)
        for place, numbers in enumerate(self.of_vm):
            mine = np.flatnonzero(vm == place)
            for entry in np.unique(lstar[mine]).tolist():
                fitting = [number for number in numbers if not entry or self.kernels[number].lstar in {0, entry}]
                if fitting:
                    rows = mine[lstar[mine] == entry]
                    # Whatever ran before the first was read was that one already: its entry is the same.
                    times = np.array([self.kernels[number].time for number in fitting], np.uint64)
                    at = np.searchsorted(times, time[rows].astype(np.uint64), "right") - 1
                    found[rows] = np.array(fitting, np.int32)[np.maximum(at, 0)]
        return found

    def successor(self, number: int) -> int | None:
        """The next reading of the same kernel in the same boot, which may know modules that this one was too early for."""
        for numbers in self.of_vm:
            if number in numbers[:-1]:
                later = numbers[numbers.index(number) + 1]
                same = self.kernels[later].key == self.kernels[number].key and self.kernels[later].lstar == self.kernels[number].lstar
                return later if same else None
        return None

    def tables(self, number: int) -> KernelTables:
        """What unwinding the kernel needs, with the modules that later readings in the same boot found besides. Its notes are for people."""
        kernel = self.kernels[number]
        tables = read_tables(kernel.event, kernel.release, kernel.image.orc, kernel.image.text)
        modules = [kernel]
        while (later := self.successor(number)) is not None:
            number = later
            add_modules(tables, self.kernels[number].event.modules)
            modules.append(self.kernels[number])
        for one in modules:
            for address, code in one.module_text:
                tables.add_text(address, code)
        return tables

    def check(self, kernel: I32, returns: U64) -> None:
        """Holds each kernel against the return addresses that samples of its time hold; one that they contradict is used no longer."""
        for place, numbers in enumerate(self.of_vm):
            for number in (number for number in numbers if number not in self.refused):
                problem = self.kernels[number].contradiction(np.unique(returns[kernel == number]))
                if problem:
                    self.refused.add(number)
                    self.notes.append(f"{self._called[place]}: what was read out of its memory is not the kernel that it ran: {problem}")
