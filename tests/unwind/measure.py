# SPDX-License-Identifier: Apache-2.0
"""What tests count over the walked samples of a recording."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.unwind.names import KernelNames
from tests.unwind.oracle import COMPLETE, Walked
from tests.unwind.stacks import Evidence, Sample

#: Between these the program that made the system call is no more, or not yet there: what its registers say belongs to nothing.
_PROGRAM_GONE = re.compile(r"bprm_execve|do_execveat_common.*|search_binary_handler|__do_execve_file.*|do_exit|exit_mmap")


@dataclass(frozen=True)
class Row:
    sample: Sample
    walked: Walked


# Standard deviations of the normal distribution, one-sided.
_ONE_IN_A_HUNDRED = 2.33


@dataclass(frozen=True)
class Share:
    """``rest``: what is not good, by cause, most frequent first."""

    good: int
    total: int
    rest: Counter[str]

    @property
    def percent(self) -> float:
        return 100 * self.good / self.total if self.total else 0.0

    def reaches(self, percent: float) -> bool:
        """Whether so many or more are good, as far as a sample of this size tells: less than once in a hundred times chance alone makes it fail."""
        expected = self.total * (1 - percent / 100)
        return self.total > 0 and self.total - self.good <= expected + _ONE_IN_A_HUNDRED * (expected * percent / 100) ** 0.5

    def __str__(self) -> str:
        rest = "".join(f"\n    {count:6d} {cause}" for cause, count in self.rest.most_common(25))
        return f"{self.good} of {self.total} ({self.percent:.2f}%){rest}"


def share(rows: Iterable[Row], cause: Callable[[Row], str]) -> Share:
    """Of the rows those without a cause (an empty one) why not."""
    counts = Counter(cause(row) for row in rows)
    good = counts.pop("", 0)
    return Share(good, good + sum(counts.values()), counts)


class Causes:
    """Why a sample's stack is not whole, in words."""

    def __init__(self, evidence: Evidence, names: KernelNames) -> None:
        self._evidence = evidence
        self._names = names

    def kernel(self, row: Row) -> str:
        walked = row.walked
        if walked.kernel_end in COMPLETE:
            return ""
        last, returns = walked.kernel[-1]
        return f"{walked.kernel_end} at {self._names.at(last - returns)} in {self._names.at(walked.kernel[0][0])}"

    def user(self, row: Row) -> str:
        walked = row.walked
        if walked.user_end in COMPLETE:
            return ""
        return f"{walked.user_end} after {len(walked.user)} frames at {walked.user[-1][0] if walked.user else 0:#x}, {row.sample.comm}"

    def is_program_gone(self, row: Row) -> bool:
        """Whether the kernel was at an exec or an exit: then the registers of the program below it are of what is no more."""
        return any(_PROGRAM_GONE.fullmatch(self._names.at(address - returns)) for address, returns in row.walked.kernel)

    def is_switching(self, row: Row) -> bool:
        """Whether the kernel goes from one task to another: page table and stack are of the next one already, and which task runs is still to be said."""
        names = [self._names.at(address - returns) for address, returns in row.walked.kernel]
        return "__schedule" in names and self._evidence.process_of(row.sample) is None


def kernel_chain(walked: Walked, names: KernelNames) -> list[str]:
    """The names of its functions, leaf first."""
    return [names.at(address - returns) for address, returns in walked.kernel]


def calls(rows: Iterable[Row]) -> Counter[tuple[int, int]]:
    """(where it returns to, an address of the function that was called), by how often; kernel's alone."""
    found: Counter[tuple[int, int]] = Counter()
    for row in rows:
        kernel = row.walked.kernel
        for (callee, called), (caller, returns) in pairwise(kernel):
            if returns:
                found[caller, callee - called] += 1
    return found


def script_chains(text: str) -> Iterator[list[str]]:
    """Kernel chains, leaf first, out of what ``perf script -F comm,ip,sym`` prints: none of a sample that hit user mode, none of perf's own."""
    for block in text.split("\n\n"):
        if block.strip().startswith("perf"):
            continue
        frames = [line.split(maxsplit=1) for line in block.splitlines() if line[:1] in "\t "]
        chain = [name.strip().partition("+")[0] for address, name in frames if len(address) == 16 and address >= "ffff8"]
        if chain:
            yield chain


def inclusive(chains: Sequence[Sequence[str]]) -> dict[str, float]:
    """The share of the chains that each function is in."""
    counts = Counter(name for chain in chains for name in set(chain))
    return {name: count / len(chains) for name, count in counts.items()}


def overlap(left: Iterable[tuple[str, ...]], right: Iterable[tuple[str, ...]]) -> float:
    """How much of two distributions is the same: the sum over all values of the smaller share, 0 to 1."""
    counts = Counter(left), Counter(right)
    totals = [sum(each.values()) for each in counts]
    return sum(min(counts[0][key] / totals[0], counts[1][key] / totals[1]) for key in counts[0])
