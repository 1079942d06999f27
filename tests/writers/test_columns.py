# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from itertools import chain

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.profile import Stacks
from perfguest.writers.call_tree import CallTree
from perfguest.writers.columns import blocks, unique_rows


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(-2, 2), st.integers(0, 3), st.integers(-(2**60), 2**60)), max_size=30))
def test_rows_are_sorted_and_each_points_to_its_kind(rows: list[tuple[int, int, int]]) -> None:
    columns = [np.array([row[i] for row in rows], np.int64) for i in range(3)]
    first, kind = unique_rows(*columns)
    assert [rows[row] for row in first.tolist()] == sorted(set(rows))
    assert [rows[first[one]] for one in kind.tolist()] == rows


@settings(deadline=None)
@given(st.integers(0, 50), st.integers(1, 7))
def test_blocks_cover_all_once(length: int, size: int) -> None:
    parts = [list(range(length))[block] for block in blocks(length, size)]
    assert [*chain(*parts)] == list(range(length))
    assert all(0 < len(part) <= size for part in parts)


@settings(deadline=None)
@given(st.lists(st.lists(st.integers(0, 4), max_size=6), max_size=12), st.data())
def test_the_tree_gives_each_stack_back(paths: list[list[int]], data: st.DataObject) -> None:
    """``paths``: root first; frame *i* has the label *i*, and frame *i* + 5 too."""
    frames = [[label + 5 * data.draw(st.integers(0, 1)) for label in reversed(path)] for path in paths]
    stacks = Stacks(np.cumsum([0, *map(len, frames)], dtype=np.int64), np.array([*chain(*frames)], np.int32))
    tree = CallTree.of(stacks, np.arange(10) % 5)
    assert [_path(tree, leaf) for leaf in tree.leaf.tolist()] == paths
    assert all(tree.parent[node] < node for node in range(len(tree.parent)))
    nodes = {tuple(path[:depth]) for path in paths for depth in range(1, len(path) + 1)}
    assert len(tree.parent) == len(nodes)
    some = tree.leaf[: len(paths) // 2]
    wanted = {tuple(path[:depth]) for path in paths[: len(paths) // 2] for depth in range(1, len(path) + 1)}
    assert [tuple(_path(tree, node)) for node in tree.with_callers(some).tolist()] == sorted(wanted, key=lambda path: _order(tree, path))


def _path(tree: CallTree, node: int) -> list[int]:
    path: list[int] = []
    while node >= 0:
        path.insert(0, int(tree.label[node]))
        node = int(tree.parent[node])
    return path


def _order(tree: CallTree, path: tuple[int, ...]) -> int:
    return next(node for node in range(len(tree.parent)) if tuple(_path(tree, node)) == path)
