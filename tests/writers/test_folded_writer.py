# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import re
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings

from perfguest.errors import UsageError
from perfguest.profile import Mode, Profile
from perfguest.writers import folded, perf_script
from tests import profiles


def _lines(profile: Profile, weight: folded.Weight = "samples") -> list[str]:
    out = io.BytesIO()
    folded.write(profile, out, weight)
    return out.getvalue().decode().splitlines()


def test_stacks_begin_with_the_vm_or_the_thread() -> None:
    assert _lines(profiles.example()) == [
        "kworker/u8:1;do_syscall_64 2",
        "web;CPU 0/KVM;kvm_vcpu_ioctl;do_syscall_64;vcpu_run 1",
        "web;CPU 0/KVM;main;0x7f0000001234;do_syscall_64;ksys_read 1",
        "web;CPU 0/KVM;main;sha_round 2",
        "web;CPU 1/KVM;kvm_vcpu_ioctl;do_syscall_64;vcpu_run 1",
        "web;CPU 1/KVM;main;0x7f0000001234;do_syscall_64;ksys_read 2",
        "web;CPU 1/KVM;main;sha_round 1",
    ]


def test_same_stacks_and_periods_as_stackcollapse_finds_in_the_script(stackcollapse: list[str], tmp_path: Path) -> None:
    profile = profiles.big(samples=2_000, stacks=300)
    with (tmp_path / "script.txt").open("wb") as out:
        perf_script.write(profile, out)
    theirs = subprocess.run([*stackcollapse, tmp_path / "script.txt"], capture_output=True, text=True, check=True).stdout
    # They put the thread's name in front of each stack.
    assert Counter(re.sub(r"^[^;]*;", "", line) for line in theirs.splitlines()) == Counter(_lines(profile, "period"))


def test_periods_of_two_events_are_not_added_up() -> None:
    builder = profiles.ProfileBuilder(events=["cycles", "instructions"])
    profile = builder.sample([], event=0, period=7).sample([], event=1, period=1000).build()
    assert _lines(profile) == ["thread 2"]
    with pytest.raises(UsageError):
        _lines(profile, "period")


def test_names_cannot_make_frames_lines_or_counts() -> None:
    frame = profiles.Frame("a;b\nc 12", Mode.HOST_USER, None)
    assert _lines(profiles.ProfileBuilder().sample([frame], comm="x;y 3").build()) == [r"x\x3by\x203;a\x3bb\x0ac\x2012 1"]


def test_nothing_gives_nothing() -> None:
    assert _lines(profiles.ProfileBuilder().build()) == []


@settings(deadline=None)
@given(profiles.profiles())
def test_each_line_is_a_stack_and_a_count(profile: Profile) -> None:
    lines = _lines(profile)
    stacks = [line.rpartition(" ")[0].encode() for line in lines]
    assert stacks == sorted(set(stacks))
    total = 0
    for line in lines:
        assert line.isprintable()
        # As flamegraph.pl takes a line apart: a count, and before it no second one.
        match = re.fullmatch(r"(.*)\s+?(\d+(?:\.\d*)?)", line)
        assert match and match[1] and not re.fullmatch(r"(.*)\s+?(\d+(?:\.\d*)?)", match[1])
        total += int(match[2])
    assert total == len(profile.samples)
    depths = {len(profile.stacks.of(stack)) + (vm < 0) for stack, vm in zip(profile.samples.stack.tolist(), profile.samples.vm.tolist(), strict=True)}
    assert {line.count(";") + 1 for line in lines} == {max(depth, 1) for depth in depths}
