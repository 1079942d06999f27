# SPDX-License-Identifier: Apache-2.0
"""Where a guest's kernel keeps what: offsets and sizes of its structures' members, by its own types."""

from __future__ import annotations

import drgn

from perfguest.guest.kernel import GuestUnreadable, LiveKernel

_MAX_SIZE = 1 << 20


class Layout:
    """The structures of one kernel. Each question is asked of drgn once."""

    def __init__(self, kernel: LiveKernel) -> None:
        if kernel.prog is None:
            raise GuestUnreadable(kernel.reason or "the guest's kernel has no types")
        self._prog = kernel.prog
        self._fields: dict[tuple[str, ...], tuple[int, int] | None] = {}
        self._sizes: dict[str, int] = {}
        self._constants: dict[tuple[str, str], int] = {}

    @staticmethod
    def of(kernel: LiveKernel) -> Layout:
        """The kernel's layout, kept with its drgn program. Raises GuestUnreadable where there is none."""
        if kernel.prog is None:
            return Layout(kernel)
        layout = kernel.prog.cache.get("perfguest.layout")
        if not isinstance(layout, Layout):
            layout = kernel.prog.cache["perfguest.layout"] = Layout(kernel)
        return layout

    def find(self, structure: str, *members: str) -> tuple[int, int] | None:
        """Offset and size in bytes of the first of the ``members`` (dotted where they lie in another) that ``struct structure`` has, or None."""
        key = (structure, *members)
        if key not in self._fields:
            found = (self._look_up(structure, member) for member in members)
            self._fields[key] = next((field for field in found if field), None)
        return self._fields[key]

    def field(self, structure: str, *members: str) -> tuple[int, int]:
        """As :meth:`find`, but raises GuestUnreadable if there is none."""
        if found := self.find(structure, *members):
            return found
        raise GuestUnreadable(f"the guest's kernel has no {members[0]} in struct {structure}")

    def offset(self, structure: str, *members: str) -> int:
        """Offset in bytes; raises GuestUnreadable if there is none."""
        return self.field(structure, *members)[0]

    def size(self, structure: str) -> int:
        """Of ``struct structure`` in bytes; raises GuestUnreadable if there is none."""
        if structure not in self._sizes:
            try:
                size = drgn.sizeof(self._prog.type(f"struct {structure}"))
            except (LookupError, TypeError, ValueError) as error:
                raise GuestUnreadable(f"the guest's kernel has no struct {structure}") from error
            if not 0 < size <= _MAX_SIZE:
                raise GuestUnreadable(f"the guest's kernel has a struct {structure} of {size} bytes")
            self._sizes[structure] = size
        return self._sizes[structure]

    def constant(self, enumeration: str, name: str) -> int:
        """The value of ``name`` in ``enum enumeration``; raises GuestUnreadable if there is none."""
        key = (enumeration, name)
        if key not in self._constants:
            try:
                items = self._prog.type(f"enum {enumeration}").enumerators or ()
            except (LookupError, TypeError, ValueError) as error:
                raise GuestUnreadable(f"the guest's kernel has no enum {enumeration}") from error
            value = next((item.value for item in items if item.name == name), None)
            if value is None:
                raise GuestUnreadable(f"the guest's kernel has no {name} in enum {enumeration}")
            self._constants[key] = value
        return self._constants[key]

    def _look_up(self, structure: str, member: str) -> tuple[int, int] | None:
        try:
            kind = self._prog.type(f"struct {structure}")
            offset = 0
            for part in member.split("."):
                while kind.kind == drgn.TypeKind.TYPEDEF:
                    kind = kind.type
                found = kind.member(part)
                offset += found.bit_offset
                kind = found.type
            # A flexible array has no size.
            size = 0 if kind.kind == drgn.TypeKind.ARRAY and kind.length is None else drgn.sizeof(kind)
        except (LookupError, TypeError, ValueError, AttributeError):
            return None
        if offset % 8 or not 0 <= size <= _MAX_SIZE or offset // 8 + size > _MAX_SIZE:
            return None
        return offset // 8, size
