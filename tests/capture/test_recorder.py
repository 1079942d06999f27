# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import gzip
import io
import os
import pty
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from perfguest.capture.debugfs import ModuleSettings
from perfguest.capture.messages import Messages
from perfguest.capture.recorder import RecordSettings, record
from perfguest.capture.waiting import wait_readable
from perfguest.errors import CaptureError, EnvironmentProblem, PerfguestError, UsageError
from perfguest.formats.recording import read_recording, stream_head
from tests.capture import made_stream
from tests.capture.fake_host import FORMAT, FakeHost
from tests.polling import wait_until

_HELPER = Path(__file__).with_name("run_recorder.py")
_DEADLINE = 30.0


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "perfguest.data"


@pytest.fixture
def settings(fake_host: FakeHost, out: Path) -> RecordSettings:
    """The fake perf, and a command that ends at once."""
    fake_host.add_vm(500, "web")
    return RecordSettings(out, event="cpu-clock", perf=str(fake_host.perf), command=("true",), kdir=fake_host.root)


class Result:
    """A recorder that ran in this process: its status, and what it printed."""

    def __init__(self, settings: RecordSettings, host: FakeHost) -> None:
        text = io.StringIO()
        self.status = record(settings, host.paths, messages=Messages(text))
        self.lines = text.getvalue().splitlines()


def test_recording_is_whole(settings: RecordSettings, fake_host: FakeHost, out: Path) -> None:
    os.write(fake_host.streams[0], b"a record")
    result = Result(settings, fake_host)
    assert result.status == 0
    assert sorted(path.name for path in out.iterdir()) == ["guest.stream", "kallsyms.gz", "perf.data", "perf.log", "recording.pb"]
    assert (out / "guest.stream").read_bytes() == stream_head(FORMAT) + b"a record"
    assert gzip.decompress((out / "kallsyms.gz").read_bytes()) == b"ffffffff81000000 T _text\n"
    recording = read_recording(out)
    assert recording.complete
    assert not recording.ended_by
    assert recording.started <= recording.ended
    assert [(vm.pid, vm.name, len(vm.threads)) for vm in recording.vms] == [(500, "web", 2)]
    assert [(losses.cpu, losses.taken, losses.written, list(losses.lost)) for losses in recording.losses] == [
        (0, 12, 10, [2, 0, 0, 0]),
        (1, 12, 10, [2, 0, 0, 0]),
    ]
    assert recording.sampling.event == "cpu-clock:GH"
    assert (recording.sampling.perf_version, recording.sampling.trigger, recording.sampling.locator) == ("9.9", "probe", "preempt")
    assert "-a" in recording.sampling.perf_command
    assert list(recording.sampling.command) == ["true"]
    assert result.lines[-2].endswith("1 VM, 20 guest stacks, 4 lost, perf.data 8 B")
    assert result.lines[-1] == f"next: perfguest convert {out} --flamegraph"


def test_module_samples_from_before_perf_until_after_it(settings: RecordSettings, fake_host: FakeHost) -> None:
    Result(settings, fake_host)
    notes = fake_host.perf_notes()
    assert (notes["enabled"], notes["stopped"]) == ("1", "1")
    assert fake_host.setting("enable") == "0"


def test_status_is_the_commands(settings: RecordSettings, fake_host: FakeHost) -> None:
    assert Result(replace(settings, command=("sh", "-c", "exit 7")), fake_host).status == 7


def test_duration_ends_it_and_the_command(settings: RecordSettings, fake_host: FakeHost, out: Path) -> None:
    begin = time.monotonic()
    result = Result(replace(settings, command=("sleep", "1000"), duration=0.3), fake_host)
    assert result.status == 0
    assert 0.3 <= time.monotonic() - begin < _DEADLINE
    assert read_recording(out).complete


def test_one_vm_by_name(settings: RecordSettings, fake_host: FakeHost, out: Path) -> None:
    fake_host.add_vm(600, "db")
    Result(replace(settings, vm="db", module=ModuleSettings(kernel_stack=4096, clock="mono")), fake_host)
    command = list(read_recording(out).sampling.perf_command)
    assert command[command.index("-p") + 1] == "600"
    assert "-a" not in command
    assert command[command.index("-k") + 1] == "mono"
    assert (fake_host.setting("pids"), fake_host.setting("kernel_stack"), fake_host.setting("clock")) == ("600", "4096", "mono")


def test_vm_that_ends_is_a_normal_end(settings: RecordSettings, fake_host: FakeHost, out: Path) -> None:
    fake_host.perf_mode("targets gone")
    result = Result(replace(settings, vm="web", command=()), fake_host)
    assert result.status == 0
    assert "perfguest: the VM has ended" in result.lines
    assert read_recording(out).complete


def test_names_of_vms_that_would_move_the_cursor(settings: RecordSettings, fake_host: FakeHost, out: Path) -> None:
    """Of what is said while it records, and of what goes wrong; the recording has them as they are."""
    name = "we\x1b[31mb\n\u202e"
    fake_host.add_vm(600, name)
    (fake_host.paths.debugfs / "perfguest/format").write_bytes(made_stream.FORMAT)
    os.write(fake_host.streams[0], made_stream.vm_record(1, 600, 0xFFFF_FFFF_8100_0000, []) + made_stream.sample(1, 0x1000))
    result = Result(settings, fake_host)
    assert all(line.isprintable() for line in result.lines)
    assert any(line.startswith(r"we\x1b[31mb\n\u202e: kernel not known") for line in result.lines)
    assert name in [vm.name for vm in read_recording(out).vms]
    text = io.StringIO()
    messages = Messages(text)
    messages.warn("\x1b[31m\u200f\rone\ntwo\x9b")
    messages.result("\x1b]0;x\x07")
    assert text.getvalue() == "perfguest: warning: \\x1b[31m\\u200f\\rone\ntwo\\x9b\n\\x1b]0;x\\x07\n"


def test_no_vm_is_a_warning(settings: RecordSettings, fake_host: FakeHost) -> None:
    (fake_host.paths.proc / "500/fd/9").unlink()
    assert any("no VM runs" in line for line in Result(settings, fake_host).lines)


def test_nmi_trigger_with_software_event_is_a_warning(settings: RecordSettings, fake_host: FakeHost) -> None:
    assert any("raises no NMI" in line for line in Result(replace(settings, module=ModuleSettings(trigger="nmi")), fake_host).lines)


def test_perf_that_dies_ends_it_and_what_there_is_stays(settings: RecordSettings, fake_host: FakeHost, out: Path) -> None:
    fake_host.perf_mode("dies")
    with pytest.raises(CaptureError, match="disk is full"):
        Result(replace(settings, command=("sleep", "1000")), fake_host)
    recording = read_recording(out)
    assert not recording.complete
    assert "disk is full" in recording.ended_by
    assert len(recording.losses) == 2
    assert fake_host.setting("enable") == "0"


def test_perf_that_refuses(settings: RecordSettings, fake_host: FakeHost, out: Path) -> None:
    fake_host.perf_mode("refuses")
    with pytest.raises(CaptureError, match="syntax error"):
        Result(replace(settings, command=("touch", str(out.parent / "ran"))), fake_host)
    assert "syntax error" in read_recording(out).ended_by
    assert not (out.parent / "ran").exists()
    assert fake_host.setting("enable") == "0"


def test_interruption_while_perf_prepares_is_said(settings: RecordSettings, fake_host: FakeHost, out: Path) -> None:
    fake_host.perf.write_text("#!/bin/sh\n[ $1 = --version ] && exit\nkill -INT $PPID\nexec sleep 1000\n")
    with pytest.raises(CaptureError, match="interrupted before"):
        Result(replace(settings, command=("touch", str(out.parent / "ran"))), fake_host)
    assert not read_recording(out).complete
    assert not (out.parent / "ran").exists()


def test_nothing_is_left_open(settings: RecordSettings, fake_host: FakeHost) -> None:
    def ends() -> tuple[int, object, object]:
        return len(list(Path("/proc/self/fd").iterdir())), signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)

    before = ends()
    Result(settings, fake_host)
    fake_host.perf_mode("refuses")
    with pytest.raises(CaptureError):
        Result(settings, fake_host)
    assert ends() == before


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"command": ("no-such-program",)}, UsageError),
        ({"perf": "no-such-perf"}, EnvironmentProblem),
        ({"vm": "other"}, UsageError),
        ({"event": "cycles:p"}, UsageError),
    ],
)
def test_what_cannot_be_is_said_before_anything_is_touched(
    settings: RecordSettings, fake_host: FakeHost, out: Path, change: dict[str, object], kind: type[PerfguestError]
) -> None:
    with pytest.raises(kind):
        Result(replace(settings, **change), fake_host)  # type: ignore[arg-type]
    assert not out.exists()


class Running:
    """A recorder in a process of its own, with its output in ``stderr`` once it has ended."""

    def __init__(self, host: FakeHost, out: Path, *command: str, perf: str = "", terminal: int | None = None) -> None:
        arguments = [sys.executable, str(_HELPER), str(host.root), str(out), perf or str(host.perf), *command]
        self.process = subprocess.Popen(arguments, stderr=terminal or subprocess.PIPE, start_new_session=True)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> tuple[int, str]:
        """Status and stderr."""
        _, stderr = self.process.communicate(timeout=_DEADLINE)
        return self.process.returncode, (stderr or b"").decode()


def _wait(condition: Callable[[], object]) -> None:
    wait_until(condition, _DEADLINE)


@pytest.fixture
def start(settings: RecordSettings, fake_host: FakeHost, out: Path) -> Iterator[Callable[..., Running]]:
    """Starts recorders of /bin/sh that write their pid to ``pid`` and wait."""
    started: list[Running] = []

    def run(*command: str, perf: str = "", terminal: int | None = None) -> Running:
        started.append(Running(fake_host, out, *command, perf=perf, terminal=terminal))
        _wait(lambda: (out / "perf.data").exists() or started[-1].process.poll() is not None)
        return started[-1]

    yield run
    for running in started:
        running.process.kill()
        running.process.communicate()


def _waiting_command(out: Path) -> tuple[str, ...]:
    return ("sh", "-c", f"echo $$ > {out.parent}/pid; exec sleep 1000")


def _pid(out: Path) -> int:
    path = out.parent / "pid"
    _wait(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def test_interrupts_end_it_in_order_however_many_come(start: Callable[..., Running], fake_host: FakeHost, out: Path) -> None:
    running = start()
    for _ in range(5):
        running.signal(signal.SIGINT)
    status, stderr = running.end()
    assert (status, "Traceback" in stderr) == (0, False)
    assert read_recording(out).complete
    assert fake_host.perf_notes()["stopped"] == "1"
    assert fake_host.setting("enable") == "0"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGINT])
def test_signals_end_the_command_too(start: Callable[..., Running], out: Path, number: int) -> None:
    running = start(*_waiting_command(out))
    pidfd = os.pidfd_open(_pid(out))
    running.signal(number)
    assert running.end()[0] == 128 + number
    assert wait_readable([pidfd], 0)
    os.close(pidfd)
    assert read_recording(out).complete


def test_killed_recorder_leaves_no_process_and_a_readable_recording(start: Callable[..., Running], fake_host: FakeHost, out: Path) -> None:
    running = start(*_waiting_command(out))
    pidfds = [os.pidfd_open(pid) for pid in (_pid(out), int(fake_host.perf_notes()["pid"].split()[0]))]
    running.signal(signal.SIGKILL)
    running.end()
    for pidfd in pidfds:
        assert wait_readable([pidfd], _DEADLINE)
        os.close(pidfd)
    recording = read_recording(out)
    assert not recording.complete
    assert [vm.name for vm in recording.vms] == ["web"]


def test_terminal_sees_a_live_line_and_control_c_reaches_the_recorder_alone(start: Callable[..., Running], fake_host: FakeHost) -> None:
    master, terminal = pty.openpty()
    running = start(terminal=terminal)
    os.close(terminal)
    shown = b""
    while b"20 guest stacks" not in shown:
        assert wait_readable([master], _DEADLINE)
        shown += os.read(master, 4096)
    assert b"Ctrl-C ends it" in shown
    # The terminal's Ctrl-C goes to the whole group, which perf is not part of.
    os.killpg(running.process.pid, signal.SIGINT)
    assert running.end()[0] == 0
    assert fake_host.perf_notes()["stopped"] == "1"
    os.close(master)


def test_real_perf_beside_it(start: Callable[..., Running], out: Path) -> None:
    running = start("sh", "-c", "i=0; while [ $i -lt 200000 ]; do i=$((i+1)); done", perf="perf")
    status, stderr = running.end()
    assert status == 0, stderr
    command = ["perf", "script", "-i", str(out / "perf.data"), "-F", "comm,cpu,time,ip,sym"]
    samples = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "\nsh " in "\n" + samples
    assert read_recording(out).complete


def test_new_vm_is_noticed_while_it_records(start: Callable[..., Running], fake_host: FakeHost, out: Path) -> None:
    running = start()
    fake_host.add_vm(700, "late")
    running.signal(signal.SIGINT)
    assert running.end()[0] == 0
    assert [vm.name for vm in read_recording(out).vms] == ["web", "late"]
