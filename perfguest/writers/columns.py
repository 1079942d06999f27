# SPDX-License-Identifier: Apache-2.0
"""What several writers do with the columns of a profile."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest.profile import Frames, Mode, Profile
from perfguest.writers.text import escape

Indices = npt.NDArray[np.intp]
_CLOCKS = ("cpu-clock", "task-clock")


def unique_rows(*columns: npt.NDArray[np.integer[Any]]) -> tuple[Indices, Indices]:
    """The different rows of ``columns`` (at least one, all of the same length n).

    Gives ``first``, the index of one row of each kind, kinds in ascending order of their columns, and ``kind``, of length n: which kind each row is.
    """
    first = np.zeros(0, np.intp)
    kind: Indices = np.zeros(len(columns[0]), np.intp)
    for column in columns:
        # Both factors are at most n, so the product stays far below 2**63.
        values, of_value = np.unique(column, return_inverse=True)
        _, first, kind = np.unique(kind * len(values) + of_value, return_index=True, return_inverse=True)
    return first, kind


def blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``length``, so that what is made of them stays small."""
    return (slice(begin, min(begin + size, length)) for begin in range(0, length, size))


def is_clock(event: str) -> bool:
    """Whether the event's periods are nanoseconds of CPU time."""
    return event.split(":", maxsplit=1)[0] in _CLOCKS


def has_symbol(profile: Profile) -> list[bool]:
    """Which frames have a name: an empty one is none."""
    return [symbol >= 0 and bool(profile.strings[symbol]) for symbol in profile.frames.symbol.tolist()]


def display_names(profile: Profile) -> list[str]:
    """For each frame the name to show where there is room for nothing else: the symbol, or the address as sampled. Printable, see :func:`escape`."""
    frames: Frames = profile.frames
    safe = [escape(string) for string in profile.strings]
    rows = zip(has_symbol(profile), frames.symbol.tolist(), frames.address.tolist(), frames.mode.tolist(), strict=True)
    return [safe[symbol] if named else "[unknown]" if mode == Mode.NONE else f"{address:#x}" for named, symbol, address, mode in rows]
