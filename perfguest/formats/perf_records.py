# SPDX-License-Identifier: Apache-2.0
"""The records of a perf.data file: where each begins, what it is, and numpy access to their words.

A record starts with ``struct perf_event_header`` (include/uapi/linux/perf_event.h): u32 type, u16 misc, u16 size, with ``size`` counting the header.
The kernel keeps records aligned to 8 bytes; what perf adds (AUX data, compressed records) need not be, so nothing here relies on it.
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.zstd_stream import decompress_stream

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
U16 = npt.NDArray[np.uint16]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

MMAP, LOST, COMM, EXIT, THROTTLE, UNTHROTTLE, FORK, SAMPLE, MMAP2, LOST_SAMPLES = 1, 2, 3, 4, 5, 6, 7, 9, 10, 13
FIRST_USER_TYPE = 64
HEADER_ATTR, HEADER_TRACING_DATA, AUXTRACE, EVENT_UPDATE, HEADER_FEATURE, COMPRESSED, COMPRESSED2 = 64, 66, 71, 78, 80, 81, 83

_HEADER = struct.Struct("<Q")
_WORD32 = struct.Struct("<I")
# zstd at its best makes some 1:1000 of traces; more is an attack.
_MAX_COMPRESSION = 1024


@dataclass(frozen=True)
class Buffer:
    """Bytes, with gathers of little-endian words at any byte offset. Offsets must have been checked against the length."""

    data: bytes

    def __len__(self) -> int:
        return len(self.data)

    def u64(self, at: I64) -> U64:
        """The words at byte offsets ``at``, in its shape."""
        residues = at & 7
        present = np.unique(residues) if residues.any() else np.zeros(1, np.int64)
        if len(present) == 1:
            words: U64 = self._words(int(present[0]))[at >> 3]
            return words
        out = np.empty(at.shape, np.uint64)
        for residue in present.tolist():
            chosen = residues == residue
            out[chosen] = self._words(residue)[at[chosen] >> 3]
        return out

    def u32_pair(self, at: I64) -> tuple[I32, I32]:
        """The two int32 at byte offsets ``at`` and ``at + 4``."""
        words = self.u64(at)
        return (words & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32), (words >> np.uint64(32)).astype(np.uint32).view(np.int32)

    def text(self, start: int, end: int) -> str:
        """The zero-terminated string at ``start``, not beyond ``end``."""
        return self.data[start:end].split(b"\0", 1)[0].decode("utf-8", "replace")

    def _words(self, residue: int) -> U64:
        count = max(len(self.data) - residue, 0) // 8
        return np.frombuffer(self.data, "<u8", count, residue if count else 0)


@dataclass(frozen=True)
class Records:
    """Columns of record headers in the order of the file: ``type`` uint32, ``misc`` uint16, ``size`` and ``offset`` (bytes in ``buffer``) int64."""

    buffer: Buffer
    type: U32
    misc: U16
    size: I64
    offset: I64

    def __len__(self) -> int:
        return len(self.type)

    def where(self, chosen: npt.NDArray[np.bool_] | I64) -> Records:
        return Records(self.buffer, self.type[chosen], self.misc[chosen], self.size[chosen], self.offset[chosen])

    def of_type(self, *types: int) -> Records:
        return self.where(np.isin(self.type, types))


@dataclass(frozen=True)
class _Chain:
    heads: array[int]
    offsets: array[int]
    compressed: bool
    # Where the chain was torn: the rest after this offset holds no whole record.
    torn_at: int | None


def walk_records(path: str, data: bytes, start: int, end: int, *, torn: bool, notes: list[str]) -> Records:
    """Finds all records in ``data[start:end]`` and unpacks compressed ones.

    ``torn``: the file is known to lack its end, so a record that does not fit is the tear: noted, not an error.
    Offsets of records that were compressed lie beyond the end of the file.
    Raises :class:`FormatError` with the offset of a header that cannot be.
    """
    chain = _walk(path, data, start, end, torn)
    if chain.torn_at is not None:
        notes.append(f"{path} is cut off: read up to offset {chain.torn_at:#x}, {end - chain.torn_at} bytes after it hold no whole record")
    records = _columns(Buffer(data), chain)
    return _unpack(path, records, torn, notes) if chain.compressed else records


def _walk(path: str, data: bytes, start: int, end: int, torn: bool) -> _Chain:
    heads, offsets = array("Q"), array("q")
    compressed, torn_at = False, None
    unpack, position, last = _HEADER.unpack_from, start, end - 8
    while position <= last:
        head = unpack(data, position)[0]
        size = head >> 48
        following = position + size
        if size < 8 or following > end:
            if torn:
                torn_at = position
                break
            raise FormatError(f"{path}: record at offset {position:#x} has an impossible size of {size} bytes", "The file is damaged; record again.")
        heads.append(head)
        offsets.append(position)
        if head & 0xFFFFFFFF >= FIRST_USER_TYPE:
            compressed |= head & 0xFFFFFFFF in (COMPRESSED, COMPRESSED2)
            following += _payload_behind(data, position, head & 0xFFFFFFFF, size)
        position = following
    if torn_at is None and position != end:
        if not torn:
            raise FormatError(f"{path}: the records end at offset {position:#x}, not at {end:#x}", "The file is damaged or cut off; record again.")
        torn_at = min(position, end)
    return _Chain(heads, offsets, compressed, torn_at)


def _payload_behind(data: bytes, position: int, kind: int, size: int) -> int:
    # Two kinds of record are followed by bytes that their header's size does not count.
    if kind == AUXTRACE and size >= 16:
        return int(_HEADER.unpack_from(data, position + 8)[0])
    if kind == HEADER_TRACING_DATA and size >= 12:
        return (int(_WORD32.unpack_from(data, position + 8)[0]) + 7) & ~7
    return 0


def _columns(buffer: Buffer, chain: _Chain) -> Records:
    heads = np.frombuffer(chain.heads, np.uint64) if len(chain.heads) else np.zeros(0, np.uint64)
    offsets = np.frombuffer(chain.offsets, np.int64) if len(chain.offsets) else np.zeros(0, np.int64)
    kind = (heads & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    misc = ((heads >> np.uint64(32)) & np.uint64(0xFFFF)).astype(np.uint16)
    return Records(buffer, kind, misc, (heads >> np.uint64(48)).astype(np.int64), offsets)


def _unpack(path: str, records: Records, torn: bool, notes: list[str]) -> Records:
    """Records may straddle two compressed pieces, so all pieces are made one stream, which is put behind the file's own bytes."""
    data = records.buffer.data
    packed = np.isin(records.type, (COMPRESSED, COMPRESSED2))
    pieces = []
    for kind, offset, size in zip(records.type[packed].tolist(), records.offset[packed].tolist(), records.size[packed].tolist(), strict=True):
        if kind == COMPRESSED:
            pieces.append(data[offset + 8 : offset + size])
        elif size >= 16:
            length = _HEADER.unpack_from(data, offset + 8)[0]
            pieces.append(data[offset + 16 : offset + min(size, 16 + length)])
    try:
        stream = decompress_stream(pieces, _MAX_COMPRESSION * len(data))
    except FormatError as error:
        raise FormatError(f"{path}: {error.message}", error.hint) from error
    padding = bytes(-len(data) % 8)
    base = len(data) + len(padding)
    whole = data + padding + stream
    inner = _walk(path, whole, base, len(whole), torn)
    if inner.torn_at is not None:
        notes.append(f"{path}: its compressed part is cut off")
    if inner.compressed:
        raise FormatError(f"{path}: compressed records within compressed records", "The file is damaged; record again.")
    outer, unpacked = records.where(~packed), _columns(Buffer(whole), inner)
    return Records(
        unpacked.buffer,
        np.concatenate([outer.type, unpacked.type]),
        np.concatenate([outer.misc, unpacked.misc]),
        np.concatenate([outer.size, unpacked.size]),
        np.concatenate([outer.offset, unpacked.offset]),
    )
