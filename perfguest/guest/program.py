# SPDX-License-Identifier: Apache-2.0
"""A drgn program over a guest's memory, with the types of the guest's own BTF."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import drgn
from drgn import Architecture, Platform, Program, Symbol, SymbolBinding, SymbolKind

from perfguest.errors import FormatError
from perfguest.formats.btf import BtfTable
from perfguest.guest.btf import BtfFinder
from perfguest.guest.image import START_KERNEL_MAP
from perfguest.guest.kallsyms import Symbols
from perfguest.guest.memory import GuestFault, GuestMemory
from perfguest.guest.vmcoreinfo import VmcoreInfo

# The direct map is no larger with 4-level paging (Documentation/arch/x86/x86_64/mm.rst).
_MAX_DIRECT_MAP = 1 << 46
_MAX_DRGN_READ = 64 << 20


@dataclass(frozen=True)
class Source:
    """What is known of a kernel: its own page tables are at the guest-physical address ``own``, KASLR moved it by ``moved``, its types are ``types``."""

    memory: GuestMemory
    release: str
    info: VmcoreInfo | None
    symbols: Symbols
    own: int
    moved: int
    types: BtfTable


def open_program(source: Source) -> Program:
    """The program. What it cannot read is a ``drgn.FaultError``, types that make no sense a ValueError.

    Raises :class:`FormatError` if the types do not fit the memory.
    """
    prog = _program(source, source.types)
    _add_direct_map(prog, source.memory, _direct_map(source))
    try:
        name = prog["init_task"].comm.string_()
    except (drgn.FaultError, LookupError, TypeError, ValueError) as error:
        raise FormatError(f"its kernel's types do not fit its memory: {error}") from error
    if not name.startswith(b"swapper"):
        raise FormatError("its kernel's types do not fit its memory: the first task is not where they say")
    return prog


def _vmcoreinfo(source: Source) -> bytes:
    """The guest's own text, but what was found to be otherwise; where it has none, what drgn cannot do without."""
    info, symbols = source.info, source.symbols
    swapper = (info.symbol("swapper_pg_dir") if info else None) or symbols.address_of("swapper_pg_dir") or symbols.address_of("init_top_pgt") or 0
    proven = {
        "OSRELEASE": source.release or "unknown",
        "PAGESIZE": "4096",
        "KERNELOFFSET": f"{source.moved % (1 << 64):x}",
        "SYMBOL(swapper_pg_dir)": f"{swapper:x}",
        "NUMBER(phys_base)": str(source.own - (swapper - START_KERNEL_MAP)),
        "NUMBER(pgtable_l5_enabled)": str(int(source.memory.la57)),
    }
    return VmcoreInfo({**(info.lines if info else {}), **proven}, None).text()


def _program(source: Source, table: BtfTable) -> Program:
    vmcoreinfo = _vmcoreinfo(source)
    try:
        prog = Program(Platform(Architecture.X86_64), vmcoreinfo=vmcoreinfo)
        for slot in source.memory.slots:
            prog.add_memory_segment(slot.gpa, slot.size, _physical(source.memory), True)
        prog.set_linux_kernel_custom(vmcoreinfo, True)
    except (LookupError, OverflowError, TypeError, ValueError) as error:
        raise FormatError(f"its kernel's vmcoreinfo makes no sense: {error}") from error
    prog.register_symbol_finder("kallsyms", _symbol_finder(source.symbols), enable_index=0)
    BtfFinder(prog, table, source.symbols.address_of).register()
    return prog


def _physical(memory: GuestMemory) -> Callable[[int, int, int, bool], bytes]:
    def read(address: int, count: int, offset: int, physical: bool) -> bytes:
        if count > _MAX_DRGN_READ:
            raise drgn.FaultError(f"{count} bytes are too many to read", address)
        try:
            return memory.read(address, count)
        except GuestFault as fault:
            raise drgn.FaultError(fault.what, address) from fault

    return read


def _direct_map(source: Source) -> int | None:
    """Where the kernel has guest-physical address 0."""
    if source.info and source.info.direct_map is not None:
        return source.info.direct_map
    variable = source.symbols.address_of("page_offset_base")
    try:
        return int.from_bytes(source.memory.read_virtual(source.own, variable, 8), "little") if variable else None
    except GuestFault:
        return None


def _add_direct_map(prog: Program, memory: GuestMemory, base: int | None) -> None:
    """Nearly all that the kernel points to is in the direct map: there one subtraction does instead of drgn's walk of the page tables."""
    if base is None or base % (1 << 30) or base >> 55 != 0x1FF:
        return
    read = _physical(memory)

    def read_direct(address: int, count: int, offset: int, physical: bool) -> bytes:
        return read(address - base, count, offset, True)

    for slot in memory.slots:
        if slot.gpa + slot.size <= _MAX_DIRECT_MAP:
            prog.add_memory_segment(base + slot.gpa, slot.size, read_direct)


def _symbol_finder(symbols: Symbols) -> Callable[[Program, str | None, int | None, bool], list[Symbol]]:
    def symbol(place: int) -> Symbol:
        address = int(symbols.addresses[place])
        size = int(symbols.addresses[place + 1]) - address if place + 1 < len(symbols) else 0
        binding = SymbolBinding.GLOBAL if symbols.types[place : place + 1].isupper() else SymbolBinding.LOCAL
        return Symbol(symbols.name(place).decode(errors="replace"), address, size, binding, SymbolKind.UNKNOWN)

    def find(prog: Program, name: str | None, address: int | None, one: bool) -> list[Symbol]:
        # Nobody asks for all of them, nor for all of one name: the first is what the kernel's own lookup gives.
        place = symbols.place_of(name) if name is not None else symbols.before(address) if address is not None else None
        if place is None or (name is not None and address is not None and int(symbols.addresses[place]) != address):
            return []
        return [symbol(place)]

    return find
