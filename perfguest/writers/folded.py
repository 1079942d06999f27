# SPDX-License-Identifier: Apache-2.0
"""Folded stacks: ``root;...;leaf COUNT``, one line for each different stack, as flamegraph.pl, inferno, speedscope and many others read them."""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from itertools import chain
from typing import BinaryIO, Literal

import numpy as np

from perfguest import _native
from perfguest.errors import UsageError
from perfguest.profile import I32, I64, Profile
from perfguest.rows import distinct_lists, distinct_rows, select_lists
from perfguest.writers.columns import frame_names, pieces
from perfguest.writers.text import escape, escape_matches

Weight = Literal["samples", "period"]

# A number that stands alone at a line's end is taken for the count, and before the count for a second one.
_NUMBER_AT_END = re.compile(r"\s(?=\d+(?:\.\d*)?$)")


def write(profile: Profile, out: BinaryIO, weight: Weight = "samples") -> None:
    """Writes the stacks to ``out``, sorted. ``weight``: count samples, or sum up their periods.

    A VM's stacks begin with the VM and the thread, all others with the thread's name. Raises :class:`UsageError` for periods of several events.
    """
    samples = profile.samples
    if weight == "period" and len(np.unique(samples.event)) > 1:
        raise UsageError("periods of different events cannot be added up", "weigh by samples, or convert a recording of one event")
    comm = np.where(samples.vm < 0, samples.comm, -1).astype(np.int32)
    first, kind = distinct_rows(samples.stack, comm)
    names = frame_names(profile)
    threads, thread = np.unique(comm[first], return_inverse=True)
    texts = [names.names, [escape(profile.strings[one]) if one >= 0 else "" for one in threads.tolist()]]
    addresses, ends = _native.hexadecimal(names.addresses)
    text, text_ends = pieces(_frame_text(name).encode() for name in chain(*texts))
    # Threads' names stand between the frames' and the addresses.
    number = names.number + np.where(names.number < len(names.names), 0, len(threads)).astype(np.int32)
    root = np.where(threads >= 0, len(names.names) + np.arange(len(threads)), -1).astype(np.int32)[thread]
    paths = _Paths(profile.stacks.start, number[profile.stacks.frames], samples.stack[first], root)
    found = text + addresses, np.concatenate([text_ends, np.frombuffer(ends, np.int64) + len(text)])
    counts: defaultdict[bytes, int] = defaultdict(int)
    for line, total in zip(*paths.lines(found, _totals(kind, len(first), samples.period if weight == "period" else None)), strict=True):
        counts[line or b"[unknown]"] += total
    out.writelines([b"%b %d\n" % (line, counts[line]) for line in sorted(counts)])


def _totals(kind: I32, kinds: int, weights: I64 | None) -> I64:
    if weights is None:
        return np.bincount(kind, minlength=kinds).astype(np.int64)
    totals = np.zeros(kinds, np.int64)
    np.add.at(totals, kind, weights)
    return totals


@dataclass(frozen=True)
class _Paths:
    """Stacks as numbers of texts, leaf first: ``text[start[stack]:start[stack + 1]]``, and then ``root``, if that is none of -1, of each path."""

    start: I64
    text: I32
    stack: I32
    root: I32

    def lines(self, texts: tuple[bytes, I64], totals: I64) -> tuple[list[bytes], list[int]]:
        """The different paths as lines, and the sum of the ``totals`` of each: many addresses have the same name."""
        at, length = self.start[:-1][self.stack], np.diff(self.start)[self.stack]
        first, kind = distinct_lists((self.root,), self.text, 4 * at, 4 * length)
        sums = np.zeros(len(first), np.int64)
        np.add.at(sums, kind, totals)
        root = self.root[first]
        start, rows = select_lists(self.start, self.stack[first])
        ends = start + np.concatenate([np.zeros(1, np.int64), np.cumsum(root >= 0)])
        items = np.empty(ends[-1], np.int32)
        # Every path moves by as many places as there are roots before it.
        items[np.arange(len(rows)) + np.repeat(ends[:-1] - start[:-1], np.diff(start))] = self.text[rows]
        items[ends[1:][root >= 0] - 1] = root[root >= 0]
        return _native.fold(ends, items, *texts).split(b"\n")[:-1], sums.tolist()


def _frame_text(name: str) -> str:
    """``name``: printable already."""
    return escape_matches(_NUMBER_AT_END, name.replace(";", r"\x3b")) or "[unknown]"
