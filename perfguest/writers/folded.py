# SPDX-License-Identifier: Apache-2.0
"""Folded stacks: ``root;...;leaf COUNT``, one line for each different stack, as flamegraph.pl, inferno, speedscope and many others read them."""

from __future__ import annotations

import re
from collections import defaultdict
from typing import BinaryIO, Literal

import numpy as np

from perfguest.errors import UsageError
from perfguest.profile import Profile
from perfguest.writers.columns import display_names, unique_rows
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
    comm = np.where(samples.vm < 0, samples.comm, -1)
    first, kind = unique_rows(samples.stack, comm)
    totals = np.zeros(len(first), np.int64)
    np.add.at(totals, kind, samples.period if weight == "period" else 1)

    names = [_frame_text(name) for name in display_names(profile)]
    counts: defaultdict[bytes, int] = defaultdict(int)
    for stack, thread, total in zip(samples.stack[first].tolist(), comm[first].tolist(), totals.tolist(), strict=True):
        path = [names[frame] for frame in profile.stacks.of(stack)[::-1].tolist()]
        if thread >= 0:
            path.insert(0, _frame_text(escape(profile.strings[thread])))
        counts[";".join(path).encode() or b"[unknown]"] += total
    out.writelines(b"%b %d\n" % (line, counts[line]) for line in sorted(counts))


def _frame_text(name: str) -> str:
    """``name``: printable already."""
    return escape_matches(_NUMBER_AT_END, name.replace(";", r"\x3b")) or "[unknown]"
