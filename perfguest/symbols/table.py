# SPDX-License-Identifier: Apache-2.0
"""A table of symbols: from addresses to names, vectorised."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.symbols.names import Names

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]
U8 = npt.NDArray[np.uint8]

#: Bindings, in the order in which a name of an address is preferred to its other names.
GLOBAL, LOCAL, WEAK = 0, 1, 2

_PAGE = 4096
# Position-independent startup code, 32-bit system calls, and system calls as named before Linux 4.17.
_MADE_UP = (b"__pi_", b"__ia32_", b"SyS_", b"compat_SyS_")
# Symbols rarely contain others, and more rarely so more than once.
_MAX_NESTING = 16


@dataclass(frozen=True)
class SymbolTable:
    """Symbols sorted by address, one for each. All columns have the same length.

    ``start``, ``end``: uint64, the end excluded. ``names`` may hold anything. ``dso``: int32 index into ``dsos`` for each.
    """

    start: U64
    end: U64
    names: Names
    dso: I32
    dsos: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.names)

    def lookup(self, addresses: U64) -> I32:
        """For each address the int32 index of the symbol that contains it, the innermost if there are several, or -1."""
        found = np.full(len(addresses), -1, np.int32)
        if not len(self.names):
            return found
        at = np.searchsorted(self.start, addresses, "right") - 1
        # The furthest end so far: beyond it no symbol can contain an address.
        reach = np.maximum.accumulate(self.end)
        open_rows = np.flatnonzero((at >= 0) & (addresses < reach[np.maximum(at, 0)]))
        for _ in range(_MAX_NESTING):
            if not len(open_rows):
                break
            candidate = at[open_rows]
            inside = addresses[open_rows] < self.end[candidate]
            found[open_rows[inside]] = candidate[inside]
            open_rows = open_rows[~inside]
            at[open_rows] -= 1
            open_rows = open_rows[(at[open_rows] >= 0) & (addresses[open_rows] < reach[np.maximum(at[open_rows], 0)])]
        return found


@dataclass(frozen=True)
class RawSymbols:
    """Symbols as a file lists them, in any order. ``size``: uint64, 0 where unknown. ``binding``: uint8, ``GLOBAL``, ``LOCAL`` or ``WEAK``."""

    start: U64
    size: U64
    binding: U8
    names: Sequence[str]
    dso: I32
    dsos: tuple[str, ...]


def build_table(raw: RawSymbols, bounds: U64) -> SymbolTable:
    """Sorts, chooses one name for each address, and gives every symbol an end.

    Among names of one address the choice is perf's (tools/perf/util/symbol.c): one with a size before one without, then global before local before weak,
    then the fewest leading underscores, then the longest; but the names that a kernel's build adds to a function come last.
    A symbol of unknown size ends at the next symbol or the next entry of ``bounds`` (sorted uint64: further addresses where something else begins).
    The last of its dso ends with the page after its own at the latest, so that an address far away has no name.
    """
    names = raw.names if isinstance(raw.names, Names) else Names.of(raw.names)
    order = np.argsort(raw.start, kind="stable")
    start = raw.start[order]
    same = start[1:] == start[:-1]
    # Only of those that share their address one has to be chosen.
    shared = np.flatnonzero(np.append(same, False) | np.insert(same, 0, False)) if len(order) else order
    rows, few = order[shared], names.take(order[shared])
    order[shared] = rows[np.lexsort((-few.sizes, few.leading(ord("_")), raw.binding[rows], raw.size[rows] == 0, few.begin_with(*_MADE_UP), raw.start[rows]))]
    first = np.ones(len(order), bool)
    first[1:] = ~same
    kept = order[first]
    start, dso = raw.start[kept], raw.dso[kept]
    return SymbolTable(start, _ends(start, raw.size[kept], dso, bounds), names.take(kept), dso, raw.dsos)


def _ends(start: U64, size: U64, dso: I32, bounds: U64) -> U64:
    top = np.uint64(np.iinfo(np.uint64).max)
    following = np.append(start[1:], top) if len(start) else start
    if len(bounds):
        at = np.searchsorted(bounds, start, "right")
        following = np.minimum(following, np.where(at < len(bounds), bounds[np.minimum(at, len(bounds) - 1)], top))
    last_of_dso = np.ones(len(start), bool)
    last_of_dso[:-1] = dso[1:] != dso[:-1]
    page_after = _saturating_add(start | np.uint64(_PAGE - 1), np.uint64(_PAGE + 1))
    following = np.where(last_of_dso, np.minimum(following, page_after), following)
    return np.where(size > 0, _saturating_add(start, size), following)


def _saturating_add(value: U64, more: U64 | np.uint64) -> U64:
    total = value + more
    return np.where(total < value, np.uint64(np.iinfo(np.uint64).max), total)
