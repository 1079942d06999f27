# SPDX-License-Identifier: Apache-2.0
"""A kernel's tables, decoded once for all guests that run it.

What they are decoded from is read-only in the kernel, and the same bytes wherever KASLR put it: :func:`raw_of` takes those bytes out of the first guest,
:func:`decode` makes the tables of nothing but them, and :func:`find` and :func:`check` hold the next guest's memory against them. Bytes for bytes equal means
tables equal, so whatever guest the tables came from, no other can be given anything that its own memory does not say. :func:`decode` is to run in a process
that has seen no guest but these bytes.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from perfguest.errors import FormatError
from perfguest.formats.btf import BtfTable
from perfguest.formats.guest_snapshot import FORMAT_VERSION
from perfguest.formats.orc import ENTRY_SIZE, read_orc
from perfguest.guest import wire
from perfguest.guest.image import START_KERNEL_MAP, build_id_note
from perfguest.guest.kallsyms import Symbols, move
from perfguest.guest.kallsyms import decode as decode_symbols
from perfguest.guest.memory import GuestFault
from perfguest.guest.vmcoreinfo import release_in
from perfguest.proto import guest_pb2, tables_pb2

#: The pieces, and the most bytes of each.
PIECES = {"notes": 1 << 16, "banner": 1 << 10, "symbols": 32 << 20, "btf": 64 << 20, "orc_places": 32 << 20, "orc_entries": 48 << 20}
_ENTRY = "entry_SYSCALL_64"
_BANNER_BYTES = 160
# CONFIG_PHYSICAL_ALIGN, by which KASLR moves a kernel, is a multiple of it on x86-64.
_KASLR_STEP = 2 << 20
_KASLR_END = 1 << 30
_WORD = struct.Struct("<Q")

Read = Callable[[int, int], bytes]


@dataclass(frozen=True)
class Candidate:
    """A kernel whose tables are known by ``mark``, its fingerprint: ``entry`` and ``notes`` (address and size) as linked."""

    mark: str
    build_id: bytes
    entry: int
    notes: tuple[int, int]


def raw_of(symbols: Symbols, offset: int, read: Read) -> tables_pb2.KernelRaw | None:
    """The pieces of a kernel that KASLR moved by ``offset``, read by ``read(address, size)``. None for one that has no such tables. Raises GuestFault."""
    bounds = [
        ("notes", symbols.address_of("__start_notes"), symbols.address_of("__stop_notes")),
        ("btf", symbols.address_of("__start_BTF"), symbols.address_of("__stop_BTF")),
        ("orc_places", symbols.address_of("__start_orc_unwind_ip"), symbols.address_of("__stop_orc_unwind_ip")),
        ("orc_entries", symbols.address_of("__start_orc_unwind"), symbols.address_of("__stop_orc_unwind")),
    ]
    entry, banner, tables = symbols.address_of(_ENTRY), symbols.address_of("linux_banner"), symbols.tables
    text = symbols.address_of("_text") or symbols.address_of("_stext")
    if entry is None or banner is None or tables is None or text is None or not 0 <= offset <= min(entry, text):
        return None
    raw = tables_pb2.KernelRaw(entry=entry - offset, text=text - offset)
    for name, start, end in [*bounds, ("banner", banner, banner + _BANNER_BYTES), ("symbols", tables.start, tables.end)]:
        if start is None or end is None or end <= start:
            if name.startswith("orc"):
                continue
            return None
        moved = tables.base - start + 1 if name == "symbols" and tables.base is not None else 0
        piece = tables_pb2.Piece(address=(start - offset) % (1 << 64), size=end - start, moved=moved)
        if piece.size > PIECES[name] or piece.address < START_KERNEL_MAP:
            return None
        piece.data = _unmoved(read(start, piece.size), piece, offset)
        getattr(raw, name).CopyFrom(piece)
    return raw


def check_raw(raw: tables_pb2.KernelRaw) -> None:
    """Raises :class:`FormatError` unless the pieces are what :func:`raw_of` gives, or that without their data."""
    for name, most in PIECES.items():
        piece = getattr(raw, name)
        if not piece.size and name.startswith("orc"):
            if piece.data or piece.moved:
                raise FormatError(f"a piece of nothing of a kernel's {name}")
            continue
        if not 0 < piece.size <= most or not START_KERNEL_MAP <= piece.address <= (1 << 64) - piece.size:
            raise FormatError(f"{piece.size} bytes of a kernel's {name}")
        if len(piece.data) not in {0, piece.size} or (piece.moved and (name != "symbols" or piece.moved + 7 > piece.size)):
            raise FormatError(f"pieces of a kernel's {name} that do not fit together")
    if not START_KERNEL_MAP <= raw.text < raw.entry < START_KERNEL_MAP + _KASLR_END:
        raise FormatError("an impossible syscall entry")


def hashes(raw: tables_pb2.KernelRaw) -> tables_pb2.KernelRaw:
    """The same with hashes instead of data."""
    result = tables_pb2.KernelRaw(entry=raw.entry, text=raw.text)
    for name in PIECES:
        piece = getattr(raw, name)
        if piece.size:
            digest = hashlib.sha256(piece.data).digest()
            getattr(result, name).CopyFrom(tables_pb2.Piece(address=piece.address, size=piece.size, moved=piece.moved, sha256=digest))
    return result


def decode(raw: tables_pb2.KernelRaw) -> tables_pb2.KernelTables:
    """The tables that these pieces spell. Raises :class:`FormatError` if they make no sense."""
    check_raw(raw)
    symbols = decode_symbols(raw.symbols.data, raw.symbols.address, raw.text)
    kernel = guest_pb2.Kernel(release=release_in(raw.banner.data), build_id=build_id_note(raw.notes.data))
    kernel.symbols.addresses, kernel.symbols.types = symbols.addresses.astype("<u8").tobytes(), symbols.types
    kernel.symbols.names = symbols.spelled
    if raw.orc_places.size:
        places, entries = raw.orc_places, raw.orc_entries
        if places.size // 4 * ENTRY_SIZE == entries.size:
            data = {places.address: places.data, entries.address: entries.data}
            kernel.orc.CopyFrom(read_orc(lambda address, size: data[address][:size], places.address, entries.address, places.size // 4))
    if not kernel.build_id or not kernel.release or symbols.address_of(_ENTRY) != raw.entry:
        raise FormatError("a kernel without a name")
    return tables_pb2.KernelTables(
        format_version=FORMAT_VERSION,
        fingerprint=wire.fingerprint(kernel),
        release=kernel.release,
        build_id=kernel.build_id,
        raw=hashes(raw),
        addresses=kernel.symbols.addresses,
        types=symbols.types,
        names=symbols.spelled,
        btf_places=BtfTable(raw.btf.data).places[1:].astype("<u4").tobytes(),
    )


def find(read: Callable[[int, int, int], bytes], table: int, lstar: int, candidates: Sequence[Candidate]) -> Iterator[tuple[Candidate, int]]:
    """(Candidate, distance that KASLR moved it) of those that the guest may run: the build id is where they have it, by the syscall entry at LSTAR.

    ``read(page table, address, size)`` reads the guest's memory.
    """
    for candidate in candidates:
        offset = lstar - candidate.entry
        if offset % _KASLR_STEP or not 0 <= offset < _KASLR_END:
            continue
        address, size = candidate.notes
        try:
            notes = read(table, address + offset, size)
        except GuestFault:
            continue
        if build_id_note(notes) == candidate.build_id:
            yield candidate, offset


def check(raw: tables_pb2.KernelRaw, offset: int, read_into: Callable[[int, memoryview], None]) -> bytes:
    """Holds a guest's memory against pieces given by their hashes; gives its BTF. Raises :class:`FormatError` where they differ, and GuestFault.

    ``read_into(address, view)`` fills the view.
    """
    check_raw(raw)
    btf = b""
    # One buffer for all: new memory costs more than reading.
    with memoryview(bytearray(max(getattr(raw, name).size for name in PIECES))) as buffer:
        for name in PIECES:
            piece = getattr(raw, name)
            if not piece.size:
                continue
            view = buffer[: piece.size]
            read_into(piece.address + offset, view)
            if piece.moved:
                (word,) = _WORD.unpack_from(view, piece.moved - 1)
                _WORD.pack_into(view, piece.moved - 1, (word - offset) % (1 << 64))
            if hashlib.sha256(view).digest() != piece.sha256:
                raise FormatError(f"another kernel's {name}")
            if name == "btf":
                btf = bytes(view)
    return btf


def symbols_of(tables: tables_pb2.KernelTables, offset: int) -> Symbols:
    """The symbols where ``offset`` has moved them. Raises :class:`FormatError` for columns that do not fit together."""
    # Each look at a field of a message copies it.
    addresses = tables.addresses
    if len(addresses) % 8:
        raise FormatError("symbols that do not fit together")
    return Symbols(move(np.frombuffer(addresses, "<u8"), offset), tables.types, tables.names)


def _unmoved(data: bytes, piece: tables_pb2.Piece, offset: int) -> bytes:
    if not piece.moved:
        return data
    at = piece.moved - 1
    return data[:at] + _WORD.pack((_WORD.unpack_from(data, at)[0] - offset) % (1 << 64)) + data[at + _WORD.size :]
