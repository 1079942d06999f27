# SPDX-License-Identifier: Apache-2.0
"""Which rows of columns are equal. A recording has many samples and few different ones: whatever is made of them is made of each kind once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perfguest import _native

if TYPE_CHECKING:
    from perfguest._native import Buffer

I32 = npt.NDArray[np.int32]
I64 = npt.NDArray[np.int64]
Column = npt.NDArray[Any]


def distinct_rows(*columns: Column) -> tuple[I64, I32]:
    """``columns``: at least one, all of the same length, of integers or booleans.

    Gives ``first``, int64, the first row of each kind, in ascending order; and ``number``, int32, for each row the number of its kind.
    """
    return _distinct(len(columns[0]), columns, None, None, None)


def distinct_lists(columns: Sequence[Column], data: Buffer, at: I64, length: I64) -> tuple[I64, I32]:
    """The same for rows that have ``length`` bytes of ``data`` from ``at`` on, too."""
    return _distinct(len(at), columns, data, np.ascontiguousarray(at), np.ascontiguousarray(length))


def _distinct(count: int, columns: Sequence[Column], data: Buffer | None, at: I64 | None, length: I64 | None) -> tuple[I64, I32]:
    first, number = _native.distinct(count, tuple(np.ascontiguousarray(column) for column in columns), data, at, length)
    return np.frombuffer(first, np.int64), np.frombuffer(number, np.int32)


def distinct_values(column: Column) -> Column:
    """As :func:`numpy.unique`, which loads all of numpy.ma for it."""
    ordered = np.sort(column)
    return ordered[np.append(True, ordered[1:] != ordered[:-1])] if len(ordered) else ordered


def select_lists(start: I64, lists: I64 | I32) -> tuple[I64, I64]:
    """Of lists one after the other, of which *i* goes from ``start[i]`` to ``start[i + 1]``, the chosen ones: where each begins, and the rows of all."""
    count = (start[1:] - start[:-1])[lists]
    offsets = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=offsets[1:])
    return offsets, np.repeat(start[:-1][lists] - offsets[:-1], count) + np.arange(offsets[-1])
