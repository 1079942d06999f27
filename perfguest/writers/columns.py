# SPDX-License-Identifier: Apache-2.0
"""What several writers do with the columns of a profile."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest.profile import I32, I64, Mode, Profile
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


def frame_names(profile: Profile) -> tuple[list[str], I32]:
    """The names to show where there is room for nothing else, and int32, for each frame which of them is its.

    A name is the symbol, or the address as sampled. Printable, see :func:`escape`.
    """
    frames = profile.frames
    named = has_symbol(profile)
    nameless = np.flatnonzero(~named)
    address = np.where(frames.mode[nameless] == Mode.NONE, np.uint64(0), frames.address[nameless])
    is_code = (frames.mode[nameless] != Mode.NONE).astype(np.uint8)
    first, which = distinct_rows(is_code, address)
    names = [escape(string) for string in profile.strings]
    number = frames.symbol.copy()
    number[nameless] = len(names) + which
    names += [f"{value:#x}" if code else "[unknown]" for code, value in zip(is_code[first].tolist(), address[first].tolist(), strict=True)]
    return names, number


def display_names(profile: Profile) -> list[str]:
    """For each frame the name of :func:`frame_names`."""
    names, number = frame_names(profile)
    return [names[one] for one in number.tolist()]


def pieces(texts: Iterable[bytes]) -> tuple[bytes, I64]:
    """The texts one behind the other, and int64, where each of them ends."""
    held = list(texts)
    return b"".join(held), np.cumsum(np.array([len(text) for text in held], np.int64), dtype=np.int64)
