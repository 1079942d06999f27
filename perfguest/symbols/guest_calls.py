# SPDX-License-Identifier: Apache-2.0
"""Whether a return address follows a call instruction in a program's machine code.

That tells return addresses from what only looks like one, and the right file from another one of the same addresses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]
Bool = npt.NDArray[np.bool_]

# Zeros around each piece, so that looking a few bytes back or ahead never leaves the array. No call instruction is longer.
_PAD = 16


@dataclass(frozen=True)
class Code:
    """Pieces of machine code at their addresses: sorted by ``start`` (uint64), not overlapping. ``size``: uint64. ``pieces``: the bytes of each, uint8."""

    start: U64
    size: U64
    pieces: tuple[U8, ...]

    @classmethod
    def of(cls, pieces: Sequence[tuple[int, U8]]) -> Code:
        """Of (address, bytes); where two overlap the later one is dropped."""
        kept: list[tuple[int, U8]] = []
        for address, content in sorted(pieces, key=lambda piece: piece[0]):
            if len(content) and (not kept or address >= kept[-1][0] + len(kept[-1][1])):
                kept.append((address, content))
        start = np.array([address for address, _ in kept], np.uint64)
        return cls(start, np.array([len(content) for _, content in kept], np.uint64), tuple(content for _, content in kept))

    def contains(self, addresses: U64) -> Bool:
        return self._find(addresses, 0) >= 0

    def contains_return(self, addresses: U64) -> Bool:
        """The same for return addresses: these may stand right behind the last byte, never at the first one."""
        return self._find(addresses, 1) >= 0

    def follows_call(self, returns: U64) -> Bool:
        """True where a ``call`` ends right before the address: direct with a target in this code, or indirect, in all forms that compilers use."""
        at = self._find(returns, 1)
        inside = at >= 0
        at = np.where(inside, at, 0)
        return inside & (self._direct_call(at - 5, returns - np.uint64(5)) | self._indirect_call(at))

    def bytes_at(self, addresses: U64, distance: int = 0) -> U8:
        """The byte at each address + ``distance`` (from -16 to 15), 0 where the address is no return address of this code or no byte is there."""
        at = self._find(addresses, 1)
        return np.where(at >= 0, self._content[np.maximum(at, 0) + distance], 0).astype(np.uint8)

    def call_targets(self, sites: U64) -> U64:
        """Where the direct call (e8) that starts at each address leads; 0 where none does."""
        at = self._find(sites, 0)
        inside = at >= 0
        at = np.where(inside, at, 0)
        return np.where(inside & (self._content[at] == 0xE8), self._relative(at + 1, sites + np.uint64(5)), 0).astype(np.uint64)

    @cached_property
    def _content(self) -> U8:
        padding = np.zeros(_PAD, np.uint8)
        return np.concatenate([part for piece in self.pieces for part in (padding, piece)] + [padding, padding])

    @cached_property
    def _base(self) -> I64:
        sizes = self.size.astype(np.int64) + _PAD
        base: I64 = np.cumsum(sizes) - sizes + _PAD
        return base

    def _find(self, addresses: U64, tail: int) -> I64:
        """Index into the content, or -1. With ``tail`` 1 of return addresses, with 0 of places."""
        if not len(self.start):
            return np.full(len(addresses), -1, np.int64)
        piece = np.searchsorted(self.start, addresses, "left" if tail else "right") - 1
        known = np.maximum(piece, 0)
        distance = addresses - self.start[known]
        inside = (piece >= 0) & (distance < self.size[known] + np.uint64(tail))
        return np.where(inside, self._base[known] + np.where(inside, distance, 0).astype(np.int64), -1)

    def _relative(self, at: I64, origin: U64) -> U64:
        content = self._content
        value = np.zeros(len(at), np.uint32)
        for place in range(4):
            value |= content[at + place].astype(np.uint32) << np.uint32(8 * place)
        return origin + value.view(np.int32).astype(np.int64).view(np.uint64)

    def _direct_call(self, at: I64, sites: U64) -> Bool:
        target = self._relative(at + 1, sites + np.uint64(5))
        direct: Bool = self._content[at] == 0xE8
        return direct & self.contains(target)

    def _indirect_call(self, at: I64) -> Bool:
        """Opcode ff /2 with every way to address its operand (Intel SDM vol. 2, 2.1.5); prefixes before it do not matter."""
        content = self._content
        found = np.zeros(len(at), bool)
        for length in (2, 3, 4, 6, 7):
            opcode, modrm, sib = content[at - length], content[at - length + 1], content[at - length + 2]
            call = (opcode == 0xFF) & ((modrm & 0x38) == 0x10)
            mod, rm = modrm >> 6, modrm & 7
            with_sib = (mod != 3) & (rm == 4)
            displacement = np.select([mod == 1, mod == 2, (mod == 0) & (rm == 5), (mod == 0) & with_sib & ((sib & 7) == 5)], [1, 4, 4, 4], 0)
            found |= call & (2 + with_sib + displacement == length)
        return found
