# SPDX-License-Identifier: Apache-2.0
"""Readers are forked from a process that reads no guest, and have nothing of each other's."""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from perfguest.capture.guest_reader import ReaderLimits, ReaderProcess
from perfguest.capture.guest_zygote import Zygote
from perfguest.capture.waiting import wait_readable
from perfguest.errors import CaptureError
from perfguest.guest.wire import Kind

_SECONDS = 60.0


@pytest.fixture
def zygote() -> Iterator[Zygote]:
    made = Zygote()
    yield made
    made.close()


def start(zygote: Zygote, memory: Path) -> ReaderProcess:
    """A reader that has said its HELLO."""
    reader = ReaderProcess(os.open(memory, os.O_RDONLY), ReaderLimits(), zygote)
    assert wait_readable([reader.fd], _SECONDS)
    (message,) = reader.read()
    assert (message.kind, message.value["unusable"], message.value["missing"]) == (Kind.HELLO, "", "")
    return reader


def held(pid: int) -> list[str]:
    return sorted(str(entry.readlink()) for entry in Path(f"/proc/{pid}/fd").iterdir())


def test_readers_hold_their_memory_and_their_channel_alone(zygote: Zygote, tmp_path: Path) -> None:
    readers = []
    for name in ("one", "two"):
        (tmp_path / name).write_bytes(bytes(4096))
        readers.append(start(zygote, tmp_path / name))
    sockets = set()
    for name, reader in zip(("one", "two"), readers, strict=True):
        files = held(reader.pid)
        assert [file for file in files if not file.startswith("socket:")] == [*["/dev/null"] * 3, str(tmp_path / name)]
        (channel,) = [file for file in files if file.startswith("socket:")]
        sockets.add(channel)
        assert Path(f"/proc/{reader.pid}/status").read_text().split("Uid:")[1].split()[0] == "65534"
    assert len(sockets) == 2
    # The zygote keeps neither guest's memory nor a way to its reader.
    assert not any(str(tmp_path) in file or file in sockets for file in held(zygote.pid))
    for reader in readers:
        reader.close()


def test_end_of_a_reader_is_told_and_others_go_on(zygote: Zygote) -> None:
    first, second = start(zygote, Path("/dev/null")), start(zygote, Path("/dev/null"))
    os.kill(first.pid, signal.SIGKILL)
    assert wait_readable([first.fd], _SECONDS)
    with pytest.raises(CaptureError, match="was ended by signal 9"):
        first.read()
    first.close()
    second.ask({"do": "process"})
    assert wait_readable([second.fd], _SECONDS)
    assert second.read()[0].value["failed"] == "its kernel is not open"
    second.close()


def test_readers_end_with_the_zygote(zygote: Zygote) -> None:
    reader = start(zygote, Path("/dev/null"))
    pidfd = os.pidfd_open(reader.pid)
    os.kill(zygote.pid, signal.SIGKILL)
    assert wait_readable([pidfd], _SECONDS)
    os.close(pidfd)
    with pytest.raises(CaptureError, match="cannot be started"):
        ReaderProcess(os.open("/dev/null", os.O_RDONLY), ReaderLimits(), zygote)
    reader.close()


def test_zygote_that_cannot_be_started_is_told() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        zygote = Zygote(("/bin/false",))
        with pytest.raises(CaptureError, match="cannot be started"):
            zygote.fork(ours.fileno(), theirs.fileno(), {})
        zygote.close()
        with pytest.raises(CaptureError, match="cannot be started: No such file"):
            Zygote(("/no/such/program",))
