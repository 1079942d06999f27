# SPDX-License-Identifier: Apache-2.0
"""Unwinds the copies of stacks in a guest stream, some thousand records at a time: what is kept are the different stacks."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from perfguest import stacks
from perfguest.formats.guest_stream import FLAG_CODE64, FLAG_LONG_MODE, FLAG_REGS, FLAG_USER, GuestStream
from perfguest.profile import I32, I64, U8, Mode
from perfguest.stacks import RawFrames, RawStacks
from perfguest.unwind import _native as native
from perfguest.unwind.engine import Engine, Stacks
from perfguest.unwind.engine import Samples as Input

Bool = npt.NDArray[np.bool_]

#: Records that are unwound at once.
_BATCH = 8192
# So many different stacks are collected before the equal ones among them are sought.
_COMPACT = 1 << 17
_HOW = np.uint8(15)
# The module's frame-pointer chain may know more of such a program.
_LOST_AT_ONCE = (native.END_NO_MAPPING, native.END_NO_TABLE)
_COMPLETE = (native.END_USER_ENTRY, native.END_THREAD_START, native.END_START)


@dataclass(frozen=True)
class Addressing:
    """Columns by record. ``vm``: int32, 0 and up, or -1. ``kernel``, ``space``: numbers for the engine (a kernel and an address space), -1 for none.

    ``kernel_space``, ``user_space``: int64, what tells equal addresses apart in :class:`RawFrames`.
    """

    vm: I32
    kernel: I32
    space: I32
    kernel_space: I64
    user_space: I64


@dataclass
class Tally:
    """What became of the stacks of one VM. By ``END_*``: records whose kernel part, and whose user part, ended so; by ``HOW_*``: frames found so."""

    kernel: I64 = field(default_factory=lambda: np.zeros(16, np.int64))
    user: I64 = field(default_factory=lambda: np.zeros(16, np.int64))
    how_kernel: I64 = field(default_factory=lambda: np.zeros(16, np.int64))
    how_user: I64 = field(default_factory=lambda: np.zeros(16, np.int64))


@dataclass(frozen=True)
class Unwound:
    """``stacks``: different stacks, leaf first, the guest kernel's frames before those of its user program. ``of_record``: int64, each record's among them.

    ``kernel``, ``user``: bool by record, the stack has that part. ``kernel_end``, ``user_end``: uint8 by record, ``END_*``. ``tallies``: by VM.
    """

    stacks: RawStacks
    of_record: I64
    kernel: Bool
    user: Bool
    kernel_end: U8
    user_end: U8
    tallies: list[Tally]


def unwind(tables: Engine, stream: GuestStream, where: Addressing, vms: int, scan: bool = False) -> Unwound:
    """Unwinds every record that has copies and 64-bit code. ``vms``: how many there are. ``scan``: take whatever looks like a return address."""
    samples = stream.samples
    mode = _modes(samples.column("flags", np.uint64))
    number = len(mode)
    result = _Collected(number, [Tally() for _ in range(vms)])
    for first in range(0, number, _BATCH):
        rows = np.arange(first, min(first + _BATCH, number))
        walked = _walk(tables.scan if scan else tables.walk, stream, where, mode, rows)
        result.add(rows, walked, where)
        stream.let_go()
    return result.finish()


def _modes(flags: npt.NDArray[np.uint64]) -> U8:
    needed = np.uint64(FLAG_REGS | FLAG_LONG_MODE | FLAG_CODE64)
    user = (flags & np.uint64(FLAG_USER)) != 0
    return np.where((flags & needed) == needed, np.where(user, native.MODE_USER, native.MODE_KERNEL), native.MODE_SKIP).astype(np.uint8)


def _walk(run: Callable[..., Stacks], stream: GuestStream, where: Addressing, mode: U8, rows: I64) -> Stacks:
    samples, copies = stream.samples, stream.samples.copies
    first, last = copies.start[rows[0]], copies.start[rows[-1] + 1]
    part = slice(rows[0], rows[-1] + 1)
    # Without a copy the leaf is all there is; the module's own chains know that.
    has_copy = np.diff(copies.start[rows[0] : rows[-1] + 2]) > 0
    return run(
        Input(
            memory=stream.memory,
            registers=samples.registers(part),
            mode=np.where(has_copy, mode[part], native.MODE_SKIP).astype(np.uint8),
            kernel=where.kernel[part],
            space=where.space[part],
            copy_start=copies.start[rows[0] : rows[-1] + 2] - first,
            copy_address=copies.address[first:last],
            copy_offset=copies.offset[first:last],
            copy_size=copies.size[first:last],
        )
    )


class _Collected:
    def __init__(self, number: int, tallies: list[Tally]) -> None:
        self._of_record = np.full(number, -1, np.int64)
        self._kernel, self._user = np.zeros(number, bool), np.zeros(number, bool)
        self._kernel_end, self._user_end = np.zeros(number, np.uint8), np.zeros(number, np.uint8)
        self._parts: list[RawStacks] = []
        self._count = self._compacted = 0
        self._tallies = tallies

    def add(self, rows: I64, walked: Stacks, where: Addressing) -> None:
        built = _raw(walked, where, rows)
        unique, number, _ = stacks.unique_stacks(built)
        self._of_record[rows] = self._count + number
        self._parts.append(unique)
        self._count += len(unique)
        if self._count - self._compacted > _COMPACT:
            self._compact()
        owner, of_user = built.owner, built.frames.mode == Mode.GUEST_USER
        self._kernel[rows[owner[~of_user]]] = True
        self._user[rows[owner[of_user]]] = True
        self._kernel_end[rows] = np.where(self._kernel[rows], walked.kernel_end, native.END_NONE)
        self._user_end[rows] = np.where(self._user[rows], walked.user_end, native.END_NONE)
        all_owner = np.repeat(np.arange(len(rows)), np.diff(walked.start))
        all_user, how = (walked.how & native.FRAME_USER) != 0, walked.how & _HOW
        for tally, mine in self._of_vms(where.vm[rows]):
            tally.kernel += np.bincount(self._kernel_end[rows[mine]], minlength=16)
            tally.user += np.bincount(self._user_end[rows[mine]], minlength=16)
            tally.how_kernel += np.bincount(how[(mine & self._kernel[rows])[all_owner] & ~all_user], minlength=16)
            tally.how_user += np.bincount(how[(mine & self._user[rows])[all_owner] & all_user], minlength=16)

    def finish(self) -> Unwound:
        self._compact()
        found = self._parts[0] if self._parts else stacks.empty(0)
        return Unwound(found, self._of_record, self._kernel, self._user, self._kernel_end, self._user_end, self._tallies)

    def _of_vms(self, vm: I32) -> Iterator[tuple[Tally, Bool]]:
        for place in np.unique(vm[vm >= 0]).tolist():
            yield self._tallies[place], vm == place

    def _compact(self) -> None:
        if not self._parts:
            return
        unique, number, _ = stacks.unique_stacks(stacks.concatenate(self._parts))
        done = self._of_record >= 0
        self._of_record[done] = number[self._of_record[done]]
        self._parts = [unique]
        self._count = self._compacted = len(unique)


def _raw(walked: Stacks, where: Addressing, rows: I64) -> RawStacks:
    """Without the parts that the walk could not tell anything of: kernels and processes that are not known, user programs that it lost at once."""
    owner = np.repeat(np.arange(len(rows)), np.diff(walked.start))
    user, how = (walked.how & native.FRAME_USER) != 0, walked.how & _HOW
    alone = np.bincount(owner[user], minlength=len(rows)) == 1
    lost = (where.space[rows] < 0) | (alone & np.isin(walked.user_end, _LOST_AT_ONCE))
    frames = RawFrames(
        mode=np.where(user, Mode.GUEST_USER, Mode.GUEST_KERNEL).astype(np.uint8),
        space=np.where(user, where.user_space[rows][owner], where.kernel_space[rows][owner]),
        address=walked.address,
        returns=(walked.how & native.FRAME_RETURN) != 0,
        unproven=how == native.HOW_SCAN,
    )
    return RawStacks(walked.start, frames).keep(np.where(user, ~lost[owner], where.kernel[rows][owner] >= 0))


#: In words, for the summary. The first are complete.
ENDS = {
    native.END_USER_ENTRY: "whole",
    native.END_THREAD_START: "whole",
    native.END_START: "whole",
    native.END_CUT: "cut by the copy's end",
    native.END_NO_MAPPING: "in no mapping that was read",
    native.END_NO_TABLE: "in code without tables",
    native.END_NO_RULE: "without a rule",
    native.END_PAGES: "tables not in the guest's page cache",
    native.END_BAD: "stack contradicts itself",
    native.END_EXPRESSION: "rule not understood",
    native.END_DEPTH: "too deep",
    native.END_COMPAT: "32-bit program",
}
HOWS = {
    native.HOW_ORC: "ORC",
    native.HOW_CFI: ".eh_frame",
    native.HOW_KEPT: "kept .eh_frame",
    native.HOW_FP: "frame pointer",
    native.HOW_CODE: "their code",
    native.HOW_RETURN: "top of the stack",
    native.HOW_SCAN: "scan (unproven)",
}


def describe(tally: Tally) -> list[str]:
    """Lines for people: how many stacks are whole, why others are not, and how frames were found."""
    return [
        f"{what} stacks: {_ends(ends)}; frames by {_hows(hows)}"
        for what, ends, hows in (("kernel", tally.kernel, tally.how_kernel), ("user", tally.user, tally.how_user))
        if ends[1:].sum()
    ]


def _ends(counts: I64) -> str:
    total = int(counts[1:].sum())
    whole = int(counts[list(_COMPLETE)].sum())
    rest = [f"{int(counts[end])} {text}" for end, text in ENDS.items() if end not in _COMPLETE and counts[end]]
    return f"{whole} of {total} ({100 * whole / total:.2f}%) whole" + "".join(f", {one}" for one in rest)


def _hows(counts: I64) -> str:
    total = max(int(counts[1:].sum()), 1)
    return ", ".join(f"{text} {100 * int(counts[how]) / total:.1f}%" for how, text in HOWS.items() if counts[how]) or "registers alone"
