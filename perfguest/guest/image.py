# SPDX-License-Identifier: Apache-2.0
"""The kernel's image in a guest's memory: what its page tables map around LSTAR.

x86-64 kernels map their text, data and bss in one piece somewhere in the 1 GiB from 0xffffffff80000000 on (Documentation/arch/x86/x86_64/mm.rst), and
unmap what is before and behind it (cleanup_highmap() in arch/x86/mm/init_64.c). Modules are elsewhere.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from perfguest.guest.memory import ADDRESS, LARGE, PAGE, PRESENT, GuestFault, GuestMemory, Piece

#: The most that is taken for an image, in bytes: Debian's are about 50 MB.
MAX_IMAGE = 160 << 20
#: Where the kernel's half of the 1 GiB begins: __START_KERNEL_map.
START_KERNEL_MAP = 0xFFFF_FFFF_8000_0000

_GIB, _LARGE_PAGE = 1 << 30, 2 << 20
# What is mapped beyond such a gap is not the image.
_MAX_GAP = 64 << 20


@dataclass(frozen=True)
class KernelImage:
    """``data``: the image from ``base``, its first byte's guest-virtual address, on; zeros where nothing is mapped."""

    base: int
    data: bytearray

    @property
    def end(self) -> int:
        """Behind the last byte."""
        return self.base + len(self.data)

    def read(self, gva: int, size: int) -> bytes | None:
        """``size`` bytes from ``gva`` on, or None if they are not all in the image."""
        start = gva - self.base
        return bytes(self.data[start : start + size]) if start >= 0 and 0 <= size <= len(self.data) - start else None


def read_image(memory: GuestMemory, cr3: int, lstar: int) -> KernelImage:
    """The image of the kernel that has its syscall entry at LSTAR. Raises :class:`GuestFault` if LSTAR is not mapped, or not as a kernel maps it."""
    if not START_KERNEL_MAP <= lstar < START_KERNEL_MAP + _GIB:
        raise GuestFault("the syscall entry is not where a Linux kernel has it", lstar)
    memory.translate(cr3, lstar)
    pieces = _around(_mapped(memory, cr3, lstar), lstar)
    base = pieces[0].gva
    data = bytearray(min(pieces[-1].gva + pieces[-1].size - base, MAX_IMAGE))
    view = memoryview(data)
    for piece in _joined(pieces):
        start = piece.gva - base
        try:
            memory.read_into(piece.gpa, view[start : start + piece.size])
        except GuestFault:
            # Part of it may still be of use: what matters is checked when it is decoded.
            continue
    return KernelImage(base, data)


def _mapped(memory: GuestMemory, cr3: int, lstar: int) -> list[Piece]:
    """What is mapped in the 1 GiB around LSTAR, in order: at most 512 times 512 pieces."""
    entry = cr3
    for shift in (48, 39, 30) if memory.la57 else (39, 30):
        entry = memory.table(entry)[lstar >> shift & 511]
        if not entry & PRESENT:
            raise GuestFault("not mapped", lstar)
    if entry & LARGE:
        raise GuestFault("a page of 1 GiB instead of a kernel", lstar)
    start, pieces = lstar & -_GIB, []
    for i, large in enumerate(memory.table(entry)):
        gva = start + i * _LARGE_PAGE
        if not large & PRESENT:
            continue
        if large & LARGE:
            pieces.append(Piece(gva, large & ADDRESS & -_LARGE_PAGE, _LARGE_PAGE))
            continue
        try:
            small = memory.table(large)
        except GuestFault:
            continue
        pieces += [Piece(gva + j * PAGE, page & ADDRESS, PAGE) for j, page in enumerate(small) if page & PRESENT]
    return pieces


def _around(pieces: list[Piece], lstar: int) -> list[Piece]:
    """The pieces of the image that holds LSTAR."""
    run: list[Piece] = []
    for piece in pieces:
        if run and piece.gva - run[-1].gva - run[-1].size > _MAX_GAP:
            if run[-1].gva + run[-1].size > lstar:
                break
            run = []
        run.append(piece)
    run = [piece for piece in run if piece.gva + piece.size <= run[0].gva + MAX_IMAGE]
    if not run or not run[0].gva <= lstar < run[-1].gva + run[-1].size:
        raise GuestFault("no kernel's image", lstar)
    return run


def _joined(pieces: list[Piece]) -> list[Piece]:
    """Pieces that follow each other in both memories made one, so that few reads do."""
    joined = [pieces[0]]
    for piece in pieces[1:]:
        last = joined[-1]
        if piece.gva == last.gva + last.size and piece.gpa == last.gpa + last.size:
            joined[-1] = Piece(last.gva, last.gpa, last.size + piece.size)
        else:
            joined.append(piece)
    return joined


def build_id_note(notes: bytes) -> bytes:
    """The build id in a row of ELF notes (System V ABI, chapter 5), or nothing."""
    match = re.search(rb"\x04\0\0\0([\x08-\x20])\0\0\0\x03\0\0\0GNU\0", notes, re.DOTALL)
    return notes[match.end() : match.end() + match[1][0]] if match else b""
