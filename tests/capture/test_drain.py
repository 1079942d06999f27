# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfguest.capture.debugfs import ModuleFiles
from perfguest.capture.drain import Drain
from perfguest.capture.waiting import wait_readable
from perfguest.errors import CaptureError
from perfguest.formats.recording import stream_head
from tests.capture.fake_host import FORMAT, FakeHost

_HEAD = stream_head(FORMAT)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for 64 KiB."""
    place = tmp_path / "disk"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "small", str(place)], check=True)
    yield place
    subprocess.run(["umount", str(place)], check=True)


def _drain(host: FakeHost, path: Path) -> Drain:
    return Drain(ModuleFiles(host.paths.debugfs).open_streams([0, 1]), path, FORMAT)


def test_all_bytes_arrive_and_each_cpus_in_order(fake_host: FakeHost, tmp_path: Path) -> None:
    drain = _drain(fake_host, tmp_path / "guest.stream")
    drain.start()
    written = {0: b"", 1: b""}
    for number in range(2000):
        cpu = number % 2
        record = bytes([cpu]) + number.to_bytes(7, "little")
        _write_all(fake_host.streams[cpu], record)
        written[cpu] += record
    drain.stop()
    assert drain.bytes_written == (tmp_path / "guest.stream").stat().st_size
    drain.close()
    data = (tmp_path / "guest.stream").read_bytes()
    assert data.startswith(_HEAD)
    records = [data[at : at + 8] for at in range(len(_HEAD), len(data), 8)]
    for cpu, expected in written.items():
        assert b"".join(record for record in records if record[0] == cpu) == expected


def test_what_waits_when_it_stops_is_taken(fake_host: FakeHost, tmp_path: Path) -> None:
    drain = _drain(fake_host, tmp_path / "guest.stream")
    os.write(fake_host.streams[1], b"late record")
    drain.start()
    drain.stop()
    drain.close()
    assert (tmp_path / "guest.stream").read_bytes() == _HEAD + b"late record"


def test_what_is_written_is_shown(fake_host: FakeHost, tmp_path: Path) -> None:
    shown: list[bytes] = []
    drain = Drain(ModuleFiles(fake_host.paths.debugfs).open_streams([0, 1]), tmp_path / "guest.stream", FORMAT, shown.append)
    os.write(fake_host.streams[0], b"one read")
    drain.start()
    drain.stop()
    drain.close()
    assert shown == [b"one read"]


def test_stream_that_ends_does_not_spin(fake_host: FakeHost, tmp_path: Path) -> None:
    drain = _drain(fake_host, tmp_path / "guest.stream")
    os.write(fake_host.streams[0], b"the last")
    os.close(fake_host.streams.pop(0))
    drain.start()
    drain.stop()
    drain.close()
    assert (tmp_path / "guest.stream").read_bytes() == _HEAD + b"the last"


def test_full_disk_ends_it_and_keeps_what_was_written(fake_host: FakeHost, small_disk: Path) -> None:
    path = small_disk / "guest.stream"
    drain = _drain(fake_host, path)
    drain.start()
    sent = b""
    while not wait_readable([drain.failed], 0):
        block = len(sent).to_bytes(8, "little") * 512
        try:
            sent += block[: os.write(fake_host.streams[0], block)]
        except BlockingIOError:
            wait_readable([drain.failed], 0.01)
        assert len(sent) < 1 << 20
    with pytest.raises(CaptureError, match="disk is full") as raised:
        drain.stop()
    assert "converted" in raised.value.hint
    drain.close()
    kept = path.read_bytes()
    assert kept.startswith(_HEAD)
    assert len(kept) > 60_000
    assert sent.startswith(kept[len(_HEAD) :])


def test_place_that_cannot_be_written_to(fake_host: FakeHost, tmp_path: Path) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(CaptureError, match="cannot write"):
        _drain(fake_host, tmp_path / "absent/guest.stream")
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def _write_all(fd: int, data: bytes) -> None:
    while True:
        try:
            assert os.write(fd, data) == len(data)
            return
        except BlockingIOError:
            # The pipe is full: until the drain has taken some.
            os.set_blocking(fd, True)
