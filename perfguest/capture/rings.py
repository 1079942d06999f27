# SPDX-License-Identifier: Apache-2.0
"""How large the module's rings are made, so that a reader that comes late for a while costs no sample."""

from __future__ import annotations

import os

from perfguest.capture.debugfs import ModuleSettings

#: The reader may come so much late, in seconds, while every record is as large as it can be. Stacks of kernels are mostly a few KiB deep, so usual records
#: leave it several times that.
_LATE = 0.25
#: Registers and headers of a record, in bytes, generously.
_FIXED = 1024
_USUAL, _LEAST, _MOST = 4 << 20, 1 << 20, 64 << 20
#: Of the host's memory, all rings together take at most this share.
_SHARE = 1 / 16


def record_bytes(settings: ModuleSettings) -> int:
    """The size of a sample's record at most. One whose interrupt stack and task stack are both full is larger, but no guest makes many of those."""
    return _FIXED + 2 * 8 * settings.chain_depth + settings.kernel_stack + settings.user_stack


def ring_bytes(settings: ModuleSettings, samples_a_second: int, cpus: int, memory: int | None = None) -> int:
    """The size of each CPU's ring, a power of two, for so many samples a second of each of so many CPUs. ``memory``: of the host, in bytes."""
    if memory is None:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    wanted = int(record_bytes(settings) * samples_a_second * _LATE)
    size = 1 << (max(_USUAL, wanted) - 1).bit_length()
    limit = min(_MOST, int(memory * _SHARE) // max(cpus, 1))
    while size > max(limit, _LEAST):
        size //= 2
    return size
