# SPDX-License-Identifier: Apache-2.0
"""What addresses are: names, files, mappings, as columns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.symbols.table import I32, U64, SymbolTable


@dataclass(frozen=True)
class Dso:
    """``name`` as perf prints it. ``build_id`` is hex: that recorded, else that of the file used, else empty."""

    name: str
    build_id: str


@dataclass(frozen=True)
class Resolved:
    """What addresses are. All columns have the length of the query.

    ``name``: int32 index into ``names``, or -1. ``offset``: uint64 distance from the symbol's start, 0 without a name.
    ``dso``: int32 index into ``dsos``, or -1.
    ``start``, ``limit``, ``pgoff``: uint64, the mapping as perf recorded it (``limit`` excluded), all 0 if it did not.
    """

    names: list[str]
    dsos: list[Dso]
    name: I32
    offset: U64
    dso: I32
    start: U64
    limit: U64
    pgoff: U64

    def __len__(self) -> int:
        return len(self.name)


class Columns:
    """:class:`Resolved` while it is filled: ``count`` addresses, at first without name and dso. ``at`` are positions among them."""

    def __init__(self, count: int) -> None:
        self._names: dict[str, int] = {}
        self._dsos: dict[Dso, int] = {}
        self._name: I32 = np.full(count, -1, np.int32)
        self._dso: I32 = np.full(count, -1, np.int32)
        self._offset, self._start, self._limit, self._pgoff = (np.zeros(count, np.uint64) for _ in range(4))

    def set_dso(self, at: npt.NDArray[np.intp], dso: Dso) -> None:
        self._dso[at] = self._dsos.setdefault(dso, len(self._dsos))

    def set_mapping(self, at: npt.NDArray[np.intp], start: int | U64, limit: int | U64, pgoff: int | U64) -> None:
        """One for all of ``at``, or one for each."""
        self._start[at], self._limit[at], self._pgoff[at] = start, limit, pgoff

    def set_names(self, at: npt.NDArray[np.intp], symbols: I32, table: SymbolTable, addresses: U64) -> None:
        """``symbols``: rows of ``table`` for ``addresses``, which are in the table's terms; none is -1."""
        used, which = np.unique(symbols, return_inverse=True)
        numbers = np.array([self._names.setdefault(table.names[symbol], len(self._names)) for symbol in used.tolist()], np.int32)
        if len(used):
            self._name[at] = numbers[which]
            self._offset[at] = addresses - table.start[symbols]

    def resolved(self) -> Resolved:
        return Resolved(list(self._names), list(self._dsos), self._name, self._offset, self._dso, self._start, self._limit, self._pgoff)


def overlay(first: Resolved, second: Resolved) -> Resolved:
    """``first``, and where it has no name, all that ``second`` says of the address, if it has one."""
    use = (first.name < 0) & (second.name >= 0)
    return Resolved(
        first.names + second.names,
        first.dsos + second.dsos,
        np.where(use, second.name + len(first.names), first.name).astype(np.int32),
        np.where(use, second.offset, first.offset),
        np.where(use & (second.dso >= 0), second.dso + len(first.dsos), np.where(use, -1, first.dso)).astype(np.int32),
        np.where(use, second.start, first.start),
        np.where(use, second.limit, first.limit),
        np.where(use, second.pgoff, first.pgoff),
    )
