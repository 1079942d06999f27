# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
from collections.abc import Callable
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.kmod.page_tables import BY_NAME, CR0_PG, CR4_PAE, EFER_LMA, EFER_NXE, GIB1, KIB4, MIB2, MIB4, MODES, Mode, PageTables
from tests.kmod.pure_library import PAGE, Guest, Memory, Pure

U64 = st.integers(0, 2**64 - 1)
EVERY_MODE = pytest.mark.parametrize("mode", MODES, ids=lambda mode: mode.name)


class Garbage(Memory):
    """Every address is there and holds the same random bytes each time."""

    def __init__(self, seed: int, change: Callable[[int], int]) -> None:
        super().__init__()
        self._seed, self._change = seed, change

    def read(self, gpa: int, size: int) -> bytes:
        digest = hashlib.blake2b(f"{self._seed}:{gpa}".encode(), digest_size=8).digest()
        return self._change(int.from_bytes(digest, "little")).to_bytes(8, "little")[:size].ljust(size, b"\0")


@st.composite
def page_tables(draw: st.DrawFn, mode: Mode) -> PageTables:
    """Some pages of all sizes at random places, many of them close to each other."""
    maxphyaddr = draw(st.integers(36, 40 if "32-bit" in mode.name else 52))
    tables = PageTables(mode, Memory(), maxphyaddr=maxphyaddr, noise=draw(st.randoms(use_true_random=True)))
    physical_bits = 32 if mode.entry_size == 4 else maxphyaddr
    near = draw(st.integers(0, 2**mode.address_bits - 1))
    for _ in range(draw(st.integers(1, 6))):
        size = draw(st.sampled_from(mode.page_sizes))
        gva = near + draw(st.integers(-3, 3)) * size if draw(st.booleans()) else draw(st.integers(0, 2**mode.address_bits - 1))
        gva = mode.canonical(gva & ~(size - 1))
        width = maxphyaddr if size == MIB4 else physical_bits
        gpa = draw(st.integers(0, 2**width - 1)) & ~(size - 1)
        if not tables.overlaps(gva, size):
            tables.map(gva, gpa, size)
    return tables


@EVERY_MODE
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_translates_as_mapped(pure: Pure, mode: Mode, data: st.DataObject) -> None:
    tables = data.draw(page_tables(mode))
    guest = Guest(pure, tables.memory, **tables.registers())
    for start, (_, size) in tables.mappings.items():
        for at in (start, start + size - 1, start + data.draw(st.integers(0, size - 1)), start - 1, start + size):
            gva = mode.canonical(at)
            tables.memory.reads = 0
            err, gpa, page_size = guest.translate(gva)
            expected = tables.lookup(gva)
            assert tables.memory.reads <= len(mode.levels)
            assert (err, gpa, page_size) == (0, *expected) if expected else err == pure.lib.PG_END_NOT_MAPPED


@EVERY_MODE
@given(data=st.data())
def test_address_that_cannot_be(pure: Pure, mode: Mode, data: st.DataObject) -> None:
    low_end, high = (1 << mode.address_bits - 1, 2**64 - (1 << mode.address_bits - 1)) if mode.sign_extended else (1 << 32, 2**64)
    gva = data.draw(st.integers(low_end, high - 1))
    guest = Guest(pure, Memory(), **PageTables(mode, Memory()).registers())
    assert guest.translate(gva)[0] == pure.lib.PG_END_BAD_ADDRESS
    assert not pure.lib.pg_is_canonical(guest.paging, gva)
    assert guest.memory.reads == 0


@pytest.mark.parametrize(("name", "end"), [("32-bit", 1 << 32), ("PAE", 1 << 32), ("4-level", 1 << 47), ("5-level", 1 << 56)])
def test_low_half(pure: Pure, name: str, end: int) -> None:
    guest = Guest(pure, Memory(), **PageTables(BY_NAME[name], Memory()).registers())
    assert pure.lib.pg_low_half_end(guest.paging) == end
    assert pure.lib.pg_is_canonical(guest.paging, end - 1)
    assert not pure.lib.pg_is_canonical(guest.paging, end)


@given(gva=U64)
def test_paging_off(pure: Pure, gva: int) -> None:
    guest = Guest(pure, Memory(), cr3=0x1000, cr4=CR4_PAE)
    err, gpa, _ = guest.translate(gva)
    assert (err, gpa) == (0, gva) if gva < 2**32 else err == pure.lib.PG_END_BAD_ADDRESS
    assert guest.memory.reads == 0


@pytest.mark.parametrize(
    ("name", "bits"),
    [("32-bit", 0xFFF), ("PAE", 0x1F), ("4-level", 0xFFF | 7 << 61), ("5-level", 0xFFF | 7 << 61)],
)
def test_cr3_has_other_bits(pure: Pure, name: str, bits: int) -> None:
    tables = PageTables(BY_NAME[name], Memory())
    tables.map(0x40_0000, 0x7000)
    registers = tables.registers()
    registers["cr3"] |= bits
    assert Guest(pure, tables.memory, **registers).translate(0x40_0123) == (0, 0x7123, KIB4)


def test_cr3_above_physical_addresses(pure: Pure) -> None:
    guest = Guest(pure, Memory(), **PageTables(BY_NAME["4-level"], Memory()).registers() | {"cr3": 1 << 45, "maxphyaddr": 40})
    assert guest.translate(0x1000)[0] == pure.lib.PG_END_BAD_TABLE


def test_pae_pointers_need_not_be_page_aligned(pure: Pure) -> None:
    tables = PageTables(BY_NAME["PAE"], Memory())
    tables.map(0xC000_0000, 0x7000)
    registers = tables.registers()
    pointers = tables.memory.read(registers["cr3"], 32)
    assert pointers
    tables.memory.write(registers["cr3"], bytes(0x60) + pointers)
    registers["cr3"] += 0x60
    assert Guest(pure, tables.memory, **registers).translate(0xC000_0008) == (0, 0x7008, KIB4)


# Level (0: root), page size, and the bit that must be clear there when addresses have 40 bits.
RESERVED = [
    *(("32-bit PSE", 0, MIB4, bit) for bit in (21,)),
    *(("PAE", 0, KIB4, bit) for bit in (1, 2, 5, 6, 7, 8, 40, 51, 52, 62, 63)),
    *(("PAE", 1, MIB2, bit) for bit in (13, 20, 40, 52, 62)),
    *(("PAE", 2, KIB4, bit) for bit in (40, 51, 52, 62)),
    *(("4-level", level, KIB4, bit) for level in range(4) for bit in (40, 51)),
    ("4-level", 0, KIB4, 7),
    *(("4-level", 1, GIB1, bit) for bit in (13, 29, 40)),
    *(("4-level", 2, MIB2, bit) for bit in (13, 20, 51)),
    *(("5-level", level, KIB4, bit) for level in range(5) for bit in (40, 51)),
    *(("5-level", level, KIB4, 7) for level in (0, 1)),
]


@pytest.mark.parametrize(("name", "level", "size", "bit"), RESERVED)
def test_reserved_bit(pure: Pure, name: str, level: int, size: int, bit: int) -> None:
    tables = PageTables(BY_NAME[name], Memory())
    tables.map(0x8000_0000, 0x4000_0000, size)
    guest = Guest(pure, tables.memory, **tables.registers())
    assert guest.translate(0x8000_0000) == (0, 0x4000_0000, size)
    at = tables.entries[level, 0x8000_0000]
    tables.store(at, tables.load(at) | 1 << bit)
    assert guest.translate(0x8000_0000)[0] == pure.lib.PG_END_BAD_TABLE
    tables.store(at, tables.load(at) & ~1)
    assert guest.translate(0x8000_0000)[0] == pure.lib.PG_END_NOT_MAPPED


@pytest.mark.parametrize(("name", "level"), [("4-level", 0), ("5-level", 0), ("5-level", 1)])
def test_no_pages_larger_than_1_gib(pure: Pure, name: str, level: int) -> None:
    tables = PageTables(BY_NAME[name], Memory())
    tables.map(0, 0)
    tables.store(tables.entries[level, 0], 0x81)
    assert Guest(pure, tables.memory, **tables.registers()).translate(0)[0] == pure.lib.PG_END_BAD_TABLE


@pytest.mark.parametrize(("maxphyaddr", "bit"), [(32, 13), (36, 17), (39, 20)])
def test_pse36_wider_than_addresses(pure: Pure, maxphyaddr: int, bit: int) -> None:
    tables = PageTables(BY_NAME["32-bit PSE"], Memory(), maxphyaddr=maxphyaddr)
    tables.map(0, 1 << 22, MIB4)
    guest = Guest(pure, tables.memory, **tables.registers())
    tables.store(tables.root, tables.load(tables.root) | 1 << bit)
    assert guest.translate(0)[0] == pure.lib.PG_END_BAD_TABLE
    guest.paging.maxphyaddr = maxphyaddr + 1
    assert guest.translate(0) == (0, 1 << maxphyaddr | 1 << 22, MIB4)


@pytest.mark.parametrize("name", ["PAE", "4-level", "5-level"])
def test_no_execute_needs_efer(pure: Pure, name: str) -> None:
    tables = PageTables(BY_NAME[name], Memory())
    tables.map(0x5000, 0x9000)
    at = tables.entries[len(tables.mode.levels) - 1, 0x5000]
    tables.store(at, tables.load(at) | 1 << 63)
    registers = tables.registers()
    assert Guest(pure, tables.memory, **registers).translate(0x5000)[0] == 0
    registers["efer"] &= ~EFER_NXE
    assert Guest(pure, tables.memory, **registers).translate(0x5000)[0] == pure.lib.PG_END_BAD_TABLE


@pytest.mark.parametrize("maxphyaddr", [0, 255])
def test_width_of_addresses_not_known(pure: Pure, maxphyaddr: int) -> None:
    tables = PageTables(BY_NAME["4-level"], Memory(), maxphyaddr=52)
    tables.map(0x5000, (1 << 52) - KIB4)
    assert Guest(pure, tables.memory, **tables.registers() | {"maxphyaddr": maxphyaddr}).translate(0x5001)[1] == (1 << 52) - KIB4 + 1


@EVERY_MODE
def test_table_not_there(pure: Pure, mode: Mode) -> None:
    tables = PageTables(mode, Memory())
    tables.map(0x5000, 0x9000)
    guest = Guest(pure, tables.memory, **tables.registers())
    page = tables.entries[len(mode.levels) - 1, 0x5000] // PAGE
    tables.memory.not_resident = {page}
    assert guest.translate(0x5000)[0] == pure.lib.PG_END_NOT_RESIDENT
    tables.memory.not_resident = set()
    del tables.memory.pages[page]
    assert guest.translate(0x5000)[0] == pure.lib.PG_END_BAD_TABLE


@EVERY_MODE
def test_recursive_mapping(pure: Pure, mode: Mode) -> None:
    """An entry of the root that points to the root makes all tables readable, as some kernels do."""
    tables = PageTables(mode, Memory())
    if mode.name == "PAE":  # its four root pointers cannot be directory entries: the directory maps itself
        tables.map(0x1000, 0x7000)
        root, slot, levels = tables.load(tables.root) & ~0xFFF, 511, mode.levels[1:]
    else:
        root, slot, levels = tables.root, (1 << mode.levels[0][1]) - 2, mode.levels
    tables.store(root + slot * mode.entry_size, root | 1)
    guest = Guest(pure, tables.memory, **tables.registers())
    gva = mode.canonical(sum(slot << shift for shift, _ in levels))
    assert guest.translate(gva + 0x18) == (0, root + 0x18, KIB4)
    assert tables.memory.reads == len(mode.levels)


def _present(entry: int) -> int:
    """Present, not large, no reserved bits: the walk goes as deep as it can."""
    return (entry | 1) & 0x000F_FFFF_FFFF_F001


@settings(max_examples=300, deadline=None)
@given(garbage=st.builds(Garbage, st.integers(0), st.sampled_from([_present, lambda entry: entry])), registers=st.tuples(U64, U64, U64, U64), gva=U64)
def test_garbage_ends(pure: Pure, garbage: Garbage, registers: tuple[int, int, int, int], gva: int) -> None:
    memory, width = garbage, gva % 251 % 64
    cr0, cr3, cr4, efer = registers
    guest = Guest(pure, memory, cr0=cr0 | CR0_PG, cr3=cr3, cr4=cr4, efer=efer, maxphyaddr=width)
    for at in (gva, gva & 0xFFFF_FFFF, gva & 0x7FFF_FFFF_FFFF):
        memory.reads = 0
        err, gpa, size = guest.translate(at)
        assert memory.reads <= 5
        if err:
            assert err in (pure.lib.PG_END_BAD_ADDRESS, pure.lib.PG_END_NOT_MAPPED, pure.lib.PG_END_BAD_TABLE)
        else:
            assert size in (KIB4, MIB2, MIB4, GIB1)
            assert gpa < 1 << 52
            assert (gpa - at) % size == 0


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0), gva=U64, size=st.integers(0, 20_000))
def test_reads_from_garbage_end(pure: Pure, seed: int, gva: int, size: int) -> None:
    guest = Guest(pure, Garbage(seed, _present), cr0=CR0_PG, cr4=CR4_PAE, efer=EFER_LMA)
    guest.read_some(gva, size)
    assert guest.memory.reads <= 6 * (size // PAGE + 2)


class Space:
    """Pages of 4 KiB and 2 MiB that adjoin in virtual memory and are scattered in physical memory."""

    def __init__(self, pure: Pure, random: Random) -> None:
        self.memory = Memory()
        tables = PageTables(BY_NAME["4-level"], self.memory)
        self.start = 0x7FFF_FFE0_0000 - 6 * PAGE
        self.content = random.randbytes(8 * PAGE)
        for i in range(6):
            tables.map(self.start + i * PAGE, (0x2000 - 7 * i) * PAGE)
        tables.map(0x7FFF_FFE0_0000, 64 * MIB2, MIB2)
        for i in range(8):
            self.memory.write((0x2000 - 7 * i) * PAGE if i < 6 else 64 * MIB2 + (i - 6) * PAGE, self.content[i * PAGE :][:PAGE])
        self.guest = Guest(pure, self.memory, **tables.registers())


@settings(max_examples=60, deadline=None)
@given(random=st.randoms(use_true_random=True), reads=st.lists(st.tuples(st.integers(-9000, 9 * PAGE), st.integers(0, 20_000)), max_size=12))
def test_reads_across_pages(pure: Pure, random: Random, reads: list[tuple[int, int]]) -> None:
    """In any order, with the pages of former reads kept."""
    space = Space(pure, random)
    lib = pure.lib
    for offset, size in reads:
        expected = space.content[offset : offset + size] if offset >= 0 else b""
        reason = lib.PG_END_NONE if len(expected) == size else lib.PG_END_NOT_MAPPED if offset < 0 else lib.PG_END_NO_SLOT
        assert space.guest.read_some(space.start + offset, size) == (expected, reason)
        err, data = space.guest.read(space.start + offset, size)
        assert err == reason
        assert err or data == expected


def test_a_translated_page_is_kept(pure: Pure) -> None:
    space = Space(pure, Random(1))
    assert space.guest.read(space.start, 16)[0] == 0
    assert space.memory.reads == 4 + 1
    assert space.guest.read(space.start + 4000, 96)[0] == 0
    assert space.memory.reads == 4 + 2
    assert space.guest.read(space.start + PAGE - 8, 16)[0] == 0
    assert space.memory.reads == 4 + 3 + 4 + 1
    space.guest.forget()
    assert space.guest.read(space.start + PAGE, 1)[0] == 0
    assert space.memory.reads == 4 + 3 + 4 + 1 + 5


def test_as_many_pages_are_kept_as_a_stack_has(pure: Pure) -> None:
    space = Space(pure, Random(1))
    assert space.guest.read(space.start, 6 * PAGE)[0] == 0
    assert space.memory.reads == 6 * (4 + 1)
    for i in (5, 0, 3, 1, 4, 2):
        assert space.guest.read(space.start + i * PAGE + 8, 8) == (0, space.content[i * PAGE + 8 :][:8])
    assert space.memory.reads == 6 * (4 + 1) + 6


class Flickering(Memory):
    """Tables that another vCPU changes at every read: each page is one of two, or none."""

    def __init__(self, random: Random) -> None:
        super().__init__()
        self.random = random
        self.entries: list[tuple[int, list[int]]] = []

    def read(self, gpa: int, size: int) -> bytes | None:
        for at, values in self.entries:
            self.write(at, self.random.choice(values).to_bytes(8, "little"))
        return super().read(gpa, size)


@settings(max_examples=60, deadline=None)
@given(random=st.randoms(use_true_random=True), offset=st.integers(0, PAGE - 1), size=st.integers(0, 5 * PAGE), holes=st.booleans())
def test_tables_that_change_under_a_copy(pure: Pure, random: Random, offset: int, size: int, holes: bool) -> None:
    """Each page comes from where its entry led at some moment, whole; the copy ends at the first that was not there."""
    memory, start = Flickering(random), 0xFFFF_C900_0000_0000
    tables = PageTables(BY_NAME["4-level"], memory)
    for i in range(6):
        for half in (0, 1):
            memory.write((0x300 + 16 * half + i) * PAGE, bytes([16 * half + i]) * PAGE)
        tables.map(start + i * PAGE, (0x300 + i) * PAGE)
    memory.entries = [(tables.entries[3, start + i * PAGE], [(0x300 + i) * PAGE | 1, (0x310 + i) * PAGE | 1, *([0] if holes else [])]) for i in range(6)]
    guest = Guest(pure, memory, **tables.registers())
    data, end = guest.read_some(start + offset, size)
    assert end == (pure.lib.PG_END_NONE if len(data) == size else pure.lib.PG_END_NOT_MAPPED) and (holes or len(data) == size)
    assert len(data) in (0, size) or (offset + len(data)) % PAGE == 0
    for i in range(6):
        piece = data[max(i * PAGE - offset, 0) : max((i + 1) * PAGE - offset, 0)]
        assert set(piece) in ({i}, {16 + i}, set())
    assert memory.reads <= 5 * 6


def test_failure_does_not_spoil_the_kept_page(pure: Pure) -> None:
    space = Space(pure, Random(2))
    assert space.guest.read(space.start, 16)[0] == 0
    assert space.guest.read(0x1000, 16)[0] == pure.lib.PG_END_NOT_MAPPED
    assert space.guest.read(space.start + 16, 16) == (0, space.content[16:32])


@pytest.mark.parametrize(("name", "last"), [("32-bit PSE", 0xFFC0_0000), ("PAE", 0xFFE0_0000), ("4-level", 2**64 - GIB1), ("5-level", 2**64 - GIB1)])
def test_reads_do_not_wrap(pure: Pure, name: str, last: int) -> None:
    mode = BY_NAME[name]
    tables = PageTables(mode, Memory())
    size = mode.page_sizes[-1]
    tables.map(last, size, size)
    tables.map(0, 0)
    tables.memory.write(2 * size - 4, b"last")
    tables.memory.write(0, b"first")
    guest = Guest(pure, tables.memory, **tables.registers())
    assert guest.read(last + size - 4, 4) == (0, b"last")
    assert guest.read_some(last + size - 4, 8) == (b"last", pure.lib.PG_END_BAD_ADDRESS)
    assert guest.read(last + size - 4, 8)[0] == pure.lib.PG_END_BAD_ADDRESS


def test_reads_do_not_enter_the_hole(pure: Pure) -> None:
    tables = PageTables(BY_NAME["4-level"], Memory())
    tables.map(0x7FFF_FFFF_F000, 0)
    tables.memory.write(0, b"x" * PAGE)
    guest = Guest(pure, tables.memory, **tables.registers())
    assert guest.read_some(0x7FFF_FFFF_FFF0, 32) == (b"x" * 16, pure.lib.PG_END_BAD_ADDRESS)


def test_a_copy_ends_at_what_is_no_memory(pure: Pure) -> None:
    """A device's registers have no memslot; a table there is no table."""
    tables = PageTables(BY_NAME["4-level"], Memory())
    tables.map(0x7000, 0)
    tables.map(0x8000, 0xFEE0_0000)
    tables.memory.write(0, b"x" * PAGE)
    guest = Guest(pure, tables.memory, **tables.registers())
    assert guest.read_some(0x7FF0, 32) == (b"x" * 16, pure.lib.PG_END_NO_SLOT)
    tables.store(tables.entries[2, 0x8000], 0xFEE0_0000 | 1)
    guest.forget()
    assert guest.read_some(0x7FF0, 32) == (b"", pure.lib.PG_END_BAD_TABLE)


def test_page_swapped_out(pure: Pure) -> None:
    space = Space(pure, Random(3))
    space.memory.not_resident = {0x2000 - 7}
    assert space.guest.read_some(space.start, 2 * PAGE) == (space.content[:PAGE], pure.lib.PG_END_NOT_RESIDENT)
