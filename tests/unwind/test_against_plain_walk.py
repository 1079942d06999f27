# SPDX-License-Identifier: Apache-2.0
"""The unwinder against a plain walk over the same tables by other code: pyelftools' for .eh_frame."""

from __future__ import annotations

from collections.abc import Callable

from tests.unwind.conftest import Guest
from tests.unwind.measure import Row, share
from tests.unwind.oracle import COMPLETE


def _pairs(guest: Guest) -> list[tuple[Row, Row]]:
    return list(zip(guest.warm.rows, guest.warm.plain, strict=True))


def _ends_early(guest: Guest, row: Row) -> bool:
    """ORC takes retpolines' thunks and the kernel's first and last instructions for ends of stacks, and so does the plain walk."""
    in_thunk = any(name.startswith("__x86_indirect_") for name in guest.warm.names.all_at(row.walked.kernel[-1][0]))
    at_edge = row.walked.kernel_end == "THREAD_START" and len(row.walked.kernel) == 1 and row.sample.has_user_copy
    return in_thunk or at_edge or row.sample.registers["RSP"] >> 63 == 0


def test_kernel_frames_are_those_of_the_plain_walk(guest: Guest, figure: Callable[[str], None]) -> None:
    pairs = [(mine, plain) for mine, plain in _pairs(guest) if plain.walked.kernel_end in COMPLETE and not _ends_early(guest, plain)]
    other = {id(mine): plain for mine, plain in pairs}

    def cause(row: Row) -> str:
        plain = other[id(row)]
        same = (row.walked.kernel, row.walked.kernel_end) == (plain.walked.kernel, plain.walked.kernel_end)
        return "" if same else f"{row.walked.kernel_end} for {plain.walked.kernel_end}: {guest.warm.causes.kernel(row)}"

    found = share([mine for mine, _ in pairs], cause)
    figure(f"kernel stacks as by the plain walk: {found}")
    assert found.total >= 3000
    assert found.percent >= 99.8


def test_user_frames_are_those_of_the_plain_walk(guest: Guest, figure: Callable[[str], None]) -> None:
    pairs = [(mine, plain) for mine, plain in _pairs(guest) if plain.walked.user_end in COMPLETE]
    other = {id(mine): plain for mine, plain in pairs}

    def cause(row: Row) -> str:
        plain = other[id(row)]
        same = (row.walked.user, row.walked.user_end) == (plain.walked.user, plain.walked.user_end)
        return "" if same else f"{row.walked.user_end} after {len(row.walked.user)} of {len(plain.walked.user)} frames, {row.sample.comm}"

    found = share([mine for mine, _ in pairs], cause)
    figure(f"user stacks as by the plain walk: {found}")
    assert found.total >= 4000
    assert found.percent >= 99.8


def test_no_stack_is_longer_than_it_can_be(guest: Guest) -> None:
    """Where the plain walk ends for want of something, the unwinder's begins with the same frames."""
    for mine, plain in _pairs(guest):
        if plain.walked.kernel_end == "CUT" and mine.walked.kernel_end not in COMPLETE:
            assert mine.walked.kernel[: len(plain.walked.kernel)] == plain.walked.kernel
        if plain.walked.user_end in {"CUT", "NO_MAPPING"} and mine.walked.kernel == plain.walked.kernel:
            assert mine.walked.user[: len(plain.walked.user)] == plain.walked.user
