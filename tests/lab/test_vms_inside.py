# SPDX-License-Identifier: Apache-2.0
"""VMs that are lost and started again, here shell scripts: what an attempt left is never another one's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lab import vms_inside
from tests.lab.vms_inside import Vm, is_up, live

_UP = "echo PERFGUEST-GUEST-UP; exec cat"


@pytest.fixture(autouse=True)
def within(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(vms_inside, "WITHIN", tmp_path / "within")


def vm(name: str, script: str) -> Vm:
    return Vm({"name": name, "argv": ["sh", "-c", script]})


@pytest.mark.parametrize("end", ["echo Kernel panic; exec cat", "exit 3", "kill -9 $$"])
def test_a_vm_that_is_lost_is_started_again_elsewhere(end: str, capfd: pytest.CaptureFixture[str]) -> None:
    one = vm("one", f"pwd >log; [ -e ../one.2 ] || {{ echo $$ >pid; {end}; }}; {_UP}")
    live({one: is_up})
    one.end()
    assert one.attempt
    assert one.attempt.name == "one.2"
    assert [Path(f"vms/one.{number}/log").read_text() for number in (1, 2)] == [f"{vms_inside.WITHIN}/one.{number}\n" for number in (1, 2)]
    assert int(Path("vms/one.1/pid").read_text()) != one.attempt.pid
    assert not Path("vms/one.2/pid").exists()
    assert "one.1: lost" in capfd.readouterr().out


def test_those_that_have_lived_are_all_there_in_the_end() -> None:
    """The first one is up at once, but is gone before the second one is up."""
    one = vm("one", f"[ -e ../one.2 ] || {{ echo PERFGUEST-GUEST-UP; exit; }}; {_UP}")
    two = vm("two", f"until [ -e ../one.2 ]; do :; done; {_UP}")
    live({one: is_up, two: is_up})
    assert one.attempt
    assert two.attempt
    assert [one.attempt.name, two.attempt.name] == ["one.2", "two.1"]
    for attempt in (one.attempt, two.attempt):
        attempt.check()
    one.end()
    two.end()


def test_one_that_never_comes_up_is_given_up() -> None:
    one = vm("one", "exit 1")
    with pytest.raises(SystemExit, match=f"one was lost {vms_inside.ATTEMPTS} times"):
        live({one: is_up})
