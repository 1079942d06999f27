# SPDX-License-Identifier: Apache-2.0
"""Each sample's frames out of its sources, and the unique stacks among them, before anything is named."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from perfguest.profile import I32, I64, U8, U64, Mode

BOOL = npt.NDArray[np.bool_]

#: Values from here on in perf's callchains are no addresses but say where the following ones ran: PERF_CONTEXT_MAX in include/uapi/linux/perf_event.h.
CONTEXT_MAX = np.uint64(2**64 - 4095)
_CONTEXT_MODES = {-128: Mode.HOST_KERNEL, -512: Mode.HOST_USER, -2176: Mode.GUEST_KERNEL, -2560: Mode.GUEST_USER}

#: ``RawFrames.space`` of frames that are no code: what their address is the number of.
SPACE_VM, SPACE_THREAD, SPACE_GUEST_THREAD = 1, 2, 3


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
        count = np.diff(self.start)[stacks]
        start = _offsets(count)
        rows = np.repeat(self.start[:-1][stacks] - start[:-1], count) + np.arange(start[-1])
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


def from_callchains(start: I64, address: U64, ip: U64, mode: U8, space: I64) -> RawStacks:
    """Stacks out of perf's callchains, whose markers are taken out and say the mode of what follows. A sample without addresses has its ``ip`` alone.

    ``space`` is of the sample, and counts for user frames only: the host has one kernel.
    """
    marker = address >= CONTEXT_MAX
    owner = np.repeat(np.arange(len(start) - 1), np.diff(start))
    position = np.arange(len(address))
    last = np.maximum.accumulate(np.where(marker, position, -1)) if len(address) else position
    inside = last >= start[:-1][owner]
    frame_mode = mode[owner]
    for context, meaning in _CONTEXT_MODES.items():
        frame_mode[inside & (address[last].view(np.int64) == context)] = meaning
    known = np.isin(address, np.array(list(_CONTEXT_MODES), np.int64).view(np.uint64))
    # A value up there that is no marker is junk that a frame pointer led to: nothing behind it is true either.
    junk = np.cumsum(marker & ~known)
    kept = ~marker & (junk == np.concatenate([[0], junk])[start[:-1]][owner])
    # What stands first behind a marker is where that mode was left or interrupted, no return address.
    first = np.concatenate([[False], marker[:-1]])[: len(marker)]
    count = np.bincount(owner[kept], minlength=len(start) - 1)
    chains = from_chains(_offsets(count), address[kept], mode, space)
    frame_mode = frame_mode[kept]
    user_space = np.where(frame_mode == Mode.HOST_USER, chains.frames.space, 0)
    frames = RawFrames(frame_mode, user_space, chains.frames.address, chains.frames.returns & ~first[kept], chains.frames.unproven)
    none = count == 0
    alone = from_chains(_offsets(none), ip[none], mode, np.where(mode == Mode.HOST_USER, space, 0))
    return join([RawStacks(chains.start, frames), alone])


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


def unique_stacks(stacks: RawStacks) -> tuple[RawStacks, I32, I64]:
    """The different stacks; for each stack the number of its own among them; and for each different one the first stack that it is."""
    frames = stacks.frames
    depth = np.arange(len(frames)) - stacks.start[:-1][stacks.owner]
    meta = frames.space.view(np.uint64) << np.uint64(8) | frames.mode.astype(np.uint64) << np.uint64(2) | frames.unproven.astype(np.uint64) << np.uint64(1)
    meta |= frames.returns
    first, number = _distinct(*_sums(frames.address, meta, depth, stacks.start))
    return stacks.select(first), number, first


def unique_frames(frames: RawFrames) -> tuple[RawFrames, I32, I64]:
    """The different frames; for each frame the number of its own among them; and for each different one a frame that it is."""
    order = np.lexsort((frames.unproven, frames.returns, frames.space, frames.mode, frames.address))
    ordered = frames.take(order)
    new = np.ones(len(order), bool)
    new[1:] = (
        (ordered.address[1:] != ordered.address[:-1])
        | (ordered.mode[1:] != ordered.mode[:-1])
        | (ordered.space[1:] != ordered.space[:-1])
        | (ordered.returns[1:] != ordered.returns[:-1])
        | (ordered.unproven[1:] != ordered.unproven[:-1])
    )
    number = np.empty(len(order), np.int32)
    number[order] = np.cumsum(new) - 1
    return ordered.take(new), number, order[new]


def distinct_chains(start: I64, address: U64, *columns: npt.NDArray[np.integer | np.bool_]) -> tuple[I64, I32]:
    """Of chains of addresses, each with a number of each column, the first one of each kind; and for each chain the number of its kind.

    A profile has few different chains: whatever is made of them is made of each kind once.
    """
    count = np.diff(start)
    owner = np.repeat(np.arange(len(count)), count)
    sums = _sums(address, np.zeros(len(address), np.uint64), np.arange(len(address)) - start[:-1][owner], start)
    for column in columns:
        sums = [_mix(_mix(one + seed) ^ column.astype(np.uint64)) for one, seed in zip(sums, _SEEDS, strict=True)]
    return _distinct(*sums)


def select_chains(start: I64, address: U64, chains: I64) -> tuple[I64, U64]:
    """The chains of these numbers, in their order: (start, address)."""
    count = np.diff(start)[chains]
    offsets = _offsets(count)
    return offsets, address[np.repeat(start[:-1][chains] - offsets[:-1], count) + np.arange(offsets[-1])]


def _sums(address: U64, meta: U64, depth: I64, start: I64) -> list[U64]:
    return [_sum(_mix(_mix(_mix(address + seed) ^ meta) + depth.astype(np.uint64) * seed), start) for seed in _SEEDS]


def _distinct(a: U64, b: U64) -> tuple[I64, I32]:
    """The first row of each kind, and for each row the number of its kind."""
    order = np.argsort(a)
    # One column alone is sorted many times faster, and tells nearly all apart.
    if ((a[order][1:] == a[order][:-1]) & (b[order][1:] != b[order][:-1])).any():
        order = np.lexsort((b, a))
    new = np.ones(len(a), bool)
    new[1:] = (a[order][1:] != a[order][:-1]) | (b[order][1:] != b[order][:-1])
    number = np.empty(len(a), np.int32)
    number[order] = np.cumsum(new) - 1
    return np.minimum.reduceat(order, np.flatnonzero(new)) if len(a) else np.zeros(0, np.int64), number


# Two sums of 64 bits each: among a hundred million stacks, two different ones are taken for one with a chance of one in 10^22.
_SEEDS = (np.uint64(0x9E3779B97F4A7C15), np.uint64(0xD1B54A32D192ED03))


def _mix(value: U64) -> U64:
    """Spreads each bit over all (the finaliser of the generator SplitMix64)."""
    value = (value ^ value >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ value >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return value ^ value >> np.uint64(31)


def _sum(value: U64, start: I64) -> U64:
    total: U64 = np.concatenate([np.zeros(1, np.uint64), np.cumsum(value, dtype=np.uint64)])
    result: U64 = total[start[1:]] - total[start[:-1]]
    return result


def _offsets(count: npt.NDArray[np.integer]) -> I64:
    start = np.zeros(len(count) + 1, np.int64)
    np.cumsum(count, out=start[1:])
    return start
