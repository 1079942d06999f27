# SPDX-License-Identifier: Apache-2.0
"""Whether a call chain is one that the program ``guest/truth.c`` can have: ``guest/truth.json`` lists them."""

from __future__ import annotations

import json
import re
from bisect import bisect_right
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from perfguest.proto import guest_pb2
from tests.unwind.disk import HOME, SOURCES
from tests.unwind.names import ProgramNames

_OWN = ("truth", "libtruth.so", "truth_plugin.so")
_NAMELESS = "?"


class Truth:
    """``programs``: where the compiled programs are."""

    def __init__(self, programs: Path) -> None:
        told = json.loads((SOURCES / "truth.json").read_text())
        self._names = {f"{HOME}/{name}": ProgramNames(programs / name) for name in _OWN}
        self._files = {re.compile(pattern): token for token, pattern in told["files"].items()}
        self._whole, self._far = _patterns(told)

    def tokens(self, process: guest_pb2.Process, frames: Sequence[tuple[int, bool]]) -> list[str]:
        """Of each frame the function's name if the file is one of the program's own, else the file. ``frames``: (address, whether it returns there)."""
        starts = [mapping.start for mapping in process.mappings]
        return [self._token(process.mappings, starts, address - returns) for address, returns in frames]

    def _token(self, mappings: Sequence[guest_pb2.Mapping], starts: list[int], address: int) -> str:
        at = bisect_right(starts, address) - 1
        if at < 0 or address >= mappings[at].end:
            return _NAMELESS
        mapping = mappings[at]
        path = mapping.path.decode(errors="replace")
        for place, names in self._names.items():
            if path.endswith(place):
                return names.at(address - mapping.start + mapping.offset) or _NAMELESS
        name = path.rpartition("/")[2]
        return next((token for pattern, token in self._files.items() if pattern.fullmatch(name)), _NAMELESS)

    def is_possible(self, tokens: Sequence[str]) -> bool:
        """Whether the program can have this chain, leaf first, whole."""
        return self._whole.fullmatch("".join(f"{token};" for token in tokens)) is not None

    def is_far(self, tokens: Sequence[str]) -> bool:
        """Whether it is of a signal on a stack of its own that is not in one piece with the one below, to the function that was interrupted."""
        return self._far.fullmatch("".join(f"{token};" for token in tokens)) is not None


def _patterns(told: dict[str, Any]) -> tuple[re.Pattern[str], re.Pattern[str]]:
    """Of whole chains, and of those that end on a stack of their own."""
    main = [[*chain, *told["main"]["root"], *told["entry"]] for chain in [*told["main"]["chains"], []]]
    thread = [[*chain, *told["threads"]["root"], *told["thread"]] for chain in [*told["threads"]["chains"], []]]
    # Before main and after it, a thread before its function.
    others = [told["entry"], told["thread"]]
    below = "|".join(_suffixes(chain) for chain in [*main, *thread, *others])
    near = "|".join(f"(?:{_suffixes(chain)})<libc>;" for chain in told["signals"])
    far = "|".join(f"(?:{_suffixes(chain)})<libc>;" for chain in told["far"])
    # A handler may be interrupted by another one; where it returns to the kernel it is gone itself, so that the frame made for it is the leaf.
    handlers = f"(?:{near}|<libc>;)*"
    function = "(?:[^;]+;)"
    # The code of the PLT between a caller and a library is of any function that it leads to.
    return re.compile(f"(?:[^;]*@plt;)?{handlers}(?:{below})"), re.compile(f"{handlers}(?:{far}|<libc>;){function}")


def _suffixes(chain: Sequence[str]) -> str:
    """A pattern of all that a sample somewhere in this chain may show: it begins at any of its functions."""
    result = ""
    for element in chain:
        token, many = (element[:-1], element[-1]) if element[-1] in "+*" else (element, "")
        one = f"(?:{re.escape(token)};){many}"
        result = f"(?:{result})?{one}" if result else one
    return result
