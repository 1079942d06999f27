# SPDX-License-Identifier: Apache-2.0
"""The oracle is Go's own reader: ``go tool pprof``."""

from __future__ import annotations

import gzip
import io
import os
import re
import subprocess
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings

from perfguest.profile import Mapping, Mode, Profile, Vm
from perfguest.proto import profile_pb2 as pb
from perfguest.writers import pprof
from tests import profiles
from tests.profiles import Frame, ProfileBuilder, Task


def _write(profile: Profile, path: Path) -> Path:
    with path.open("wb") as out:
        pprof.write(profile, out)
    return path


def _go(path: Path, *options: str) -> str:
    environment = os.environ | {"PPROF_TMPDIR": str(path.parent), "PPROF_BINARY_PATH": str(path.parent), "HOME": str(path.parent)}
    run = subprocess.run(["go", "tool", "pprof", *options, path], check=True, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment)
    # No word of files not found, symbols not read, or a main binary missing.
    assert [line for line in run.stderr.splitlines() if not re.match(r"tagfocus:Interpreted|Generating report in", line)] == []
    return run.stdout


@pytest.fixture(scope="module")
def example(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _write(profiles.example(), tmp_path_factory.mktemp("pprof") / "guest.pb.gz")


def _top(path: Path, *options: str) -> dict[str, tuple[str, str]]:
    """Flat and cumulative value of each function."""
    rows = re.findall(r"^ *(\S+) +\S+% +\S+% +(\S+) +\S+%  (.+)$", _go(path, "-top", "-nodecount=0", *options), re.MULTILINE)
    return {name: (flat, cum) for flat, cum, name in rows}


def test_top_adds_up(example: Path) -> None:
    top = _top(example, "-unit=us", "-filefunctions")
    assert top["sha_round /bin/app"] == ("750us", "750us")
    assert top["do_syscall_64 [kernel.kallsyms]"] == ("500us", "1000us")
    assert top["do_syscall_64 [guest.kernel.kallsyms]"] == ("0", "750us")
    assert top["web [vm]"] == ("0", "2000us")
    assert _top(example, "-sample_index=samples")["main"] == ("0", "6")


@pytest.mark.parametrize(
    ("focus", "total"),
    [
        ("execution_mode=Guest User", "750us"),
        ("execution_mode=Host Kernel", "1000us"),
        ("vm=web", "2000us"),
        ("vcpu=0", "1000us"),
        ("cpu=3", "500us"),
        ("tid=4251", "1000us"),
        ("comm=kworker", "500us"),
        ("event=cpu-clock", "2500us"),
    ],
)
def test_labels_select_samples(example: Path, focus: str, total: str) -> None:
    assert f"Showing nodes accounting for {total}," in _go(example, "-top", "-unit=us", f"-tagfocus={focus}")


def test_raw_has_all_that_the_profile_says(example: Path) -> None:
    raw = _go(example, "-raw")
    assert "Comment: 9 of 9 guest samples paired\nPeriodType: cpu nanoseconds\nPeriod: 250000\nTime: 2023-11-14 22:13:20.25 +0000 UTC\nDuration: 10.2" in raw
    assert "samples/count cpu/nanoseconds[dflt]" in raw
    assert "4: 0xffffffff90000000/0xffffffff92000000/0x0 [guest.kernel.kallsyms] 2222222222222222222222222222222222222222 [FN]" in raw
    assert "0x555500000000/0x555500100000/0x3000 /usr/bin/qemu-system-x86_64" in raw
    assert re.search(r"0xffffffff90001122 M=4 ksys_read ", raw)
    # Without a symbol: the address, and no line.
    assert re.search(r"0x7f0000001234 M=5 \n", raw)
    assert len(re.findall(r"^ +\d+ +\d+: [\d ]+$", raw, re.MULTILINE)) == 7


def test_graph_is_drawn(example: Path) -> None:
    svg = _go(example, "-svg", "-output=/dev/stdout")
    assert "<svg" in svg and "ksys_read" in svg


def test_each_event_has_its_column(tmp_path: Path) -> None:
    leaf, caller = Frame("leaf", Mode.HOST_USER, Mapping("/bin/x"), 1), Frame("caller", Mode.HOST_USER, Mapping("/bin/x"), 2)
    builder = ProfileBuilder(events=["cycles:GH", "task-clock", "sched:sched_switch"])
    for event, period in ((0, 1000), (0, 500), (1, 2_000_000), (2, 1)):
        builder.sample([leaf, caller], event=event, period=period)
    path = _write(builder.build(), tmp_path / "events.pb.gz")
    assert "samples/count cycles:GH/count[dflt] cpu/nanoseconds sched:sched_switch/count" in _go(path, "-raw")
    assert _top(path)["leaf"] == ("1500", "1500")
    assert _top(path, "-sample_index=cpu")["caller"] == ("0", "2ms")
    assert _top(path, "-sample_index=samples")["leaf"] == ("4", "4")


def test_two_clocks_keep_their_names(tmp_path: Path) -> None:
    path = _write(ProfileBuilder(events=["cpu-clock:GH", "task-clock"]).sample([]).build(), tmp_path / "clocks.pb.gz")
    assert "samples/count cpu-clock:GH/nanoseconds[dflt] task-clock/nanoseconds" in _go(path, "-raw")


def test_names_are_never_looked_up_here(tmp_path: Path) -> None:
    """A guest's /bin/sh is not this machine's, though pprof would find symbols in this one."""
    frame = Frame(None, Mode.GUEST_USER, Mapping("/bin/sh", start=0x1000, limit=0x100000), 0x8000)
    path = _write(ProfileBuilder().sample([frame]).build(), tmp_path / "sh.pb.gz")
    assert list(_top(path)) == ["[sh]"]
    assert re.search(r"1: 0x8000 M=1 \n", _go(path, "-raw"))


@pytest.mark.parametrize("profile", [ProfileBuilder().build(None), ProfileBuilder().sample([], comm="").build(None)], ids=["nothing", "no frames"])
def test_little_is_still_a_profile(profile: Profile, tmp_path: Path) -> None:
    assert "samples/count cpu/nanoseconds[dflt]" in _go(_write(profile, tmp_path / "little.pb.gz"), "-raw")


def test_hostile_names_reach_no_terminal(tmp_path: Path) -> None:
    name = 'a\x1b[2J\nb"\\\udc80;'
    mapping = Mapping(name, build_id=name)
    builder = ProfileBuilder(events=[name], notes=[name])
    path = _write(builder.sample([Frame(name, Mode.GUEST_USER, mapping, 7)], comm=name).build(), tmp_path / "hostile.pb.gz")
    for report in ("-raw", "-top", "-dot", "-tags", "-traces"):
        text = _go(path, report)
        assert r"a\x1b[2J\x0ab" in text.replace(r"\\", "\\")
        assert text.replace("\n", "").replace("\t", "").isprintable()


def test_the_same_profile_gives_the_same_bytes(example: Path, tmp_path: Path) -> None:
    assert _write(profiles.example(), tmp_path / "again").read_bytes() == example.read_bytes()


def test_large_profiles_come_in_pieces_that_belong_together(tmp_path: Path) -> None:
    profile = profiles.big(samples=20_000, stacks=6_000, depth=5)
    message = pb.Profile.FromString(gzip.decompress(_write(profile, tmp_path / "big.pb.gz").read_bytes()))
    _check(profile, message)
    assert _top(tmp_path / "big.pb.gz", "-unit=s")["web"] == ("0", "5s")


@settings(max_examples=60, deadline=None)
@given(profiles.profiles())
def test_the_message_holds_the_profile(profile: Profile) -> None:
    out = io.BytesIO()
    pprof.write(profile, out)
    _check(profile, pb.Profile.FromString(gzip.decompress(out.getvalue())))


def _check(profile: Profile, message: pb.Profile) -> None:
    """Reads the message as profile.proto says, and compares all samples."""
    assert message.string_table[0] == "" and len(set(message.string_table)) == len(message.string_table)
    assert all(text.isprintable() for text in message.string_table)
    assert [one.id for one in message.location] == list(range(1, len(profile.frames) + 1))
    functions = {one.id: one for one in message.function}
    mappings = {one.id: one for one in message.mapping}
    assert len(functions) == len(message.function) and len(mappings) == len(message.mapping)
    assert all(one.mapping_id in mappings and all(line.function_id in functions for line in one.line) for one in message.location)
    assert [one.address for one in message.location] == profile.frames.address.tolist()
    assert [bool(one.line) for one in message.location] == [
        mode == Mode.NONE or (symbol >= 0 and profile.strings[symbol] != "")
        for mode, symbol in zip(profile.frames.mode.tolist(), profile.frames.symbol.tolist(), strict=True)
    ]
    there: Counter[tuple[object, ...]] = Counter()
    periods: Counter[int] = Counter()
    for sample in message.sample:
        numbers = {message.string_table[label.key]: label.num for label in sample.label if label.num_unit}
        frames = tuple(location - 1 for location in sample.location_id)
        task = (numbers.get("guest_pid", -1), numbers.get("guest_tid", -1))
        there[frames, numbers["cpu"], numbers["pid"], numbers["tid"], numbers.get("vcpu", -1), *task] += sample.value[0]
        for event, value in enumerate(sample.value[1:]):
            periods[event] += value
    columns = profile.samples
    kept = (columns.stack, columns.cpu, columns.pid, columns.tid, columns.vcpu, columns.guest_pid, columns.guest_tid)
    rows = zip(*(column.tolist() for column in kept), strict=True)
    assert there == Counter((tuple(profile.stacks.of(stack).tolist()), *others) for stack, *others in rows)
    assert periods == Counter({event: int(np.sum(columns.period[columns.event == event])) for event in range(len(profile.events))} if len(columns) else {})


@pytest.mark.parametrize(
    ("focus", "total"), [("guest_comm=nginx", "500us"), ("guest_pid=7:7", "500us"), ("guest_tid=8:8", "250us"), ("cgroup=/web.service", "250us")]
)
def test_guest_threads_are_labels(focus: str, total: str, tmp_path: Path) -> None:
    builder = ProfileBuilder()
    for task in (Task(7, 7, "nginx"), Task(7, 8, "nginx", "/system.slice/web.service"), Task(0, 0, "swapper/0")):
        builder.sample([Frame("f", Mode.GUEST_USER, Mapping("/bin/x"))], vm=Vm(4242, "web"), guest=task)
    assert f"Showing nodes accounting for {total}," in _go(_write(builder.build(), tmp_path / "p.pb.gz"), "-top", "-unit=us", f"-tagfocus={focus}")


def test_other_threads_have_no_vm_label() -> None:
    out = io.BytesIO()
    builder = ProfileBuilder().sample([], comm="t", mode=Mode.NONE)
    pprof.write(replace(builder.build(), vms=[]), out)
    message = pb.Profile.FromString(gzip.decompress(out.getvalue()))
    assert {message.string_table[label.key] for label in message.sample[0].label} == {"cpu", "pid", "tid", "comm", "event"}
