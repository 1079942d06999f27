# SPDX-License-Identifier: Apache-2.0
"""User stacks of unmodified programs, from their .eh_frame in the guest's page cache; those of a program of ours are known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable

import pytest

from tests.unwind.code_steps import compared
from tests.unwind.conftest import Guest
from tests.unwind.disk import SOURCES
from tests.unwind.measure import Row, Share, share
from tests.unwind.oracle import COMPLETE
from tests.unwind.truth import Truth


@pytest.fixture(scope="module")
def truth(guest: Guest) -> Truth:
    return Truth(guest.programs)


def _of(guest: Guest, comm: str) -> list[Row]:
    """Samples of a program, as far as the kernel did not just make or end it, or switch to another."""
    rows = [row for row in guest.warm.rows if row.sample.comm == comm and (row.sample.user or row.sample.has_user_copy)]
    causes = guest.warm.causes
    return [row for row in rows if not (causes.is_program_gone(row) or causes.is_switching(row))]


def _tokens(guest: Guest, truth: Truth, row: Row) -> list[str]:
    process = guest.warm.evidence.process_of(row.sample)
    return truth.tokens(process, row.walked.user) if process else []


def test_truth_is_told(guest: Guest, truth: Truth, figure: Callable[[str], None]) -> None:
    """All stacks of the program are whole, but those on a stack that is far from the one below: there the copy ends, and the stack where it must."""

    def cause(row: Row) -> str:
        tokens = _tokens(guest, truth, row)
        if row.walked.user_end in COMPLETE:
            return "" if truth.is_possible(tokens) else f"impossible: {' '.join(tokens)}"
        if row.walked.user_end == "CUT" and truth.is_far(tokens):
            return ""
        return f"{row.walked.user_end}: {' '.join(tokens)}"

    found = share(_of(guest, "truth"), cause)
    figure(f"the known program's stacks as they can be: {found}")
    assert found.total >= 1200
    assert found.reaches(99.0)
    impossible = sum(count for why, count in found.rest.items() if why.startswith("impossible"))
    assert impossible <= 0.001 * found.total


def test_all_of_the_truth_was_there(guest: Guest, truth: Truth) -> None:
    told = json.loads((SOURCES / "truth.json").read_text())
    chains = [*told["main"]["chains"], told["main"]["root"], *told["threads"]["chains"], *told["signals"], *told["far"]]
    wanted = {name.rstrip("+*") for chain in chains for name in chain}
    # These are but a few instructions.
    wanted -= {name for name in wanted if name.endswith("@plt")} | {"use_stack"}
    seen = {token for row in _of(guest, "truth") for token in _tokens(guest, truth, row)}
    assert wanted - seen == set()


@pytest.mark.parametrize("program", ["perl", "python3", "openssl"])
def test_stacks_of_debians_programs_are_whole(guest: Guest, program: str, figure: Callable[[str], None]) -> None:
    found = share(_of(guest, program), guest.warm.causes.user)
    figure(f"user stacks of {program} whole: {found}")
    assert found.total >= 500
    assert found.reaches(99.0)


def test_the_program_stands_below_its_system_calls(guest: Guest, figure: Callable[[str], None]) -> None:
    rows = [row for row in _of(guest, "storm") if not row.sample.user and row.walked.kernel_end == "USER_ENTRY"]
    found = share(rows, guest.warm.causes.user)
    figure(f"user stacks below kernel stacks whole: {found}")
    assert found.total >= 1000
    assert found.reaches(98.0)


def test_steps_by_the_code_are_those_of_the_tables(guest: Guest, figure: Callable[[str], None]) -> None:
    """All that are taken, that is, lead to a proven return address: to the same place, with the same registers."""
    counts = compared(guest.warm.evidence)
    not_taken = {"no rule", "not proven", "not in the copies"}
    figure(f"steps by code not taken: {', '.join(f'{counts[why]} {why}' for why in sorted(not_taken))}")
    good = counts.pop("")
    rest = Counter({why: count for why, count in counts.items() if why not in not_taken})
    found = Share(good, good + rest.total(), rest)
    figure(f"steps by code as by tables: {found}")
    assert found.total >= 25000
    assert found.reaches(99.9)
    assert rest["wrong RIP"] + rest["wrong RSP"] <= 0.0005 * found.total


def test_stacks_by_the_code_alone(guest: Guest, figure: Callable[[str], None]) -> None:
    """Of stacks that are whole by tables: they are so without any, too, or end early. None is another."""
    tables = {id(code): table for code, table in zip(guest.warm.by_code, guest.warm.rows, strict=True)}

    def cause(row: Row) -> str:
        found, wanted = row.walked, tables[id(row)].walked
        if (found.user, found.user_end) == (wanted.user, wanted.user_end):
            return ""
        is_part = found.user == wanted.user[: len(found.user)] and found.user_end not in COMPLETE
        return f"{found.user_end}, {row.sample.comm}" if is_part else f"other: {guest.warm.causes.user(row)}"

    rows = [row for row in guest.warm.by_code if tables[id(row)].walked.user_end in COMPLETE]
    found = share(rows, cause)
    figure(f"user stacks whole by the code alone: {found}")
    assert found.total >= 5000
    assert found.reaches(93.0)
    assert sum(count for why, count in found.rest.items() if why.startswith("other")) <= 0.001 * found.total


def test_what_is_missing_in_the_page_cache_is_said(guest: Guest, figure: Callable[[str], None]) -> None:
    """Of its programs a guest that has just booted has read what it needed to run them, and of their tables perhaps nothing. Where the code does not tell
    either, stacks say so."""
    rows = [row for row in guest.cold.rows if (row.sample.user or row.sample.has_user_copy) and not guest.cold.causes.is_program_gone(row)]
    ends = Counter(row.walked.user_end for row in rows)
    whole = Share(sum(ends[end] for end in COMPLETE), len(rows), Counter({end: count for end, count in ends.items() if end not in COMPLETE}))
    figure(f"user stacks whole with no more than what had to be read of files: {whole}")
    assert len(rows) >= 200
    assert whole.reaches(80.0)
    assert sum(ends[end] for end in (*COMPLETE, "PAGES")) >= 0.95 * len(rows)
