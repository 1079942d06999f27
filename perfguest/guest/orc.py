# SPDX-License-Identifier: Apache-2.0
"""ORC unwind tables in a guest's memory: Documentation/arch/x86/orc-unwinder.rst.

Per entry a signed 32-bit distance from its own place to the instruction from which the entry holds, and 6 bytes, ``struct orc_entry``. Both tables are sorted
by instruction: the kernel's at build time (scripts/sorttable.c), a module's when it is loaded.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from perfguest.errors import FormatError
from perfguest.proto import guest_pb2

#: Debian's kernels have about a million entries.
MAX_ENTRIES = 8 << 20
ENTRY_SIZE = 6


def read_orc(read: Callable[[int, int], bytes], places: int, entries: int, count: int, moved: int = 0) -> guest_pb2.Orc:
    """The table of ``count`` entries with its distances at ``places``. ``moved`` is taken off the addresses.

    Raises :class:`FormatError` if it makes no sense, and what ``read`` raises.
    """
    if not 0 < count <= MAX_ENTRIES:
        raise FormatError(f"an ORC table of {count} entries")
    distances = np.frombuffer(read(places, 4 * count), "<i4").astype(np.int64).view(np.uint64)
    addresses = distances + np.arange(count, dtype=np.uint64) * np.uint64(4) + np.uint64((places - moved) % (1 << 64))
    if np.any(addresses[1:] < addresses[:-1]) or int(addresses[0]) >> 63 == 0:
        raise FormatError("an ORC table that is not in order")
    return guest_pb2.Orc(addresses=addresses.astype("<u8").tobytes(), entries=read(entries, ENTRY_SIZE * count))
