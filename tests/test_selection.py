# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from perfguest.errors import UsageError
from perfguest.profile import Mapping, Mode, Profile, Vm
from perfguest.selection import Selection, select
from tests.profiles import Frame, ProfileBuilder, Task, example


@pytest.fixture
def profile() -> Profile:
    builder = ProfileBuilder()
    tasks = [Task(7, 7, "nginx", "/system.slice/web"), Task(7, 8, "worker", "/system.slice/web/one"), Task(9, 9, "nginx"), Task(0, 0, "swapper/0", "/"), None]
    for number, task in enumerate(tasks):
        stack = [Frame(f"f{number}", Mode.GUEST_USER, Mapping("/bin/x"), number), Frame("main", Mode.GUEST_USER, Mapping("/bin/x"), 99)]
        builder.sample(stack, time=number, vm=Vm(42, "web"), guest=task)
    return builder.build()


def leaves(profile: Profile) -> list[str]:
    return [profile.strings[profile.frames.symbol[profile.stacks.of(stack)[0]]] for stack in profile.samples.stack.tolist()]


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(), ["f0", "f1", "f2", "f3", "f4"]),
        (Selection(comms=("nginx",)), ["f0", "f2"]),
        (Selection(comms=("nginx", "worker")), ["f0", "f1", "f2"]),
        (Selection(pids=(7, 1 << 40)), ["f0", "f1"]),
        (Selection(pids=(0,)), ["f3"]),
        (Selection(comms=("nginx",), pids=(9,)), ["f2"]),
        (Selection(cgroups=("/system.slice/web/",)), ["f0", "f1"]),
        (Selection(cgroups=("/system.slice/web/one",)), ["f1"]),
        (Selection(cgroups=("/",)), ["f0", "f1", "f3"]),
    ],
)
def test_samples_and_their_stacks_are_kept(profile: Profile, selection: Selection, expected: list[str]) -> None:
    chosen = select(profile, selection)
    assert leaves(chosen) == expected
    assert len(chosen.stacks) == len(expected) and len(chosen.frames) == len(expected) + 1


@pytest.mark.parametrize("selection", [Selection(comms=("ngin",)), Selection(cgroups=("/system.slice/we",)), Selection(pids=(8,))])
def test_nothing_selected_is_said_with_what_there_is(profile: Profile, selection: Selection) -> None:
    with pytest.raises(UsageError, match="nginx, worker, swapper/0"):
        select(profile, selection)


def test_vms_are_chosen_by_name_or_pid_with_what_the_host_does_for_them() -> None:
    builder = ProfileBuilder()
    for number, (mode, vm) in enumerate(
        [(Mode.GUEST_USER, Vm(42, "web")), (Mode.HOST_KERNEL, Vm(42, "web")), (Mode.GUEST_USER, Vm(43, "db")), (Mode.HOST_USER, None)]
    ):
        builder.sample([Frame(f"f{number}", mode, Mapping("/bin/x"), number)], time=number, vm=vm)
    profile = builder.build()
    assert leaves(select(profile, Selection(vms=("web",)))) == ["f0", "f1"]
    assert leaves(select(profile, Selection(vms=("43",)))) == ["f2"]
    assert leaves(select(profile, Selection(vms=("43", "web")))) == ["f0", "f1", "f2"]
    with pytest.raises(UsageError, match=r"Sampled were: web \(42\), db \(43\)"):
        select(profile, Selection(vms=("we",)))
    host = ProfileBuilder()
    host.sample([Frame("f", Mode.HOST_USER, Mapping("/bin/x"), 1)])
    with pytest.raises(UsageError, match="No VM was sampled"):
        select(host.build(), Selection(vms=("web",)))


def test_a_recording_without_guest_threads_says_so() -> None:
    with pytest.raises(UsageError, match="does not say which"):
        select(example(), Selection(pids=(1,)))
