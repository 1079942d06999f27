# SPDX-License-Identifier: Apache-2.0
"""Names for PLT entries of x86-64, which symbol tables do not have: ``printf@plt``, as objdump prints them."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from perfguest.symbols.elf_parts import EM_X86_64, SHT_DYNSYM, SHT_PROGBITS, SHT_RELA, SHT_SYMTAB, ElfParts, Section
from perfguest.symbols.sparse_elf import complete_string

_ENTRY_BYTES = {".plt": 16, ".plt.sec": 16, ".plt.got": 8}
# `jmp *disp32(%rip)`, alone or after `endbr64`, each with or without a `bnd` prefix.
_JUMP = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?\xf2?\xff\x25(.{4})", re.DOTALL)
# Elf64_Rela, whose r_info has the number of the symbol in its upper half; Elf64_Sym begins with st_name.
_RELOCATION = np.dtype([("slot", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_SYMBOL_BYTES = 24


def plt_symbols(elf: ElfParts) -> list[tuple[int, int, str]]:
    """(address, size, name) of every PLT entry: each jumps through a slot, and a relocation tells which function the slot is for."""
    plts = [section for section in elf.sections if section.name in _ENTRY_BYTES and section.type == SHT_PROGBITS]
    if elf.machine != EM_X86_64 or elf.bits != 64 or not plts:
        return []
    entries = [entry for section in plts for entry in _entries(section)]
    names = _slot_names(elf, {slot for _, _, slot in entries})
    return [(address, size, f"{names[slot]}@plt") for address, size, slot in entries if slot in names]


def _entries(section: Section) -> Iterator[tuple[int, int, int]]:
    """(Address, size, address of the slot) of each entry."""
    code = section.content()
    step = section.entry_bytes if section.entry_bytes in {8, 16} else _ENTRY_BYTES[section.name]
    for at in range(0, len(code) - step + 1, step):
        jump = _JUMP.match(code, at, at + step)
        if jump:
            yield section.address + at, step, section.address + jump.end() + int.from_bytes(jump[1], "little", signed=True)


def _slot_names(elf: ElfParts, slots: set[int]) -> dict[int, str]:
    """The functions that these slots are for, as far as relocations tell."""
    found: dict[int, str] = {}
    wanted = np.array(sorted(slot for slot in slots if 0 <= slot < 1 << 64), np.uint64)
    for section in elf.sections:
        table = elf.section(section.link)
        if section.type != SHT_RELA or section.name not in {".rela.plt", ".rela.dyn"} or table is None or table.type not in {SHT_SYMTAB, SHT_DYNSYM}:
            continue
        linked = elf.section(table.link)
        if linked is None:
            continue
        strings = linked.content()
        there = linked.present(len(strings))
        for slot, start in _relocated(section.content(), table.content(), wanted):
            end = strings.find(b"\0", start)
            if 0 < start < end and (there is None or complete_string(strings, there, start)):
                found[slot] = strings[start:end].decode("utf-8", "replace")
    return found


def _relocated(relocations: bytes, symbols: bytes, wanted: npt.NDArray[np.uint64]) -> Iterator[tuple[int, int]]:
    """(Slot, where the name of its symbol begins) of the relocations of wanted slots: a library of C++ has a hundred thousand others."""
    rows = np.frombuffer(relocations, _RELOCATION, len(relocations) // _RELOCATION.itemsize)
    names = np.frombuffer(symbols, "<u4", len(symbols) // _SYMBOL_BYTES * (_SYMBOL_BYTES // 4))[:: _SYMBOL_BYTES // 4]
    rows = rows[(rows["symbol"] > 0) & (rows["symbol"] < len(names)) & np.isin(rows["slot"], wanted)]
    yield from zip(rows["slot"].tolist(), names[rows["symbol"]].tolist(), strict=True)
