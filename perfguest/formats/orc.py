# SPDX-License-Identifier: Apache-2.0
"""ORC unwind tables of a kernel and its modules (Documentation/arch/x86/orc-unwinder.rst), out of memory, files and snapshots.

Per entry a signed 32-bit distance from its own place to the instruction from which the entry holds (``.orc_unwind_ip``), and 6 bytes, ``struct orc_entry``
(``.orc_unwind``). In memory both are sorted by instruction: the kernel's at build time (scripts/sorttable.c), a module's when it is loaded. A module's file
has them in the order of its sections.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.proto import guest_pb2

U64 = npt.NDArray[np.uint64]

#: Debian's kernels have about a million entries.
MAX_ENTRIES = 8 << 20
ENTRY_SIZE = 6

# ``.orc_header`` (scripts/orc_hash.sh) of each definition of struct orc_entry that has been released with one.
_HEADERS = {
    "db84aed4103b31dd51e017f8f79783ca985c2c51": "of Linux 6.3",
    "fe5d32bf581bd63b2ca9a5c65ba5a625eab3fe24": "of Linux 6.4 to 7.0",
    # Registers have other numbers.
    "137c36ad7627c4dd55932176bb0ecdbd5041fc82": "of Linux 7.1 and later",
}
_NO_ORDER = "an ORC table that is not in order"


def orc_addresses(distances: bytes, place: int) -> U64:
    """The instructions that ``.orc_unwind_ip`` means: uint64, in the table's order. ``place``: the address of its first byte."""
    count = len(distances) // 4
    words = np.frombuffer(distances, "<i4", count).astype(np.int64).view(np.uint64)
    return words + np.arange(count, dtype=np.uint64) * np.uint64(4) + np.uint64(place % (1 << 64))


def read_orc(read: Callable[[int, int], bytes], places: int, entries: int, count: int, moved: int = 0) -> guest_pb2.Orc:
    """The table of ``count`` entries with its distances at ``places``. ``moved`` is taken off the addresses.

    Raises :class:`FormatError` if it makes no sense, and what ``read`` raises.
    """
    if not 0 < count <= MAX_ENTRIES:
        raise FormatError(f"an ORC table of {count} entries")
    addresses = orc_addresses(read(places, 4 * count), places - moved)
    if _unordered(addresses):
        raise FormatError(_NO_ORDER)
    return guest_pb2.Orc(addresses=addresses.astype("<u8").tobytes(), entries=read(entries, ENTRY_SIZE * count))


def decode_orc(message: guest_pb2.Orc, what: str) -> tuple[U64, bytes]:
    """(Addresses, uint64 and ascending; 6 bytes for each.) Raises :class:`FormatError` where they do not fit together. ``what`` stands in messages."""
    count = len(message.addresses) // 8
    if len(message.addresses) != 8 * count or len(message.entries) != ENTRY_SIZE * count or count > MAX_ENTRIES:
        raise FormatError(f"the ORC table of {what} does not fit together")
    addresses = np.frombuffer(message.addresses, "<u8").astype(np.uint64)
    if count and _unordered(addresses):
        raise FormatError(f"{what}: {_NO_ORDER}")
    return addresses, message.entries


def _unordered(addresses: U64) -> bool:
    return bool(np.any(addresses[1:] < addresses[:-1])) or int(addresses[0]) >> 63 == 0


def layout_of_header(header: bytes) -> str:
    """The layout of the entries in words. ``header``: the 20 bytes of ``.orc_header``, empty in kernels before 6.4."""
    if not header:
        return "of Linux 6.3 or earlier"
    return _HEADERS.get(header.hex(), "not known")


def sort_orc(addresses: U64, entries: bytes) -> tuple[U64, bytes]:
    """Both in the order of the addresses, as the kernel has them in memory.

    Of two entries at one address the one that ends a section, six zeros, stands first, so that the code that begins there has its own
    (orc_sort_cmp() in arch/x86/kernel/unwind_orc.c).
    """
    rows = np.frombuffer(entries, np.uint8).reshape(-1, ENTRY_SIZE)
    order = np.lexsort((rows.any(axis=1), addresses))
    return addresses[order], rows[order].tobytes()
