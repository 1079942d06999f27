# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.capture.debugfs import ModuleFiles, ModuleSettings, TaskLayout, parse_choices, parse_stats
from perfguest.errors import CaptureError, EnvironmentProblem, PerfguestError, UsageError
from tests.capture.fake_host import FakeHost

_SETTINGS = ModuleSettings(trigger="nmi", locator="scan", clock="mono", kernel_stack=4096, user_stack=8192, chain_depth=64, buffer_kb=1024, pids=(5, 6))


def test_stats() -> None:
    stats = parse_stats(
        "trigger probe\nlocators preempt accessor\nvms 2\nmissed 3\n"
        "cpu0 taken 10 written 7 full 1 nested 2 no_reader 0 no_vcpu 0\ncpu12 taken 5 written 4 full 0 nested 0 no_reader 0 no_vcpu 1 later 9\n"
    )
    assert (stats.values["locators"], stats.vms, stats.written, stats.lost) == ("preempt accessor", 2, 11, 7)
    assert stats.cpus[12] == {"taken": 5, "written": 4, "full": 0, "nested": 0, "no_reader": 0, "no_vcpu": 1, "later": 9}


@given(st.text() | st.text(alphabet="cpu0 1taken written\nvmsmissed-").map(lambda text: f"vms {text}\nmissed {text}\ncpu1 taken {text}"))
def test_stats_of_anything_are_counts(text: str) -> None:
    stats = parse_stats(text)
    assert stats.lost >= 0
    assert stats.written >= 0
    assert stats.vms is None or stats.vms >= 0


@given(st.text(alphabet="[] probenmi\n"))
def test_choices_of_anything_end(text: str) -> None:
    choices, active = parse_choices(text)
    assert active == "" or active in text
    assert len(choices) == len(text.split())


def test_all_settings_are_written(fake_host: FakeHost) -> None:
    assert ModuleFiles(fake_host.paths.debugfs).apply(_SETTINGS) == _SETTINGS
    written = {name: fake_host.setting(name) for name in ("trigger", "locator", "clock", "kernel_stack", "user_stack", "chain_depth", "buffer_kb", "pids")}
    assert written == {
        "trigger": "nmi",
        "locator": "scan",
        "clock": "mono",
        "kernel_stack": "4096",
        "user_stack": "8192",
        "chain_depth": "64",
        "buffer_kb": "1024",
        "pids": "5 6",
    }


def test_trigger_auto_is_the_probe_where_there_is_one(fake_host: FakeHost) -> None:
    files = ModuleFiles(fake_host.paths.debugfs)
    assert files.apply(ModuleSettings()).trigger == "probe"
    (files.directory / "trigger").write_text("[nmi]\n")
    assert files.apply(ModuleSettings()).trigger == "nmi"


def test_trigger_that_is_not_there_is_refused(fake_host: FakeHost) -> None:
    files = ModuleFiles(fake_host.paths.debugfs)
    (files.directory / "trigger").write_text("[probe]\n")
    with pytest.raises(EnvironmentProblem, match="nmi is not available"):
        files.apply(ModuleSettings(trigger="nmi"))


def test_one_recorder_at_a_time(fake_host: FakeHost, tmp_path: Path) -> None:
    with (
        ModuleFiles(fake_host.paths.debugfs).exclusive(),
        pytest.raises(CaptureError, match="another recorder"),
        ModuleFiles(fake_host.paths.debugfs).exclusive(),
    ):
        pass
    with ModuleFiles(fake_host.paths.debugfs).exclusive():
        pass
    with pytest.raises(EnvironmentProblem, match="No such file"), ModuleFiles(tmp_path).exclusive():
        pass


def test_streams_are_opened_all_or_none(fake_host: FakeHost) -> None:
    files = ModuleFiles(fake_host.paths.debugfs)
    streams = files.open_streams([0, 1])
    assert sorted(streams) == [0, 1]
    for fd in streams.values():
        with pytest.raises(BlockingIOError):
            os.read(fd, 100)
        os.close(fd)
    before = len(list(Path("/proc/self/fd").iterdir()))
    with pytest.raises(PerfguestError, match="cpu7/stream"):
        files.open_streams([0, 1, 7])
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize(
    ("code", "kind", "words"),
    [
        (errno.EBUSY, CaptureError, "another recorder"),
        (errno.ENODEV, EnvironmentProblem, "KVM is not loaded"),
        (errno.EMSGSIZE, UsageError, "--buffer"),
        (errno.EOPNOTSUPP, EnvironmentProblem, "--trigger"),
        (errno.ENOMEM, EnvironmentProblem, "--buffer"),
        (errno.EPERM, EnvironmentProblem, "lockdown"),
        (errno.EINVAL, UsageError, "does not take"),
        (errno.EIO, CaptureError, "dmesg"),
    ],
)
def test_what_the_kernel_refuses_is_said_in_words(
    fake_host: FakeHost, monkeypatch: pytest.MonkeyPatch, code: int, kind: type[PerfguestError], words: str
) -> None:
    def refuse(_fd: int, _data: bytes) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "write", refuse)
    with pytest.raises(kind) as raised:
        ModuleFiles(fake_host.paths.debugfs).enable()
    assert words in str(raised.value)


def test_module_that_is_not_loaded(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match="No such file") as raised:
        ModuleFiles(tmp_path).apply(ModuleSettings())
    assert "perfguest module status" in raised.value.hint


_LAYOUT = TaskLayout(0xFFFF_8880_0000_1000, 2416, 2420, 2976, 2784, 32)


def test_tasks_are_told_and_forgotten(fake_host: FakeHost) -> None:
    tasks = fake_host.paths.debugfs / "perfguest/tasks"
    tasks.write_text("")
    ModuleFiles(fake_host.paths.debugfs).write_task_layout(3, _LAYOUT)
    assert tasks.read_text() == "3 18446612682070036480 2416 2420 2976 2784 32\n"
    tasks.write_text("")
    ModuleFiles(fake_host.paths.debugfs).write_task_layout(3, None)
    assert tasks.read_text() == "3\n"


def test_module_without_tasks_says_so(fake_host: FakeHost) -> None:
    with pytest.raises(EnvironmentProblem, match="too old"):
        ModuleFiles(fake_host.paths.debugfs).write_task_layout(3, _LAYOUT)
