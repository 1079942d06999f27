# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest import merge

WINDOW = 1000


def side(rows: list[tuple[int, int, int]]) -> merge.Side:
    """Rows of (time, cpu, ip)."""
    return merge.Side(
        np.array([row[0] for row in rows], np.int64),
        np.array([row[1] for row in rows], np.int32),
        np.array([row[2] for row in rows], np.uint64),
    )


def closest_first(samples: list[tuple[int, int, int]], records: list[tuple[int, int, int]]) -> list[int]:
    """The definition, in the slow way: all candidates, the closest first."""
    candidates = sorted(
        (abs(time - other), s, r)
        for s, (time, cpu, ip) in enumerate(samples)
        for r, (other, other_cpu, other_ip) in enumerate(records)
        if (cpu, ip) == (other_cpu, other_ip) and abs(time - other) <= WINDOW
    )
    result = [-1] * len(samples)
    for _, s, r in candidates:
        if result[s] < 0 and r not in result:
            result[s] = r
    return result


# Times far enough apart that no two distances are equal: of equal ones either may come first.
unequal_times = st.lists(st.integers(0, 15), max_size=12, unique=True).map(lambda powers: [3**power for power in powers])


@st.composite
def two_sides(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]:
    rows = [(time, draw(st.integers(0, 1)), draw(st.sampled_from([5, 2**64 - 1]))) for time in draw(unequal_times)]
    cut = draw(st.integers(0, len(rows)))
    rows = draw(st.permutations(rows))
    return rows[:cut], rows[cut:]


@given(two_sides())
def test_pairs_are_the_closest_first(sides: tuple[list[tuple[int, int, int]], list[tuple[int, int, int]]]) -> None:
    samples, records = sides
    assert merge.pair(side(samples), side(records), WINDOW).record_of.tolist() == closest_first(samples, records)


rows = st.lists(st.tuples(st.integers(0, 3000), st.integers(0, 2), st.integers(0, 2)), max_size=40)


@given(rows, rows)
def test_pairs_are_one_to_one_alike_and_none_is_left_over(samples: list[tuple[int, int, int]], records: list[tuple[int, int, int]]) -> None:
    pairs = merge.pair(side(samples), side(records), WINDOW)
    used = pairs.record_of[pairs.record_of >= 0].tolist()
    assert len(set(used)) == len(used) == pairs.paired == len(pairs.distance)
    for s, r in enumerate(pairs.record_of.tolist()):
        if r >= 0:
            assert samples[s][1:] == records[r][1:] and abs(samples[s][0] - records[r][0]) <= WINDOW
    free = [record for r, record in enumerate(records) if r not in used]
    for s in np.flatnonzero(pairs.record_of < 0).tolist():
        assert all(samples[s][1:] != record[1:] or abs(samples[s][0] - record[0]) > WINDOW for record in free)


def test_a_lost_record_does_not_shift_its_neighbours() -> None:
    samples = side([(1000 * i, 0, 7) for i in range(100)])
    records = side([(1000 * i + 8, 0, 7) for i in range(100) if i != 50])
    record_of = merge.pair(samples, records, 900).record_of
    assert record_of[50] == -1
    assert np.delete(record_of, 50).tolist() == list(range(99))


@pytest.mark.parametrize("number", [0, 1])
def test_empty_sides(number: int) -> None:
    one = side([(1, 2, 3)] * number)
    assert merge.pair(one, side([])).record_of.tolist() == [-1] * number
    assert merge.pair(side([]), one).record_of.tolist() == []
