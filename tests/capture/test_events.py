# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from perfguest.capture.events import HARDWARE_EVENT, SOFTWARE_EVENT, default_event, guest_event, is_software, pmu_samples
from perfguest.errors import UsageError
from tests.capture.fake_host import FakeHost


@pytest.mark.parametrize(
    ("given_event", "event"),
    [
        ("cycles", "cycles:GH"),
        ("cycles:GH", "cycles:GH"),
        ("cycles:G", "cycles:G"),
        ("cycles:u", "cycles:uGH"),
        ("cycles,instructions:k", "cycles:GH,instructions:kGH"),
        ("{cycles,instructions}", "{cycles,instructions}:GH"),
        ("cpu/event=0x3c,umask=0x1/", "cpu/event=0x3c,umask=0x1/GH"),
        ("cpu/event=0x3c/u", "cpu/event=0x3c/uGH"),
        ("r1a8", "r1a8:GH"),
        ("sched:sched_switch", "sched:sched_switch"),
    ],
)
def test_guests_are_asked_for(given_event: str, event: str) -> None:
    assert guest_event(given_event) == event


@pytest.mark.parametrize("event", ["cycles:P", "cycles:pp", "cycles:ppGH", "cpu/event=0x3c/p", "cycles:H", "", "cycles,"])
def test_what_cannot_sample_guests_is_refused(event: str) -> None:
    with pytest.raises(UsageError) as raised:
        guest_event(event)
    assert raised.value.hint


@given(st.text(alphabet="cycles:,/{}uGHpPk=0 "))
def test_any_text_is_an_event_or_refused(text: str) -> None:
    try:
        event = guest_event(text)
    except UsageError:
        return
    assert event


@pytest.mark.parametrize("event", ["cpu-clock", "cpu-clock:u", "cpu-clock,page-faults"])
def test_perf_samples_guests_with_it(event: str, tmp_path: Path) -> None:
    data = str(tmp_path / "perf.data")
    subprocess.run(["perf", "record", "-e", guest_event(event), "-o", data, "true"], check=True, capture_output=True)
    attributes = subprocess.run(["perf", "evlist", "-v", "-i", data], check=True, capture_output=True, text=True).stdout.splitlines()
    events = [line for line in attributes if not line.startswith(("dummy", "#"))]
    assert len(events) == event.count(",") + 1
    assert not [line for line in events if "exclude_guest" in line]


def test_pmu_is_there_if_perf_samples_with_it(tmp_path: Path) -> None:
    data = str(tmp_path / "perf.data")
    done = subprocess.run(["perf", "record", "-a", "-e", "cycles:GH", "-c", "1000000000", "-o", data, "true"], capture_output=True, check=False)
    first = subprocess.run(["perf", "evlist", "-v", "-i", data], capture_output=True, text=True, check=False).stdout.splitlines()[:1]
    # perf takes the software event cpu-clock, type 1, where it cannot have cycles.
    assert pmu_samples() == (done.returncode == 0 and "type: 1" not in first[0])


def test_default_is_what_works_here_and_says_why(fake_host: FakeHost) -> None:
    said: list[str] = []
    assert default_event(fake_host.paths, said.append, has_pmu=True) == HARDWARE_EVENT
    assert not said
    assert default_event(fake_host.paths, said.append, has_pmu=False) == SOFTWARE_EVENT
    assert "no hardware counters" in said.pop()
    parameter = fake_host.paths.sys / "module/kvm_amd/parameters/enable_mediated_pmu"
    parameter.parent.mkdir()
    parameter.write_text("Y\n")
    assert default_event(fake_host.paths, said.append, has_pmu=True) == SOFTWARE_EVENT
    assert "enable_mediated_pmu" in said.pop()


def test_software_events_are_known() -> None:
    assert is_software("cpu-clock:GH")
    assert is_software("cpu-clock:GH,page-faults:GH")
    assert not is_software("cpu-clock:GH,cycles:GH")
