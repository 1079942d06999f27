# SPDX-License-Identifier: Apache-2.0
"""Headers, sections and segments of an ELF file (System V ABI, chapter 4), of 32 or 64 bits.

A profile looks into a hundred files for some names of each, and pyelftools takes longer to find the sections than everything else does.
"""

from __future__ import annotations

import io
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import BinaryIO, NamedTuple

from perfguest.errors import FormatError
from perfguest.formats.elf_sections import note_build_id
from perfguest.symbols.sparse_elf import Bool, SparseFile

SHT_NULL, SHT_PROGBITS, SHT_SYMTAB, SHT_RELA, SHT_NOTE, SHT_NOBITS, SHT_DYNSYM = 0, 1, 2, 4, 7, 8, 11
SHF_EXECINSTR = 4
PT_LOAD, PT_DYNAMIC, PT_NOTE = 1, 2, 4
PF_X = 1
EM_X86_64 = 62

_MAX_SECTION_BYTES = 1 << 30
_MAX_NOTES = 1 << 20
_MAX_HEADERS = 1 << 20
_EXTENDED = 0xFFFF
_DAMAGED = "Its functions cannot be named."

# By class: e_machine, e_phoff, e_shoff and the five numbers at the end of the file's header; then a section's header, and a segment's.
_HEADERS = {32: struct.Struct("<18xH8xII6xHHHHH"), 64: struct.Struct("<18xH12xQQ6xHHHHH")}
_SECTIONS = {32: struct.Struct("<10I"), 64: struct.Struct("<IIQQQQIIQQ")}
_SEGMENTS = {32: struct.Struct("<IIIIIIII"), 64: struct.Struct("<IIQQQQQQ")}


class Section(NamedTuple):
    """A section's header. ``stream``: the file that it is in."""

    stream: BinaryIO | SparseFile
    name: str
    type: int
    flags: int
    address: int
    offset: int
    size: int
    link: int
    entry_bytes: int

    def content(self) -> bytes:
        """What the file holds of the section; nothing for one whose contents are elsewhere, as in files of debug information, or cut off."""
        if self.type == SHT_NOBITS or self.size > _MAX_SECTION_BYTES:
            return b""
        data = read_at(self.stream, self.offset, self.size)
        return data if len(data) == self.size else b""

    def present(self, size: int) -> Bool | None:
        """Of a file with pages missing: for each of the section's first ``size`` bytes whether it is there. None if all are, as in files on a disk."""
        if not isinstance(self.stream, SparseFile) or self.type == SHT_NOBITS:
            return None
        there = self.stream.present(self.offset, size)
        return None if there.all() else there


class Segment(NamedTuple):
    """A program header: ``size`` bytes at ``offset`` of the file stand at address ``vaddr``."""

    type: int
    flags: int
    offset: int
    vaddr: int
    size: int


@dataclass(frozen=True)
class ElfParts:
    """``bits``: 32 or 64. ``headers_at``, ``headers_bytes``: where the sections' headers are."""

    stream: BinaryIO | SparseFile
    bits: int
    machine: int
    sections: tuple[Section, ...]
    segments: tuple[Segment, ...]
    headers_at: int
    headers_bytes: int

    def segments_of(self, kind: int) -> list[Segment]:
        return [segment for segment in self.segments if segment.type == kind]

    def section(self, number: int) -> Section | None:
        return self.sections[number] if number < len(self.sections) else None

    @cached_property
    def build_id(self) -> str:
        """Hex; empty if there is none."""
        notes = [(section.offset, section.size) for section in self.sections if section.type == SHT_NOTE]
        notes += [(segment.offset, segment.size) for segment in self.segments_of(PT_NOTE)]
        found = (note_build_id(read_at(self.stream, offset, min(size, _MAX_NOTES))) for offset, size in notes)
        return next((build_id for build_id in found if build_id), "")


def read_at(stream: BinaryIO | SparseFile, offset: int, size: int) -> bytes:
    stream.seek(offset)
    return stream.read(size)


def read_parts(name: str, stream: BinaryIO | SparseFile) -> ElfParts:
    """Raises :class:`FormatError` for what is no little-endian ELF file, or has its tables outside of it. ``name`` stands in messages."""
    head = read_at(stream, 0, 64)
    if head[:4] != b"\x7fELF":
        raise FormatError(f"{name} is no ELF file")
    if head[5:6] != b"\1":
        raise FormatError(f"{name} is a big-endian ELF file")
    bits = 64 if head[4] == 2 else 32
    if len(head) < _HEADERS[bits].size:
        raise FormatError(f"{name} is a damaged ELF file: it ends within its header", _DAMAGED)
    machine, segments_at, sections_at, segment_bytes, segments, section_bytes, sections, names = _HEADERS[bits].unpack_from(head)
    size = stream.seek(0, io.SEEK_END)
    headers = _SECTIONS[bits]
    if sections_at and (not sections or names == _EXTENDED) and sections_at + headers.size <= size:
        # More than fit into the file's header: then the first section's has their number.
        first = headers.unpack(read_at(stream, sections_at, headers.size))
        sections, names = sections or first[5], first[6] if names == _EXTENDED else names
    tables = ((sections_at, section_bytes, sections, headers.size), (segments_at, segment_bytes, segments, _SEGMENTS[bits].size))
    if any(count and (entry < least or count > _MAX_HEADERS or offset + entry * count > size) for offset, entry, count, least in tables):
        raise FormatError(f"{name} is a damaged ELF file: its tables lie outside it", _DAMAGED)
    rows = _rows(stream, headers, sections_at, section_bytes, sections)
    strings = _names(stream, rows[names]) if names < len(rows) else b""
    found = tuple(Section(stream, _string(strings, row[0]), row[1], row[2], row[3], row[4], row[5], row[6], row[9]) for row in rows)
    return ElfParts(stream, bits, machine, found, tuple(_segments(stream, bits, segments_at, segment_bytes, segments)), sections_at, section_bytes * sections)


def _rows(stream: BinaryIO | SparseFile, layout: struct.Struct, at: int, entry: int, count: int) -> list[tuple[int, ...]]:
    data = read_at(stream, at, entry * count) if count else b""
    return [layout.unpack_from(data, place) for place in range(0, entry * count, entry)] if count else []


def _names(stream: BinaryIO | SparseFile, row: tuple[int, ...]) -> bytes:
    return b"" if row[1] == SHT_NOBITS or row[5] > _MAX_SECTION_BYTES else read_at(stream, row[4], row[5])


def _string(strings: bytes, at: int) -> str:
    end = strings.find(b"\0", at)
    return strings[at:end].decode("utf-8", "replace") if end >= 0 else ""


def _segments(stream: BinaryIO | SparseFile, bits: int, at: int, entry: int, count: int) -> list[Segment]:
    rows = _rows(stream, _SEGMENTS[bits], at, entry, count)
    if bits == 64:
        return [Segment(row[0], row[1], row[2], row[3], row[5]) for row in rows]
    return [Segment(row[0], row[6], row[1], row[2], row[4]) for row in rows]
