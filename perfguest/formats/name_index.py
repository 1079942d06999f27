# SPDX-License-Identifier: Apache-2.0
"""Looks up names in a block of NUL-terminated ones without making a string of each: a kernel has some 200,000 symbols, and a dozen of them are asked for."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

_WORD = 8
# So many names that begin alike are compared one by one.
_MOST = 4096


class NameIndex:
    """The names that begin at ``starts`` (offsets in bytes, integers) in ``text``. Names are told apart by their first eight bytes, then by the rest."""

    def __init__(self, text: bytes, starts: npt.NDArray[np.int64]) -> None:
        self._text, self._starts = text, starts
        # Two words more: one for what is cut off here, and one behind the last name's.
        words = np.frombuffer(text + bytes(2 * _WORD), "<u8", len(text) // _WORD + 2)
        place, shift = starts // _WORD, (starts % _WORD * 8).astype(np.uint64)
        # In two steps: no word can be shifted by all of its 64 bits.
        self._begins = words[place] >> shift | words[place + 1] << np.uint64(1) << (np.uint64(63) - shift)

    def places(self, name: bytes) -> Iterator[int]:
        """Places in ``starts`` of the names that are ``name``, ascending."""
        wanted = name + b"\0"
        if b"\0" in name:
            return
        part = wanted[:_WORD]
        mask = np.uint64((1 << 8 * len(part)) - 1)
        alike = np.flatnonzero((self._begins & mask) == np.uint64(int.from_bytes(part, "little")))
        if len(alike) > _MOST:
            # Of many that begin alike few are as long: a NUL stands where the name ends.
            ends = self._starts[alike] + len(name)
            text = np.frombuffer(self._text, np.uint8)
            alike = alike[text[np.minimum(ends, len(text) - 1)] == 0]
        for place in alike.tolist():
            if self._text.startswith(wanted, int(self._starts[place])):
                yield place
