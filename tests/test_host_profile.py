# SPDX-License-Identifier: Apache-2.0
"""`perfguest convert` of a perf.data alone: what it prints is what it prints of the recording that the file is from, and what perf prints."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from perfguest.formats.perf_data import read_perf_data
from perfguest.formats.recording import FORMAT_VERSION, RecordingPaths, write_recording
from perfguest.proto import recording_pb2 as pb
from perfguest.symbols.host import kernel_build_id

STREAM = Path(__file__).parent / "formats" / "data" / "lab.stream.xz"


@pytest.fixture(scope="module")
def recording(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of this host: a perf.data, and what makes it a recording without guests' samples."""
    directory = tmp_path_factory.mktemp("host") / "perfguest.data"
    directory.mkdir()
    paths = RecordingPaths(directory)
    command = ["sh", "-c", "seq 300000 | sort -n | sha1sum; find /usr/share | sort | wc -l"]
    subprocess.run(["perf", "record", "-q", "-e", "cpu-clock", "-F", "1999", "-g", "-o", paths.perf_data, *command], check=True, capture_output=True)
    paths.guest_stream.write_bytes(lzma.decompress(STREAM.read_bytes()))
    paths.kallsyms.write_bytes(gzip.compress(Path("/proc/kallsyms").read_bytes(), 1))
    write_recording(directory, pb.Recording(format_version=FORMAT_VERSION, perfguest_version="0.1.0", complete=True))
    return directory


@pytest.fixture(scope="module")
def perf_data(recording: Path) -> Path:
    return RecordingPaths(recording).perf_data


def convert(path: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "perfguest", "convert", str(path), *arguments]
    done = subprocess.run(command, capture_output=True, check=False, env=os.environ | environment)
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


@pytest.mark.parametrize("form", ["--script", "--folded"])
def test_the_file_alone_says_what_the_recording_says(recording: Path, perf_data: Path, form: str) -> None:
    alone = convert(perf_data, form)
    assert alone.returncode == 0 and len(alone.stdout.splitlines()) > 100
    assert alone.stdout == convert(recording, form).stdout
    assert f"give its directory, {recording}" in alone.stderr.decode()


def test_a_file_that_is_no_recordings_is_just_a_file(perf_data: Path, tmp_path: Path) -> None:
    shutil.copy(perf_data, tmp_path / "perf.data")
    assert "directory" not in convert(tmp_path / "perf.data", "--folded").stderr.decode()


def test_samples_without_a_cpu_have_none(perf_data: Path, tmp_path: Path) -> None:
    """As perf record of a command takes them: their lines are those of perf, and no number stands for what nobody knows."""
    theirs = subprocess.run(["perf", "script", "-i", perf_data, "-F", "comm,pid,tid,time,period,event"], capture_output=True, check=True, text=True).stdout
    ours = [line for line in convert(perf_data, "--script").stdout.decode().splitlines() if line[:1] not in ("", "\t")]
    assert [line.split() for line in ours] == [line.split() for line in theirs.splitlines()] and len(ours) > 100
    assert b"CPU -1" not in convert(perf_data, "--chrome", "-o", "-").stdout
    convert(perf_data, "--pprof", "-o", str(tmp_path / "pb.gz"))
    raw = subprocess.run(["go", "tool", "pprof", "-raw", tmp_path / "pb.gz"], capture_output=True, check=True)
    assert b"pid:" in raw.stdout and b"cpu:" not in raw.stdout


def test_folded_stacks_are_stackcollapses(perf_data: Path, stackcollapse: list[str], tmp_path: Path) -> None:
    script = subprocess.run(["perf", "script", "-i", perf_data, "-F", "comm,pid,tid,time,event,ip,sym,dso"], capture_output=True, check=True).stdout
    script = b"\n\n".join(_without_junk(block) for block in script.split(b"\n\n"))
    theirs = _folded(subprocess.run([*stackcollapse, "-"], input=script, capture_output=True, check=True).stdout)
    ours = _folded(convert(perf_data, "--folded").stdout)
    assert ours.total() == theirs.total() > 100
    # A call at the end of a function has its return address in the next one: we look for the call, perf for where it returns to.
    assert (ours & theirs).total() > 0.95 * ours.total()


def _without_junk(block: bytes) -> bytes:
    """A sample as perf prints it, without callers at its end that are in no file: Debian's programs have no frame pointers."""
    lines = block.splitlines()
    # Behind the kernel stands where the program was interrupted, which is no caller.
    while len(lines) > 2 and lines[-1].endswith(b"[unknown] ([unknown])") and re.search(rb"\((/.*|\[vdso\]|\[unknown\])\)$", lines[-2]):
        lines.pop()
    return b"\n".join(lines)


def test_no_caller_at_a_stacks_end_is_outside_of_the_programs_code(perf_data: Path) -> None:
    blocks = convert(perf_data, "--script").stdout.split(b"\n\n")
    assert len(blocks) > 100 and all(_without_junk(block) == block.rstrip(b"\n") for block in blocks)


def _folded(text: bytes) -> Counter[str]:
    counts: Counter[str] = Counter()
    for line in text.decode().splitlines():
        stack, _, count = line.rpartition(" ")
        # Frames without a name have their address in ours, their file in theirs.
        counts[";".join("?" if re.fullmatch(r"0x[0-9a-f]+|\[.*\]", frame) else frame for frame in stack.split(";"))] += int(count)
    return counts


def test_kernel_symbols_out_of_perfs_cache_if_they_are_of_that_boot(perf_data: Path, tmp_path: Path) -> None:
    build_id = kernel_build_id(read_perf_data(perf_data))
    cached = tmp_path / ".build-id" / build_id[:2] / build_id[2:] / "kallsyms"
    cached.parent.mkdir(parents=True)
    lines = Path("/proc/kallsyms").read_text().splitlines(keepends=True)
    cached.write_text("".join(line.replace(" do_syscall_64\n", " out_of_the_cache\n") for line in lines))
    found = convert(perf_data, "--script", PERF_BUILDID_DIR=str(tmp_path)).stdout
    assert b" out_of_the_cache+" in found and b" do_syscall_64+" not in found
    # As if the kernel had been elsewhere: then it is the running one's.
    cached.write_text("".join(f"{int(line[:16], 16) ^ 1 << 21:016x}{line[16:]}" for line in lines))
    assert b" do_syscall_64+" in convert(perf_data, "--script", PERF_BUILDID_DIR=str(tmp_path)).stdout


def test_another_root_has_no_names_and_it_is_said(perf_data: Path, tmp_path: Path) -> None:
    done = convert(perf_data, "--folded", "--host-root", str(tmp_path), PERF_BUILDID_DIR=str(tmp_path))
    assert done.returncode == 0 and b"do_syscall_64" not in done.stdout
    assert b"its functions have no names" in done.stderr and b"files of the host that cannot be read here" in done.stderr


def test_what_the_file_does_not_hold_is_refused_with_words(perf_data: Path, tmp_path: Path) -> None:
    given = convert(perf_data, "--guestkallsyms", "x")
    assert given.returncode == 2 and b"give its directory" in given.stderr
    torn = tmp_path / "torn.data"
    torn.write_bytes(perf_data.read_bytes()[:-5000])
    cut = convert(torn, "--folded")
    assert cut.returncode == 0 and cut.stdout and b"is cut off" in cut.stderr
    torn.write_bytes(b"no perf.data at all")
    assert convert(torn).returncode == 6
    torn.write_bytes(b"")
    assert convert(torn).returncode == 6
    assert b"is not a recording" in convert(tmp_path / "nothing").stderr


def test_only_samples_of_guests_threads_can_be_chosen(perf_data: Path) -> None:
    chosen = convert(perf_data, "--guest-comm", "nginx")
    assert chosen.returncode == 2 and b"does not say which of the guests' threads ran" in chosen.stderr
