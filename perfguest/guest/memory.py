# SPDX-License-Identifier: Apache-2.0
"""Guest memory, as the VMM's address space has it: guest-physical reads through the memslots, and walks of the guest's page tables.

The guest runs on while it is read, and may mean harm. So nothing here trusts what it reads: each walk ends after as many steps as
there are levels, and each read is bounded before memory is taken for it.
"""

from __future__ import annotations

import errno
import os
import struct
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from perfguest.errors import PerfguestError
from perfguest.formats.guest_stream import Memslot

#: The most that one call reads, in bytes.
MAX_READ = 256 << 20
PAGE = 4096

#: Bits of a page table entry: Intel SDM volume 3A, 4.5; AMD APM volume 2, 5.3.
PRESENT, LARGE, ADDRESS = 1, 0x80, 0x000F_FFFF_FFFF_F000

#: Why nothing more can be read, in the words that everybody uses for it.
VM_ENDED = "the VM ended while it was read"
#: Why memory that KVM has in a slot cannot be read.
TAKEN_AWAY = "the VM took memory away while it was read"

_WORD = struct.Struct("<Q")


class GuestFault(PerfguestError):
    """The guest has no memory at an address, or it cannot be read. ``address``: guest-physical or virtual, as asked for; ``what``: the words without it."""

    def __init__(self, message: str, address: int) -> None:
        super().__init__(f"{message} at {address:#x}")
        self.what = message
        self.address = address


class VmEnded(PerfguestError):
    """There is no VM any more. No GuestFault, for whoever leaves out what cannot be read: now nothing can."""

    def __init__(self) -> None:
        super().__init__(VM_ENDED)


@dataclass(frozen=True)
class Piece:
    """Guest-virtual memory that one page table entry maps, in bytes."""

    gva: int
    gpa: int
    size: int


class GuestMemory:
    """A guest's memory, read from ``fd`` (``/proc/PID/mem`` of the VMM) where ``slots`` have it. ``la57``: the guest's page tables have five levels.

    ``taken_away``: whether a slot's memory could not be read, since whoever cares set it to False. Each read raises :class:`VmEnded` once there is no VM.
    """

    def __init__(self, fd: int, slots: Sequence[Memslot], la57: bool = False) -> None:
        self.fd = fd
        self.la57 = la57
        self.taken_away = False
        self.slots = sorted((slot for slot in slots if slot.size > 0), key=lambda slot: slot.gpa)
        self._starts = [slot.gpa for slot in self.slots]

    def holds(self, gpa: int) -> bool:
        """Whether there is guest-physical memory at this address."""
        at = bisect_right(self._starts, gpa) - 1
        return at >= 0 and gpa < self.slots[at].gpa + self.slots[at].size

    def read(self, gpa: int, size: int) -> bytes:
        """``size`` bytes of guest-physical memory. Raises :class:`GuestFault` if one of them is not there."""
        if not 0 <= size <= MAX_READ:
            raise GuestFault(f"{size} bytes are too many to read", gpa)
        data = bytearray(size)
        self.read_into(gpa, memoryview(data))
        return bytes(data)

    def read_into(self, gpa: int, view: memoryview) -> None:
        """Fills ``view`` with guest-physical memory. Raises :class:`GuestFault` if a byte of it is not there."""
        done = 0
        while done < len(view):
            slot = self._slot(gpa + done)
            part = min(len(view) - done, slot.gpa + slot.size - gpa - done)
            self._pread_into(slot, gpa + done, view[done : done + part])
            done += part

    def translate(self, cr3: int, gva: int) -> int:
        """Where ``gva`` is in guest-physical memory by the page tables that CR3 points to. Raises :class:`GuestFault` if it is not mapped."""
        piece = self._walk(cr3, gva, {})
        return piece.gpa + gva - piece.gva

    def read_virtual(self, cr3: int, gva: int, size: int) -> bytes:
        """``size`` bytes from the guest-virtual address on. Raises :class:`GuestFault` if one of them is not mapped or not there."""
        if not 0 <= size <= MAX_READ:
            raise GuestFault(f"{size} bytes are too many to read", gva)
        return b"".join(self.read(gpa, part) for gpa, part in self._runs(cr3, gva, size))

    def read_virtual_into(self, cr3: int, gva: int, view: memoryview) -> None:
        """Fills ``view`` from the guest-virtual address on. Raises :class:`GuestFault` if a byte of it is not mapped or not there."""
        done = 0
        for gpa, part in self._runs(cr3, gva, len(view)):
            self.read_into(gpa, view[done : done + part])
            done += part

    def table(self, entry: int) -> Sequence[int]:
        """The 512 entries of the page table that an entry (or CR3) points to."""
        return struct.unpack("<512Q", self.read(entry & ADDRESS, PAGE))

    def _slot(self, gpa: int) -> Memslot:
        if not self.holds(gpa):
            raise GuestFault("no guest memory", gpa)
        return self.slots[bisect_right(self._starts, gpa) - 1]

    def _pread_into(self, slot: Memslot, gpa: int, view: memoryview) -> None:
        hva, done = slot.hva + gpa - slot.gpa, 0
        while done < len(view):
            try:
                count = os.preadv(self.fd, [view[done:]], hva + done)
            except (OSError, OverflowError) as error:
                if isinstance(error, OSError) and error.errno == errno.EIO:
                    # Nothing is mapped there in the VMM.
                    self.taken_away = True
                    raise GuestFault(TAKEN_AWAY, gpa + done) from error
                reason = error.strerror if isinstance(error, OSError) else "no such address"
                raise GuestFault(f"guest memory cannot be read: {reason}", gpa + done) from error
            if not count:
                # The descriptor keeps no address space alive: of a process that has none any more there are no bytes (mem_rw() in fs/proc/base.c).
                raise VmEnded
            done += count

    def _walk(self, cr3: int, gva: int, tables: dict[int, Sequence[int]]) -> Piece:
        # ``tables`` keeps what was read, for one call only: the guest changes its tables.
        entry = cr3
        for shift in (48, 39, 30, 21, 12) if self.la57 else (39, 30, 21, 12):
            table = entry & ADDRESS
            if table not in tables:
                try:
                    tables[table] = self.table(table)
                except GuestFault as fault:
                    if self.holds(table):
                        raise
                    raise GuestFault("a page table is not in guest memory", gva) from fault
            entry = tables[table][gva >> shift & 511]
            if not entry & PRESENT:
                raise GuestFault("not mapped", gva)
            if shift == 12 or (shift in {21, 30} and entry & LARGE):
                size = 1 << shift
                return Piece(gva & -size, entry & ADDRESS & -size, size)
        raise AssertionError("unreachable")

    def _runs(self, cr3: int, gva: int, size: int) -> Iterator[tuple[int, int]]:
        """(guest-physical address, size) of what is mapped in one piece or in pieces that follow each other."""
        tables: dict[int, Sequence[int]] = {}
        start = length = 0
        while size:
            piece = self._walk(cr3, gva, tables)
            gpa, part = piece.gpa + gva - piece.gva, min(size, piece.gva + piece.size - gva)
            if length and start + length == gpa:
                length += part
            else:
                if length:
                    yield start, length
                start, length = gpa, part
            gva, size = gva + part, size - part
        if length:
            yield start, length
