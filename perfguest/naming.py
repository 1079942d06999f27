# SPDX-License-Identifier: Apache-2.0
"""Names for unique frames: asks each kind of frame's symbols once, and puts the answers into the profile's columns."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from perfguest.profile import I32, I64, Frames, Mapping, Mode
from perfguest.rows import distinct_rows
from perfguest.stacks import SPACE_GUEST_THREAD, SPACE_THREAD, SPACE_VM, NumberedStacks, RawFrames, cut_junk
from perfguest.symbols.host import HostSymbols
from perfguest.symbols.resolved import Resolved

_ROOT_MAPPINGS = {SPACE_VM: "[vm]", SPACE_THREAD: "[thread]", SPACE_GUEST_THREAD: "[guest-thread]"}
# As the kernel's own stack traces mark what only looks like a return address: printk_stack_address() in arch/x86/kernel/dumpstack.c.
_UNPROVEN = "? "


def without_junk(found: NumberedStacks, host: HostSymbols, times: I64, pids: I32) -> NumberedStacks:
    """Without what stands behind the last frame of a host's program that lies in its code: where frame pointers led in programs that have none.

    ``times``, ``pids``: for each frame those of a sample that it occurs in. Of a process of which nothing is known to be mapped nothing is left out.
    """
    frames = found.frames
    rows = np.flatnonzero((frames.mode == Mode.HOST_USER) & frames.returns & (frames.space >= 0))
    junk = np.zeros(len(frames), np.bool_)
    junk[rows] = ~host.is_mapped(pids[rows], times[rows], frames.address[rows] - np.uint64(1))
    return cut_junk(found, junk)


@dataclass
class FrameNames:
    """The columns of :class:`Frames`, filled kind by kind."""

    raw: RawFrames
    strings: dict[str, int] = field(default_factory=dict)
    mappings: dict[tuple[str, str, int, int, int], int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        number = len(self.raw)
        self._symbol: I32 = np.full(number, -1, np.int32)
        self._mapping: I32 = np.full(number, -1, np.int32)
        self._offset = np.zeros(number, np.uint64)

    def string(self, text: str) -> int:
        return self.strings.setdefault(text, len(self.strings))

    def rows(self, mode: Mode) -> I64:
        return np.flatnonzero(self.raw.mode == mode)

    def looked_up(self, rows: I64) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
        """The addresses to look up: of a return address the byte before, the call's. Where a call that never returns ends, the next function may begin."""
        return self.raw.address[rows] - self.raw.returns[rows].astype(np.uint64)

    def set(self, rows: I64, resolved: Resolved) -> None:
        """``resolved`` holds the answers for :meth:`looked_up` of the same rows."""
        named = resolved.name >= 0
        for mark, marked in (("", named & ~self.raw.unproven[rows]), (_UNPROVEN, named & self.raw.unproven[rows])):
            if marked.any():
                names = np.array([self.string(mark + name) for name in resolved.names], np.int32)
                self._symbol[rows[marked]] = names[resolved.name[marked]]
        self._offset[rows[named]] = resolved.offset[named] + self.raw.returns[rows[named]]
        first, which = distinct_rows(resolved.dso, resolved.start, resolved.limit, resolved.pgoff)
        columns = (resolved.dso[first], resolved.start[first], resolved.limit[first], resolved.pgoff[first])
        numbers = [self._mapping_number(resolved, *key) for key in zip(*(column.tolist() for column in columns), strict=True)]
        if len(rows):
            self._mapping[rows] = np.array(numbers, np.int32)[which]

    def _mapping_number(self, resolved: Resolved, dso: int, start: int, limit: int, pgoff: int) -> int:
        if dso < 0:
            return -1
        found = resolved.dsos[dso]
        return self.mappings.setdefault((found.name, found.build_id, start, limit, pgoff), len(self.mappings))

    def set_host(self, host: HostSymbols, times: I64, pids: I32) -> None:
        """Names for the host's frames. ``times``, ``pids``: for each frame those of a sample that it occurs in."""
        kernel, user = self.rows(Mode.HOST_KERNEL), self.rows(Mode.HOST_USER)
        self.set(kernel, host.resolve_kernel(self.looked_up(kernel)))
        self.set(user, host.resolve_user(pids[user], times[user], self.looked_up(user)))

    def set_roots(self, vm_names: list[str], thread_names: dict[int, str], guest_names: list[str]) -> None:
        """Names for the frames that are no code: VMs, threads, and the guest's threads, of which the frame has the number of the name."""
        rows = self.rows(Mode.NONE)
        for row, space, number in zip(rows.tolist(), self.raw.space[rows].tolist(), self.raw.address[rows].tolist(), strict=True):
            name = thread_names[number] if space == SPACE_THREAD else (vm_names if space == SPACE_VM else guest_names)[number]
            self._symbol[row] = self.string(name)
            self._mapping[row] = self.mappings.setdefault((_ROOT_MAPPINGS[space], "", 0, 0, 0), len(self.mappings))

    def frames(self) -> Frames:
        address = np.where(self.raw.mode == Mode.NONE, np.uint64(0), self.raw.address)
        return Frames(address, self.raw.mode, self._symbol, self._offset, self._mapping)

    def profile_mappings(self) -> list[Mapping]:
        with_symbols = set(self._mapping[self._symbol >= 0].tolist())
        return [Mapping(name, build_id, start, limit, pgoff, number in with_symbols) for (name, build_id, start, limit, pgoff), number in self.mappings.items()]
