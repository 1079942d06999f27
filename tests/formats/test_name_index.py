# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.formats import name_index
from perfguest.formats.name_index import NameIndex

NAMES = st.lists(st.text("ab_", max_size=12).map(str.encode), max_size=40)


def index_of(names: list[bytes], behind: bytes = b"") -> NameIndex:
    sizes = np.array([len(name) + 1 for name in names], np.int64)
    return NameIndex(b"".join(name + b"\0" for name in names) + behind, np.cumsum(sizes) - sizes)


@settings(deadline=None)
@given(NAMES, st.text("ab_\0", max_size=12).map(str.encode))
def test_all_places_in_order(names: list[bytes], asked: bytes) -> None:
    index = index_of(names)
    for name in {*names, asked}:
        assert list(index.places(name)) == [place for place, other in enumerate(names) if other == name]


def test_a_name_that_is_cut_off_is_none() -> None:
    names = NameIndex(b"init_task\0init", np.array([0, 10]))
    assert list(names.places(b"init")) == []
    assert list(names.places(b"init_task")) == [0]


def test_many_that_begin_alike() -> None:
    names = [b"__kstrtab_%d" % number for number in range(2 * name_index._MOST)]
    index = index_of(names)
    assert list(index.places(b"__kstrtab_77")) == [77]
    assert list(index.places(b"__kstrtab_")) == []
    assert list(index.places(b"__kstrtab_" + b"7" * 80)) == []
