# SPDX-License-Identifier: Apache-2.0
"""The build id in an ELF image of which only pieces are at hand (System V ABI, chapter 5: program header, note section)."""

from __future__ import annotations

import struct
from collections.abc import Callable

_PT_NOTE = 4
_NT_GNU_BUILD_ID = 3
_MAX_HEADERS = 64
_MAX_NOTES = 1 << 16
_MAX_ID = 64


def build_id(read: Callable[[int, int], bytes | None]) -> bytes:
    """The GNU build id of the ELF file of which ``read(offset, size)`` gives bytes, or None where it has none. Empty if there is none, or no ELF file."""
    ident = read(0, 64) or b""
    if len(ident) < 64 or ident[:4] != b"\x7fELF" or ident[4] not in {1, 2} or ident[5] != 1:
        return b""
    wide = ident[4] == 2
    (table,) = struct.unpack_from("<Q" if wide else "<I", ident, 32 if wide else 28)
    size, count = struct.unpack_from("<HH", ident, 54 if wide else 42)
    if size != (56 if wide else 32) or table > 1 << 62:
        return b""
    headers = read(table, size * min(count, _MAX_HEADERS)) or b""
    for at in range(0, len(headers) - size + 1, size):
        kind, offset, length = _segment(headers, at, wide)
        if kind == _PT_NOTE and offset <= 1 << 62 and (found := _in_notes(read(offset, min(length, _MAX_NOTES)) or b"")):
            return found
    return b""


def _segment(headers: bytes, at: int, wide: bool) -> tuple[int, int, int]:
    if wide:
        kind, _, offset, _, _, length = struct.unpack_from("<IIQQQQ", headers, at)
    else:
        kind, offset, _, _, length = struct.unpack_from("<IIIII", headers, at)
    return kind, offset, length


def _in_notes(notes: bytes) -> bytes:
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        content = at + 12 + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[at + 12 : at + 12 + name_size] == b"GNU\0" and 0 < size <= _MAX_ID and content + size <= len(notes):
            return notes[content : content + size]
        at = content + (size + 3 & ~3)
    return b""
