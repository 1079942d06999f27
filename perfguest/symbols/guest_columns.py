# SPDX-License-Identifier: Apache-2.0
"""The columns of :class:`perfguest.symbols.host.Resolved` while guest addresses are named."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from perfguest.symbols.host import Dso, Resolved
from perfguest.symbols.table import I32, U64, SymbolTable


class Columns:
    """``count`` addresses, at first without name and dso. ``at`` are positions among them."""

    def __init__(self, count: int) -> None:
        self._names: dict[str, int] = {}
        self._dsos: dict[Dso, int] = {}
        self._name: I32 = np.full(count, -1, np.int32)
        self._dso: I32 = np.full(count, -1, np.int32)
        self._offset, self._start, self._limit, self._pgoff = (np.zeros(count, np.uint64) for _ in range(4))

    def set_dso(self, at: npt.NDArray[np.intp], dso: Dso) -> None:
        self._dso[at] = self._dsos.setdefault(dso, len(self._dsos))

    def set_mapping(self, at: npt.NDArray[np.intp], start: int, limit: int, pgoff: int) -> None:
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
