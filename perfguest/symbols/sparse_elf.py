# SPDX-License-Identifier: Apache-2.0
"""ELF files of which only some pages are there, as a guest's page cache had them.

What is missing reads as zeros, and :meth:`SparseFile.present` tells it from what is zero: a name is used only if all its bytes are there. Where the
section headers are missing, which no running program needs, the dynamic symbols are found as the loader finds them (System V ABI, "Dynamic Linking").
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError

if TYPE_CHECKING:
    from perfguest.proto import guest_pb2 as pb

Bool = npt.NDArray[np.bool_]

_MAX_FILE = 1 << 42
# No part of a file that is read at once, a symbol table for one, is larger.
_MAX_READ = 1 << 28


class SparseFile(io.RawIOBase):
    """``runs``: (offset, bytes) in any order; where two overlap the earlier offset wins. Raises :class:`FormatError` for a run that leaves the file."""

    def __init__(self, size: int, runs: Sequence[tuple[int, bytes]]) -> None:
        super().__init__()
        if size > _MAX_FILE:
            raise FormatError(f"a file of {size} bytes")
        self._size, self._at = size, 0
        self._runs: list[tuple[int, bytes]] = []
        end = 0
        for offset, data in sorted(runs, key=lambda run: run[0]):
            # A file's last page reaches behind its end.
            if offset >= size or offset + len(data) > size + 4095:
                raise FormatError(f"pages at {offset:#x} of a file of {size} bytes")
            first = max(end, offset)
            part = data[first - offset : size - offset]
            if part:
                self._runs.append((first, part))
                end = first + len(part)
        self._starts = np.array([offset for offset, _ in self._runs], np.int64)

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = max({io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence] + offset, 0)
        return self._at

    def read(self, size: int | None = -1, /) -> bytes:
        left = max(self._size - self._at, 0)
        size = left if size is None or size < 0 else min(size, left)
        if size > _MAX_READ:
            raise FormatError(f"a part of {size} bytes")
        content = bytearray(size)
        for offset, data in self._within(self._at, size):
            first = max(offset, self._at)
            part = data[first - offset : self._at + size - offset]
            content[first - self._at : first - self._at + len(part)] = part
        self._at += size
        return bytes(content)

    def present(self, offset: int, size: int) -> Bool:
        """For each byte from ``offset`` on whether it is there."""
        if size > _MAX_READ:
            raise FormatError(f"a part of {size} bytes")
        there = np.zeros(size, bool)
        for start, data in self._within(offset, size):
            there[max(start - offset, 0) : max(start + len(data) - offset, 0)] = True
        return there

    def _within(self, offset: int, size: int) -> list[tuple[int, bytes]]:
        first = max(int(np.searchsorted(self._starts, offset, "right")) - 1, 0)
        return self._runs[first : int(np.searchsorted(self._starts, offset + size))]


def complete_string(table: bytes, there: Bool, start: int) -> bool:
    """Whether the string at ``start`` ends at a zero that is there: missing bytes are zeros, so the first one would end it."""
    end = table.find(b"\0", start)
    return end >= 0 and bool(there[end])


def open_binary(binary: pb.Binary) -> SparseFile:
    """Raises :class:`FormatError` for pages that lie outside the file."""
    return SparseFile(binary.size, [(run.address, run.data) for run in binary.pages])
