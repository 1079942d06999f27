# SPDX-License-Identifier: Apache-2.0
"""A recording from the lab with a snapshot of its guest: convert names without any option what it names with the guest's kallsyms given."""

from __future__ import annotations

import gzip
import lzma
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from perfguest.convert import load_profile
from perfguest.formats.guest_snapshot import SnapshotWriter
from perfguest.formats.recording import FORMAT_VERSION, RecordingPaths, write_recording
from perfguest.join import Joined, join
from perfguest.proto import guest_pb2, profile_pb2
from perfguest.proto import recording_pb2 as pb
from tests.snapshots import events, modules_of, stamp_tasks, symbols_message

DATA = Path(__file__).parent / "data"
LSTAR, OFFSET, VM_PID = 0xFFFFFFFF8FC00080, 0xE000000, 135
TABLES = [0x282C000, 0x28C2000, 0x28C6000, 0x28C8000, 0x28CA000, 0xC010000]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As recorded: without a snapshot, and records without the guest's thread."""
    directory = tmp_path_factory.mktemp("plain") / "perfguest.data"
    directory.mkdir()
    paths = RecordingPaths(directory)
    paths.perf_data.write_bytes(lzma.decompress((DATA / "perf.data.xz").read_bytes()))
    paths.guest_stream.write_bytes(lzma.decompress((DATA / "guest.stream.xz").read_bytes()))
    paths.kallsyms.write_bytes(gzip.compress(b"ffffffff81000000 T _text\n"))
    (directory.parent / "guest.kallsyms").write_bytes(lzma.decompress((DATA / "guest.kallsyms.xz").read_bytes()))
    write_recording(directory, pb.Recording(format_version=FORMAT_VERSION, complete=True, vms=[pb.VirtualMachine(pid=VM_PID, name="lab")]))
    return directory


@pytest.fixture(scope="module")
def recording(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("snapshot") / "perfguest.data"
    directory.mkdir()
    for path in plain.iterdir():
        (directory / path.name).write_bytes(path.read_bytes())
    kallsyms = plain.parent / "guest.kallsyms"
    rows = [line.split(" ", 2) for line in kallsyms.read_text().splitlines() if "\t" not in line]
    linked = [(int(address, 16) - OFFSET if int(address, 16) >> 63 else int(address, 16), kind, name) for address, kind, name in rows]
    kernel = guest_pb2.VmKernel(
        vm_pid=VM_PID, vm_id=1, time=112 * 10**9, kernel="aa", kaslr_offset=OFFSET, lstar=LSTAR, modules=modules_of(kallsyms), level="processes"
    )
    processes, threads = [], []
    for number, cr3 in enumerate(TABLES):
        who = {"tgid": 100 + number, "pid": 100 + number, "start_time": 10**9 + number}
        code = guest_pb2.Mapping(start=0x400000, end=0x500000, executable=True)
        processes.append(
            guest_pb2.Process(
                vm_pid=VM_PID, time=112 * 10**9, cr3=cr3, cgroup=b"/load/%d" % number, mappings=[code], perf_map=b"400000 100000 all_of_it\n", **who
            )
        )
        threads.append((cr3, (200 + number, 100 + number, 10**9 + number, b"thread-%d" % number)))
    with SnapshotWriter(directory / "guests") as writer:
        writer.kernel("aa", guest_pb2.Kernel(release="6.1", symbols=symbols_message(linked)))
        for event in events(kernel, *processes, guest_pb2.Problem(vm_pid=VM_PID, text="it is a test\n")):
            writer.event(event)
    stream = RecordingPaths(directory).guest_stream
    stream.write_bytes(stamp_tasks(stream.read_bytes(), threads))
    return directory


def convert(recording: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "perfguest", "convert", "--no-keep-tables", str(recording), *arguments], capture_output=True, text=True, check=False
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done


def kernel_frames(text: str) -> list[str]:
    return re.findall(r"^\t *f{8}\w{8} (\S+) \(\[(?:guest.kernel.kallsyms|af_alg|algif_hash|virtio\w*)\]\)", text, re.MULTILINE)


def test_names_without_options_are_those_with_files(plain: Path, recording: Path) -> None:
    given = convert(plain, "--guestkallsyms", str(plain.parent / "guest.kallsyms"))
    found = convert(recording)
    assert given.returncode == found.returncode == 0, found.stderr
    expected = kernel_frames(given.stdout)
    assert len(expected) > 500 and expected.count("[unknown]") < 0.01 * len(expected)
    assert kernel_frames(found.stdout) == expected
    # Without both there are none.
    assert set(kernel_frames(convert(plain).stdout)) == {"[unknown]"}


def test_the_guests_threads_stand_in_the_stacks(recording: Path) -> None:
    done = convert(recording, "--folded")
    lines = [line for line in done.stdout.splitlines() if line.startswith("lab;")]
    assert all(re.match(r"lab;[^;]+;(thread-\d;|\S)", line) for line in lines)
    assert sum(int(line.rpartition(" ")[2]) for line in lines if ";thread-" in line) == 843
    assert any(re.search(r";thread-2;(all_of_it;?)+", line) for line in lines)
    assert r"VM of pid 135: it is a test\x0a" in done.stderr


def test_labels_and_selection(recording: Path, tmp_path: Path) -> None:
    target = tmp_path / "p.pb.gz"
    assert convert(recording, "--pprof", "-o", str(target), "--guest-comm", "thread-2", "--guest-pid", "102", "--cgroup", "/load").returncode == 0
    profile = profile_pb2.Profile.FromString(gzip.decompress(target.read_bytes()))
    labels = {(profile.string_table[label.key], profile.string_table[label.str] or label.num) for sample in profile.sample for label in sample.label}
    assert {("guest_comm", "thread-2"), ("guest_pid", 102), ("guest_tid", 202), ("cgroup", "/load/2")} <= labels
    assert {value for key, value in labels if key == "guest_pid"} == {102}
    assert sum(sample.value[0] for sample in profile.sample) == 410
    none = convert(recording, "--pprof", "-o", str(target), "--guest-comm", "nobody")
    assert none.returncode == 2 and "thread-2" in none.stderr


def test_a_damaged_snapshot_costs_names_and_nothing_else(recording: Path, tmp_path: Path) -> None:
    copy = tmp_path / "perfguest.data"
    subprocess.run(["cp", "-r", str(recording), str(copy)], check=True)
    (copy / "guests" / "kernels" / "aa.pb.gz").write_bytes(b"junk")
    whole = (copy / "guests" / "events").read_bytes()
    (copy / "guests" / "events").write_bytes(whole[:-20])
    done = convert(copy, "--folded")
    assert done.returncode == 0 and "aa.pb.gz is damaged" in done.stderr and "not whole events" in done.stderr
    assert sum(";thread-" in line for line in done.stdout.splitlines()) > 10


def test_convert_needs_nothing_that_reads_memory(recording: Path) -> None:
    code = "import sys; sys.modules['drgn'] = None; from perfguest.cli import main; sys.exit(main())"
    done = subprocess.run([sys.executable, "-c", code, "convert", "--no-keep-tables", str(recording), "--folded"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == convert(recording, "--folded").stdout


def test_a_thread_of_a_vm_that_is_about_to_be_gone(recording: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its number is -1 in perf's samples from when it has left the table of pids."""

    def with_one(directory: Path, window: int) -> Joined:
        joined = join(directory, window)
        joined.perf.samples.tid[np.flatnonzero(joined.vm >= 0)[5]] = -1
        return joined

    monkeypatch.setattr("perfguest.convert.join", with_one)
    profile = load_profile(recording)
    (sample,) = np.flatnonzero(profile.samples.tid == -1)
    thread = profile.stacks.of(profile.samples.stack[sample])[-2]
    assert profile.mappings[profile.frames.mapping[thread]].name == "[thread]"
    assert profile.strings[profile.frames.symbol[thread]] == profile.strings[profile.samples.comm[sample]]
