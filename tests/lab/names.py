# SPDX-License-Identifier: Apache-2.0
"""Names that a profile gives, against what the guest's own kallsyms, and nm, say of the same addresses."""

from __future__ import annotations

import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from perfguest.profile import Mode, Profile

_Frames = npt.NDArray[np.int64]


def frames_of(profile: Profile, rows: npt.NDArray[np.integer[Any]], mode: Mode, entry: range = range(0)) -> tuple[_Frames, npt.NDArray[np.bool_]]:
    """All frames of a mode of these samples, one after the other, once for each sample; and whether each is a return address: not where that mode was
    left or hit, nor behind the code by which interrupts and exceptions come and go (``entry``, its addresses)."""
    parts, returns = [np.zeros(0, np.int64)], [np.zeros(0, bool)]
    for stack, count in Counter(profile.samples.stack[rows].tolist()).items():
        frames = profile.stacks.of(stack)
        place = np.flatnonzero(profile.frames.mode[frames] == mode)
        parts.append(np.tile(frames[place], count).astype(np.int64))
        exact = np.zeros(len(place), bool)
        exact[:1] = True
        exact[1:] = [address in entry for address in profile.frames.address[frames[place[:-1]]].tolist()]
        returns.append(np.tile(~exact, count))
    return np.concatenate(parts), np.concatenate(returns)


class Functions:
    """Functions by address. Of a lookup any of the names at the nearest one below is right."""

    def __init__(self, rows: Iterable[tuple[int, str]]) -> None:
        self._names: dict[int, set[str]] = defaultdict(set)
        for address, name in rows:
            self._names[address].add(name)
        self._starts = np.array(sorted(self._names), np.uint64)

    def at(self, address: int) -> set[str]:
        place = int(np.searchsorted(self._starts, np.uint64(address), "right")) - 1
        return self._names[int(self._starts[place])] if place >= 0 else set()

    def compare(self, profile: Profile, frames: _Frames, returns: npt.NDArray[np.bool_]) -> tuple[int, Counter[tuple[str, str]]]:
        """How many frames are named so, and which (name, address) are named otherwise; what has no name is neither."""
        right, wrong = 0, Counter[tuple[str, str]]()
        pairs = Counter(zip(frames.tolist(), returns.tolist(), strict=True))
        for (frame, is_return), count in pairs.items():
            symbol, address = int(profile.frames.symbol[frame]), int(profile.frames.address[frame])
            if symbol < 0:
                continue
            # "? ": that the address is a return address is inferred. Its name has to be right all the same.
            if profile.strings[symbol].removeprefix("? ") in self.at(address - is_return):
                right += count
            else:
                wrong[profile.strings[symbol], f"{address:#x}"] += count
        return right, wrong


def kernel_functions(kallsyms: Iterable[tuple[int, str, str]]) -> Functions:
    """``kallsyms``: (address, type, name)."""
    return Functions((address, name) for address, kind, name in kallsyms if kind in "tTwW" and address >> 63)


def entry_code(kallsyms: Iterable[tuple[int, str, str]]) -> range:
    """Where interrupts and exceptions come and go: the .entry.text of the kernel."""
    places = {name: address for address, _, name in kallsyms if name in ("__entry_text_start", "__entry_text_end")}
    return range(places["__entry_text_start"], places["__entry_text_end"])


def address_of(kallsyms: Iterable[tuple[int, str, str]], name: str) -> int:
    """Of the first symbol of this name."""
    return next(address for address, _, known in kallsyms if known == name)


def program_functions(program: Path) -> Functions:
    """As nm has them."""
    listing = subprocess.run(["nm", program], check=True, capture_output=True, text=True).stdout
    words = [line.split() for line in listing.splitlines()]
    return Functions((int(line[0], 16), line[2]) for line in words if len(line) == 3 and line[1] in "tTwWi")


def init_functions(module: Path) -> set[str]:
    """Functions of a kernel module that are there while it is loaded only; afterwards no kallsyms has them."""
    listing = subprocess.run(["nm", "--format=sysv", module], check=True, capture_output=True, text=True).stdout
    rows = [[word.strip() for word in line.split("|")] for line in listing.splitlines()]
    return {row[0] for row in rows if len(row) == 7 and row[3] == "FUNC" and row[6] == ".init.text"}
