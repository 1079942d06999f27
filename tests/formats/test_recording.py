# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.errors import EnvironmentProblem, FormatError
from perfguest.formats.recording import FORMAT_VERSION, RecordingPaths, is_recording, prepare_directory, read_recording, stream_head, write_recording
from perfguest.proto import recording_pb2 as pb

_PROTO = Path(__file__).parents[2] / "proto/recording.proto"


def _write(directory: Path, name: str = "") -> pb.Recording:
    recording = pb.Recording(format_version=FORMAT_VERSION, perfguest_version="1.2", vms=[pb.VirtualMachine(pid=7, name=name)])
    write_recording(directory, recording)
    return recording


def test_what_was_written_is_read(tmp_path: Path) -> None:
    written = _write(tmp_path, "web")
    assert read_recording(tmp_path) == written
    assert [path.name for path in tmp_path.iterdir()] == ["recording.pb"]


def test_protoc_reads_what_was_written(tmp_path: Path) -> None:
    assert shutil.which("protoc"), "protobuf-compiler is needed"
    _write(tmp_path, "web")
    command = ["protoc", f"-I{_PROTO.parent}", "--decode=perfguest.Recording", _PROTO.name]
    text = subprocess.run(command, input=(tmp_path / "recording.pb").read_bytes(), capture_output=True, check=True).stdout.decode()
    assert 'name: "web"' in text
    assert f"format_version: {FORMAT_VERSION}" in text


def test_writing_that_fails_leaves_the_former(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = _write(tmp_path, "web")

    def refuse(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("perfguest.formats.recording.os.fsync", refuse)
    with pytest.raises(OSError, match="No space"):
        _write(tmp_path, "other")
    assert read_recording(tmp_path) == written
    assert len(list(tmp_path.iterdir())) == 1


def test_no_recording(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="not a recording"):
        read_recording(tmp_path)
    with pytest.raises(FormatError, match="not a recording"):
        read_recording(tmp_path / "absent")


def test_newer_format_is_refused(tmp_path: Path) -> None:
    write_recording(tmp_path, pb.Recording(format_version=FORMAT_VERSION + 1, perfguest_version="9"))
    with pytest.raises(FormatError, match=f"format {FORMAT_VERSION + 1}"):
        read_recording(tmp_path)


@given(st.binary(max_size=200))
def test_garbage_is_a_recording_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    directory = tmp_path_factory.getbasetemp() / "garbage"
    directory.mkdir(exist_ok=True)
    (directory / "recording.pb").write_bytes(data)
    try:
        recording = read_recording(directory)
    except FormatError as error:
        assert "recording.pb" in str(error)
        return
    assert recording.format_version == FORMAT_VERSION


@given(st.binary(max_size=50))
def test_stream_head_is_aligned_and_holds_the_text(text: bytes) -> None:
    head = stream_head(text)
    assert len(head) % 8 == 0
    assert head[:16] == b"PERFGUEST-STREAM"
    assert int.from_bytes(head[16:20], "little") == 1
    assert head[24 : 24 + int.from_bytes(head[20:24], "little")] == text
    assert not any(head[24 + len(text) :])


def test_directory_is_made_with_its_parents(tmp_path: Path) -> None:
    paths = prepare_directory(tmp_path / "a/b")
    assert paths == RecordingPaths(tmp_path / "a/b")
    assert paths.directory.is_dir()


def test_empty_directory_is_used(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    prepare_directory(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_former_recording_is_kept_once(tmp_path: Path) -> None:
    out, old = tmp_path / "out", tmp_path / "out.old"
    for name in ("first", "second", "third"):
        prepare_directory(out)
        assert not is_recording(out)
        _write(out, name)
    assert read_recording(out).vms[0].name == "third"
    assert read_recording(old).vms[0].name == "second"


@pytest.mark.parametrize("place", ["out", "out.old"])
@pytest.mark.parametrize("as_file", [True, False])
def test_what_is_no_recording_is_never_touched(tmp_path: Path, place: str, as_file: bool) -> None:
    if place == "out.old":
        (tmp_path / "out").mkdir()
        _write(tmp_path / "out")
    precious = tmp_path / place if as_file else tmp_path / place / "thesis.txt"
    precious.parent.mkdir(exist_ok=True)
    precious.write_text("precious")
    with pytest.raises(EnvironmentProblem, match="not a recording"):
        prepare_directory(tmp_path / "out")
    assert precious.read_text() == "precious"


def test_place_that_cannot_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot make"):
        prepare_directory(tmp_path / "file/out")
