# SPDX-License-Identifier: Apache-2.0
"""Addresses of guests' processes: programs of this machine as if they were a guest's, with nm as the oracle."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.formats.guest_snapshot import SnapshotWriter, read_snapshot
from perfguest.proto import guest_pb2 as pb
from perfguest.symbols.resolved import Resolved
from perfguest.symbols.snapshot_user import SnapshotPrograms, parse_perf_map
from tests.snapshots import binary_message, events, mappings_of

BIAS = 0x555555554000
SOURCE = b"""
#include <stdio.h>
static __attribute__((noinline)) int hidden(int x) { return x * 3 + getchar(); }
__attribute__((noinline)) int visible(int x) { return hidden(x) + 1; }
int main(int argc, char **argv) { return printf("%d", visible(argc)); }
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "program"
    subprocess.run(["gcc", "-O1", "-pie", "-fPIE", "-Wl,--build-id", "-x", "c", "-o", str(path), "-"], input=SOURCE, check=True)
    return path


@pytest.fixture(scope="module")
def functions(program: Path) -> dict[str, int]:
    text = subprocess.run(["nm", str(program)], check=True, capture_output=True, text=True).stdout
    return {name: int(address, 16) for address, name in re.findall(r"^([0-9a-f]{16}) [tT] (\w+)$", text, re.MULTILINE)}


def snapshot(
    directory: Path, processes: list[pb.Process], binaries: dict[str, pb.Binary], mounts: tuple[Path, ...] = (), local: Path | None = None
) -> SnapshotPrograms:
    with SnapshotWriter(directory / "guests") as writer:
        for key, binary in binaries.items():
            writer.binary(key, binary)
        for one in events(*processes):
            writer.event(one)
    found = read_snapshot(directory / "guests")
    assert found is not None
    return SnapshotPrograms(found, [42], [mounts], local)


def process(mappings: list[pb.Mapping], time: int = 1, perf_map: bytes = b"") -> pb.Process:
    return pb.Process(vm_pid=42, tgid=5, start_time=9, time=time, mappings=mappings, perf_map=perf_map)


def resolve(programs: SnapshotPrograms, *addresses: int, number: int = 0, returns: bool = False) -> Resolved:
    count = len(addresses)
    return programs.resolve(np.full(count, number), np.array(addresses, np.uint64), np.full(count, returns))


def names(resolved: Resolved) -> list[str]:
    return [resolved.names[name] if name >= 0 else "?" for name in resolved.name.tolist()]


def test_functions_of_a_mapped_file(program: Path, functions: dict[str, int], tmp_path: Path) -> None:
    binary = binary_message(program)
    programs = snapshot(tmp_path, [process(mappings_of(program, "/bin/app", "aa", BIAS))], {"aa": binary})
    found = resolve(programs, *(BIAS + functions[name] + 1 for name in ("hidden", "visible", "main")), BIAS + 0x900000)
    assert names(found) == ["hidden", "visible", "main", "?"] and found.offset.tolist() == [1, 1, 1, 0]
    assert found.dsos[found.dso[0]].name == "/bin/app" and found.dsos[found.dso[0]].build_id == binary.build_id.hex() and found.dso[3] == -1
    assert found.start[0] <= BIAS + functions["hidden"] < found.limit[0]


def test_a_return_address_belongs_to_the_call_before_it(program: Path, functions: dict[str, int], tmp_path: Path) -> None:
    programs = snapshot(tmp_path, [process(mappings_of(program, "/bin/app", "aa", BIAS))], {"aa": binary_message(program)})
    start = BIAS + functions["visible"]
    assert names(resolve(programs, start)) == ["visible"] and names(resolve(programs, start, returns=True)) != ["visible"]


def test_nothing_is_named_from_missing_pages(program: Path, functions: dict[str, int], tmp_path: Path) -> None:
    programs = snapshot(tmp_path, [process(mappings_of(program, "/bin/app", "aa", BIAS))], {"aa": binary_message(program, lambda page: page < 1)})
    assert names(resolve(programs, BIAS + functions["hidden"] + 1)) == ["?"]
    programs.count_unnamed(np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, bool), np.ones(1, bool))
    assert "in no symbol table that was in the guest's page cache" in programs.notes(["web"])[0]


def test_a_directory_fills_the_gaps_if_it_has_the_same_file(program: Path, functions: dict[str, int], tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(program, root / "bin" / "app")
    address = BIAS + functions["hidden"] + 1
    part = binary_message(program, lambda page: page < 1)
    mappings = mappings_of(program, "/bin/app", "aa", BIAS)
    programs = snapshot(tmp_path / "one", [process(mappings)], {"aa": part}, (root,))
    assert names(resolve(programs, address)) == ["hidden"] and programs.notes(["web"]) == []
    part.build_id = bytes(20)
    other = snapshot(tmp_path / "two", [process(mappings)], {"aa": part}, (root,))
    assert names(resolve(other, address)) == ["?"] and "another build id" in "".join(other.notes(["web"]))
    none = snapshot(tmp_path / "three", [process(mappings_of(program, "/bin/app", "", BIAS))], {}, (root,))
    assert names(resolve(none, address)) == ["hidden"] and "unchecked" in "".join(none.notes(["web"]))


@pytest.mark.parametrize("name", ["/../outside", "/bin/../../outside", "/link", "/bin/app (deleted)", "/no\0thing"])
def test_a_guests_names_do_not_lead_out_of_the_directory(name: str, program: Path, functions: dict[str, int], tmp_path: Path) -> None:
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    shutil.copy(program, tmp_path / "outside")
    shutil.copy(program, root / "bin" / "app (deleted)")
    (root / "link").symlink_to(tmp_path / "outside")
    programs = snapshot(tmp_path, [process(mappings_of(program, name, "", BIAS))], {}, (root,))
    assert names(resolve(programs, BIAS + functions["hidden"] + 1)) == ["?"]


def test_what_is_mapped_later_is_found_in_a_later_reading(program: Path, functions: dict[str, int], tmp_path: Path) -> None:
    late = mappings_of(program, "/lib/plugin.so", "aa", BIAS)
    programs = snapshot(tmp_path, [process([], 1), process(late, 2)], {"aa": binary_message(program)})
    assert names(resolve(programs, BIAS + functions["hidden"] + 1, number=0)) == ["hidden"]


def test_code_without_a_file_is_named_by_the_perf_map(tmp_path: Path) -> None:
    anonymous = [pb.Mapping(start=0x1000, end=0x3000, executable=True), pb.Mapping(start=0x3000, end=0x4000, executable=True, path=b"/bin/x")]
    first, later = b"1000 10 old\n1000 20 LazyCompile:*f a.js:1\nhalf a li", b"1000 20 f\n0x2000 0x10 later\n3000 10 not_this\n"
    programs = snapshot(tmp_path, [process(anonymous, 1, first), process(anonymous, 2, later)], {})
    assert names(resolve(programs, 0x1000, 0x101F, 0x1020, 0x2001, 0x3001)) == ["LazyCompile:*f a.js:1", "LazyCompile:*f a.js:1", "?", "later", "?"]


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=80) | st.from_regex(rb"([0-9a-f]{1,17} [0-9a-f]{1,17} .{0,4}\n){0,4}", fullmatch=True))
def test_perf_maps_of_any_bytes(text: bytes) -> None:
    table = parse_perf_map(text)
    assert all("\n" not in name for name in table.names) and (table.end >= table.start).all()


MAPPINGS = st.builds(
    pb.Mapping,
    start=st.integers(0, 2**64 - 1) | st.sampled_from([0, 0x1000]),
    end=st.integers(0, 2**64 - 1) | st.sampled_from([0x2000, 2**57]),
    offset=st.integers(0, 2**64 - 1),
    path=st.binary(max_size=6) | st.just(b"/etc/passwd"),
    executable=st.just(True),
    binary=st.sampled_from(["", "aa", "../../x", "zz"]),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(MAPPINGS, max_size=5), st.binary(max_size=60), st.lists(st.integers(0, 2**64 - 1) | st.just(0x1800), max_size=5))
def test_hostile_processes_break_nothing(tmp_path_factory: pytest.TempPathFactory, mappings: list[pb.Mapping], page: bytes, addresses: list[int]) -> None:
    binary = pb.Binary(size=1 << 20, build_id=b"\1", pages=[pb.Bytes(address=0, data=b"\x7fELF\2\1\1" + page)])
    programs = snapshot(tmp_path_factory.mktemp("hostile"), [process(mappings, perf_map=page)], {"aa": binary}, (Path("/usr"),))
    resolve(programs, *addresses)
    programs.notes(["web"])


def test_the_same_file_of_this_machine_fills_gaps(program: Path, functions: dict[str, int], tmp_path: Path) -> None:
    """With its path and its build id; another file at that path is none, and none is not a fault."""
    path = tmp_path / "local/bin/app"
    path.parent.mkdir(parents=True)
    without_symbols = binary_message(program, lambda page: page == 0)
    for content, expected in ((program.read_bytes(), ["hidden", "main"]), (Path(shutil.which("nm") or "").read_bytes(), ["?", "?"]), (None, ["?", "?"])):
        path.unlink(missing_ok=True)
        if content is not None:
            path.write_bytes(content)
        directory = tmp_path / f"{len(content or b'')}"
        mappings = mappings_of(program, "/bin/app", "aa", BIAS)
        programs = snapshot(directory, [process(mappings)], {"aa": without_symbols}, local=tmp_path / "local")
        assert names(resolve(programs, BIAS + functions["hidden"], BIAS + functions["main"])) == expected
        same = programs.open_mounted(process(mappings), mappings[0], without_symbols.build_id.hex())
        assert same == (content if expected[0] == "hidden" else None)
        assert programs.open_mounted(process(mappings), mappings[0], "") is None
        assert not programs.notes(["vm"])
