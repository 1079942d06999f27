# SPDX-License-Identifier: Apache-2.0
"""What the unwinder needs of a guest's kernel, at the addresses where it ran: one form for what was read out of memory and for files."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.kernel_image import KernelImage
from perfguest.formats.kernel_message import image_orc, orc_header
from perfguest.formats.orc import ENTRY_SIZE, decode_orc
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.guest_addresses import KERNEL_HALF, MODULES_END

U64 = npt.NDArray[np.uint64]
U8 = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class OrcTable:
    """Of a kernel or a module. ``addresses``: uint64, ascending; ``entries``: 6 bytes for each; ``start``, ``end``: the code that it covers, end excluded.

    An entry of zeros says that nothing is known from there on, in every layout.
    """

    addresses: U64
    entries: bytes
    start: int
    end: int

    def overlaps(self, other: OrcTable) -> bool:
        return self.start < other.end and other.start < self.end


@dataclass
class KernelTables:
    """``release``: as ``uname -r`` has it. ``orc``: the tables of the kernel, if there is one, and of modules; they do not overlap.

    ``orc_header``: 20 bytes that identify the layout of their entries, where a file told them (:func:`perfguest.formats.kernel_message.orc_header`).
    ``text``: (address, bytes as uint8) of code as it ran, or as its file has it. ``notes``: lines for people on what could not be used.
    """

    release: str
    orc: list[OrcTable] = field(default_factory=list)
    text: list[tuple[int, U8]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    orc_header: bytes = b""

    def add_orc(self, table: OrcTable) -> bool:
        """Gives whether it was added: not an empty one, and not over another, which may be of a module that was there before."""
        if not len(table.addresses) or any(table.overlaps(known) for known in self.orc):
            return False
        self.orc.append(table)
        return True

    def add_text(self, address: int, code: U8) -> None:
        """Leaves out what overlaps the pieces that are there, or lies outside the kernel's code."""
        inside = address >= KERNEL_HALF and address + len(code) <= MODULES_END
        if len(code) and inside and not any(address < start + len(piece) and start < address + len(code) for start, piece in self.text):
            self.text.append((address, code))


def kernel_orc(message: pb.Orc, offset: int) -> OrcTable:
    """The kernel's own table, moved up by ``offset`` from where it was linked. Raises :class:`FormatError` for one that contradicts itself."""
    addresses, entries = decode_orc(message, "the kernel")
    if not len(addresses):
        return OrcTable(addresses, b"", 0, 0)
    if int(addresses[-1]) + offset >= MODULES_END:
        raise FormatError("the ORC table of the kernel does not lie in it")
    addresses = addresses + np.uint64(offset)
    return OrcTable(addresses, entries, int(addresses[0]), int(addresses[-1]) + 1)


def module_orc(addresses: U64, entries: bytes, start: int, size: int) -> OrcTable:
    """A module's table, cut to the ``size`` bytes of code at ``start`` and ended there: what it has of the code that ran while loading is of memory that
    others have now."""
    end = start + size
    first, last = np.searchsorted(addresses, np.array([start % (1 << 64), min(end, MODULES_END)], np.uint64), "left").tolist()
    if not KERNEL_HALF <= start < end <= MODULES_END or first >= last:
        return OrcTable(addresses[:0], b"", 0, 0)
    ended = np.append(addresses[first:last], np.uint64(end))
    return OrcTable(ended, entries[ENTRY_SIZE * first : ENTRY_SIZE * last] + bytes(ENTRY_SIZE), start, end)


def read_tables(event: pb.VmKernel, release: str, orc: pb.Orc, text: Iterable[tuple[int, U8]]) -> KernelTables:
    """Of what a snapshot says of a VM's kernel: ``orc`` and ``text`` at the addresses that it was linked at, modules at their own.

    What contradicts itself is left out, with a note.
    """
    tables = KernelTables(release)
    try:
        tables.add_orc(kernel_orc(orc, event.kaslr_offset))
    except FormatError as error:
        tables.notes.append(error.message)
    for address, code in text:
        tables.add_text(address + event.kaslr_offset, code)
    add_modules(tables, event.modules)
    return tables


def add_image(tables: KernelTables, image: KernelImage, offset: int) -> None:
    """Adds what an image has that was not there: it runs ``offset`` bytes above where it was linked. Its text is as it was before the kernel rewrote any."""
    tables.release = tables.release or image.release
    tables.orc_header = tables.orc_header or orc_header(image)
    try:
        orc = image_orc(image)
        if orc is not None:
            tables.add_orc(kernel_orc(orc, offset))
    except FormatError as error:
        tables.notes.append(error.message)
    for section in image.text:
        tables.add_text(section.address + offset, image.content(section))


def add_modules(tables: KernelTables, modules: Iterable[pb.Module]) -> None:
    """Adds the tables of modules as they were read out of memory."""
    for module in modules:
        name = module.name.decode("utf-8", "replace")[:64]
        try:
            tables.add_orc(module_orc(*decode_orc(module.orc, f"module {name}"), module.address, module.size))
        except FormatError as error:
            tables.notes.append(error.message)
