# SPDX-License-Identifier: Apache-2.0
"""Programs with pages missing: what is named is named as the whole file names it, by nm too; and what is missing names nothing."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.symbols.elf import ElfFile, parse_elf, parse_sparse_elf
from perfguest.symbols.sparse_elf import SparseFile, open_binary
from tests.snapshots import PAGE, binary_message

SOURCE = "\n".join(f"__attribute__((noinline)) int function_with_a_long_name_{n}(int x) {{ return x * {n} + {n}; }}" for n in range(3000))
SOURCE += '\n#include <stdio.h>\nint main(int c, char **v) { return puts(v[0]) + function_with_a_long_name_7(c); }\n__asm__(".globl bare\\nbare: ret");'


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("sparse") / "program"
    subprocess.run(["gcc", "-O1", "-rdynamic", "-Wl,--build-id", "-x", "c", "-o", str(path), "-"], input=SOURCE.encode(), check=True)
    return path


def sparse(path: Path, present: Callable[[int], bool]) -> ElfFile:
    return parse_sparse_elf(open_binary(binary_message(path, present)), str(path))


def names(elf: ElfFile) -> dict[int, str]:
    return dict(zip(elf.symbols.start.tolist(), elf.symbols.names, strict=True))


def nm(path: Path, *options: str) -> dict[int, set[str]]:
    text = subprocess.run(["nm", *options, str(path)], check=True, capture_output=True, text=True).stdout
    found: dict[int, set[str]] = {}
    for address, name in re.findall(r"^([0-9a-f]{16}) [tTwWi] ([^@\n]+)", text, re.MULTILINE):
        found.setdefault(int(address, 16), set()).add(name)
    return found


def test_a_whole_file_has_all_names(program: Path) -> None:
    whole = parse_elf(program.read_bytes(), str(program))
    found = sparse(program, lambda page: True)
    assert names(found) == names(whole) and found.segments == whole.segments and found.build_id == whole.build_id
    assert "bare" in found.symbols.names and "puts@plt" in found.symbols.names


def test_without_section_headers_the_loaders_symbols_are_found(program: Path) -> None:
    last = program.stat().st_size // PAGE
    found = names(sparse(program, lambda page: page < last - 1))
    dynamic = nm(program, "-D", "--defined-only", "-S")
    functions = {address: some for address, some in nm(program, "-D", "--defined-only").items() if any("function_with" in name for name in some)}
    assert len(functions) == 3000 and dynamic
    assert functions.keys() <= found.keys() and all(found[address] in some for address, some in functions.items())
    # It has no size, so nothing says where it ends.
    assert "bare" not in found.values()


@pytest.mark.parametrize("seed", range(6))
def test_missing_pages_never_give_another_name(program: Path, seed: int) -> None:
    random = np.random.default_rng(seed)
    there = random.random(1 + program.stat().st_size // PAGE) < (0.5, 0.9)[seed % 2]
    # Without its first page nothing says that it is a program.
    there[0] = True
    whole = parse_elf(program.read_bytes(), str(program))
    found = sparse(program, lambda page: bool(there[page]))
    truth, places = nm(program), np.arange(0x1000, 0x40000, 7, dtype=np.uint64)
    mine, all_ = found.symbols.lookup(places), whole.symbols.lookup(places)
    named = mine >= 0
    assert named.any()
    for row, other in zip(mine[named].tolist(), all_[named].tolist(), strict=True):
        name = found.symbols.names[row]
        assert name.endswith("@plt") or name in truth[int(found.symbols.start[row])]
        assert other >= 0 and found.symbols.start[row] == whole.symbols.start[other]


def test_zeros_that_are_there_are_zeros() -> None:
    file = SparseFile(3 * PAGE, [(PAGE, bytes(PAGE)), (2 * PAGE, b"x" * PAGE)])
    file.seek(PAGE - 1)
    assert file.read(PAGE + 2) == bytes(PAGE + 1) + b"x"
    assert file.present(PAGE - 1, 3).tolist() == [False, True, True]
    assert file.seek(-1, 2) == 3 * PAGE - 1 and file.read() == b"x" and file.read(5) == b""


@pytest.mark.parametrize(("size", "runs"), [(10, [(20, b"x")]), (10, [(0, bytes(PAGE + 10))]), (1 << 60, [(0, b"x")])])
def test_pages_outside_the_file_are_refused(size: int, runs: list[tuple[int, bytes]]) -> None:
    with pytest.raises(FormatError):
        SparseFile(size, runs)


def test_overlapping_pages_are_read_once() -> None:
    file = SparseFile(20, [(0, b"aaaaaaaa"), (4, b"bbbbbbbb"), (6, b"cc")])
    assert file.read() == b"aaaaaaaabbbb" + bytes(8)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_damaged_programs_break_nothing(data: st.DataObject) -> None:
    content = bytearray(Path(sys.executable).resolve().read_bytes()[: 1 << 16])
    for _ in range(data.draw(st.integers(0, 20))):
        content[data.draw(st.integers(4, 4095))] = data.draw(st.integers(0, 255))
    runs = [(page * PAGE, bytes(content[page * PAGE : (page + 1) * PAGE])) for page in range(16) if page == 0 or data.draw(st.booleans())]
    try:
        parse_sparse_elf(SparseFile(data.draw(st.sampled_from([1 << 16, 1 << 24, 1 << 40])), runs), "x")
    except FormatError:
        return
