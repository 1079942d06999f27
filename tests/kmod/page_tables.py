# SPDX-License-Identifier: Apache-2.0
"""Builds page tables for every paging mode of x86 from a list of mappings.

It only writes entries and never walks them: which address leads where is known from the list.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from tests.kmod.pure_library import PAGE, Memory

CR0_PG, CR0_PE = 1 << 31, 1
CR4_PSE, CR4_PAE, CR4_LA57 = 1 << 4, 1 << 5, 1 << 12
EFER_LME, EFER_LMA, EFER_NXE = 1 << 8, 1 << 10, 1 << 11

KIB4, MIB2, MIB4, GIB1 = 1 << 12, 1 << 21, 1 << 22, 1 << 30


@dataclass(frozen=True)
class Mode:
    """Shifts and widths of the table indices from the root down, and where leaves may stand."""

    name: str
    cr0: int
    cr4: int
    efer: int
    levels: tuple[tuple[int, int], ...]
    page_sizes: tuple[int, ...]
    entry_size: int
    address_bits: int
    sign_extended: bool = False

    def canonical(self, gva: int) -> int:
        """The address with these low bits."""
        gva &= (1 << self.address_bits) - 1
        return gva | (2**64 - (1 << self.address_bits)) if self.sign_extended and gva >> (self.address_bits - 1) else gva


_LONG = ((39, 9), (30, 9), (21, 9), (12, 9))
_PAGED = CR0_PG | CR0_PE
MODES = (
    Mode("32-bit", _PAGED, 0, 0, ((22, 10), (12, 10)), (KIB4,), 4, 32),
    Mode("32-bit PSE", _PAGED, CR4_PSE, 0, ((22, 10), (12, 10)), (KIB4, MIB4), 4, 32),
    Mode("PAE", _PAGED, CR4_PAE, EFER_NXE, ((30, 2), (21, 9), (12, 9)), (KIB4, MIB2), 8, 32),
    Mode("4-level", _PAGED, CR4_PAE, EFER_LME | EFER_LMA | EFER_NXE, _LONG, (KIB4, MIB2, GIB1), 8, 48, True),
    Mode("5-level", _PAGED, CR4_PAE | CR4_LA57, EFER_LME | EFER_LMA | EFER_NXE, ((48, 9), *_LONG), (KIB4, MIB2, GIB1), 8, 57, True),
)
BY_NAME = {mode.name: mode for mode in MODES}


class PageTables:
    """Page tables in `memory`; `noise` sets the bits that the processor ignores at random."""

    def __init__(self, mode: Mode, memory: Memory, first_table: int = 0x10_0000, maxphyaddr: int = 40, noise: Random | None = None) -> None:
        self.mode, self.memory, self.maxphyaddr = mode, memory, maxphyaddr
        self._next, self._noise = first_table, noise
        self.root = self._new_table()
        self.mappings: dict[int, tuple[int, int]] = {}
        self.entries: dict[tuple[int, int], int] = {}
        """Where the entry of a level (0: root) for a GVA is, by (level, gva)."""

    def _new_table(self) -> int:
        table, self._next = self._next, self._next + PAGE
        self.memory.write(table, b"\0" * PAGE)
        return table

    def registers(self) -> dict[str, int]:
        return {"cr0": self.mode.cr0, "cr3": self.root, "cr4": self.mode.cr4, "efer": self.mode.efer, "maxphyaddr": self.maxphyaddr}

    def load(self, gpa: int) -> int:
        data = self.memory.read(gpa, self.mode.entry_size)
        assert data is not None
        return int.from_bytes(data, "little")

    def store(self, gpa: int, entry: int) -> None:
        self.memory.write(gpa, entry.to_bytes(self.mode.entry_size, "little"))

    def _ignored(self, level: int, size: int) -> int:
        """Random values for those bits that do not matter for the translation."""
        if self._noise is None:
            return 0
        noise, bits = self._noise.getrandbits(64), 0b1110_0000_0000 | 0b0001_1000  # AVL, PWT, PCD
        if not (self.mode.name == "PAE" and level == 0):
            bits |= 0b0010_0110 | (1 << 63 if self.mode.entry_size == 8 else 0)  # RW, US, accessed, NX
        if self.mode.sign_extended:
            bits |= 0x7FF << 52
        if size:
            bits |= 0b1_0100_0000 | (1 << 7 if size == KIB4 else 1 << 12)  # dirty, global, PAT
        elif self.mode.name == "32-bit":
            bits |= 1 << 7  # no large pages here: the bit means nothing
        return noise & bits

    def _pse36(self, gpa: int, size: int) -> int:
        return (gpa & 0xFFC0_0000) | (gpa >> 32) << 13 if size == MIB4 else gpa

    def map(self, gva: int, gpa: int, size: int = KIB4) -> None:
        """Map one page; both addresses are multiples of its size."""
        table = self.root
        for level, (shift, width) in enumerate(self.mode.levels):
            at = table + ((gva >> shift) & ((1 << width) - 1)) * self.mode.entry_size
            self.entries[level, gva] = at
            if 1 << shift == size:
                self.store(at, self._pse36(gpa, size) | 1 | (0x80 if size > KIB4 else 0) | self._ignored(level, size))
                break
            if not self.load(at) & 1:
                self.store(at, self._new_table() | 1 | self._ignored(level, 0))
            entry = self.load(at)
            table = entry & ((1 << min(self.maxphyaddr, 8 * self.mode.entry_size)) - 1) & ~0xFFF
        self.mappings[gva] = (gpa, size)

    def lookup(self, gva: int) -> tuple[int, int] | None:
        """Guest-physical address and page size, from the list of mappings."""
        for start, (gpa, size) in self.mappings.items():
            if start <= gva < start + size:
                return gpa + gva - start, size
        return None

    def overlaps(self, gva: int, size: int) -> bool:
        return any(start < gva + size and gva < start + other for start, (_, other) in self.mappings.items())
