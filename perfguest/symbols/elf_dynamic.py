# SPDX-License-Identifier: Apache-2.0
"""The dynamic symbols of an ELF file without its section headers: found through PT_DYNAMIC, as the loader finds them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.symbols.elf_parts import PT_DYNAMIC, PT_LOAD, ElfParts
from perfguest.symbols.sparse_elf import Bool, SparseFile

_DT_HASH, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_SYMENT, _DT_GNU_HASH = 4, 5, 6, 10, 11, 0x6FFFFEF5
_SYMBOL_BYTES = 24
_MAX_SYMBOLS = 1 << 22
_MAX_STRINGS = 1 << 28
_MAX_DYNAMIC = 1 << 16
_MAX_CHAIN = 1 << 16


@dataclass(frozen=True)
class DynamicTables:
    """A symbol table and its strings. ``*_there``: for each byte whether it is there, None if all are."""

    symbols: bytes
    symbols_there: Bool | None
    strings: bytes
    strings_there: Bool | None


def dynamic_tables(elf: ElfParts, file: SparseFile) -> DynamicTables | None:
    """None where the file is no 64-bit one, has no dynamic symbols, or does not have the pages that say where they are."""
    dynamic = next(iter(elf.segments_of(PT_DYNAMIC)), None)
    if elf.bits != 64 or dynamic is None or dynamic.size > _MAX_DYNAMIC:
        return None
    raw = _read(file, dynamic.offset, dynamic.size)
    pairs = np.frombuffer(raw or b"", "<u8", len(raw or b"") // 16 * 2).reshape(-1, 2)
    tags = {int(tag): int(value) for tag, value in pairs[::-1].tolist()}
    size = tags.get(_DT_STRSZ, 0)
    symbols, strings = _offset(elf, tags.get(_DT_SYMTAB, 0)), _offset(elf, tags.get(_DT_STRTAB, 0))
    if symbols is None or strings is None or not 0 < size <= _MAX_STRINGS or tags.get(_DT_SYMENT) != _SYMBOL_BYTES:
        return None
    count = _count(elf, file, tags)
    if not 0 < count <= _MAX_SYMBOLS:
        return None
    parts = []
    for offset, length in ((symbols, count * _SYMBOL_BYTES), (strings, size)):
        file.seek(offset)
        content = file.read(length)
        there = file.present(offset, len(content))
        parts.append((content, None if there.all() else there))
    return DynamicTables(*parts[0], *parts[1])


def _offset(elf: ElfParts, address: int) -> int | None:
    for segment in elf.segments_of(PT_LOAD):
        if segment.vaddr <= address < segment.vaddr + segment.size and address:
            return address - segment.vaddr + segment.offset
    return None


def _read(file: SparseFile, offset: int, size: int) -> bytes | None:
    """None unless all of it is there."""
    file.seek(offset)
    content = file.read(size)
    return content if len(content) == size and file.present(offset, size).all() else None


def _words(file: SparseFile, offset: int, count: int) -> npt.NDArray[np.uint32] | None:
    raw = _read(file, offset, 4 * count) if count <= _MAX_SYMBOLS else None
    return None if raw is None else np.frombuffer(raw, "<u4")


def _count(elf: ElfParts, file: SparseFile, tags: dict[int, int]) -> int:
    """How many symbols there are, which only the hash tables tell; 0 if they do not."""
    plain = _offset(elf, tags.get(_DT_HASH, 0))
    if plain is not None:
        head = _words(file, plain, 2)
        return 0 if head is None else int(head[1])
    gnu = _offset(elf, tags.get(_DT_GNU_HASH, 0))
    head = None if gnu is None else _words(file, gnu, 4)
    if gnu is None or head is None:
        return 0
    bucket_count, first, bloom_size, _ = (int(word) for word in head)
    buckets = _words(file, gnu + 16 + 8 * bloom_size, bucket_count)
    last = 0 if buckets is None else int(buckets.max(initial=0))
    if last < first:
        return 0
    chain = _words(file, gnu + 16 + 8 * bloom_size + 4 * bucket_count, last - first + 1)
    if chain is None:
        return 0
    # The last bucket's chain ends with an odd hash.
    at = gnu + 16 + 8 * bloom_size + 4 * bucket_count + 4 * (last - first)
    for more in range(_MAX_CHAIN):
        word = _words(file, at + 4 * more, 1)
        if word is None:
            return 0
        if word[0] & 1:
            return last + more + 1
    return 0
