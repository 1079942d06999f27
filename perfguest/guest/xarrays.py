# SPDX-License-Identifier: Apache-2.0
"""Walks of the kernel's XArrays (include/linux/xarray.h) and of what uses their nodes, the IDRs. Each ends, whatever the guest holds."""

from __future__ import annotations

import struct
from collections.abc import Iterator

from perfguest.guest.kernel import GuestUnreadable
from perfguest.guest.view import View

_ZERO = 1030
_WORD = 8


def load(view: View, xarray: int, index: int) -> int:
    """The entry at ``index`` of the ``struct xarray`` at the address; 0 if there is none."""
    entry = view.get(xarray, "xarray", "xa_head")
    if not _is_node(entry):
        return entry if index == 0 else 0
    bits = _bits(view)
    above = 64 + bits
    while _is_node(entry):
        shift = _shift(view, entry, above)
        if index >> shift >> bits and above > 64:
            return 0
        slots = view.at(entry - 2, "xa_node", "slots")
        entry = view.word(slots + _WORD * (index >> shift & (1 << bits) - 1))
        if _is_sibling(entry):
            entry = view.word(slots + _WORD * ((entry >> 2) & (1 << bits) - 1))
        above = shift
        if shift == 0:
            break
    return 0 if entry == _ZERO or entry & 3 == 2 else entry


def entries(view: View, xarray: int, limit: int) -> Iterator[tuple[int, int, int]]:
    """(index, count, entry) of the pointers among the entries below ``limit``, ascending: ``entry`` stands for ``count`` indexes from ``index`` on."""
    head = view.get(xarray, "xarray", "xa_head")
    if _is_node(head):
        yield from _node(view, head, 0, 64 + _bits(view), limit)
    elif _is_pointer(head) and limit > 0:
        yield 0, 1, head


def _node(view: View, entry: int, base: int, above: int, limit: int) -> Iterator[tuple[int, int, int]]:
    # The shift grows smaller with each level, so that this nests no deeper than a real tree can.
    view.spend()
    bits = _bits(view)
    shift = _shift(view, entry, above)
    slots = struct.unpack(f"<{1 << bits}Q", view.read(view.at(entry - 2, "xa_node", "slots"), _WORD << bits))
    for slot, value in enumerate(slots):
        index = base + (slot << shift)
        if index >= limit:
            return
        if _is_node(value) and shift:
            yield from _node(view, value, index, shift, limit)
        elif _is_pointer(value):
            count = 1
            while slot + count < len(slots) and slots[slot + count] == slot << 2 | 2:
                count += 1
            yield index, min(count << shift, limit - index), value


def _bits(view: View) -> int:
    _, size = view.layout.field("xa_node", "slots")
    if size not in {_WORD << 4, _WORD << 6}:
        raise GuestUnreadable(f"the guest's struct xa_node has slots of {size} bytes")
    return 4 if size == _WORD << 4 else 6


def _shift(view: View, entry: int, above: int) -> int:
    shift = view.get(entry - 2, "xa_node", "shift")
    if shift % _bits(view) or shift >= above:
        raise GuestUnreadable("a node of an XArray of the guest's is none")
    return shift


def _is_node(entry: int) -> bool:
    return entry & 3 == 2 and entry > 4096


def _is_sibling(entry: int) -> bool:
    return entry & 3 == 2 and entry < 256


def _is_pointer(entry: int) -> bool:
    # Odd ones are values: shadows of evicted pages, swap entries, DAX.
    return entry != 0 and entry & 3 == 0
