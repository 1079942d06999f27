# SPDX-License-Identifier: Apache-2.0
"""Names of stripped Go programs, against what `go tool nm` says of the same program with its symbols."""

from __future__ import annotations

import os
import re
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.symbols.elf import ElfFile, parse_elf, parse_sparse_elf
from perfguest.symbols.gopclntab import GoFunctions, parse_pclntab
from perfguest.symbols.sparse_elf import open_binary
from tests.snapshots import PAGE, binary_message

_SOURCE = """package main
import ("fmt"; "os"; "strings")
type Counter struct { step int }
//go:noinline
func (c *Counter) Count(to int) (sum int) { for i := 0; i < to; i++ { sum += i * c.step }; return }
//go:noinline
func twice[K comparable](key K) string { return strings.Repeat(fmt.Sprint(key), 2) }
func main() { c := &Counter{3}; f := func() int { return c.Count(len(os.Args) * 1000) }; fmt.Println(f(), twice(5)) }
"""


@pytest.fixture(scope="module", params=["exe", "pie"])
def programs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The same program with symbols and stripped."""
    directory = tmp_path_factory.mktemp("go")
    (directory / "main.go").write_text(_SOURCE)
    environment = {**os.environ, "GOCACHE": str(directory / "cache"), "GOPATH": str(directory / "path"), "GO111MODULE": "off", "CGO_ENABLED": "0"}
    for name, flags in (("full", ""), ("stripped", "-s -w")):
        command = ["go", "build", "-buildmode", request.param, "-ldflags", flags, "-o", name, "main.go"]
        subprocess.run(command, cwd=directory, env=environment, check=True)
    return directory / "full", directory / "stripped"


def go_nm(program: Path) -> dict[int, set[str]]:
    text = subprocess.run(["go", "tool", "nm", program], check=True, capture_output=True, text=True).stdout
    found: dict[int, set[str]] = {}
    for address, name in re.findall(r"^ *([0-9a-f]+) [Tt] (.+)$", text, re.MULTILINE):
        found.setdefault(int(address, 16), set()).add(name)
    return found


def names(elf: ElfFile) -> dict[int, str]:
    return dict(zip(elf.symbols.start.tolist(), elf.symbols.names, strict=True))


def test_stripped_program_has_the_names_that_go_itself_knows(programs: tuple[Path, Path]) -> None:
    full, stripped = programs
    truth, found = go_nm(full), names(parse_elf(stripped.read_bytes(), "stripped"))
    assert {"main.main", "main.(*Counter).Count", "main.twice[...]", "runtime.mallocgc"} <= set(found.values())
    assert len(found) > 1000
    # nm has instances of generic functions by their types' names, and marks assembly; the runtime does neither.
    plain = {address: {re.sub(r"\[.*\]", "[...]", name).removesuffix(".abi0") for name in some} for address, some in truth.items()}
    wrong = {address: name for address, name in found.items() if name not in plain.get(address, set())}
    assert not wrong
    # Symbols that are no functions: marks of the text's begin and end.
    assert {name for address in truth.keys() - found.keys() for name in truth[address]} <= {"runtime.etext", "runtime.text", "go:buildid", "go.buildid"}


def test_every_address_of_a_function_is_its(programs: tuple[Path, Path]) -> None:
    full, stripped = programs
    with_symbols, without = parse_elf(full.read_bytes(), "full").symbols, parse_elf(stripped.read_bytes(), "stripped").symbols
    places = np.arange(int(without.start[0]), int(without.end[-1]), 5, dtype=np.uint64)
    mine, theirs = without.lookup(places), with_symbols.lookup(places)
    both = (mine >= 0) & (theirs >= 0)
    assert np.count_nonzero(both) > 0.9 * len(places)
    assert (without.start[mine[both]] == with_symbols.start[theirs[both]]).all()


@pytest.mark.parametrize("seed", range(8))
def test_missing_pages_name_nothing_wrong(programs: tuple[Path, Path], seed: int) -> None:
    """Also without the section headers, which stand in the file's first page or its last."""
    stripped = programs[1]
    random = np.random.default_rng(seed)
    there = random.random(1 + stripped.stat().st_size // PAGE) < (0.5, 0.95)[seed % 2]
    there[0] = True
    whole = names(parse_elf(stripped.read_bytes(), "stripped"))
    elf = parse_sparse_elf(open_binary(binary_message(stripped, lambda page: bool(there[page]))), "sparse")
    found = names(elf)
    assert found.items() <= whole.items()
    if 0 < len(found) < len(whole):
        assert any("pages of its table are missing" in note for note in elf.notes)


def test_table_is_found_without_section_headers(programs: tuple[Path, Path]) -> None:
    content = bytearray(programs[1].read_bytes())
    struct.pack_into("<Q", content, 40, 0)
    struct.pack_into("<HHH", content, 58, 64, 0, 0)
    path = programs[1].with_name("headless")
    path.write_bytes(content)
    found = names(parse_sparse_elf(open_binary(binary_message(path, lambda page: True)), "headless"))
    assert found == names(parse_elf(programs[1].read_bytes(), "stripped"))


FUNCTIONS = [(0x1000, b"runtime.main"), (0x1040, b"main.main"), (0x1100, b"main.(*T).Go"), (0x1180, b"x" * 300)]
END, TEXT = 0x2000, 0x400000


def made(magic: int) -> bytes:
    """A table of one of the four formats, made here from their description."""
    wide = magic in {0xFFFFFFFB, 0xFFFFFFFA}
    base = 0 if wide else TEXT
    number = "<Q" if wide else "<I"
    strings = b"".join(name + b"\0" for _, name in FUNCTIONS)
    head = 16 if magic == 0xFFFFFFFB else 72
    pairs_at = head if magic == 0xFFFFFFFB else head + len(strings)
    size = struct.calcsize(number)
    data_at = (2 * len(FUNCTIONS) + 1) * size
    pairs, data, string = b"", b"", 0
    counted_from = 0 if magic == 0xFFFFFFFB else pairs_at
    names_at = pairs_at + data_at + len(FUNCTIONS) * (size + 4) if magic == 0xFFFFFFFB else 0
    for address, name in FUNCTIONS:
        pairs += struct.pack(number, address + (TEXT if wide else 0)) + struct.pack(number, pairs_at + data_at + len(data) - counted_from)
        data += struct.pack(number, address + (TEXT if wide else 0)) + struct.pack("<I", names_at + string)
        string += len(name) + 1
    pairs += struct.pack(number, END + (TEXT if wide else 0))
    begin = struct.pack("<I", magic) + b"\0\0\1\x08" + struct.pack("<Q", len(FUNCTIONS))
    if magic == 0xFFFFFFFB:
        return begin + pairs + data + strings + bytes(72)
    words = [0, 0, head, 0, 0, 0, pairs_at] if magic == 0xFFFFFFFA else [0, base, head, 0, 0, 0, pairs_at]
    words = [0, head, 0, 0, 0, pairs_at, 0] if magic == 0xFFFFFFFA else words
    return begin + struct.pack("<7Q", *words) + strings + pairs + data


@pytest.mark.parametrize("magic", [0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1])
def test_each_format(magic: int) -> None:
    found = parse_pclntab(made(magic))
    starts = [address + TEXT for address, _ in FUNCTIONS]
    assert found.start.tolist() == starts
    assert [name.encode() for name in found.names] == [name for _, name in FUNCTIONS]
    assert (found.start + found.size).tolist() == [*starts[1:], END + TEXT]
    assert found.missing == 0


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1]), st.lists(st.integers(0, 1000), max_size=400))
def test_missing_bytes_take_the_names_that_they_belong_to(magic: int, holes: list[int]) -> None:
    content = bytearray(made(magic))
    there = np.ones(len(content), bool)
    there[[hole for hole in holes if 72 <= hole < len(content)]] = False
    for hole in np.flatnonzero(~there).tolist():
        content[hole] = 0
    whole, found = parse_pclntab(made(magic)), parse_pclntab(bytes(content), there)
    assert rows(found) <= rows(whole)
    assert there.all() == (found.missing == 0) or rows(found) == rows(whole)
    assert len(found.names) + found.missing <= len(FUNCTIONS) + 1


def rows(functions: GoFunctions) -> set[tuple[int, int, str]]:
    return set(zip(functions.start.tolist(), functions.size.tolist(), functions.names, strict=True))


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from([0xFFFFFFFB, 0xFFFFFFFA, 0xFFFFFFF0, 0xFFFFFFF1]),
    st.lists(st.tuples(st.integers(8, 1000), st.binary(min_size=1, max_size=8)), max_size=10),
    st.integers(0, 1000),
)
def test_garbage_breaks_nothing(magic: int, damage: list[tuple[int, bytes]], length: int) -> None:
    content = bytearray(made(magic))
    for at, what in damage:
        content[at : at + len(what)] = what
    for data in (bytes(content), bytes(content[:length])):
        found = parse_pclntab(data)
        assert len(found.start) == len(found.size) == len(found.names)
        assert all(found.names)
        assert (found.size > 0).all()
