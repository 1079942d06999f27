# SPDX-License-Identifier: Apache-2.0
"""Real recordings of this machine, compared record by record with what perf itself says of them."""

from __future__ import annotations

import re
import struct
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from perfguest.formats.perf_data import PerfData, read_perf_data
from perfguest.formats.perf_samples import Samples

# Many short-lived processes, a deep stack of calls, and faults.
_WORKLOAD = [
    "sh",
    "-c",
    "seq 200000 | sort -n | sha1sum >/dev/null; python3 -c 'import json; json.loads(json.dumps([[i] for i in range(100000)]))'",
]
_BASE = ["perf", "record", "-q", "-F", "999", "-a", "-g"]
_COMMANDS = {
    "plain": [*_BASE, "-e", "cpu-clock"],
    "events": [*_BASE, "-e", "cpu-clock,page-faults"],
    "fields": [*_BASE, "-e", "task-clock:u,cpu-clock", "-d", "-W", "--sample-identifier"],
    "mono": [*_BASE, "-e", "cpu-clock", "-k", "mono"],
    "period": ["perf", "record", "-q", "-a", "-g", "-c", "2000000", "-e", "cpu-clock"],
    "read": ["perf", "record", "-q", "-a", "-g", "-e", "{cpu-clock,page-faults}:S"],
    "no-chain": ["perf", "record", "-q", "-F", "999", "-a", "-e", "cpu-clock"],
    "dwarf": ["perf", "record", "-q", "-F", "499", "-a", "--call-graph", "dwarf,4096", "-e", "cpu-clock"],
    "buildid-mmap": [*_BASE, "-e", "cpu-clock", "--buildid-mmap"],
    "compressed": [*_BASE, "-e", "cpu-clock", "-z"],
}


def _run(command: list[str]) -> str:
    # perf says on stderr what it thinks of /etc and lost symbols; its exit status is what counts.
    return subprocess.run(command, check=True, capture_output=True, timeout=120).stdout.decode("utf-8", "replace")


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    directory = tmp_path_factory.mktemp("perf-data")

    def make(kind: str) -> Path:
        path = directory / f"{kind}.data"
        if not path.exists():
            if kind == "pipe":
                with path.open("wb") as output:
                    subprocess.run([*_BASE, "-e", "cpu-clock", "-o", "-", "--", *_WORKLOAD], check=True, stdout=output, stderr=subprocess.DEVNULL, timeout=120)
            else:
                _run([*_COMMANDS[kind], "-o", str(path), "--", *_WORKLOAD])
        return path

    return make


def _script(path: Path) -> list[tuple[str, int, int, int, int, int, str]]:
    """(comm, pid, tid, cpu, time, period, event) of every sample as perf prints it."""
    text = _run(["perf", "script", "--ns", "-F", "comm,pid,tid,cpu,time,period,event", "-i", str(path)])
    line = re.compile(r"^\s*(.+?)\s+(-?\d+)/(-?\d+)\s+\[(\d+)\]\s+(\d+)\.(\d{9}):\s+(\d+)\s+(.+?):\s*$")
    found = []
    for each in text.splitlines():
        # From a pipe, perf prints callchains whether asked or not.
        if each.strip() and not each.startswith("\t"):
            match = line.match(each)
            assert match, each
            comm, pid, tid, cpu, seconds, nanoseconds, period, event = match.groups()
            found.append((comm, int(pid), int(tid), int(cpu), int(seconds + nanoseconds), int(period), event))
    return found


def _ours(data: PerfData) -> list[tuple[str, int, int, int, int, int, str]]:
    s = data.samples
    names, comm = data.comms_at(s.tid, s.time)
    columns = (comm, s.pid, s.tid, s.cpu, s.time, s.period, s.event)
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return [(names[comm], pid, tid, cpu, when, period, data.events[event].name) for comm, pid, tid, cpu, when, period, event in rows]


def _dump(path: Path) -> str:
    """perf's raw dump, with offsets of the file: in a pipe perf counts from behind its header of 16 bytes."""
    text = _run(["perf", "script", "-D", "-i", str(path)])
    if path.name != "pipe.data":
        return text
    return re.sub(r"(0x[0-9a-f]+)(?= \[0x[0-9a-f]+\]: PERF_RECORD_)", lambda match: hex(int(match[1], 16) + 16), text)


def _dumped_samples(dump: str) -> list[tuple[int, int, int, int, int, int, int, list[int]]]:
    """(offset, misc, pid, tid, time, ip, period, chain) of every sample in perf's raw dump."""
    head = re.compile(
        r"^(?:-?\d+ )?(\d+) (0x[0-9a-f]+) \[0x[0-9a-f]+\]: PERF_RECORD_SAMPLE\(IP, (0x[0-9a-f]+)\): (-?\d+)/(-?\d+): (0x[0-9a-f]+|0) period: (\d+)"
    )
    link = re.compile(r"^\.\.\.\.\.\s+\d+: ([0-9a-f]{16})$")
    found: list[tuple[int, int, int, int, int, int, int, list[int]]] = []
    for line in dump.splitlines():
        if match := head.match(line):
            when, offset, misc, pid, tid, ip, period = match.groups()
            found.append((int(offset, 16), int(misc, 16), int(pid), int(tid), int(when), int(ip, 16), int(period), []))
        elif found and (match := link.match(line)):
            found[-1][-1].append(int(match[1], 16))
    return found


def _ours_as_dumped(s: Samples) -> list[tuple[int, int, int, int, int, int, int, list[int]]]:
    starts, chain = s.chain_start.tolist(), s.chain.tolist()
    columns = (column.tolist() for column in (s.offset, s.misc, s.pid, s.tid, s.time, s.ip, s.period))
    return [(*row, chain[starts[index] : starts[index + 1]]) for index, row in enumerate(zip(*columns, strict=True))]


@pytest.mark.parametrize("kind", ["plain", "events", "fields", "mono", "period", "no-chain", "dwarf", "buildid-mmap", "compressed", "pipe"])
def test_every_sample_is_as_perf_script_prints_it(recording: Callable[[str], Path], kind: str) -> None:
    path = recording(kind)
    data = read_perf_data(path)
    expected = _script(path)
    assert len(expected) > 30
    assert _ours(data) == expected
    assert data.notes == ()


@pytest.mark.parametrize("kind", ["plain", "events", "fields", "dwarf", "pipe"])
def test_every_callchain_is_as_perf_dumps_it(recording: Callable[[str], Path], kind: str) -> None:
    path = recording(kind)
    data = read_perf_data(path)
    expected = _dumped_samples(_dump(path))
    assert sum(len(sample[-1]) for sample in expected) > 20
    assert sorted(_ours_as_dumped(data.samples)) == sorted(expected)
    assert (data.samples.cpumode == (data.samples.misc & 7)).all()


def test_group_reads_are_stepped_over(recording: Callable[[str], Path]) -> None:
    # perf makes several samples of one record here, so only what stands behind the group's counters is compared.
    path = recording("read")
    data = read_perf_data(path)
    assert data.events[0].read_format & 8
    expected = {(sample[0], tuple(sample[-1])) for sample in _dumped_samples(_dump(path))}
    assert {(sample[0], tuple(sample[-1])) for sample in _ours_as_dumped(data.samples)} == expected
    assert any(chain for _, chain in expected)


def test_compressed_callchains_are_as_perf_prints_them(recording: Callable[[str], Path]) -> None:
    path = recording("compressed")
    data = read_perf_data(path)
    kernel = [line.strip() for line in _run(["perf", "script", "-F", "ip", "-i", str(path)]).splitlines() if re.match(r"\s*ffff[0-9a-f]{12}$", line)]
    s = data.samples
    chain = s.chain[(s.chain >= np.uint64(0xFFFF << 48)) & (s.chain < np.uint64(2**64 - 4095))]
    assert [f"{ip:x}" for ip in chain.tolist()] == kernel
    assert (s.offset >= path.stat().st_size).any()


@pytest.mark.parametrize("kind", ["plain", "buildid-mmap", "pipe"])
def test_tasks_and_mappings_are_as_perf_dumps_them(recording: Callable[[str], Path], kind: str) -> None:
    path = recording(kind)
    data = read_perf_data(path)
    dump = _dump(path)
    when = r"^(?:-?\d+ )?(\d+) (0x[0-9a-f]+) \[0x[0-9a-f]+\]: PERF_RECORD_"
    comms = re.findall(when + r"COMM( exec)?: (.*):(-?\d+)/(-?\d+)$", dump, re.MULTILINE)
    c = data.comms
    ours = zip(c.time.tolist(), c.offset.tolist(), c.exec.tolist(), c.comm, c.pid.tolist(), c.tid.tolist(), strict=True)
    assert sorted(ours) == sorted((int(t), int(o, 16), bool(e), name, int(pid), int(tid)) for t, o, e, name, pid, tid in comms)
    for kind_name, table in (("FORK", data.forks), ("EXIT", data.exits)):
        tasks = re.findall(when + kind_name + r"\((-?\d+):(-?\d+)\):\((-?\d+):(-?\d+)\)$", dump, re.MULTILINE)
        columns = (table.time, table.offset, table.pid, table.tid, table.ppid, table.ptid)
        expected = sorted((int(t), int(o, 16), int(a), int(b), int(c), int(d)) for t, o, a, b, c, d in tasks)
        assert expected
        assert sorted(zip(*(column.tolist() for column in columns), strict=True)) == expected
    mappings = re.findall(when + r"MMAP2? (-?\d+)/(-?\d+): \[(0x[0-9a-f]+)\((0x[0-9a-f]+)\) @ (0x[0-9a-f]+|0)(.*)\]: (\S+) (.*)$", dump, re.MULTILINE)
    m = data.mmaps
    ours_mapped = zip(*(column.tolist() for column in (m.time, m.offset, m.pid, m.tid, m.start, m.length, m.pgoff)), m.filename, strict=True)
    assert sorted(ours_mapped) == sorted(
        (int(t), int(o, 16), int(pid), int(tid), int(s, 16), int(n, 16), int(p, 16), name) for t, o, pid, tid, s, n, p, _, _, name in mappings
    )
    build_ids = {int(o, 16): match[1] for _, o, *_, extra, _, _ in mappings if (match := re.search(r"<([0-9a-f]+)>", extra))}
    assert {offset: build_id for offset, build_id in zip(m.offset.tolist(), m.build_id, strict=True) if build_id} == build_ids
    assert bool(build_ids) == (kind == "buildid-mmap")
    executable = {int(o, 16) for _, o, *_, prot, _ in mappings if "x" in prot}
    assert {offset for offset, prot in zip(m.offset.tolist(), m.prot.tolist(), strict=True) if prot & 4} == executable
    assert (np.diff(data.mmaps.time) >= 0).all()


def test_header_is_as_perf_prints_it(recording: Callable[[str], Path]) -> None:
    path = recording("mono")
    header = read_perf_data(path).header
    printed = _run(["perf", "report", "--header-only", "-I", "-i", str(path)])
    fields = dict(re.findall(r"^# ([^:\n]+?) : (.*)$", printed, re.MULTILINE))
    assert header.hostname == fields["hostname"]
    assert header.osrelease == fields["os release"]
    assert header.version == fields["perf version"]
    assert header.arch == fields["arch"]
    assert header.cpudesc == fields["cpudesc"]
    assert header.nrcpus_online == int(fields["nrcpus online"])
    assert header.nrcpus_available == int(fields["nrcpus avail"])
    assert " ".join(header.cmdline) == fields["cmdline"].strip().replace("\\'", "'")
    assert header.clock_data is not None
    assert header.clock_data.clockid == time.CLOCK_MONOTONIC
    reference = re.search(r"reference time: .* = (\d+\.\d{6}) \(TOD\) = (\d+\.\d{9}) \(monotonic\)", printed)
    assert reference
    assert header.clock_data.wall_clock_ns // 1000 == int(reference[1].replace(".", ""))
    assert header.clock_data.clockid_time_ns == int(reference[2].replace(".", ""))
    assert header.clockid_resolution == 1
    assert header.sample_time is not None
    first, last = (round(float(fields[f"time of {which} sample"]) * 1e6) for which in ("first", "last"))
    assert (header.sample_time[0] // 1000, header.sample_time[1] // 1000) == (first, last)
    listed = set(re.findall(r"^([0-9a-f]{40}) (.+)$", _run(["perf", "buildid-list", "-i", str(path)]), re.MULTILINE))
    assert {(entry.build_id, entry.filename) for entry in header.build_ids} == listed


def test_clock_of_events(recording: Callable[[str], Path]) -> None:
    assert {event.clockid for event in read_perf_data(recording("mono")).events} == {time.CLOCK_MONOTONIC}
    assert {event.clockid for event in read_perf_data(recording("plain")).events} == {None}


def test_recording_of_a_killed_perf_is_read(recording: Callable[[str], Path], tmp_path: Path) -> None:
    path = tmp_path / "killed.data"
    # Small buffers, so that perf writes often.
    with subprocess.Popen(["perf", "record", "-q", "-m", "4", "-F", "999", "-a", "-g", "-e", "cpu-clock", "-o", str(path)], stderr=subprocess.DEVNULL) as perf:
        busy = subprocess.Popen(["sha1sum", "/dev/zero"], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while (not path.exists() or path.stat().st_size < 300_000) and time.monotonic() < deadline:
            assert perf.poll() is None
            time.sleep(0.05)
        perf.kill()
        busy.kill()
        busy.wait()
    data = read_perf_data(path)
    assert any("not finished" in note for note in data.notes)
    assert len(data.samples) > 50
    # perf refuses such a file; with its header finished by hand, and no features, it reads the same.
    whole = bytearray(path.read_bytes())
    start = struct.unpack_from("<Q", whole, 40)[0]
    struct.pack_into("<Q", whole, 48, _length_of_records(bytes(whole), start))
    whole[72:104] = bytes(32)
    mended = tmp_path / "mended.data"
    mended.write_bytes(whole)
    assert _ours(data) == _script(mended)


def _length_of_records(data: bytes, start: int) -> int:
    position = start
    while position + 8 <= len(data) and position + (size := struct.unpack_from("<H", data, position + 6)[0]) <= len(data):
        position += size
    return position - start
