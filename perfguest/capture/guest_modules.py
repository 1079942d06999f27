# SPDX-License-Identifier: Apache-2.0
"""Which of a guest's modules are to be read: notices that some were loaded since the kernel was read, as samples hit code where none was; and whose code is
not there yet."""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterable
from typing import Any

import numpy as np

from perfguest.proto import guest_pb2 as pb

#: Where modules and BPF programs are (Documentation/arch/x86/x86_64/mm.rst), below the second only in a kernel without KASLR.
CODE_START, CODE_START_KASLR, CODE_END = 0xFFFF_FFFF_A000_0000, 0xFFFF_FFFF_C000_0000, 0xFFFF_FFFF_FF00_0000
_PAGE = 4096
_PAUSE_SECONDS, _TIMES = 1.0, 64
_MOST_PAGES = 4096
# Bytes of code of one module, and of all of a kernel's.
_LARGEST_TEXT, _MOST_TEXT = 16 << 20, 64 << 20


def keep_known(before: Iterable[pb.Module], now: Iterable[pb.Module]) -> None:
    """Gives modules that are still there the symbols and ORC tables that could be read of them before, and not now."""
    known = {(module.name, module.address, module.build_id): module for module in before}
    for module in now:
        earlier = known.get((module.name, module.address, module.build_id))
        if earlier and earlier.symbols.types and not module.symbols.types:
            module.symbols.CopyFrom(earlier.symbols)
        if earlier and earlier.orc.addresses and not module.orc.addresses:
            module.orc.CopyFrom(earlier.orc)


class ModuleWatch:
    """Of one kernel of one VM."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._ends: list[int] = []
        self._first = CODE_START_KASLR
        # Pages that were hit and that no reading explains: trampolines, and what was unloaded before it was read.
        self._unexplained: set[int] = set()
        self._new: set[int] = set()
        self._last: bytes | None = None
        self._read_at = 0.0
        self._left = _TIMES
        self._when = 0
        self._final = False

    def took(self, kernel: pb.VmKernel) -> bool:
        """What was read now; gives whether it is anything new."""
        self._read_at = time.monotonic()
        self._first = CODE_START if kernel.lstar < CODE_START else CODE_START_KASLR
        ranges = [(module.address, module.address + module.size) for module in kernel.modules]
        # Programs have no size: each is on its page at least.
        ranges += [(start & -_PAGE, (start & -_PAGE) + _PAGE) for start in np.frombuffer(kernel.bpf.addresses, "<u8").tolist()]
        ranges.sort()
        self._starts, self._ends = [start for start, _ in ranges], [end for _, end in ranges]
        if len(self._unexplained) < _MOST_PAGES:
            self._unexplained |= {page for page in self._new if not self._explains(page)}
        self._new.clear()
        mark = pb.VmKernel(modules=kernel.modules, bpf=kernel.bpf).SerializeToString(deterministic=True)
        changed, self._last = mark != self._last, mark
        return changed

    def saw(self, pages: Iterable[int], when: int) -> None:
        """Pages (addresses) of code that samples hit, the last at ``when``."""
        fresh = {page for page in pages if self._first <= page < CODE_END and page not in self._unexplained and not self._explains(page)}
        if fresh and len(self._new) < _MOST_PAGES and len(self._unexplained) < _MOST_PAGES:
            self._when = self._when if self._new else when
            self._new |= fresh

    def end(self, when: int) -> None:
        """The recording ends: once more it is to be read, for what was hit by callers only."""
        if not self._final:
            self._final, self._when, self._left = True, self._when if self._new else when, max(self._left, 1)
            self._read_at, self._new = 0.0, self._new | {0}

    def request(self) -> dict[str, Any] | None:
        """What is to be asked for, if it is time."""
        if not self._new or self._left <= 0 or time.monotonic() < self._read_at + _PAUSE_SECONDS:
            return None
        return {"do": "modules", "time": self._when}

    def asked(self) -> None:
        """It is being read; should that fail, it is not tried again for these pages."""
        self._left -= 1
        self._new.discard(0)
        self._read_at = time.monotonic()

    def failed(self) -> None:
        """It could not be read."""
        self._unexplained |= self._new
        self._new.clear()

    def _explains(self, page: int) -> bool:
        at = bisect_right(self._starts, page + _PAGE - 1) - 1
        return at >= 0 and page < self._ends[at]


class ModuleTexts:
    """Code of the modules of one kernel of one VM: asked for once each, when there is nothing else to do."""

    def __init__(self) -> None:
        self._known: set[tuple[int, int]] = set()
        self._wanted: list[tuple[int, int]] = []
        self._left = _MOST_TEXT

    def took(self, modules: Iterable[pb.Module]) -> None:
        """What was read of the kernel now."""
        for module in modules:
            place = module.address, module.size
            inside = CODE_START <= module.address < CODE_END and 0 < module.size <= min(_LARGEST_TEXT, self._left)
            if inside and place not in self._known:
                self._known.add(place)
                self._wanted.append(place)
                self._left -= module.size

    def request(self) -> dict[str, Any] | None:
        """What is to be asked for."""
        return {"do": "text", "address": self._wanted[0][0], "size": self._wanted[0][1]} if self._wanted else None

    def asked(self) -> None:
        """It is being read; should that fail, it is not tried again."""
        del self._wanted[0]
