# SPDX-License-Identifier: Apache-2.0
"""Folded stacks: ``root;...;leaf COUNT``, one line for each different stack, as flamegraph.pl, inferno, speedscope and many others read them."""

from __future__ import annotations

import re
from typing import BinaryIO, Literal

import numpy as np

from perfguest import _native
from perfguest.errors import UsageError
from perfguest.profile import I32, I64, Profile
from perfguest.rows import distinct_lists, distinct_rows
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
    totals = _sums(kind, len(first), samples.period if weight == "period" else None)
    names = frame_names(profile)
    threads, thread = distinct_rows(comm[first])
    frames = len(names.names)
    roots = [profile.strings[one] if one >= 0 else "" for one in comm[first][threads].tolist()]
    text, text_ends = pieces(_frame_text(name).encode() for name in (*names.names, *map(escape, roots)))
    addresses, ends = _native.hexadecimal(names.addresses)
    # Threads' names stand between the frames' and the addresses.
    number = names.number + np.where(names.number < frames, 0, len(roots)).astype(np.int32)
    stack, start, numbers = samples.stack[first], profile.stacks.start, number[profile.stacks.frames]
    length = np.diff(start)[stack]
    # A stack of nothing has the last of the frames' names: the one for what is unknown.
    root = np.where(comm[first] >= 0, frames + thread, np.where(length > 0, -1, frames - 1)).astype(np.int32)
    # Many addresses have the same name.
    first, kind = distinct_lists((root,), numbers, 4 * start[:-1][stack], 4 * length)
    totals = _sums(kind, len(first), totals)
    all_ends = np.concatenate([text_ends, np.frombuffer(ends, np.int64) + len(text)])
    out.write(_native.fold(stack[first], root[first], totals, start, numbers, text + addresses, all_ends))


def _sums(kind: I32, kinds: int, weights: I64 | None) -> I64:
    if weights is None:
        return np.bincount(kind, minlength=kinds).astype(np.int64)
    totals = np.zeros(kinds, np.int64)
    np.add.at(totals, kind, weights)
    return totals


def _frame_text(name: str) -> str:
    """``name``: printable already."""
    return escape_matches(_NUMBER_AT_END, name.replace(";", r"\x3b")) or "[unknown]"
