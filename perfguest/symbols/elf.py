# SPDX-License-Identifier: Apache-2.0
"""Functions of an ELF file: from .symtab, .dynsym, the PLT, .gnu_debugdata, Go's pclntab, and a separate file of debug information.

Tables are read from their bytes, as one object per symbol is too slow for files with hundreds of thousands.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.rows import distinct_values
from perfguest.symbols.elf_dynamic import DynamicTables, dynamic_tables
from perfguest.symbols.elf_parts import PT_LOAD, SHF_EXECINSTR, SHT_DYNSYM, SHT_NULL, SHT_SYMTAB, ElfParts, Section, read_parts
from perfguest.symbols.gopclntab import GoFunctions, go_functions
from perfguest.symbols.names import Names
from perfguest.symbols.plt import PltSymbols, plt_symbols
from perfguest.symbols.sparse_elf import Bool, SparseFile
from perfguest.symbols.table import GLOBAL, LOCAL, U8, U64, WEAK, RawSymbols, SymbolTable, build_table

_SYMBOL_64 = np.dtype([("name", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2"), ("value", "<u8"), ("size", "<u8")])
_SYMBOL_32 = np.dtype([("name", "<u4"), ("value", "<u4"), ("size", "<u4"), ("info", "u1"), ("other", "u1"), ("section", "<u2")])
_STT_NOTYPE, _STT_FUNC, _STT_GNU_IFUNC = 0, 2, 10
_STB_TO_BINDING = np.array([LOCAL, GLOBAL, WEAK] + [GLOBAL] * 13, np.uint8)
_STV_INTERNAL, _STV_HIDDEN = 1, 2
_FIRST_RESERVED_SECTION = 0xFF00
_SHN_UNDEF = 0
_SYMBOL_TABLES = {SHT_SYMTAB, SHT_DYNSYM}

# .gnu_debugdata holds symbols only.
_MAX_DEBUGDATA_BYTES = 1 << 28
_DEBUG_DIRECTORY = "usr/lib/debug/.build-id"
_CACHED_FILES = 512


@dataclass(frozen=True)
class Segment:
    """A PT_LOAD: ``size`` bytes at ``offset`` of the file stand at address ``vaddr``."""

    offset: int
    vaddr: int
    size: int


@dataclass(frozen=True)
class ElfFile:
    """``symbols`` are in the file's own addresses. ``build_id`` is hex, empty if there is none. ``notes``: lines for people on what could not be used."""

    path: str
    build_id: str
    segments: tuple[Segment, ...]
    symbols: SymbolTable
    notes: tuple[str, ...] = ()

    def vaddr(self, offsets: U64) -> tuple[U64, npt.NDArray[np.bool_]]:
        """Addresses of offsets in the file, and which of them lie in a segment at all."""
        addresses, known = np.zeros(len(offsets), np.uint64), np.zeros(len(offsets), bool)
        for segment in self.segments:
            inside = ~known & (offsets >= np.uint64(segment.offset)) & (offsets - np.uint64(segment.offset) < np.uint64(segment.size))
            addresses[inside] = offsets[inside] - np.uint64(segment.offset) + np.uint64(segment.vaddr)
            known |= inside
        return addresses, known


def read_elf(path: str | Path, root: str | Path = "/") -> ElfFile:
    """Reads ``path``, with the debug file that ``root`` holds for its build id, if any. Unchanged files are read once.

    Raises :class:`FormatError` for what is no little-endian ELF file or is damaged.
    """
    try:
        status = Path(path).stat()
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error
    return _read_cached(str(path), str(root), (status.st_mtime_ns, status.st_size, status.st_ino))


@lru_cache(maxsize=_CACHED_FILES)
def _read_cached(path: str, root: str, _version: tuple[int, int, int]) -> ElfFile:
    parts = _read_file(path)
    sources, notes = [parts.symbols], []
    debug = _debug_file(parts.build_id, root)
    if debug is not None:
        try:
            separate = _read_file(str(debug))
        except FormatError as error:
            notes.append(f"{error.message}; {path} has only the names that it holds itself")
        else:
            # Its name says so, but a wrong name is worse than none.
            sources += [separate.symbols] if separate.build_id == parts.build_id else []
    return ElfFile(path, parts.build_id, parts.segments, _table(path, sources, parts.ends), tuple(notes))


def parse_elf(data: bytes, name: str) -> ElfFile:
    """The same for bytes, without a debug file. ``name`` stands in messages."""
    parts = _read_parts(name, io.BytesIO(data))
    return ElfFile(name, parts.build_id, parts.segments, _table(name, [parts.symbols], parts.ends))


def parse_sparse_elf(file: SparseFile, name: str) -> ElfFile:
    """The same for a file of which some pages are missing: it has the names that are wholly there. ``name`` stands in messages."""
    parts = _read_parts(name, file)
    return ElfFile(name, parts.build_id, parts.segments, _table(name, [parts.symbols], parts.ends), parts.notes)


@dataclass(frozen=True)
class _Symbols:
    """Columns of functions, and of labels: code without a type, as hand-written assembly has."""

    start: U64
    size: U64
    binding: U8
    label: npt.NDArray[np.bool_]
    names: Names


@dataclass(frozen=True)
class _Parts:
    build_id: str
    segments: tuple[Segment, ...]
    symbols: _Symbols
    # Ends of sections that hold code.
    ends: U64
    notes: tuple[str, ...] = ()


def _read_file(path: str) -> _Parts:
    file = Path(path)
    try:
        # A name out of a recording may be that of a FIFO or a device, which would never end.
        if not file.is_file():
            raise FormatError(f"{path} is no regular file")
        with file.open("rb") as stream:
            return _read_parts(path, stream)
    except (OSError, ValueError) as error:
        raise FormatError(f"{path} cannot be read: {error}") from error


def _debug_file(build_id: str, root: str) -> Path | None:
    path = Path(root, _DEBUG_DIRECTORY, build_id[:2], f"{build_id[2:]}.debug")
    return path if len(build_id) > 2 and path.is_file() else None


def _read_parts(name: str, stream: BinaryIO | SparseFile) -> _Parts:
    # What a damaged file says of itself leads anywhere.
    try:
        elf = read_parts(name, stream)
        symbols = [_table_symbols(elf, section) for section in elf.sections if section.type in _SYMBOL_TABLES]
        symbols.append(_plt(plt_symbols(elf)))
        notes: tuple[str, ...] = ()
        if not any(section.type == SHT_SYMTAB and section.present(section.size) is None for section in elf.sections):
            found = go_functions(elf, stream if isinstance(stream, SparseFile) else None)
            symbols.append(_go(found))
            if found.missing:
                notes = (f"{name}: {found.missing} of {found.missing + len(found.names)} functions of Go have no names: pages of its table are missing",)
        for section in elf.sections:
            if section.name == ".gnu_debugdata" and section.present(section.size) is None:
                symbols.append(_debugdata(name, section.content()))
        ends = distinct_values(np.array([section.address + section.size for section in elf.sections if section.flags & SHF_EXECINSTR], np.uint64))
        joined = _join(symbols)
        if isinstance(stream, SparseFile) and _lacks_symbols(elf, stream):
            tables = dynamic_tables(elf, stream)
            joined = _sized(_join([joined, _columns(tables, elf.bits, np.zeros(1 << 16, bool))] if tables else [joined]))
        segments = tuple(Segment(segment.offset, segment.vaddr, segment.size) for segment in elf.segments_of(PT_LOAD))
        return _Parts(elf.build_id, segments, joined, ends, notes)
    except (FormatError, OSError):
        raise
    except Exception as error:
        raise FormatError(f"{name} is a damaged ELF file: {type(error).__name__}: {error}", "Its functions cannot be named.") from error


def _lacks_symbols(elf: ElfParts, file: SparseFile) -> bool:
    """Whether names that the file has are missing. Then a symbol without a size must not reach to the next one: another may stand between."""
    if not file.present(elf.headers_at, elf.headers_bytes).all():
        return True
    tables = [section for section in elf.sections if section.type in _SYMBOL_TABLES or section.name == ".gnu_debugdata"]
    strings = [elf.sections[section.link] for section in tables]
    return any(section.present(section.size) is not None for section in [*tables, *strings] if section.type != SHT_NULL)


def _sized(symbols: _Symbols) -> _Symbols:
    rows = np.flatnonzero(symbols.size > 0)
    return _Symbols(symbols.start[rows], symbols.size[rows], symbols.binding[rows], symbols.label[rows], symbols.names.take(rows))


def _table_symbols(elf: ElfParts, section: Section) -> _Symbols:
    """Functions and labels of a symbol table: defined, in a section of code, with a name."""
    raw, linked = section.content(), elf.sections[section.link]
    strings = linked.content()
    tables = DynamicTables(raw, section.present(len(raw)), strings, linked.present(len(strings)))
    code = np.zeros(1 << 16, bool)
    holders = elf.sections[:_FIRST_RESERVED_SECTION]
    code[: len(holders)] = [bool(holder.flags & SHF_EXECINSTR) for holder in holders]
    return _columns(tables, elf.bits, code)


def _columns(tables: DynamicTables, width: int, code: Bool) -> _Symbols:
    """``code``: for each number of a section whether it holds code."""
    layout = _SYMBOL_64 if width == 64 else _SYMBOL_32
    count = len(tables.symbols) // layout.itemsize
    entries = np.frombuffer(tables.symbols, layout, count)
    kind = entries["info"] & 15
    function = ((kind == _STT_FUNC) | (kind == _STT_GNU_IFUNC)) & (entries["section"] != _SHN_UNDEF)
    visibility = entries["other"] & 3
    visible = (visibility != _STV_INTERNAL) & (visibility != _STV_HIDDEN)
    label = (kind == _STT_NOTYPE) & code[entries["section"]] & visible
    chosen = (function | label) & (entries["name"] > 0) & (entries["name"] < len(tables.strings))
    if tables.symbols_there is not None:
        chosen &= tables.symbols_there[: count * layout.itemsize].reshape(count, -1).all(axis=1)
    rows = entries[chosen]
    # The first zero behind the beginning of each.
    zeros = np.append(np.flatnonzero(np.frombuffer(tables.strings, np.uint8) == 0), len(tables.strings))
    begin = rows["name"].astype(np.int64)
    end = zeros[np.searchsorted(zeros, begin)]
    if tables.strings_there is not None:
        # A name that is not wholly there ends at the first byte that is missing, which reads as zero.
        there = np.append(tables.strings_there, False)[end]
        rows, begin, end = rows[there], begin[there], end[there]
    return _Symbols(
        rows["value"].astype(np.uint64),
        rows["size"].astype(np.uint64),
        _STB_TO_BINDING[rows["info"] >> 4],
        (rows["info"] & 15) == _STT_NOTYPE,
        Names(tables.strings, begin, end),
    )


def _plt(found: PltSymbols) -> _Symbols:
    count = len(found.names)
    return _Symbols(found.start, found.size, np.full(count, WEAK, np.uint8), np.zeros(count, bool), found.names)


def _go(found: GoFunctions) -> _Symbols:
    count = len(found.names)
    return _Symbols(found.start, found.size, np.full(count, WEAK, np.uint8), np.zeros(count, bool), Names.of(found.names))


def _debugdata(name: str, packed: bytes) -> _Symbols:
    """An ELF file with a symbol table and nothing else, in xz."""
    # Few files have one.
    import lzma

    data = lzma.LZMADecompressor(memlimit=_MAX_DEBUGDATA_BYTES).decompress(packed, _MAX_DEBUGDATA_BYTES)
    inner = read_parts(f"{name}'s .gnu_debugdata", io.BytesIO(data))
    return _join([_table_symbols(inner, section) for section in inner.sections if section.type == SHT_SYMTAB])


def _join(parts: list[_Symbols]) -> _Symbols:
    return _Symbols(
        np.concatenate([part.start for part in parts] or [np.zeros(0, np.uint64)]),
        np.concatenate([part.size for part in parts] or [np.zeros(0, np.uint64)]),
        np.concatenate([part.binding for part in parts] or [np.zeros(0, np.uint8)]),
        np.concatenate([part.label for part in parts] or [np.zeros(0, bool)]),
        Names.concatenate([part.names for part in parts]),
    )


def _table(path: str, sources: list[_Symbols], ends: U64) -> SymbolTable:
    symbols = _join(sources)
    if not symbols.label.any():
        return build_table(_raw(path, symbols, np.arange(len(symbols.names))), ends)
    # A label within a function is a place in it, not another function.
    sized = np.flatnonzero(~symbols.label & (symbols.size > 0))
    inside = build_table(_raw(path, symbols, sized), ends).lookup(symbols.start) >= 0
    return build_table(_raw(path, symbols, np.flatnonzero(~(symbols.label & inside))), ends)


def _raw(path: str, symbols: _Symbols, rows: npt.NDArray[np.intp]) -> RawSymbols:
    dso = np.zeros(len(rows), np.int32)
    return RawSymbols(symbols.start[rows], symbols.size[rows], symbols.binding[rows], symbols.names.take(rows), dso, (path,))
