# SPDX-License-Identifier: Apache-2.0
"""The log that ``threads_guest.c`` writes: which task ran when, by the guest's own word."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

_TICK = 10_000_000
# From one look into /proc to the next, with some room for a guest that is slow.
_LOOKS = 3_000_000_000
_SPAWNER, _PROGRAM = "pg-spawner", "brief"


@dataclass(frozen=True)
class Task:
    """A task as a sample has it. Times in ns: ``start`` of the guest's boot clock, ``time`` of the host's."""

    pid: int
    tgid: int
    start: int
    comm: str
    time: int


@dataclass
class _Life:
    """``first``, ``last``: bounds of its start; ``end``: when it was surely over. All of the guest's boot clock."""

    first: int
    last: int
    end: int
    names: set[str]
    brief: bool


class TaskLog:
    """``lines``: their words. ``begin``, ``end``: of the guest's boot clock in ns, between which it has all tasks, ``brief`` of them short-lived processes."""

    def __init__(self, lines: Iterable[list[str]]) -> None:
        self._lives: dict[int, list[_Life]] = defaultdict(list)
        brief: list[tuple[int, int]] = []
        looked: dict[tuple[int, int], _Life] = {}
        for kind, *words in lines:
            if kind == "process":
                pid, before, after, end = map(int, words[:4])
                # Until it has called itself something it has its parent's name, and after an exec the program's.
                self._lives[pid].append(_Life(before, after, end, {words[4], _SPAWNER, _PROGRAM}, True))
                brief.append((before, end))
            else:
                now, pid, ticks = map(int, words[:3])
                first = ticks * _TICK
                life = looked.setdefault((pid, ticks), _Life(first, first + _TICK, 0, set(), False))
                life.end = now + _LOOKS
                life.names.add(_own_name(" ".join(words[3:])))
        for (pid, _), life in looked.items():
            if not any(one.first <= life.last and life.first <= one.last for one in self._lives[pid]):
                self._lives[pid].append(life)
        self.brief = len(brief)
        self._begins = np.array([begin for begin, _ in sorted(brief)], np.int64)
        self.begin, self.end = brief[0][0], brief[-1][0]
        self.seconds = (self.end - self.begin) / 1e9
        self.pids = len({pid for pid, lives in self._lives.items() if any(life.brief for life in lives)})

    def pace(self, seconds: int) -> float:
        """Short-lived processes a second, of the stretch of so many seconds that had most."""
        behind = np.searchsorted(self._begins, self._begins + seconds * 10**9)
        return float((behind - np.arange(len(behind))).max()) / seconds

    def clock_distance(self, tasks: Iterable[Task]) -> int:
        """What the host's clock has more than the guest's, from the samples of brief processes, which lie within their lives."""
        least, most = [], []
        for task in tasks:
            life = self._life(task)
            if life and life.brief:
                least.append(task.time - life.end)
                most.append(task.time - task.start)
        assert len(least) > 100
        low, high = int(np.quantile(least, 0.99)), int(np.quantile(most, 0.01))
        print(f"the host's clock has {low / 1e6:.3f} to {high / 1e6:.3f} ms more than the guest's")
        return (low + high) // 2

    def ran_then(self, task: Task, distance: int) -> str:
        """Nothing if the log has a task of this pid, start and name that ran at that time; else what does not fit."""
        if task.pid == 0:
            return "" if task.comm == "swapper/0" else "the idle task has another name"
        if task.tgid != task.pid:
            return "no task here has threads"
        life = self._life(task)
        if life is None:
            return "no such task"
        if task.comm not in life.names:
            return "another name"
        return "" if life.first <= task.time - distance <= life.end else "not then"

    def _life(self, task: Task) -> _Life | None:
        return next((life for life in self._lives.get(task.pid, ()) if life.first <= task.start <= life.last), None)


def _own_name(name: str) -> str:
    """For a worker /proc appends its work queue to what it is called."""
    return re.split("[-+]", name)[0] if name.startswith("kworker/") else name
