# SPDX-License-Identifier: Apache-2.0
"""Reads the trace back by the rules of Perfetto's importer and of speedscope's, each written down here on its own."""

from __future__ import annotations

import io
import json
from collections import defaultdict
from typing import Any

import pytest
from hypothesis import given, settings

from perfguest.profile import Mapping, Mode, Profile, Vm
from perfguest.writers import chrome_trace
from perfguest.writers.chrome_trace import HOST_CPUS_PID
from perfguest.writers.columns import display_names
from tests import profiles
from tests.profiles import Frame, ProfileBuilder, Task

Sample = tuple[int, tuple[str, ...]]


def _write(profile: Profile) -> bytes:
    out = io.BytesIO()
    chrome_trace.write(profile, out)
    return out.getvalue()


def _trace(profile: Profile) -> dict[str, Any]:
    trace: dict[str, Any] = json.loads(_write(profile))
    return trace


def _as_perfetto(trace: dict[str, Any]) -> dict[tuple[int, int], list[Sample]]:
    """Samples of each (pid, tid): microseconds, and names from the root on. What Perfetto counts as an error fails here."""
    clock: dict[tuple[int, int], int] = {}
    sites: dict[tuple[int, int], dict[int, tuple[str, ...]]] = {}
    samples = defaultdict(list)
    for event in trace["traceEvents"]:
        assert isinstance(event["pid"], int) and isinstance(event["tid"], int) and event["tid"] != 0
        if event["ph"] != "P":
            continue
        data, session = event["args"]["data"], (int(event["id"], 16), event["pid"])
        if "startTime" in data:
            assert type(data["startTime"]) is int
            clock[session], sites[session] = data["startTime"], {}
            continue
        known = sites[session]
        for node in data["cpuProfile"]["nodes"]:
            assert 0 < node["id"] < 2**32 and node["id"] not in known
            above = known[node["parent"]] if "parent" in node else ()
            assert isinstance(node["callFrame"]["url"], str)
            known[node["id"]] = (*above, node["callFrame"]["functionName"])
        assert len(data["cpuProfile"]["samples"]) == len(data["timeDeltas"])
        for site, delta in zip(data["cpuProfile"]["samples"], data["timeDeltas"], strict=True):
            assert type(delta) is int
            clock[session] += delta
            samples[event["pid"], event["tid"]].append((clock[session], known[site]))
    return dict(samples)


def _as_speedscope(trace: dict[str, Any]) -> dict[str, list[Sample]]:
    """Samples of each profile, under the name of its thread; times from its start on."""
    events = trace["traceEvents"]
    assert {"pid", "tid", "ph", "cat"} <= events[0].keys()
    events = sorted(events, key=lambda event: event["ts"])
    threads = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    tracks: dict[str, tuple[str, dict[int, Any], list[int], list[int]]] = {}
    for event in events:
        if event["name"] == "Profile":
            tracks[event["id"]] = (threads[event["pid"], event["tid"]], {}, [], [])
        if event["name"] == "ProfileChunk":
            _, nodes, ids, deltas = tracks[event["id"]]
            nodes.update((node["id"], node) for node in event["args"]["data"]["cpuProfile"]["nodes"])
            ids += event["args"]["data"]["cpuProfile"]["samples"]
            deltas += event["args"]["data"]["timeDeltas"]
    profiles_read: dict[str, list[Sample]] = {}
    for name, nodes, ids, deltas in tracks.values():
        at, rows = 0, []
        for site, delta in zip(ids, deltas, strict=True):
            at += delta
            path: list[str] = []
            node = nodes[site]
            while node is not None:
                assert node["callFrame"]["functionName"] not in ("", "(root)", "(idle)", "(program)", "(garbage collector)")
                path.insert(0, node["callFrame"]["functionName"])
                node = nodes[node["parent"]] if "parent" in node else None
            rows.append((at, tuple(path)))
        profiles_read[name] = rows
    return profiles_read


def _expected(profile: Profile) -> dict[tuple[int, int], list[Sample]]:
    names = display_names(profile)
    columns = profile.samples
    tracks = defaultdict(list)
    for row in range(len(columns)):
        path = tuple(names[frame] for frame in profile.stacks.of(int(columns.stack[row]))[::-1]) or ("[unknown]",)
        sample = (int(columns.time[row]) // 1000, path)
        tracks[HOST_CPUS_PID, HOST_CPUS_PID + 1 + int(columns.cpu[row])].append(sample)
        if columns.vm[row] >= 0:
            tracks[int(columns.pid[row]), int(columns.tid[row])].append(sample)
    threads = _guest_threads(profile)
    for number, thread in enumerate(sorted(set(threads) - {None})):
        for row in (row for row, other in enumerate(threads) if other == thread):
            path = tuple(names[frame] for frame in profile.stacks.of(int(columns.stack[row]))[::-1]) or ("[unknown]",)
            tracks[int(columns.pid[row]), (1 << 24) + number].append((int(columns.time[row]) // 1000, path))
    return dict(tracks)


def _guest_threads(profile: Profile) -> list[tuple[int, ...] | None]:
    """Of each sample the guest's thread: VM, process, thread, and for idle threads the vCPU."""
    columns = profile.samples
    rows = zip(columns.vm.tolist(), columns.guest_pid.tolist(), columns.guest_tid.tolist(), columns.vcpu.tolist(), strict=True)
    return [(vm, pid, tid, -1 if tid else vcpu) if vm >= 0 and tid >= 0 else None for vm, pid, tid, vcpu in rows]


def test_perfetto_finds_all_stacks() -> None:
    profile = profiles.example()
    assert _as_perfetto(_trace(profile)) == _expected(profile)


def test_speedscope_finds_all_stacks() -> None:
    tracks = _as_speedscope(_trace(profiles.example()))
    assert {name: len(rows) for name, rows in tracks.items()} == {"CPU 0": 4, "CPU 1": 4, "CPU 3": 2, "vCPU 0 (CPU 0/KVM)": 4, "vCPU 1 (CPU 1/KVM)": 4}
    assert tracks["vCPU 1 (CPU 1/KVM)"] == tracks["CPU 1"]
    assert tracks["CPU 0"][:2] == [(0, ("web", "CPU 0/KVM", "main", "sha_round")), (500, ("web", "CPU 0/KVM", "kvm_vcpu_ioctl", "do_syscall_64", "vcpu_run"))]


def test_long_tracks_come_in_chunks_with_each_node_once() -> None:
    profile = profiles.big(samples=40_000, stacks=50, depth=4)
    profile.samples.cpu[:] = 0
    trace = _trace(profile)
    # One of nodes, five of samples.
    assert sum(event["name"] == "ProfileChunk" and event["pid"] == HOST_CPUS_PID for event in trace["traceEvents"]) == 6
    assert _as_perfetto(trace) == _expected(profile)
    assert _as_speedscope(trace)["CPU 0"][-1][0] == 31_250 * 39_999 // 1000


def test_tracks_have_names_and_an_order() -> None:
    events = _trace(profiles.example())["traceEvents"]
    metadata = [(event["name"], event["pid"], event["tid"], *event["args"].values()) for event in events if event["ph"] == "M"]
    assert ("process_name", 4242, 4242, "web") in metadata
    assert ("process_name", HOST_CPUS_PID, HOST_CPUS_PID, "Host CPUs") in metadata
    assert ("thread_name", 4242, 4251, "vCPU 1 (CPU 1/KVM)") in metadata
    assert ("thread_sort_index", 4242, 4251, 1) in metadata


def test_guest_threads_are_tracks_of_their_vm() -> None:
    builder, vm, stack = ProfileBuilder(), Vm(42, "web"), [Frame("f", Mode.GUEST_USER, Mapping("/bin/x"))]
    tasks = [Task(7, 7, "nginx"), Task(7, 8, "nginx worker"), Task(0, 0, "swapper/0"), Task(0, 0, "swapper/1"), Task(7, 7, "sh")]
    for number, (task, vcpu) in enumerate(zip(tasks, (0, 1, 0, 1, 1), strict=True)):
        builder.sample(stack, time=10**9 + number * 1000, pid=42, tid=50 + vcpu, vm=vm, vcpu=vcpu, guest=task)
    trace = _trace(builder.sample(stack, time=2 * 10**9, pid=42, tid=50, vm=vm, vcpu=0).build())
    tracks = {name: [at for at, _ in rows] for name, rows in _as_speedscope(trace).items()}
    # By its last name, though it was nginx before; samples of an unknown thread are on no guest's track.
    assert tracks["sh 7 (guest)"] == [0, 4] and tracks["nginx worker 7/8 (guest)"] == [0]
    assert len(tracks["swapper/0 0 (guest)"]) == len(tracks["swapper/1 0 (guest)"]) == 1
    assert sum(len(rows) for name, rows in tracks.items() if name.endswith("(guest)")) == 5
    assert {event["pid"] for event in trace["traceEvents"]} == {42, HOST_CPUS_PID}


def test_times_have_nanoseconds_where_the_format_has_room() -> None:
    text = _write(profiles.example()).decode()
    assert '"ts":5000000.123,"args":{"data":{"startTime":5000000}}' in text
    assert '"ts":5010000.999,' in text


def test_notes_and_host_come_along() -> None:
    assert _trace(profiles.example())["otherData"] == {"hostname": "host", "notes": ["9 of 9 guest samples paired"]}


def test_nothing_is_still_a_trace() -> None:
    trace = _trace(ProfileBuilder().build())
    assert _as_perfetto(trace) == {} and trace["traceEvents"]


@pytest.mark.parametrize("name", ["(root)", "(idle)", "(program)", "(garbage collector)"])
def test_functions_cannot_pose_as_v8s_marks(name: str) -> None:
    profile = ProfileBuilder().sample([Frame(name, Mode.HOST_USER, Mapping("/bin/x"))]).build()
    assert _as_speedscope(_trace(profile)) == {"CPU 0": [(0, (rf"\x28{name[1:]}",))]}


def test_text_may_stand_in_html() -> None:
    profile = ProfileBuilder().sample([Frame("</script><b>", Mode.HOST_USER, Mapping("/bin/x"))]).build()
    assert b"</" not in _write(profile)
    assert _as_speedscope(_trace(profile)) == {"CPU 0": [(0, ("</script><b>",))]}


@settings(deadline=None)
@given(profiles.profiles())
def test_all_profiles_are_read_back(profile: Profile) -> None:
    text = _write(profile).decode()
    assert text.replace("\n", "").isprintable()
    names = {name: rf"\x28{name[1:]}" for name in ("(root)", "(idle)", "(program)", "(garbage collector)")}
    expected = {track: [(at, tuple(names.get(name, name) for name in path)) for at, path in rows] for track, rows in _expected(profile).items()}
    trace = json.loads(text)
    assert _as_perfetto(trace) == expected
    assert sum(map(len, _as_speedscope(trace).values())) > 0 or not len(profile.samples)
