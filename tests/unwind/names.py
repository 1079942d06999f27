# SPDX-License-Identifier: Apache-2.0
"""Names for tests: of guests' kernel functions by the snapshot's symbols, of the programs in ``guest/`` by their own symbol tables."""

from __future__ import annotations

from bisect import bisect_right
from pathlib import Path

import numpy as np
from elftools.elf.elffile import ELFFile
from elftools.elf.relocation import RelocationSection
from elftools.elf.sections import SymbolTableSection

from perfguest.proto import guest_pb2
from tests.unwind.stacks import Evidence


class KernelNames:
    """Functions of the kernel and its modules. A place between symbols belongs to the one before it."""

    def __init__(self, evidence: Evidence) -> None:
        vm = evidence.vm_kernel
        rows = [*_rows(evidence.kernel().symbols, vm.kaslr_offset)]
        for module in vm.modules:
            rows += _rows(module.symbols, 0)
        names: dict[int, list[str]] = {}
        for address, name in rows:
            if address >> 63:
                names.setdefault(address, []).append(name)
        self._rows = sorted(names.items())
        self._starts = [address for address, _ in self._rows]

    def at(self, address: int) -> str:
        """The function's first name."""
        return self.all_at(address)[0]

    def all_at(self, address: int) -> list[str]:
        index = bisect_right(self._starts, address) - 1
        return self._rows[index][1] if index >= 0 else ["?"]

    def span(self, address: int) -> tuple[int, int]:
        """Where the function of an address begins, and where the next one does."""
        index = max(bisect_right(self._starts, address) - 1, 0)
        end = self._starts[index + 1] if index + 1 < len(self._starts) else self._starts[index] + 4096
        return self._starts[index], end


def _rows(symbols: guest_pb2.Symbols, moved: int) -> list[tuple[int, str]]:
    names = symbols.names.split(b"\0")
    addresses, types = np.frombuffer(symbols.addresses, "<u8").tolist(), symbols.types
    return [(address + moved, names[index].decode()) for index, address in enumerate(addresses) if types[index : index + 1] in b"tTwW"]


class ProgramNames:
    """Functions of an ELF file that has a symbol table, PLT entries by the functions they lead to."""

    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            elf = ELFFile(file)
            self._segments = [(s["p_offset"], s["p_filesz"], s["p_vaddr"]) for s in elf.iter_segments() if s["p_type"] == "PT_LOAD"]
            table = elf.get_section_by_name(".symtab")
            assert isinstance(table, SymbolTableSection)
            rows = {s["st_value"]: (s["st_value"] + s["st_size"], s.name) for s in table.iter_symbols() if s["st_info"]["type"] == "STT_FUNC"}
            rows |= _plt(elf)
        self._rows = sorted((start, end, name) for start, (end, name) in rows.items() if end > start)
        self._starts = [row[0] for row in self._rows]

    def at(self, offset: int) -> str | None:
        """The function at an offset in the file; None where no symbol covers it."""
        address = next((offset - start + first for start, size, first in self._segments if start <= offset < start + size), None)
        if address is None:
            return None
        index = bisect_right(self._starts, address) - 1
        return self._rows[index][2] if index >= 0 and address < self._rows[index][1] else None


def _plt(elf: ELFFile) -> dict[int, tuple[int, str]]:
    """By the order of the relocations: each has an entry of 16 bytes, behind a first one that all of them go through."""
    section, relocations = elf.get_section_by_name(".plt"), elf.get_section_by_name(".rela.plt")
    if section is None or not isinstance(relocations, RelocationSection):
        return {}
    symbols = elf.get_section(relocations["sh_link"])
    assert isinstance(symbols, SymbolTableSection)
    start = section["sh_addr"]
    rows = {start: (start + 16, "@plt")}
    for number, relocation in enumerate(relocations.iter_relocations(), 1):
        name = symbols.get_symbol(relocation["r_info_sym"]).name
        rows[start + 16 * number] = start + 16 * number + 16, f"{name}@plt"
    return rows
