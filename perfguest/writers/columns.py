# SPDX-License-Identifier: Apache-2.0
"""What several writers do with the columns of a profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest.profile import I32, I64, U64, Mode, Profile
from perfguest.rows import distinct_rows
from perfguest.writers.text import escape

_CLOCKS = ("cpu-clock", "task-clock")


def unique_rows(*columns: npt.NDArray[np.integer[Any]]) -> tuple[I64, I32]:
    """As :func:`distinct_rows`, with the kinds in ascending order of their columns."""
    first, number = distinct_rows(*columns)
    order = np.lexsort([column[first] for column in reversed(columns)])
    place = np.empty(len(order), np.int32)
    place[order] = np.arange(len(order))
    return first[order], place[number]


def blocks(length: int, size: int) -> Iterator[slice]:
    """Slices of at most ``size`` that cover ``length``, so that what is made of them stays small."""
    return (slice(begin, min(begin + size, length)) for begin in range(0, length, size))


def is_clock(event: str) -> bool:
    """Whether the event's periods are nanoseconds of CPU time."""
    return event.split(":", maxsplit=1)[0] in _CLOCKS


def has_symbol(profile: Profile) -> npt.NDArray[np.bool_]:
    """Which frames have a name: an empty one is none."""
    # The last one is that of index -1.
    return np.array([*map(bool, profile.strings), False], bool)[profile.frames.symbol]


@dataclass(frozen=True)
class ShownNames:
    """The names to show where there is room for nothing else: symbols, and for frames without one the address as sampled.

    ``number``: int32, for each frame which of ``names`` is its, and behind those which of ``addresses`` (uint64). ``names`` are printable, see :func:`escape`.
    """

    names: list[str]
    addresses: U64
    number: I32


def frame_names(profile: Profile) -> ShownNames:
    """The names of all frames."""
    frames = profile.frames
    names = [*(escape(string) for string in profile.strings), "[unknown]"]
    number = frames.symbol.copy()
    nameless = ~has_symbol(profile)
    is_code = frames.mode != Mode.NONE
    number[nameless & ~is_code] = len(names) - 1
    rows = np.flatnonzero(nameless & is_code)
    first, which = distinct_rows(frames.address[rows])
    number[rows] = len(names) + which
    return ShownNames(names, frames.address[rows[first]], number)


def display_names(profile: Profile) -> list[str]:
    """For each frame the name that :func:`frame_names` gives it."""
    found = frame_names(profile)
    names = [*found.names, *(f"{address:#x}" for address in found.addresses.tolist())]
    return [names[one] for one in found.number.tolist()]


def pieces(texts: Iterable[bytes]) -> tuple[bytes, I64]:
    """The texts one behind the other, and int64, where each of them ends."""
    held = list(texts)
    return b"".join(held), np.cumsum(np.array([len(text) for text in held], np.int64), dtype=np.int64)
