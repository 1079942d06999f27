# SPDX-License-Identifier: Apache-2.0
"""Functions of Go programs, stripped ones too: from the table by which Go's runtime itself finds the function of an address (pclntab).

The format, as debug/gosym/pclntab.go and runtime/symtab.go of Go have it; there are four on x86-64, told apart by the magic number that begins them:

- 1.2 (0xfffffffb): the number of functions (64 bits), pairs of a function's address and the offset of its data (64 bits each), and the end of the last one.
- 1.16 (0xfffffffa): a header of 64-bit words: functions, files, offsets of names, compilation units, files, pc tables, and functions. The pairs are
  at the last of them, and offsets of data count from there, those of names from the names.
- 1.18 (0xfffffff0) and 1.20 (0xfffffff1): behind the number of files stands the address of the text; the pairs are of 32 bits, addresses counted from the text.

A function's data begins with its address once more, as in its pair; then comes the offset of its name (32 bits).
Each function reaches to the next one's address. A name is given only if all that leads to it is there and agrees.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.symbols.elf_parts import EM_X86_64, PF_X, PT_LOAD, SHT_PROGBITS, ElfParts, read_at
from perfguest.symbols.sparse_elf import Bool, SparseFile, complete_string

U64 = npt.NDArray[np.uint64]

SECTIONS = (".gopclntab", ".data.rel.ro.gopclntab")

_GO_1_2, _GO_1_16, _GO_1_18, _GO_1_20 = 0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1
# Behind the magic number: two zeros, the size of the smallest instruction, and that of a pointer.
_X86_64 = b"\0\0\x01\x08"
_MAX_FUNCTIONS = 1 << 21
_MAX_TABLE = 1 << 28
_MAX_NAME = 4096
_R_X86_64_RELATIVE = 8


@dataclass(frozen=True)
class GoFunctions:
    """``start``, ``size``: uint64, in the file's own addresses, ascending. ``missing``: how many functions have no name here because pages are missing."""

    start: U64
    size: U64
    names: list[str]
    missing: int


_NONE = GoFunctions(np.empty(0, np.uint64), np.empty(0, np.uint64), [], 0)


@dataclass(frozen=True)
class _Table:
    """``width``: bytes of a number of the pairs; offsets in the table of the pairs, of what offsets of data count from, and of names; ``text`` is added
    to addresses."""

    count: int
    width: int
    pairs: int
    data: int
    names: int
    text: int


def parse_pclntab(content: bytes, there: Bool | None = None, text: int = 0) -> GoFunctions:
    """``there``: for each byte of the table whether it is there, None if all are. ``text``: where the text begins, for tables that leave that to the linker.

    What is no such table, or is damaged, has no functions.
    """
    known = np.ones(len(content), bool) if there is None else there
    table = _header(content, known, text)
    if table is None:
        return _NONE
    kind = "<u4" if table.width == 4 else "<u8"
    end = table.pairs + (2 * table.count + 1) * table.width
    if table.count > _MAX_FUNCTIONS or end > len(content):
        return _NONE
    numbers = np.frombuffer(content, kind, 2 * table.count + 1, table.pairs).astype(np.uint64)
    numbers_there: Bool = np.all(known[table.pairs : end].reshape(-1, table.width), axis=1)
    start, data, following = numbers[:-1:2], numbers[1::2], numbers[2::2]
    whole = numbers_there[:-1:2] & numbers_there[1::2] & numbers_there[2::2]
    usable = whole & (following > start) & (data < np.uint64(len(content) - table.data))
    rows = np.flatnonzero(usable)
    rows, name_at, absent = _names_of(content, known, table, rows, numbers[:-1].reshape(-1, 2)[rows])
    kept, names = [], []
    for row, at in zip(rows.tolist(), name_at.tolist(), strict=True):
        if not complete_string(content, known, at):
            absent += 1
        elif (name := content[at : content.index(b"\0", at)]) and len(name) <= _MAX_NAME:
            kept.append(row)
            names.append(name.decode("utf-8", "replace"))
    chosen = np.array(kept, np.int64)
    return GoFunctions(start[chosen] + np.uint64(table.text), following[chosen] - start[chosen], names, absent + int(np.count_nonzero(~whole)))


def _names_of(content: bytes, known: Bool, table: _Table, rows: npt.NDArray[np.int64], pairs: U64) -> tuple[npt.NDArray[np.int64], U64, int]:
    """(Rows whose data agrees with their pair, where their names begin, how many's data is not there)."""
    octets, start, data = np.frombuffer(content, np.uint8), pairs[:, 0], pairs[:, 1]
    at = data.astype(np.int64) + table.data
    inside = at + table.width + 4 <= len(content)
    rows, start, at = rows[inside], start[inside], at[inside]
    places = at[:, None] + np.arange(table.width + 4)
    there = known[places].all(axis=1) if len(places) else np.zeros(0, bool)
    rows, start, raw = rows[there], start[there], np.ascontiguousarray(octets[places[there]])
    again = raw[:, : table.width].copy().view("<u4" if table.width == 4 else "<u8")[:, 0].astype(np.uint64) if len(raw) else np.empty(0, np.uint64)
    name = raw[:, table.width :].copy().view("<u4")[:, 0].astype(np.uint64) if len(raw) else np.empty(0, np.uint64)
    name += np.uint64(table.names)
    fits = (again == start) & (name < np.uint64(len(content)))
    return rows[fits], name[fits], int(np.count_nonzero(~there))


def _header(content: bytes, known: Bool, text: int) -> _Table | None:
    if len(content) < 72 or not known[:72].all() or content[4:8] != _X86_64:
        return None
    (magic,) = struct.unpack_from("<I", content)
    words = struct.unpack_from("<8Q", content, 8)
    if magic == _GO_1_2:
        table = _Table(words[0], 8, 16, 0, 0, 0)
    elif magic == _GO_1_16:
        table = _Table(words[0], 8, words[6], words[6], words[2], 0)
    elif magic in {_GO_1_18, _GO_1_20}:
        table = _Table(words[0], 4, words[7], words[7], words[3], words[2] or text)
        if not table.text or table.text >= 1 << 57:
            return None
    else:
        return None
    return table if max(table.pairs, table.data, table.names) < len(content) else None


def go_functions(elf: ElfParts, file: SparseFile | None) -> GoFunctions:
    """The functions of a 64-bit x86 program; none if it is not Go's. ``file``: the program where pages of it are missing."""
    if elf.bits != 64 or elf.machine != EM_X86_64:
        return _NONE
    for offset, size in _places(elf, file):
        content = read_at(elf.stream, offset, size)
        there = file.present(offset, len(content)) if file is not None else None
        found = parse_pclntab(content, there, _text(elf, offset))
        if found.names:
            return found
    return _NONE


def _places(elf: ElfParts, file: SparseFile | None) -> list[tuple[int, int]]:
    """(Offset, size) of what may be the table: its section, or where that is not to be had the magic number in a segment of data."""
    sections = [section for section in elf.sections if section.name in SECTIONS and section.type == SHT_PROGBITS]
    if sections:
        return [(section.offset, min(section.size, _MAX_TABLE)) for section in sections]
    found = []
    for segment in elf.segments_of(PT_LOAD):
        if file is None or segment.flags & PF_X or segment.size > _MAX_TABLE:
            continue
        content = read_at(file, segment.offset, segment.size)
        for magic in (_GO_1_20, _GO_1_18, _GO_1_16, _GO_1_2):
            at = content.find(struct.pack("<I", magic) + _X86_64)
            # The linker puts it at a multiple of its alignment.
            if at >= 0 and at % 8 == 0:
                found.append((segment.offset + at, len(content) - at))
    return found


def _text(elf: ElfParts, offset: int) -> int:
    """Where the text begins, for a table at this offset of a program in which the loader fills that word in. 0 if nothing says it."""
    holders = (one for one in elf.segments_of(PT_LOAD) if 0 <= offset - one.offset < one.size)
    address = next((offset - one.offset + one.vaddr for one in holders), None)
    named = {section.name: section for section in reversed(elf.sections)}
    relocations = named.get(".rela.dyn") or named.get(".rela")
    if address is None or relocations is None or relocations.size > _MAX_TABLE:
        return 0
    raw = read_at(elf.stream, relocations.offset, relocations.size)
    rows = np.frombuffer(raw, "<u8", len(raw) // 24 * 3).reshape(-1, 3)
    mine = rows[(rows[:, 0] == np.uint64(address + 24)) & (rows[:, 1] == np.uint64(_R_X86_64_RELATIVE))]
    return int(mine[0, 2]) if len(mine) == 1 else 0
