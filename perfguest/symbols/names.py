# SPDX-License-Identifier: Apache-2.0
"""Names of symbols, of which a string is made only when somebody asks for it: of a kernel's 200,000 a profile shows some hundreds."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import overload

import numpy as np
import numpy.typing as npt

I64 = npt.NDArray[np.int64]
Bool = npt.NDArray[np.bool_]


class Names(Sequence[str]):
    """Pieces of ``text`` from ``start`` up to ``end`` (int64 offsets in bytes), which may hold anything. As strings they are UTF-8, what is not is replaced."""

    def __init__(self, text: bytes, start: I64, end: I64) -> None:
        self.text, self.start, self.end = text, start, end

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The same names."""
        return cls.of_bytes([name.encode("utf-8", "replace") for name in names])

    @classmethod
    def of_bytes(cls, pieces: Sequence[bytes]) -> Names:
        """The same for names as they are in a file."""
        end = np.cumsum(np.array([len(piece) for piece in pieces], np.int64), dtype=np.int64)
        return cls(b"".join(pieces), np.concatenate([np.zeros(1, np.int64), end[:-1]])[: len(pieces)], end)

    @classmethod
    def terminated(cls, text: bytes) -> Names:
        """Of a text in which a NUL stands behind each name."""
        end = np.flatnonzero(np.frombuffer(text, np.uint8) == 0).astype(np.int64)
        return cls(text, np.concatenate([np.zeros(1, np.int64), end[:-1] + 1])[: len(end)], end)

    @classmethod
    def concatenate(cls, parts: Sequence[Names]) -> Names:
        """One after the other."""
        base = np.cumsum(np.array([0, *(len(part.text) for part in parts)], np.int64))
        start = [part.start + distance for part, distance in zip(parts, base[:-1], strict=True)]
        end = [part.end + distance for part, distance in zip(parts, base[:-1], strict=True)]
        nothing = np.zeros(0, np.int64)
        return cls(b"".join(part.text for part in parts), np.concatenate([nothing, *start]), np.concatenate([nothing, *end]))

    def __len__(self) -> int:
        return len(self.start)

    @overload
    def __getitem__(self, place: int) -> str: ...
    @overload
    def __getitem__(self, place: slice) -> Names: ...
    def __getitem__(self, place: int | slice) -> str | Names:
        if isinstance(place, slice):
            return Names(self.text, self.start[place], self.end[place])
        return self.text[int(self.start[place]) : int(self.end[place])].decode("utf-8", "replace")

    def take(self, rows: npt.NDArray[np.intp]) -> Names:
        """Those at the rows, in their order."""
        return Names(self.text, self.start[rows], self.end[rows])

    def cut(self, size: int) -> Names:
        """None is longer than so many bytes."""
        return Names(self.text, self.start, np.minimum(self.end, self.start + size))

    @property
    def sizes(self) -> I64:
        """In bytes."""
        return self.end - self.start

    def begin_with(self, *prefixes: bytes) -> Bool:
        """Which of them begin with one of the prefixes."""
        data, result = np.frombuffer(self.text, np.uint8), np.zeros(len(self), bool)
        for prefix in prefixes:
            rows = np.flatnonzero(self.sizes >= len(prefix))
            for place, byte in enumerate(prefix):
                rows = rows[data[self.start[rows] + place] == byte]
            result[rows] = True
        return result

    def leading(self, byte: int) -> I64:
        """How often each begins with the byte."""
        data, result, rows = np.frombuffer(self.text, np.uint8), np.zeros(len(self), np.int64), np.arange(len(self))
        while len(rows):
            rows = rows[self.start[rows] + result[rows] < self.end[rows]]
            rows = rows[data[self.start[rows] + result[rows]] == byte]
            result[rows] += 1
        return result

    def find(self, name: str) -> int | None:
        """The place of the first of them that is the name."""
        wanted = name.encode()
        rows = np.flatnonzero(self.sizes == len(wanted))
        data = np.frombuffer(self.text, np.uint8)
        for place, byte in enumerate(wanted):
            rows = rows[data[self.start[rows] + place] == byte]
        return int(rows[0]) if len(rows) else None
