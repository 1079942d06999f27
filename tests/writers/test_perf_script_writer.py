# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import re
import subprocess
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from perfguest.profile import Mapping, Mode, Profile
from perfguest.writers import perf_script
from tests import profiles
from tests.profiles import Frame, ProfileBuilder

_FIELDS = "comm,pid,tid,cpu,time,period,event,ip,sym,symoff,dso"
# Works for its time in the kernel and in user code, and ends by itself.
_WORKLOAD = ["sh", "-c", "i=0; while [ $i -lt 300 ]; do i=$((i+1)); cat /proc/self/maps; done >/dev/null"]


def _write(profile: Profile) -> bytes:
    out = io.BytesIO()
    perf_script.write(profile, out)
    return out.getvalue()


@pytest.fixture(scope="module")
def perf_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("perf") / "perf.data"
    record = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "2000", "-g", "--sample-cpu", "-o", path, "--", *_WORKLOAD]
    subprocess.run(record, check=True, stdin=subprocess.DEVNULL, capture_output=True)
    return path


def _perf_script(perf_data: Path, *options: str) -> str:
    return subprocess.run(
        ["perf", "script", "--no-inline", "-i", perf_data, *options], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True
    ).stdout


def test_every_byte_is_as_perf_prints_it(perf_data: Path) -> None:
    theirs = _perf_script(perf_data, "-F", _FIELDS)
    builder = ProfileBuilder(events=["cpu-clock"])
    for text in theirs.split("\n\n")[:-1]:
        header, *lines = text.split("\n")
        comm, pid, tid, cpu, seconds, microseconds, period = re.fullmatch(r"(.*?) +(\d+)/(\d+) +\[(\d+)\] +(\d+)\.(\d+): +(\d+) cpu-clock: ", header).groups()  # type: ignore[union-attr]
        time = int(seconds) * 1_000_000_000 + int(microseconds) * 1000 + 999
        builder.sample(list(map(_frame, lines)), time=time, cpu=int(cpu), pid=int(pid), tid=int(tid), comm=comm, period=int(period))
    profile = builder.build()
    assert len(profile.samples) > 50
    assert _write(profile).decode() == theirs


def _frame(line: str) -> Frame:
    address, symbol, offset, dso = re.fullmatch(r"\t +?([0-9a-f]+) (.*?)(?:\+0x([0-9a-f]+))? \((.*)\)", f"\t {line[1:]}").groups()  # type: ignore[union-attr]
    return Frame(None if offset is None else symbol, Mode.HOST_USER, Mapping(dso), int(address, 16), int(offset or "0", 16))


def test_addresses_in_files_are_the_offsets_that_perf_prints(perf_data: Path) -> None:
    """perf's dump has addresses as sampled, and its mmap events where the files were: from both must come the addresses that it prints."""
    mappings = {
        (int(pid), int(start, 16)): Mapping(name, start=int(start, 16), limit=int(start, 16) + int(size, 16), file_offset=int(offset, 16))
        for pid, start, size, offset, name in re.findall(
            r"PERF_RECORD_MMAP2? (\d+)/\d+: \[(0x[0-9a-f]+)\((0x[0-9a-f]+)\) @ (0x[0-9a-f]+|0) .*\]: r-xp (/.*)", _perf_script(perf_data, "--show-mmap-events")
        )
    }
    sampled = re.findall(r"PERF_RECORD_SAMPLE\(IP, 0x[0-9a-f]+\): (\d+)/\d+: (0x[0-9a-f]+)", _perf_script(perf_data, "-D"))
    printed = [block.split()[:2] for block in _perf_script(perf_data, "-F", "pid,ip").split("\n\n")[:-1]]
    assert len(sampled) == len(printed) > 50
    builder, expected = ProfileBuilder(), []
    for (pid, address), (same_pid, theirs) in zip(sampled, printed, strict=True):
        assert pid == same_pid
        at = int(address, 16)
        inside = [mapping for (owner, _), mapping in mappings.items() if owner == int(pid) and mapping.start <= at < mapping.limit]
        if len(inside) == 1:
            builder.sample([Frame(None, Mode.HOST_USER, inside[0], at)])
            expected.append(theirs)
    assert len(expected) > 10
    assert re.findall(r"\t *([0-9a-f]+) \[unknown\]", _write(builder.build()).decode()) == expected


def test_frames_that_are_no_code_have_a_name_alone() -> None:
    lines = _write(profiles.example()).decode().splitlines()
    assert lines[3:5] == ["\t               0 CPU 0/KVM ([thread])", "\t               0 web ([vm])"]


def test_events_are_aligned_and_samples_without_frames_keep_their_line() -> None:
    builder = ProfileBuilder(events=["cycles:GH", "cpu-clock"])
    text = _write(builder.sample([], event=0, period=5).sample([], event=1, period=6).build()).decode()
    assert text == ("thread   100/100   [000]     1.000000:          5 cycles:GH: \n\nthread   100/100   [000]     1.000000:          6 cpu-clock: \n\n")


def test_nothing_gives_nothing() -> None:
    assert _write(ProfileBuilder().build()) == b""


@settings(deadline=None)
@given(profiles.profiles())
def test_names_cannot_make_lines(profile: Profile) -> None:
    text = _write(profile).decode()
    blocks = text.split("\n\n")
    assert blocks.pop() == ""
    assert len(blocks) == len(profile.samples)
    for block, stack in zip(blocks, profile.samples.stack.tolist(), strict=True):
        header, *lines = block.splitlines()
        assert header.isprintable()
        assert re.fullmatch(r"[^#\s].*? +\d+/\d+ +\[\d{3,}\] +\d+\.\d{6}: +\d+ +\S+: ", header)
        assert len(lines) == len(profile.stacks.of(stack))
        for line in lines:
            # The dso holds no space, as speedscope and Firefox Profiler want it.
            assert line[1:].isprintable() and re.fullmatch(r"\t[ 0-9a-f]{15}[0-9a-f] .+ \(\S+\)", line)


_one_event = st.lists(
    st.tuples(
        profiles.hostile_text, st.lists(st.builds(Frame, symbol=profiles.hostile_text, mode=st.sampled_from(Mode), mapping=profiles.mappings), max_size=3)
    ),
    max_size=40,
)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(_one_event)
def test_stackcollapse_reads_hostile_names(stackcollapse: list[str], tmp_path: Path, samples: list[tuple[str, list[Frame]]]) -> None:
    builder = ProfileBuilder()
    for tid, (comm, stack) in enumerate(samples, 99_998):
        builder.sample(stack, tid=tid, comm=comm, period=3)
    (tmp_path / "script.txt").write_bytes(_write(builder.build()))
    run = subprocess.run([*stackcollapse, "--tid", tmp_path / "script.txt"], capture_output=True, text=True, check=True)
    assert run.stderr == ""
    threads = {}
    for line in run.stdout.splitlines():
        path, _, period = line.rpartition(" ")
        thread, *frames = path.split(";")
        assert period == "3"
        threads[int(thread.rpartition("/")[2])] = (thread.rpartition("-")[0], len(frames))
    for tid, (comm, stack) in enumerate(samples, 99_998):
        read, depth = threads.pop(tid)
        # What it makes of a thread's name: spaces become underscores, and of one character two. An empty name is the thread's number, as perf has it.
        name = _bytes(comm or f":{tid}").replace(b" ", b"_")
        assert _unescape(read).replace(b" ", b"_") in ([name, name + b"_"] if len(comm) == 1 else [name])
        assert depth == len(stack)
    assert not threads


def _unescape(text: str) -> bytes:
    return re.sub(rb"\\x(..)", lambda match: bytes.fromhex(match[1].decode()), text.encode())


def _bytes(text: str) -> bytes:
    return b"".join(char.encode("utf-8", "surrogateescape" if "\udc80" <= char <= "\udcff" else "surrogatepass") for char in text)
