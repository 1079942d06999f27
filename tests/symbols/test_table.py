# SPDX-License-Identifier: Apache-2.0
"""Looking up addresses: against a plain search through all symbols."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.symbols.table import GLOBAL, LOCAL, WEAK, RawSymbols, SymbolTable, build_table

_NO_BOUNDS = np.zeros(0, np.uint64)
_TOP = (1 << 64) - 1
_symbol = st.tuples(st.integers(0, 60) | st.integers(_TOP - 60, _TOP), st.integers(0, 25), st.sampled_from([GLOBAL, LOCAL, WEAK]), st.integers(0, 2))


def _build(symbols: list[tuple[int, int, int, int]], names: list[str] | None = None, bounds: list[int] | None = None) -> SymbolTable:
    columns = list(zip(*symbols, strict=True)) or [(), (), (), ()]
    raw = RawSymbols(
        np.array(columns[0], np.uint64),
        np.array(columns[1], np.uint64),
        np.array(columns[2], np.uint8),
        names or [f"f{number}" for number in range(len(symbols))],
        np.array(columns[3], np.int32),
        ("a", "b", "c"),
    )
    return build_table(raw, np.array(bounds, np.uint64) if bounds else _NO_BOUNDS)


def _name_at(table: SymbolTable, address: int) -> str:
    index = int(table.lookup(np.array([address], np.uint64))[0])
    return table.names[index] if index >= 0 else ""


@settings(deadline=None)
@given(st.lists(_symbol, max_size=12), st.lists(st.integers(0, 100) | st.integers(_TOP - 100, _TOP), max_size=20))
def test_lookup_finds_the_innermost(symbols: list[tuple[int, int, int, int]], addresses: list[int]) -> None:
    table = _build(symbols)
    assert (table.start[1:] > table.start[:-1]).all()
    found = table.lookup(np.array(addresses, np.uint64))
    for address, index in zip(addresses, found.tolist(), strict=True):
        around = [row for row in range(len(table)) if int(table.start[row]) <= address < int(table.end[row])]
        assert index == (around[-1] if around else -1)


@settings(deadline=None)
@given(st.lists(_symbol, max_size=12))
def test_sizes_are_kept_and_unknown_ones_end_at_the_next(symbols: list[tuple[int, int, int, int]]) -> None:
    table = _build(symbols)
    sizes: dict[int, set[int]] = {}
    for start, size, _, _ in symbols:
        sizes.setdefault(start, set()).add(size)
    starts = table.start.tolist()
    assert starts == sorted(sizes)
    for row, start in enumerate(starts):
        end = int(table.end[row])
        if max(sizes[start]) > 0:
            assert end in {min(start + size, _TOP) for size in sizes[start] if size}
        elif row + 1 < len(starts):
            assert end <= starts[row + 1]


def test_choice_among_names_of_one_address() -> None:
    def best(*candidates: tuple[str, int, int]) -> str:
        names = [name for name, _, _ in candidates]
        for order in (names, names[::-1]):
            known = {name: (7, size, binding, 0) for name, size, binding in candidates}
            assert _name_at(_build([known[name] for name in order], order), 7) == names[0]
        return names[0]

    best(("__sized", 4, WEAK), ("plain", 0, GLOBAL))
    best(("__execve", 4, GLOBAL), ("execve", 4, LOCAL), ("execve_weak", 4, WEAK))
    best(("local", 4, LOCAL), ("a_weak_one", 4, WEAK))
    best(("read", 4, GLOBAL), ("__libc_read", 4, GLOBAL))
    best(("__x64_sys_vfork", 4, GLOBAL), ("__ia32_sys_vfork", 4, GLOBAL))
    best(("memcpy", 0, WEAK), ("__pi_memcpy", 0, GLOBAL))
    best(("longest_name", 4, GLOBAL), ("name", 4, GLOBAL))


def test_far_beyond_the_last_symbol_is_no_name() -> None:
    table = _build([(0x1000, 0, GLOBAL, 0), (0x9000, 0, GLOBAL, 1), (0x20000, 0, GLOBAL, 1)])
    # Within a dso a symbol may be long, behind its last one nothing is known.
    assert [_name_at(table, address) for address in (0xFFF, 0x1000, 0x2FFF, 0x3000, 0x8FFF)] == ["", "f0", "f0", "", ""]
    assert [_name_at(table, address) for address in (0x9000, 0x1FFFF, 0x20000, 0x21FFF, 0x22000, _TOP)] == ["f1", "f1", "f2", "f2", "", ""]


def test_bounds_end_symbols_of_unknown_size_only() -> None:
    table = _build([(0x1000, 0, GLOBAL, 0), (0x2000, 0x100, GLOBAL, 0)], bounds=[0x1080, 0x2080])
    assert [_name_at(table, address) for address in (0x107F, 0x1080, 0x20FF, 0x2100)] == ["f0", "", "f1", ""]


def test_empty_table() -> None:
    assert _build([]).lookup(np.array([0, 5, _TOP], np.uint64)).tolist() == [-1, -1, -1]
