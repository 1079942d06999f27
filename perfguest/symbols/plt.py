# SPDX-License-Identifier: Apache-2.0
"""Names for PLT entries of x86-64, which symbol tables do not have: ``printf@plt``, as objdump prints them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from perfguest.symbols.elf_parts import EM_X86_64, SHT_DYNSYM, SHT_PROGBITS, SHT_RELA, SHT_SYMTAB, ElfParts, Section
from perfguest.symbols.names import Names

U64 = npt.NDArray[np.uint64]

_ENTRY_BYTES = {".plt": 16, ".plt.sec": 16, ".plt.got": 8}
# `jmp *disp32(%rip)` behind `endbr64`, a `bnd` prefix, both, or nothing.
_ENDBR64, _BND, _JUMP = b"\xf3\x0f\x1e\xfa", b"\xf2", b"\xff\x25"
_BEGINNINGS = (_ENDBR64 + _BND + _JUMP, _ENDBR64 + _JUMP, _BND + _JUMP, _JUMP)
# Elf64_Rela, whose r_info has the number of the symbol in its upper half; Elf64_Sym begins with st_name.
_RELOCATION = np.dtype([("slot", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_SYMBOL_BYTES = 24
_WORD = (1 << 64) - 1


class PltSymbols(NamedTuple):
    """Columns of PLT entries: ``start`` and ``size`` are uint64."""

    start: U64
    size: U64
    names: Names


def plt_symbols(elf: ElfParts) -> PltSymbols:
    """Every PLT entry whose name is known: each jumps through a slot, and a relocation tells which function the slot is for."""
    plts = [section for section in elf.sections if section.name in _ENTRY_BYTES and section.type == SHT_PROGBITS]
    none = np.zeros(0, np.uint64)
    if elf.machine != EM_X86_64 or elf.bits != 64 or not plts:
        return PltSymbols(none, none, Names.of([]))
    start, size, slot = (np.concatenate(columns) for columns in zip(*map(_entries, plts), strict=True))
    names = _slot_names(elf, slot)
    rows = np.array([row for row, name in enumerate(names) if name], np.int64)
    return PltSymbols(start[rows], size[rows], Names.of_bytes([name + b"@plt" for name in names if name]))


def _entries(section: Section) -> tuple[U64, U64, U64]:
    """Address, size, address of the slot of each entry."""
    code = section.content()
    step = section.entry_bytes if section.entry_bytes in {8, 16} else _ENTRY_BYTES[section.name]
    entries = np.frombuffer(code, np.uint8, len(code) // step * step).reshape(-1, step)
    # Behind the jump, from which its operand counts; 0 where there is none.
    end = np.zeros(len(entries), np.int64)
    distance = np.zeros(len(entries), np.int64)
    for beginning in _BEGINNINGS:
        size = len(beginning)
        if size + 4 <= step:
            rows = np.flatnonzero((end == 0) & (entries[:, :size] == np.frombuffer(beginning, np.uint8)).all(axis=1))
            end[rows] = size + 4
            distance[rows] = np.ascontiguousarray(entries[rows, size : size + 4]).view("<i4")[:, 0]
    rows = np.flatnonzero(end)
    start = np.uint64(section.address & _WORD) + (rows * step).astype(np.uint64)
    return start, np.full(len(rows), step, np.uint64), start + (end + distance)[rows].astype(np.uint64)


def _slot_names(elf: ElfParts, slots: U64) -> list[bytes]:
    """The functions that these slots are for, empty where no relocation tells."""
    names = [b""] * len(slots)
    order = np.argsort(slots, kind="stable")
    for section in elf.sections:
        table = elf.section(section.link)
        if section.type != SHT_RELA or section.name not in {".rela.plt", ".rela.dyn"} or table is None or table.type not in {SHT_SYMTAB, SHT_DYNSYM}:
            continue
        linked = elf.section(table.link)
        if linked is None:
            continue
        strings = linked.content()
        there = linked.present(len(strings))
        for row, start in _relocated(section.content(), table.content(), slots[order]):
            end = strings.find(b"\0", start)
            if 0 < start < end and (there is None or there[end]):
                names[order[row]] = strings[start:end]
    return names


def _relocated(relocations: bytes, symbols: bytes, slots: U64) -> Iterator[tuple[int, int]]:
    """(Which of the ascending slots, where the name of its symbol begins) of their relocations: a library of C++ has a hundred thousand others."""
    rows = np.frombuffer(relocations, _RELOCATION, len(relocations) // _RELOCATION.itemsize)
    names = np.frombuffer(symbols, "<u4", len(symbols) // _SYMBOL_BYTES * (_SYMBOL_BYTES // 4))[:: _SYMBOL_BYTES // 4]
    rows = rows[(rows["symbol"] > 0) & (rows["symbol"] < len(names))]
    first = np.searchsorted(slots, rows["slot"])
    count = np.searchsorted(slots, rows["slot"], "right") - first
    starts = np.repeat(names[rows["symbol"]], count)
    # One slot may have several entries: with and without a prefix.
    which = np.repeat(first - (np.cumsum(count) - count), count) + np.arange(len(starts))
    yield from zip(which.tolist(), starts.tolist(), strict=True)
