# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest import stacks
from perfguest.profile import Mode
from perfguest.stacks import Callchains, RawFrames, RawStacks

Frame = tuple[int, int, int, bool, bool]

frame = st.tuples(st.sampled_from(list(Mode)).map(int), st.integers(-2, 2**40), st.sampled_from([0, 1, 2**63, 2**64 - 1]), st.booleans(), st.booleans())
some_stacks = st.lists(st.lists(frame, max_size=4), max_size=12)


def build(lists: list[list[Frame]]) -> RawStacks:
    flat = [one for each in lists for one in each]
    start = np.concatenate([[0], np.cumsum([len(each) for each in lists])]).astype(np.int64)
    return RawStacks(
        start,
        RawFrames(
            np.array([one[0] for one in flat], np.uint8),
            np.array([one[1] for one in flat], np.int64),
            np.array([one[2] for one in flat], np.uint64),
            np.array([one[3] for one in flat], bool),
            np.array([one[4] for one in flat], bool),
        ),
    )


def rows(frames: RawFrames) -> list[Frame]:
    columns = (frames.mode, frames.space, frames.address, frames.returns, frames.unproven)
    return list(zip(*(column.tolist() for column in columns), strict=True))


def lists(built: RawStacks) -> list[list[Frame]]:
    flat, start = rows(built.frames), built.start.tolist()
    return [flat[a:b] for a, b in itertools.pairwise(start)]


@given(some_stacks)
def test_unique_stacks_are_all_the_different_ones(given_stacks: list[list[Frame]]) -> None:
    unique, number, first = stacks.unique_stacks(build(given_stacks))
    different = lists(unique)
    assert [different[n] for n in number.tolist()] == given_stacks
    assert len({tuple(each) for each in different}) == len(different)
    assert [given_stacks[f] for f in first.tolist()] == different


@given(some_stacks)
def test_numbered_stacks_are_all_the_different_ones_of_the_different_frames(given_stacks: list[list[Frame]]) -> None:
    found = stacks.number_stacks(build(given_stacks))
    frames = rows(found.frames)
    different = [[frames[n] for n in found.frame[a:b].tolist()] for a, b in itertools.pairwise(found.start.tolist())]
    assert [different[n] for n in found.number.tolist()] == given_stacks
    assert len({tuple(each) for each in different}) == len(different) and len(set(frames)) == len(frames)
    assert [given_stacks[f] for f in found.first.tolist()] == different
    assert all(one in given_stacks[holder] for one, holder in zip(frames, found.holder.tolist(), strict=True))


@given(some_stacks, st.sets(st.integers(0, 2**40)))
def test_junk_is_cut_off_where_it_ends_the_hosts_part(given_stacks: list[list[Frame]], spaces: set[int]) -> None:
    def is_junk(one: Frame) -> bool:
        return one[1] in spaces or one[1] % 2 == 1

    def cut(stack: list[Frame]) -> list[Frame]:
        known = [at for at, one in enumerate(stack) if one[0] == Mode.HOST_USER and not is_junk(one)]
        return [one for at, one in enumerate(stack) if one[0] != Mode.HOST_USER or not is_junk(one) or at < max(known, default=-1)]

    found = stacks.number_stacks(build(given_stacks))
    left = stacks.cut_junk(found, np.array([is_junk(one) for one in rows(found.frames)], bool))
    frames, wanted = rows(left.frames), [cut(stack) for stack in given_stacks]
    different = [[frames[n] for n in left.frame[a:b].tolist()] for a, b in itertools.pairwise(left.start.tolist())]
    assert [different[n] for n in left.number.tolist()] == wanted
    assert len({tuple(each) for each in different}) == len(different) and set(frames) == {one for stack in wanted for one in stack}
    assert [wanted[f] for f in left.first.tolist()] == different
    assert all(one in given_stacks[holder] for one, holder in zip(frames, left.holder.tolist(), strict=True))


@given(some_stacks, some_stacks)
def test_concatenate_appends(first: list[list[Frame]], second: list[list[Frame]]) -> None:
    assert lists(stacks.concatenate([build(first), build(second)])) == first + second


@given(st.lists(st.tuples(st.lists(frame, max_size=3), st.lists(frame, max_size=3)), max_size=8))
def test_join_puts_the_second_behind_the_first(pairs: list[tuple[list[Frame], list[Frame]]]) -> None:
    first, second = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    assert lists(stacks.join([build(first), build(second)])) == [a + b for a, b in pairs]


@given(some_stacks, st.data())
def test_cut_leaves_out_what_lies_behind_a_bad_frame(given_stacks: list[list[Frame]], data: st.DataObject) -> None:
    bad = [[data.draw(st.booleans()) for _ in each] for each in given_stacks]
    expected = [each[: flags.index(True)] if True in flags else each for each, flags in zip(given_stacks, bad, strict=True)]
    assert lists(stacks.cut_at(build(given_stacks), np.array([flag for each in bad for flag in each], bool))) == expected


def test_callchain_markers_say_the_mode_of_what_follows_and_junk_ends_the_chain() -> None:
    kernel, user = 2**64 - 128, 2**64 - 512
    chain = [kernel, 0xFFFFFFFF81000010, 0xFFFFFFFF81000020, user, 0x1000, 0x2000, 2**64 - 1, 0x9000, user, 0x3000]
    built = stacks.from_callchains(
        Callchains(np.array(chain, np.uint64), 8 * np.array([0, 8, 10], np.int64), np.array([8, 2, 0], np.int64)),
        np.array([1, 2, 0x4000], np.uint64),
        np.array([Mode.HOST_KERNEL, Mode.HOST_USER, Mode.HOST_KERNEL], np.uint8),
        np.array([70, 80, 90], np.int64),
    )
    assert lists(built) == [
        [
            (Mode.HOST_KERNEL, 0, 0xFFFFFFFF81000010, False, False),
            (Mode.HOST_KERNEL, 0, 0xFFFFFFFF81000020, True, False),
            (Mode.HOST_USER, 70, 0x1000, False, False),
            (Mode.HOST_USER, 70, 0x2000, True, False),
        ],
        [(Mode.HOST_USER, 80, 0x3000, False, False)],
        [(Mode.HOST_KERNEL, 0, 0x4000, False, False)],
    ]


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(st.sampled_from([0, 1, 2**64 - 128]), max_size=3), st.integers(-1, 1), st.booleans()), max_size=12))
def test_distinct_chains_differ_in_an_address_or_a_column(given_chains: list[tuple[list[int], int, bool]]) -> None:
    chains = [tuple(chain) for chain, _, _ in given_chains]
    start = np.concatenate([[0], np.cumsum([len(chain) for chain in chains])]).astype(np.int64)
    address = np.array([one for chain in chains for one in chain], np.uint64)
    columns = np.array([number for _, number, _ in given_chains], np.int64), np.array([flag for _, _, flag in given_chains], bool)
    first, kind = stacks.distinct_chains(Callchains(address, 8 * start[:-1], np.diff(start)), *columns)
    kinds = [(tuple(chain), number, flag) for chain, number, flag in given_chains]
    assert [kinds[f] for f in first[kind].tolist()] == kinds
    assert [kinds.index(kinds[f]) for f in first.tolist()] == first.tolist()
    assert len(first) == len(set(kinds))


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), max_size=20))
def test_rows_are_told_apart_by_either_column(pairs: list[tuple[int, int]]) -> None:
    first, number = stacks.distinct_rows(np.array([a for a, _ in pairs], np.uint16), np.array([b for _, b in pairs], np.int32))
    assert [pairs[f] for f in first[number].tolist()] == pairs
    assert first.tolist() == sorted(pairs.index(pair) for pair in set(pairs))


def test_many_rows_of_many_kinds() -> None:
    column = np.random.default_rng(7).integers(0, 50_000, 200_000)
    first, number = stacks.distinct_rows(column)
    values, expected = np.unique(column, return_index=True)
    assert sorted(first.tolist()) == sorted(expected.tolist()) and len(first) == len(values)
    assert np.array_equal(column[first][number], column)
