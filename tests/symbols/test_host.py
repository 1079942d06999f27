# SPDX-License-Identifier: Apache-2.0
"""Names of this machine's own samples, compared with those that perf gives them; and mappings, compared with a plain simulation."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from perfguest.errors import FormatError
from perfguest.formats.perf_data import PerfData, read_perf_data
from perfguest.formats.perf_header import Header
from perfguest.formats.perf_records import I32, I64, U64
from perfguest.formats.perf_samples import Samples
from perfguest.formats.perf_tasks import Comms, Mmaps, Tasks
from perfguest.symbols.address_space import AddressSpaces
from perfguest.symbols.host import HostSymbols, own_vdso
from perfguest.symbols.resolved import Resolved

_CONTEXT_KERNEL, _CONTEXT_USER, _CONTEXT_MAX = ((1 << 64) - distance for distance in (128, 512, 4095))
_SOURCE = """
#include <time.h>
#include <unistd.h>
#include <sys/wait.h>
volatile unsigned long sink;
__attribute__((noinline)) void NAME(void) { for (int i = 0; i < 1000; i++) sink += i * sink; }
__attribute__((noinline)) void caller(void) { NAME(); sink++; }
__attribute__((noinline)) void look_at_clock(void) { struct timespec now; for (int i = 0; i < 2000; i++) clock_gettime(CLOCK_MONOTONIC, &now); sink++; }
int main(int argc, char **argv) {
    pid_t child = fork();
    clock_t end = clock() + CLOCKS_PER_SEC / 8;
    while (clock() < end) { caller(); look_at_clock(); }
    if (child) wait(0);
    else if (argc > 1) execl(argv[1], argv[1], (char *)0);
    return 0;
}
"""


def _compile(path: Path, name: str) -> Path:
    subprocess.run(
        ["gcc", "-O0", "-Wl,--build-id", f"-DNAME={name}", "-x", "c", "-o", str(path), "-"],
        input=_SOURCE.encode(),
        check=True,
    )
    return path


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("host")
    _compile(path / "first", "leaf_of_first")
    _compile(path / "second", "leaf_of_second")
    return path


@pytest.fixture(scope="module")
def record(directory: Path) -> Callable[..., PerfData]:
    @cache
    def make(*options: str) -> PerfData:
        path = directory / f"perf{len(options)}{'-'.join(options).replace('/', '')}.data"
        workload = f"{directory}/first {directory}/second; find /usr/include -name '*.h' | head -100 | xargs cat | sort | gzip | sha1sum >/dev/null"
        subprocess.run(["perf", "record", "-q", "-F", "999", "-g", "-e", "cpu-clock", *options, "-o", str(path), "--", "sh", "-c", workload], check=True)
        return read_perf_data(path)

    return make


def _frames(samples: Samples) -> tuple[I64, U64, np.ndarray[tuple[int], np.dtype[np.bool_]]]:
    """Row of its sample, address, and whether it is the user's, of each frame that perf prints: it drops chains with markers that it does not know."""
    row = np.repeat(np.arange(len(samples)), np.diff(samples.chain_start))
    chain = samples.chain
    marker = chain >= np.uint64(_CONTEXT_MAX)
    foreign = np.unique(row[marker & ~np.isin(chain, np.array([_CONTEXT_KERNEL, _CONTEXT_USER], np.uint64))])
    last_marker = np.maximum.accumulate(np.where(marker, np.arange(len(chain)), 0))
    user = chain[last_marker] == np.uint64(_CONTEXT_USER)
    kept = ~marker & ~np.isin(row, foreign)
    return row[kept], chain[kept], user[kept]


def _resolve(data: PerfData, symbols: HostSymbols) -> list[tuple[str, str]]:
    """(what perf prints of a frame, full path or name of its dso) for all frames."""
    row, address, user = _frames(data.samples)
    lines = np.empty(len(row), object)
    kernel = symbols.resolve_kernel(address[~user])
    lines[~user] = _printed(kernel, address[~user])
    found = symbols.resolve_user(data.samples.pid[row[user]], data.samples.time[row[user]], address[user])
    # perf prints offsets in the file, unless nothing is mapped there.
    lines[user] = _printed(found, np.where(found.dso >= 0, address[user] - found.start + found.pgoff, address[user]))
    return lines.tolist()


def _printed(resolved: Resolved, address: U64) -> np.ndarray[tuple[int], np.dtype[np.object_]]:
    lines = np.empty(len(address), object)
    for index, (at, name, offset, dso) in enumerate(
        zip(address.tolist(), resolved.name.tolist(), resolved.offset.tolist(), resolved.dso.tolist(), strict=True)
    ):
        symbol = f"{resolved.names[name]}+{offset:#x}" if name >= 0 else "[unknown]"
        lines[index] = f"{at:x} {symbol} ({resolved.dsos[dso].name if dso >= 0 else '[unknown]'})"
    return lines


def _by_perf(path: str) -> list[str]:
    command = ["perf", "script", "--no-demangle", "--no-inline", "-F", "ip,sym,symoff,dso", "-i", path]
    return [line.strip() for line in subprocess.run(command, check=True, capture_output=True).stdout.decode("utf-8", "replace").splitlines() if line.strip()]


@cache
def _names_of(dso: str) -> dict[int, set[str]]:
    """All names of an address by nm, objdump and the kernel's list."""
    found: dict[int, set[str]] = {}
    if dso.startswith("[kernel"):
        for line in Path("/proc/kallsyms").read_text(encoding="utf-8").splitlines():
            address, _, name, *_ = line.split()
            found.setdefault(int(address, 16), set()).add(name)
        return found
    build_id = re.findall(r"Build ID: ([0-9a-f]+)", subprocess.run(["readelf", "-n", dso], capture_output=True, check=True).stdout.decode())
    debug = Path("/usr/lib/debug/.build-id", build_id[0][:2], f"{build_id[0][2:]}.debug") if build_id else Path("/none")
    commands = [["nm", "--defined-only", dso], ["nm", "-D", "--defined-only", dso], ["objdump", "-d", "-j", ".plt", "-j", ".plt.sec", "-j", ".plt.got", dso]]
    if debug.exists():
        commands.append(["nm", "--defined-only", str(debug)])
    for command in commands:
        text = subprocess.run(command, capture_output=True, check=False).stdout.decode("utf-8", "replace")
        for address, name in re.findall(r"^([0-9a-f]{16}) (?:\w |<)([^>\n]+)", text, re.MULTILINE):
            found.setdefault(int(address, 16), set()).add(name)
    return found


def _is_right(line: str, elf_address: Callable[[str, int], int]) -> bool:
    match = re.fullmatch(r"([0-9a-f]+) (.+)\+0x([0-9a-f]+) \((.*)\)", line)
    assert match
    file_offset, name, offset, dso = int(match[1], 16), match[2], int(match[3], 16), match[4]
    names = _names_of(dso).get(elf_address(dso, file_offset) - offset, set())
    return name in names or name in {each.partition("@")[0] for each in names}


@cache
def _loads(dso: str) -> list[tuple[int, int, int]]:
    text = subprocess.run(["readelf", "-lW", dso], check=True, capture_output=True).stdout.decode()
    return [(int(offset, 16), int(address, 16), int(size, 16)) for offset, address, size in re.findall(r"LOAD\s+(0x\w+) (0x\w+) 0x\w+ (0x\w+)", text)]


def _elf_address(dso: str, file_offset: int) -> int:
    if dso.startswith("["):
        return file_offset
    return next(file_offset - offset + address for offset, address, size in _loads(dso) if offset <= file_offset < offset + size)


@pytest.mark.parametrize("options", [("-a",), (), ("-a", "--buildid-mmap")])
def test_names_are_those_of_perf(record: Callable[..., PerfData], options: tuple[str, ...]) -> None:
    data = record(*options)
    ours = _resolve(data, HostSymbols(data, Path("/proc/kallsyms")))
    perf = _by_perf(data.path)
    assert len(ours) == len(perf) > 1000
    # perf's own word for mappings of no file, and its address there, is another.
    differing = [(a, b) for a, b in zip(perf, ours, strict=True) if a != b and not b.endswith("(//anon)")]
    assert len(differing) <= 0.01 * len(perf), differing[:20]
    wrong = [(a, b) for a, b in differing if " [unknown] (" not in b and not _is_right(b, _elf_address)]
    assert wrong == []


def test_chains_through_fork_and_exec(record: Callable[..., PerfData]) -> None:
    data = record()
    symbols = HostSymbols(data, None)
    row, address, user = _frames(data.samples)
    found = symbols.resolve_user(data.samples.pid[row[user]], data.samples.time[row[user]], address[user])
    names, comm = data.comms_at(data.samples.tid, data.samples.time)
    callers: dict[str, set[str]] = {}
    owner = row[user]
    for index in range(1, len(owner)):
        if owner[index] == owner[index - 1] and found.name[index - 1] >= 0 and found.names[found.name[index - 1]].startswith("leaf_of_"):
            leaf = found.names[found.name[index - 1]]
            assert leaf == f"leaf_of_{names[comm[owner[index]]]}"
            callers.setdefault(leaf, set()).add(found.names[found.name[index]] if found.name[index] >= 0 else "")
    # A leaf that is just being entered has not pushed its frame yet, so its caller may be missing.
    assert set(callers) == {"leaf_of_first", "leaf_of_second"}
    assert all("caller" in names and names <= {"caller", "main"} for names in callers.values()), callers
    assert (found.limit[found.dso >= 0] > found.start[found.dso >= 0]).all()
    inside = found.dso >= 0
    assert ((address[user] >= found.start) & (address[user] < found.limit))[inside].all()


def test_vdso_is_named(record: Callable[..., PerfData]) -> None:
    data = record("--buildid-mmap")
    ours = [line for line in _resolve(data, HostSymbols(data, None)) if line.endswith("([vdso])")]
    assert ours
    assert own_vdso() is not None
    named = [line for line in ours if "[unknown]" not in line]
    assert len(named) > 0.5 * len(ours)
    assert any("clock_gettime" in line for line in named)


def test_another_build_of_a_file_gives_no_names(directory: Path, tmp_path: Path) -> None:
    program = _compile(tmp_path / "prog", "leaf_of_old")
    for options, recorded in (((), True), (("--buildid-mmap",), True), (("-B",), False)):
        path = tmp_path / f"perf{''.join(options)}.data"
        subprocess.run(["perf", "record", "-q", "-g", "-e", "cpu-clock", *options, "-o", str(path), "--", str(program)], check=True)
        data = read_perf_data(path)
        before = HostSymbols(data, None)
        assert any("leaf_of_old" in line for line in _resolve(data, before))
        assert any("without build id" in note and "prog" in note for note in before.notes) != recorded
        kept = program.rename(tmp_path / "kept")
        shutil.copy(directory / "second", program)
        after = HostSymbols(data, None)
        lines = _resolve(data, after)
        assert any("leaf_of_" in line for line in lines) != recorded
        assert any(f"({program})" in line for line in lines)
        assert any("another build id" in note and "prog" in note for note in after.notes) == recorded
        program.unlink()
        gone = HostSymbols(data, None)
        assert not any("leaf_of_" in line for line in _resolve(data, gone))
        assert any("cannot be read" in note for note in gone.notes)
        kept.rename(program)


def test_files_under_another_root(directory: Path, record: Callable[..., PerfData], tmp_path: Path) -> None:
    copy = tmp_path / str(directory / "first").lstrip("/")
    copy.parent.mkdir(parents=True)
    shutil.copy(directory / "first", copy)
    lines = _resolve(record(), HostSymbols(record(), None, root=tmp_path))
    assert any("leaf_of_first" in line for line in lines)
    assert not any("leaf_of_second" in line or ("libc.so.6" in line and "[unknown]" not in line) for line in lines)


def test_kernel_mapping_and_build_id(record: Callable[..., PerfData]) -> None:
    data = record("-a")
    _, address, user = _frames(data.samples)
    found = HostSymbols(data, Path("/proc/kallsyms")).resolve_kernel(address[~user])
    kernel = next(index for index, dso in enumerate(found.dsos) if dso.name == "[kernel.kallsyms]")
    listed = subprocess.run(["perf", "buildid-list", "-k"], check=True, capture_output=True).stdout.decode().strip()
    assert found.dsos[kernel].build_id == listed
    # The mapping ends with the kernel's text; its start-up code, which the first idle task came from, lies behind.
    text = (found.dso == kernel) & (address[~user] < found.limit.max())
    assert text.any() and ((address[~user] >= found.start) & (address[~user] < found.limit))[text].all()
    unnamed = HostSymbols(data, None).resolve_kernel(address[~user])
    assert (unnamed.name == -1).all()
    assert {unnamed.dsos[index].name for index in unnamed.dso.tolist() if index >= 0} >= {"[kernel.kallsyms]"}


def test_no_addresses(record: Callable[..., PerfData]) -> None:
    """A recording in which no sample hit a program of the host."""
    host = HostSymbols(record(), None)
    none = np.zeros(0, np.int32)
    resolved = host.resolve_user(none, none.astype(np.int64), none.astype(np.uint64))
    assert len(resolved.name) == 0 and resolved.names == []


def test_bad_kallsyms_is_an_error(record: Callable[..., PerfData]) -> None:
    with pytest.raises(FormatError, match="no list"):
        HostSymbols(record(), b"nothing")


_event = st.one_of(
    st.tuples(st.just("map"), st.integers(0, 3), st.integers(0, 30), st.integers(0, 12)),
    st.tuples(st.just("fork"), st.integers(0, 3), st.integers(0, 3), st.just(0)),
    st.tuples(st.just("exec"), st.integers(0, 3), st.just(0), st.just(0)),
)


def _made_up(events: list[tuple[str, int, int, int]]) -> PerfData:
    def column(kind: str, place: int, dtype: type) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        return np.array([(*event, time)[place] for time, event in enumerate(events) if event[0] == kind], dtype)

    def signed(kind: str, place: int) -> I32:
        return column(kind, place, np.int32)

    maps = len(signed("map", 1))
    mmaps = Mmaps(
        time=column("map", 4, np.int64),
        offset=column("map", 4, np.int64),
        pid=signed("map", 1),
        tid=signed("map", 1),
        start=column("map", 2, np.uint64),
        length=column("map", 3, np.uint64),
        pgoff=np.zeros(maps, np.uint64),
        prot=np.full(maps, 5, np.int32),
        cpumode=np.full(maps, 2, np.uint8),
        filename=["file"] * maps,
        build_id=[""] * maps,
    )
    execs = len(signed("exec", 1))
    comms = Comms(column("exec", 4, np.int64), column("exec", 4, np.int64), signed("exec", 1), signed("exec", 1), ["new"] * execs, np.ones(execs, bool))
    child, parent = signed("fork", 1), signed("fork", 2)
    forks = Tasks(column("fork", 4, np.int64), column("fork", 4, np.int64), child, parent, child, parent, np.zeros(len(child), bool))
    none = np.zeros(0, np.int64)
    samples = Samples(*([none] * 13))
    return PerfData("made-up", Header(), (), samples, comms, mmaps, forks, forks, 0, 0, 0, 0, ())


@settings(deadline=None)
@given(st.lists(_event, max_size=14), st.lists(st.tuples(st.integers(0, 4), st.integers(-1, 15), st.integers(0, 45)), max_size=20))
def test_mappings_against_a_simulation(events: list[tuple[str, int, int, int]], queries: list[tuple[int, int, int]]) -> None:
    spaces = AddressSpaces(_made_up(events))
    pid, time, address = np.array(queries, np.int64).reshape(-1, 3).T
    found = spaces.find(pid.astype(np.int32), time.astype(np.int64), address.astype(np.uint64))
    epochs = spaces.epoch(pid.astype(np.int32), time.astype(np.int64))
    same: dict[tuple[int, int, int], int] = {}
    for (process, moment, at), row, epoch in zip(queries, found.tolist(), epochs.tolist(), strict=True):
        assert row == _simulate(events, process, moment).get(at, -1)
        assert same.setdefault((process, epoch, at), row) == row


def _simulate(events: list[tuple[str, int, int, int]], process: int, moment: int) -> dict[int, int]:
    spaces: dict[int, dict[int, int]] = {}
    pending: set[int] = set()
    row = 0
    for time, (kind, pid, other, length) in enumerate(events):
        if time > moment and kind != "map":
            break
        if kind == "exec":
            pending.add(pid)
        elif kind == "fork" and pid != other:
            spaces[pid] = dict(spaces.get(other, {}))
            pending.discard(pid)
        elif kind == "map":
            if time <= moment:
                if pid in pending:
                    spaces[pid] = {}
                    pending.discard(pid)
                spaces.setdefault(pid, {}).update(dict.fromkeys(range(other, other + length), row))
            row += 1
    return spaces.get(process, {})
