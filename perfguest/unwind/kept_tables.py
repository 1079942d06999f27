# SPDX-License-Identifier: Apache-2.0
"""Unwind tables of guests' binaries kept across recordings, in ``$XDG_CACHE_HOME/perfguest/guest-tables``, by build id and size.

A running program seldom reads its ``.eh_frame``: whether those pages are in a guest's page cache is a matter of how its files came there. Where one guest had
them, or a file of the guest was given, the next guest need not. Of a file are kept its first page and those from ``.eh_frame_hdr`` to the end of that segment,
which hold nothing but tables (``.eh_frame``, ``.gcc_except_table``): no code, no data.

A guest may give any build id. So kept pages count only where the pages that this guest has itself are the same, and the unwinder takes no step by them that
this guest's own code does not prove (:meth:`perfguest.unwind.engine.Engine.add_binary`).

A file BUILDID-SIZE.whole or .part is 8 bytes ``PGUNWIND``, the SHA-256 of what follows, and a Binary of proto/guest.proto.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from perfguest.private_directory import PrivateDirectory
from perfguest.proto import guest_pb2 as pb

#: Bytes that are kept in all, the latest used first, and of one file.
MOST_BYTES, MOST_OF_ONE = 256 << 20, 48 << 20
_PAGE = 4096
_HEAD = (0, _PAGE)
_NAME = re.compile(r"([0-9a-f]{8,128}-[0-9]{1,20})\.(whole|part)")
_MAGIC = b"PGUNWIND"
_HASH = hashlib.sha256().digest_size
_PT_LOAD, _PT_GNU_EH_FRAME, _PF_X = 1, 0x6474E550, 1
_PROGRAM_HEADER = struct.Struct("<IIQQQQQQ")

Runs = Sequence[tuple[int, bytes]]


@dataclass(frozen=True, eq=False)
class _Pages:
    """The pages of a part of a file: ``content``, (n, 4096) uint8, 0 outside the part; ``there``: bool, n."""

    start: int
    content: npt.NDArray[np.uint8]
    there: npt.NDArray[np.bool_]

    @classmethod
    def of(cls, part: tuple[int, int], size: int, runs: Runs) -> _Pages:
        """``part``: offsets of its begin and end. ``size``: the file's, whose last page is there where it is up to the file's end."""
        start = part[0] // _PAGE * _PAGE
        pages = -(-(part[1] - start) // _PAGE)
        content, there = bytearray(pages * _PAGE), np.zeros(pages, bool)
        for offset, data in runs:
            first, stop = max(-(-(offset - start) // _PAGE), 0), offset + len(data)
            last = pages if stop >= size else min((stop - start) // _PAGE, pages)
            if first < last:
                at = start + first * _PAGE - offset
                piece = data[at : min(at + (last - first) * _PAGE, size - offset)]
                content[first * _PAGE : first * _PAGE + len(piece)] = piece
                there[first:last] = True
        content[: part[0] - start] = bytes(part[0] - start)
        content[part[1] - start :] = bytes(len(content) - (part[1] - start))
        return cls(start, np.frombuffer(content, np.uint8).reshape(pages, _PAGE), there)

    def contradicts(self, other: _Pages) -> bool:
        both = self.there & other.there
        return bool((self.content[both] != other.content[both]).any())

    def with_(self, other: _Pages) -> _Pages:
        """Its own pages, and those of another where it has none."""
        return _Pages(self.start, np.where(self.there[:, None], self.content, other.content), self.there | other.there)

    def runs(self, size: int) -> list[tuple[int, bytes]]:
        edges = np.flatnonzero(np.diff(np.concatenate([[False], self.there, [False]]).astype(np.int8)))
        places = [(int(first), int(last)) for first, last in edges.reshape(-1, 2)]
        ends = [min(self.start + last * _PAGE, size) - (self.start + first * _PAGE) for first, last in places]
        return [(self.start + first * _PAGE, self.content[first:last].tobytes()[:end]) for (first, last), end in zip(places, ends, strict=True)]


class KeptTables:
    """Those in ``directory``. One that cannot be used (it cannot be made, or others may write to it), or None, keeps nothing."""

    def __init__(self, directory: Path | None) -> None:
        self._files = PrivateDirectory(directory)
        self._names = {match[1]: match[0] for name in self._files.names() if (match := _NAME.fullmatch(name))}
        self._grown = False

    def complete(self, build_id: bytes, size: int, runs: Runs) -> list[tuple[int, bytes]] | None:
        """Keeps what ``runs`` hold of a file's tables. Gives them with what was kept of these before; None where that adds nothing.

        Args:
            build_id: of the file, as the guest has it.
            size: of the file, in bytes.
            runs: file offsets and bytes, ascending, not overlapping: what the guest has of it.
        """
        key = f"{build_id.hex()}-{size}"
        place = tables_of(size, runs) if self._files and _NAME.fullmatch(f"{key}.part") else None
        if place is None:
            return None
        if _covers(runs, *place) and self._names.get(key, "").endswith(".whole"):
            return None
        head, own = _Pages.of(_HEAD, size, runs), _Pages.of(place, size, runs)
        kept = self._kept(key, place, size, head, own)
        both = own.with_(kept) if kept else own
        if both.there.any() and (kept is None or both.there.sum() > kept.there.sum()):
            self._keep(key, build_id, size, [*head.runs(size), *both.runs(size)], bool(both.there.all()))
        if kept is None or both.there.sum() == own.there.sum():
            return None
        return _merged(runs, _Pages(own.start, kept.content, kept.there & ~own.there).runs(size))

    def close(self) -> None:
        """Forgets the longest unused beyond the bound."""
        if self._grown:
            total = 0
            for (size, _), name in sorted(((self._files.size_and_use(name), name) for name in self._names.values()), key=lambda one: -one[0][1]):
                total += size
                if total > MOST_BYTES:
                    self._files.remove(name)
        self._files.close()
        self._names = {}

    def _kept(self, key: str, place: tuple[int, int], size: int, head: _Pages, own: _Pages) -> _Pages | None:
        """The pages that are kept; None, and they are no more, where they are not of this file."""
        if key not in self._names:
            return None
        binary = _parsed(self._files.read(self._names[key], MOST_OF_ONE + (1 << 16)))
        if binary is not None:
            runs = [(run.address, run.data) for run in binary.pages]
            pages = _Pages.of(place, size, runs)
            if not head.contradicts(_Pages.of(_HEAD, size, runs)) and not own.contradicts(pages):
                return pages
        self._files.remove(self._names.pop(key))
        return None

    def _keep(self, key: str, build_id: bytes, size: int, runs: Runs, whole: bool) -> None:
        binary = pb.Binary(format_version=1, build_id=build_id, size=size, pages=[pb.Bytes(address=offset, data=data) for offset, data in runs])
        body, name = binary.SerializeToString(deterministic=True), f"{key}.{'whole' if whole else 'part'}"
        if self._files.place(name, _MAGIC + hashlib.sha256(body).digest() + body):
            if self._names.get(key, name) != name:
                self._files.remove(self._names[key])
            self._names[key] = name
            self._grown = True


def tables_of(size: int, runs: Runs) -> tuple[int, int] | None:
    """The part of an ELF file, offset and end, from its .eh_frame_hdr to the end of that segment, without the file's first page. None where there is none,
    where that is not told, and where the segment has code, too (the vDSO, whose pages are all there)."""
    if not runs or runs[0][0] or runs[0][1][:6] != b"\x7fELF\x02\x01":
        return None
    head = runs[0][1]
    if len(head) < 64:
        return None
    at, entry, count = *struct.unpack_from("<Q", head, 32), *struct.unpack_from("<HH", head, 54)
    if entry != _PROGRAM_HEADER.size or at + entry * count > len(head):
        return None
    headers = [_PROGRAM_HEADER.unpack_from(head, at + entry * number) for number in range(count)]
    start = next((header[2] for header in headers if header[0] == _PT_GNU_EH_FRAME), None)
    loads = [header for header in headers if header[0] == _PT_LOAD and start is not None and header[2] <= start < header[2] + header[5]]
    if start is None or not loads or loads[0][1] & _PF_X:
        return None
    start, end = max(start, _PAGE), min(loads[0][2] + loads[0][5], size)
    return (start, end) if start < end <= start + MOST_OF_ONE else None


def _covers(runs: Runs, start: int, end: int) -> bool:
    for offset, data in runs:
        if offset <= start:
            start = max(start, offset + len(data))
    return start >= end


def _merged(runs: Runs, more: Runs) -> list[tuple[int, bytes]]:
    """``runs``, and of ``more`` what is not in these, ascending."""
    pieces = list(runs)
    for offset, data in more:
        at, end = offset, offset + len(data)
        for other, content in runs:
            if at < other < end:
                pieces.append((at, data[at - offset : other - offset]))
            if at < other + len(content) and other < end:
                at = min(max(at, other + len(content)), end)
        if at < end:
            pieces.append((at, data[at - offset :]))
    return sorted(pieces, key=lambda run: run[0])


def _parsed(data: bytes | None) -> pb.Binary | None:
    head, body = (data or b"")[: len(_MAGIC) + _HASH], (data or b"")[len(_MAGIC) + _HASH :]
    if head != _MAGIC + hashlib.sha256(body).digest():
        return None
    try:
        return pb.Binary.FromString(body)
    except DecodeError:
        return None
