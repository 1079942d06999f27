# SPDX-License-Identifier: Apache-2.0
"""Names for PLT entries of x86-64, which symbol tables do not have: ``printf@plt``, as objdump prints them."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import Section, SymbolTableSection

Bool = npt.NDArray[np.bool_]

_ENTRY_BYTES = {".plt": 16, ".plt.sec": 16, ".plt.got": 8}
# `jmp *disp32(%rip)`, alone or after `endbr64`, each with or without a `bnd` prefix.
_JUMP = re.compile(rb"(?:\xf3\x0f\x1e\xfa)?\xf2?\xff\x25(.{4})", re.DOTALL)
_MAX_ENTRIES = 1 << 20
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
    if elf["e_machine"] != "EM_X86_64" or not plts:
        return []
    slots = _slots(elf, sections)
    found = []
    for section in plts:
        base, code = section["sh_addr"], section_bytes(section)
        step = section["sh_entsize"] if section["sh_entsize"] in {8, 16} else _ENTRY_BYTES[section.name]
        for at in range(0, len(code) - step + 1, step):
            jump = _JUMP.match(code, at, at + step)
            if jump and (name := slots.get(base + jump.end() + int.from_bytes(jump[1], "little", signed=True))):
                found.append((base + at, step, f"{name}@plt"))
    return found


def _slots(elf: ELFFile, sections: Sequence[Section]) -> dict[int, str]:
    slots = {}
    for section in sections:
        if not isinstance(section, RelocationSection) or section.name not in {".rela.plt", ".rela.dyn"} or section.num_relocations() > _MAX_ENTRIES:
            continue
        names = elf.get_section(section["sh_link"])
        if not isinstance(names, SymbolTableSection):
            continue
        strings = section_bytes(names.stringtable)
        there = section_present(names.stringtable, len(strings))
        for relocation in section.iter_relocations():
            if relocation["r_info_sym"]:
                symbol = names.get_symbol(relocation["r_info_sym"])
                if there is None or complete_string(strings, there, symbol["st_name"]):
                    slots[relocation["r_offset"]] = symbol.name
    return slots
