# SPDX-License-Identifier: Apache-2.0
"""The kernel's own types, as BTF in its memory describes them, given to drgn.

BTF has no global variables but per-CPU ones, so whoever uses those must know their types (:data:`VARIABLES`).
What is here comes from a guest: a number is used only after it was held against what there is, and a type that is made of itself is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

from drgn import FindObjectFlags, Object, Program, Qualifiers, Type, TypeEnumerator, TypeKind, TypeKindSet, TypeMember, TypeParameter

from perfguest.formats.btf import MAX_TYPES, BtfError, BtfTable, Kind

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

_NAMED = {
    TypeKind.STRUCT: (Kind.STRUCT,),
    TypeKind.UNION: (Kind.UNION,),
    TypeKind.ENUM: (Kind.ENUM, Kind.ENUM64),
    TypeKind.TYPEDEF: (Kind.TYPEDEF,),
    TypeKind.INT: (Kind.INT,),
    TypeKind.BOOL: (Kind.INT,),
    TypeKind.FLOAT: (Kind.FLOAT,),
}
_QUALIFIERS = {Kind.VOLATILE: Qualifiers.VOLATILE, Kind.CONST: Qualifiers.CONST, Kind.RESTRICT: Qualifiers.RESTRICT}

_HEAD = struct.Struct("<III")
_ENUMERATORS = {(Kind.ENUM, True): struct.Struct("<Ii"), (Kind.ENUM, False): struct.Struct("<II")}
_ENUMERATORS |= {(Kind.ENUM64, True): struct.Struct("<Iq"), (Kind.ENUM64, False): struct.Struct("<IQ")}


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
        number = self._table.named(name, Kind.VAR)
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
        if kind == Kind.INT:
            return self._integer(name, size, tail)
        if kind == Kind.PTR:
            return prog.pointer_type(self._type(size, depth))
        if kind == Kind.ARRAY:
            element, _, length = struct.unpack_from("<III", self._table.types, tail)
            return prog.array_type(self._type(element, depth), length) if length else prog.array_type(self._type(element, depth))
        if kind in {Kind.STRUCT, Kind.UNION}:
            return (prog.struct_type if kind == Kind.STRUCT else prog.union_type)(name or None, size, self._members(tail, count, flag))
        if kind in {Kind.ENUM, Kind.ENUM64}:
            return self._enumeration(number, name or None)
        if kind == Kind.FWD:
            return (prog.union_type if flag else prog.struct_type)(name)
        if kind == Kind.TYPEDEF:
            return prog.typedef_type(name, self._type(size, depth))
        if kind in _QUALIFIERS:
            base = self._type(size, depth)
            return base.qualified(base.qualifiers | _QUALIFIERS[Kind(kind)])
        if kind in {Kind.FUNC, Kind.TYPE_TAG}:
            return self._type(size, depth)
        if kind == Kind.FUNC_PROTO:
            return self._function(tail, count, size, depth)
        if kind == Kind.FLOAT:
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
        if kind in _QUALIFIERS or kind in {Kind.TYPEDEF, Kind.TYPE_TAG}:
            self._check_nesting(other, depth + 1)
        elif kind in {Kind.STRUCT, Kind.UNION}:
            for name, member, _ in _HEAD.iter_unpack(self._table.types[tail : tail + 12 * count]):
                if not name:
                    self._check_nesting(member, depth + 1)
        self._nested.add(number)

    def _lazy(self, number: int, bits: int = 0) -> Callable[[], Type | Object]:
        return (lambda: Object(self._prog, self._type(number), bit_field_size=bits)) if bits else (lambda: self._type(number))

    def _enumeration(self, number: int, name: str | None) -> Type:
        _, kind, count, signed, size, tail = self._table.head(number)
        self._count(count)
        form = _ENUMERATORS[Kind(kind), signed]
        data = self._table.types[tail : tail + form.size * count]
        items = tuple(TypeEnumerator(self._table.string(item), value) for item, value in form.iter_unpack(data))
        return self._prog.enum_type(name, self._prog.int_type("int" if signed else "unsigned int", size, signed), items)

    def _function(self, tail: int, count: int, result: int, depth: int) -> Type:
        self._count(count)
        pairs = list(struct.iter_unpack("<II", self._table.types[tail : tail + 8 * count]))
        variadic = bool(pairs) and pairs[-1] == (0, 0)
        parameters = [TypeParameter(self._lazy(number), self._table.string(name) if name else None) for name, number in pairs[: len(pairs) - variadic]]
        return self._prog.function_type(self._type(result, depth), parameters, variadic)
