# SPDX-License-Identifier: Apache-2.0
"""What tests of the lab ask of a recording: whether it is complete, and whether the ground-truth program's chains in it are those that it has."""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from perfguest.formats.guest_stream import GuestStream, read_guest_stream
from perfguest.formats.perf_data import read_perf_data
from perfguest.formats.recording import RecordingPaths
from perfguest.merge import Side, pair
from perfguest.profile import Mode, Profile

# Not "NMI handler took too long": that is wall time, in which the emulator may not have run at all.
_TROUBLE = re.compile(r"\bBUG\b|WARNING:|\bOops\b|soft lockup|hard LOCKUP|general protection fault|detected stall")


def troubles(log: str) -> list[str]:
    """The lines of a kernel's log that should not be there."""
    return [line for line in log.splitlines() if _TROUBLE.search(line)]


def stream_of(recording: Path) -> GuestStream:
    return read_guest_stream(RecordingPaths(recording).guest_stream)


@dataclass(frozen=True)
class Pairing:
    """How many of perf's samples hit a guest, how many of these have a record of the module's, how many records it says it lost."""

    samples: int
    paired: int
    lost: int
    distances: npt.NDArray[np.int64]

    def __str__(self) -> str:
        distances = np.percentile(self.distances / 1000, [50, 99, 100])
        return f"{self.samples} guest samples, {self.paired} paired, {self.lost} lost, distance in us {distances}"

    def check(self) -> None:
        assert self.samples > 500
        assert self.samples - self.paired <= self.lost
        assert self.paired >= 0.999 * self.samples


def pairing_of(recording: Path) -> Pairing:
    """Pairs them by time, CPU and instruction pointer alone."""
    perf = read_perf_data(RecordingPaths(recording).perf_data)
    stream = stream_of(recording)
    guest = np.flatnonzero(perf.samples.cpumode >= 4)
    records = stream.samples
    pairs = pair(
        Side(perf.samples.time[guest], perf.samples.cpu[guest], perf.samples.ip[guest]),
        Side(records.column("time"), records.column("cpu", np.int32), records.column("ip", np.uint64)),
    )
    return Pairing(len(guest), pairs.paired, sum(sum(counts) for counts in stream.lost.values()), pairs.distance)


def user_chain(profile: Profile, stack: int, root: str) -> tuple[str, ...]:
    """The guest user functions of a stack, from the leaf up to ``root``, or all that there are."""
    frames = profile.stacks.of(stack)
    frames = frames[profile.frames.mode[frames] == Mode.GUEST_USER]
    names = [profile.strings[symbol] if symbol >= 0 else "?" for symbol in profile.frames.symbol[frames].tolist()]
    return tuple(names[: names.index(root) + 1] if root in names else names)


class Truth:
    """The ground-truth program's ``chains``, leaf first, with their shares of its time."""

    def __init__(self, file: Path) -> None:
        truth = json.loads(file.read_text())
        self.root: str = truth["root"]
        self.chains = {tuple(chain["frames"]): chain["share"][0] / chain["share"][1] for chain in truth["chains"]}
        # Between its leaves, the program is in the functions that call them.
        self._parts = {chain[depth:] for chain in self.chains for depth in range(len(chain))}

    @property
    def functions(self) -> set[str]:
        """All of them but the root."""
        return {function for chain in self.chains for function in chain} - {self.root}

    def possible(self, chains: Counter[tuple[str, ...]]) -> int:
        """How many of the chains the program can have."""
        return sum(count for chain, count in chains.items() if chain in self._parts)

    def check_shares(self, chains: Counter[tuple[str, ...]]) -> None:
        """Each chain comes as often as it should, within four standard deviations of a sample of this size."""
        number = sum(chains.values())
        for chain, share in self.chains.items():
            assert chains[chain] / number == pytest.approx(share, abs=4 * (share * (1 - share) / number) ** 0.5)


def known_from(profile: Profile) -> npt.NDArray[np.bool_]:
    """Which samples hit a guest from when its kernel was known on: each should have its thread."""
    samples = profile.samples
    guest = np.isin(samples.mode, [Mode.GUEST_KERNEL, Mode.GUEST_USER])
    first = int(np.flatnonzero(guest & (samples.guest_tid >= 0))[0])
    return guest & (np.arange(len(guest)) >= first)


def chains_of_truth(profile: Profile, rows: npt.NDArray[np.bool_], root: str) -> Counter[tuple[str, ...]]:
    """The user chains of the program's samples in user mode among these, found by their thread's name."""
    mine = rows & (profile.samples.mode == Mode.GUEST_USER) & np.isin(profile.samples.guest_comm, [profile.strings.index("pg-truth")])
    return Counter(user_chain(profile, int(stack), root) for stack in profile.samples.stack[mine].tolist())
