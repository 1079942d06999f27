# SPDX-License-Identifier: Apache-2.0
"""What becomes of a test whose host the emulator loses."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from types import TracebackType

import pytest

from perfguest.capture.lab.options import LabOptions
from perfguest.capture.lab.session import HostGone
from perfguest.errors import LabError
from tests.lab import conftest
from tests.lab.conftest import BareHosts, Host


class _Lab:
    """Nothing but its options."""

    def __init__(self, options: LabOptions, report: Callable[[str], object]) -> None:
        self.options = options

    def __enter__(self) -> _Lab:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        pass


class _Scenario:
    """Loses its host as often as there are last words. ``hangs``: it is not gone, but says nothing more."""

    def __init__(self, *last_words: str, hangs: bool = False) -> None:
        self._last_words = list(last_words)
        self._hangs = hangs
        self.directories: list[Path] = []

    def __call__(self, host: Host) -> int:
        assert host.lab.options.cpus == 1
        assert host.lab.options.cwd == host.work
        self.directories.append(host.work)
        if self._last_words:
            words = self._last_words.pop(0)
            raise LabError("python did not end: the host hangs", words) if self._hangs else HostGone("the lab's host is gone", words)
        return len(self.directories)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> BareHosts:
    def make(name: str) -> Path:
        directory = tmp_path / f"{name}{len(list(tmp_path.iterdir()))}"
        directory.mkdir()
        return directory

    monkeypatch.setattr(conftest, "Lab", _Lab)
    monkeypatch.setattr(subprocess, "run", lambda *argv, **keywords: None)
    return BareHosts(make)


def test_it_begins_anew_in_another_host(hosts: BareHosts) -> None:
    scenario = _Scenario("Kernel panic - not syncing: corrupted stack end")
    assert hosts.run(1, scenario) == 2
    assert len(set(scenario.directories)) == 2


def test_it_does_so_once(hosts: BareHosts) -> None:
    scenario = _Scenario("once", "twice")
    with pytest.raises(HostGone, match="twice"):
        hosts.run(1, scenario)
    assert len(scenario.directories) == 2


def test_a_host_that_hangs_before_the_module_is_loaded_is_lost_too(hosts: BareHosts) -> None:
    assert hosts.run(1, _Scenario("kvm [129]: vcpu0", hangs=True)) == 2


@pytest.mark.parametrize(
    ("last_words", "hangs"),
    [("RIP: 0010:pg_take+0x10/0x20 [perfguest]", False), ("perfguest: loading out-of-tree module taints kernel.", True)],
    ids=["panic", "hang"],
)
def test_a_host_that_our_module_may_have_lost_is_a_failure(hosts: BareHosts, last_words: str, hangs: bool) -> None:
    scenario = _Scenario(last_words, hangs=hangs)
    with pytest.raises(LabError):
        hosts.run(1, scenario)
    assert len(scenario.directories) == 1
