# SPDX-License-Identifier: Apache-2.0
"""Tables that one recording had of a program serve the next, and prove nothing by themselves."""

from __future__ import annotations

import functools
import itertools
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.formats.guest_snapshot import DIRECTORY, SnapshotWriter
from perfguest.proto import guest_pb2
from perfguest.unwind import _native, kept_tables
from perfguest.unwind.engine import Engine, Stacks
from perfguest.unwind.kept_tables import KeptTables, tables_of
from tests.unwind import native_walk, traced
from tests.unwind.conftest import Guest
from tests.unwind.measure import Share
from tests.unwind.native_walk import without_tables
from tests.unwind.oracle import COMPLETE

LIBC = Path("/usr/lib/x86_64-linux-gnu/libc.so.6")
ID = bytes(range(20))
PAGE = 4096

Runs = list[tuple[int, bytes]]


@pytest.fixture(scope="module")
def libc() -> bytes:
    return LIBC.read_bytes()


def pages(data: bytes, *numbers: int) -> Runs:
    return [(number * PAGE, data[number * PAGE : (number + 1) * PAGE]) for number in numbers]


def content(size: int, runs: Runs) -> bytearray:
    result = bytearray(size)
    for offset, data in runs:
        result[offset : offset + len(data)] = data
    return result


def section(path: Path, name: str) -> range:
    said = subprocess.run(["readelf", "-SW", path], capture_output=True, text=True, check=True).stdout
    found = re.search(rf" {re.escape(name)}\s+\w+\s+\S+ (\S+) (\S+)", said)
    assert found
    return range(int(found[1], 16), int(found[1], 16) + int(found[2], 16))


def test_the_tables_are_those_that_readelf_finds(libc: bytes) -> None:
    place = tables_of(len(libc), [(0, libc)])
    assert place
    assert place[0] == section(LIBC, ".eh_frame_hdr").start
    assert section(LIBC, ".eh_frame").stop <= place[1]
    assert section(LIBC, ".text").stop <= place[0]


@pytest.mark.parametrize("head", [b"", b"\x7fELF", b"\x7fELF\x02\x01" + bytes(58), b"\x7fELF\x02\x01" + b"\xff" * 4000, bytes(4096)])
def test_what_is_no_file_with_tables_keeps_nothing(tmp_path: Path, head: bytes) -> None:
    kept = KeptTables(tmp_path)
    assert tables_of(1 << 20, [(0, head)]) is None
    assert kept.complete(ID, 1 << 20, [(0, head)]) is None
    assert kept.complete(ID, 1 << 20, []) is None
    assert list(tmp_path.iterdir()) == []


@given(st.binary(max_size=800))
def test_hostile_headers_are_answered(tail: bytes) -> None:
    head = b"\x7fELF\x02\x01" + tail
    place = tables_of(1 << 30, [(0, head)])
    assert place is None or (PAGE <= place[0] < place[1] <= 1 << 30)


def test_one_guests_tables_complete_anothers(libc: bytes, tmp_path: Path) -> None:
    first = KeptTables(tmp_path)
    assert first.complete(ID, len(libc), [(0, libc)]) is None
    first.close()
    assert [path.name for path in tmp_path.iterdir()] == [f"{ID.hex()}-{len(libc)}.whole"]
    cold = without_tables([(0, libc)])
    second = KeptTables(tmp_path)
    found = second.complete(ID, len(libc), cold)
    assert found
    both = content(len(libc), found)
    for name in (".eh_frame_hdr", ".eh_frame", ".text"):
        place = section(LIBC, name)
        assert both[place.start : place.stop] == libc[place.start : place.stop], name
    # Of the data, which begins on the page where the tables end, nothing was kept.
    stored = next(tmp_path.iterdir()).read_bytes()
    data = section(LIBC, ".data")
    assert libc[data.start : data.stop] not in stored
    assert second.complete(bytes(20), len(libc), cold) is None
    assert second.complete(ID, len(libc) + PAGE, cold) is None


@settings(deadline=None)
@given(st.data())
def test_pages_come_together_from_several_guests(libc: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    place = tables_of(len(libc), [(0, libc)])
    assert place
    numbers = list(range(place[0] // PAGE, -(-place[1] // PAGE)))
    directory = tmp_path_factory.mktemp("kept")
    seen: set[int] = set()
    for _ in range(data.draw(st.integers(1, 4))):
        mine = data.draw(st.sets(st.sampled_from(numbers)))
        kept = KeptTables(directory)
        found = kept.complete(ID, len(libc), pages(libc, 0, *sorted(mine)))
        kept.close()
        if seen - mine:
            assert found
            assert [offset for offset, _ in found] == sorted(offset for offset, _ in found)
            there = {offset // PAGE + number for offset, part in found for number in range(-(-len(part) // PAGE))}
            assert there == {0} | seen | mine
            both = content(len(libc), found)
            for number in seen - mine:
                low, high = max(number * PAGE, place[0]), min((number + 1) * PAGE, place[1])
                assert both[low:high] == libc[low:high]
        else:
            assert found is None
        seen |= mine


@given(st.lists(st.integers(0, 40), max_size=12, unique=True), st.lists(st.integers(0, 40), max_size=12, unique=True))
def test_runs_are_put_together(first: list[int], second: list[int]) -> None:
    def runs(edges: list[int], fill: bytes) -> Runs:
        pairs = zip(sorted(edges)[::2], sorted(edges)[1::2], strict=False)
        return [(low, fill * (high - low)) for low, high in pairs]

    own, more = runs(first, b"o"), runs(second, b"m")
    merged = kept_tables._merged(own, more)
    assert all(low + len(data) <= high for (low, data), (high, _) in itertools.pairwise(merged))
    assert content(41, merged) == bytes(one or other for one, other in zip(content(41, own), content(41, more), strict=True))
    assert all(data for _, data in merged)


def test_what_contradicts_the_guest_is_kept_no_more(libc: bytes, tmp_path: Path) -> None:
    place = tables_of(len(libc), [(0, libc)])
    assert place
    forged = bytearray(libc)
    forged[place[0] + 3 * PAGE] ^= 1
    KeptTables(tmp_path).complete(ID, len(libc), [(0, bytes(forged))])
    first = place[0] // PAGE
    # It has the page that was forged, and not the next ones.
    assert KeptTables(tmp_path).complete(ID, len(libc), pages(libc, 0, *range(first, first + 5))) is None
    assert [path.suffix for path in tmp_path.iterdir()] == [".part"]
    found = KeptTables(tmp_path).complete(ID, len(libc), pages(libc, 0))
    assert found
    assert content(len(libc), found)[place[0] : (first + 5) * PAGE] == libc[place[0] : (first + 5) * PAGE]


def test_another_first_page_is_another_file(libc: bytes, tmp_path: Path) -> None:
    KeptTables(tmp_path).complete(ID, len(libc), [(0, libc)])
    other = bytearray(libc[:PAGE])
    other[-1] ^= 1
    assert KeptTables(tmp_path).complete(ID, len(libc), [(0, bytes(other))]) is None


def test_a_damaged_file_is_none(libc: bytes, tmp_path: Path) -> None:
    KeptTables(tmp_path).complete(ID, len(libc), [(0, libc)])
    (path,) = tmp_path.iterdir()
    sound = path.read_bytes()
    for damaged in (b"", sound[:-1], sound[:50], sound[:100] + b"\0" + sound[101:]):
        path.write_bytes(damaged)
        assert KeptTables(tmp_path).complete(ID, len(libc), pages(libc, 0)) is None
    path.unlink(missing_ok=True)
    path.symlink_to("/proc/self/mem")
    assert KeptTables(tmp_path).complete(ID, len(libc), pages(libc, 0)) is None


def test_the_longest_unused_go_first(libc: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(4):
        kept = KeptTables(tmp_path)
        kept.complete(bytes([number]) * 20, len(libc), [(0, libc)])
        kept.close()
    assert len(list(tmp_path.iterdir())) == 4
    used = KeptTables(tmp_path)
    assert used.complete(bytes(20), len(libc), pages(libc, 0))
    monkeypatch.setattr(kept_tables, "MOST_BYTES", 3 * max(path.stat().st_size for path in tmp_path.iterdir()))
    used.complete(b"\4" * 20, len(libc), [(0, libc)])
    used.close()
    assert {path.name[:2] for path in tmp_path.iterdir()} == {"00", "03", "04"}


def test_others_may_not_write_there(libc: bytes, tmp_path: Path) -> None:
    tmp_path.chmod(0o777)
    assert KeptTables(tmp_path).complete(ID, len(libc), [(0, libc)]) is None
    assert list(tmp_path.iterdir()) == []


class Stopped:
    """A process that sorts, stopped in the middle, with its files as pages; its tables can be given as kept ones."""

    def __init__(self, pid: int) -> None:
        self.registers = traced.registers(pid)
        self.stack = traced.stack_of(pid, int(self.registers[4]))
        self.mappings = [m for m in traced.mappings(pid) if m.executable and m.path.startswith("/")]
        self.files = {m.path: Path(f"/proc/{pid}/root{m.path}").read_bytes() for m in self.mappings}

    def walk(self, tables: Callable[[str, bytes], tuple[Runs, Runs | None]]) -> Stacks:
        engine = Engine()
        numbers = {}
        for path, data in self.files.items():
            runs, kept = tables(path, data)
            numbers[path] = engine.add_binary(len(data), runs, kept=kept)
        columns = ([getattr(m, name) for m in self.mappings] for name in ("start", "end", "offset"))
        space = engine.add_space(*columns, [numbers[m.path] for m in self.mappings])
        return engine.walk(traced.user_samples(self.registers, [self.stack], space))

    def follows_call(self, address: int) -> bool:
        mapping = next(m for m in self.mappings if m.start <= address < m.end)
        at = address - mapping.start + mapping.offset
        return any(is_call(self.files[mapping.path][at - size : at]) for size in range(2, 9))


@functools.cache
def is_call(code: bytes) -> bool:
    """Whether it is one instruction, and a call, as objdump has it."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(code)
        file.flush()
        command = ["objdump", "-D", "-w", "-b", "binary", "-m", "i386:x86-64", file.name]
        said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    lines = [line.split("\t") for line in said.splitlines() if line.count("\t") == 2]
    return len(lines) == 1 and re.search(r"\bcall", lines[0][2]) is not None


@pytest.fixture(scope="module")
def stopped() -> Stopped:
    sort = "my @x = sort { f(3); $a <=> $b } (2, 1); sub f { my $n = shift; $n ? f($n - 1) : kill STOP => $$ }"
    with traced.running("/usr/bin/perl", "-e", sort) as pid, traced.stopped(pid):
        return Stopped(pid)


def test_kept_tables_serve_as_the_files_own(stopped: Stopped) -> None:
    own = stopped.walk(lambda _, data: ([(0, data)], None))
    kept = stopped.walk(lambda _, data: (without_tables([(0, data)]), [(0, data)]))
    assert own.user_end.tolist() == kept.user_end.tolist() == [_native.END_START]
    assert kept.address.tolist() == own.address.tolist()
    assert len(own.address) > 12
    hows = Counter((kept.how & 15).tolist())
    assert hows[_native.HOW_KEPT] >= len(own.address) - 3


def test_forged_tables_lead_to_calls_only(stopped: Stopped) -> None:
    """Whatever somebody put there: what it says is believed where the guest's own code bears it out."""
    random.seed(20)
    steps = 0
    for _ in range(150):

        def forged(_: str, data: bytes) -> tuple[Runs, Runs]:
            place = tables_of(len(data), [(0, data)])
            assert place
            changed = bytearray(data)
            for _ in range(random.choice([3, 30, 3000])):
                changed[random.randrange(*place)] = random.randrange(256)
            return without_tables([(0, data)]), [(0, bytes(changed))]

        found = stopped.walk(forged)
        for address, how in zip(found.address.tolist(), found.how.tolist(), strict=True):
            if how & 15 == _native.HOW_KEPT and how & _native.FRAME_RETURN:
                steps += 1
                assert stopped.follows_call(address), hex(address)
    assert steps > 100


@pytest.fixture(scope="module")
def kept(guest: Guest, tmp_path_factory: pytest.TempPathFactory) -> KeptTables:
    """As the recording of a guest that had all of its files in memory leaves them."""
    directory = tmp_path_factory.mktemp("kept")
    filled = KeptTables(directory)
    native_walk.walk(guest.warm.evidence, kept=filled)
    filled.close()
    return KeptTables(directory)


def test_stacks_by_kept_tables_are_those_by_their_own(guest: Guest, kept: KeptTables, figure: Callable[[str], None]) -> None:
    """Of stacks that are whole by tables: they are so with none of the guest's own, too, by those that another recording had."""
    again = native_walk.walk(guest.warm.evidence, tables=False, kept=kept)
    counts: Counter[str] = Counter()
    for row, found in zip(guest.warm.rows, again, strict=True):
        if row.walked.user_end in COMPLETE:
            same = (found.user, found.user_end) == (row.walked.user, row.walked.user_end)
            is_part = found.user == row.walked.user[: len(found.user)] and found.user_end not in COMPLETE
            counts["" if same else f"{found.user_end}, {row.sample.comm}" if is_part else f"other, {row.sample.comm}"] += 1
    good = counts.pop("")
    found = Share(good, good + counts.total(), counts)
    figure(f"stacks whole by tables that are so by kept ones: {found}")
    assert found.total >= 5000
    assert found.reaches(99.5)
    assert sum(count for why, count in counts.items() if why.startswith("other")) <= 0.001 * found.total


def test_a_guest_just_booted_has_whole_stacks_by_tables_of_another(guest: Guest, kept: KeptTables, figure: Callable[[str], None]) -> None:
    cold = native_walk.walk(guest.cold.evidence, kept=kept)
    mine = [row for row in guest.cold.rows if (row.sample.user or row.sample.has_user_copy) and not guest.cold.causes.is_program_gone(row)]
    chosen = {id(row.sample) for row in mine}
    ends = Counter(walked.user_end for sample, walked in zip(guest.cold.evidence.samples, cold, strict=True) if id(sample) in chosen)
    whole = Share(sum(ends[end] for end in COMPLETE), ends.total(), Counter({end: count for end, count in ends.items() if end not in COMPLETE}))
    figure(f"user stacks whole by tables that another recording had: {whole}")
    assert ends.total() >= 200
    assert whole.reaches(93.0)
    # No stack is cut short for want of a table that is kept.
    assert ends["PAGES"] <= 0.005 * ends.total()


def test_convert_keeps_and_uses_them(guest: Guest, tmp_path: Path) -> None:
    def convert(recording: Path, *options: str) -> str:
        command = [sys.executable, "-m", "perfguest", "convert", str(recording), "--folded", "-o", str(tmp_path / "folded"), *options]
        environment = {"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache"), "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stderr

    bare = tmp_path / "bare.data"
    shutil.copytree(guest.recorded.cold, bare)
    with SnapshotWriter(bare / DIRECTORY) as writer:
        for key in {mapping.binary for process in guest.cold.evidence.snapshot.processes for mapping in process.mappings if mapping.binary}:
            if stored := guest.cold.evidence.snapshot.binary(key):
                runs = without_tables([(run.address, run.data) for run in stored.pages])
                pages = [guest_pb2.Bytes(address=offset, data=data) for offset, data in runs]
                writer.binary(key, guest_pb2.Binary(build_id=stored.build_id, path=stored.path, size=stored.size, pages=pages))
    assert "kept .eh_frame" not in convert(bare, "--no-keep-tables")
    assert not (tmp_path / "cache").exists()
    convert(guest.recorded.directory)
    assert "kept .eh_frame" in convert(bare)
