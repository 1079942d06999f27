# SPDX-License-Identifier: Apache-2.0
"""Which layout a kernel's ORC entries have (arch/x86/include/asm/orc_types.h).

An entry has been 6 bytes ever since Linux 4.14: int16 sp_offset, int16 bp_offset, and 16 bits of flags. Of those sp_reg:4 and bp_reg:4 stayed; behind them

    ORC_V1  v4.14  type:2
    ORC_V2  v4.19  type:2 end:1             "x86/unwind/orc: Detect the end of the stack"; also in long-term releases of v4.14
    ORC_V3  v5.12  type:2 end:1             87ccc826bf1c ("x86/unwind/orc: Change REG_SP_INDIRECT"): the same bits, another meaning of one register
    ORC_V4  v6.3   type:2 signal:1 end:1    ffb1b4a41016 ("x86/unwind/orc: Add 'signal' field to ORC metadata")
    ORC_V5  v6.4   type:3 signal:1          fb799447ae29 ("x86,objtool: Split UNWIND_HINT_EMPTY in two")
    ORC_V6  v7.1    type:3 signal:1         the same bits, other numbers for registers

Nearly all entries are those of calls. Their type was 0 until V5 made it 2, so that V5 is told by counting. In V4, entries with bit 11 end the stack; before it,
nothing used that bit. The rest tells nothing that a table must have, and the release decides. Most calls are found by SP, which
is register 5 until V6 makes it 3 (5 being DI, which hardly occurs), so that V6 is told by counting, too.
"""

from __future__ import annotations

import re

import numpy as np

from perfguest.unwind._native import ORC_V1, ORC_V2, ORC_V3, ORC_V4, ORC_V5, ORC_V6

ENTRY = np.dtype([("sp_offset", "<i2"), ("bp_offset", "<i2"), ("flags", "<u2")])

_TYPE_CALL_V5 = 2
_SP_V6, _SP_BEFORE = 3, 5
_SINCE = ((7, 1, ORC_V6), (6, 4, ORC_V5), (6, 3, ORC_V4), (5, 12, ORC_V3), (4, 19, ORC_V2))


def orc_layout(release: str, entries: bytes) -> int:
    """The layout (ORC_V1 to ORC_V6) of a table's entries.

    Args:
        release: as uname -r gives it ("6.1.0-50-amd64"). Decides what the entries leave open; anything else than numbers counts as the newest.
        entries: .orc_unwind, 6 bytes each; best the kernel's own, not a small module's.
    """
    flags = np.frombuffer(entries, ENTRY, count=len(entries) // ENTRY.itemsize)["flags"]
    by_release = _layout_of_release(release)
    if not flags.size:
        return by_release
    if np.count_nonzero(flags >> 8 & 7 == _TYPE_CALL_V5) * 2 > flags.size:
        base = flags & 15
        return ORC_V6 if np.count_nonzero(base == _SP_V6) > np.count_nonzero(base == _SP_BEFORE) else ORC_V5
    if np.any(flags >> 11 & 1):
        return ORC_V4
    # Neither many calls of type 2 nor an end in bit 11: not V5, not V4 but for a table without an end.
    latest = ORC_V4 if by_release == ORC_V4 else ORC_V3
    # Bit 10 came with V2, also to releases that were V1 first.
    earliest = ORC_V2 if np.any(flags >> 10 & 1) else ORC_V1
    return max(earliest, min(latest, by_release))


def _layout_of_release(release: str) -> int:
    numbers = re.match(r"(\d+)\.(\d+)", release)
    if not numbers:
        return ORC_V6
    version = int(numbers[1]), int(numbers[2])
    return next((layout for major, minor, layout in _SINCE if version >= (major, minor)), ORC_V1)
