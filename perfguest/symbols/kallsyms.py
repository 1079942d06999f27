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

from perfguest import _native
from perfguest.errors import FormatError
from perfguest.rows import distinct_values
from perfguest.symbols.names import Names
from perfguest.symbols.table import GLOBAL, I32, LOCAL, U8, WEAK, RawSymbols, SymbolTable, build_table

KERNEL_DSO = "[kernel.kallsyms]"

_GZIP_MAGIC = b"\x1f\x8b"
# A kernel with everything has some 300,000 symbols of 50 bytes.
_MAX_BYTES = 1 << 28

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
    width = max(text.find(b" ", 0, 32), 0)
    if width not in {8, 16}:
        raise FormatError(f"{name} is no list of kernel symbols", "Give a copy of /proc/kallsyms or a System.map.")
    lines, *columns = _native.read_kallsyms(text, width)
    addresses, types = np.frombuffer(columns[0], np.uint64), np.frombuffer(columns[1], np.uint8)
    if len(addresses) < lines:
        raise FormatError(f"{name}: line {len(addresses) + 1} is not ADDRESS TYPE NAME", "Give a copy of /proc/kallsyms or a System.map.")
    if len(addresses) and not addresses.any():
        raise FormatError(
            f"{name} has only zeros for addresses: they were hidden from who read it",
            "Copy /proc/kallsyms as root; if that is not enough: sysctl kernel.kptr_restrict=0",
        )
    chosen = np.flatnonzero(np.isin(types, _TEXT_TYPES))
    bounds = distinct_values(addresses[~np.isin(types, _ABSOLUTE_TYPES)])
    begin, end, line_end = (np.frombuffer(column, np.int64)[chosen] for column in columns[2:])
    dso, dsos = _dsos(text, end, line_end, kernel_dso)
    raw = RawSymbols(addresses[chosen], np.zeros(len(chosen), np.uint64), _bindings(types[chosen]), Names(text, begin, end), dso, dsos)
    return build_table(raw, bounds)


def _dsos(text: bytes, name_end: npt.NDArray[np.int64], line_end: npt.NDArray[np.int64], kernel_dso: str) -> tuple[I32, tuple[str, ...]]:
    """Of lines whose names end there: the module behind the tab, if there is one."""
    dso, numbers = np.zeros(len(name_end), np.int32), {"": 0}
    for row in np.flatnonzero(name_end < line_end).tolist():
        module = text[int(name_end[row]) + 1 : int(line_end[row])].decode("utf-8", "replace")
        dso[row] = numbers.setdefault(module, len(numbers))
    return dso, (kernel_dso, *list(numbers)[1:])


def _bindings(types: U8) -> U8:
    bindings = np.full(len(types), LOCAL, np.uint8)
    bindings[types == ord("T")] = GLOBAL
    bindings[np.isin(types, np.frombuffer(b"wW", np.uint8))] = WEAK
    return bindings
