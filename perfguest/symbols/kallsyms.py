# SPDX-License-Identifier: Apache-2.0
"""/proc/kallsyms and System.map: lines of ``ADDRESS TYPE NAME``, in /proc/kallsyms with a tab and ``[MODULE]`` behind for those of modules.

Types are those of nm. Sizes are not given: a symbol reaches to the next, whatever that is.
"""

from __future__ import annotations

import re
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.symbols.names import Names
from perfguest.symbols.table import GLOBAL, I32, LOCAL, U8, U64, WEAK, RawSymbols, SymbolTable, build_table

KERNEL_DSO = "[kernel.kallsyms]"

_GZIP_MAGIC = b"\x1f\x8b"
# A kernel with everything has some 300,000 symbols of 50 bytes.
_MAX_BYTES = 1 << 28

# Value of a hexadecimal digit, 255 for every other byte.
_HEX = np.full(256, 255, np.uint8)
_HEX[np.frombuffer(b"0123456789abcdef", np.uint8)] = np.arange(16, dtype=np.uint8)
_HEX[np.frombuffer(b"ABCDEF", np.uint8)] = np.arange(10, 16, dtype=np.uint8)

_MODULE_LINE = re.compile(rb"^([0-9a-fA-F]{8,16}) \S ([^\t\n]*)\t\[([^\]\n]{1,64})\]$", re.MULTILINE)
_TEXT_TYPES = np.frombuffer(b"tTwW", np.uint8)
_ABSOLUTE_TYPES = np.frombuffer(b"aA", np.uint8)


def read_kallsyms(source: bytes | str | Path, kernel_dso: str = KERNEL_DSO, name: str = "kallsyms") -> SymbolTable:
    """Functions of a kernel and its modules out of a file or its bytes, plain or gzipped.

    ``kernel_dso`` is the dso of the kernel itself; a module ``kvm`` has the dso ``[kvm]``. ``name`` stands in messages for bytes that have no path.
    Raises :class:`FormatError` for what is no such list, with the line, and for one whose addresses were hidden from who read it.
    """
    if not isinstance(source, bytes):
        name = str(source)
        try:
            source = Path(source).read_bytes()
        except OSError as error:
            raise FormatError(f"{name} cannot be read: {error.strerror}", "Give a copy of /proc/kallsyms or a System.map.") from error
    text = _gunzip(source, name) if source[:2] == _GZIP_MAGIC else source
    return _parse(text if text.endswith(b"\n") else text + b"\n", kernel_dso, name)


def module_symbols(text: bytes) -> dict[str, list[tuple[int, str]]]:
    """(Address, name) of all symbols of each module in the bytes of a copy of /proc/kallsyms; of what else is in brackets, too, as ``bpf``."""
    found: dict[str, list[tuple[int, str]]] = {}
    for line in _MODULE_LINE.finditer(text):
        found.setdefault(line[3].decode("utf-8", "replace"), []).append((int(line[1], 16), line[2].decode("utf-8", "replace")))
    return found


def _gunzip(data: bytes, name: str) -> bytes:
    stream = zlib.decompressobj(wbits=31)
    try:
        text = stream.decompress(data, _MAX_BYTES)
    except zlib.error as error:
        raise FormatError(f"{name} is damaged: {error}", "Copy it again.") from error
    if not stream.eof:
        raise FormatError(f"{name} is cut off, or too long to be a list of symbols", "Copy it again.")
    return text


def _parse(text: bytes, kernel_dso: str, name: str) -> SymbolTable:
    # Lines end at newlines only: a hostile name may hold any other control character.
    data = np.frombuffer(text, np.uint8)
    ends = np.flatnonzero(data == ord("\n"))
    begins = np.concatenate([np.zeros(1, ends.dtype), ends[:-1] + 1])
    addresses, types = _addresses_and_types(data, begins, ends, name)
    if len(addresses) and not addresses.any():
        raise FormatError(
            f"{name} has only zeros for addresses: they were hidden from who read it",
            "Copy /proc/kallsyms as root; if that is not enough: sysctl kernel.kptr_restrict=0",
        )
    chosen = np.flatnonzero(np.isin(types, _TEXT_TYPES))
    bounds = np.unique(addresses[~np.isin(types, _ABSOLUTE_TYPES)])
    width = _address_width(text)
    names, dso, dsos = _names_and_dsos(text, begins[chosen] + width + 3, ends[chosen], kernel_dso)
    raw = RawSymbols(addresses[chosen], np.zeros(len(chosen), np.uint64), _bindings(types[chosen]), names, dso, dsos)
    return build_table(raw, bounds)


def _address_width(text: bytes) -> int:
    return max(text.find(b" ", 0, 32), 0)


def _addresses_and_types(data: U8, begins: npt.NDArray[np.intp], ends: npt.NDArray[np.intp], name: str) -> tuple[U64, U8]:
    width = _address_width(data[:32].tobytes())
    if width not in {8, 16}:
        raise FormatError(f"{name} is no list of kernel symbols", "Give a copy of /proc/kallsyms or a System.map.")
    short = ends - begins < width + 4
    # A line that is too short is looked at all the same, and refused below.
    data = np.append(data, np.zeros(width + 4, np.uint8))
    addresses = np.zeros(len(begins), np.uint64)
    digits_good = np.ones(len(begins), bool)
    for place in range(width):
        digit = _HEX[data[begins + place]]
        digits_good &= digit < 16
        addresses = (addresses << np.uint64(4)) | digit
    good = ~short & digits_good & (data[begins + width] == ord(" ")) & (data[begins + width + 2] == ord(" "))
    if not good.all():
        raise FormatError(f"{name}: line {int(np.argmin(good)) + 1} is not ADDRESS TYPE NAME", "Give a copy of /proc/kallsyms or a System.map.")
    return addresses, data[begins + width + 1]


def _names_and_dsos(text: bytes, start: npt.NDArray[np.int64], end: npt.NDArray[np.int64], kernel_dso: str) -> tuple[Names, I32, tuple[str, ...]]:
    """Of the fields from ``start`` up to ``end``: the name, and behind a tab, if there is one, the module."""
    tabs = np.flatnonzero(np.frombuffer(text, np.uint8) == ord("\t"))
    # The first tab at or behind the start.
    at = np.append(tabs, len(text))[np.searchsorted(tabs, start)]
    dso, numbers = np.zeros(len(start), np.int32), {"": 0}
    for row in np.flatnonzero(at < end).tolist():
        module = text[int(at[row]) + 1 : int(end[row])].decode("utf-8", "replace")
        dso[row] = numbers.setdefault(module, len(numbers))
    return Names(text, start, np.minimum(at, end)), dso, (kernel_dso, *list(numbers)[1:])


def _bindings(types: U8) -> U8:
    bindings = np.full(len(types), LOCAL, np.uint8)
    bindings[types == ord("T")] = GLOBAL
    bindings[np.isin(types, np.frombuffer(b"wW", np.uint8))] = WEAK
    return bindings
