# SPDX-License-Identifier: Apache-2.0
"""The records of a perf.data file: where each begins, what it is, and numpy access to their words.

A record starts with ``struct perf_event_header`` (include/uapi/linux/perf_event.h): u32 type, u16 misc, u16 size, with ``size`` counting the header.
The kernel keeps records aligned to 8 bytes; what perf adds (AUX data, compressed records) need not be, so nothing here relies on it.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest import _native
from perfguest.errors import FormatError
from perfguest.formats.perf_attr import FileBytes

U64 = npt.NDArray[np.uint64]
U32 = npt.NDArray[np.uint32]
U16 = npt.NDArray[np.uint16]
U8 = npt.NDArray[np.uint8]
I64 = npt.NDArray[np.int64]
I32 = npt.NDArray[np.int32]

MMAP, LOST, COMM, EXIT, THROTTLE, UNTHROTTLE, FORK, SAMPLE, MMAP2, LOST_SAMPLES = 1, 2, 3, 4, 5, 6, 7, 9, 10, 13
HEADER_ATTR, EVENT_UPDATE, HEADER_FEATURE, COMPRESSED, COMPRESSED2 = 64, 78, 80, 81, 83

_HEADER = struct.Struct("<Q")
# zstd at its best makes some 1:1000 of traces; more is an attack.
_MAX_COMPRESSION = 1024


@dataclass(frozen=True)
class Buffer:
    """Bytes, with gathers of little-endian words at any byte offset. Offsets must have been checked against the length."""

    data: FileBytes

    def __len__(self) -> int:
        return len(self.data)

    def u64(self, at: I64) -> U64:
        """The words at byte offsets ``at``, which has one dimension."""
        words: U64 = self.columns(at, (0,))[0]
        return words

    def columns(self, at: I64, distances: Sequence[int]) -> U64:
        """The words at each distance behind ``at``, in bytes: uint64[distances, rows]."""
        words = _native.gather(self.data, np.ascontiguousarray(at, np.int64), np.array(distances, np.int64))
        columns: U64 = np.frombuffer(words, np.uint64).reshape(len(distances), len(at))
        return columns

    def u32_pair(self, at: I64) -> tuple[I32, I32]:
        """The two int32 at byte offsets ``at`` and ``at + 4``."""
        return halves(self.u64(at))

    def text(self, start: int, end: int) -> str:
        """The zero-terminated string at ``start``, not beyond ``end``."""
        return self.data[start:end].split(b"\0", 1)[0].decode("utf-8", "replace")


def halves(words: U64) -> tuple[I32, I32]:
    """The lower and the upper int32 of each word."""
    pairs = words.view(np.int32).reshape(-1, 2)
    return pairs[:, 0].copy(), pairs[:, 1].copy()


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

    def where(self, chosen: npt.NDArray[np.bool_] | I64 | slice) -> Records:
        return Records(self.buffer, self.type[chosen], self.misc[chosen], self.size[chosen], self.offset[chosen])

    def of_type(self, *types: int) -> Records:
        return self.where(np.isin(self.type, types))


@dataclass(frozen=True)
class _Chain:
    heads: U64
    offsets: I64
    compressed: bool
    # Where the chain was torn: the rest after this offset holds no whole record.
    torn_at: int | None


def walk_records(path: str, data: FileBytes, start: int, end: int, *, torn: bool, notes: list[str]) -> Records:
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


def _walk(path: str, data: FileBytes, start: int, end: int, torn: bool) -> _Chain:
    heads, offsets, position, bad_size, compressed = _native.walk_records(data, start, end)
    torn_at = None
    if bad_size:
        if not torn:
            size = int.from_bytes(data[position + 6 : position + 8], "little")
            raise FormatError(f"{path}: record at offset {position:#x} has an impossible size of {size} bytes", "The file is damaged; record again.")
        torn_at = position
    elif position != end:
        if not torn:
            raise FormatError(f"{path}: the records end at offset {position:#x}, not at {end:#x}", "The file is damaged or cut off; record again.")
        torn_at = min(position, end)
    return _Chain(np.frombuffer(heads, np.uint64), np.frombuffer(offsets, np.int64), compressed, torn_at)


def _columns(buffer: Buffer, chain: _Chain) -> Records:
    quarters = chain.heads.view(np.uint16).reshape(-1, 4)
    return Records(buffer, chain.heads.view(np.uint32).reshape(-1, 2)[:, 0].copy(), quarters[:, 2].copy(), quarters[:, 3].astype(np.int64), chain.offsets)


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
    # Few files are compressed, and what unpacks them is a library more to load.
    from perfguest.formats.zstd_stream import decompress_stream

    try:
        stream = decompress_stream(pieces, _MAX_COMPRESSION * len(data))
    except FormatError as error:
        raise FormatError(f"{path}: {error.message}", error.hint) from error
    padding = bytes(-len(data) % 8)
    base = len(data) + len(padding)
    whole = b"".join([data, padding, stream])
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
