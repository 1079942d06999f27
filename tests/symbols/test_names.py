# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.symbols.names import Names

NAMES = st.lists(st.text("_aé\ufffd", max_size=8) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8), max_size=20)


@settings(deadline=None)
@given(NAMES, NAMES)
def test_names_are_what_they_were_made_of(one: list[str], other: list[str]) -> None:
    made = Names.of(one)
    assert list(made) == one
    assert list(Names.terminated(b"".join(name.encode() + b"\0" for name in one))) == one
    assert list(Names.concatenate([made, Names.of([]), Names.of(other)])) == one + other
    assert list(made[1:]) == one[1:]
    rows = np.arange(len(one))[::-2]
    assert list(made.take(rows)) == [one[row] for row in rows]


@settings(deadline=None)
@given(NAMES, st.text("_a", max_size=3))
def test_questions_about_all_of_them(names: list[str], asked: str) -> None:
    made = Names.of(names)
    assert made.sizes.tolist() == [len(name.encode()) for name in names]
    assert made.leading(ord("_")).tolist() == [len(name) - len(name.lstrip("_")) for name in names]
    assert made.begin_with(asked.encode(), b"__").tolist() == [name.startswith((asked, "__")) for name in names]
    for name in {*names, asked}:
        assert made.find(name) == (names.index(name) if name in names else None)


def test_long_names_are_cut_and_what_is_no_text_is_replaced() -> None:
    assert list(Names.terminated(b"short\0much longer\0\xff\0").cut(6)) == ["short", "much l", "\ufffd"]
    assert list(Names.concatenate([])) == []
