# SPDX-License-Identifier: Apache-2.0
"""Call chains taken from outside against those that perf takes within the guest at the same time, by the guest kernel's own unwinder."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from itertools import pairwise

from tests.unwind.conftest import Guest
from tests.unwind.measure import inclusive, kernel_chain, overlap, script_chains
from tests.unwind.oracle import COMPLETE

# perf's samples are taken by a timer, so they never stand in code that has interrupts off: they stand where these were called, or are on again.
_INTERRUPT = re.compile(r"asm_sysvec_\w+|asm_common_interrupt|asm_sysvec_apic_timer_interrupt")
_SOFTIRQ = re.compile(r"handle_softirqs|__do_softirq|__softirqentry_text_start")


def _without_interrupt(chain: Sequence[str]) -> list[str]:
    """What the hard interrupt that was sampled had interrupted."""
    for place, name in enumerate(chain):
        if _SOFTIRQ.fullmatch(name):
            break
        if _INTERRUPT.fullmatch(name):
            return list(chain[place + 1 :])
    return list(chain)


def _edges(chains: Sequence[Sequence[str]]) -> list[tuple[str, ...]]:
    return [pair for chain in chains for pair in pairwise(chain)]


def test_profile_is_the_one_that_the_guest_takes_of_itself(guest: Guest, figure: Callable[[str], None]) -> None:
    rows = [row for row in guest.rows("perf") if row.walked.kernel_end in COMPLETE and row.sample.comm != "perf"]
    outside = [chain for row in rows if (chain := _without_interrupt(kernel_chain(row.walked, guest.warm.names)))]
    inside = [chain for chain in map(_without_interrupt, script_chains(guest.recorded.perf_script)) if chain]
    mine, theirs = inclusive(outside), inclusive(inside)
    frequent = [name for name in theirs if theirs[name] >= 0.05 or mine.get(name, 0) >= 0.05]
    apart = sorted(((abs(mine.get(name, 0) - theirs[name]), name) for name in frequent), reverse=True)
    edges = overlap(_edges(outside), _edges(inside))
    figure(
        f"{len(outside)} chains from outside, {len(inside)} by the guest's perf: {100 * edges:.1f}% of the calls are the same by weight;"
        f" functions with 5% or more: {len(frequent)}, mean difference {100 * sum(d for d, _ in apart) / len(apart):.1f} points; most: "
        + ", ".join(f"{name} {100 * mine.get(name, 0):.1f}/{100 * theirs[name]:.1f}" for _, name in apart[:5])
    )
    assert len(outside) >= 400 and len(inside) >= 400
    assert edges >= 0.7
    assert max(d for d, _ in apart) <= 0.15
