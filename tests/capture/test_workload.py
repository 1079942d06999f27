# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from perfguest.capture.waiting import wait_readable
from perfguest.capture.workload import Workload, check_command
from perfguest.errors import CaptureError, UsageError


def test_it_runs_when_let_go_and_not_before(tmp_path: Path) -> None:
    workload = Workload(["touch", str(tmp_path / "ran")])
    assert not wait_readable([workload.exited], 0.1)
    assert not (tmp_path / "ran").exists()
    workload.start()
    assert wait_readable([workload.exited], 20)
    assert workload.status() == 0
    workload.close()
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_status_is_a_shells(script: str, status: int) -> None:
    workload = Workload(["sh", "-c", script])
    workload.start()
    assert wait_readable([workload.exited], 20)
    assert workload.status() == status
    workload.close()


def test_it_never_runs_if_it_is_closed_before(tmp_path: Path) -> None:
    workload = Workload(["touch", str(tmp_path / "ran")])
    workload.close()
    assert workload.status() is not None
    assert not (tmp_path / "ran").exists()


def test_program_that_cannot_be_executed(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_bytes(b"\x7fELF but not really")
    program.chmod(0o755)
    check_command([str(program)])
    workload = Workload([str(program)])
    with pytest.raises(CaptureError, match="Exec format error"):
        workload.start()
    workload.close()


def test_program_that_is_not_there() -> None:
    check_command(())
    with pytest.raises(UsageError, match="no program"):
        check_command(["program-that-is-not-there"])


def test_end_asks_first() -> None:
    workload = Workload(["sh", "-c", "trap 'exit 5' TERM; echo >&3; while :; do sleep 0.01; done"])
    impatience, impatient = os.pipe()
    ready, child_end = os.pipe()
    os.close(ready)
    os.close(child_end)
    workload.start()
    assert workload.end(impatience) in (5, 128 + signal.SIGTERM)
    workload.close()
    os.close(impatience)
    os.close(impatient)


def test_end_kills_what_does_not_listen_once_the_user_is_impatient(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    os.mkfifo(ready)
    workload = Workload(["sh", "-c", f"trap '' TERM; echo > {ready}; sleep 1000 & wait; while :; do wait; done"])
    workload.start()
    assert ready.read_text() == "\n"
    impatience, impatient = os.pipe()
    os.write(impatient, b"!")
    assert workload.end(impatience) == 128 + signal.SIGKILL
    workload.close()
    os.close(impatience)
    os.close(impatient)
