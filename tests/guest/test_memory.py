# SPDX-License-Identifier: Apache-2.0
"""Reading guest memory and walking page tables, of good guests and of garbage. Against the emulator's own walk: test_kernel.py."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.formats.guest_stream import Memslot
from perfguest.guest.image import MAX_IMAGE, START_KERNEL_MAP, read_image
from perfguest.guest.memory import ADDRESS, MAX_READ, PAGE, TAKEN_AWAY, VM_ENDED, GuestFault, GuestMemory, VmEnded
from perfguest.guest.view import View
from tests.guest.patched import close, memory_of
from tests.guest.vmm import HeldMemory

PAGES = 16
GVA = 0xFFFF_8123_4567_89AB & ~0xFFF


@pytest.fixture
def slotted() -> Iterator[GuestMemory]:
    """Two pieces that follow each other and one by itself; each byte tells its page."""
    memory = memory_of({0x1000: b"1" * PAGE + b"2" * PAGE, 0x3000: b"3" * PAGE, 0x10000: b"4" * PAGE})
    yield memory
    close([memory])


def test_reads_across_slots(slotted: GuestMemory) -> None:
    assert slotted.read(0x1FFE, 4) == b"1122"
    assert slotted.read(0x2FFF, 2) == b"23"
    assert slotted.read(0x1000, 3 * PAGE) == b"1" * PAGE + b"2" * PAGE + b"3" * PAGE
    assert slotted.read(0x10FFF, 1) == b"4"
    assert slotted.read(0x1000, 0) == b""


@pytest.mark.parametrize(("gpa", "size"), [(0xFFF, 2), (0, 1), (0x3FFF, 2), (0x4000, 1), (0x10FFF, 2), (1 << 64, 8), (0x1000, MAX_READ + 1), (0x1000, -1)])
def test_what_is_not_there_is_a_fault(slotted: GuestMemory, gpa: int, size: int) -> None:
    with pytest.raises(GuestFault):
        slotted.read(gpa, size)


@pytest.mark.parametrize("hva", [1 << 40, (1 << 63) - 8, 1 << 63, (1 << 64) - PAGE, 1 << 70, -PAGE])
def test_slots_that_lead_nowhere_are_faults(hva: int) -> None:
    fd = os.open("/proc/self/mem", os.O_RDONLY)
    try:
        with pytest.raises(GuestFault):
            GuestMemory(fd, [Memslot(0, 1 << 30, hva)]).read(0, 4096)
    finally:
        os.close(fd)


def test_memory_that_is_taken_away_and_a_vm_that_ends(slotted: GuestMemory) -> None:
    """Each in its own words, by whichever way it is read; a page table too."""
    with HeldMemory(slotted) as held:
        memory = held.memory()
        assert memory.read(0x1000, 2) == b"11"
        first, _, _ = memory.slots
        held.unmap(first)
        assert not memory.taken_away
        for read in (lambda: memory.read(0x1800, 8), lambda: memory.translate(0x1000, GVA), lambda: memory.read_virtual(0x1000, GVA, 8)):
            with pytest.raises(GuestFault, match=TAKEN_AWAY):
                read()
        assert memory.taken_away
        assert memory.read(0x10000, 1) == b"4"
        held.end()
        for gone in (lambda: memory.read(0x10000, 1), lambda: memory.translate(0x10000, GVA), lambda: memory.read_virtual(0x10000, GVA, 8)):
            with pytest.raises(VmEnded, match=VM_ENDED):
                gone()


def test_a_gone_descriptor_is_a_fault(slotted: GuestMemory) -> None:
    gone = GuestMemory(10_000, slotted.slots)
    with pytest.raises(GuestFault, match="Bad file descriptor"):
        gone.read(0x1000, 8)


def tables(levels: int, last: int, large: int = 0) -> tuple[GuestMemory, int]:
    """Page tables, one per level, that map GVA to ``last``; and their CR3. ``large``: the level, from 0, whose entry is a page already."""
    pages = {}
    for level in range(levels):
        shift = 12 + 9 * (levels - 1 - level)
        entry = last | 0x81 if large and level == large else (level + 2) * PAGE | 0x67 if level < levels - 1 else last | 0x8000_0000_0000_0063
        page = bytearray(PAGE)
        struct.pack_into("<Q", page, 8 * (GVA >> shift & 511), entry)
        pages[(level + 1) * PAGE] = bytes(page)
    return memory_of({**pages, 0x20_0000: b"x" * PAGE, 0x4000_0000: b"y" * PAGE}), PAGE | 0xFFF


@pytest.mark.parametrize("levels", [4, 5])
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_translates(levels: int, depth: int) -> None:
    size, last = {0: (PAGE, 0x20_0000), 1: (2 << 20, 0x20_0000), 2: (1 << 30, 0x4000_0000)}[depth]
    memory, cr3 = tables(levels, last, levels - 1 - depth if depth else 0)
    memory.la57 = levels == 5
    try:
        assert memory.translate(cr3, GVA + 0x9AB) == last + (GVA + 0x9AB) % size
        if not depth:
            assert memory.read_virtual(cr3, GVA + 1, 100) == b"x" * 100
            with pytest.raises(GuestFault, match="not mapped"):
                memory.read_virtual(cr3, GVA + 1, PAGE)
        with pytest.raises(GuestFault, match="not mapped"):
            memory.translate(cr3, GVA ^ 1 << 47)
        with pytest.raises(GuestFault, match="page table is not in guest memory"):
            memory.translate(0x7000_0000, GVA)
    finally:
        close([memory])


ENTRY = st.one_of(
    st.integers(0, (1 << 64) - 1),
    st.builds(lambda page, flags: page * PAGE | flags, st.integers(0, PAGES), st.sampled_from([0, 1, 0x63, 0x67, 0xE3, 0x81, 1 << 63 | 0x63])),
)


@settings(max_examples=60, deadline=None)
@given(
    seeds=st.lists(ENTRY, min_size=1, max_size=40),
    cr3=st.integers(0, (1 << 64) - 1) | st.integers(0, PAGES).map(lambda page: page * PAGE),
    gva=st.integers(0, (1 << 64) - 1),
    size=st.integers(0, 1 << 20),
    la57=st.booleans(),
)
def test_any_tables_end(seeds: list[int], cr3: int, gva: int, size: int, la57: bool) -> None:
    """Tables that are rows of the same few entries: loops, maps of themselves, holes."""
    words = (seeds * (512 * PAGES // len(seeds) + 1))[: 512 * PAGES]
    memory = memory_of({0: struct.pack(f"<{len(words)}Q", *words)})
    memory.la57 = la57
    try:
        with suppress(GuestFault):
            assert 0 <= memory.translate(cr3, gva) <= ADDRESS | 0xFFF
            assert len(memory.read_virtual(cr3, gva, size)) == size
        with suppress(GuestFault):
            assert len(read_image(memory, cr3, START_KERNEL_MAP | gva & 0x3FFF_FFFF).data) <= MAX_IMAGE
    finally:
        close([memory])


def test_only_memory_there_is_belongs_to_the_direct_map(slotted: GuestMemory, monkeypatch: pytest.MonkeyPatch) -> None:
    """KASLR may put vmemmap less than 64 TiB behind the direct map's begin: such an address is one for the page tables."""
    base = 0xFFFF979900000000
    view = View.__new__(View)
    view.kernel = SimpleNamespace(memory=slotted, kernel_cr3=0x1000)  # type: ignore[assignment]
    view._direct = base
    monkeypatch.setattr(slotted, "translate", lambda cr3, gva: (cr3, gva))
    first = slotted.slots[0]
    assert view.physical(base + first.gpa) == first.gpa
    last = slotted.slots[-1]
    for address in (base + last.gpa + last.size, 0xFFFFD340007F8400, base - 8):
        assert view.physical(address) == (0x1000, address)
