# SPDX-License-Identifier: Apache-2.0
"""The kernel's own types as BTF: Documentation/bpf/btf.rst and include/uapi/linux/btf.h in the kernel.

A header, a row of types, a block of NUL-terminated strings. A type is three words (offset of its name; kind, number of parts and a flag; size or another
type's number) and what its kind adds. Types are numbered from 1; 0 is void.
"""

from __future__ import annotations

import struct
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.name_index import NameIndex

#: Debian's kernels have 120,000 types in 5 to 7 MB.
MAX_TYPES, MAX_BTF = 1 << 20, 64 << 20


class BtfError(FormatError, ValueError):
    """Types that make no sense: a ValueError too, as drgn has it for types that do not fit together."""


class Kind(IntEnum):
    """BTF_KIND_* (include/uapi/linux/btf.h)."""

    INT = 1
    PTR = 2
    ARRAY = 3
    STRUCT = 4
    UNION = 5
    ENUM = 6
    FWD = 7
    TYPEDEF = 8
    VOLATILE = 9
    CONST = 10
    RESTRICT = 11
    FUNC = 12
    FUNC_PROTO = 13
    VAR = 14
    DATASEC = 15
    FLOAT = 16
    DECL_TAG = 17
    TYPE_TAG = 18
    ENUM64 = 19


#: What follows the three words of a type of each kind: bytes once, and bytes for each part.
TAIL = [(0, 0)] * 20
for _kind, _sizes in {
    Kind.INT: (4, 0),
    Kind.ARRAY: (12, 0),
    Kind.STRUCT: (0, 12),
    Kind.UNION: (0, 12),
    Kind.ENUM: (0, 8),
    Kind.FUNC_PROTO: (0, 8),
    Kind.VAR: (4, 0),
    Kind.DATASEC: (0, 12),
    Kind.DECL_TAG: (4, 0),
    Kind.ENUM64: (0, 12),
}.items():
    TAIL[_kind] = _sizes

_HEAD = struct.Struct("<III")


class BtfTable:
    """The types of a ``.BTF`` section, indexed: this part knows no program, so that guests with the same kernel share it.

    Raises :class:`BtfError` if the section is not well-formed. ``words``: the types' words (uint32). ``places``: each type's first word, from type 1 on.
    """

    def __init__(self, data: bytes, places: npt.NDArray[np.uint32] | None = None) -> None:
        """``places``: each type's first byte, from type 1 on, where they are known; they are held against the section."""
        if not 24 <= len(data) <= MAX_BTF:
            raise BtfError(f"BTF of {len(data)} bytes")
        magic, version, _, header, types, types_size, strings, strings_size = struct.unpack_from("<HBBIIIII", data)
        if (magic, version) != (0xEB9F, 1):
            raise BtfError("no BTF where the kernel says it is")
        if header < 24 or types_size % 4 or header + types + types_size > len(data) or header + strings + strings_size > len(data):
            raise BtfError("BTF: its parts are not within it")
        self.types = data[header + types : header + types + types_size]
        self._indexes: dict[int, tuple[npt.NDArray[np.int64], NameIndex]] = {}
        self.strings = b"\0" + data[header + strings : header + strings + strings_size] + b"\0"
        self.places = _walk(self.types) if places is None else _check_places(self.types, places)

    def __len__(self) -> int:
        return len(self.places)

    def string(self, offset: int) -> str:
        """The name at ``offset``."""
        if offset + 1 >= len(self.strings):
            raise BtfError(f"BTF: no string at {offset:#x}")
        return self.strings[offset + 1 : self.strings.index(b"\0", offset + 1)].decode(errors="backslashreplace")

    def named(self, name: str, kind: int) -> int | None:
        """The number of the first type with this name and kind."""
        numbers, names = self._named_of(kind)
        place = next(names.places(name.encode(errors="replace")), None) if name else None
        return None if place is None else int(numbers[place])

    def _named_of(self, kind: int) -> tuple[npt.NDArray[np.int64], NameIndex]:
        """The types of a kind: their numbers and names."""
        if kind not in self._indexes:
            words, at = np.frombuffer(self.types, "<u4"), self.places[1:] // 4
            numbers = np.flatnonzero(words[at + 1] >> np.uint32(24) & np.uint32(31) == kind)
            offsets = words[at[numbers]].astype(np.int64)
            inside = offsets + 1 < len(self.strings)
            self._indexes[kind] = numbers[inside] + 1, NameIndex(self.strings, offsets[inside] + 1)
        return self._indexes[kind]

    def _offsets(self, name: str) -> list[int]:
        # Strings are kept once each, so there is one.
        at = -1
        found: list[int] = []
        needle = b"\0" + name.encode(errors="replace") + b"\0"
        while len(found) < 8 and (at := self.strings.find(needle, at + 1)) >= 0:
            found.append(at)
        return found

    def head(self, number: int) -> tuple[int, int, int, bool, int, int]:
        """Of a type: offset of its name, kind, number of parts, flag, size or other type, and where its tail begins in ``types``."""
        if not 0 < number < len(self.places):
            raise BtfError(f"BTF: no type {number}")
        at = int(self.places[number])
        name, info, size = _HEAD.unpack_from(self.types, at)
        return name, info >> 24 & 31, info & 0xFFFF, bool(info >> 31), size, at + 12

    def enumerator(self, name: str) -> tuple[int, int] | None:
        """(number of the enumeration, place in it) of the enumerator with this name."""
        offsets = set(self._offsets(name))
        words = np.frombuffer(self.types, "<u4")
        for word in np.flatnonzero(np.isin(words, list(offsets))).tolist() if offsets else ():
            number = int(np.searchsorted(self.places, word * 4, "right")) - 1
            _, kind, _, _, _, tail = self.head(number)
            size = TAIL[kind][1]
            if kind in {Kind.ENUM, Kind.ENUM64} and word * 4 >= tail and not (word * 4 - tail) % size:
                return number, (word * 4 - tail) // size
        return None


def _walk(types: bytes) -> npt.NDArray[np.int64]:
    """Where each type begins. Type 0, void, has no place: it gets -1."""
    places, at, end, word = [-1], 0, len(types), struct.Struct("<I")
    while at + 12 <= end and len(places) <= MAX_TYPES:
        (info,) = word.unpack_from(types, at + 4)
        kind = info >> 24 & 31
        if not 0 < kind < len(TAIL):
            raise BtfError(f"BTF: type {len(places)} is of a kind that is not known: {kind}")
        places.append(at)
        once, each = TAIL[kind]
        at += 12 + once + each * (info & 0xFFFF)
    if at != end:
        raise BtfError("BTF: its types do not end where they should")
    return np.array(places, np.int64)


def _check_places(types: bytes, places: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """What :func:`_walk` gives, if ``places`` are just that: each type ends where the next begins."""
    wrong = BtfError("BTF: its types are not where they were said to be")
    # Neither places nor ends come near 32 bits: BTF has MAX_BTF bytes at most, and a type 65,535 parts.
    words, at = np.frombuffer(types, "<u4"), places
    if not len(at) and not types:
        return np.array([-1], np.int64)
    if len(types) % 4 or not 0 < len(at) <= MAX_TYPES or int(at.max()) > len(types) - 12 or (at & np.uint32(3)).any():
        raise wrong
    infos = words[(at >> np.uint32(2)) + np.uint32(1)]
    kinds = infos >> np.uint32(24) & np.uint32(31)
    if int(kinds.min()) == 0 or int(kinds.max()) >= len(TAIL):
        raise wrong
    once, each = np.array(TAIL, np.uint32).T
    ends = at + np.uint32(12) + once[kinds] + each[kinds] * (infos & np.uint32(0xFFFF))
    if at[0] or int(ends[-1]) != len(types) or not np.array_equal(at[1:], ends[:-1]):
        raise wrong
    return np.concatenate([[-1], at.astype(np.int64)])
