# SPDX-License-Identifier: Apache-2.0
"""`perfguest convert` as a user calls it, on a recording of this host and a guest stream from the lab."""

from __future__ import annotations

import gzip
import json
import lzma
import subprocess
import sys
from pathlib import Path

import pytest

from perfguest.formats.recording import FORMAT_VERSION, RecordingPaths, write_recording
from perfguest.proto import profile_pb2
from perfguest.proto import recording_pb2 as pb
from tests.writers.flamegraph_pages import Page

STREAM = Path(__file__).parents[1] / "formats" / "data" / "lab.stream.xz"


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("convert") / "perfguest.data"
    directory.mkdir()
    paths = RecordingPaths(directory)
    command = ["perf", "record", "-q", "-e", "cpu-clock", "-F", "999", "-g", "-o", paths.perf_data, sys.executable, "-c", "sum(i * i for i in range(10**6))"]
    subprocess.run(command, check=True, capture_output=True)
    paths.guest_stream.write_bytes(lzma.decompress(STREAM.read_bytes()))
    paths.kallsyms.write_bytes(gzip.compress(Path("/proc/kallsyms").read_bytes(), 1))
    write_recording(directory, pb.Recording(format_version=FORMAT_VERSION, perfguest_version="0.1.0", complete=True, started=1.7e9))
    return directory


@pytest.fixture
def recording(pristine: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "perfguest.data"
    copy.mkdir()
    for path in pristine.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    return copy


def convert(directory: Path, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    """In the directory above the recording's, as most do."""
    done = subprocess.run(
        [sys.executable, "-m", "perfguest", "convert", "--no-keep-tables", *arguments], cwd=directory.parent, capture_output=True, check=False
    )
    assert b"Traceback" not in done.stderr, done.stderr.decode()
    return done


def test_formats_have_all_samples(recording: Path) -> None:
    script = convert(recording, "--script")
    number = sum(line.endswith(b"cpu-clock: ") for line in script.stdout.splitlines())
    assert script.returncode == 0 and number > 10
    folded = convert(recording, "--folded").stdout.decode().splitlines()
    assert sum(int(line.rpartition(" ")[2]) for line in folded) == number
    assert convert(recording, "--pprof").returncode == 0
    profile = profile_pb2.Profile.FromString(gzip.decompress((recording.parent / "guest.pb.gz").read_bytes()))
    assert sum(sample.value[0] for sample in profile.sample) == number
    assert convert(recording, "--chrome").returncode == 0
    assert json.loads((recording.parent / "guest.trace.json").read_text())["traceEvents"]
    assert convert(recording, "--flamegraph").returncode == 0
    page = Page((recording.parent / "guest.html").read_bytes())
    assert sum(page.stacks(0).values()) == number


def test_script_is_what_convert_writes_unless_told(recording: Path) -> None:
    assert convert(recording).stdout == convert(recording, "--script", "-q").stdout
    assert not convert(recording, "-q").stderr


def test_output_goes_where_it_is_told(recording: Path) -> None:
    assert convert(recording, "--folded", "-o", "there.folded").stdout == b""
    assert (recording.parent / "there.folded").read_bytes() == convert(recording, "--folded").stdout
    assert gzip.decompress(convert(recording, "--pprof", "-o", "-").stdout)
    missing = convert(recording, "--pprof", "-o", "no/such/place.pb.gz")
    assert missing.returncode == 1 and b"cannot write no/such/place.pb.gz" in missing.stderr


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("recording.pb", None, b"is not a recording"),
        ("recording.pb", lambda data: b"\xff" * 100, b"damaged"),
        ("recording.pb", lambda data: pb.Recording(format_version=FORMAT_VERSION + 1).SerializeToString(), b"format"),
        ("perf.data", None, b"perf.data"),
        ("perf.data", lambda data: b"MZ" + data[2:], b"perf.data"),
        ("perf.data", lambda data: data[:50], b"perf.data"),
        ("guest.stream", None, b"guest.stream"),
        ("guest.stream", lambda data: b"something else that is long enough" * 3, b"not a guest stream"),
        ("kallsyms.gz", lambda data: data[:1000], b"kallsyms.gz"),
    ],
)
def test_bad_recordings_are_refused_with_words(recording: Path, name: str, damage: object, words: bytes) -> None:
    path = recording / name
    if callable(damage):
        path.write_bytes(damage(path.read_bytes()))
    else:
        path.unlink()
    done = convert(recording, "--pprof")
    assert done.returncode == 6 and words in done.stderr, done.stderr.decode()
    assert not (recording.parent / "guest.pb.gz").exists()


def test_cut_files_are_read_up_to_the_tear(recording: Path) -> None:
    whole = convert(recording, "--folded").stdout
    for name in ("perf.data", "guest.stream"):
        path = recording / name
        path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    done = convert(recording, "--folded")
    assert done.returncode == 0
    assert len(done.stdout) <= len(whole)
    assert done.stderr.count(b"perf.data") >= 1 and done.stderr.count(b"guest.stream") >= 1


def test_missing_host_symbols_are_told(recording: Path) -> None:
    (recording / "kallsyms.gz").unlink()
    done = convert(recording, "--folded")
    assert done.returncode == 0 and b"the host kernel's functions have no names" in done.stderr


@pytest.mark.parametrize("option", ["--guestkallsyms", "--guestvmlinux", "--guestmount", "--guest-binary"])
def test_missing_guest_files_are_refused(recording: Path, option: str) -> None:
    done = convert(recording, "--folded", option, "/no/such/thing")
    assert done.returncode in {2, 6} and b"/no/such/thing" in done.stderr


def test_kallsyms_of_another_boot_are_refused(recording: Path) -> None:
    """This host's, for the guest of the stream: never a wrong name."""
    done = convert(recording, "--folded", "--guestkallsyms", "/proc/kallsyms")
    assert done.returncode == 6 and b"another boot or another kernel" in done.stderr


def test_a_directory_that_is_no_recording(tmp_path: Path) -> None:
    done = convert(tmp_path / "perfguest.data")
    assert done.returncode == 6 and b"perfguest.data is not a recording" in done.stderr
