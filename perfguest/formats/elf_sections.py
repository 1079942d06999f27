# SPDX-License-Identifier: Apache-2.0
"""Section headers, symbols and notes of a 64-bit ELF file of x86, as kernels and modules are (System V ABI, chapter 4; its supplement for AMD64).

One numpy table each: a module of a few megabytes has a hundred thousand symbols, for which an object each is too slow.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError

SHT_SYMTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS = 2, 4, 7, 8
SHF_ALLOC, SHF_EXECINSTR = 2, 4
#: Section numbers from here on are no sections.
FIRST_RESERVED = 0xFF00

_EM_X86_64 = 62
_NT_GNU_BUILD_ID = 3
_MAX_NAME = 4096
_MAX_SYMBOLS = 4 << 20
_SECTION = np.dtype(
    {
        "names": ["name", "type", "flags", "address", "offset", "size", "link", "info", "align", "entry"],
        "formats": ["<u4", "<u4", "<u8", "<u8", "<u8", "<u8", "<u4", "<u4", "<u8", "<u8"],
    }
)
_SYMBOL = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")])


@dataclass(frozen=True)
class ElfSections:
    """``table``: the headers, with the fields ``type``, ``flags``, ``address``, ``offset``, ``size``, ``link``, ``info`` and ``align``; what has content lies
    within ``elf``. ``names``: of the sections. ``entry``: e_entry. ``relocatable``: as the compiler leaves it and modules are."""

    elf: bytes
    table: npt.NDArray[np.void]
    names: tuple[str, ...]
    entry: int
    relocatable: bool

    def __len__(self) -> int:
        return len(self.names)

    def find(self, name: str) -> int | None:
        """The number of the first section of that name."""
        return self._numbers.get(name)

    def content(self, number: int) -> bytes:
        header = self.table[number]
        if header["type"] == SHT_NOBITS:
            return b""
        return self.elf[int(header["offset"]) : int(header["offset"]) + int(header["size"])]

    def named(self, name: str) -> bytes:
        """The content of the first section of that name; empty if there is none."""
        number = self.find(name)
        return b"" if number is None else self.content(number)

    def symbols(self) -> tuple[npt.NDArray[np.void], bytes] | None:
        """Rows of ``.symtab``, with the fields ``name``, ``info``, ``section``, ``value`` and ``size``, and its strings; None where the file has none."""
        numbers = np.flatnonzero(self.table["type"] == SHT_SYMTAB)
        if not len(numbers) or self.table[numbers[0]]["link"] >= len(self):
            return None
        header = self.table[numbers[0]]
        count = min(int(header["size"]) // _SYMBOL.itemsize, _MAX_SYMBOLS)
        return np.frombuffer(self.elf, _SYMBOL, count, int(header["offset"])), self.content(int(header["link"]))

    @cached_property
    def build_id(self) -> str:
        """Hexadecimal, empty if there is none."""
        for number in np.flatnonzero(self.table["type"] == SHT_NOTE).tolist():
            found = note_build_id(self.content(number))
            if found:
                return found
        return ""

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: number for number, name in zip(range(len(self) - 1, -1, -1), reversed(self.names), strict=True)}


def read_sections(elf: bytes, path: str, hint: str) -> ElfSections:
    """``path`` and ``hint`` are for messages. Raises :class:`FormatError` for another kind of file, and where parts of it are not there."""
    if len(elf) < 64 or elf[:6] != b"\x7fELF\x02\x01" or struct.unpack_from("<H", elf, 18)[0] != _EM_X86_64:
        raise FormatError(f"{path}: its ELF file is not one of 64-bit x86", hint)
    (kind,) = struct.unpack_from("<H", elf, 16)
    address, _, offset = struct.unpack_from("<QQQ", elf, 24)
    entry, count, names_index = struct.unpack_from("<HHH", elf, 58)
    if entry != _SECTION.itemsize or not 0 < count < FIRST_RESERVED or offset + count * entry > len(elf) or names_index >= count:
        raise FormatError(f"{path}: no section headers at offset {offset} of its ELF file of {len(elf)} bytes: truncated or stripped of them", hint)
    table = np.frombuffer(elf, _SECTION, count, offset)
    inside = (table["type"] == SHT_NOBITS) | ((table["offset"] <= len(elf)) & (table["size"] <= len(elf) - np.minimum(table["offset"], len(elf))))
    # A section of no type has no content.
    inside |= table["type"] == 0
    if not inside.all():
        wrong = int(np.flatnonzero(~inside)[0])
        raise FormatError(f"{path}: section {wrong} of its ELF file lies outside of it: truncated", hint)
    strings = table[names_index]
    content = b"" if strings["type"] in {0, SHT_NOBITS} else elf[int(strings["offset"]) : int(strings["offset"]) + int(strings["size"])]
    return ElfSections(elf, table, tuple(string_at(content, place) for place in table["name"].tolist()), address, kind == 1)


def string_at(strings: bytes, offset: int) -> str:
    """The NUL-terminated string; empty where it does not end."""
    return strings[offset : max(strings.find(b"\0", offset, offset + _MAX_NAME), 0)].decode("utf-8", "backslashreplace")


def note_build_id(notes: bytes) -> str:
    """The build id among the contents of a section of notes, hexadecimal; empty if it is not there."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        start = at + 12 + ((name_size + 3) & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[at + 12 : at + 16] == b"GNU\0" and size <= 64:
            return notes[start : start + size].hex()
        at = start + ((size + 3) & ~3)
    return ""
