# SPDX-License-Identifier: Apache-2.0
"""The lab over its real agent, which runs here instead of in a QEMU, with shell scripts in place of guests."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from perfguest.capture.lab import session
from perfguest.capture.lab.options import LabOptions
from perfguest.capture.lab.session import GuestNeverUp, Lab
from perfguest.errors import LabError

AGENT = "import json, sys; from perfguest.capture.lab.agent import Agent; Agent(int(sys.argv[1]), json.loads(sys.argv[2])).serve()"
KALLSYMS = '{ echo "0000000000001000 T start_kernel"; echo PERFGUEST-KALLSYMS-END; } > "$1/kallsyms.raw"\n'
UP = KALLSYMS + "echo PERFGUEST-GUEST-UP\n"
GOOD_GUEST = UP + "while echo PERFGUEST-HEARTBEAT; do sleep 0.5; done"
MakeLab = Callable[..., Lab]
# Says nothing more, and ends with the agent.
HANG = "; while kill -0 $PPID; do sleep 0.1; done"


class AgentAsMachine:
    """In place of a QEMU: the agent alone. ``boots`` holds the guests' scripts of each boot to come; a script gets its directory as ``$1``."""

    boots: ClassVar[list[list[str]]] = []

    def __init__(self, *, directory: Path, **_: object) -> None:
        self.console = directory / "console"
        self.console.write_text("the last words of the host\n")
        scripts = self.boots.pop(0)
        places = [str(directory / f"guest-{number}") for number in range(len(scripts))]
        guests = [{"argv": ["sh", "-c", script, "sh", place], "directory": place, "stall": 2} for script, place in zip(scripts, places, strict=True)]
        ours, theirs = socket.socketpair()
        command = [sys.executable, "-c", AGENT, str(theirs.fileno()), json.dumps(guests)]
        self.process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stderr=subprocess.DEVNULL)
        theirs.close()
        control, self._other = socket.socketpair()
        self.ports = {"agent": ours, "control": control}
        self.qmp = SimpleNamespace(execute=lambda _: None)

    def messages(self) -> str:
        """QEMU says nothing."""
        return ""

    def stop(self) -> None:
        """Ends the agent; its guests lose their console and end."""
        self.process.kill()
        self.process.wait()
        for sock in (*self.ports.values(), self._other):
            sock.close()


@pytest.fixture
def machineless(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> MakeLab:
    """Makes a lab over the agent: ``machineless([scripts of the first boot's guests], [of the second's]…)``."""
    kernel = SimpleNamespace(release="0", image=tmp_path)
    boot = SimpleNamespace(kernel=kernel, guest_kernel=kernel, initrd=tmp_path, guest=SimpleNamespace(root=tmp_path, truth=tmp_path))
    monkeypatch.setattr(session, "Machine", AgentAsMachine)
    monkeypatch.setattr(session, "prepare", lambda *_: boot)

    def make(*boots: list[str], report: Callable[[str], object] = lambda _: None, **options: Any) -> Lab:
        AgentAsMachine.boots[:] = boots
        return Lab(LabOptions(cwd=tmp_path, guests=len(boots[0]), **options), report)

    return make


def test_commands_bring_back_status_and_output(machineless: MakeLab, tmp_path: Path) -> None:
    data = os.urandom(3_000_000)
    (tmp_path / "data").write_bytes(data)
    with machineless([GOOD_GUEST]) as lab:
        done = lab.run(["sh", "-c", "echo out; echo err >&2; pwd; echo $PERFGUEST_LAB$MORE; exit 37"], env={"MORE": "2"})
        assert (done.returncode, done.stdout, done.stderr) == (37, f"out\n{tmp_path}\n12\n".encode(), b"err\n")
        assert lab.run(["sh", "-c", "kill -9 $$"]).returncode == -9
        assert lab.run(["cat", "data"]).stdout == data
        assert lab.run(["sh", "-c", "cat data >&2"]).stderr == data
        assert lab.run(["cat"], stdin=data).stdout == data
        assert lab.run(["head", "-c", "9"], stdin=data).stdout == data[:9]
        with (tmp_path / "data").open("rb") as file:
            assert lab.run(["cat"], stdin=file.fileno()).stdout == data
        assert lab.run(["/nowhere"]).returncode == 127
        assert lab.run([str(tmp_path / "data")]).returncode == 126


def test_a_child_left_behind_does_not_keep_the_command(machineless: MakeLab) -> None:
    with machineless([GOOD_GUEST]) as lab:
        done = lab.run(["sh", "-c", "sleep 1000 & echo $!"])
        os.kill(int(done.stdout), signal.SIGKILL)
        assert done.returncode == 0


def test_a_command_can_have_a_terminal(machineless: MakeLab) -> None:
    with machineless([GOOD_GUEST]) as lab:
        assert lab.run(["stty", "size"], terminal=(33, 99)).stdout == b"33 99\r\n"
        done = lab.run(["sh", "-c", "stty -echo; tty; echo go; cat; printf end"], terminal=(24, 80), stdin=b"typed\n\x04")
        assert done.stdout.startswith(b"/dev/pts/") or b"/dev/pts/" in done.stdout
        assert b"typed\r\n" in done.stdout
        assert done.stdout.endswith(b"end")


def test_a_signal_reaches_the_command(machineless: MakeLab) -> None:
    with machineless([GOOD_GUEST]) as lab:
        done = lab.run(["sh", "-c", "trap 'exit 9' INT; echo ready; while :; do sleep 0.1; done"], stdout=lambda _: lab.interrupt())
        assert done.returncode == 9


def test_a_command_that_is_late_is_ended_by_the_next(machineless: MakeLab) -> None:
    pids: list[bytes] = []
    with machineless([GOOD_GUEST]) as lab:
        with pytest.raises(LabError, match="did not end within 1 s"):
            lab.run(["sh", "-c", "echo $$; exec sleep 1000"], stdout=pids.append, timeout=1)
        assert lab.run(["echo", "next"]).stdout == b"next\n"
        with pytest.raises(ProcessLookupError):
            os.kill(int(pids[0]), 0)


def test_a_guest_that_never_comes_up_is_booted_once_more_and_told(machineless: MakeLab) -> None:
    told: list[str] = []
    with machineless(["echo booting" + HANG], [GOOD_GUEST], report=told.append) as lab:
        assert lab.run(["true"]).returncode == 0
    assert any("no word on its console for 2 s" in line and "once more" in line for line in told)


def test_a_host_that_dies_while_booting_is_booted_once_more(machineless: MakeLab) -> None:
    told: list[str] = []
    with machineless(["kill -9 $PPID"], [GOOD_GUEST], report=told.append) as lab:
        assert lab.run(["true"]).returncode == 0
    assert any("host is gone" in line and "once more" in line for line in told)


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("echo last words", "its VMM ended with status 0"),
        ("echo 'KVM internal error. Suberror: 1'" + HANG, "KVM internal error. Suberror: 1"),
        ("echo 'Kernel panic - not syncing'" + HANG, "Kernel panic"),
        ("echo PERFGUEST-WORKLOAD-FAILED mmap" + HANG, "PERFGUEST-WORKLOAD-FAILED mmap"),
        ("echo torn > $1/kallsyms.raw; echo PERFGUEST-GUEST-UP" + HANG, "kallsyms did not come out whole"),
    ],
)
def test_a_guest_that_fails_twice_is_a_failure_with_its_console(machineless: MakeLab, tmp_path: Path, script: str, reason: str) -> None:
    logs = tmp_path / "logs"
    with pytest.raises(GuestNeverUp, match=re.escape(reason)) as caught, machineless([script], [script], keep_logs=logs):
        pass
    assert "The end of guest lab's console" in caught.value.hint
    assert (logs / "boot1-console-lab").exists()
    assert (logs / "console-lab").exists()


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        (UP + "read -r _ < $1/fifo; exit 3", "its VMM ended with status 3"),
        (UP + "read -r _ < $1/fifo" + HANG, "no heartbeat for 2 s"),
    ],
)
def test_a_guest_lost_during_a_command_is_named(machineless: MakeLab, tmp_path: Path, script: str, reason: str) -> None:
    told = tmp_path / "told"

    def report(line: str) -> None:
        if "was lost" in line:
            told.write_text(line)

    command = f"echo > {{fifo}}; until [ -e {told} ]; do sleep 0.1; done"
    with machineless(['mkfifo "$1/fifo"\n' + script], report=report) as lab:
        fifo = lab.directory / "guest-0/fifo"
        with pytest.raises(LabError, match=f"guest lab was lost: {reason} while sh ran"):
            lab.run(["sh", "-c", command.format(fifo=fifo)], timeout=30)
    assert reason in told.read_text()


def test_a_command_does_not_outlive_the_guest_for_long(machineless: MakeLab) -> None:
    told: list[str] = []
    with machineless(['mkfifo "$1/fifo"\n' + UP + "read -r _ < $1/fifo; exit 3"], report=told.append, grace=1.0) as lab:
        started = time.monotonic()
        with pytest.raises(LabError, match="its VMM ended with status 3 while sh ran"):
            lab.run(["sh", "-c", f"echo > {lab.directory / 'guest-0/fifo'}; exec sleep 1000"], timeout=100)
        assert time.monotonic() - started < 30
        with pytest.raises(LabError, match="its VMM ended with status 3 before true ran"):
            lab.run(["true"])
        assert lab.run(["echo", "yes"], guest_may_end=True).stdout == b"yes\n"
    assert "sh has gone on for 1 s without the guest: killed" in told


def test_a_guest_ended_on_purpose_is_no_failure(machineless: MakeLab) -> None:
    told: list[str] = []
    with machineless([GOOD_GUEST], report=told.append) as lab:
        assert lab.run(["sh", "-c", "kill -9 $PERFGUEST_GUEST_PID; until ! kill -0 $PERFGUEST_GUEST_PID; do sleep 0.1; done 2>&-"]).returncode == 0
        assert lab.run(["true"]).returncode == 0
    assert any("was ended by a signal" in line for line in told)


def test_a_host_that_dies_is_named_with_its_console(machineless: MakeLab) -> None:
    with machineless([GOOD_GUEST]) as lab:
        with pytest.raises(LabError, match="host is gone") as caught:
            lab.run(["sh", "-c", "kill -9 $PPID; exec sleep 1"])
        assert "last words of the host" in caught.value.hint
        assert not lab.alive


def test_a_host_that_hangs_is_waited_for_once(machineless: MakeLab) -> None:
    with machineless([GOOD_GUEST], host_stall=3.0) as lab:
        with pytest.raises(LabError, match="the host hangs"):
            lab.run(["sh", "-c", "kill -STOP $PPID; exec sleep 100"], timeout=100)
        started = time.monotonic()
        with pytest.raises(LabError, match="host is gone"):
            lab.run(["true"])
        with pytest.raises(LabError, match="host is gone"):
            lab.dmesg()
        assert time.monotonic() - started < 2 and not lab.alive
