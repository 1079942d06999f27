# SPDX-License-Identifier: Apache-2.0
"""The binding refuses columns that do not fit one another, and numbers and offsets that point elsewhere; and plain Python finds the same."""

from __future__ import annotations

import itertools
import time
from collections import Counter
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest import _native, stacks
from perfguest.profile import Mode
from perfguest.rows import distinct_lists, distinct_rows
from perfguest.stacks import Callchains

_MARKERS = {2**64 - 128: Mode.HOST_KERNEL, 2**64 - 512: Mode.HOST_USER, 2**64 - 2176: Mode.GUEST_KERNEL, 2**64 - 2560: Mode.GUEST_USER}


def i64(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    return np.array(values, np.int64)


def i32(*values: int) -> np.ndarray[tuple[int], np.dtype[np.int32]]:
    return np.array(values, np.int32)


_PIECES = (b"ab", i64(1, 2))
_LISTS = (i64(0, 2), i32(0, 1))
_SAMPLE = (i32(0), i32(0), i64(0), i64(0), i32(0), i32(0))


@pytest.mark.parametrize(
    "call",
    [
        lambda: _native.walk_records(bytes(8), 0, 9),
        lambda: _native.gather(bytes(15), i64(8), i64(0)),
        lambda: _native.gather(bytes(16), i64(-8), i64(0)),
        lambda: _native.gather(bytes(16), i64(8), i64(2**62)),
        lambda: _native.gather(bytes(7), i64(0), i64(0)),
        lambda: _native.distinct(2, (bytes(3),), None, None, None),
        lambda: _native.distinct(2, (bytes(6),), None, None, None),
        lambda: _native.distinct(-1, (), None, None, None),
        lambda: _native.distinct(2**31, (), None, None, None),
        lambda: _native.distinct(1, (), bytes(8), i64(4), i64(5)),
        lambda: _native.distinct(1, (), bytes(8), i64(-1), i64(1)),
        lambda: _native.distinct(1, (), bytes(8), i64(0), i64(-1)),
        lambda: _native.distinct(1, (bytes(1),) * 33, None, None, None),
        lambda: _native.callchain_frames(bytes(8), i64(0), i64(2), i64(0), bytes(1), i64(0)),
        lambda: _native.callchain_frames(bytes(8), i64(0), i64(2**61), i64(0), bytes(1), i64(0)),
        lambda: _native.callchain_frames(bytes(8), i64(0), i64(1), i64(0), bytes(2), i64(0)),
        lambda: _native.find_mappings(i64(0), i64(1), i64(0), i64(0), i64(0, 2), i64(0), i64(0), i64(0, 1)),
        lambda: _native.find_mappings(i64(0), i64(1), i64(0), i64(0), i64(0, 1), i64(0), i64(0), i64(1, 0)),
        lambda: _native.find_mappings(i64(0), i64(1), i64(0), i64(), i64(0, 1), i64(0), i64(0), i64(0, 1)),
        lambda: _native.find_mappings(i64(0), i64(1), i64(0), i64(0), i64(), i64(0), i64(0), i64()),
        lambda: _native.latest(i64(2, 1), i64(0, 0), i64(1), i64(1)),
        lambda: _native.latest(i64(1, 1), i64(1, 0), i64(1), i64(1)),
        lambda: _native.latest(i64(1), i64(1), i64(1), i64()),
        lambda: _native.read_kallsyms(b"", 17),
        lambda: _native.fold(i32(1), i32(-1), i64(1), *_LISTS, *_PIECES),
        lambda: _native.fold(i32(-1), i32(-1), i64(1), *_LISTS, *_PIECES),
        lambda: _native.fold(i32(0), i32(2), i64(1), *_LISTS, *_PIECES),
        lambda: _native.fold(i32(0), i32(-1), i64(1), i64(0, 3), i32(0, 1), *_PIECES),
        lambda: _native.fold(i32(0), i32(-1), i64(1), i64(), i32(), *_PIECES),
        lambda: _native.fold(i32(0), i32(-1), i64(1), i64(0, 1), i32(2), *_PIECES),
        lambda: _native.fold(i32(0), i32(-1), i64(1), *_LISTS, b"ab", i64(2, 1)),
        lambda: _native.fold(i32(0), i32(-1), i64(1), *_LISTS, b"ab", i64(1, 3)),
        lambda: _native.pprof_locations(1, i64(0), i64(0), i64()),
        lambda: _native.pprof_samples(i32(0), i32(2), i64(1), *_LISTS, *_PIECES),
        lambda: _native.pprof_samples(i32(0, 0), i32(0, 0), i64(1), *_LISTS, *_PIECES),
        lambda: _native.pprof_samples(i32(1), i32(0), i64(1), *_LISTS, *_PIECES),
        lambda: _native.script((i32(2), *_SAMPLE[1:]), _LISTS, _PIECES, _PIECES, _PIECES),
        lambda: _native.script((*_SAMPLE[:4], i32(2), i32(0)), _LISTS, _PIECES, _PIECES, _PIECES),
        lambda: _native.script((*_SAMPLE[:5], i32(1)), _LISTS, _PIECES, _PIECES, _PIECES),
    ],
)
def test_what_does_not_fit_is_refused(call: Callable[[], object]) -> None:
    with pytest.raises(ValueError):
        call()


word = st.one_of(st.sampled_from([*_MARKERS, 2**64 - 1, 2**64 - 4095, 2**64 - 4096]), st.integers(0, 2**64 - 1))


@settings(deadline=None)
@given(st.lists(st.tuples(st.lists(word, max_size=8), st.sampled_from([Mode.HOST_KERNEL, Mode.HOST_USER, Mode.GUEST_USER])), max_size=8))
def test_callchains_are_what_their_markers_say(given_chains: list[tuple[list[int], Mode]]) -> None:
    length = i64(*(len(chain) for chain, _ in given_chains))
    words = np.array([one for chain, _ in given_chains for one in chain], np.uint64)
    count = len(given_chains)
    built = stacks.from_callchains(
        Callchains(words, 8 * (np.cumsum(length) - length), length),
        np.arange(count, dtype=np.uint64),
        np.array([mode for _, mode in given_chains], np.uint8),
        np.arange(count, dtype=np.int64) + 50,
    )
    frames = list(zip(built.frames.mode.tolist(), built.frames.space.tolist(), built.frames.address.tolist(), built.frames.returns.tolist(), strict=True))
    made = [frames[a:b] for a, b in itertools.pairwise(built.start.tolist())]
    assert made == [_plain(chain, mode, number) for number, (chain, mode) in enumerate(given_chains)]


def _plain(chain: list[int], mode: int, number: int) -> list[tuple[int, int, int, bool]]:
    frames, now, returns = [], mode, False
    for one in chain:
        if one >= 2**64 - 4095:
            if one not in _MARKERS:
                break
            now, returns = _MARKERS[one], False
        else:
            frames.append((now, number + 50 if now == Mode.HOST_USER else 0, one, returns))
            returns = True
    return frames or [(mode, number + 50 if mode == Mode.HOST_USER else 0, number, False)]


name = st.text("ab :", min_size=1, max_size=3)


@settings(deadline=None)
@given(st.lists(name, min_size=1, max_size=5), st.data())
def test_folded_stacks_are_sorted_and_added_up(names: list[str], data: st.DataObject) -> None:
    number = st.integers(0, len(names) - 1)
    lists = data.draw(st.lists(st.lists(number, min_size=1, max_size=3), min_size=1, max_size=5))
    paths = data.draw(st.lists(st.tuples(st.integers(0, len(lists) - 1), st.integers(-1, len(names) - 1), st.integers(-5, 2**40)), max_size=8))
    expected: Counter[str] = Counter()
    for stack, root, total in paths:
        expected[";".join([names[root]] * (root >= 0) + [names[one] for one in reversed(lists[stack])])] += total
    folded = _native.fold(
        i32(*(stack for stack, _, _ in paths)),
        i32(*(root for _, root, _ in paths)),
        i64(*(total for _, _, total in paths)),
        i64(0, *itertools.accumulate(map(len, lists))),
        i32(*itertools.chain(*lists)),
        "".join(names).encode(),
        i64(*itertools.accumulate(map(len, names))),
    )
    assert folded.decode() == "".join(f"{stack} {total}\n" for stack, total in sorted(expected.items()))


@pytest.mark.parametrize("word", [0x9E3779B97F4A7C15, 0xD1B54A32D192ED03, 0])
def test_nobody_can_choose_rows_that_take_long(word: int) -> None:
    """By words that a hash of known numbers would be zero for: what stands on a stack is a program's to choose. With all hashes equal it took seven seconds."""
    words = np.full((40000, 2), word, np.uint64)
    words[:, 0] = np.arange(len(words)) << 20
    begun = time.process_time()
    first, _ = distinct_lists((), words, 16 * np.arange(len(words)), np.full(len(words), 16))
    also, _ = distinct_rows(words[:, 0], -words[:, 1])
    assert len(first) == len(also) == len(words)
    assert time.process_time() - begun < 1
