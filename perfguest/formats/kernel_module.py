# SPDX-License-Identifier: Apache-2.0
"""A kernel module's file: ``.ko``, plain or packed as distributions ship them, and the same laid out as the kernel loads it.

The file is relocatable: symbols and ORC entries are places in its sections. The kernel lays its sections of code out one behind the other, in the order of
their headers, each at a multiple of its alignment, and apart from those that it needs while loading only (layout_sections() and module_get_offset() in
kernel/module/main.c; arch/x86 adds nothing). So one address, where the module's code begins, tells that of all of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import PurePath

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.elf_sections import FIRST_RESERVED, SHF_ALLOC, SHF_EXECINSTR, SHT_RELA, ElfSections, read_sections, string_at
from perfguest.formats.kernel_payload import read_file
from perfguest.formats.orc import ENTRY_SIZE, MAX_ENTRIES, sort_orc
from perfguest.formats.packing import BrokenStreamError, packer_at, unpack
from perfguest.proto import guest_pb2 as pb

U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]
U8 = npt.NDArray[np.uint8]

#: Larger is no module's code.
MAX_CODE = 1 << 30

_PAGE = 4096
_R_X86_64_PC32 = 2
_RELA = np.dtype([("offset", "<u8"), ("type", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_NAME = re.compile(r"[\x21-\x7e]{1,64}")
_EXPORTED = "__ksymtab_"
_HINT = "Give a module out of the guest's /lib/modules/RELEASE."


@dataclass(frozen=True)
class CodeSection:
    """A section of code that stays in memory. ``number``: of its header; ``offset``: from the begin of the module's code; ``size`` in bytes."""

    name: str
    number: int
    offset: int
    size: int
    alignment: int


@dataclass(frozen=True)
class ModuleFile:
    """``name``: as ``/proc/modules`` has it. ``release``: of the kernel it was built for. ``build_id``: hexadecimal, empty if there is none.

    ``size``: bytes of its code in memory, whole pages. ``offsets``: uint64, ascending, and ``kinds``, ``names``: the symbols in its code, from its begin on.
    ``orc_offsets``, ``orc_entries``: its ORC table, in order, by the same.
    """

    path: str
    name: str
    release: str
    build_id: str
    packer: str
    sections: tuple[CodeSection, ...]
    size: int
    offsets: U64
    kinds: U8
    names: list[str]
    orc_offsets: U64
    orc_entries: bytes
    orc_header: bytes
    elf: bytes

    def code(self, section: CodeSection) -> U8:
        """The bytes of a section as they are in the file, uint8: without relocations, so calls lead nowhere."""
        return np.frombuffer(self._parts.content(section.number), np.uint8)

    def message(self, address: int) -> pb.Module:
        """The module as it is when its code begins at ``address``, in the form in which it is read out of memory. Raises :class:`FormatError` for an
        address where it cannot be."""
        if not address >> 63 or address + self.size > 1 << 64:
            raise FormatError(f"{self.path}: a module of {self.size} bytes cannot be at {address:#x}")
        base = np.uint64(address)
        symbols = pb.Symbols(
            addresses=(self.offsets + base).astype("<u8").tobytes(),
            types=self.kinds.tobytes(),
            names=b"".join(name.encode("utf-8", "backslashreplace") + b"\0" for name in self.names),
        )
        orc = pb.Orc(addresses=(self.orc_offsets + base).astype("<u8").tobytes(), entries=self.orc_entries)
        return pb.Module(name=self.name.encode(), build_id=bytes.fromhex(self.build_id), address=address, size=self.size, symbols=symbols, orc=orc)

    @cached_property
    def _parts(self) -> ElfSections:
        return read_sections(self.elf, self.path, _HINT)


def module_name(path: str) -> str:
    """The name of the module in a file of that name: without endings, and with ``_`` for ``-`` (scripts/Makefile.lib)."""
    return PurePath(path).name.split(".ko", 1)[0].replace("-", "_")


def is_module(data: bytes) -> bool:
    """Whether this is a relocatable ELF file, packed or not. Raises EnvironmentProblem where a program is missing that unpacks it."""
    packer = packer_at(data)
    try:
        elf = unpack(memoryview(data), packer, "this file") if packer else data
    except BrokenStreamError:
        return False
    return elf[:4] == b"\x7fELF" and elf[16:18] == b"\x01\x00"


def read_module(path: str) -> ModuleFile:
    """Raises :class:`FormatError` for what is no module or is damaged, and EnvironmentProblem where a program is missing that unpacks it."""
    return parse_module(read_file(path), path)


def parse_module(data: bytes, path: str) -> ModuleFile:
    """The same for bytes; ``path`` is for messages, and for the name of a module that does not tell its own."""
    packer = packer_at(data) or ""
    if packer:
        try:
            data = unpack(memoryview(data), packer, f"{path}: this module")
        except BrokenStreamError as problem:
            raise FormatError(f"{path}: its {packer} stream is broken: {problem}", _HINT) from problem
    if data[:4] != b"\x7fELF":
        raise FormatError(f"{path}: no kernel module: no ELF file", _HINT)
    parts = read_sections(data, path, _HINT)
    told = _modinfo(parts.named(".modinfo"))
    if not parts.relocatable or parts.find(".gnu.linkonce.this_module") is None:
        raise FormatError(f"{path}: an ELF file, but no kernel module", _HINT)
    name = told.get("name", module_name(path))
    if not _NAME.fullmatch(name):
        raise FormatError(f"{path}: a module without a proper name", _HINT)
    sections = _layout(parts, path)
    end = sections[-1].offset + sections[-1].size if sections else 0
    base = np.full(1 << 16, -1, np.int64)
    base[[section.number for section in sections]] = [section.offset for section in sections]
    offsets, kinds, names = _symbols(parts, base, end)
    orc_offsets, orc_entries = _orc(parts, base, end, path)
    header = parts.named(".orc_header")
    release = told.get("vermagic", "").split(" ", 1)[0]
    size = (end + _PAGE - 1) & -_PAGE
    kept_header = header if len(header) == 20 else b""
    return ModuleFile(path, name, release, parts.build_id, packer, sections, size, offsets, kinds, names, orc_offsets, orc_entries, kept_header, data)


def _modinfo(content: bytes) -> dict[str, str]:
    """NUL-terminated ``key=value``; the first of each key."""
    found: dict[str, str] = {}
    for line in content.split(b"\0"):
        key, _, value = line.decode("utf-8", "replace").partition("=")
        found.setdefault(key, value)
    return found


def _layout(parts: ElfSections, path: str) -> tuple[CodeSection, ...]:
    wanted = np.uint64(SHF_ALLOC | SHF_EXECINSTR)
    sections, end = [], 0
    for number in np.flatnonzero((parts.table["flags"] & wanted) == wanted).tolist():
        name = parts.names[number]
        if name.startswith(".init"):
            continue
        align, size = max(int(parts.table[number]["align"]), 1), int(parts.table[number]["size"])
        if align & (align - 1) or align > MAX_CODE or size > MAX_CODE:
            raise FormatError(f"{path}: its section {number} is of {size} bytes at multiples of {align}", _HINT)
        offset = (end + align - 1) & -align
        end = offset + size
        sections.append(CodeSection(name, number, offset, size, align))
    if end > MAX_CODE:
        raise FormatError(f"{path}: a module of {end} bytes of code", _HINT)
    return tuple(sections)


def _symbols(parts: ElfSections, base: I64, end: int) -> tuple[U64, U8, list[str]]:
    """Offsets in the code, letters and names of what has a name there, as kernel/module/kallsyms.c lists it: capitals for what is exported."""
    found = parts.symbols()
    if found is None:
        return np.zeros(0, np.uint64), np.zeros(0, np.uint8), []
    rows, strings = found
    all_names = rows["name"]
    exported = {string_at(strings, int(offset)).removeprefix(_EXPORTED) for offset in all_names.tolist() if strings.startswith(_EXPORTED.encode(), offset)}
    # Objects, functions and labels; no sections, no files.
    place = base[rows["section"]]
    rows, place = rows[chosen := (place >= 0) & ((rows["info"] & 15) <= 2) & (rows["name"] > 0) & (rows["value"] <= np.uint64(end))], place[chosen]
    offsets = place.astype(np.uint64) + rows["value"]
    order = np.argsort(offsets, kind="stable")
    names = [string_at(strings, offset) for offset in rows["name"][order].tolist()]
    named = [row for row, name in enumerate(names) if name]
    names = [names[row] for row in named]
    kinds = np.array([ord("T") if name in exported else ord("t") for name in names], np.uint8)
    return offsets[order][named], kinds, names


def _orc(parts: ElfSections, base: I64, end: int, path: str) -> tuple[U64, bytes]:
    """Of the code that stays. Every entry's place is a relocation against the instruction's section, or a symbol in it."""
    none = np.zeros(0, np.uint64), b""
    places, relocations = parts.find(".orc_unwind_ip"), parts.find(".rela.orc_unwind_ip")
    entries = parts.named(".orc_unwind")
    found = parts.symbols()
    if places is None or not entries:
        return none
    wrong = FormatError(f"{path}: its ORC table does not fit together", _HINT)
    count = int(parts.table[places]["size"]) // 4
    if relocations is None or found is None or not 0 < count <= MAX_ENTRIES or len(entries) != ENTRY_SIZE * count:
        raise wrong
    header = parts.table[relocations]
    rows = np.frombuffer(parts.content(relocations), _RELA, int(header["size"]) // _RELA.itemsize if header["type"] == SHT_RELA else 0)
    symbols, _ = found
    good = (rows["type"] == _R_X86_64_PC32) & (rows["offset"] % np.uint64(4) == 0) & (rows["offset"] < np.uint64(4 * count)) & (rows["symbol"] < len(symbols))
    entry = (rows["offset"] // np.uint64(4)).astype(np.int64)
    if len(rows) != count or header["info"] != places or not good.all() or len(np.unique(entry)) != count:
        raise wrong
    target = symbols[rows["symbol"]]
    inside = target["value"].view(np.int64) + rows["addend"]
    # Each entry is of code: of a section, and within it.
    held = parts.table["size"].astype(np.int64)[np.minimum(target["section"], len(parts) - 1)]
    if np.any((target["section"] == 0) | (target["section"] >= min(len(parts), FIRST_RESERVED)) | (inside < 0) | (inside > held)):
        raise wrong
    kept = np.flatnonzero(base[target["section"]] >= 0)
    offsets = (base[target["section"][kept]] + inside[kept]).astype(np.uint64)
    return sort_orc(offsets, np.frombuffer(entries, np.uint8).reshape(-1, ENTRY_SIZE)[entry[kept]].tobytes())
