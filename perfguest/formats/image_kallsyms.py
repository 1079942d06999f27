# SPDX-License-Identifier: Apache-2.0
"""The kernel's own symbol table, found in its read-only data by structure.

A stripped kernel still holds all its symbols, for its own oopses and ``/proc/kallsyms``: scripts/kallsyms.c writes them,
kernel/kallsyms.c reads them. Nothing in the image says where, but each table has a shape that hardly occurs by chance:

- ``token_table``: 256 NUL-terminated pieces of names. A token of one character stands at that character's place, so the ten digits
  follow each other; ``token_index``, behind it, holds the 256 distances of the tokens from the table's start as u16.
- ``names``: per symbol a length (one byte; two of ULEB128 since Linux commit 73bbb94466fd ("kallsyms: support "big" kernel symbols"),
  v6.1) and that many bytes, each standing for a token. The first character spelled is the symbol's type, as ``nm`` prints it.
- ``markers``: u32, the distance from the start of ``names`` of every 256th symbol. They directly follow ``names``.
- ``num_syms``: u32, directly before ``names``.
- the addresses. Up to v6.3 they stand before ``num_syms``, since Linux commit 404bad70fcf7 ("scripts/kallsyms: change the output
  order") in v6.4 behind ``token_index``. They are written in one of four ways, see :func:`_addresses`.

The tables begin at multiples of 8, since v7.0 of 4. ``seqs_of_names`` (v6.2) serves lookup by name and is not needed here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]

#: More symbols than any kernel has; seqs_of_names has 24 bits for them.
MAX_SYMBOLS = 1 << 20
#: All names together, spelled, take no more bytes.
MAX_SPELLED = 128 << 20

_DIGITS = re.compile(b"".join(b"%d\\x00" % digit for digit in range(10)))
_MIN_MARKERS = 8
# Of what looks like a table so many are looked into, so that no made-up file takes hours.
_MAX_TRIES = 16
_HINT = "Give the guest's /proc/kallsyms or its System.map instead."


@dataclass(frozen=True)
class Tables:
    """All tables in one piece: ``start`` and ``end`` are addresses. ``base``: the address of ``relative_base``, the one word that is moved with the image."""

    start: int
    end: int
    base: int | None


@dataclass(frozen=True)
class ImageSymbols:
    """Symbols in ascending order of ``address`` (uint64, as linked); symbols of one address stand in the kernel's order.

    ``kind``: uint8, the type's character as ``nm`` has it (``t``, ``T``, ``W``…). ``names``: text, one per symbol. All have the same length.
    ``source``: where they come from, in words. ``tables``: where the tables lie that they were decoded from; None if their bytes are not the same wherever
    the image is moved.
    """

    address: U64
    kind: U8
    names: list[str]
    source: str
    tables: Tables | None = None

    def __len__(self) -> int:
        return len(self.names)


def decode_kallsyms(data: bytes, address: int, text_address: int, path: str) -> ImageSymbols:
    """The symbols in ``data``, the bytes of a section (or segment) that is linked at ``address``.

    ``text_address`` is where the section ``.text`` is linked: that ``_text`` (or ``_stext``) stands there tells which of the ways the
    addresses are written in is this kernel's. ``path`` is for messages. Raises :class:`FormatError` where no table is found.
    """
    # Tables are aligned in memory: let index 0 be aligned, too.
    shift = -address % 8
    body = data[shift:]
    if len(body) < 8 * _MIN_MARKERS:
        raise FormatError(f"{path}: no kernel symbol table in it", _HINT)
    found = False
    for table in _token_tables(body):
        for names_at, count, markers in _name_tables(body, table.start):
            found = True
            names = _walk_names(body, names_at, count, markers)
            if names is None:
                continue
            if _spelled_size(names, table.tokens) > MAX_SPELLED:
                raise FormatError(f"{path}: its kernel symbols have names of endless length", _HINT)
            kind, texts = _spell(names, table.tokens)
            text_symbols = _text_symbols(texts)
            for columns, way, tables in _addresses(body, address + shift, _Places(names_at, table.end, count)):
                if _right(columns, text_symbols, text_address):
                    return ImageSymbols(columns, kind, texts, f"kallsyms, {way}", tables)
    what = "a kernel symbol table in a form that is not known" if found else "no kernel symbol table in it"
    raise FormatError(f"{path}: {what}", _HINT)


@dataclass(frozen=True)
class _TokenTable:
    # Where the table starts and where token_index ends.
    start: int
    end: int
    tokens: list[bytes]


@dataclass(frozen=True)
class _Places:
    # Where the names start and token_index ends, and the number of symbols.
    names_at: int
    index_end: int
    count: int


def _token_tables(body: bytes) -> Iterator[_TokenTable]:
    for match in islice(_DIGITS.finditer(body), _MAX_TRIES):
        at = match.start()
        # From token '0' on, 256 - 0x30 tokens; none is longer than a symbol may be.
        end = at
        for _ in range(256 - ord("0")):
            end = body.find(b"\0", end, end + 1024) + 1
            if not end:
                break
        if not end:
            continue
        for index_at in {_align(end, 4), _align(end, 8)}:
            if index_at + 512 > len(body):
                continue
            index = np.frombuffer(body, "<u2", 256, index_at).astype(np.int64)
            if index[0] or np.any(np.diff(index) <= 0):
                continue
            start = at - int(index[ord("0")])
            if start < 0:
                continue
            tokens = body[start:end].split(b"\0")[:-1]
            if len(tokens) == 256 and np.array_equal(np.cumsum([len(token) + 1 for token in tokens[:-1]]), index[1:]):
                yield _TokenTable(start, index_at + 512, tokens)


def _name_tables(body: bytes, end: int) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    """(Where names start, number of symbols, markers) of what may be the tables before ``end``, each to be tried."""
    words = np.frombuffer(body, "<u4", count=end // 4).astype(np.int64)
    step = np.diff(words)
    # 256 symbols take two bytes each at least, and no compressed name comes near 512 bytes.
    good = (step >= 256 * 2) & (step <= 256 * 512)
    edges = np.diff(np.concatenate(([0], good.view(np.int8), [0])))
    starts, ends = np.flatnonzero(edges == 1), np.flatnonzero(edges == -1)
    plausible = (ends - starts >= _MIN_MARKERS) & (words[starts] == 0)
    # The longest first: it is the one in every kernel that was seen.
    order = np.argsort((starts - ends)[plausible], kind="stable")[:_MAX_TRIES]
    for first, last in zip(starts[plausible][order], ends[plausible][order], strict=True):
        yield from _before_markers(words, int(first), words[first : last + 1])


def _before_markers(words: npt.NDArray[np.int64], first: int, run: npt.NDArray[np.int64]) -> Iterator[tuple[int, int, npt.NDArray[np.int64]]]:
    # The names end right before the markers; the last marker says where at most 256 last symbols start.
    markers_at = first * 4
    latest = markers_at - int(run[-2])
    earliest = _align(markers_at - int(run[-1]) - 256 * 512, 4)
    for before in (4, 8):
        candidates = np.arange(max(before, earliest), latest + 1, 4)
        counts = words[(candidates - before) // 4]
        blocks = (counts + 255) // 256
        # The word behind the last marker may look like one more.
        fits = (blocks <= len(run)) & (blocks >= len(run) - 1) & (counts <= MAX_SYMBOLS)
        for names_at, count, used in zip(candidates[fits], counts[fits], blocks[fits], strict=True):
            yield int(names_at), int(count), run[:used]


def _walk_names(body: bytes, names_at: int, count: int, markers: npt.NDArray[np.int64]) -> list[bytes] | None:
    """The compressed names, or None where the lengths do not lead from marker to marker."""
    names = []
    at = names_at
    limit = len(body) - 2
    expected = iter(markers.tolist())
    for number in range(count):
        if not number & 0xFF and at - names_at != next(expected):
            return None
        if at >= limit:
            return None
        length = body[at]
        at += 1
        if length & 0x80:
            length = (length & 0x7F) | body[at] << 7
            at += 1
        if not length:
            return None
        names.append(body[at : at + length])
        at += length
    return names


def _spelled_size(names: list[bytes], tokens: list[bytes]) -> int:
    used = np.bincount(np.frombuffer(b"".join(names), np.uint8), minlength=256)
    return int(used @ np.array([len(token) for token in tokens]))


def _spell(names: list[bytes], tokens: list[bytes]) -> tuple[U8, list[str]]:
    token = tokens.__getitem__
    spelled = [b"".join(map(token, name)) for name in names]
    kind = np.frombuffer(b"".join([name[:1] for name in spelled]), np.uint8)
    # Tokens hold no NUL. A name that is no UTF-8 is a hostile guest's: keep its bytes readable.
    text = b"\0".join(spelled).decode("utf-8", "backslashreplace")
    return kind, [name[1:] for name in text.split("\0")]


def _text_symbols(names: list[str]) -> list[int]:
    found = []
    for name in ("_text", "_stext"):
        try:
            found.append(names.index(name))
        except ValueError:
            continue
    return found


def _addresses(body: bytes, address: int, places: _Places) -> Iterator[tuple[U64, str, Tables | None]]:
    """Columns of addresses, each with the name of the way it is written in and where its tables lie; one of them puts ``_text`` where ``.text`` is.

    The four ways, each in either place:

    - *place-relative*: s32, distance from the entry itself. Since Linux commit a081b5789255 ("kallsyms: Get rid of kallsyms relative
      base"), v7.0.
    - *base-relative with absolute per-CPU symbols*: s32; from 0 on the address itself, below 0 the distance from
      ``relative_base - 1``, downwards. x86-64 up to v6.14, where per-CPU symbols are numbers from 0 on.
    - *base-relative*: u32, distance from ``relative_base``. x86-64 v6.15 to v6.19.
    - *absolute*: u64, the address. Kernels without CONFIG_KALLSYMS_BASE_RELATIVE.

    ``relative_base`` is a u64 behind the offsets.
    """
    # Tables with a base, or before the names, are of the time when all stood at multiples of 8.
    index_end, count = places.index_end, places.count
    offsets_size, num_syms_at = _align(4 * count, 8), places.names_at - 8
    late = (index_end, index_end + offsets_size, "behind the names")
    early = (num_syms_at - 8 - offsets_size, num_syms_at - 8, "before the names")
    for offsets_at, base_at, where in (late, early):
        if offsets_at < 0 or offsets_at + 4 * count > len(body):
            continue
        signed = np.frombuffer(body, "<i4", count, offsets_at).astype(np.int64)
        offsets = signed.view(np.uint64)
        own_places = np.arange(count, dtype=np.uint64) * np.uint64(4) + np.uint64((address + offsets_at) % (1 << 64))
        start, end = address + min(offsets_at, num_syms_at), address + max(index_end, offsets_at + 4 * count)
        yield offsets + own_places, f"place-relative, {where}", Tables(start, end, None)
        if base_at + 8 <= len(body):
            base = np.frombuffer(body, "<u8", 1, base_at)
            based = Tables(start, address + max(index_end, base_at + 8), address + base_at)
            yield np.where(signed >= 0, offsets, base - np.uint64(1) - offsets), f"base-relative with absolute per-CPU symbols, {where}", based
            yield base + (offsets & np.uint64(0xFFFFFFFF)), f"base-relative, {where}", based
    for addresses_at, where in ((index_end, "behind the names"), (num_syms_at - 8 * count, "before the names")):
        if 0 <= addresses_at <= len(body) - 8 * count:
            yield np.frombuffer(body, "<u8", count, addresses_at).astype(np.uint64), f"absolute, {where}", None


def _right(column: U64, text_symbols: list[int], text_address: int) -> bool:
    return any(int(column[symbol]) == text_address for symbol in text_symbols) and not np.any(column[1:] < column[:-1])


def _align(value: int, to: int) -> int:
    return (value + to - 1) & -to
