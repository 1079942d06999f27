# SPDX-License-Identifier: Apache-2.0
"""A guest's kernel memory for the length of one question: read in pages, each once, and no more than so many, for so long."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from perfguest.guest.kernel import GuestUnreadable, LiveKernel
from perfguest.guest.layout import Layout
from perfguest.guest.memory import PAGE, GuestFault

_TOP = 1 << 64
_T = TypeVar("_T")


class Exhausted(GuestUnreadable):
    """Reading took more than it may."""


class View:
    """Kernel memory and structures of a guest. A read raises :class:`GuestFault` if memory is not there, and :class:`Exhausted` once ``seconds`` of CPU time or
    ``pages`` are spent, so that no list or tree of a guest's holds its reader up."""

    def __init__(self, kernel: LiveKernel, *, seconds: float = 2.0, pages: int = 50_000) -> None:
        self.kernel = kernel
        self.layout = Layout.of(kernel)
        self._pages: dict[int, bytes] = {}
        self._left = pages
        self._end = time.process_time() + seconds
        self._direct: int | None = None
        if base := kernel.address_of("page_offset_base"):
            self._direct = int.from_bytes(kernel.read(base, 8), "little")

    def forget(self) -> None:
        """Reads anew from here on: what was kept may have changed."""
        self._pages.clear()

    def spend(self, pages: int = 1) -> None:
        """Counts work that may be without end in a hostile guest. Raises Exhausted when it was too much."""
        self._left -= pages
        if self._left < 0 or time.process_time() > self._end:
            raise Exhausted("reading took too long")

    def read(self, address: int, size: int) -> bytes:
        """``size`` bytes from the kernel's virtual ``address`` on."""
        if not _TOP >> 1 <= address <= _TOP - size:
            raise GuestFault("no kernel address", address)
        offset = address % PAGE
        if offset + size <= PAGE:
            return self._page(address - offset)[offset : offset + size]
        parts = []
        while size:
            offset = address % PAGE
            parts.append(self._page(address - offset)[offset : offset + size])
            address, size = address + len(parts[-1]), size - len(parts[-1])
        return b"".join(parts)

    def word(self, address: int) -> int:
        """The 64 bits at ``address``."""
        return int.from_bytes(self.read(address, 8), "little")

    def get(self, address: int, structure: str, *members: str) -> int:
        """The number in the first of the ``members`` that ``struct structure`` has, of the structure at ``address``."""
        offset, size = self.layout.field(structure, *members)
        if size > 8:
            raise GuestUnreadable(f"{members[0]} in the guest's struct {structure} is no number")
        return int.from_bytes(self.read(address + offset, size), "little")

    def at(self, address: int, structure: str, *members: str) -> int:
        """The address of a member of the structure at ``address``."""
        return address + self.layout.offset(structure, *members)

    def string(self, address: int, limit: int) -> bytes:
        """The bytes from ``address`` to the next NUL, no more than ``limit``."""
        out = b""
        while len(out) < limit:
            part = self.read(address, min(PAGE - address % PAGE, limit - len(out)))
            head, nul, _ = part.partition(b"\0")
            out += head
            if nul:
                break
            address += len(part)
        return out

    def user(self, cr3: int, address: int, limit: int) -> bytes:
        """User memory from ``address`` on, by the page table at the physical address ``cr3``: ``limit`` bytes, or fewer where a page is not there."""
        out = b""
        while len(out) < limit and address < _TOP >> 1:
            self.spend()
            part = min(PAGE - address % PAGE, limit - len(out))
            try:
                out += self.kernel.memory.read_virtual(cr3, address, part)
            except GuestFault:
                break
            address += part
        return out

    def physical(self, address: int) -> int:
        """Where the kernel's virtual ``address`` is in guest-physical memory."""
        # Behind the memory there is, KASLR puts vmalloc's area and vmemmap, at whatever distance.
        if self._direct is not None and self.kernel.memory.holds(address - self._direct):
            return address - self._direct
        return self.kernel.memory.translate(self.kernel.kernel_cr3, address)

    def _page(self, address: int) -> bytes:
        if address not in self._pages:
            self.spend()
            self._pages[address] = self.kernel.memory.read(self.physical(address), PAGE)
        return self._pages[address]


def unless_unreadable(problems: list[str], what: str, read: Callable[[], _T], instead: _T) -> _T:
    """What ``read`` gives, or ``instead`` where the guest's memory makes no sense, which is told in ``problems``: one part is not to cost the others.

    That nothing more may be read (:class:`Exhausted`) is the caller's affair.
    """
    try:
        return read()
    except Exhausted:
        raise
    except (GuestFault, GuestUnreadable) as error:
        problems.append(f"{what}: {error.message}")
        return instead
