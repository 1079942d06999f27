# SPDX-License-Identifier: Apache-2.0
"""One guest kernel's symbols at the addresses where it runs: out of its /proc/kallsyms, its image, or its System.map."""

from __future__ import annotations

import re
import zlib
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from perfguest.errors import FormatError
from perfguest.formats.kernel_image import KernelImage, parse_kernel_image
from perfguest.formats.kernel_payload import read_file
from perfguest.symbols.guest_addresses import KASLR_END, KASLR_STEP, KERNEL_HALF, MODULES_END
from perfguest.symbols.guest_calls import U8, U64, Bool, Code
from perfguest.symbols.kallsyms import read_kallsyms
from perfguest.symbols.table import GLOBAL, LOCAL, WEAK, RawSymbols, SymbolTable, build_table

_ENTRY = "entry_SYSCALL_64"
_MAX_TEXT_FILE = 1 << 28
_GZIP_MAGIC = b"\x1f\x8b"
_SYMBOL_LINE = re.compile(rb"[0-9a-fA-F]{8,16} \S \S")
_ALTERNATIVE_SIZES = {14: 12, 12: 10, 13: 10}
_THUNKS = ("__x86_indirect_thunk_", "__x86_indirect_call_thunk_", "__x86_indirect_its_thunk_")
_LEN_NOP5 = (0x0F, 0x1F, 0x44, 0x00, 0x00)

UNKNOWN, DISPROVEN, PROVEN = -1, 0, 1


@dataclass(frozen=True)
class KernelFile:
    """A file of kernel symbols as it was given, before any VM is known to run that kernel.

    ``entry``: the address of ``entry_SYSCALL_64`` in it. ``linked``: its addresses are those of the link, not of a running kernel.
    Of ``image`` and ``text``, the bytes of kallsyms or System.map, one is set. ``what`` is for messages.
    """

    path: str
    what: str
    entry: int
    linked: bool
    image: KernelImage | None
    text: bytes

    @classmethod
    def read_kallsyms(cls, path: str) -> KernelFile:
        """A copy of a running kernel's /proc/kallsyms, plain or gzipped. Raises :class:`FormatError`."""
        return cls._of_text(path, _plain_text(read_file(path), path), "kallsyms file", False)

    @classmethod
    def read_vmlinux(cls, path: str) -> KernelFile:
        """A vmlinuz, a vmlinux, or a System.map. Raises :class:`FormatError`, and EnvironmentProblem where a program is missing that unpacks it."""
        data = read_file(path)
        if _SYMBOL_LINE.match(data):
            return cls._of_text(path, data, "System.map", True)
        if data[:2] == _GZIP_MAGIC:
            text = _plain_text(data, path, 64)
            if _SYMBOL_LINE.match(text):
                return cls._of_text(path, _plain_text(data, path), "System.map", True)
        image = parse_kernel_image(data, path)
        entry = image.address_of(_ENTRY)
        if entry is None:
            raise FormatError(
                f"{path}: kernel image without the symbol {_ENTRY}", "Only 64-bit x86 kernels of 4.2 and later can be placed by their syscall entry."
            )
        return cls(path, f"kernel image {image.release}".rstrip(), entry, True, image, b"")

    @classmethod
    def _of_text(cls, path: str, text: bytes, what: str, linked: bool) -> KernelFile:
        found = re.search(rb"^([0-9a-fA-F]{8,16}) [tT] entry_SYSCALL_64$", text, re.MULTILINE)
        if found is None or not int(found[1], 16):
            # The reader of such files knows best what is wrong with it, for example hidden addresses.
            read_kallsyms(text, name=path)
            raise FormatError(f"{path}: {what} without the symbol {_ENTRY}", "Give a copy of the guest's /proc/kallsyms, read as root, or its kernel image.")
        return cls(path, what, int(found[1], 16), linked, None, text)


def _plain_text(data: bytes, path: str, most: int = _MAX_TEXT_FILE) -> bytes:
    if data[:2] != _GZIP_MAGIC:
        return data
    stream = zlib.decompressobj(wbits=31)
    try:
        text = stream.decompress(data, most)
    except zlib.error as error:
        raise FormatError(f"{path}: damaged: {error}", "Copy it again.") from error
    if not stream.eof and most == _MAX_TEXT_FILE:
        raise FormatError(f"{path}: cut off, or too long to be a list of symbols", "Copy it again.")
    return text


def kernel_offset(file: KernelFile, lstar: int) -> int:
    """How far above the file's addresses the kernel whose syscall entry is ``lstar`` runs, in bytes.

    Raises :class:`FormatError` where that cannot be a run of this kernel.
    """
    offset = lstar - file.entry
    figures = f"{_ENTRY} is {file.entry:#x} in it, and the guest's syscall entry is {lstar:#x}"
    moves = "KASLR moves a kernel by multiples of 2 MiB within 1 GiB"
    if not file.linked:
        if offset:
            raise FormatError(
                f"{file.path}: this {file.what} is of another boot or another kernel: {figures}", "Copy /proc/kallsyms from this guest while it runs."
            )
    elif offset % KASLR_STEP or not 0 <= offset < KASLR_END:
        raise FormatError(
            f"{file.path}: this {file.what} is not the kernel that the guest ran: {figures}; {moves}, not by {offset:#x}",
            "Give the file of the kernel that `uname -r` prints in the guest.",
        )
    return offset


class GuestKernel:
    """A kernel as it runs in one VM: ``file`` moved by ``offset`` bytes. ``dso`` is the name of the kernel itself."""

    def __init__(self, file: KernelFile, offset: int, dso: str) -> None:
        self.file = file
        self.dso = dso
        self.offset = offset
        image = file.image
        if image is not None:
            self.table = _image_table(image, offset, dso)
            self.build_id = image.build_id
        else:
            table = read_kallsyms(file.text, dso, file.path)
            self.table = SymbolTable(table.start + np.uint64(offset), table.end + np.uint64(offset), table.names, table.dso, table.dsos) if offset else table
            self.build_id = ""

    @cached_property
    def code(self) -> Code | None:
        """The text of the image where it runs, or None where only symbols are known."""
        image = self.file.image
        if image is None:
            return None
        return Code.of([(section.address + self.offset, image.content(section)) for section in image.text])

    def check_addresses(self, addresses: U64) -> tuple[int, int]:
        """(How many of the unique sampled addresses in the image's range contradict the image, how many are in that range.)

        They contradict it outside its text; on its ``int3`` bytes, which fill the gaps between functions and are never reached; and
        within a call instruction, known as one by leading to the start of a function (some 4% of the bytes of a kernel's text).
        """
        code = self.code
        if code is None:
            return 0, 0
        addresses = np.unique(addresses[self._in_image(addresses)])
        inside = code.contains(addresses)
        wrong = ~inside | (code.bytes_at(addresses + np.uint64(1), -1) == 0xCC)
        for back in range(1, 5):
            target = code.call_targets(addresses - np.uint64(back))
            wrong |= np.isin(target, self.table.start) & ~np.isin(target, self._thunks) & ~self._rewritten(code, addresses)
        return int(np.count_nonzero(wrong)), len(addresses)

    def proven_returns(self, addresses: U64) -> np.ndarray[tuple[int], np.dtype[np.int8]]:
        """int8 for each return address: ``PROVEN`` that it follows a call, ``DISPROVEN``, or ``UNKNOWN`` for code that is not in the image.

        A place whose code the kernel rewrites while it boots or runs counts as proven if what stood there was a call, else as unknown.
        Without an image ``DISPROVEN`` is what lies in no known function or at the first byte of one, and all else is unknown.
        """
        code = self.code
        if code is None:
            symbol = self.table.lookup(addresses)
            known = symbol >= 0
            at_start = known & (self.table.start[np.maximum(symbol, 0)] == addresses) if len(self.table) else known
            return np.where(known & ~at_start, UNKNOWN, DISPROVEN).astype(np.int8)
        inside = code.contains_return(addresses)
        proven = code.follows_call(addresses) | self._rewritten_call(code, addresses)
        unknown = (inside & self._rewritten(code, addresses)) | (~inside & self._behind_image(addresses))
        return np.where(proven, PROVEN, np.where(unknown, UNKNOWN, DISPROVEN)).astype(np.int8)

    def _in_image(self, addresses: U64) -> Bool:
        first, end = self._image_range
        return (addresses >= np.uint64(first)) & (addresses < np.uint64(end))

    def _behind_image(self, addresses: U64) -> Bool:
        return (addresses >= np.uint64(self._image_range[1])) & (addresses < np.uint64(MODULES_END))

    @cached_property
    def _image_range(self) -> tuple[int, int]:
        image = self.file.image
        assert image is not None  # noqa: S101 - only called where there is one
        kernel = [section for section in image.sections if section.address >= KERNEL_HALF]
        return image.text[0].address + self.offset, min(max(section.address + section.size for section in kernel) + self.offset, MODULES_END)

    def _rewritten_call(self, code: Code, addresses: U64) -> Bool:
        """Calls that the kernel replaces by shorter ones: through pv_ops by direct ones, through a thunk by ``call *%reg``."""
        pv_ops = (code.bytes_at(addresses, -5) == 0xFF) & np.isin(code.bytes_at(addresses, -4), (0x14, 0x15))
        found: Bool = code.contains_return(addresses) & pv_ops
        for back in (2, 3):
            target = code.call_targets(addresses - np.uint64(back))
            found |= (target != 0) & np.isin(target, self._thunks)
        return found

    def _rewritten(self, code: Code, addresses: U64) -> Bool:
        """In or right behind an alternative, or behind the five bytes of nop at which a tracer is called."""
        traced = np.ones(len(addresses), bool)
        for place, byte in enumerate(_LEN_NOP5):
            traced &= code.bytes_at(addresses, place - 5) == byte
        site, size = self._alternatives
        if not len(site):
            return traced
        at = np.searchsorted(site, addresses, "left") - 1
        known = np.maximum(at, 0)
        return traced | ((at >= 0) & (addresses - site[known] <= size[known]))

    @cached_property
    def _thunks(self) -> U64:
        image = self.file.image
        assert image is not None  # noqa: S101 - only called where there is one
        rows = [row for row, name in enumerate(image.symbols.names) if name.startswith(_THUNKS)]
        return image.symbols.address[rows] + np.uint64(self.offset)

    @cached_property
    def _alternatives(self) -> tuple[U64, U64]:
        """Addresses and lengths of the places in ``.altinstructions``, sorted. struct alt_instr (arch/x86/include/asm/alternative.h) has had three sizes."""
        none = np.zeros(0, np.uint64), np.zeros(0, np.uint64)
        image, code = self.file.image, self.code
        section = image.section(".altinstructions") if image is not None else None
        if image is None or section is None or code is None:
            return none
        content = image.content(section)
        for entry, length_at in _ALTERNATIVE_SIZES.items():
            if not len(content) or len(content) % entry:
                continue
            rows = content.reshape(-1, entry)
            distance = rows[:, :4].copy().view("<i4")[:, 0].astype(np.int64).view(np.uint64)
            site = distance + np.uint64(section.address + self.offset) + np.arange(len(rows), dtype=np.uint64) * np.uint64(entry)
            # Alternatives of alternatives stand in sections that are not text.
            if np.count_nonzero(code.contains(site)) > 0.9 * len(site):
                order = np.argsort(site, kind="stable")
                return site[order], rows[order, length_at].astype(np.uint64)
        return none


def _image_table(image: KernelImage, offset: int, dso: str) -> SymbolTable:
    symbols = image.symbols
    placed = symbols.address >= np.uint64(KERNEL_HALF)
    kind: U8 = symbols.kind | np.uint8(32)
    function = np.flatnonzero(placed & ((kind == ord("t")) | (kind == ord("w"))))
    ends = np.array([section.address + section.size for section in image.text], np.uint64)
    bounds = np.unique(np.concatenate([symbols.address[placed], ends])) + np.uint64(offset)
    binding = np.where(symbols.kind[function] == ord("T"), GLOBAL, np.where(kind[function] == ord("w"), WEAK, LOCAL)).astype(np.uint8)
    names = [symbols.names[row] for row in function.tolist()]
    count = len(function)
    return build_table(
        RawSymbols(symbols.address[function] + np.uint64(offset), np.zeros(count, np.uint64), binding, names, np.zeros(count, np.int32), (dso,)), bounds
    )
