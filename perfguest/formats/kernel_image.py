# SPDX-License-Identifier: Apache-2.0
"""What a kernel's file says of it: ``/boot/vmlinuz-*`` as the distribution ships it, or an ELF ``vmlinux``, with or without symbols.

A packed image holds an ELF file with section headers (see :mod:`perfguest.formats.kernel_payload`). Its symbols come from ``.symtab``
if it has one, else out of the kernel's own table (:mod:`perfguest.formats.image_kallsyms`). All addresses are those that the kernel
was linked at; a running kernel with KASLR has moved as a whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.elf_sections import SHF_ALLOC, SHF_EXECINSTR, SHT_NOBITS, ElfSections, read_sections, string_at
from perfguest.formats.image_kallsyms import ImageSymbols, decode_kallsyms
from perfguest.formats.kernel_payload import KernelPayload, find_payload, read_file

_KERNEL_HALF = 1 << 63
# Symbols that scripts/mksysmap (nm's output) or scripts/kallsyms leave out of the kernel's own table, by how they begin.
_IGNORED_SYMBOLS = (".L", "L0", "__crc_", "__kstrtab_", "__kstrtabns_", "__ksymtab_", "__pfx_", "__cfi_", "__pi_", "__ftrace_invalid_address__", "$")

_BANNER = re.compile(rb"Linux version ([0-9][!-~]{0,126}) \(")
_HINT = "Give the guest's own /boot/vmlinuz-RELEASE, an ELF vmlinux, or its System.map."


@dataclass(frozen=True)
class Section:
    """A section that is in memory while the kernel runs. ``size`` in bytes; ``offset`` in :attr:`KernelImage.elf`, where ``in_file``."""

    name: str
    address: int
    size: int
    offset: int
    executable: bool
    in_file: bool


@dataclass(frozen=True)
class KernelImage:
    """A kernel as linked.

    ``release``: as ``uname -r`` prints it, empty if there is no banner. ``build_id``: hexadecimal, empty if there is none.
    ``elf``: the unpacked file; ``payload``: what it was in. ``entry``: the physical address at which it is entered.
    """

    path: str
    release: str
    build_id: str
    sections: tuple[Section, ...]
    elf: bytes
    symbols: ImageSymbols
    payload: KernelPayload
    entry: int

    @cached_property
    def text(self) -> tuple[Section, ...]:
        """The sections of functions, in order of address; the first is ``.text``. Alternatives and data may be marked executable and are not among them."""
        return tuple(sorted((s for s in self.sections if s.executable and s.in_file and "text" in s.name), key=lambda s: s.address))

    def section(self, name: str) -> Section | None:
        return next((section for section in self.sections if section.name == name), None)

    def content(self, section: Section) -> npt.NDArray[np.uint8]:
        """The section's bytes, uint8, not copied; none for a section that is not in the file."""
        return np.frombuffer(self.elf, np.uint8, section.size if section.in_file else 0, section.offset)

    def address_of(self, symbol: str) -> int | None:
        """Where the first symbol of that name is linked."""
        place = self._places.get(symbol)
        return None if place is None else int(self.symbols.address[place])

    @cached_property
    def _places(self) -> dict[str, int]:
        # Backwards, so that the first of several wins.
        return {name: place for place, name in zip(range(len(self.symbols) - 1, -1, -1), reversed(self.symbols.names), strict=True)}


def read_kernel_image(path: str) -> KernelImage:
    """Reads a vmlinuz or vmlinux of x86-64.

    Raises :class:`FormatError` where the file is no such thing, is broken, or has no symbols in a known form, and
    :class:`EnvironmentProblem` where a program is missing that unpacks it.
    """
    return parse_kernel_image(read_file(path), path)


def parse_kernel_image(data: bytes, path: str) -> KernelImage:
    """The same for bytes; ``path`` is for messages."""
    payload = find_payload(data, path)
    elf = payload.elf
    parts = read_sections(elf, path, _HINT)
    sections = _loaded_sections(parts, path)
    text = next((section for section in sections if section.name == ".text" and section.executable and section.in_file), None)
    if text is None or text.address < _KERNEL_HALF:
        raise FormatError(f"{path}: an ELF file, but no kernel: it has no .text in the kernel's half of the address space", _HINT)
    read_only = next((section for section in sections if section.name == ".rodata" and section.in_file), None)
    constants = elf[read_only.offset : read_only.offset + read_only.size] if read_only else b""
    symbols = _symtab(parts, sections, path)
    if symbols is None:
        if read_only is None:
            raise FormatError(f"{path}: neither .symtab nor .rodata in it, so no symbols", _HINT)
        symbols = decode_kallsyms(constants, read_only.address, text.address, path)
    banner = _BANNER.search(constants)
    return KernelImage(path, banner[1].decode() if banner else "", parts.build_id, sections, elf, symbols, payload, parts.entry)


def _loaded_sections(parts: ElfSections, path: str) -> tuple[Section, ...]:
    sections = []
    for number in np.flatnonzero((parts.table["flags"] & SHF_ALLOC) != 0).tolist():
        header = parts.table[number]
        address, size = int(header["address"]), int(header["size"])
        if address + size > 1 << 64:
            raise FormatError(f"{path}: a section of its ELF file at {address:#x} passes the end of the address space", _HINT)
        executable = bool(int(header["flags"]) & SHF_EXECINSTR)
        in_file = int(header["type"]) not in {0, SHT_NOBITS}
        sections.append(Section(parts.names[number], address, size, int(header["offset"]) if in_file else 0, executable, in_file))
    return tuple(sections)


def _symtab(parts: ElfSections, sections: tuple[Section, ...], path: str) -> ImageSymbols | None:
    """The symbols of ``.symtab`` as the kernel's own table would have them, or None where the file has none."""
    found = parts.symbols()
    if found is None:
        return None
    symbols, strings = found
    # Objects, functions and labels of sections, and absolute ones (per-CPU); no files, no section names.
    symbols = symbols[((symbols["info"] & 15) <= 2) & (symbols["section"] != 0) & (symbols["name"] != 0) & (symbols["name"] < len(strings))]
    if not len(symbols):
        return None
    symbols = symbols[np.argsort(symbols["value"], kind="stable")]
    names = [string_at(strings, offset) for offset in symbols["name"].tolist()]
    kept = np.array([not name.startswith(_IGNORED_SYMBOLS) for name in names])
    kind = _kinds(symbols, sections)
    if not np.any(kind[kept] | 32 == ord("t")):
        raise FormatError(f"{path}: .symtab holds no function of the kernel", _HINT)
    return ImageSymbols(symbols["value"][kept], kind[kept], [name for name, keep in zip(names, kept, strict=True) if keep], ".symtab")


def _kinds(symbols: npt.NDArray[np.void], sections: tuple[Section, ...]) -> npt.NDArray[np.uint8]:
    """nm's letter, as far as it matters: code or data, local, global or weak."""
    binding = symbols["info"] >> 4
    code = np.zeros(len(symbols), bool)
    for section in sections:
        if section.executable:
            code |= (symbols["value"] >= section.address) & (symbols["value"] - section.address <= section.size)
    kind = np.where(code, ord("t"), ord("d")).astype(np.uint8)
    kind[binding == 1] -= 32
    kind[binding == 2] = np.where(code[binding == 2], ord("W"), ord("V"))
    return kind
