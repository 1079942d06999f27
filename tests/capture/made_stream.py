# SPDX-License-Identifier: Apache-2.0
"""Records as the module writes them, by the format text of a stream that it wrote."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from perfguest.formats.guest_format import parse_format
from perfguest.formats.guest_stream import Memslot

_DATA = lzma.decompress((Path(__file__).parents[1] / "formats/data/lab.stream.xz").read_bytes())
FORMAT = _DATA[24 : 24 + struct.unpack_from("<I", _DATA, 20)[0]]
#: The records of that stream.
RECORDS = _DATA[-(-(24 + len(FORMAT)) // 8) * 8 :]

_LAYOUTS = parse_format(FORMAT.decode())
USER, LONG_MODE, CR3, TASK = 1 << 0, 1 << 1, 1 << 9, 1 << 12


def vm_record(vm_id: int, pid: int, lstar: int, slots: Iterable[Memslot], time: int = 1000) -> bytes:
    record = np.zeros(1, _LAYOUTS["vm"].dtype)
    made = np.array([(slot.gpa, slot.size, slot.hva, 0, 0) for slot in slots], _LAYOUTS["memslot"].dtype)
    size = record.nbytes + made.nbytes
    for name, value in (("type", 2), ("size", size), ("time", time), ("vm_id", vm_id), ("vm_pid", pid), ("nr_memslots", len(made)), ("lstar", lstar)):
        record[name] = value
    return record.tobytes() + made.tobytes()


def sample(
    vm_id: int, cr3: int, *, user: bool = False, ip: int = 0, task: tuple[int, int, int, bytes] | None = None, time: int = 2000, la57: bool = False
) -> bytes:
    """``task``: (pid, tgid, start, comm)."""
    record = np.zeros(1, _LAYOUTS["sample"].dtype)
    flags = LONG_MODE | CR3 | (USER if user else 0) | (TASK if task else 0)
    values = {"type": 1, "size": record.nbytes, "time": time, "vm_id": vm_id, "flags": flags, "cr3": cr3, "ip": ip, "cr4": la57 << 12}
    if task:
        values |= dict(zip(("task_pid", "task_tgid", "task_start", "task_comm"), task, strict=True))
    for name, value in values.items():
        record[name] = value
    return record.tobytes()
