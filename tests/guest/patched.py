# SPDX-License-Identifier: Apache-2.0
"""Guest memory as it was at one moment, in which a test writes what a hostile guest would."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping

from perfguest.formats.guest_stream import Memslot
from perfguest.guest.memory import GuestMemory


def memory_of(pieces: Mapping[int, bytes]) -> GuestMemory:
    """Guest memory of (guest-physical address: bytes), behind a real file descriptor."""
    fd = os.memfd_create("guest")
    slots, at = [], 4096
    for gpa, data in pieces.items():
        os.pwrite(fd, data, at)
        slots.append(Memslot(gpa, len(data), at))
        at += len(data)
    return GuestMemory(fd, slots)


def copy_of(memory: GuestMemory) -> GuestMemory:
    """A copy of all of a guest's memory, to be written to with :func:`write`."""
    copied = memory_of({slot.gpa: memory.read(slot.gpa, slot.size) for slot in memory.slots})
    copied.la57 = memory.la57
    return copied


def write(memory: GuestMemory, gpa: int, data: bytes) -> None:
    """Writes to memory that is one of ours."""
    slot = next(slot for slot in memory.slots if slot.gpa <= gpa < slot.gpa + slot.size)
    os.pwrite(memory.fd, data, slot.hva + gpa - slot.gpa)


def close(memories: Iterable[GuestMemory]) -> None:
    """Lets go of memory that is ours."""
    for memory in memories:
        os.close(memory.fd)
