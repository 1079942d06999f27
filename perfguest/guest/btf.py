# SPDX-License-Identifier: Apache-2.0
"""The kernel's own types, as BTF in its memory describes them, given to drgn.

The format: Documentation/bpf/btf.rst and include/uapi/linux/btf.h in the kernel. A header, a row of types, a block of NUL-terminated strings. A type is three
words (offset of its name; kind, number of parts and a flag; size or another type's number) and what its kind adds. Types are numbered from 1; 0 is void.

BTF has no global variables but per-CPU ones, so whoever uses those must know their types (:data:`VARIABLES`).
What is here comes from a guest: a number is used only after it was held against what there is, and a type that is made of itself is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum

import numpy as np
import numpy.typing as npt
from drgn import FindObjectFlags, Object, Program, Qualifiers, Type, TypeEnumerator, TypeKind, TypeKindSet, TypeMember, TypeParameter

from perfguest.errors import FormatError

#: Debian's kernels have 120,000 types in 5 to 7 MB.
MAX_TYPES, MAX_BTF = 1 << 20, 64 << 20

#: The variables that drgn's helpers and ours ask for.
VARIABLES = {
    "bpf_kallsyms": "struct list_head",
    "cgrp_dfl_root": "struct cgroup_root",
    "init_cgroup_ns": "struct cgroup_namespace",
    "init_css_set": "struct css_set",
    "init_mm": "struct mm_struct",
    "init_nsproxy": "struct nsproxy",
    "init_pid_ns": "struct pid_namespace",
    "init_task": "struct task_struct",
    "init_uts_ns": "struct uts_namespace",
    "module_kset": "struct kset *",
    "modules": "struct list_head",
    "page_offset_base": "unsigned long",
    "phys_base": "unsigned long",
    "vmalloc_base": "unsigned long",
    "vmemmap_base": "unsigned long",
}

# No real type is made of so many others.
_MAX_DEPTH, _MAX_NESTED = 100, 30
# Parts of structs and enumerations are at most 65,535 by the format; those of all types, made as they are asked for:
_MAX_MADE = 1 << 20


class BtfError(FormatError, ValueError):
    """Types that make no sense: a ValueError too, as drgn has it for types that do not fit together."""


class _Kind(IntEnum):
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


# What follows the three words: bytes once, and bytes for each part.
_TAIL = [(0, 0)] * 20
for _kind, _sizes in {
    _Kind.INT: (4, 0),
    _Kind.ARRAY: (12, 0),
    _Kind.STRUCT: (0, 12),
    _Kind.UNION: (0, 12),
    _Kind.ENUM: (0, 8),
    _Kind.FUNC_PROTO: (0, 8),
    _Kind.VAR: (4, 0),
    _Kind.DATASEC: (0, 12),
    _Kind.DECL_TAG: (4, 0),
    _Kind.ENUM64: (0, 12),
}.items():
    _TAIL[_kind] = _sizes

_NAMED = {
    TypeKind.STRUCT: (_Kind.STRUCT,),
    TypeKind.UNION: (_Kind.UNION,),
    TypeKind.ENUM: (_Kind.ENUM, _Kind.ENUM64),
    TypeKind.TYPEDEF: (_Kind.TYPEDEF,),
    TypeKind.INT: (_Kind.INT,),
    TypeKind.BOOL: (_Kind.INT,),
    TypeKind.FLOAT: (_Kind.FLOAT,),
}
_QUALIFIERS = {_Kind.VOLATILE: Qualifiers.VOLATILE, _Kind.CONST: Qualifiers.CONST, _Kind.RESTRICT: Qualifiers.RESTRICT}

_HEAD = struct.Struct("<III")
_ENUMERATORS = {(_Kind.ENUM, True): struct.Struct("<Ii"), (_Kind.ENUM, False): struct.Struct("<II")}
_ENUMERATORS |= {(_Kind.ENUM64, True): struct.Struct("<Iq"), (_Kind.ENUM64, False): struct.Struct("<IQ")}


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
        self.strings = b"\0" + data[header + strings : header + strings + strings_size] + b"\0"
        self.places = _walk(self.types) if places is None else _check_places(self.types, places)
        words = np.frombuffer(self.types, "<u4")
        self._names, infos = words[self.places[1:] // 4], words[self.places[1:] // 4 + 1]
        self._kinds = infos >> np.uint32(24) & np.uint32(31)

    def __len__(self) -> int:
        return len(self.places)

    def string(self, offset: int) -> str:
        """The name at ``offset``."""
        if offset + 1 >= len(self.strings):
            raise BtfError(f"BTF: no string at {offset:#x}")
        return self.strings[offset + 1 : self.strings.index(b"\0", offset + 1)].decode(errors="backslashreplace")

    def named(self, name: str, kind: int) -> int | None:
        """The number of the first type with this name and kind."""
        for offset in self._offsets(name):
            found = np.flatnonzero((self._names == offset) & (self._kinds == kind)).tolist() if offset else []
            if found:
                return int(found[0]) + 1
        return None

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
            size = _TAIL[kind][1]
            if kind in {_Kind.ENUM, _Kind.ENUM64} and word * 4 >= tail and not (word * 4 - tail) % size:
                return number, (word * 4 - tail) // size
        return None


def _walk(types: bytes) -> npt.NDArray[np.int64]:
    """Where each type begins. Type 0, void, has no place: it gets -1."""
    places, at, end, word = [-1], 0, len(types), struct.Struct("<I")
    while at + 12 <= end and len(places) <= MAX_TYPES:
        (info,) = word.unpack_from(types, at + 4)
        kind = info >> 24 & 31
        if not 0 < kind < len(_TAIL):
            raise BtfError(f"BTF: type {len(places)} is of a kind that is not known: {kind}")
        places.append(at)
        once, each = _TAIL[kind]
        at += 12 + once + each * (info & 0xFFFF)
    if at != end:
        raise BtfError("BTF: its types do not end where they should")
    return np.array(places, np.int64)


def _check_places(types: bytes, places: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """What :func:`_walk` gives, if ``places`` are just that: each type ends where the next begins."""
    words, at = np.frombuffer(types, "<u4"), places.astype(np.int64)
    if len(at) > MAX_TYPES or (at % 4).any() or (at > len(types) - 12).any() or len(types) % 4:
        raise BtfError("BTF: its types are not where they were said to be")
    infos = words[at // 4 + 1].astype(np.int64)
    kinds, parts = infos >> 24 & 31, infos & 0xFFFF
    tails = np.array(_TAIL, np.int64)
    known = (kinds > 0) & (kinds < len(tails))
    tail = tails[np.where(known, kinds, 0)]
    ends = at + 12 + tail[:, 0] + tail[:, 1] * parts
    if not known.all() or not np.array_equal(np.append(at, len(types)), np.append(0, ends)):
        raise BtfError("BTF: its types are not where they were said to be")
    return np.append(-1, at)


class BtfFinder:
    """drgn's type and object finder over a :class:`BtfTable`. ``address_of`` gives the addresses of symbols."""

    def __init__(self, prog: Program, table: BtfTable, address_of: Callable[[str], int | None]) -> None:
        self._prog, self._table, self._address_of = prog, table, address_of
        self._made: dict[int, Type] = {}
        self._nested: set[int] = set()
        self._parts = 0

    def register(self) -> None:
        """Lets the program find types, per-CPU variables, enumerators and the :data:`VARIABLES`."""
        self._prog.register_type_finder("btf", self.find_type, enable_index=0)
        self._prog.register_object_finder("btf", self.find_object, enable_index=0)

    def find_type(self, prog: Program, kinds: TypeKindSet, name: str, filename: str | None) -> Type | None:
        """As drgn's ``register_type_finder`` wants it."""
        for wanted in kinds:
            for kind in _NAMED.get(wanted, ()):
                number = self._table.named(name, kind)
                if number is not None and (found := self._type(number)).kind == wanted:
                    return found
        return None

    def find_object(self, prog: Program, name: str, flags: FindObjectFlags, filename: str | None) -> Object | None:
        """As drgn's ``register_object_finder`` wants it."""
        if flags & FindObjectFlags.VARIABLE:
            address = self._address_of(name)
            if address is not None and (type_ := self._variable(name)) is not None:
                return Object(prog, type_, address=address)
        if flags & FindObjectFlags.CONSTANT and (found := self._table.enumerator(name)) is not None:
            enumeration = self._type(found[0])
            items = enumeration.enumerators or ()
            if found[1] < len(items):
                return Object(prog, enumeration, value=items[found[1]].value)
        return None

    def _variable(self, name: str) -> Type | None:
        if name in VARIABLES:
            return self._prog.type(VARIABLES[name])
        if name == "__per_cpu_offset":
            return self._prog.array_type(self._prog.type("unsigned long"), 8192)
        number = self._table.named(name, _Kind.VAR)
        return None if number is None else self._type(self._table.head(number)[4])

    def _type(self, number: int, depth: int = 0) -> Type:
        if number == 0:
            return self._prog.void_type()
        if number not in self._made:
            if depth > _MAX_DEPTH or len(self._made) > MAX_TYPES:
                raise BtfError(f"BTF: type {number} is made of too many others")
            try:
                self._made[number] = self._make(number, depth + 1)
            except (struct.error, ValueError, OverflowError, TypeError) as error:
                raise BtfError(f"BTF: type {number}: {error}") from error
        return self._made[number]

    def _make(self, number: int, depth: int) -> Type:
        prog = self._prog
        name_at, kind, count, flag, size, tail = self._table.head(number)
        name = self._table.string(name_at) if name_at else ""
        if kind == _Kind.INT:
            return self._integer(name, size, tail)
        if kind == _Kind.PTR:
            return prog.pointer_type(self._type(size, depth))
        if kind == _Kind.ARRAY:
            element, _, length = struct.unpack_from("<III", self._table.types, tail)
            return prog.array_type(self._type(element, depth), length) if length else prog.array_type(self._type(element, depth))
        if kind in {_Kind.STRUCT, _Kind.UNION}:
            return (prog.struct_type if kind == _Kind.STRUCT else prog.union_type)(name or None, size, self._members(tail, count, flag))
        if kind in {_Kind.ENUM, _Kind.ENUM64}:
            return self._enumeration(number, name or None)
        if kind == _Kind.FWD:
            return (prog.union_type if flag else prog.struct_type)(name)
        if kind == _Kind.TYPEDEF:
            return prog.typedef_type(name, self._type(size, depth))
        if kind in _QUALIFIERS:
            base = self._type(size, depth)
            return base.qualified(base.qualifiers | _QUALIFIERS[_Kind(kind)])
        if kind in {_Kind.FUNC, _Kind.TYPE_TAG}:
            return self._type(size, depth)
        if kind == _Kind.FUNC_PROTO:
            return self._function(tail, count, size, depth)
        if kind == _Kind.FLOAT:
            return prog.float_type(name, size)
        raise BtfError(f"BTF: type {number} of kind {kind} is not a type of values")

    def _integer(self, name: str, size: int, tail: int) -> Type:
        (encoding,) = struct.unpack_from("<I", self._table.types, tail)
        if encoding >> 24 & 4:
            return self._prog.bool_type(name, size)
        return self._prog.int_type(name, size, bool(encoding >> 24 & 1))

    def _count(self, parts: int) -> None:
        self._parts += parts
        if self._parts > _MAX_MADE:
            raise BtfError("BTF: types of endless length")

    def _members(self, tail: int, count: int, bit_fields: bool) -> tuple[TypeMember, ...]:
        self._count(count)
        members = []
        for name, number, place in _HEAD.iter_unpack(self._table.types[tail : tail + 12 * count]):
            if not name:
                self._check_nesting(number)
            bits, offset = (place >> 24, place & 0xFFFFFF) if bit_fields else (0, place)
            members.append(TypeMember(self._lazy(number, bits), self._table.string(name) if name else None, offset))
        return tuple(members)

    def _check_nesting(self, number: int, depth: int = 0) -> None:
        # drgn follows members without a name to find those in them: they must come to an end.
        if number in self._nested or number == 0:
            return
        if depth > _MAX_NESTED:
            raise BtfError(f"BTF: type {number} is within itself")
        _, kind, count, _, other, tail = self._table.head(number)
        if kind in _QUALIFIERS or kind in {_Kind.TYPEDEF, _Kind.TYPE_TAG}:
            self._check_nesting(other, depth + 1)
        elif kind in {_Kind.STRUCT, _Kind.UNION}:
            for name, member, _ in _HEAD.iter_unpack(self._table.types[tail : tail + 12 * count]):
                if not name:
                    self._check_nesting(member, depth + 1)
        self._nested.add(number)

    def _lazy(self, number: int, bits: int = 0) -> Callable[[], Type | Object]:
        return (lambda: Object(self._prog, self._type(number), bit_field_size=bits)) if bits else (lambda: self._type(number))

    def _enumeration(self, number: int, name: str | None) -> Type:
        _, kind, count, signed, size, tail = self._table.head(number)
        self._count(count)
        form = _ENUMERATORS[_Kind(kind), signed]
        data = self._table.types[tail : tail + form.size * count]
        items = tuple(TypeEnumerator(self._table.string(item), value) for item, value in form.iter_unpack(data))
        return self._prog.enum_type(name, self._prog.int_type("int" if signed else "unsigned int", size, signed), items)

    def _function(self, tail: int, count: int, result: int, depth: int) -> Type:
        self._count(count)
        pairs = list(struct.iter_unpack("<II", self._table.types[tail : tail + 8 * count]))
        variadic = bool(pairs) and pairs[-1] == (0, 0)
        parameters = [TypeParameter(self._lazy(number), self._table.string(name) if name else None) for name, number in pairs[: len(pairs) - variadic]]
        return self._prog.function_type(self._type(result, depth), parameters, variadic)
