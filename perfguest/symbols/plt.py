# SPDX-License-Identifier: Apache-2.0
"""Names for PLT entries of x86-64, which symbol tables do not have: ``printf@plt``, as objdump prints them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
from elftools.elf.elffile import ELFFile
from elftools.elf.sections import Section, SymbolTableSection

Bool = npt.NDArray[np.bool_]

_ENTRY_BYTES = {".plt": 16, ".plt.sec": 16, ".plt.got": 8}
# `jmp *disp32(%rip)`, alone or after `endbr64`, each with or without a `bnd` prefix.
_JUMP = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?\xf2?\xff\x25(.{4})", re.DOTALL)
# Elf64_Rela, whose r_info has the number of the symbol in its upper half; Elf64_Sym begins with st_name.
_RELOCATION = np.dtype([("slot", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_SYMBOL_BYTES = 24
_MAX_SECTION_BYTES = 1 << 30


def section_bytes(section: Section) -> bytes:
    """What the file holds of a section; nothing for one whose contents are elsewhere, as in files of debug information, or cut off."""
    if section["sh_type"] == "SHT_NOBITS" or section["sh_size"] > _MAX_SECTION_BYTES:
        return b""
    section.stream.seek(section["sh_offset"])
    data: bytes = section.stream.read(section["sh_size"])
    return data if len(data) == section["sh_size"] else b""


def section_present(section: Section, size: int) -> Bool | None:
    """Of a file with pages missing: for each of the section's first ``size`` bytes whether it is there. None if all are, as in files on a disk."""
    find = getattr(section.stream, "present", None)
    if find is None or section["sh_type"] == "SHT_NOBITS":
        return None
    there: Bool = find(section["sh_offset"], size)
    return None if there.all() else there


def complete_string(table: bytes, there: Bool, start: int) -> bool:
    """Whether the string at ``start`` ends at a zero that is there: missing bytes are zeros, so the first one would end it."""
    end = table.find(b"\0", start)
    return end >= 0 and bool(there[end])


def plt_symbols(elf: ELFFile, sections: Sequence[Section]) -> list[tuple[int, int, str]]:
    """(address, size, name) of every PLT entry: each jumps through a slot, and a relocation tells which function the slot is for."""
    plts = [section for section in sections if section.name in _ENTRY_BYTES and section["sh_type"] == "SHT_PROGBITS"]
    if elf["e_machine"] != "EM_X86_64" or elf.elfclass != 64 or not plts:
        return []
    entries = [entry for section in plts for entry in _entries(section)]
    names = _slot_names(elf, sections, {slot for _, _, slot in entries})
    return [(address, size, f"{names[slot]}@plt") for address, size, slot in entries if slot in names]


def _entries(section: Section) -> Iterator[tuple[int, int, int]]:
    """(Address, size, address of the slot) of each entry."""
    base, code = section["sh_addr"], section_bytes(section)
    step = section["sh_entsize"] if section["sh_entsize"] in {8, 16} else _ENTRY_BYTES[section.name]
    for at in range(0, len(code) - step + 1, step):
        jump = _JUMP.match(code, at, at + step)
        if jump:
            yield base + at, step, base + jump.end() + int.from_bytes(jump[1], "little", signed=True)


def _slot_names(elf: ELFFile, sections: Sequence[Section], slots: set[int]) -> dict[int, str]:
    """The functions that these slots are for, as far as relocations tell."""
    found: dict[int, str] = {}
    wanted = np.array(sorted(slot for slot in slots if 0 <= slot < 1 << 64), np.uint64)
    for section in sections:
        if section["sh_type"] != "SHT_RELA" or section.name not in {".rela.plt", ".rela.dyn"}:
            continue
        table = elf.get_section(section["sh_link"])
        if not isinstance(table, SymbolTableSection):
            continue
        strings = section_bytes(table.stringtable)
        there = section_present(table.stringtable, len(strings))
        for slot, start in _relocated(section_bytes(section), section_bytes(table), wanted):
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
