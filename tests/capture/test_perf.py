# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from perfguest.capture.perf import Perf, PerfSettings, perf_version
from perfguest.capture.waiting import wait_readable
from perfguest.errors import CaptureError, EnvironmentProblem
from tests.capture.fake_host import FakeHost


def _settings(directory: Path, perf: str = "perf", event: str = "cpu-clock:GH", pids: tuple[int, ...] = (), clock: str = "mono") -> PerfSettings:
    return PerfSettings(perf, event, 997, pids, clock, directory / "perf.data", directory / "perf.log")


def _times(data: Path, *fields: str) -> list[float]:
    command = ["perf", "script", "-i", str(data), "-F", ",".join(["time", "cpu", *fields])]
    lines = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return [float(line.split("]")[1].split(":")[0]) for line in lines if "]" in line]


@pytest.mark.parametrize("everything", [True, False])
def test_samples_begin_when_told_and_end_before_it_returns(tmp_path: Path, everything: bool) -> None:
    perf = Perf(_settings(tmp_path, pids=() if everything else (os.getpid(),)))
    try:
        begin, spent = time.monotonic(), time.process_time()
        assert perf.enable()
        # Of this process's own time, however busy the machine is.
        while time.process_time() < spent + 0.3:
            pass
        perf.stop()
        end = time.monotonic()
    finally:
        perf.kill()
    times = _times(tmp_path / "perf.data")
    assert len(times) > 100
    assert begin <= min(times)
    assert max(times) <= end


def test_event_that_perf_does_not_know(tmp_path: Path) -> None:
    perf = Perf(_settings(tmp_path, event="nonsense:GH"))
    with pytest.raises(CaptureError, match="nonsense") as raised:
        perf.enable()
    assert "perf.log" in raised.value.hint
    perf.kill()


def test_targets_that_end_are_no_failure(tmp_path: Path) -> None:
    target = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    perf = Perf(_settings(tmp_path, pids=(target.pid,)))
    assert perf.enable()
    target.communicate()
    assert wait_readable([perf.exited], 20)
    assert perf.ended_well()
    perf.stop()
    perf.kill()


def test_perf_that_is_killed_is_a_failure(tmp_path: Path) -> None:
    perf = Perf(_settings(tmp_path))
    perf.enable()
    signal.pidfd_send_signal(perf.exited, signal.SIGKILL)
    assert wait_readable([perf.exited], 20)
    with pytest.raises(CaptureError, match="signal 9"):
        perf.stop()
    perf.kill()


def test_full_disk_is_named(fake_host: FakeHost, tmp_path: Path) -> None:
    fake_host.perf_mode("dies")
    perf = Perf(_settings(tmp_path, perf=str(fake_host.perf)))
    perf.enable()
    assert wait_readable([perf.exited], 20)
    with pytest.raises(CaptureError, match="disk is full"):
        perf.stop()
    perf.kill()


def test_interruption_while_perf_prepares(fake_host: FakeHost, tmp_path: Path) -> None:
    waiting = fake_host.root / "waits"
    waiting.write_text("#!/bin/sh\nexec sleep 1000\n")
    waiting.chmod(0o755)
    perf = Perf(_settings(tmp_path, perf=str(waiting)))
    interrupted, interrupt = os.pipe()
    os.write(interrupt, b"!")
    assert not perf.enable(interrupted)
    perf.kill()
    os.close(interrupted)
    os.close(interrupt)
    with pytest.raises(OSError, match="Bad file"):
        os.fstat(perf.exited)


def test_terminal_log_text_is_harmless(tmp_path: Path) -> None:
    program = tmp_path / "perf"
    program.write_text("#!/bin/sh\nprintf '\\033[2Jbad\\n' >&2\nexit 3\n")
    program.chmod(0o755)
    perf = Perf(_settings(tmp_path, perf=str(program)))
    with pytest.raises(CaptureError, match="status 3") as raised:
        perf.enable()
    assert "bad" in str(raised.value)
    assert "\x1b" not in str(raised.value)
    perf.kill()


def test_version_is_perfs_own() -> None:
    assert subprocess.run(["perf", "--version"], capture_output=True, text=True, check=True).stdout.strip() == f"perf version {perf_version('perf')}"


def test_perf_that_does_not_run(tmp_path: Path) -> None:
    program = tmp_path / "perf"
    program.write_text("#!/bin/sh\necho 'perf not found for kernel 9.9' >&2\nexit 2\n")
    program.chmod(0o755)
    with pytest.raises(EnvironmentProblem, match=r"not found for kernel 9\.9"):
        perf_version(str(program))
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(EnvironmentProblem, match="cannot run"):
        Perf(_settings(tmp_path, perf=str(tmp_path / "absent")))
    assert len(list(Path("/proc/self/fd").iterdir())) == before
