# SPDX-License-Identifier: Apache-2.0
"""Each sample's frames out of its sources, and the unique stacks among them, before anything is named."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from perfguest import _native
from perfguest.profile import I32, I64, U8, U64, Mode
from perfguest.rows import distinct_lists, distinct_rows, select_lists

if TYPE_CHECKING:
    from perfguest._native import Buffer

BOOL = npt.NDArray[np.bool_]

#: ``misc & PERF_RECORD_MISC_CPUMODE_MASK`` (include/uapi/linux/perf_event.h) to :class:`Mode`; the hypervisor's own mode is none of ours.
_CPUMODES = np.array([Mode.NONE, Mode.HOST_KERNEL, Mode.HOST_USER, Mode.NONE, Mode.GUEST_KERNEL, Mode.GUEST_USER, Mode.NONE, Mode.NONE], np.uint8)

#: ``RawFrames.space`` of frames that are no code: what their address is the number of.
SPACE_VM, SPACE_THREAD, SPACE_GUEST_THREAD = 1, 2, 3


def sample_modes(cpumode: U8) -> U8:
    """The :class:`Mode` of samples of these cpumodes."""
    modes: U8 = _CPUMODES[cpumode & 7]
    return modes


@dataclass(frozen=True)
class Callchains:
    """perf's callchains where they are: ``length`` (int64) words from the byte ``at`` (int64) of ``data`` on, leaf first, with markers."""

    data: Buffer
    at: I64
    length: I64

    def select(self, chains: I64) -> Callchains:
        """Those of these numbers, in their order."""
        return Callchains(self.data, self.at[chains], self.length[chains])


@dataclass(frozen=True)
class RawFrames:
    """Columns of frames without names.

    ``mode``: uint8, a :class:`Mode`. ``space``: int64, what tells equal addresses apart (the process, the VM, the guest's address space).
    ``address``: uint64. ``returns``: bool, a return address: the instruction before it is the caller's. ``unproven``: bool, only looks like one.
    """

    mode: U8
    space: I64
    address: U64
    returns: BOOL
    unproven: BOOL

    def __len__(self) -> int:
        return len(self.address)

    def take(self, rows: npt.NDArray[np.integer] | BOOL) -> RawFrames:
        return RawFrames(self.mode[rows], self.space[rows], self.address[rows], self.returns[rows], self.unproven[rows])


@dataclass(frozen=True)
class RawStacks:
    """Stack *i* is ``frames`` from ``start[i]`` to ``start[i + 1]``, leaf first."""

    start: I64
    frames: RawFrames

    def __len__(self) -> int:
        return len(self.start) - 1

    @property
    def owner(self) -> I64:
        """For each frame the stack that it belongs to."""
        return np.repeat(np.arange(len(self)), np.diff(self.start))

    def keep(self, rows: BOOL) -> RawStacks:
        """Without the frames that are False in ``rows``."""
        count = np.bincount(self.owner[rows], minlength=len(self))
        return RawStacks(_offsets(count), self.frames.take(rows))

    def select(self, stacks: I64) -> RawStacks:
        """The stacks of these numbers, in their order."""
        start, rows = select_lists(self.start, stacks)
        return RawStacks(start, self.frames.take(rows))


def empty(count: int) -> RawStacks:
    """So many stacks without frames."""
    none = np.zeros(0, np.int64)
    return from_chains(np.zeros(count + 1, np.int64), none.view(np.uint64), np.zeros(count, np.uint8), np.zeros(count, np.int64))


def from_chains(start: I64, address: U64, mode: U8, space: I64) -> RawStacks:
    """Stacks of one mode a sample: ``mode`` and ``space`` are of the sample. All but the first frame are return addresses."""
    count = np.diff(start)
    returns = np.ones(len(address), bool)
    returns[start[:-1][count > 0]] = False
    return RawStacks(start, RawFrames(np.repeat(mode, count), np.repeat(space, count), address, returns, np.zeros(len(address), bool)))


def from_callchains(chains: Callchains, ip: U64, mode: U8, space: I64) -> RawStacks:
    """Stacks out of perf's callchains, whose markers are taken out and say the mode of what follows. A sample without addresses has its ``ip`` alone.

    A value among the markers that is none is junk that a frame pointer led to, and nothing behind it is true either.
    ``space`` is of the sample, and counts for user frames only: the host has one kernel.
    """
    columns = _native.callchain_frames(
        chains.data, _flat(chains.at), _flat(chains.length), _flat(ip), _flat(mode.astype(np.uint8, copy=False)), _flat(space.astype(np.int64, copy=False))
    )
    start, frame_mode, frame_space, address, returns = columns
    count = len(frame_mode)
    frames = RawFrames(
        np.frombuffer(frame_mode, np.uint8),
        np.frombuffer(frame_space, np.int64),
        np.frombuffer(address, np.uint64),
        np.frombuffer(returns, np.bool_),
        np.zeros(count, bool),
    )
    return RawStacks(np.frombuffer(start, np.int64), frames)


def join(parts: list[RawStacks]) -> RawStacks:
    """One stack for each number: the frames of the first part's, then the second's, and so on towards the root. All parts have as many stacks."""
    number = len(parts[0])
    counts = [np.diff(part.start) for part in parts]
    start = _offsets(np.sum(counts, axis=0) if number else np.zeros(0, np.int64))
    total = int(start[-1])
    mode, space = np.empty(total, np.uint8), np.empty(total, np.int64)
    address, returns, unproven = np.empty(total, np.uint64), np.empty(total, bool), np.empty(total, bool)
    at = start[:-1].copy()
    for part, count in zip(parts, counts, strict=True):
        rows = np.repeat(at - part.start[:-1], count) + np.arange(part.start[-1])
        mode[rows], space[rows] = part.frames.mode, part.frames.space
        address[rows], returns[rows], unproven[rows] = part.frames.address, part.frames.returns, part.frames.unproven
        at += count
    return RawStacks(start, RawFrames(mode, space, address, returns, unproven))


def concatenate(parts: list[RawStacks]) -> RawStacks:
    """The stacks of the first part, then the second's, and so on."""
    counts = [np.diff(part.start) for part in parts]
    frames = [part.frames for part in parts]
    return RawStacks(
        _offsets(np.concatenate(counts)),
        RawFrames(
            np.concatenate([one.mode for one in frames]),
            np.concatenate([one.space for one in frames]),
            np.concatenate([one.address for one in frames]),
            np.concatenate([one.returns for one in frames]),
            np.concatenate([one.unproven for one in frames]),
        ),
    )


def cut_at(stacks: RawStacks, bad: BOOL) -> RawStacks:
    """Without the frames for which ``bad`` is True and all that lie behind them in the same stack: who called a frame that is none is not known."""
    before = np.concatenate([[0], np.cumsum(bad)])
    return stacks.keep(before[1:] == before[stacks.start[:-1]][stacks.owner])


@dataclass(frozen=True)
class NumberedStacks:
    """The different ones of some stacks, as lists of numbers of the different frames.

    Different stack *i* is ``frames[frame[start[i]:start[i + 1]]]``, leaf first. Of the given stacks: ``number`` (int32), the different one that each is;
    ``first`` (int64), for each different one the first that it is; ``holder`` (int64), for each frame the first that has it.
    """

    frames: RawFrames
    start: I64
    frame: I32
    number: I32
    first: I64
    holder: I64


def number_stacks(stacks: RawStacks) -> NumberedStacks:
    """Finds the different stacks and frames; both are numbered as they first occur."""
    frames = stacks.frames
    kind = frames.mode << np.uint8(2) | frames.returns.view(np.uint8) << np.uint8(1) | frames.unproven.view(np.uint8)
    example, frame = distinct_rows(frames.address, frames.space, kind)
    first, number = distinct_lists((), frame, 4 * stacks.start[:-1], 4 * np.diff(stacks.start))
    start, rows = select_lists(stacks.start, first)
    holder = np.searchsorted(stacks.start, example, "right") - 1
    return NumberedStacks(frames.take(example), start, frame[rows], number, first, holder.astype(np.int64))


def cut_junk(found: NumberedStacks, junk: BOOL) -> NumberedStacks:
    """Without the frames for which ``junk`` is True behind the last other one of the host's user frames in their stack.

    Junk between others is left: code that a just-in-time compiler made may be in no mapping that is recorded, either. Stacks that are equal then are one.
    """
    host_user = found.frames.mode[found.frame] == Mode.HOST_USER
    place = np.arange(len(found.frame))
    owner = np.repeat(np.arange(len(found.first)), np.diff(found.start))
    known = np.flatnonzero(host_user & ~junk[found.frame])
    # Of the known ones the last before the stack's end; one of another stack lies before all of this one's.
    last = np.append(known, -1)[np.searchsorted(known, found.start[1:]) - 1]
    keep = ~(host_user & junk[found.frame] & (place > last[owner]))
    if keep.all():
        return found
    start = _offsets(np.bincount(owner[keep], minlength=len(found.first)))
    used = np.zeros(len(found.frames), np.bool_)
    used[found.frame[keep]] = True
    frame = (np.cumsum(used) - 1).astype(np.int32)[found.frame[keep]]
    first, number = distinct_lists((), frame, 4 * start[:-1], 4 * np.diff(start))
    start, rows = select_lists(start, first)
    return NumberedStacks(found.frames.take(used), start, frame[rows], number[found.number], found.first[first], found.holder[used])


def unique_stacks(stacks: RawStacks) -> tuple[RawStacks, I32, I64]:
    """The different stacks; for each stack the number of its own among them; and for each different one the first stack that it is."""
    found = number_stacks(stacks)
    return RawStacks(found.start, found.frames.take(found.frame)), found.number, found.first


def distinct_chains(chains: Callchains, *columns: npt.NDArray[np.integer | np.bool_]) -> tuple[I64, I32]:
    """Of callchains, each with a value of each column, the first one of each kind; and for each chain the number of its kind.

    A profile has few different chains: whatever is made of them is made of each kind once.
    """
    return distinct_lists(columns, chains.data, chains.at, 8 * chains.length)


def _flat(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.ascontiguousarray(column)


def _offsets(count: npt.NDArray[np.integer]) -> I64:
    start = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=start[1:])
    return start
