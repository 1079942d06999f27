# SPDX-License-Identifier: Apache-2.0
"""A perf.data of samples that hit a guest, as ``perf record -e cpu-clock:GH`` writes it (tools/perf/Documentation/perf.data-file-format.txt)."""

from __future__ import annotations

import struct
from collections.abc import Iterable

# PERF_SAMPLE_IP, TID, TIME, CPU, PERIOD; PERF_TYPE_SOFTWARE, PERF_COUNT_SW_CPU_CLOCK; PERF_RECORD_MISC_GUEST_KERNEL and _USER.
_SAMPLE_TYPE = 1 << 0 | 1 << 1 | 1 << 2 | 1 << 7 | 1 << 8
_SOFTWARE, _CPU_CLOCK = 1, 0
_GUEST_KERNEL, _GUEST_USER = 4, 5
_COMM, _SAMPLE = 3, 9
_PERIOD = 1_000_000
_HEADER, _ATTR = 104, 128


def perf_data(pid: int, tid: int, samples: Iterable[tuple[int, int, bool]]) -> bytes:
    """Of one VMM's thread. ``samples``: (time in ns, IP, whether it hit user mode), all on CPU 0."""
    comm = b"qemu-system-x86\0"
    records = struct.pack("<IHHII", _COMM, 0, 16 + len(comm), pid, tid) + comm
    for time, ip, user in samples:
        records += struct.pack("<IHH", _SAMPLE, _GUEST_USER if user else _GUEST_KERNEL, 8 + 5 * 8)
        records += struct.pack("<QIIQIIQ", ip, pid, tid, time, 0, 0, _PERIOD)
    attr = struct.pack("<IIQQQ", _SOFTWARE, _ATTR, _CPU_CLOCK, _PERIOD, _SAMPLE_TYPE)
    attr += bytes(_ATTR - len(attr)) + struct.pack("<QQ", 0, 0)
    head = struct.pack("<8sQQ6Q32s", b"PERFILE2", _HEADER, len(attr), _HEADER, len(attr), _HEADER + len(attr), len(records), 0, 0, b"")
    return head + attr + records
