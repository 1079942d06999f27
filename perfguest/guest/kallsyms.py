# SPDX-License-Identifier: Apache-2.0
"""The symbols of a guest's kernel, decoded from its image in memory.

``perfguest.formats.image_kallsyms`` finds the tables by their structure; all of them stand near each other in the read-only data. vmcoreinfo says where from
Linux commit f09bddbd8661 ("vmcoreinfo: add kallsyms_num_syms symbol"), v6.0, on; before, the row of the ten digits in the table of tokens leads there.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from itertools import islice

import numpy as np
import numpy.typing as npt

from perfguest.errors import FormatError
from perfguest.formats.image_kallsyms import ImageSymbols, Tables, decode_kallsyms
from perfguest.formats.name_index import NameIndex
from perfguest.guest.image import KernelImage
from perfguest.guest.vmcoreinfo import VmcoreInfo

U64 = npt.NDArray[np.uint64]

#: So far the other tables are from the table of tokens at most, in bytes: in Debian's kernels not half of it.
BEFORE, BEHIND = 8 << 20, 4 << 20

_DIGITS = b"".join(b"%d\0" % digit for digit in range(10))
_MAX_TRIES = 4
# The row of digits is so near to the begin of the table at least, as tokens are pieces of names.
_TOKENS_SIZE = 1 << 13


class Symbols:
    """Symbols as ``/proc/kallsyms`` has them: ``addresses`` (uint64, as in memory, ascending), ``types`` (one letter each), ``spelled``: their names, each
    with a NUL behind it. ``tables``: where they were decoded from, see :class:`perfguest.formats.image_kallsyms.ImageSymbols`."""

    def __init__(self, addresses: U64, types: bytes, spelled: bytes, tables: Tables | None = None) -> None:
        self.addresses, self.types, self.spelled, self.tables = addresses, types, spelled, tables
        self._ends = np.flatnonzero(np.frombuffer(spelled, np.uint8) == 0)
        if not len(addresses) == len(types) == len(self._ends):
            raise FormatError("symbols that do not fit together")

    def __len__(self) -> int:
        return len(self.types)

    def moved(self, distance: int) -> U64:
        """The addresses, those in the kernel's half moved by the distance in bytes."""
        return move(self.addresses, distance)

    @cached_property
    def names(self) -> list[bytes]:
        """One per symbol."""
        return self.spelled.split(b"\0")[:-1]

    @cached_property
    def _index(self) -> NameIndex:
        return NameIndex(self.spelled, np.concatenate([[0], self._ends[:-1] + 1])[: len(self)])

    def name(self, place: int) -> bytes:
        """Of the symbol at this place."""
        start = int(self._ends[place - 1]) + 1 if place else 0
        return self.spelled[start : int(self._ends[place])]

    def place_of(self, name: str) -> int | None:
        """The place of the first symbol with this name, as in the kernel's own lookup."""
        return next(self._index.places(name.encode(errors="replace")), None) if name else None

    def address_of(self, name: str) -> int | None:
        """The address of the first symbol with this name."""
        place = self.place_of(name)
        return None if place is None else int(self.addresses[place])

    def at(self, address: int) -> list[bytes]:
        """The names of the symbols at just this address."""
        key = np.uint64(address & (1 << 64) - 1)
        first, last = np.searchsorted(self.addresses, key, "left"), np.searchsorted(self.addresses, key, "right")
        return [self.name(place) for place in range(int(first), int(last))]

    def before(self, address: int) -> int | None:
        """The place of the last symbol that is not behind the address."""
        place = int(np.searchsorted(self.addresses, np.uint64(address & (1 << 64) - 1), "right")) - 1
        return place if place >= 0 else None


def move(addresses: U64, distance: int) -> U64:
    """A copy, with those in the kernel's half moved by the distance in bytes."""
    moved = addresses.copy()
    np.add(moved, np.uint64(distance % (1 << 64)), out=moved, where=moved.view(np.int64) < 0)
    return moved


NO_SYMBOLS = Symbols(np.empty(0, np.uint64), b"", b"")


def read_symbols(image: KernelImage, info: VmcoreInfo | None, lstar: int) -> Symbols:
    """The symbols of the kernel with this image. One of them is at LSTAR. Raises :class:`FormatError` if there are none, or none that make sense."""
    reason = FormatError("no kernel symbol table in its memory")
    for tokens in islice(_token_tables(image, info), _MAX_TRIES):
        start = max(0, tokens - BEFORE)
        try:
            symbols = decode(bytes(image.data[start : tokens + BEHIND]), image.base + start, image.base)
        except FormatError as error:
            reason = error
            continue
        if symbols.at(lstar):
            return symbols
        reason = FormatError("its kernel symbol table has nothing at the syscall entry")
    raise reason


def _token_tables(image: KernelImage, info: VmcoreInfo | None) -> Iterator[int]:
    """Offsets in the image of what may be in the table of tokens."""
    told = info.symbol("kallsyms_token_table") if info else None
    first = -1
    if told is not None and image.base <= told < image.end:
        first = image.data.find(_DIGITS, told - image.base, told - image.base + _TOKENS_SIZE)
        if first >= 0:
            yield first
    at = image.data.find(_DIGITS)
    while at >= 0:
        if at != first:
            yield at
        at = image.data.find(_DIGITS, at + len(_DIGITS))


def decode(data: bytes, address: int, text: int) -> Symbols:
    """The symbols whose tables ``data``, in memory at ``address``, holds; ``text``: where ``_text`` is. Raises :class:`FormatError` if there are none."""
    decoded: ImageSymbols = decode_kallsyms(data, address, text, "the guest's kernel")
    spelled = "".join(f"{name}\0" for name in decoded.names).encode()
    return Symbols(decoded.address, decoded.kind.tobytes(), spelled, decoded.tables)
