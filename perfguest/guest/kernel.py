# SPDX-License-Identifier: Apache-2.0
"""A running guest's Linux kernel, opened from CR3 and LSTAR alone.

How far that comes is the kernel's ``level``: "processes" with symbols and types, "symbols" without types (no BTF, or none that fits), "addresses"
without symbols.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from perfguest.errors import FormatError, PerfguestError
from perfguest.formats.btf import MAX_BTF, BtfTable
from perfguest.formats.orc import ENTRY_SIZE, read_orc
from perfguest.guest import tables
from perfguest.guest.image import START_KERNEL_MAP, KernelImage, build_id_note, read_image
from perfguest.guest.kallsyms import NO_SYMBOLS, Symbols, read_symbols
from perfguest.guest.memory import ADDRESS, TAKEN_AWAY, GuestFault, GuestMemory, VmEnded
from perfguest.guest.task_layout import TaskLayout, read_task_layout
from perfguest.guest.vmcoreinfo import VmcoreInfo, find_vmcoreinfo, kernel_page_tables, read_vmcoreinfo, release_of
from perfguest.proto import guest_pb2, tables_pb2

if TYPE_CHECKING:
    import drgn

try:
    from perfguest.guest import modules, program
except ImportError as error:
    if error.name not in {"drgn", "_drgn"}:
        raise
    _HAS_DRGN = False
else:
    _HAS_DRGN = True

FORMAT_VERSION = 1
#: So many of the registers that were recorded are tried: those of processes that are gone lead nowhere.
MAX_HINTS = 64
# So many of them must agree that a kernel has neither symbols nor vmcoreinfo, or hides its page tables, before that is believed.
_AGREEING = 3
_MAX_TEXT = 64 << 20
#: zlib's level: the fastest.
_PACKING = 1
# Problems that a reason names.
_TOLD = 8
_LEVELS = ("addresses", "symbols", "processes")
_CHANGES = "its kernel's tables change while they are read"
_NO_TABLES = "its kernel's own page tables cannot be found"
# Of a user page table with page-table isolation: the kernel's is the page before (arch/x86/entry/calling.h).
_USER_TABLE = 1 << 12
# Where CONFIG_PHYSICAL_START has the kernel, if KASLR does not.
_DEFAULT_BASE = START_KERNEL_MAP + (16 << 20)

__all__ = ["GuestUnreadable", "LiveKernel", "Symbols", "TaskLayout", "open_kernel"]


class GuestUnreadable(PerfguestError):
    """Nothing can be told of a guest's kernel. ``reason`` says why."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass
class LiveKernel:
    """A guest's kernel while it runs. ``text``: addresses of its code's begin and end, in memory."""

    memory: GuestMemory
    release: str
    build_id: bytes
    kaslr_offset: int
    lstar: int
    #: Of the kernel's own page tables (swapper_pg_dir), guest-physical; of a process's where those are not known.
    kernel_cr3: int
    symbols: Symbols
    prog: drgn.Program | None
    level: str
    reason: str
    info: VmcoreInfo | None
    text: tuple[int, int]
    #: What could not be read of it besides, in words.
    problems: list[str] = field(default_factory=list)

    def address_of(self, name: str) -> int | None:
        """Address in memory of the first of the kernel's symbols with this name; that of a per-CPU variable as ``/proc/kallsyms`` has it."""
        return self.symbols.address_of(name)

    def read(self, gva: int, size: int) -> bytes:
        """Kernel memory, by the kernel's own page tables. Raises :class:`GuestFault`."""
        return self.memory.read_virtual(self.kernel_cr3, gva, size)

    def kernel_proto(self) -> guest_pb2.Kernel:
        """What is the same in every guest with this kernel, at the addresses it was linked at. What cannot be read (any more) is left out."""
        result = guest_pb2.Kernel(format_version=FORMAT_VERSION, release=self.release, build_id=self.build_id, has_btf=self.prog is not None)
        if not len(self.symbols):
            return result
        result.symbols.addresses = self.symbols.moved(-self.kaslr_offset).astype("<u8").tobytes()
        result.symbols.types = self.symbols.types
        result.symbols.names = self.symbols.spelled
        try:
            start, end = self.text
            result.text.add(address=start - self.kaslr_offset, data=self.read(start, min(end - start, _MAX_TEXT)))
            if (orc := self._orc()) is not None:
                result.orc.CopyFrom(orc)
        except (GuestFault, FormatError, VmEnded) as error:
            self.problems.append(f"its kernel's code and ORC table: {error.message}")
        return result

    def vm_kernel_proto(self, vm_pid: int, vm_id: int, time: int, *, whole: bool = False) -> guest_pb2.VmKernel:
        """What this guest's kernel has of its own: where it is, its modules and BPF programs as they are now. ``time``: of the recording's clock, ns.

        ``whole``: raises :class:`GuestUnreadable` rather than give some of the modules.
        """
        problems = [*([self.reason] if self.reason else []), *self.problems]
        result = guest_pb2.VmKernel(vm_pid=vm_pid, vm_id=vm_id, time=time, kernel=self.build_id.hex(), kaslr_offset=self.kaslr_offset, lstar=self.lstar)
        if self.prog is not None:
            try:
                loaded = modules.read_loaded(self.prog)
            except VmEnded as end:
                if whole:
                    raise
                loaded = modules.Loaded(problems=[end.message])
            if whole and not loaded.whole:
                raise GuestUnreadable("; ".join(loaded.problems[:_TOLD]))
            problems += loaded.problems
            result.modules.extend(loaded.modules)
            result.bpf.CopyFrom(loaded.bpf)
        result.level, result.reason = self.level, "; ".join(problems[:_TOLD])
        return result

    def module_text_proto(self, address: int, size: int) -> guest_pb2.ModuleText:
        """The code of one of its modules. Raises :class:`GuestFault`."""
        return guest_pb2.ModuleText(lstar=self.lstar, address=address, size=size, packed=zlib.compress(self.read(address, size), _PACKING))

    def task_layout(self) -> TaskLayout | None:
        """Where the module finds the running task, or None where types do not tell."""
        return read_task_layout(self.prog, self.symbols) if self.prog is not None else None

    def raw(self) -> tables_pb2.KernelRaw | None:
        """What its tables were decoded from; None where they cannot be known for other guests. Raises :class:`GuestFault`."""
        return tables.raw_of(self.symbols, self.kaslr_offset, self.read) if self.prog is not None else None

    def _orc(self) -> guest_pb2.Orc | None:
        names = ("__start_orc_unwind_ip", "__stop_orc_unwind_ip", "__start_orc_unwind", "__stop_orc_unwind")
        places, places_end, entries, entries_end = (self.address_of(name) or 0 for name in names)
        count = (places_end - places) // 4
        if not places or not entries or (entries_end - entries) // ENTRY_SIZE != count:
            return None
        pieces: list[tuple[int, bytes]] = []

        def read(address: int, size: int) -> bytes:
            pieces.append((address, self.read(address, size)))
            return pieces[-1][1]

        orc = read_orc(read, places, entries, count, self.kaslr_offset)
        if any(self.read(address, len(data)) != data for address, data in pieces):
            raise FormatError(_CHANGES)
        return orc


def open_kernel(memory: GuestMemory, hints: Iterable[tuple[int, int]], la57: bool = False) -> LiveKernel:
    """Opens the kernel of a guest. ``hints``: (CR3, LSTAR) of its vCPUs, best first; ``la57``: its page tables have five levels, as far as is known.

    Sets ``memory.la57``. Raises :class:`GuestUnreadable` if none of the hints leads to a Linux kernel, and as all that reads guests' memory does,
    :class:`perfguest.guest.memory.VmEnded`.
    """
    memory.taken_away = False
    best: tuple[LiveKernel, bool] | None = None
    poor, reason = 0, "no register of its CPUs is known"
    for cr3, lstar in islice(hints, MAX_HINTS):
        for levels, table in _tables(cr3, la57):
            memory.la57 = levels
            try:
                kernel = _open(memory, table, lstar)
            except (GuestFault, FormatError) as fault:
                reason = fault.message
                continue
            except VmEnded:
                if best is None:
                    raise
                break
            if best is None or _LEVELS.index(kernel.level) > _LEVELS.index(best[0].level):
                best = kernel, levels
            poor += 1
            break
        if best is not None and (_is_sure(best[0]) or poor >= _AGREEING):
            break
    if best is None:
        raise GuestUnreadable(f"no Linux kernel in the guest's memory: {TAKEN_AWAY if memory.taken_away else reason}")
    kernel, memory.la57 = best
    if memory.taken_away and kernel.level != "processes":
        # Whatever was not found may have been there.
        kernel.reason = f"{TAKEN_AWAY}: {kernel.reason}"
    return kernel


@dataclass(frozen=True)
class FoundKernel:
    """One of the known kernels that a guest may run: with these page tables, and KASLR moved it by ``offset``."""

    candidate: tables.Candidate
    la57: bool
    table: int
    lstar: int
    offset: int


def find_known(memory: GuestMemory, hints: Iterable[tuple[int, int]], la57: bool, candidates: Sequence[tables.Candidate]) -> Iterator[FoundKernel]:
    """Those of the known kernels whose build id the guest has where they have it. Sets ``memory.la57``."""
    for cr3, lstar in islice(hints, MAX_HINTS if candidates else 0):
        for levels, table in _tables(cr3, la57):
            memory.la57 = levels
            found = [FoundKernel(one, levels, table, lstar, offset) for one, offset in tables.find(memory.read_virtual, table, lstar, candidates)]
            yield from found


def open_known(memory: GuestMemory, found: FoundKernel, known: tables_pb2.KernelTables) -> LiveKernel:
    """Opens a kernel whose tables are known, once the guest's memory was held against them. Sets ``memory.la57``.

    Raises :class:`FormatError` or :class:`GuestFault` if it is not this kernel after all, or its memory is not to be read now.
    """
    memory.la57, table, lstar, offset = found.la57, found.table, found.lstar, found.offset
    data = tables.check(known.raw, offset, lambda address, view: memory.read_virtual_into(table, address, view))
    symbols = tables.symbols_of(known, offset)
    swapper = symbols.address_of("swapper_pg_dir") or symbols.address_of("init_top_pgt")
    own = memory.translate(table, swapper) & ADDRESS if swapper else None
    text = (symbols.address_of("_stext") or lstar, symbols.address_of("_etext") or lstar)
    if own is None or memory.translate(own, lstar) != memory.translate(table, lstar):
        raise FormatError(_NO_TABLES)
    info = _known_vmcoreinfo(memory, own, symbols)
    kernel = LiveKernel(memory, known.release, known.build_id, offset, lstar, own, symbols, None, "symbols", "", info, text)
    btf_places = known.btf_places
    places = np.frombuffer(btf_places, "<u4") if len(btf_places) % 4 == 0 else np.empty(0, np.uint32)
    _make_program(kernel, lambda: BtfTable(data, places))
    return kernel


def _known_vmcoreinfo(memory: GuestMemory, own: int, symbols: Symbols) -> VmcoreInfo | None:
    pointer = symbols.address_of("vmcoreinfo_data")
    return read_vmcoreinfo(memory, own, int.from_bytes(memory.read_virtual(own, pointer, 8), "little")) if pointer else None


def _is_sure(kernel: LiveKernel) -> bool:
    # Page tables that were given to others while the image was read would show neither symbols nor vmcoreinfo, or not the kernel's own page tables.
    return (len(kernel.symbols) > 0 or kernel.info is not None) and kernel.reason != _NO_TABLES


def _tables(cr3: int, la57: bool) -> list[tuple[bool, int]]:
    """(whether it has five levels, address) of the page tables that CR3 may mean."""
    choices = [cr3, cr3 ^ _USER_TABLE] if cr3 & _USER_TABLE else [cr3]
    return [(levels, table) for levels in (la57, not la57) for table in choices]


def _open(memory: GuestMemory, cr3: int, lstar: int) -> LiveKernel:
    image = read_image(memory, cr3, lstar)
    info = find_vmcoreinfo(memory, cr3, image)
    try:
        symbols, reason = read_symbols(image, info, lstar), ""
        if symbols.tables is not None:
            _check_still(memory, cr3, image, symbols.tables.start, symbols.tables.end)
    except FormatError as error:
        symbols, reason = NO_SYMBOLS, error.message
    except MemoryError:
        symbols, reason = NO_SYMBOLS, "its kernel's symbols take too much memory"
    swapper = (info.symbol("swapper_pg_dir") if info else None) or symbols.address_of("swapper_pg_dir") or symbols.address_of("init_top_pgt")
    own = kernel_page_tables(memory, cr3, swapper, image) if swapper else None
    if own is None and info is None and not len(symbols):
        raise FormatError("what is at the syscall entry has neither symbols nor vmcoreinfo")
    kernel = LiveKernel(
        memory,
        release=release_of(image, info, symbols.address_of("linux_banner")),
        build_id=(info.build_id if info else b"") or _build_id(image, symbols),
        kaslr_offset=_kaslr_offset(image, info),
        lstar=lstar,
        kernel_cr3=cr3 if own is None else own,
        symbols=symbols,
        prog=None,
        level="symbols" if len(symbols) else "addresses",
        reason=reason,
        info=info,
        text=(symbols.address_of("_stext") or image.base, symbols.address_of("_etext") or image.base),
    )
    if len(symbols):
        _add_types(kernel, image, own)
    return kernel


def _add_types(kernel: LiveKernel, image: KernelImage, own: int | None) -> None:
    """Makes the kernel's drgn program, or says why there is none."""
    if own is None and _HAS_DRGN:
        kernel.reason = _NO_TABLES
        return
    _make_program(kernel, lambda: BtfTable(_btf(kernel, image)))


def _make_program(kernel: LiveKernel, types: Callable[[], BtfTable]) -> None:
    if not _HAS_DRGN:
        kernel.reason = "drgn is not installed (pip install 'perfguest[record]')"
        return
    try:
        source = program.Source(kernel.memory, kernel.release, kernel.info, kernel.symbols, kernel.kernel_cr3, kernel.kaslr_offset, types())
        kernel.prog = program.open_program(source)
    except (FormatError, GuestFault, VmEnded) as error:
        kernel.reason = error.message
    else:
        kernel.level = "processes"


def _check_still(memory: GuestMemory, cr3: int, image: KernelImage, start: int, stop: int) -> None:
    """Raises :class:`FormatError` if tables that no kernel ever changes are others now than when the image was read, GuestFault if they are not there."""
    if memory.read_virtual(cr3, start, stop - start) != image.read(start, stop - start):
        raise FormatError(_CHANGES)


def _btf(kernel: LiveKernel, image: KernelImage) -> bytes:
    start, stop = kernel.address_of("__start_BTF"), kernel.address_of("__stop_BTF")
    if start is None or stop is None:
        raise FormatError("its kernel was built without BTF")
    data = image.read(start, stop - start) if 0 < stop - start <= MAX_BTF else None
    if data is None:
        raise FormatError(f"its kernel says that it has BTF of {stop - start} bytes at {start:#x}, and has not")
    _check_still(kernel.memory, kernel.kernel_cr3, image, start, stop)
    return data


def _kaslr_offset(image: KernelImage, info: VmcoreInfo | None) -> int:
    told = info.hexadecimal("KERNELOFFSET") if info else None
    if told is not None and not told % (1 << 20) and START_KERNEL_MAP <= image.base - told <= image.base:
        return told
    return image.base - _DEFAULT_BASE


def _build_id(image: KernelImage, symbols: Symbols) -> bytes:
    """Out of the notes in the image."""
    start, stop = symbols.address_of("__start_notes"), symbols.address_of("__stop_notes")
    notes = (image.read(start, stop - start) or b"") if start and stop and 0 < stop - start <= 1 << 16 else b""
    return build_id_note(notes)
